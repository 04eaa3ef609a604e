"""Training: optimizer, learning rate, EMA, exact resume, and the context gate.

Every step's randomness is a function of (seed, step), so a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emigm import diffusion
from emigm.backbone import select_rows
from emigm.config import GateConfig, ModelConfig, TrainConfig
from emigm.model import EMIGM, draw_training
from emigm.parsing import ConfigError, RunError, as_dict
from emigm.records import write_atomically

CURVE_EVERY = 50
"""Steps averaged into one point of the loss curve."""


class TrainResult(NamedTuple):
    """What a run leaves."""

    ema: dict[str, Tensor]  # EMA weights by name
    curve: list[tuple[int, float]]  # (step, mean loss of the steps since the last point)
    seconds: float  # wall time, over all resumptions


def batch_indices(step: int, n: int, batch: int, seed: int) -> np.ndarray:
    """Images of training step `step`: epochs are permutations of n, their remainder dropped (batch,)."""
    if batch > n:
        raise ConfigError(f"train.batch = {batch} is larger than the training set of {n} images")
    per_epoch = n // batch
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[position * batch : (position + 1) * batch]


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


def fingerprint(*parts: Any) -> str:
    """Short hash of plain values: names the resume state, so that another configuration cannot pick it up."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def train(
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    fetch: Callable[[np.ndarray, torch.Generator], Tensor],
    labels: np.ndarray,
    *,
    seed: int,
    state_folder: Path,
    data_id: str,
    device: str = "cpu",
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> TrainResult:
    """Train one model, or finish an interrupted run.

    Args:
        model_cfg: architecture.
        cfg: recipe.
        fetch: (image indices (batch,), generator for a posterior) -> unit latents (batch, channels, grid, grid).
        labels: class of every training image (n,).
        seed: of the initial weights, the batches, the masks and the noise.
        state_folder: where resume points go; the caller removes the folder when all is written.
        data_id: identifies the training data (its checksum); a resume point of other data is not used.
        device: where to train.
        on_step: called with the number of finished steps and the last loss.

    Raises:
        RunError: the loss is not finite.
    """
    torch.manual_seed(seed)
    model = EMIGM(model_cfg).to(device).train()
    optimizer = make_optimizer(model, cfg)
    parameters = list(model.parameters())
    ema = [p.detach().clone() for p in parameters]
    curve: list[tuple[int, float]] = []
    recent: list[float] = []
    start, earlier = 0, 0.0

    key = fingerprint(as_dict(model_cfg), as_dict(cfg), seed, data_id)
    state_path = state_folder / f"train-{key}.pt"
    if state_path.is_file():
        state = read_state(state_path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema = [t.to(device) for t in state["ema"]]
        start, curve, recent, earlier = state["step"], state["curve"], state["recent"], state["seconds"]

    generator = torch.Generator(device)
    begun = time.perf_counter()
    for step in range(start, cfg.steps):
        index = batch_indices(step, len(labels), cfg.batch, seed)
        rng = np.random.default_rng([seed, step, 1])
        generator.manual_seed(int(rng.integers(2**62)))
        torch.manual_seed(int(rng.integers(2**62)))  # dropout
        draw = draw_training(model_cfg, cfg, cfg.batch, rng, generator)
        x = fetch(index, generator).to(device)
        loss = model(x, torch.from_numpy(labels[index]).to(device), draw)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, [p.detach() for p in parameters], cfg.ema)

        value = loss.item()
        if not math.isfinite(value):
            raise RunError(f"the loss is {value} at step {step} of seed {seed}; lower train.lr")
        recent.append(value)
        if (step + 1) % CURVE_EVERY == 0 or step + 1 == cfg.steps:
            curve.append((step + 1, math.fsum(recent) / len(recent)))
            recent = []
        on_step(step + 1, value)
        if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema,
                "step": step + 1,
                "curve": curve,
                "recent": recent,
                "seconds": earlier + time.perf_counter() - begun,
            }
            write_atomically(state_path, lambda p, state=state: torch.save(state, p))

    names = [name for name, _ in model.named_parameters()]
    return TrainResult(dict(zip(names, ema, strict=True)), curve, earlier + time.perf_counter() - begun)


def read_state(path: Path) -> dict[str, Any]:
    """A resume point; raises ConfigError when it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch.load raises many types for a damaged file
        raise ConfigError(f"{path}: damaged resume point ({e}); delete it to start this run over") from e


@torch.inference_mode()
def context_errors(
    model: EMIGM, latents: Tensor, labels: Tensor, visible: tuple[int, ...], *, seed: int, repeats: int = 8
) -> dict[int, float]:
    """Mean squared error of the head's noise prediction against the number of visible tokens.

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
        x_t = diffusion.q_sample(x0, noise, time)
        for v in visible:
            mask = torch.ones(b, length, dtype=torch.bool, device=tokens.device).scatter_(1, order[:, :v], False)
            z = select_rows(model.condition(tokens, mask, labels, length - v), target)[:, 0]
            eps, _ = model.head(x_t, time, z).chunk(2, dim=-1)
            totals[v] += (eps - noise).square().mean().item()
    return {v: total / repeats for v, total in totals.items()}


def context_ratio(errors: dict[int, float]) -> float:
    """Least error with context over the error at the fewest visible tokens; 1 or more: context does not help."""
    fewest = min(errors)
    return min(e for v, e in errors.items() if v != fewest) / errors[fewest]


def check_context(errors: dict[int, float], gate: GateConfig, what: str) -> None:
    """Raise RunError, saying why, unless seeing other tokens lowers the head's error enough."""
    ratio = context_ratio(errors)
    if ratio > gate.max_ratio and gate.enforce:
        listed = ", ".join(f"{v} visible: {e:.4f}" for v, e in errors.items())
        raise RunError(
            f"{what}: the model ignores context: its error falls only to {ratio:.3f} of that at {min(errors)} visible "
            f"tokens (gate: {gate.max_ratio}; {listed}). It learned tokens from class and position alone, which FID, "
            "IS and accuracy do not reveal. Train it longer, or at another learning rate."
        )
