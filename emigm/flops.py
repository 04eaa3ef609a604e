"""Floating-point operations (two for a multiply-add, matrix products only) and parameters, in closed form. No torch.

Shape letters: B images, L tokens, P buffer positions, R diffusion times of a token.
"""

from __future__ import annotations

import numpy as np

from emigm.config.schema import ModelConfig, SampleConfig, TrainConfig
from emigm.model.schedules import draw_mask_counts, guided_steps, step_counts

FREQUENCIES = 256
DIFFUSION_STEPS = 1000


def linear(rows: int, inputs: int, outputs: int) -> int:
    """A linear layer, forward; the gradients of its weights and of its input take as much each."""
    return 2 * rows * inputs * outputs


def block(images: int, positions: int, cfg: ModelConfig, queries: int | None = None) -> int:
    """One transformer block, forward; `queries`: positions whose output is wanted (None: all)."""
    d, hidden = cfg.width, int(cfg.width * cfg.mlp_ratio)
    queries = positions if queries is None else queries
    rows = images * queries
    attention = 2 * (2 * images * queries * positions * d)  # scores and weighted sum
    projections = 2 * linear(rows, d, d) + linear(images * positions, d, 2 * d)  # queries and output, keys and values
    return attention + projections + linear(rows, d, hidden) + linear(rows, hidden, d)


def backbone(cfg: ModelConfig, images: int, seen: int, queries: int | None) -> int:
    """The transformer, forward, on `seen` tokens of each image, for z of `queries` tokens of each (None: all)."""
    positions = cfg.buffer + cfg.tokens
    encoder = cfg.encoder_blocks * block(images, cfg.buffer + seen, cfg)
    encoder += linear(images * (cfg.buffer + seen), cfg.width, cfg.width)
    return encoder + (cfg.decoder_blocks - 1) * block(images, positions, cfg) + block(images, positions, cfg, queries)


def head(cfg: ModelConfig, tokens: int, evaluations: int) -> int:
    """The head, forward, for the z of so many tokens and, of a diffusion head, so many evaluations at a time."""
    d, w, c, rows = cfg.width, cfg.head_width, cfg.token_channels, evaluations
    if cfg.codebook is not None:
        return linear(tokens, d, w) + 2 * cfg.head_blocks * linear(tokens, w, w) + linear(tokens, w, cfg.codebook)
    blocks = cfg.head_blocks * (2 * linear(rows, w, w) + linear(rows, w, 3 * w))
    return linear(tokens, d, w) + linear(rows, c, w) + blocks + linear(rows, w, 2 * w) + linear(rows, w, 2 * c)


def embedding(cfg: ModelConfig, tokens: int) -> int:
    """Of tokens, forward; codes are looked up."""
    return linear(tokens, cfg.token_channels, cfg.width) if cfg.codebook is None else 0


def group_step(cfg: ModelConfig, train: TrainConfig, images: int, masked: int) -> int:
    """Forward and backward of a group of `images` with `masked` masked tokens in all."""
    w, rows = cfg.head_width, train.diffusion_batch_mul * masked
    seen, queries = (cfg.tokens - masked // images, masked // images) if cfg.mae else (cfg.tokens, None)
    embedded = embedding(cfg, images * seen)
    forward = embedded + backbone(cfg, images, seen, queries) + head(cfg, masked, rows)
    if cfg.codebook is not None:
        return 3 * forward
    times = min(rows, DIFFUSION_STEPS)  # whole steps are embedded at most once
    features = linear(times, FREQUENCIES, w)
    without_input_gradient = embedded + features + linear(rows, cfg.token_channels, w)
    return 3 * (forward + features + linear(times, w, w)) - without_input_gradient


def mean_training_step(cfg: ModelConfig, train: TrainConfig, draws: int = 2000) -> int:
    """One step over the global batch: the mean over the distribution of the masks' sizes, from `draws` draws."""
    rng, images = np.random.default_rng(0), min(train.mask_group, train.batch)
    settings = (train.schedule, train.t_min, cfg.tokens, images, rng, train.masking, train.shares_times(cfg))
    masked = [int(draw_mask_counts(*settings)[1].sum()) for _ in range(draws)]
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


def prediction_step(cfg: ModelConfig, visible: int, predicted: int, solver_steps: int | None) -> int:
    """One pass of the network for one image with `visible` tokens, and the head on the `predicted` ones."""
    seen = visible if cfg.mae else cfg.tokens
    network = embedding(cfg, seen) + backbone(cfg, 1, seen, predicted if visible else None)  # at first, all of a class
    return network + head(cfg, predicted, predicted * (solver_steps or 1))


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
