"""Training: optimizer, learning rate, EMA, exact resume, and the context gate.

Every step's randomness is a function of (seed, step), so a resumed run is the uninterrupted one, and several
processes, each with its rows of one global batch, are one process. Only dropout's masks depend on how a batch is
split; they are a function of (seed, step, process).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from emigm.autoencoders.autoencoder import Autoencoder
from emigm.config.errors import ConfigError, RunError
from emigm.config.parsing import as_dict
from emigm.config.schema import GateConfig, ModelConfig, Precision, TrainConfig
from emigm.files import fingerprint
from emigm.model import diffusion
from emigm.model.backbone import select_rows
from emigm.model.model import EMIGM, TrainingDraw, draw_training
from emigm.runtime.distributed import ALONE, World, autocast
from emigm.runtime.resume import ResumePoints

CURVE_EVERY = 50
"""Steps averaged into one point of the loss curve."""


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


def micro_batches(rows: slice, most: int | None) -> list[slice]:
    """`rows` in parts of at most `most` (None: one part), as equal as can be."""
    n = rows.stop - rows.start
    parts = 1 if most is None else math.ceil(n / most)
    edges = [rows.start + n * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Rate of step 0, 1, ...: linear warm-up from 0, then constant or half a cosine to 0."""
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
    """AdamW as the paper sets it."""
    return torch.optim.AdamW(parameter_groups(model, cfg.weight_decay), lr=cfg.lr, betas=cfg.betas, fused=True)


def update_ema(ema: list[Tensor], parameters: list[Tensor], decay: float) -> None:
    """ema <- decay x ema + (1 - decay) x parameters, in place."""
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
    on_start: Callable[[int], None] = lambda step: None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> TrainResult:
    """Train one model, or finish an interrupted run; every process of `world` calls this and gets the same.

    Args:
        model_cfg: architecture.
        cfg: recipe; its batch is that of all processes together.
        images: what to train on.
        autoencoder: turns raw latents into unit latents.
        seed: of the initial weights, the batches, the masks and the noise.
        state_folder: where resume points go; the caller removes the folder when all is written.
        data_id: identifies the training data (its checksum); a resume point of other data is not used.
        world: the processes; each trains on its share of every batch.
        micro_batch: images of one forward pass, at most; gradients of a larger share are accumulated. None: all.
        on_start: called with the number of steps that an interrupted run left finished.
        on_step: called with the number of finished steps and the last loss.

    Raises:
        ConfigError: the batch does not suit the data or the processes, or the device lacks the precision.
        RunError: the loss is not finite.
    """
    share = batch_share(cfg.batch, world)
    parts = micro_batches(share, micro_batch)
    torch.manual_seed(seed)
    model = EMIGM(model_cfg).to(world.device).train()
    optimizer = make_optimizer(model, cfg)
    parameters = list(model.parameters())
    ema = [p.detach().clone() for p in parameters]
    curve: list[tuple[int, float]] = []
    recent: list[float] = []
    start, earlier = 0, 0.0

    key = fingerprint(as_dict(model_cfg), as_dict(cfg), seed, data_id)
    points = ResumePoints(state_folder, f"train-{key}")
    if (state := points.load(("model", "optimizer", "ema", "step", "curve", "recent", "seconds"))) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema = [t.to(world.device) for t in state["ema"]]
        start, curve, recent, earlier = state["step"], state["curve"], state["recent"], state["seconds"]
    if len(set(world.gather(start))) > 1:
        raise ConfigError(f"{state_folder}: not seen by every process; put it on a file system that all nodes share")
    on_start(start)
    network = model if world.size == 1 else _synchronised(model, world)

    def read(step: int) -> tuple[Tensor, Tensor]:
        index = batch_indices(step, len(images.labels), cfg.batch, seed)[share]
        raw = images.rows(index, batch_views(step, images.views, cfg.batch, seed)[share])
        if images.read_ahead and world.device != "cpu":
            raw = raw.pin_memory()
        return raw, torch.from_numpy(images.labels[index])

    generator = torch.Generator(world.device)
    begun = time.perf_counter()
    batches = ahead(read, range(start, cfg.steps), threaded=images.read_ahead)
    for step, (raw, labels) in zip(range(start, cfg.steps), batches, strict=True):
        rng = np.random.default_rng([seed, step, 1])
        generator.manual_seed(int(rng.integers(2**62)))
        torch.manual_seed(int(rng.integers(2**62)) + world.rank)  # dropout
        draw = draw_training(model_cfg, cfg, cfg.batch, rng, generator)  # of the global batch
        noise = autoencoder.noise((cfg.batch, *raw.shape[1:]), generator)
        raw = raw.to(world.device, non_blocking=True)
        x = autoencoder.sample(raw, noise=None if noise is None else noise[share])
        loss = accumulate(network, x, labels.to(world.device), draw, parts, cfg.precision)
        torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, [p.detach() for p in parameters], cfg.ema)

        value = world.mean(loss).item()
        if not math.isfinite(value):
            raise RunError(f"the loss is {value} at step {step} of seed {seed}; lower train.lr")
        recent.append(value)
        if (step + 1) % CURVE_EVERY == 0 or step + 1 == cfg.steps:
            curve.append((step + 1, math.fsum(recent) / len(recent)))
            recent = []
        on_step(step + 1, value)
        if world.is_main and ((step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps):
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema,
                "step": step + 1,
                "curve": curve,
                "recent": recent,
                "seconds": earlier + time.perf_counter() - begun,
            }
            points.save(step + 1, state)

    names = [name for name, _ in model.named_parameters()]
    return TrainResult(dict(zip(names, ema, strict=True)), curve, earlier + time.perf_counter() - begun)


