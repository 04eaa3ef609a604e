"""Floating-point operations of training, in closed form (two for a multiply-add, matrix products only). No torch.

Shape letters: B images, L tokens, P buffer positions, R diffusion times of a token.
"""

from __future__ import annotations

import numpy as np

from emigm.config.schema import ModelConfig, TrainConfig
from emigm.model.schedules import draw_mask_count, draw_mask_counts

FREQUENCIES = 256
DIFFUSION_STEPS = 1000


def linear(rows: int, inputs: int, outputs: int, input_grad: bool = True) -> int:
    """Forward and backward of a linear layer: the product, the gradient of its weights and of its input."""
    return 2 * rows * inputs * outputs * (3 if input_grad else 2)


def block(images: int, positions: int, cfg: ModelConfig, queries: int | None = None) -> int:
    """Forward and backward of one transformer block; `queries`: positions whose output is wanted (None: all)."""
    d, hidden = cfg.width, int(cfg.width * cfg.mlp_ratio)
    queries = positions if queries is None else queries
    rows = images * queries
    attention = 3 * 2 * (2 * images * queries * positions * d)  # scores and weighted sum; twice that backward
    layers = linear(rows, d, d) + linear(images * positions, d, 2 * d)  # queries, keys and values
    layers += linear(rows, d, d) + linear(rows, d, hidden) + linear(rows, hidden, d)
    return layers + attention


def group_step(cfg: ModelConfig, train: TrainConfig, images: int, masked: int) -> int:
    """Forward and backward of a group of `images` with `masked` masked tokens in all."""
    b, d, w, c = images, cfg.width, cfg.head_width, cfg.token_channels
    positions = cfg.buffer + cfg.tokens
    seen = b * cfg.tokens - masked if cfg.mae else b * cfg.tokens  # tokens
    encoder = cfg.encoder_blocks * block(b, cfg.buffer + seen // b, cfg) + linear(b * cfg.buffer + seen, d, d)
    if cfg.codebook is None:  # codes are looked up
        encoder += linear(seen, c, d, input_grad=False)
    decoder = (cfg.decoder_blocks - 1) * block(b, positions, cfg)
    decoder += block(b, positions, cfg, masked // b if cfg.mae else None)

    if cfg.codebook is not None:
        head = linear(masked, d, w) + cfg.head_blocks * 2 * linear(masked, w, w) + linear(masked, w, cfg.codebook)
        return encoder + decoder + head

    rows = train.diffusion_batch_mul * masked
    times = min(rows, DIFFUSION_STEPS)  # whole steps are embedded at most once
    head = linear(times, FREQUENCIES, w, input_grad=False) + linear(times, w, w)
    head += linear(masked, d, w) + linear(rows, c, w, input_grad=False)
    head += cfg.head_blocks * (2 * linear(rows, w, w) + linear(rows, w, 3 * w))
    head += linear(rows, w, 2 * w) + linear(rows, w, 2 * c)
    return encoder + decoder + head


def mean_training_step(cfg: ModelConfig, train: TrainConfig, draws: int = 2000) -> int:
    """One step over the global batch: the mean over the distribution of the masks' sizes, from `draws` draws."""
    rng, images = np.random.default_rng(0), min(train.mask_group, train.batch)
    settings = (train.schedule, train.t_min, cfg.tokens)
    if cfg.mae:
        masked = [images * draw_mask_count(*settings, rng, train.masking)[1] for _ in range(draws)]
    else:
        masked = [int(draw_mask_counts(*settings, images, rng, train.masking)[1].sum()) for _ in range(draws)]
    values, numbers = np.unique(masked, return_counts=True)
    total = sum(group_step(cfg, train, images, int(m)) * int(n) for m, n in zip(values, numbers, strict=True))
    return round(total * (train.batch // images) / draws)


def parameters(cfg: ModelConfig) -> int:
    """Parameters of an architecture, in closed form: equal to the number in the built modules."""
    d, w, c, hidden = cfg.width, cfg.head_width, cfg.token_channels, int(cfg.width * cfg.mlp_ratio)
    layer = 4 * d + _weights(d, 3 * d) + _weights(d, d) + _weights(d, hidden) + _weights(hidden, d)
    embeddings = (cfg.classes + 1 + (not cfg.cfg_with_mask)) * d  # classes, the fake one, and the mask token
    positions = (2 * (cfg.buffer + cfg.tokens) + cfg.tokens) * d
    tokens = _weights(c, d) if cfg.codebook is None else cfg.codebook * d
    backbone = embeddings + positions + tokens + _weights(d, d) + 6 * d
    backbone += (cfg.encoder_blocks + cfg.decoder_blocks) * layer
    residual = 2 * w + 2 * _weights(w, w)
    if cfg.codebook is not None:
        return backbone + _weights(d, w) + cfg.head_blocks * residual + 2 * w + _weights(w, cfg.codebook)
    head = _weights(FREQUENCIES, w) + _weights(w, w) + _weights(d, w) + _weights(c, w)  # time, condition, token
    return backbone + head + cfg.head_blocks * (residual + _weights(w, 3 * w)) + _weights(w, 2 * w) + _weights(w, 2 * c)


def _weights(inputs: int, outputs: int) -> int:
    """Weights and biases of a linear layer."""
    return inputs * outputs + outputs
