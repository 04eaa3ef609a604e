"""How many operations a step dispatches: what costs most of the time of small models, and of a GPU that waits."""

import dataclasses

import numpy as np
import pytest
import torch
from test_model import TINY, random_model
from torch.utils._python_dispatch import TorchDispatchMode

from emigm.config.schema import SampleConfig, TrainConfig
from emigm.model.model import draw_training
from emigm.model.schedules import reveal_counts
from emigm.sampling import draw_images, reveal

SYNCHRONISING = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "_to_cpu"}
"""Operations that make a CPU wait for a GPU's values."""


class Operations(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def training(cfg, **changes):
    """Operations of drawing a group, and of its loss and gradients."""
    train = TrainConfig(steps=1, batch=8, lr=1e-3, **changes)
    model = random_model(cfg).train().requires_grad_(True)
    latents, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 5
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    draw_training(cfg, train, 8, rng, generator)
    with Operations() as counted:
        draw = draw_training(cfg, train, 8, rng, generator)
        drawn = len(counted.names)
        model(latents, labels, draw).backward()
    return counted.names[:drawn], counted.names[drawn:]


def sampling(cfg, sample):
    """Operations of one run."""
    model, labels = random_model(cfg).requires_grad_(False), torch.arange(8) % 5
    counts = reveal_counts(sample.schedule, sample.steps, cfg.tokens, np.random.default_rng(0))
    draw = draw_images(model, sample, 0, range(8))
    classes = labels.unique(return_inverse=True)  # what the loop is given lies on the CPU
    reveal(model, labels, sample, counts, draw)
    with Operations() as counted:
        reveal(model, labels, sample, counts, draw)
    return counted.names, len(classes[0])


@pytest.mark.parametrize(("blocks", "most"), [(1, 0), (3, 0)])
def test_operations(blocks, most):
    cfg = dataclasses.replace(TINY, dropout=0.0, encoder_blocks=blocks, decoder_blocks=blocks)
    a, b = training(cfg)
    c, d = training(dataclasses.replace(cfg, mae=False))
    print(blocks, "train", len(a), len(b), "nomae", len(c), len(d))
    for steps in (4, 8):
        for k in (6, 12):
            s, _ = sampling(cfg, SampleConfig(steps, k, cfg_scale=2.0, cfg_interval=(0.2, 0.6)))
            print(
                "sample",
                steps,
                k,
                len(s),
                [n for n in s if n in SYNCHRONISING],
                len([n for n in b if n in SYNCHRONISING]),
            )
    from collections import Counter

    print(Counter(b).most_common(40))
    print(Counter(s).most_common(30))
    print(Counter(a))
