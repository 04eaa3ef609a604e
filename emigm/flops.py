"""Floating-point operations (two for a multiply-add, matrix products only) and parameters, in closed form. No torch.

Shape letters: B images, L tokens, P buffer positions, R diffusion times of a token.
"""

from __future__ import annotations

import numpy as np

from emigm.config.schema import ModelConfig, SampleConfig, TrainConfig
from emigm.model.schedules import draw_mask_count, draw_mask_counts, guided_steps, step_counts

FREQUENCIES = 256
DIFFUSION_STEPS = 1000
AUTOENCODERS = {"kl16": (137.9e9, 250.1e9, 256), "dcae": (2085e9, 2770e9, 512)}
"""FLOPs of encoding and of decoding one image, as counted by torch, and at which resolution."""


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
    if train.shares_times(cfg):
        masked = [images * draw_mask_count(*settings, rng, train.masking)[1] for _ in range(draws)]
    else:
        masked = [int(draw_mask_counts(*settings, images, rng, train.masking)[1].sum()) for _ in range(draws)]
    values, numbers = np.unique(masked, return_counts=True)
    total = sum(group_step(cfg, train, images, int(m)) * int(n) for m, n in zip(values, numbers, strict=True))
    return round(total * (train.batch // images) / draws)


def sampling(cfg: ModelConfig, sample: SampleConfig, draws: int = 8) -> float:
    """Generation of one image: the mean over `draws` of the reveal counts. The embedding of the solver's times, once a
    batch, is left out."""
    guided = guided_steps(sample.steps, sample.cfg_scale, sample.cfg_interval)
    rng = np.random.default_rng(0)
    total = 0.0
    for _ in range(draws):
        done = 0
        counts = step_counts(sample.order, sample.schedule, sample.steps, cfg.tokens, rng)
        for n, guide in zip(counts.tolist(), guided.tolist(), strict=True):
            if n == 0:
                break
            tried = cfg.tokens - done if sample.order == "confidence" else n
            total += (1 + guide) * prediction_step(cfg, done, tried, sample.solver_steps)
            done += n
    return total / draws


def prediction_step(cfg: ModelConfig, visible: int, predicted: int, solver_steps: int | None) -> float:
    """One pass of the network for one image with `visible` tokens, and the head on the `predicted` ones: a third of
    what forward and backward take together."""
    d, w, c = cfg.width, cfg.head_width, cfg.token_channels
    seen, positions = visible if cfg.mae else cfg.tokens, cfg.buffer + cfg.tokens
    network = cfg.encoder_blocks * block(1, cfg.buffer + seen, cfg) + linear(cfg.buffer + seen, d, d)
    network += (cfg.decoder_blocks - 1) * block(1, positions, cfg)
    network += block(1, positions, cfg, predicted if visible else None)  # at first, all positions of each class
    if cfg.codebook is not None:
        head = linear(1, d, w) + 2 * cfg.head_blocks * linear(1, w, w) + linear(1, w, cfg.codebook)
        return (network + predicted * head) / 3
    network += linear(seen, c, d)
    row = cfg.head_blocks * (2 * linear(1, w, w) + linear(1, w, 3 * w)) + linear(1, w, 2 * w) + linear(1, w, 3 * c)
    return (network + predicted * (linear(1, d, w) + solver_steps * row)) / 3


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
