"""Generation: a function of (weights, seed, image index); DPM-Solver++ against an exact solution."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from test_model import CODES, TINY, random_model
from test_systems import SYSTEMS
from torch.nn.attention import SDPBackend, sdpa_kernel

from emigm import sample as sampling
from emigm.config.errors import RunError
from emigm.config.schema import SampleConfig
from emigm.launching import ahead
from emigm.model import diffusion
from emigm.model.diffusion import T, cosine_betas, ddpm_sample, dpm_solver_plan, dpm_solver_sample
from emigm.model.model import EMIGM, cast_linear
from emigm.model.schedules import nfe, reveal_counts
from emigm.paper.settings import PAPER_MODELS
from emigm.sample import COUNTS, generate, guided_denoiser, random_stream

DPM = SampleConfig(steps=4, solver_steps=5, cfg_scale=2.0, cfg_interval=(0.2, 0.6))
DDPM = dataclasses.replace(DPM, solver="ddpm", temperature=0.9, x0_clip=2.0)
LABELS = torch.arange(11) % TINY.classes


def latents(model, labels, cfg, **options):
    return torch.cat([p.latents for p in generate(model, labels, cfg, chunk=4, **options)])


close = functools.partial(torch.allclose, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dpm-solver", "ddpm", *SYSTEMS])
def test_an_image_is_a_function_of_weights_seed_index_and_class(monkeypatch, name):
    """Whatever the batch, whether or not the others are made, and whether or not noise is drawn ahead; the same call
    gives the same bits."""
    cfg = {"dpm-solver": DPM, "ddpm": DDPM, **SYSTEMS}[name]
    model = random_model(CODES if name in SYSTEMS else TINY, 1)
    labels = LABELS % model.cfg.classes
    whole = latents(model, labels, cfg, seed=3, batch=100)
    if name in SYSTEMS:
        assert whole.dtype == torch.int64 and whole.shape == (11, 1, 4, 4)
        assert set(whole.unique().tolist()) == set(range(CODES.codebook))
    assert torch.equal(latents(model, labels, cfg, seed=3, batch=100), whole)
    for batch in (1, 3, 4):
        assert close(latents(model, labels, cfg, seed=3, batch=batch), whole)
    assert close(latents(model, labels, cfg, seed=3, ranges=[(5, 9)]), whole[5:9])
    changes = [(labels[:1], {"seed": 1}), (labels[[0, 0]], {"ranges": [(1, 2)]}), (labels[1:2], {})]
    for other, options in changes[:2] if name in SYSTEMS else changes:  # a code need not change with the class
        assert not close(latents(model, other, cfg, **{"seed": 3, **options}), whole[:1])
    for threaded in (False, True):
        monkeypatch.setattr(sampling, "ahead", lambda read, items, t=threaded, **_: ahead(read, items, threaded=t))
        some = latents(model, labels, cfg, seed=3, ranges=[(8, 11), (0, 2)])
        assert close(some, torch.cat([whole[8:11], whole[:2]]))


def test_the_network_is_called_as_often_as_counted_and_as_the_schedule_says():
    model, calls = random_model(), []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    drawn = [reveal_counts(DPM.schedule, DPM.steps, TINY.tokens, random_stream(0, COUNTS, i)) for i in (0, 0, 1)]
    (batch,) = generate(model, LABELS[:4], DPM, seed=0, chunk=4)
    assert batch.passes == len(calls) == nfe(DPM.steps, DPM.cfg_scale, DPM.cfg_interval) == 6 and (drawn[0] > 0).all()
    # Reveal counts are shared within a chunk and differ between chunks.
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_guidance_extrapolates_from_the_unconditional_noise_and_keeps_the_conditional_variance():
    """In float32, from what the head gives in bf16."""
    head = random_model().head
    z = [torch.randn(5, TINY.width), torch.randn(5, TINY.width)]
    x, times = torch.randn(5, 3), head.time_embed(torch.tensor([900.0, 300.0]))
    plain = [guided_denoiser(head, [c], times, 1.0, "bf16")(x, 1) for c in z]
    assert all(torch.equal(p, p.bfloat16().float()) for p in plain)  # the head's own rounding
    guided = guided_denoiser(head, z, times, 3.0, "bf16")(x, 1)
    (eps_c, var_c), (eps_u, _) = (p.chunk(2, dim=-1) for p in plain)
    assert torch.allclose(guided, torch.cat([eps_u + 3 * (eps_c - eps_u), var_c], dim=-1), atol=1e-5)


GROWTH = {"constant": lambda r: 1.0, "linear": lambda r: r, "power": lambda r: r**2, "cubic": lambda r: r**3}
GROWTH |= {"exp": lambda r: 1 - np.exp(-5 * r), "cosine": lambda r: np.cos(np.pi / 2 * (1 - r))}


@pytest.mark.parametrize("schedule", GROWTH)
@pytest.mark.parametrize("system", ["dpm-solver", "ddpm", "MaskGIT", "MDM"])
def test_the_scale_of_a_step_follows_from_the_share_revealed_after_it(monkeypatch, system, schedule):
    """At as many passes as under a constant scale, and with the tokens that a constant scale of that value gives."""
    cfg = {"dpm-solver": DPM, "ddpm": DDPM, **SYSTEMS}[system]
    cfg = dataclasses.replace(cfg, steps=4, cfg_scale=3.0, cfg_interval=(0.2, 1.0), cfg_schedule=schedule)
    model = random_model(CODES if cfg.solver == "categorical" else TINY)
    used = []
    for name, place in (("guided_denoiser", 3), ("guided_logits", 2)):
        guide = getattr(sampling, name)
        spy = lambda *args, guide=guide, place=place: used.append((len(args[1]), args[place])) or guide(*args)  # noqa: E731
        monkeypatch.setattr(sampling, name, spy)

    def steps(cfg):
        used.clear()
        kept = []
        options = {"seed": 5, "chunk": 4, "on_step": lambda *step: kept.append([t.clone() for t in step])}
        (batch,) = generate(model, LABELS[:4] % model.cfg.classes, cfg, **options)
        return batch, kept

    batch, kept = steps(cfg)
    shares = [(~mask).float().mean().item() for _, mask in kept]
    assert [conditions for conditions, _ in used] == [2, 2, 2, 1] and batch.passes == nfe(4, 3.0, (0.2, 1.0)) == 7
    assert [scale for _, scale in used] == pytest.approx([1 + 2 * GROWTH[schedule](share) for share in shares])
    constant, of_constant = steps(dataclasses.replace(cfg, cfg_scale=used[0][1], cfg_schedule="constant"))
    assert torch.equal(of_constant[0][0], kept[0][0])
    if cfg.solver != "categorical":  # whose codes need not change with the scale of later steps
        assert torch.equal(constant.latents, batch.latents) == (schedule == "constant")


@pytest.mark.parametrize(("labels", "message"), [([], "zero images"), ([9], r"0\.\.4")])
def test_zero_images_and_unknown_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        list(generate(random_model(), torch.tensor(labels, dtype=torch.int64), DPM, seed=0))


@pytest.mark.parametrize(
    ("precision", "dtype", "off"),
    [("float32", torch.float32, 0), ("bf16", torch.bfloat16, 0.05), ("float16", torch.float16, 0.01)],
)
@pytest.mark.parametrize("cfg", [DPM, DDPM], ids=["dpm-solver", "ddpm"])
def test_half_precision_gives_nearly_the_same_images_and_keeps_the_solver_in_float32(cfg, precision, dtype, off):
    """And weights that are cast once give the same bits."""
    model, cast, inside = random_model().requires_grad_(False), random_model().requires_grad_(False), []
    exact = latents(model, LABELS, cfg, seed=0)
    model.head.input_proj.register_forward_hook(lambda _, args, out: inside.append((args[0].dtype, out.dtype)))
    half = dataclasses.replace(cfg, precision=precision)
    rounded = latents(model, LABELS, half, seed=0)
    assert rounded.dtype == torch.float32 and set(inside) == {(torch.float32, dtype)}
    difference = (rounded - exact).abs().mean()
    assert 0 < difference < off * exact.std() if off else difference == 0
    cast_linear(cast, precision)
    assert {p.dtype for p in cast.parameters()} == {torch.float32, dtype}
    assert cast.backbone.fake_latent.dtype == torch.float32
    assert torch.equal(latents(cast, LABELS, half, seed=0), rounded)


@pytest.mark.parametrize(("precision", "message"), [("float16", "65504; set precision"), ("float32", "in float32")])
def test_images_that_are_not_finite_are_named_with_the_precision(precision, message):
    model = random_model()
    with torch.no_grad():
        model.head.final_layer.linear.weight *= 1e6 if precision == "float16" else float("inf")
    with pytest.raises(RunError, match=f"images 4 to 7: .*{message}"):
        list(generate(model, LABELS, dataclasses.replace(DPM, precision=precision), seed=0, ranges=[(4, 8)]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float16", "bf16"])
def test_a_gpu_attends_by_flash_attention(precision):
    cfg = dataclasses.replace(PAPER_MODELS[256, "xs"], encoder_blocks=1, decoder_blocks=1)
    model = EMIGM(cfg).to("cuda").eval()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):  # no other: what it does not take is an error
        list(generate(model, torch.arange(4), SampleConfig(2, 3, precision=precision), seed=0))


DATA_STD = 0.5


def test_x0_clip_bounds_what_ddpm_returns():
    noise = 3 * torch.randn(14, 200, 1, generator=torch.Generator().manual_seed(0))
    wild = lambda x, time: torch.cat([-x, -torch.ones_like(x)], dim=-1)  # noqa: E731
    assert ddpm_sample(wild, noise, 14, x0_clip=0.7).abs().max() <= 0.7 + 1e-6
    assert ddpm_sample(wild, noise, 14).abs().max() > 10


@pytest.mark.parametrize("steps", range(3, 26))
def test_dpm_solver_spends_exactly_its_steps(steps):
    plan = dpm_solver_plan(steps)
    assert len(plan) == steps == sum(diffusion.singlestep_orders(steps))
    assert [s.time for s in plan] == sorted((s.time for s in plan), reverse=True)


def alpha_bar(time):
    """At the solver's own time input, interpolated in log alpha over the schedule's knots."""
    log_abar = np.cumsum(np.log(1 - cosine_betas()))[:996]
    return math.exp(np.interp(time / T + 1 / 996, np.arange(1, 997) / 996, log_abar))


def test_dpm_solver_converges_to_the_exact_solution_of_the_ode():
    """For Gaussian data the flow multiplies the noise by a known factor."""

    def denoiser(x, i):
        """The exact noise prediction for data N(0, DATA_STD^2), with variance at the posterior's end."""
        abar = alpha_bar(float(plan[i].time))
        eps = math.sqrt(1 - abar) * x / (abar * DATA_STD**2 + 1 - abar)
        return torch.cat([eps, -torch.ones_like(x)], dim=-1)

    noise, errors = torch.ones(1, 1, dtype=torch.float64), []
    start, end = (math.sqrt(a * DATA_STD**2 + 1 - a) for a in (alpha_bar(T - T / 996), alpha_bar(0)))
    for steps in (12, 24, 48):
        plan = dpm_solver_plan(steps, torch.float64)
        errors.append(abs(dpm_solver_sample(denoiser, noise, plan).item() - end / start))
    assert errors[0] < 0.05 and errors[2] < 2e-3
    assert errors[0] / errors[1] > 4 and errors[1] / errors[2] > 4  # order 3 would give 8
