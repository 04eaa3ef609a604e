"""Our code against arrays the official code computed (tests/golden), and the parity command's own errors.

In float64 our casts to float32 are lifted, as they were in the official code for these arrays.
"""

import functools
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emigm import sample as sampling
from emigm import train as training
from emigm.autoencoders.autoencoder import Pixels
from emigm.config.errors import ConfigError
from emigm.config.parsing import parse
from emigm.config.schema import ModelConfig, SampleConfig, TrainConfig
from emigm.model import head
from emigm.model.checkpoints import from_official, official_name, to_official
from emigm.model.model import EMIGM
from tests.official import oracle, parity
from tests.official.parity import relative

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "official_tiny.json").read_text())
assert FACTS["code"]["commit"].startswith("de78623"), "arrays of the official code's commit that parity is held against"
CFG = parse(ModelConfig, FACTS["model"], "golden")
SOLVERS = {
    ("dpm-solver", "float32"): (None, 1e-5),
    ("dpm-solver", "float64"): (None, 1e-10),
    ("ddpm", "float64"): (0.7, parity.DDPM_FLOAT64),
}
"""(solver, precision) -> (temperature, tolerance)"""


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN / "official_tiny.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture
def float64(monkeypatch, arrays):
    """No float32 but the time features' frequencies: those of the machine that made the arrays, since processors
    differ in the last bits of a float32 exponential."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(head, "frequencies", lambda device: arrays["frequencies"])
    plan = functools.partial(sampling.dpm_solver_plan, dtype=torch.float64)
    monkeypatch.setattr(sampling, "dpm_solver_plan", plan)


@pytest.fixture
def case(request):
    """(solver, its dtype, temperature, tolerance), with our casts lifted in float64; otherwise tables are float32, as
    the official ones."""
    solver, precision = request.param
    if precision == "float64":
        request.getfixturevalue("float64")
    return solver, getattr(torch, precision), *SOLVERS[request.param]


def load(arrays, dtype=torch.float64, **changes):
    """Our model with the golden weights, in eval mode."""
    cfg = ModelConfig(**{**FACTS["model"], **changes})
    state = {name.removeprefix("state/"): t for name, t in arrays.items() if name.startswith("state/")}
    state["mask_token"] = state["fake_latent"] if cfg.cfg_with_mask else arrays["own_mask_token"]
    model = EMIGM(cfg)
    model.load_state_dict(from_official(state, cfg))
    return model.to(dtype).eval()


def draw(arrays, prefix, weight=1.0, dtype=torch.float64):
    """The official draw of one training step."""
    masked, dropped, time, noise = (arrays[f"{prefix}/{name}"] for name in ("masked", "dropped", "time", "noise"))
    return oracle.draw_of(CFG.tokens, masked.long(), dropped, time.long(), noise.to(dtype), float(weight))


def gradients(model):
    return {official_name(name): p.grad for name, p in model.named_parameters()}


def test_state_dict_and_frequencies_are_the_official_ones(arrays):
    assert relative(head.frequencies(torch.device("cpu")), arrays["frequencies"]) < 1e-6
    official = {name.removeprefix("state/") for name in arrays if name.startswith("state/")}
    assert to_official(EMIGM(CFG).state_dict(), CFG).keys() == official | {"mask_token"}


@pytest.mark.parametrize("mae", [True, False], ids=["mae", "no mae"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("fake", [True, False], ids=["fake", "class"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_condition_vectors_match_the_official_network(arrays, mae, shared, fake, dtype, tolerance):
    model = load(arrays, dtype, mae=mae, cfg_with_mask=shared)
    latents, labels, mask = (arrays[name][:2] for name in ("latents", "labels", "mask"))
    tokens = model.patchify(latents.to(dtype))
    z = model.condition(tokens, mask, labels, int(mask[0].sum()), torch.full((2,), fake))
    wanted = arrays[f"z/{'mae' if mae else 'no mae'}/{'shared' if shared else 'own'}/{'fake' if fake else 'class'}"]
    assert relative(z, wanted) < tolerance


def named(arrays, prefix):
    """The arrays below a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in arrays.items() if name.startswith(prefix)}


def assert_equal(mine, wanted, tolerance=1e-10):
    for name, tensor in wanted.items():
        assert relative(mine[name], tensor) < tolerance, name


def test_training_loss_and_gradients_match_the_official_ones(arrays, float64):
    model, inputs = load(arrays), (arrays["latents"].double(), arrays["labels"])
    weighted = model(*inputs, draw(arrays, "loss", arrays["loss/elbo/weight"]))
    loss = model(*inputs, draw(arrays, "loss"))
    assert_equal({"elbo": weighted, "one": loss}, {n: arrays[f"loss/{n}/float64"] for n in ("elbo", "one")})
    loss.backward()
    mine = gradients(model)
    assert_equal(mine, named(arrays, "gradient/"))
    norms = named(arrays, "gradient_norm/")
    assert norms.keys() == mine.keys()
    for name, norm in norms.items():
        assert abs(mine[name].norm() - norm) < 1e-10 * max(norm, 1e-3 * max(norms.values())), name


