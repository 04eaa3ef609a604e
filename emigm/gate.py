"""The context gate: whether a model's prediction of a token gains from seeing other tokens."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emigm.autoencoders.autoencoder import Autoencoder
from emigm.config.errors import RunError
from emigm.config.schema import GateConfig
from emigm.data.latents import LatentStore
from emigm.model import diffusion
from emigm.model.model import EMIGM


@torch.inference_mode()
def context_errors(
    model: EMIGM, latents: Tensor, labels: Tensor, visible: tuple[int, ...], *, seed: int, repeats: int = 8
) -> dict[int, float]:
    """Mean squared error of the head's noise prediction (of the categorical head, cross-entropy in nats) by the number
    of `visible` tokens, for unit latents (B, channels, grid, grid) and classes (B,) that the model was not trained on.

    The same tokens are predicted, from the same noise, at every count v: each image's random order, of which there are
    `repeats`, ends in its target token, and its first v tokens are shown.
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
        x0 = tokens.take_along_dim(target[..., None], 1)[:, 0]  # (B, C)
        if model.cfg.codebook is None:
            x_t = diffusion.q_sample(x0, noise, time)
        for v in totals:  # each count once, however often it is asked for
            mask = torch.ones(b, length, dtype=torch.bool, device=tokens.device).scatter_(1, order[:, :v], False)
            z = model.condition(tokens, mask, labels, length - v, query=target)[:, 0]
            if model.cfg.codebook is None:
                eps, _ = model.head(x_t, time, z).chunk(2, dim=-1)
                totals[v] += (eps - noise).square().mean().item()
            else:
                totals[v] += F.cross_entropy(model.head(z), x0[:, 0]).item()
    return {v: total / repeats for v, total in totals.items()}


def held_out_errors(
    model: EMIGM, held_out: LatentStore, autoencoder: Autoencoder, gate: GateConfig, device: str
) -> dict[int, float]:
    """`context_errors` on held-out images, as many as the gate says."""
    rows = np.arange(0, len(held_out), -(-len(held_out) // gate.images))  # evenly: images may be sorted by class
    latents = autoencoder.sample(torch.from_numpy(held_out.rows(rows, 0)), torch.Generator().manual_seed(0))
    labels = torch.from_numpy(held_out.labels[rows])
    return context_errors(model, latents.to(device), labels.to(device), gate.visible, seed=0, repeats=gate.repeats)


def context_ratio(errors: dict[int, float]) -> float:
    """Least error with context over the error at the fewest visible tokens; 1 or more: context does not help."""
    fewest = min(errors)
    return min(e for v, e in errors.items() if v != fewest) / errors[fewest]


def check_context(
    errors: dict[int, float],
    gate: GateConfig,
    model: str,
    remedy: str = "Train it longer, or at another learning rate.",
) -> None:
    """Raise RunError, saying why, unless seeing other tokens lowers the head's error enough; `model` is its name."""
    ratio = context_ratio(errors)
    if ratio > gate.max_ratio and gate.on_failure == "stop":
        listed = ", ".join(f"{v} visible: {e:.4f}" for v, e in errors.items())
        raise RunError(
            f"{model}: the model ignores context: its error falls only to {ratio:.3f} of that at {min(errors)} visible "
            f"tokens (gate: {gate.max_ratio}; {listed}). It learned tokens from class and position alone, which FID, "
            f"IS and accuracy do not reveal. {remedy}"
        )
