"""Training: the loop, one optimizer step, its state and resume points, the random draws, the optimizer and the EMA.

A batch is split into groups of images that share a masking time; the loss is the mean of the groups' means, as the
official code averages the gradients of its GPUs. All randomness of a step is a function of (seed, step, group), so that
several processes, each with its rows of one global batch, train as one does within rounding. Dropout's masks alone
depend on how a batch is split; they are a function of (seed, step, process).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emigm.autoencoders.autoencoder import Autoencoder
from emigm.config.errors import ConfigError, RunError, check
from emigm.config.parsing import as_dict
from emigm.config.schema import ModelConfig, TrainConfig
from emigm.data.latents import LatentStore
from emigm.distributed import ALONE, World
from emigm.io import fingerprint, sha256, write_atomically
from emigm.launching import ahead
from emigm.model import diffusion
from emigm.model.model import EMIGM, TrainingDraw, compile_networks
from emigm.model.precision import autocast, products
from emigm.model.schedules import draw_mask_counts, elbo_weight
from emigm.model.weights import upload

CURVE_EVERY = 50  # steps averaged into one point of the loss curve
WITHOUT_EFFECT = ("seeds", "checkpoint_every", "snapshots")
"""Settings that change no weight of a run, so that a resume point made with others is used."""


class TrainResult(NamedTuple):
    """What a run leaves."""

    ema: dict[str, Tensor]  # EMA weights by name
    curve: list[tuple[int, float]]  # (step, mean loss of the steps since the last point)
    seconds: float  # wall time, over all resumptions
    skipped: int  # steps without an update, since gradients overflowed (float16 only)
    snapshots: dict[int, ResumePoints]  # step -> where the EMA weights after so many steps lie, by name


def train(
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    store: LatentStore,
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

    With one process or two, a resumed run has the weights of an uninterrupted one bit for bit; with more, within
    rounding, since the order in which the processes' gradients are summed is not fixed.

    Args:
        cfg: recipe; its batch is that of all processes together.
        state_folder: where resume points and snapshots go; the caller removes the folder when all is written.
        data_id: checksum of the training data; a resume point of other data is not used.
        micro_batch: images of one forward pass, at most; gradients of a larger share are accumulated. None: a group.
        on_start: called with the number of steps that an interrupted run left finished, `on_step` after every step.

    Raises:
        ConfigError: the batch does not suit the data or the processes, the device lacks the precision, a resume point
            is damaged, or not all processes see it.
        RunError: the loss, or the weights at the end, are not finite.
    """
    share = batch_share(cfg.batch, world)
    state = TrainState.initial(model_cfg, cfg, seed, world, compiled)
    recipe = {name: value for name, value in as_dict(cfg).items() if name not in WITHOUT_EFFECT}
    key = fingerprint(as_dict(model_cfg), recipe, seed, data_id)
    points = ResumePoints(state_folder, f"train-{key}")
    snapshots = {n: ResumePoints(state_folder, f"train-{key}-snapshot{n}") for n in cfg.snapshot_steps}
    saved = points.load((*MODULES, "ema", *PROGRESS))
    if saved and all(point.exists() for n, point in snapshots.items() if n <= saved["step"]):
        state.load(saved, world.device)
    if len(set(world.gather(state.step))) > 1:
        raise ConfigError(f"{state_folder}: not seen by every process; put it on a file system that all nodes share")
    on_start(state.step)

    def read(step: int) -> tuple[Tensor, Tensor]:
        index = batch_indices(step, len(store.labels), cfg.batch, seed)[share]
        raw = torch.as_tensor(store.rows(index, batch_views(step, store.views, cfg.batch, seed)[share]))
        return upload(raw, world.device), upload(torch.from_numpy(store.labels[index]), world.device)

    begun = time.perf_counter() - state.seconds
    steps, unread = range(state.step, cfg.steps), []  # unread: losses and gradient norms that are still on the device
    for step, (raw, labels) in zip(steps, ahead(read, steps, threaded=store.large), strict=True):
        unread.append(train_step(state, cfg, autoencoder, raw, labels, step, seed, world, micro_batch))
        done = state.step = step + 1
        ends_point = done % CURVE_EVERY == 0 or done == cfg.steps
        resumable = done % cfg.checkpoint_every == 0 or done == cfg.steps
        if ends_point or resumable or done in snapshots:
            losses, norms = zip(*unread, strict=True)
            state.recent += _finite(world.mean(torch.stack(losses)).tolist(), done, seed, cfg)
            state.skipped += int((~torch.stack(norms).isfinite()).sum()) if state.scaler.is_enabled() else 0
            unread = []
        if ends_point:
            state.curve.append((done, math.fsum(state.recent) / len(state.recent)))
            state.recent = []
        state.seconds = time.perf_counter() - begun
        if done in snapshots and world.is_main:  # before the resume point, which implies the snapshots before it
            snapshots[done].save(done, {name: tensor.cpu() for name, tensor in state.ema.items()})
        if resumable and world.is_main:
            points.save(done, state.entries())
        on_step(done)
    if not all(torch.stack([average.isfinite().all() for average in state.ema.values()]).tolist()):
        # no loss has seen what the last step did
        raise RunError(f"weights of seed {seed} are NaN or infinite after {state.step} steps; lower train.lr")
    return TrainResult(state.ema, state.curve, state.seconds, state.skipped, snapshots)


