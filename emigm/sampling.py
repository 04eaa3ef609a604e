"""Generation: every image is a function of (weights, seed, image index), whatever the batch it is made in.

Shape letters: B images, L tokens, n tokens revealed in a step, C token channels, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emigm.backbone import select_rows
from emigm.config import SampleConfig
from emigm.diffusion import Denoiser, ddpm_sample, dpm_solver_sample
from emigm.head import DiffusionHead
from emigm.model import EMIGM
from emigm.schedules import guided_steps, reveal_counts

COUNTS, IMAGE = 0, 1  # separate random streams of one seed


class Piece(NamedTuple):
    """Consecutive images made together."""

    first: int  # index of the first
    latents: Tensor  # unit latents (B, channels, grid, grid)
    passes: int  # forward passes of the backbone for each image


class ImageDraw(NamedTuple):
    """Everything random about a batch of images but the reveal counts."""

    order: Tensor  # order in which positions are revealed, int64 (B, L)
    noise: Tensor  # standard normal (draws, B, L, C): one draw for DPM-Solver, K for DDPM


def generate(
    model: EMIGM, labels: Tensor, cfg: SampleConfig, *, seed: int, first: int = 0, chunk: int = 250, batch: int = 250
) -> Iterator[Piece]:
    """Generate the images with indices first, first + 1, ... and the given classes.

    Args:
        model: in eval mode.
        labels: classes, int64 (n,).
        cfg: steps, solver and guidance.
        seed: sampling seed.
        first: index of the first image.
        chunk: images whose indices lie in the same multiple of `chunk` share their reveal counts (the network
            needs equal numbers of visible tokens in a batch). Part of what defines an image.
        batch: images made at once; changes speed and memory only.

    Yields:
        Pieces in order.

    Raises:
        ValueError: no images were asked for, or a class does not exist.
    """
    n = len(labels)
    if n < 1:
        raise ValueError("zero images asked for; ask for at least one")
    if int(labels.min()) < 0 or int(labels.max()) >= model.cfg.classes:
        raise ValueError(f"classes must lie in 0..{model.cfg.classes - 1}, got {labels.unique().tolist()}")
    start = first
    while start < first + n:
        stop = min(start + batch, (start // chunk + 1) * chunk, first + n)
        counts = reveal_counts(cfg.schedule, cfg.steps, model.cfg.tokens, random_stream(seed, COUNTS, start // chunk))
        draw = draw_images(model, cfg, seed, range(start, stop))
        device = draw.noise.device
        tokens, passes = reveal(model, labels[start - first : stop - first].to(device), cfg, counts, draw)
        yield Piece(start, model.unpatchify(tokens), passes)
        start = stop


def random_stream(seed: int, purpose: int, index: int) -> np.random.Generator:
    """Independent random numbers for every (seed, purpose, index)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose, index])))


def draw_images(model: EMIGM, cfg: SampleConfig, seed: int, indices: range) -> ImageDraw:
    """The random numbers of the images `indices`, each from its own stream."""
    length, channels = model.cfg.tokens, model.cfg.token_channels
    draws = cfg.solver_steps if cfg.solver == "ddpm" else 1
    orders, noises = [], []
    for index in indices:
        rng = random_stream(seed, IMAGE, index)
        orders.append(rng.permutation(length))
        noises.append(rng.standard_normal((draws, length, channels), dtype=np.float32))
    like = model.backbone.fake_latent
    noise = torch.from_numpy(np.stack(noises, axis=1)).to(like.device, like.dtype)
    return ImageDraw(torch.from_numpy(np.stack(orders)).to(like.device), noise)


@torch.inference_mode()
def reveal(model: EMIGM, labels: Tensor, cfg: SampleConfig, counts: np.ndarray, draw: ImageDraw) -> tuple[Tensor, int]:
    """Reveal all tokens in N steps; returns tokens (B, L, C) and the forward passes each image took."""
    b, length = draw.order.shape
    tokens = torch.zeros_like(draw.noise[0])
    mask = torch.ones(b, length, dtype=torch.bool, device=tokens.device)
    guided = guided_steps(cfg.steps, cfg.cfg_scale, cfg.cfg_interval)
    done = passes = 0
    for n, guide in zip(counts.tolist(), guided.tolist(), strict=True):
        if n == 0:  # the "at least one" rule used up the tokens early
            break
        query = draw.order[:, done : done + n]  # (B, n)
        z = [condition_rows(model, tokens, mask, labels, length - done, query)]
        if guide:
            dropped = torch.ones(b, dtype=torch.bool, device=tokens.device)
            z.append(condition_rows(model, tokens, mask, labels, length - done, query, dropped))
        noise = select_rows_of_each(draw.noise, query).flatten(1, 2)  # (draws, B n, C)
        new = sample_tokens(model.head, z, noise, cfg).view(b, n, -1)
        tokens.scatter_(1, query[..., None].expand_as(new), new)
        mask.scatter_(1, query, False)
        done += n
        passes += len(z)
    return tokens, passes


def condition_rows(
    model: EMIGM,
    tokens: Tensor,
    mask: Tensor,
    labels: Tensor,
    n_masked: int,
    query: Tensor,
    dropped: Tensor | None = None,
) -> Tensor:
    """z of the queried positions (B n, D)."""
    if n_masked == tokens.shape[1]:
        # Nothing is visible yet: z depends on the class alone, so each class is computed once.
        labels, image = labels.unique(return_inverse=True)
        k = len(labels)
        z = model.condition(tokens[:k], mask[:k], labels, n_masked, None if dropped is None else dropped[:k])[image]
    else:
        z = model.condition(tokens, mask, labels, n_masked, dropped)
    return select_rows(z, query).flatten(0, 1)


def select_rows_of_each(noise: Tensor, index: Tensor) -> Tensor:
    """noise[k, b, index[b, i]]: (K, B, L, C), (B, n) => (K, B, n, C)."""
    return noise.gather(2, index[None, ..., None].expand(noise.shape[0], -1, -1, noise.shape[-1]))


def sample_tokens(head: DiffusionHead, z: list[Tensor], noise: Tensor, cfg: SampleConfig) -> Tensor:
    """Tokens (M, C) from their conditions: z = [conditional] or [conditional, unconditional], each (M, D)."""
    denoiser = guided_denoiser(head, z, cfg.cfg_scale)
    if cfg.solver == "ddpm":
        temperature = 1.0 if cfg.temperature is None else cfg.temperature
        return ddpm_sample(denoiser, noise, cfg.solver_steps, temperature, cfg.x0_clip)
    return dpm_solver_sample(denoiser, noise[0], cfg.solver_steps)


def guided_denoiser(head: DiffusionHead, z: list[Tensor], cfg_scale: float) -> Denoiser:
    """The head as a function of (x, time); with two conditions eps = eps_u + cfg_scale (eps_c - eps_u).

    The variance is the conditional one.
    """
    condition = head.cond_embed(torch.cat(z))  # embedded once for all solver steps

    def denoiser(x: Tensor, time: Tensor) -> Tensor:
        y = head.time_embed(time) + condition
        if len(z) == 1:
            return head.denoise(x, y)
        with_class, without = head.denoise(torch.cat([x, x]), y).chunk(2)
        eps_c, variance = with_class.chunk(2, dim=-1)
        eps_u, _ = without.chunk(2, dim=-1)
        return torch.cat([eps_u + cfg_scale * (eps_c - eps_u), variance], dim=-1)

    return denoiser
