"""Training: optimizer, learning rate, EMA, snapshots and exact resume.

The batch is split into groups of images that share a masking time; the loss is the mean of the groups' means, as the
official code averages the gradients of its GPUs. Every step's randomness is a function of (seed, step, group), so a
resumed run is the uninterrupted one, and several processes, each with its rows of one global batch, are one process.
Only dropout's masks depend on how a batch is split; they are a function of (seed, step, process).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from emigm.autoencoders.autoencoder import Autoencoder
from emigm.config.errors import ConfigError, RunError
from emigm.config.parsing import as_dict
from emigm.config.schema import ModelConfig, TrainConfig
from emigm.distributed import ALONE, World
from emigm.io import fingerprint
from emigm.model.model import EMIGM, TrainingDraw, compile_networks, draw_training
from emigm.model.precision import autocast, products
from emigm.model.transfer import upload
from emigm.pools import ahead
from emigm.resume import ResumePoints

CURVE_EVERY = 50
"""Steps averaged into one point of the loss curve."""
BESIDE = ("seeds", "checkpoint_every", "snapshots")
"""Settings that change nothing of a run, so that a resume point of others is used."""


class TrainingImages(NamedTuple):
    """Raw latents to train on; what is read of an image depends on nothing but its index."""

    labels: np.ndarray  # class of every image, int64 (n,)
    views: int  # versions of every image: itself, or itself and its flip
    rows: Callable[[np.ndarray, np.ndarray], Tensor]  # (indices (b,), view of each (b,)) -> raw latents (b, ...)
    read_ahead: bool  # whether `rows` reads a disk, so that a thread does it during the step before


class TrainResult(NamedTuple):
    """What a run leaves."""

    ema: dict[str, Tensor]  # EMA weights by name
    curve: list[tuple[int, float]]  # (step, mean loss of the steps since the last point)
    seconds: float  # wall time, over all resumptions
    skipped: int  # steps without an update, since gradients overflowed (float16 only)
    snapshots: dict[int, ResumePoints]  # step -> where the EMA weights after so many steps lie, by name


def batch_indices(step: int, n: int, batch: int, seed: int) -> np.ndarray:
    """Images of training step `step`: epochs are permutations of n, their remainder dropped (batch,)."""
    if batch > n:
        raise ConfigError(f"train.batch = {batch} is larger than the training set of {n} images")
    epoch, position = divmod(step, n // batch)
    return _order(n, seed, epoch)[position * batch : (position + 1) * batch]


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The images of one epoch in order (n,); drawing it takes longer than a step where n is a million."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch_views(step: int, views: int, batch: int, seed: int) -> np.ndarray:
    """Which version of each image step `step` takes, with equal chance (batch,)."""
    if views == 1:
        return np.zeros(batch, dtype=np.int64)
    return np.random.default_rng([seed, step, 2]).integers(views, size=batch)


def batch_share(batch: int, world: World) -> slice:
    """Rows of the global batch that this process takes; raises ConfigError when they cannot be equally many."""
    if batch % world.size:
        raise ConfigError(
            f"train.batch = {batch} cannot be split equally among {world.size} processes; start another number of them "
            "(run.launcher) or change train.batch"
        )
    rows = batch // world.size
    return slice(world.rank * rows, (world.rank + 1) * rows)


def micro_batches(rows: slice, group: int, most: int | None) -> list[slice]:
    """`rows` of the global batch in parts that lie in one group each and have at most `most` images (None: any number),
    as equal as can be within a group."""
    parts = []
    start = rows.start
    while start < rows.stop:
        stop = min((start // group + 1) * group, rows.stop)
        number = 1 if most is None else math.ceil((stop - start) / most)
        edges = [start + (stop - start) * i // number for i in range(number + 1)]
        parts += [slice(a, b) for a, b in itertools.pairwise(edges)]
        start = stop
    return parts


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Rate of step 0, 1, ...: linear warm-up from 0, then constant or half a cosine to 0 (Loshchilov & Hutter 2016,
    arXiv 1608.03983, equation 5)."""
    if step < cfg.warmup_steps:
        return cfg.lr * step / cfg.warmup_steps
    if cfg.lr_schedule == "constant":
        return cfg.lr
    progress = (step - cfg.warmup_steps) / (cfg.steps - cfg.warmup_steps)
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: EMIGM, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: no decay on biases, norms and anything one-dimensional, nor on the head."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, p in model.named_parameters():
        groups[p.ndim > 1 and not name.endswith(".bias") and not name.startswith("head.")].append(p)
    return [{"params": groups[False], "weight_decay": 0.0}, {"params": groups[True], "weight_decay": weight_decay}]