def train_step(
    state: TrainState,
    cfg: TrainConfig,
    autoencoder: Autoencoder,
    raw: Tensor,
    labels: Tensor,
    step: int,
    seed: int,
    world: World = ALONE,
    micro_batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One optimizer step on this process's images: raw latents (b, ...) and classes (b,) on the device.

    Nothing here waits for the device. Returns the loss of these images and the norm of all gradients, before clipping
    and not finite where the step is skipped, both ().
    """
    model_cfg, device, share = state.model.cfg, world.device, batch_share(cfg.batch, world)
    group = min(cfg.mask_group, cfg.batch)
    parts = micro_batches(share, group, micro_batch)
    torch.manual_seed(int(np.random.default_rng([seed, step, 3]).integers(2**62)) + world.rank)  # dropout
    loss = torch.zeros((), device=device)
    for number, of_group in itertools.groupby(parts, lambda part: part.start // group):
        rng, generator = group_generators(seed, step, number, device)
        draw = draw_training(model_cfg, cfg, group, rng, generator)
        noise = autoencoder.noise((group, *raw.shape[1:]), generator)
        for part in of_group:
            own = slice(part.start - share.start, part.stop - share.start)
            within = slice(part.start - number * group, part.stop - number * group)
            x = autoencoder.sample(raw[own], noise=None if noise is None else noise[within])
            accumulating = part is not parts[-1] and isinstance(state.network, DistributedDataParallel)
            with state.network.no_sync() if accumulating else contextlib.nullcontext():
                with autocast(cfg.precision, device):
                    part_loss = state.network(x, labels[own], draw.images(within, model_cfg.tokens))
                # The mean over the groups of the whole batch, once the processes' gradients are averaged.
                part_loss = part_loss * (group / len(raw))
                with products(cfg.precision, device):
                    state.scaler.scale(part_loss).backward()
            loss += part_loss.detach()
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.parameters, cfg.grad_clip)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = learning_rate(cfg, step, parameters["initial_lr"])
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    update_ema([*state.ema.values()], [p.detach() for p in state.parameters], ema_decay(cfg, step + 1))
    return loss, norm


MODULES = ("model", "optimizer", "scaler")
PROGRESS = ("step", "curve", "recent", "skipped", "seconds")
"""Fields of the training state, and with "ema" the entries of a resume point."""


@dataclass
class TrainState:
    """What training changes."""

    model: EMIGM
    network: nn.Module  # the model, its gradients averaged over the processes where there are several
    optimizer: torch.optim.AdamW | MuonAndAdamW
    scaler: torch.amp.GradScaler  # of the loss, under float16
    parameters: list[Tensor]
    ema: dict[str, Tensor]  # of the parameters by name, in their order
    step: int = 0  # number of finished steps
    curve: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # losses since the curve's last point
    skipped: int = 0
    seconds: float = 0.0

    @classmethod
    def initial(
        cls, model_cfg: ModelConfig, cfg: TrainConfig, seed: int, world: World = ALONE, compiled: bool = False
    ) -> TrainState:
        """The state before the first step."""
        torch.manual_seed(seed)
        model = EMIGM(model_cfg).to(world.device).train()
        if compiled:
            compile_networks(model)
        network = model
        if world.size > 1:
            devices = None if world.device == "cpu" else [torch.device(world.device)]
            network = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        scaler = torch.amp.GradScaler(torch.device(world.device).type, enabled=cfg.precision == "float16")
        ema = {name: p.detach().clone() for name, p in model.named_parameters()}
        return cls(model, network, make_optimizer(model, cfg), scaler, list(model.parameters()), ema)

    def entries(self) -> dict[str, Any]:
        """What `load` needs."""
        modules = {name: getattr(self, name).state_dict() for name in MODULES}
        return modules | {name: getattr(self, name) for name in ("ema", *PROGRESS)}

    def load(self, entries: dict[str, Any], device: str) -> None:
        """Take up the state of a resume point."""
        for name in MODULES:
            getattr(self, name).load_state_dict(entries[name])
        self.ema = {name: tensor.to(device) for name, tensor in entries["ema"].items()}
        for name in PROGRESS:
            setattr(self, name, entries[name])


class ResumePoints:
    """The newest state of one run, written whole and read without running code, in a file whose name holds the steps
    and the checksum: <steps>-<sha256>.pt.

    Args:
        folder: where it lies, in a folder of its own.
        key: names the run.
    """

    def __init__(self, folder: Path, key: str):
        self.folder = folder / key

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, and remove those before."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as f:  # to a file of its own, torch does not say that the disk is full
                torch.save(state, f)

        written = self.folder / "new"
        write_atomically(written, write)
        newest = written.rename(self.folder / f"{step:09d}-{sha256(written)}.pt")
        for file in self._files():
            if file != newest:
                file.unlink()

    def exists(self) -> bool:
        """Whether there is a state."""
        return bool(self._files())

    def load(self, entries: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """The newest state, which has these entries; None: there is none.

        Raises:
            ConfigError: it is damaged, holds code, or is no such state.
        """
        if not self.exists():
            return None
        path, remedy = self._files()[-1], "delete it to start this run over"
        check(path.stem.endswith(sha256(path)), f"{path}: damaged resume point (checksum differs); {remedy}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # processes share its pages
        except Exception as e:  # of many types; the text of some advises to run code that is in the file
            raise ConfigError(f"{path}: not a resume point ({type(e).__name__}); {remedy}") from e
        whole = isinstance(state, dict) and state.keys() >= set(entries)
        check(whole, f"{path}: not a resume point (lacks some of {', '.join(entries)}); {remedy}")
        return state

    def _files(self) -> list[Path]:
        """Of this run, oldest first."""
        return sorted(self.folder.glob("[0-9]*.pt"))


def _finite(losses: list[float], done: int, seed: int, cfg: TrainConfig) -> list[float]:
    """The losses of the last of `done` steps; raises RunError unless all are finite."""
    for step, loss in enumerate(losses, done - len(losses)):
        if not math.isfinite(loss):
            rates = "train.lr" if cfg.muon_lr is None else "train.lr and train.muon_lr"
            hint = ", or set train.precision: bf16, since float16 ends at 65504" if cfg.precision == "float16" else ""
            raise RunError(f"the loss is {loss} at step {step} of seed {seed}; lower {rates}{hint}")
    return losses


def batch_indices(step: int, n: int, batch: int, seed: int) -> np.ndarray:
    """Images of training step `step`: epochs are permutations of n, their remainder dropped (batch,)."""
    check(batch <= n, f"train.batch = {batch} is larger than the training set of {n} images")
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
    remedy = "start another number of them (run.launcher) or change train.batch"
    equal = batch % world.size == 0
    check(equal, f"train.batch = {batch} cannot be split equally among {world.size} processes; {remedy}")
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


def learning_rate(cfg: TrainConfig, step: int, peak: float | None = None) -> float:
    """Rate of step 0, 1, ...: linear warm-up from 0 to `peak` (None: cfg.lr), then constant or half a cosine to 0
    (Loshchilov & Hutter 2016, arXiv 1608.03983, equation 5)."""
    peak = cfg.lr if peak is None else peak
    if step < cfg.warmup_steps:
        return peak * step / cfg.warmup_steps
    if cfg.lr_schedule == "constant":
        return peak
    progress = (step - cfg.warmup_steps) / (cfg.steps - cfg.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


HIDDEN = re.compile(r"backbone\.((en|de)coder_blocks|decoder_embed)\.|head\.(res_blocks|cond_embed)\.")
"""Names of the parameters whose matrices Muon takes: those of the transformer's and the head's hidden layers."""


def parameter_groups(model: EMIGM, weight_decay: float, muon: bool | None = None) -> list[dict[str, Any]]:
    """Optimizer groups: no decay on biases, norms and anything one-dimensional, nor on the head; of the matrices of
    hidden layers alone (`muon` True), of all but those (False), or of all parameters (None)."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, p in model.named_parameters():
        if muon in (None, p.ndim == 2 and HIDDEN.match(name) is not None):
            groups[p.ndim > 1 and not name.endswith(".bias") and not name.startswith("head.")].append(p)
    return [{"params": groups[False], "weight_decay": 0.0}, {"params": groups[True], "weight_decay": weight_decay}]


class MuonAndAdamW:
    """The two optimizers of a model behind the interface of one: a GradScaler skips the step of both or of neither."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self.parts = (muon, adamw)
        self.param_groups = [*muon.param_groups, *adamw.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, entries: list[dict[str, Any]]) -> None:
        for part, entry in zip(self.parts, entries, strict=True):
            part.load_state_dict(entry)
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # loading replaces them


def make_optimizer(model: EMIGM, cfg: TrainConfig) -> torch.optim.AdamW | MuonAndAdamW:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2) as the paper sets it; with `optimizer: muon` the
    matrices of the hidden layers are Muon's (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""
    groups = parameter_groups(model, cfg.weight_decay, None if cfg.optimizer == "adamw" else False)
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
    if cfg.optimizer == "muon":
        matrices = parameter_groups(model, cfg.weight_decay, True)
        optimizer = MuonAndAdamW(torch.optim.Muon(matrices, lr=cfg.muon_lr), optimizer)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def ema_decay(cfg: TrainConfig, s: int) -> float:
    """Decay of the EMA's update after s = 1, 2, ... finished steps: `ema`; with `ema_warmup`, (1 + s) / (10 + s) at
    most, so 2/11 at the first. After k steps the product of those of s = 1 .. k is the initial weights' share."""
    return min(cfg.ema, (1 + s) / (10 + s)) if cfg.ema_warmup else cfg.ema


def update_ema(ema: list[Tensor], parameters: list[Tensor], decay: float) -> None:
    """ema <- decay x ema + (1 - decay) x parameters, in place (DDPM, Ho et al. 2020, arXiv 2006.11239, appendix B)."""
    torch._foreach_lerp_(ema, parameters, 1 - decay)


def group_generators(seed: int, step: int, group: int, device: str) -> tuple[np.random.Generator, torch.Generator]:
    """Random numbers of one group of a step: of the masks' sizes, and of all that is drawn on the device."""
    rng = np.random.default_rng([seed, step, 1, group])
    return rng, torch.Generator(device).manual_seed(int(rng.integers(2**62)))


def draw_training(
    cfg: ModelConfig, train: TrainConfig, images: int, rng: np.random.Generator, generator: torch.Generator
) -> TrainingDraw:
    """Draw one step of a group of `images`: masking times and sizes from `rng`, the rest on the generator's device.

    With the MAE trick all images share one time and size, as those of one GPU do in the official code: the encoder
    needs equally many visible tokens. Without it `mask_times` decides (officially, each has its own under the ELBO).
    """
    device, shared = generator.device, train.shares_times(cfg)
    t, counts = draw_mask_counts(train.schedule, train.t_min, cfg.tokens, images, rng, train.masking, shared)
    masked = int(counts.sum())
    rank = torch.rand(images, cfg.tokens, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    mask = rank < upload(torch.from_numpy(counts), device)[:, None]
    repeats = train.diffusion_batch_mul if cfg.codebook is None else 0
    weight = np.broadcast_to(1.0 if train.weight == "one" else elbo_weight(train.schedule, t), images)
    return TrainingDraw(
        counts=counts,
        rows=torch.nonzero_static(mask.flatten(), size=masked)[:, 0],
        weight=upload(torch.from_numpy(weight / (max(repeats, 1) * masked)), device),
        dropped=torch.rand(images, generator=generator, device=device) < train.label_dropout,
        time=torch.randint(diffusion.T, (repeats, masked), generator=generator, device=device),
        noise=torch.randn(repeats, masked, cfg.token_channels, generator=generator, device=device),
    )
