"""Our code against arrays the official code computed (tests/golden), and the parity command's own errors.

In float64 our casts to float32 are lifted, as they were in the official code for these arrays.
"""

import functools
import importlib.util
import json
from pathlib import Path

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
from emigm.tools import half_precision, oracle, parity
from tests.official.parity import relative

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "official_tiny.json").read_text())
CFG = parse(ModelConfig, FACTS["model"], "golden")
PRECISIONS = {"float32": (torch.float32, 1e-5), "float64": (torch.float64, 1e-10)}


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN / "official_tiny.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture
def float64(monkeypatch, arrays):
    lift_casts(monkeypatch, arrays)


def lift_casts(monkeypatch, arrays):
    """No float32 but the time features' frequencies: those of the machine that made the arrays, since processors
    differ in the last bits of a float32 exponential."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(head, "frequencies", lambda device: arrays["frequencies"])


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


def test_state_dict_has_the_official_names(arrays):
    official = {name.removeprefix("state/") for name in arrays if name.startswith("state/")}
    assert to_official(EMIGM(CFG).state_dict(), CFG).keys() == official | {"mask_token"}


@pytest.mark.parametrize("mae", [True, False], ids=["mae", "no mae"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("fake", [True, False], ids=["fake", "class"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS.values(), ids=PRECISIONS)
def test_condition_vectors_match_the_official_network(arrays, mae, shared, fake, dtype, tolerance):
    model = load(arrays, dtype, mae=mae, cfg_with_mask=shared)
    latents, labels, mask = (arrays[name][:2] for name in ("latents", "labels", "mask"))
    tokens = model.patchify(latents.to(dtype))
    z = model.condition(tokens, mask, labels, int(mask[0].sum()), torch.full((2,), fake))
    wanted = arrays[f"z/{'mae' if mae else 'no mae'}/{'shared' if shared else 'own'}/{'fake' if fake else 'class'}"]
    assert relative(z, wanted) < tolerance


def test_frequencies_match_the_official_ones(arrays):
    assert relative(head.frequencies(torch.device("cpu")), arrays["frequencies"]) < 1e-6


@pytest.mark.parametrize("weight", ["one", "elbo"])
def test_training_loss_matches_the_official_one(arrays, float64, weight):
    w = arrays["loss/elbo/weight"] if weight == "elbo" else 1.0
    loss = load(arrays)(arrays["latents"].double(), arrays["labels"], draw(arrays, "loss", w))
    assert relative(loss, arrays[f"loss/{weight}/float64"]) < 1e-10


def test_gradients_match_the_official_ones(arrays, float64):
    model = load(arrays)
    model(arrays["latents"].double(), arrays["labels"], draw(arrays, "loss")).backward()
    mine = gradients(model)
    norms = {name.split("/")[1]: norm for name, norm in arrays.items() if name.startswith("gradient_norm/")}
    assert norms.keys() == mine.keys()
    largest = max(norms.values())
    for name, norm in norms.items():
        assert abs(mine[name].norm() - norm) < 1e-10 * max(norm, 1e-3 * largest), name
    for name in arrays:
        if name.startswith("gradient/"):
            assert relative(mine[name.split("/")[1]], arrays[name]) < 1e-10, name


def test_loss_keeps_its_precision_in_float32_at_the_first_diffusion_times(arrays):
    # A third of the times are 0, and more are 1: there 1 - alpha bar has lost four digits in float32.
    model = load(arrays, torch.float32)
    loss = model(arrays["latents"], arrays["labels"], draw(arrays, "loss", dtype=torch.float32))
    loss.backward()
    assert relative(loss, arrays["loss/one/float32"]) < 2e-6
    assert relative(loss, arrays["loss/one/float64"]) < 2e-6
    mine = gradients(model)
    for name, norm in arrays.items():
        if name.startswith("gradient_norm_float32/"):
            assert relative(mine[name.split("/")[1]].norm(), norm) < 1e-5, name


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("steps", [8, 14])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS.values(), ids=PRECISIONS)
def test_dpm_solver_matches_the_official_one(arrays, monkeypatch, steps, scale, dtype, tolerance):
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float64:  # otherwise the tables are float32, as the official ones
        lift_casts(monkeypatch, arrays)
        monkeypatch.setattr(sampling, "dpm_solver_plan", functools.partial(sampling.dpm_solver_plan, dtype=dtype))
    cfg = SampleConfig(1, steps, float(scale))
    noise = arrays[f"solver/dpm-solver/{steps}/1/noise"].to(dtype)
    z = list(arrays["solver/z"].to(dtype))[: 1 if scale == 1 else 2]
    tokens = sampling.sample_tokens(load(arrays, dtype).head, z, noise, cfg)
    assert relative(tokens, arrays[f"solver/dpm-solver/{steps}/{scale}/{name}"]) < tolerance


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("steps", [8, 14])
def test_ddpm_matches_the_official_one(arrays, float64, steps, scale):
    cfg = SampleConfig(1, steps, float(scale), solver="ddpm", temperature=0.7)
    noise = arrays[f"solver/ddpm/{steps}/{scale}/noise"].double()
    z = list(arrays["solver/z"].double())[: 1 if scale == 1 else 2]
    tokens = sampling.sample_tokens(load(arrays).head, z, noise, cfg)
    assert relative(tokens, arrays[f"solver/ddpm/{steps}/{scale}/float64"]) < parity.DDPM_FLOAT64


@pytest.mark.parametrize("solver", ["ddpm", "dpm-solver"])
def test_whole_sampler_matches_the_official_loop(arrays, monkeypatch, solver):
    dtype, tolerance, temperature = torch.float32, 1e-5, None
    if solver == "ddpm":
        lift_casts(monkeypatch, arrays)
        dtype, tolerance, temperature = torch.float64, parity.DDPM_FLOAT64, 0.7
    cfg = SampleConfig(5, 8, 4.0, (0.1, 0.6), solver=solver, temperature=temperature)
    counts, order, noise, wanted = (arrays[f"sampler/{solver}/{n}"] for n in ("counts", "order", "noise", "latents"))
    model = load(arrays, dtype)
    image_draw = sampling.ImageDraw(order.long(), noise.to(dtype))
    tokens, passes = sampling.reveal(
        model, arrays["labels"], cfg, counts.numpy(), image_draw, sampling.embed_times(model.head, cfg)
    )
    assert relative(model.unpatchify(tokens), wanted) < tolerance
    assert passes == 7  # two of the five steps are guided


def test_training_steps_match_the_official_loop(arrays, float64, monkeypatch, tmp_path):
    model = load(arrays)
    cfg = TrainConfig(3, 4, 1e-3, warmup_steps=1, grad_clip=0.5, ema=0.8, label_dropout=0.5)
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, limit: norms.append(clip(p, limit)))
    monkeypatch.setattr(training, "EMIGM", lambda _: model)
    draws = iter([draw(arrays, f"training/{step}") for step in range(3)])
    monkeypatch.setattr(training, "draw_training", lambda *_: next(draws))
    order = iter(arrays["training/order"].tolist())
    monkeypatch.setattr(training, "batch_indices", lambda *_: np.array(next(order)))
    latents, labels = arrays["latents"].double(), arrays["labels"].numpy()
    run = {"seed": 0, "state_folder": tmp_path, "data_id": "golden"}
    images = training.TrainingImages(labels, 1, lambda index, _: latents[index], read_ahead=False)
    result = training.train(CFG, cfg, images, Pixels(1.0), **run)

    assert relative(torch.stack(norms), arrays["training/gradient_norms"]) < 1e-10
    weights = {official_name(name): p.detach() for name, p in model.named_parameters()}
    averages = {official_name(name): p for name, p in result.ema.items()}
    for mine, what in ((weights, "weights"), (averages, "ema")):
        for name, wanted in arrays.items():
            if name.startswith(f"training/{what}/"):
                assert relative(mine[name.split("/")[-1]], wanted) < 1e-10, name


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_step_of_several_groups_has_the_mean_of_the_official_gradients(
    arrays, float64, monkeypatch, tmp_path, micro_batch
):
    """Three groups with the images and the draw of one official GPU each: the mean of equal gradients is that one."""
    model, latents, labels = load(arrays), arrays["latents"].double().repeat(3, 1, 1, 1), arrays["labels"].repeat(3)
    group = len(arrays["latents"])
    cfg = TrainConfig(1, 3 * group, 1e-3, mask_group=group)
    found = {}
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *_: found.update({n: g.clone() for n, g in gradients(model).items()})
    )
    monkeypatch.setattr(training, "EMIGM", lambda _: model)
    monkeypatch.setattr(training, "draw_training", lambda *_: draw(arrays, "loss"))
    monkeypatch.setattr(training, "batch_indices", lambda *_: np.arange(3 * group))
    images = training.TrainingImages(labels.numpy(), 1, lambda index, _: latents[index], read_ahead=False)
    run = {"seed": 0, "state_folder": tmp_path, "data_id": "golden", "micro_batch": micro_batch}
    result = training.train(CFG, cfg, images, Pixels(1.0), **run)
    assert relative(torch.tensor(result.curve[0][1]), arrays["loss/one/float64"]) < 1e-6  # kept in float32
    largest = max(norm for name, norm in arrays.items() if name.startswith("gradient_norm/"))
    for name, gradient in found.items():
        norm = arrays[f"gradient_norm/{name}"]
        assert abs(gradient.norm() - norm) < 1e-10 * max(norm, 1e-3 * largest), name


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_matches_the_official_schedule(arrays, schedule):
    cfg = TrainConfig(40, 1, 8e-4, lr_schedule=schedule, warmup_steps=8)
    rates = torch.tensor([training.learning_rate(cfg, step) for step in range(40)], dtype=torch.float64)
    assert relative(rates, arrays[f"learning_rate/{schedule}"]) < 1e-12


def test_golden_arrays_say_which_official_code_made_them():
    assert FACTS["code"]["commit"].startswith("de78623")
    assert {"torch", "timm", "numpy", "python"} <= FACTS["versions"].keys()
    assert (GOLDEN / "official_tiny.npz").stat().st_size < 300_000


def test_parity_with_a_folder_that_is_no_clone_is_one_clear_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"no models/emigm\.py.*clone"):
            parity.run_parity(folder)


def test_parity_without_timm_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "emigm.py").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install timm"):
        parity.run_parity(tmp_path)


def test_rounding_is_the_distance_from_float32_over_the_official_one():
    exact = [torch.ones(3), 1e-9 * torch.ones(2), torch.zeros(2)]
    half, whole = ([t + d * max(t.max(), 1e-3) for t in exact] for d in (0.5, 1.0))
    assert half_precision.rounding(half, whole, exact) == pytest.approx(0.5)
    assert np.isnan(half_precision.rounding([t * torch.nan for t in exact], whole, exact))


def test_a_difference_that_is_not_a_number_is_beyond_tolerance(monkeypatch, capsys):
    rows = [parity.Row("a", 0.0, 0.0), parity.Row("b", float("nan"), 1e-5)]
    assert [row.ok for row in rows] == [True, False]
    monkeypatch.setattr(parity, "run_parity", lambda official: rows)
    assert parity.main("clone") == 1
    assert "BEYOND" in capsys.readouterr().out
    monkeypatch.setattr(parity, "run_parity", lambda official: rows[:1])
    assert parity.main("clone") == 0