def _synchronised(model: EMIGM, world: World) -> DistributedDataParallel:
    """The model with its gradients averaged over the processes."""
    devices = None if world.device == "cpu" else [torch.device(world.device)]
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def ahead(read: Callable[[int], Any], steps: range, *, threaded: bool) -> Iterator[Any]:
    """read(step) for every step; `threaded`: a thread reads each while the caller works with the one before."""
    if not threaded:
        yield from map(read, steps)
        return
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(read, steps[0]) if steps else None
        for step in steps:
            batch = following.result()
            if step + 1 in steps:
                following = thread.submit(read, step + 1)
            yield batch


def accumulate(
    network: EMIGM | DistributedDataParallel,
    x: Tensor,
    labels: Tensor,
    draw: TrainingDraw,
    parts: list[slice],
    precision: Precision = "float32",
) -> Tensor:
    """Add the gradients of the mean loss over a process's images, and return that loss, a scalar.

    Args:
        network: the model; with several processes, wrapped, so that the last part averages the gradients over them.
        x: unit latents of the process's images (b, channels, grid, grid).
        labels: their classes (b,).
        draw: of the global batch.
        parts: rows of the global batch that each forward pass takes; together, the process's images.
        precision: of the forward passes.
    """
    total, first = torch.zeros((), device=x.device), parts[0].start
    for rows in parts:
        local = slice(rows.start - first, rows.stop - first)
        weight = (rows.stop - rows.start) / len(x)
        wait = rows is not parts[-1] and isinstance(network, DistributedDataParallel)
        with network.no_sync() if wait else contextlib.nullcontext():
            with autocast(precision, x.device.type):
                loss = network(x[local], labels[local], _take(draw, rows))
            loss.backward(torch.full_like(loss, weight))
        total += loss.detach() * weight
    return total


def _take(draw: TrainingDraw, rows: slice) -> TrainingDraw:
    """The part of a draw that belongs to these images."""
    return TrainingDraw(draw.weight, draw.masked[rows], draw.dropped[rows], draw.time[:, rows], draw.noise[:, rows])


@torch.inference_mode()
def context_errors(
    model: EMIGM, latents: Tensor, labels: Tensor, visible: tuple[int, ...], *, seed: int, repeats: int = 8
) -> dict[int, float]:
    """Mean squared error of the head's noise prediction against the number of visible tokens; of the categorical
    head, its cross-entropy in nats.

    The same tokens are predicted, from the same noise, at every count: each image's random order ends in
    its target token, and its first v tokens are shown.

    Args:
        model: in eval mode.
        latents: unit latents the model was not trained on (B, channels, grid, grid).
        labels: their classes (B,).
        visible: counts v, each below L.
        seed: of the orders and the noise.
        repeats: orders drawn for each image.
    """
    tokens = model.patchify(latents)
    b, length, channels = tokens.shape
    generator = torch.Generator(tokens.device).manual_seed(seed)
    totals = dict.fromkeys(visible, 0.0)
    for _ in range(repeats):
        order = torch.rand(b, length, generator=generator, device=tokens.device).argsort(dim=1)
        time = torch.randint(diffusion.T, (b,), generator=generator, device=tokens.device)
        noise = torch.randn(b, channels, generator=generator, device=tokens.device)
        target = order[:, -1:]
        x0 = select_rows(tokens, target)[:, 0]  # (B, C)
        if model.cfg.codebook is None:
            x_t = diffusion.q_sample(x0, noise, time)
        for v in visible:
            mask = torch.ones(b, length, dtype=torch.bool, device=tokens.device).scatter_(1, order[:, :v], False)
            z = select_rows(model.condition(tokens, mask, labels, length - v), target)[:, 0]
            if model.cfg.codebook is not None:
                totals[v] += F.cross_entropy(model.head(z), x0[:, 0]).item()
                continue
            eps, _ = model.head(x_t, time, z).chunk(2, dim=-1)
            totals[v] += (eps - noise).square().mean().item()
    return {v: total / repeats for v, total in totals.items()}


def context_ratio(errors: dict[int, float]) -> float:
    """Least error with context over the error at the fewest visible tokens; 1 or more: context does not help."""
    fewest = min(errors)
    return min(e for v, e in errors.items() if v != fewest) / errors[fewest]


def check_context(
    errors: dict[int, float],
    gate: GateConfig,
    what: str,
    remedy: str = "Train it longer, or at another learning rate.",
) -> None:
    """Raise RunError, saying why, unless seeing other tokens lowers the head's error enough."""
    ratio = context_ratio(errors)
    if ratio > gate.max_ratio and gate.on_failure == "stop":
        listed = ", ".join(f"{v} visible: {e:.4f}" for v, e in errors.items())
        raise RunError(
            f"{what}: the model ignores context: its error falls only to {ratio:.3f} of that at {min(errors)} visible "
            f"tokens (gate: {gate.max_ratio}; {listed}). It learned tokens from class and position alone, which FID, "
            f"IS and accuracy do not reveal. {remedy}"
        )