def make_optimizer(model: EMIGM, cfg: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2) as the paper sets it."""
    return torch.optim.AdamW(parameter_groups(model, cfg.weight_decay), lr=cfg.lr, betas=cfg.betas, fused=True)


def update_ema(ema: list[Tensor], parameters: list[Tensor], decay: float) -> None:
    """ema <- decay x ema + (1 - decay) x parameters, in place (as in DDPM, Ho et al. 2020, arXiv 2006.11239, appendix
    B)."""
    torch._foreach_lerp_(ema, parameters, 1 - decay)


def train(
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    images: TrainingImages,
    autoencoder: Autoencoder,
    *,
    seed: int,
    state_folder: Path,
    data_id: str,
    world: World = ALONE,
    micro_batch: int | None = None,
    compiled: bool = False,
    on_start: Callable[[int], None] = lambda step: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> TrainResult:
    """Train one model, or finish an interrupted run; every process of `world` calls this and gets the same.

    Args:
        model_cfg: architecture.
        cfg: recipe; its batch is that of all processes together.
        images: what to train on.
        autoencoder: turns raw latents into unit latents.
        seed: of the initial weights, the batches, the masks and the noise.
        state_folder: where resume points and snapshots go; the caller removes the folder when all is written.
        data_id: identifies the training data (its checksum); a resume point of other data is not used.
        world: the processes; each trains on its share of every batch.
        micro_batch: images of one forward pass, at most; gradients of a larger share are accumulated. None: a group.
        compiled: compile the networks (`compile_networks`).
        on_start: called with the number of steps that an interrupted run left finished.
        on_step: called with the number of finished steps.

    Raises:
        ConfigError: the batch does not suit the data or the processes, or the device lacks the precision.
        RunError: the loss is not finite.
    """
    run = TrainingRun(model_cfg, cfg, images, autoencoder, seed, state_folder, data_id, world, micro_batch, compiled)
    run.resume()
    on_start(run.done)
    begun = time.perf_counter() - run.seconds
    steps = range(run.done, cfg.steps)
    for step, batch in zip(steps, ahead(run.read, steps, threaded=images.read_ahead), strict=True):
        run.step(step, *batch)
        kept = (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps
        snapshot = step + 1 in run.snapshots
        if kept or snapshot or (step + 1) % CURVE_EVERY == 0:
            run.read_losses()
        run.seconds = time.perf_counter() - begun
        if snapshot:  # before the resume point: one at or after its step implies that it is there
            run.save_snapshot()
        if kept:
            run.save()
        on_step(step + 1)
    names = [name for name, _ in run.model.named_parameters()]
    return TrainResult(dict(zip(names, run.ema, strict=True)), run.curve, run.seconds, run.skipped, run.snapshots)


STATE_ENTRIES = ("model", "optimizer", "ema", "scaler", "skipped", "step", "curve", "recent", "seconds")
"""Of a resume point."""


class TrainingRun:
    """One training run under way."""

    def __init__(
        self,
        model_cfg: ModelConfig,
        cfg: TrainConfig,
        images: TrainingImages,
        autoencoder: Autoencoder,
        seed: int,
        state_folder: Path,
        data_id: str,
        world: World,
        micro_batch: int | None = None,
        compiled: bool = False,
    ):
        self.model_cfg, self.cfg, self.images, self.autoencoder = model_cfg, cfg, images, autoencoder
        self.seed, self.world = seed, world
        self.share = batch_share(cfg.batch, world)
        self.group = min(cfg.mask_group, cfg.batch)
        self.parts = micro_batches(self.share, self.group, micro_batch)
        torch.manual_seed(seed)
        self.model = EMIGM(model_cfg).to(world.device).train()
        if compiled:
            compile_networks(self.model)
        self.network = self.model if world.size == 1 else _synchronised(self.model, world)
        self.optimizer = make_optimizer(self.model, cfg)
        self.scaler = torch.amp.GradScaler(torch.device(world.device).type, enabled=cfg.precision == "float16")
        self.parameters = list(self.model.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.generator = torch.Generator(world.device)
        self.curve: list[tuple[int, float]] = []
        self.recent: list[float] = []  # losses since the curve's last point
        self.unread: list[Tensor] = []  # this process's losses that are still on the device
        self.overflows: list[Tensor] = []  # whether gradients were infinite, on the device; float16 only
        self.done, self.skipped, self.seconds = 0, 0, 0.0
        key = fingerprint(as_dict(model_cfg), {k: v for k, v in as_dict(cfg).items() if k not in BESIDE}, seed, data_id)
        self.points = ResumePoints(state_folder, f"train-{key}")
        self.snapshots = {n: ResumePoints(state_folder, f"train-{key}-snapshot{n}") for n in cfg.snapshot_steps}

    def resume(self) -> None:
        """Take up the resume point, if there is one with every snapshot before it.

        Raises:
            ConfigError: it is damaged, or not all processes see it.
        """
        state = self.points.load(STATE_ENTRIES)
        if state and all(self.snapshots[n].exists() for n in self.snapshots if n <= state["step"]):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema = [t.to(self.world.device) for t in state["ema"]]
            self.done, self.curve = state["step"], state["curve"]
            self.recent, self.seconds = state["recent"], state["seconds"]
            self.skipped = state["skipped"]
            self.scaler.load_state_dict(state["scaler"])
        if len(set(self.world.gather(self.done))) > 1:
            folder = self.points.folder
            raise ConfigError(f"{folder}: not seen by every process; put it on a file system that all nodes share")

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Raw latents and classes of this process's images of a step, on the device."""
        index = batch_indices(step, len(self.images.labels), self.cfg.batch, self.seed)[self.share]
        raw = self.images.rows(index, batch_views(step, self.images.views, self.cfg.batch, self.seed)[self.share])
        return upload(raw, self.world.device), upload(torch.from_numpy(self.images.labels[index]), self.world.device)

    def draw(self, step: int, group: int, shape: tuple[int, ...]) -> tuple[TrainingDraw, Tensor | None]:
        """The draw of one group, and the noise of its posteriors; `shape` of one image's raw latents."""
        rng = np.random.default_rng([self.seed, step, 1, group])
        self.generator.manual_seed(int(rng.integers(2**62)))
        draw = draw_training(self.model_cfg, self.cfg, self.group, rng, self.generator)
        return draw, self.autoencoder.noise((self.group, *shape), self.generator)

    def step(self, step: int, raw: Tensor, labels: Tensor) -> None:
        """One optimizer step on this process's images: raw latents (b, ...) and classes (b,)."""
        cfg, device = self.cfg, self.world.device
        torch.manual_seed(int(np.random.default_rng([self.seed, step, 3]).integers(2**62)) + self.world.rank)  # dropout
        loss = torch.zeros((), device=device)
        drawn = None
        for part in self.parts:
            group = part.start // self.group
            if drawn is None or drawn[0] != group:
                drawn = (group, *self.draw(step, group, tuple(raw.shape[1:])))
            _, draw, noise = drawn
            own = slice(part.start - self.share.start, part.stop - self.share.start)
            within = slice(part.start - group * self.group, part.stop - group * self.group)
            x = self.autoencoder.sample(raw[own], noise=None if noise is None else noise[within])
            wait = part is not self.parts[-1] and isinstance(self.network, DistributedDataParallel)
            with self.network.no_sync() if wait else contextlib.nullcontext():
                with autocast(cfg.precision, device):
                    part_loss = self.network(x, labels[own], draw.images(within, self.model_cfg.tokens))
                # The mean over the groups of the whole batch, once the processes' gradients are averaged.
                part_loss = part_loss * (self.group / len(raw))
                with products(cfg.precision, device):
                    self.scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, cfg.grad_clip)
        if self.scaler.is_enabled():
            self.overflows.append(~norm.isfinite())
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(cfg, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        update_ema(self.ema, [p.detach() for p in self.parameters], cfg.ema)
        self.unread.append(loss)
        self.done = step + 1

    def read_losses(self) -> None:
        """Fetch the losses from the device, for the curve; raises RunError unless all are finite."""
        values = self.world.mean(torch.stack(self.unread)).tolist()
        for step, value in enumerate(values, self.done - len(values)):
            if not math.isfinite(value):
                half = self.cfg.precision == "float16"
                hint = ", or set train.precision: bf16, since float16 ends at 65504" if half else ""
                raise RunError(f"the loss is {value} at step {step} of seed {self.seed}; lower train.lr{hint}")
            self.recent.append(value)
            if (step + 1) % CURVE_EVERY == 0 or step + 1 == self.cfg.steps:
                self.curve.append((step + 1, math.fsum(self.recent) / len(self.recent)))
                self.recent = []
        self.skipped += int(torch.stack(self.overflows).sum()) if self.overflows else 0
        self.unread, self.overflows = [], []

    def save_snapshot(self) -> None:
        """Write the EMA weights as they are."""
        if self.world.is_main:
            names = [name for name, _ in self.model.named_parameters()]
            state = {name: tensor.cpu() for name, tensor in zip(names, self.ema, strict=True)}
            self.snapshots[self.done].save(self.done, state)

    def save(self) -> None:
        """Write a resume point."""
        if self.world.is_main:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema,
                "scaler": self.scaler.state_dict(),
                "skipped": self.skipped,
                "step": self.done,
                "curve": self.curve,
                "recent": self.recent,
                "seconds": self.seconds,
            }
            self.points.save(self.done, state)


def _synchronised(model: EMIGM, world: World) -> DistributedDataParallel:
    """The model with its gradients averaged over the processes."""
    devices = None if world.device == "cpu" else [torch.device(world.device)]
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
