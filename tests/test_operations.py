"""How many operations a step dispatches: what costs most of the time of small models, and of a GPU that waits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_model import TINY, random_model
from test_training import RECIPE, Killed, images, run
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from emigm import train as training
from emigm.autoencoders.base import Pixels
from emigm.config.schema import SampleConfig, TrainConfig
from emigm.distributed import World
from emigm.model import diffusion
from emigm.model.model import EMIGM
from emigm.model.schedules import reveal_counts
from emigm.model.transfer import upload
from emigm.sample import draw_images, embed_times, generate, reveal
from emigm.train import TrainState, draw_training, train_step

LABELS = torch.arange(8) % 5
DPM, DDPM = SampleConfig(4, 6, 2.0, (0.2, 0.6)), SampleConfig(4, 6, solver="ddpm")
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"}
"""Operations that make the CPU wait for a GPU."""


class Operations(TorchDispatchMode):
    """Names of the operations that are no views."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


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


def test_times_of_the_solver_are_embedded_once_in_a_run():
    model, calls = random_model(), []
    model.head.time_embed.register_forward_hook(lambda *_: calls.append(1))
    for cfg in (DPM, DDPM):
        assert len(list(generate(model, LABELS, cfg, seed=0, batch=3))) == 3
    assert len(calls) == 2


@pytest.mark.parametrize(("precision", "reads"), [("float32", 0), ("float16", 3)])
def test_a_run_waits_for_the_device_when_losses_are_read_and_not_in_its_steps(tmp_path, precision, reads):
    """Losses are read with `tolist`; with them, under float16, the overflows, and for the resume point the scale."""
    for steps in (3, 9):
        recipe = dataclasses.replace(RECIPE, precision=precision, steps=steps, checkpoint_every=steps)
        with Operations() as counted:
            run(tmp_path / str(steps), recipe, images())
        assert len([name for name in counted.names if name in SYNCHRONISING]) == reads


class Transfers(TorchDispatchMode):
    """Fails where a tensor goes to a GPU from memory that is not pinned, or comes from it; counts what may go there."""

    def __init__(self, pinned):
        super().__init__()
        self.pinned, self.count = pinned, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if name in ("to", "_to_copy", "copy_"):  # "to": in inference mode
            to, source = args[:2] if name == "copy_" else (result, args[0])
            if to.device != source.device:
                assert to.is_cuda, f"{name} from {source.device} to {to.device}"
                assert any(source is p for p in self.pinned), f"{name} of {tuple(source.shape)} from pageable memory"
                assert kwargs.get("non_blocking") or any(a is True for a in args), f"{name} waits"
                self.count += 1
        return result


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Tensors without values, which may say that they are on a GPU; the list of those in pinned memory."""
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    def move(module, device):  # as `Module.to`, which cannot exchange such tensors
        for part in module.modules():
            own = dict(part.named_parameters(recurse=False))
            part._parameters |= {name: torch.nn.Parameter(p.to(device)) for name, p in own.items()}
        return module

    class OnGPU(torch.Generator):
        device = torch.device("cuda", 0)

        def __new__(cls, device):
            return super().__new__(cls)

    monkeypatch.setattr(torch.nn.Module, "to", move)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch, "Generator", OnGPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield pinned
    diffusion.tables.cache_clear()  # of tensors without values


@pytest.mark.parametrize("cfg", [DPM, DDPM], ids=["dpm-solver", "ddpm"])
def test_all_that_sampling_sends_to_a_gpu_is_pinned_and_nothing_comes_back(pretended_gpu, monkeypatch, cfg):
    """Labels, their distinct classes and which image has which, the solver's times, orders and noise."""
    values = np.arange(8) % 5
    monkeypatch.setattr(torch.Tensor, "numpy", lambda labels: values)  # which sampling looks at on the CPU
    model, labels = EMIGM(TINY).to("cuda").eval().requires_grad_(False), torch.from_numpy(values)
    sample_once(model, cfg, labels)  # makes what is kept
    with Transfers(pretended_gpu) as seen:
        sample_once(model, cfg, labels)
    assert seen.count == 6


@pytest.mark.parametrize("mae", [True, False])
def test_all_that_a_training_step_sends_to_a_gpu_is_pinned_and_nothing_comes_back(pretended_gpu, monkeypatch, mae):
    """Latents and labels, and of each of two groups the numbers of masked tokens and the weights. The backward pass,
    which needs a real GPU, is left out."""
    cfg, recipe = dataclasses.replace(TINY, mae=mae), TrainConfig(steps=9, batch=8, lr=1e-3, mask_group=4)
    latents, models, seen = torch.randn(8, 3, 4, 4), [], Transfers(pretended_gpu)
    data = images(latents, np.arange(8) % 5)

    def backward(loss):
        for p in models[0].parameters():
            p.grad = torch.zeros_like(p)

    def on_step(done):
        if done == 1:  # has made what is kept
            seen.__enter__()
        else:
            seen.__exit__(None, None, None)
            raise Killed

    monkeypatch.setattr(training, "EMIGM", lambda cfg: models.append(EMIGM(cfg)) or models[0])
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    world = World(0, 1, "cuda")
    with pytest.raises(Killed):
        run(Path(), recipe, data, model=cfg, world=world, on_step=on_step)
    assert seen.count == 2 + 2 * 2


def test_a_copy_that_waits_is_seen(pretended_gpu):
    for tensor, options in ((torch.ones(3), {"non_blocking": True}), (torch.ones(3).pin_memory(), {})):
        with pytest.raises(AssertionError, match=r"pageable|waits"), Transfers(pretended_gpu):
            tensor.to("cuda", **options)
    on_gpu = upload(torch.ones(3), "cuda")
    with pytest.raises(AssertionError, match="from cuda:0 to cpu"), Transfers(pretended_gpu):
        on_gpu.cpu()


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
        once(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
