"""How far half precision takes our results from the official code's float32, over how far it takes the official ones.

Both codes run under autocast; where ours samples, with its weights of products in half precision (`cast_linear`) and
its solver and guidance in float32. A ratio of 1 says that both are rounded alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from emigm.config.schema import ModelConfig, Precision, SampleConfig
from emigm.model.checkpoints import official_name
from emigm.model.model import cast_linear
from emigm.model.precision import autocast
from emigm.sample import embed_times, reveal
from emigm.tools import oracle

FLOOR = 1e-3
"""A tensor's difference is relative to its largest entry, or to this share of the largest entry of all."""


def rounding(ours: Sequence[Tensor], theirs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Root mean square distance of ours from the `wanted` float32 over that of theirs, tensor by tensor."""
    squares, floor = np.zeros(2), FLOOR * max(exact.abs().max().item() for exact in wanted)
    for mine, other, exact in zip(ours, theirs, wanted, strict=True):
        scale = max(exact.abs().max().item(), floor)
        for i, rounded in enumerate((mine, other)):
            squares[i] += ((rounded - exact) / scale).square().sum().item()
    return float(np.sqrt(squares[0] / squares[1]))


@torch.no_grad()
def conditions(code: SimpleNamespace, cfg: ModelConfig, precision: Precision) -> float:
    """Of z (B, L, D), half of the tokens masked."""
    ours, theirs = oracle.pair(code, cfg, 15)
    latents = torch.randn(8, cfg.channels, cfg.grid, cfg.grid)
    labels = torch.arange(8) % cfg.classes
    mask = torch.rand(8, cfg.tokens).argsort(dim=1) < cfg.tokens // 2

    def official() -> Tensor:
        encoded = theirs.forward_mae_encoder(theirs.patchify(latents), mask.float(), theirs.class_emb(labels))
        return theirs.forward_mae_decoder(encoded, mask.float())

    wanted = official()
    cast_linear(ours, precision)
    with autocast(precision, "cpu"):
        rounded = official()
        z = ours.condition(ours.patchify(latents), mask, labels, cfg.tokens // 2, torch.zeros(8, dtype=torch.bool))
    return rounding([z], [rounded], [wanted])


def sampler(code: SimpleNamespace, model: ModelConfig, precision: Precision) -> float:
    """Of latents that a whole run of DPM-Solver makes from the same draws, guided in an interval."""
    cfg = SampleConfig(6, 8, 4.0, (0.1, 0.6), precision=precision)
    options = {"num_sampling_steps": "8", "sampling_algo": cfg.solver, "cfg_t_min": 0.1, "cfg_t_max": 0.6}
    ours, theirs = oracle.pair(code, model, 8, **options)
    labels, runs = torch.arange(16) % model.classes, []
    for context in (contextlib.nullcontext(), autocast(precision, "cpu")):
        torch.manual_seed(16)  # the same draws
        with context:
            runs.append(oracle.generate(theirs, labels, model, cfg))
    (wanted, counts, draw), (rounded, *_) = runs
    cast_linear(ours, precision)
    tokens, _ = reveal(ours, labels, cfg, counts, draw, embed_times(ours.head, cfg))
    return rounding([ours.unpatchify(tokens)], [rounded], [wanted])


def losses(code: SimpleNamespace, cfg: ModelConfig, precision: Precision) -> float:
    """Of a training loss and all its gradients."""
    ours, theirs = oracle.pair(code, cfg, 17, label_drop_prob=0.5)
    latents = torch.randn(12, cfg.channels, cfg.grid, cfg.grid)
    labels, found = torch.arange(12) % cfg.classes, []
    for context in (contextlib.nullcontext(), autocast(precision, "cpu")):
        torch.manual_seed(17)
        theirs.zero_grad()
        with context:
            loss, draw = oracle.loss_and_draw(theirs, cfg, latents, labels)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in theirs.parameters())])
    with autocast(precision, "cpu"):
        loss = ours.train()(latents, labels, draw)
    loss.backward()
    gradients = {official_name(name): p.grad for name, p in ours.named_parameters()}
    return rounding([loss.detach(), *(gradients[name] for name, _ in theirs.named_parameters())], *reversed(found))
