"""How many operations a step dispatches: what costs most of the time of small models, and of a GPU that waits; and the
closed form of FLOPs against torch's own counter."""

import dataclasses

import numpy as np
import pytest
import torch
from test_model import CODES, TINY, random_model
from test_training import RECIPE, run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from emigm.autoencoders.base import Pixels
from emigm.config.schema import SampleConfig, TrainConfig
from emigm.distributed import World
from emigm.flops import group_step, mean_training_step, parameters, prediction_step, sampling
from emigm.model.model import EMIGM
from emigm.model.schedules import guided_steps, reveal_counts
from emigm.model.weights import upload
from emigm.sample import draw_images, embed_times, reveal
from emigm.train import TrainState, draw_training, train_step

LABELS = torch.arange(8) % 5
DPM = SampleConfig(4, 6, 2.0, (0.2, 0.6))
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"}
"""Operations that make the CPU wait for a GPU."""


class Operations(TorchDispatchMode):
    """Names of the operations that are no views; fails where a tensor goes to another device from memory that is not
    pinned, so that the CPU would wait."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        if not function.is_view:
            self.names.append(name)
        if name in ("to", "_to_copy", "copy_"):  # "to": in inference mode
            to, source = args[:2] if name == "copy_" else (result, args[0])
            assert to.device == source.device or source.is_pinned(), f"{name} from {source.device} to {to.device}"
        return result


def training_operations(blocks, mae=True):
    """Operations of drawing a group, and of its loss and gradients."""
    cfg = dataclasses.replace(TINY, dropout=0.0, encoder_blocks=blocks, decoder_blocks=blocks, mae=mae)
    recipe, model = TrainConfig(steps=1, batch=8, lr=1e-3), random_model(cfg).train()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    with Operations() as drawing:
        draw = draw_training(cfg, recipe, 8, rng, generator)
    with Operations() as counted:
        model(torch.ones(8, 3, 4, 4), LABELS, draw).backward()
    return drawing.names, counted.names


def sample_once(model, cfg, labels=LABELS):
    """A batch of 8 images; returns the passes of the network."""
    counts = reveal_counts(cfg.schedule, cfg.steps, TINY.tokens, np.random.default_rng(0))
    draw, times = draw_images(model, cfg, 0, range(8)), embed_times(model.head, cfg)
    return reveal(model, labels, cfg, counts, draw, times)[1]


def sampling_operations(solver_steps):
    """Operations of one batch, and passes of the network."""
    model, cfg = random_model().requires_grad_(False), dataclasses.replace(DPM, solver_steps=solver_steps)
    sample_once(model, cfg)  # makes what is kept
    with Operations() as counted:
        passes = sample_once(model, cfg)
    return counted.names, passes


@pytest.mark.parametrize("mae", [True, False])
def test_a_training_step_dispatches_no_more_operations_than_it_did_and_none_waits(mae):
    drawing, few = training_operations(1, mae)
    _, many = training_operations(3, mae)
    assert not SYNCHRONISING & {*drawing, *few} and len(drawing) <= 10 and len(few) <= 420
    assert (len(many) - len(few)) / 4 <= 32  # of one transformer block


def test_a_sampling_run_dispatches_no_more_operations_than_it_did_and_none_waits():
    few, passes = sampling_operations(6)
    many, _ = sampling_operations(12)
    assert passes == 6 and not SYNCHRONISING & set(few)
    assert (len(many) - len(few)) / (4 * 6) <= 38  # of one evaluation of the head, guidance and solver included
    assert (len(few) - 4 * 6 * 38) / passes <= 60  # of one pass of the network


@pytest.mark.parametrize(("precision", "reads"), [("float32", 0), ("float16", 3)])
def test_a_run_waits_for_the_device_when_losses_are_read_and_not_in_its_steps(tmp_path, precision, reads):
    """Losses are read with `tolist`; with them, under float16, the overflows, and for the resume point the scale."""
    for steps in (3, 9):
        recipe = dataclasses.replace(RECIPE, precision=precision, steps=steps, checkpoint_every=steps)
        with Operations() as counted:
            run(tmp_path / str(steps), recipe)
        assert len([name for name in counted.names if name in SYNCHRONISING]) == reads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_never_waited_for():
    model = random_model().to("cuda")
    recipe, world = TrainConfig(steps=9, batch=8, lr=1e-3, mask_group=4), World(0, 1, "cuda")
    batch, state = (torch.randn(8, 3, 4, 4), LABELS), TrainState.initial(TINY, recipe, 0, world)

    def once(step):
        sample_once(model, DPM)
        train_step(state, recipe, Pixels(1.0), *(upload(t, "cuda") for t in batch), step, seed=0, world=world)

    once(0)  # makes what is kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        with Operations():
            once(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