def test_loss_keeps_its_precision_in_float32_at_the_first_diffusion_times(arrays):
    # A third of the times are 0, and more are 1: there 1 - alpha bar has lost four digits in float32.
    model = load(arrays, torch.float32)
    loss = model(arrays["latents"], arrays["labels"], draw(arrays, "loss", dtype=torch.float32))
    loss.backward()
    for precision in ("float32", "float64"):
        assert relative(loss, arrays[f"loss/one/{precision}"]) < 2e-6
    norms = {name: gradient.norm() for name, gradient in gradients(model).items()}
    assert_equal(norms, named(arrays, "gradient_norm_float32/"), 1e-5)


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("steps", [8, 14])
@pytest.mark.parametrize("case", SOLVERS, indirect=True)
def test_solvers_match_the_official_ones(arrays, case, steps, scale):
    solver, dtype, temperature, tolerance = case
    cfg = SampleConfig(1, steps, float(scale), solver=solver, temperature=temperature)
    noise = arrays[f"solver/{solver}/{steps}/{scale if solver == 'ddpm' else 1}/noise"].to(dtype)
    z = list(arrays["solver/z"].to(dtype))[: 1 if scale == 1 else 2]
    head = load(arrays, dtype).head
    tokens = sampling.sample_tokens(head, z, noise, cfg, sampling.embed_times(head, cfg), cfg.cfg_scale)
    assert relative(tokens, arrays[f"solver/{solver}/{steps}/{scale}/{str(dtype)[6:]}"]) < tolerance


@pytest.mark.parametrize("case", [("dpm-solver", "float32"), ("ddpm", "float64")], indirect=True)
def test_whole_sampler_matches_the_official_loop(arrays, case):
    solver, dtype, temperature, tolerance = case
    cfg = SampleConfig(5, 8, 4.0, (0.1, 0.6), solver=solver, temperature=temperature)
    counts, order, noise, wanted = (arrays[f"sampler/{solver}/{n}"] for n in ("counts", "order", "noise", "latents"))
    model = load(arrays, dtype)
    image_draw, times = sampling.ImageDraw(order.long(), noise.to(dtype)), sampling.embed_times(model.head, cfg)
    tokens, passes = sampling.reveal(model, arrays["labels"], cfg, counts.numpy(), image_draw, times)
    assert relative(model.unpatchify(tokens), wanted) < tolerance
    assert passes == 7  # two of the five steps are guided


def test_training_steps_match_the_official_loop(arrays, float64, monkeypatch, tmp_path):
    model, norms, clip = load(arrays), [], torch.nn.utils.clip_grad_norm_
    cfg = TrainConfig(3, 4, 1e-3, warmup_steps=1, grad_clip=0.5, ema=0.8, label_dropout=0.5)
    draws, batches = (draw(arrays, f"training/{step}") for step in range(3)), iter(arrays["training/order"].numpy())
    latents, labels = arrays["latents"].double(), arrays["labels"].numpy()
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, limit: norms.append(clip(p, limit)))
    monkeypatch.setattr(training, "EMIGM", lambda _: model)
    monkeypatch.setattr(training, "draw_training", lambda *_: next(draws))
    monkeypatch.setattr(training, "batch_indices", lambda *_: next(batches))
    images = SimpleNamespace(labels=labels, views=1, large=False, rows=lambda i, _: latents[i])
    options = {"seed": 0, "state_folder": tmp_path, "data_id": "golden"}
    result = training.train(CFG, cfg, images, Pixels(1.0), **options)
    assert relative(torch.stack(norms), arrays["training/gradient_norms"]) < 1e-10
    for values, what in ((dict(model.named_parameters()), "weights"), (result.ema, "ema")):
        mine = {official_name(name): p.detach() for name, p in values.items()}
        assert_equal(mine, named(arrays, f"training/{what}/"))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_matches_the_official_schedule(arrays, schedule):
    cfg = TrainConfig(40, 1, 8e-4, lr_schedule=schedule, warmup_steps=8)
    rates = torch.tensor([training.learning_rate(cfg, step) for step in range(40)], dtype=torch.float64)
    assert relative(rates, arrays[f"learning_rate/{schedule}"]) < 1e-12


def test_parity_without_timm_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "emigm.py").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install timm"):
        parity.run_parity(tmp_path)


def test_rounding_is_the_distance_from_float32_over_the_official_one():
    exact = [torch.ones(3), 1e-9 * torch.ones(2), torch.zeros(2)]
    half, whole = ([t + d * max(t.max(), 1e-3) for t in exact] for d in (0.5, 1.0))
    assert parity.rounding(half, whole, exact) == pytest.approx(0.5)
    assert np.isnan(parity.rounding([t * torch.nan for t in exact], whole, exact))


def test_the_table_has_all_comparisons_and_a_difference_that_is_not_a_number_is_beyond_tolerance(monkeypatch, capsys):
    assert sum(len(settings) * len(names) * len(limits) for _, settings, names, limits in parity.COMPARISONS) == 107
    rows = [parity.Row("a", 0.0, 0.0), parity.Row("b", float("nan"), 1e-5)]
    for n, status in ((1, 0), (2, 1)):
        monkeypatch.setattr(parity, "run_parity", lambda official, n=n: rows[:n])
        assert parity.main("clone") == status
        assert ("BEYOND" in capsys.readouterr().out) == bool(status)
