"""The model: architectures, the MAE trick, masking, and files."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from emigm.config.errors import ConfigError
from emigm.config.schema import ModelConfig, SampleConfig, TrainConfig
from emigm.flops import parameters
from emigm.model.model import EMIGM, compile_networks, compiled_graphs, load_model, save_model
from emigm.model.schedules import elbo_weight, gamma
from emigm.paper.settings import PAPER_MODELS
from emigm.sample import generate
from emigm.train import draw_training

TINY = ModelConfig(
    grid=4, channels=3, classes=5, width=16, encoder_blocks=1, decoder_blocks=2, heads=2, head_width=24, head_blocks=2,
    buffer=3,
)  # fmt: skip
PAPER_COUNTS = {
    (256, "xs"): 69_018_848, (256, "s"): 96_640_544, (256, "b"): 207_924_000, (256, "l"): 478_325_280,
    (256, "h"): 942_401_824,
    (512, "xs"): 104_506_624, (512, "s"): 132_145_728, (512, "b"): 244_150_592, (512, "l"): 478_403_136,
}  # fmt: skip
CODES = ModelConfig(
    grid=4, channels=1, classes=3, width=16, encoder_blocks=1, decoder_blocks=1, heads=2, head_width=12,
    head_blocks=2, conditional="categorical", codebook=5, buffer=2, dropout=0.0, init_std=0.5,
)  # fmt: skip


def random_model(cfg: ModelConfig = TINY, seed: int = 0) -> EMIGM:
    """A model whose zero-initialised layers are not zero, so that every input matters."""
    torch.manual_seed(seed)
    model = EMIGM(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("key", PAPER_COUNTS, ids=str)
def test_the_papers_architectures_have_their_exact_parameter_counts(key):
    with torch.device("meta"):
        model = EMIGM(PAPER_MODELS[key])
    assert sum(p.numel() for p in model.parameters()) == PAPER_COUNTS[key] == parameters(PAPER_MODELS[key])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exp"])
def test_without_the_mae_trick_every_image_has_its_time_and_the_elbos_weight_at_it(schedule):
    """On average over times, w(t) x the masked tokens is the integral of L gamma'(t)."""
    cfg = dataclasses.replace(TINY, mae=False)
    train = TrainConfig(steps=1, batch=64, lr=1e-3, schedule=schedule, t_min=0.0, weight="elbo")
    draw = draw_training(cfg, train, 20_000, np.random.default_rng(0), torch.Generator().manual_seed(0))
    repeats, masked = len(draw.time), len(draw.rows)
    weight = draw.weight.numpy() * repeats * masked  # w(t) of every image
    assert draw.counts.min() == 0 and draw.counts.max() == cfg.tokens and draw.counts.sum() == masked
    t = np.random.default_rng(1).permutation(0.001 + 0.999 * (np.arange(20_000) + 0.5) / 20_000)
    for values, expected in ((draw.counts, cfg.tokens * gamma(schedule, t)), (weight, elbo_weight(schedule, t))):
        assert np.median(values) == pytest.approx(np.median(expected), rel=0.05)
    slope = cfg.tokens * (1 - gamma(schedule, 0.001)) / 0.999
    assert (weight * draw.counts).mean() == pytest.approx(slope, rel=0.05)


def test_saved_models_come_back_equal_and_damaged_ones_are_refused_by_name(tmp_path):
    model, name = random_model(), "head.input_proj.weight"
    save_model(tmp_path, model.state_dict(), TINY, origin="test")
    again = load_model(tmp_path, expect=TINY)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"width = 16 \(expected 32\)"):
        load_model(tmp_path, expect=dataclasses.replace(TINY, width=32))
    state = again.state_dict()
    tensor = state.pop(name)
    for damaged, message in ((state, name), (state | {name: tensor * torch.nan}, f"safetensors: tensor {name} holds")):
        save_model(tmp_path, damaged, TINY)
        with pytest.raises(ConfigError, match=message):
            load_model(tmp_path)


def sampled_with_and_without_compiling(device):
    """A model, the same compiled, and the latents of each, which took 2 to 12 graphs."""
    models = plain, model = random_model().to(device), random_model().to(device)
    compile_networks(model)
    before, cfg = compiled_graphs(), SampleConfig(4, 5, 2.0, (0.2, 0.6))
    latents = [batch.latents for m in models for batch in generate(m, torch.arange(4), cfg, seed=0)]
    assert 2 <= compiled_graphs() - before <= 12
    return plain, model, latents


def test_networks_are_traced_whole_and_again_for_few_shapes(monkeypatch):
    """As torch.compile traces them, without the compiler itself, which a CPU has no use of."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    plain, model, (a, b) = sampled_with_and_without_compiling("cpu")
    assert torch.equal(a, b)
    sampling, losses = compiled_graphs(), []
    for m in (plain.train(), model.train()):
        for step in range(6):  # of as many numbers of masked tokens, or nearly
            generator, recipe = torch.Generator().manual_seed(0), TrainConfig(1, 4, 1e-3)
            draw = draw_training(TINY, recipe, 4, np.random.default_rng(step), generator)
            torch.manual_seed(0)
            losses.append(m(torch.ones(4, 3, 4, 4), torch.arange(4), draw))
    assert torch.equal(torch.stack(losses[:6]), torch.stack(losses[6:]))
    assert 2 <= compiled_graphs() - sampling <= 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and a C++ compiler")
def test_compiled_networks_compute_the_same_and_their_graphs_are_counted():
    assert torch.allclose(*sampled_with_and_without_compiling("cuda")[2], rtol=1e-3, atol=1e-3)
