"""The closed form of training FLOPs against torch's own counter."""

import dataclasses

import numpy as np
import pytest
import torch
from test_model import CODES, TINY, random_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from emigm.config.schema import SampleConfig, TrainConfig
from emigm.flops import group_step, mean_training_step, parameters, prediction_step, sampling
from emigm.model.model import EMIGM
from emigm.model.schedules import guided_steps, reveal_counts
from emigm.sample import draw_images, embed_times, reveal
from emigm.train import draw_training

TRAIN = TrainConfig(steps=1, batch=40, lr=1e-3, diffusion_batch_mul=3)


KINDS = {"mae": TINY, "no mae": dataclasses.replace(TINY, mae=False), "codes": CODES}
KINDS["own mask token"] = dataclasses.replace(TINY, cfg_with_mask=False)


@pytest.mark.parametrize("cfg", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("batch", [4, 40], ids=["fewer rows than diffusion steps", "more rows"])
def test_the_closed_form_counts_what_torch_counts(cfg, batch):
    cfg, train = dataclasses.replace(cfg, dropout=0.0), dataclasses.replace(TRAIN, batch=batch)
    images = torch.randint(5, (batch, 1, 4, 4)) if cfg.codebook else torch.randn(batch, 3, 4, 4)
    draw = draw_training(cfg, train, batch, np.random.default_rng(0), torch.Generator().manual_seed(0))
    model = EMIGM(cfg).train()
    assert parameters(cfg) == sum(p.numel() for p in model.parameters())
    # Fused attention on the CPU has no formula in the counter; its plain form has.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, torch.zeros(batch, dtype=torch.int64), draw).backward()
    assert group_step(cfg, train, batch, len(draw.rows)) == counter.get_total_flops()


def test_the_mean_lies_between_the_extremes_is_repeatable_and_adds_groups_up():
    mean = mean_training_step(TINY, TRAIN)
    assert group_step(TINY, TRAIN, 40, 40 * 2) < mean < group_step(TINY, TRAIN, 40, 40 * 16)
    assert mean == mean_training_step(TINY, TRAIN)
    one = mean_training_step(TINY, dataclasses.replace(TRAIN, batch=8))
    assert mean_training_step(TINY, dataclasses.replace(TRAIN, mask_group=8)) == pytest.approx(5 * one, rel=1e-9)


@pytest.mark.parametrize("mae", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_closed_form_of_sampling_counts_what_torch_counts(mae, scale):
    cfg, sample = dataclasses.replace(TINY, mae=mae), SampleConfig(4, 6, scale, (0.2, 0.6))
    model, labels = random_model(cfg), torch.arange(cfg.classes)  # each class once: none is computed for two images
    counts, draw = reveal_counts("exp", 4, 16, np.random.default_rng(0)), draw_images(model, sample, 0, range(5))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        reveal(model, labels, sample, counts, draw, embed_times(model.head, sample))
    visible, guided = np.cumsum([0, *counts[:-1]]), guided_steps(4, scale, (0.2, 0.6))
    passes = zip(visible.tolist(), counts.tolist(), guided.tolist(), strict=True)
    one = sum((1 + guide) * prediction_step(cfg, v, n, 6) for v, n, guide in passes)
    times = 2 * 6 * (256 * cfg.head_width + cfg.head_width**2)
    assert counter.get_total_flops() == 5 * one + times
    assert sampling(cfg, sample) == pytest.approx(one, rel=0.2)
