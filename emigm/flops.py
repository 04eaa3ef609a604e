"""Floating-point operations of training, in closed form (two for a multiply-add, matrix products only). No torch.

Shape letters: B images, L tokens, M masked tokens of an image, P buffer positions, R diffusion times of a token.
"""

from __future__ import annotations

import numpy as np

from emigm.config.schema import ModelConfig, TrainConfig
from emigm.model.schedules import draw_mask_count

FREQUENCIES = 256
DIFFUSION_STEPS = 1000


def linear(rows: int, inputs: int, outputs: int, input_grad: bool = True) -> int:
    """Forward and backward of a linear layer: the product, the gradient of its weights and of its input."""
    return 2 * rows * inputs * outputs * (3 if input_grad else 2)


def block(images: int, positions: int, cfg: ModelConfig) -> int:
    """Forward and backward of one transformer block."""
    rows, d = images * positions, cfg.width
    hidden = int(d * cfg.mlp_ratio)
    attention = 3 * 2 * (2 * images * positions * positions * d)  # scores and weighted sum; twice that backward
    layers = linear(rows, d, 3 * d) + linear(rows, d, d) + linear(rows, d, hidden) + linear(rows, hidden, d)
    return layers + attention


def training_step(cfg: ModelConfig, train: TrainConfig, masked: int) -> int:
    """One step over the global batch with `masked` masked tokens in each image."""
    b, d, w, c = train.batch, cfg.width, cfg.head_width, cfg.token_channels
    seen = cfg.tokens - masked if cfg.mae else cfg.tokens
    encoder = cfg.encoder_blocks * block(b, cfg.buffer + seen, cfg)
    if cfg.codebook is None:  # codes are looked up
        encoder += linear(b * seen, c, d, input_grad=False)
    decoder = cfg.decoder_blocks * block(b, cfg.buffer + cfg.tokens, cfg) + linear(b * (cfg.buffer + seen), d, d)

    if cfg.codebook is not None:
        rows = b * masked
        head = linear(rows, d, w) + cfg.head_blocks * 2 * linear(rows, w, w) + linear(rows, w, cfg.codebook)
        return encoder + decoder + head

    rows = train.diffusion_batch_mul * b * masked
    times = min(rows, DIFFUSION_STEPS)  # whole steps are embedded at most once
    head = linear(times, FREQUENCIES, w, input_grad=False) + linear(times, w, w)
    head += linear(b * masked, d, w) + linear(rows, c, w, input_grad=False)
    head += cfg.head_blocks * (2 * linear(rows, w, w) + linear(rows, w, 3 * w))
    head += linear(rows, w, 2 * w) + linear(rows, w, 2 * c)
    return encoder + decoder + head


def mean_training_step(cfg: ModelConfig, train: TrainConfig, draws: int = 2000) -> int:
    """Mean of `training_step` over the law of the mask's size, from `draws` draws."""
    rng = np.random.default_rng(0)
    counts = [draw_mask_count(train.schedule, train.t_min, cfg.tokens, rng, train.masking)[1] for _ in range(draws)]
    values, numbers = np.unique(counts, return_counts=True)
    total = sum(training_step(cfg, train, int(m)) * int(n) for m, n in zip(values, numbers, strict=True))
    return round(total / draws)


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
