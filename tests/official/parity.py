"""Parity with the official code: the same weights and draws go through both, and the results are compared.

A difference is max|ours - theirs| / max|theirs|, unless its row says otherwise. It is taken in float32, and in float64
with both codes' casts to float32 lifted (`oracle.in_float64`): those casts bound how far the official code agrees with
itself; without them only the order of operations is left to differ.

In float16, in which the official evaluation runs, and in bf16, both codes are rounded: there the distance of ours from
the official float32 result is compared with that of the official half precision.

Not compared: dropout, which the two draw in another order; and the official loss with the ELBO weight but without the
MAE trick: it then draws a masking time for every image, untruncated, as ours does whenever the trick is off (tests
compare how masks are weighed).
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

from emigm import sample as sampling
from emigm import train as training
from emigm.autoencoders.autoencoder import Pixels
from emigm.config.schema import ModelConfig, Precision, SampleConfig, TrainConfig
from emigm.model import diffusion, schedules
from emigm.model.checkpoints import import_official, official_name, to_official
from emigm.model.head import DiffusionHead
from emigm.model.model import EMIGM, cast_linear, load_model
from emigm.model.precision import HALVES, autocast
from emigm.paper.settings import PAPER_MODELS
from tests.official import oracle

FLOOR = 1e-3
"""A tensor's difference is relative to its largest entry, or to this share of the largest entry of all."""
RUNS = 200
"""Draws of the official sampling loop of which a distribution is estimated."""
TRANSFORMER = {"width": 32, "encoder_blocks": 2, "decoder_blocks": 2, "heads": 4, "buffer": 3, "dropout": 0.0}
TINY = ModelConfig(grid=4, channels=3, classes=5, head_width=48, head_blocks=2, **TRANSFORMER)
PATCHED, SQUARE = replace(TINY, grid=8, patch=2), replace(TINY, grid=6)
VARIANTS = {
    "": {},
    ", own mask token": {"cfg_with_mask": False},
    ", no MAE trick": {"mae": False},
    ", own mask token, no MAE trick": {"cfg_with_mask": False, "mae": False},
}
SOLVERS = {"dpm-solver": SampleConfig(6, 8, 4.0, (0.1, 0.6))}
SOLVERS["ddpm, temperature 0.7"] = replace(SOLVERS["dpm-solver"], solver="ddpm", temperature=0.7)
DDPM_FLOAT64 = 1e-9
"""Tolerance: the official respaced process gets alpha bar back from its betas; at the noisiest step beta is within 1e-6
of 1, and 1 - beta keeps ten digits."""

Result = tuple[Sequence[Tensor], Sequence[Tensor]] | float
"""Tensors of ours and of theirs, or a difference itself."""


class Row(NamedTuple):
    """One comparison."""

    name: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


def run_parity(official: str | Path) -> list[Row]:
    """All comparisons with the official code in the clone `official`; takes a minute or two on a CPU. Raises
    ConfigError where the folder is no clone of it, or a package it needs is missing."""
    rows = []
    with oracle.official_code(official) as code:
        for compute, settings, names, tolerances in COMPARISONS:
            for options, (precision, limits) in itertools.product(settings, tolerances.items()):
                found = differences(code, functools.partial(compute, code, *options), precision)
                for name, value, limit in zip(names, found, np.broadcast_to(limits, len(names)), strict=True):
                    rows.append(Row(name.format(*options, p=precision), value, float(limit)))
    return rows


def differences(code: SimpleNamespace, compute: Callable[..., Iterator[Result]], precision: str) -> list[float]:
    """Of everything that `compute` yields, in a precision."""
    if precision in HALVES:
        pairs = zip(compute(precision=precision), compute(), strict=True)
        return [rounding(ours, theirs, exact) for (ours, theirs), (_, exact) in pairs]
    with oracle.in_float64(code) if precision == "float64" else contextlib.nullcontext():
        return [difference(*result) if isinstance(result, tuple) else result for result in compute()]


def main(official: str | Path) -> int:
    """Print the comparisons as a table; 0 when all are within their tolerance, else 1."""
    rows = run_parity(official)
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}  difference  tolerance")
    for row in rows:
        print(f"{row.name:{width}}  {row.difference:10.2e}  {row.tolerance:9.1e}  {'ok' if row.ok else 'BEYOND'}")
    beyond = sum(not row.ok for row in rows)
    print(f"{len(rows)} comparisons, {beyond} beyond tolerance")
    return int(beyond > 0)


def relative(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    """max|ours - theirs| / max|theirs|, the latter at least `floor`."""
    difference = (ours - theirs).abs().max().item()
    return difference / max(theirs.abs().max().item(), floor) if difference else 0.0


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest relative difference, NaN if any is."""
    floor = FLOOR * max(wanted.abs().max().item() for wanted in theirs)
    return float(np.max([relative(mine, wanted, floor) for mine, wanted in zip(ours, theirs, strict=True)]))


def rounding(ours: Sequence[Tensor], theirs: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Root mean square distance of ours from the exact float32 over that of theirs, tensor by tensor; 1 says that both
    are rounded alike."""
    squares, floor = np.zeros(2), FLOOR * max(wanted.abs().max().item() for wanted in exact)
    for *both, wanted in zip(ours, theirs, exact, strict=True):
        scale = max(wanted.abs().max().item(), floor)
        squares += [((rounded - wanted) / scale).square().sum().item() for rounded in both]
    return float(np.sqrt(squares[0] / squares[1]))


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples x sqrt(n m / (n + m))."""
    return float(ks_2samp(a, b, method="asymp").statistic * np.sqrt(len(a) * len(b) / (len(a) + len(b))))


def architectures(code: SimpleNamespace) -> Iterator[Result]:
    """Names and shapes of all tensors, and the heads, of the paper's nine models."""
    makers = {"xs": "emigm_xsmall", "s": "emigm_small", "b": "emigm_base", "l": "emigm_large", "h": "emigm_huge"}
    wrong = 0
    for (_, size), cfg in PAPER_MODELS.items():
        with torch.device("meta"):
            theirs = oracle.build(code, cfg, getattr(code.emigm, makers[size]))
            states = to_official(EMIGM(cfg).state_dict(), cfg), theirs.state_dict()
        shapes = [{(name, tensor.shape) for name, tensor in state.items()} for state in states]
        wrong += len(shapes[0] ^ shapes[1]) + (theirs.decoder_blocks[-1].attn.num_heads != cfg.heads)
    yield wrong


def initial_weights(code: SimpleNamespace) -> Iterator[Result]:
    """Equal where constant, else of the same spread (whose own error is below 1 / sqrt(n))."""
    torch.manual_seed(13)
    ours, theirs = to_official(EMIGM(TINY).state_dict(), TINY), oracle.build(code, TINY).state_dict()
    off = [
        (ours[n].std() / p.std() - 1).abs().item() * p.numel() ** 0.5 if p.std() else float(not p.equal(ours[n])) * 1e9
        for n, p in theirs.items()
    ]
    yield float(np.max(off))


def random_images(cfg: ModelConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Unit latents (B, channels, grid, grid) and classes (B,)."""
    return torch.randn(batch, cfg.channels, cfg.grid, cfg.grid), torch.arange(batch) % cfg.classes


@torch.no_grad()
def conditions_of(ours: EMIGM, theirs: nn.Module, masked: Sequence[int], batch: int = 3) -> Result:
    """z (B, L, D) from the same latents, masks and classes, the fake class among them, with so many random tokens of
    each image masked."""
    pairs = []
    for m, fake in itertools.product(masked, (False, True)):
        latents, labels = random_images(ours.cfg, batch)
        mask = torch.rand(batch, ours.cfg.tokens).argsort(dim=1) < m
        z = ours.condition(ours.patchify(latents), mask, labels, m, torch.full((batch,), fake))
        condition = theirs.fake_latent.repeat(batch, 1) if fake else theirs.class_emb(labels)
        mask = mask.to(latents.dtype)
        encoded = theirs.forward_mae_encoder(theirs.patchify(latents), mask, condition)
        pairs.append((z, theirs.forward_mae_decoder(encoded, mask)))
    return tuple(zip(*pairs, strict=True))


def conditions(code: SimpleNamespace, variant: str = "", precision: Precision = "float32") -> Iterator[Result]:
    """z; in half precision with the weights of our products cast, as where we sample."""
    ours, theirs = oracle.pair(code, replace(PATCHED, **VARIANTS[variant]), 1)
    cast_linear(ours, precision)
    with autocast(precision, "cpu"):
        result = conditions_of(ours, theirs, (PATCHED.tokens, PATCHED.tokens // 2, 1))
    yield result


def real_size(code: SimpleNamespace) -> Iterator[Result]:
    """The 256 XS model, as the official size function builds it: z, and tokens of DPM-Solver."""
    ours, theirs = oracle.pair(code, PAPER_MODELS[256, "xs"], 11, make=code.emigm.emigm_xsmall)
    yield conditions_of(ours, theirs, (192,), batch=1)
    yield tokens_of(code, ours.head, torch.randn(2, 8, ours.cfg.width), SampleConfig(1, 8, 4.0))


def with_gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """A loss and all its gradients, in the order of their official names."""
    loss.backward()
    gradients = {official_name(name): p.grad for name, p in model.named_parameters()}
    return [loss.detach(), *(gradients[name] for name in sorted(gradients))]


def losses(
    code: SimpleNamespace, variant: str = "", schedule: str = "exp", weighted: bool = False, together: bool = False,
    precision: Precision = "float32",
) -> Iterator[Result]:  # fmt: skip
    """Training loss and gradients, as two results or one, dropout off; half the classes are dropped, and every third
    diffusion time is 0, where the loss has its likelihood term."""
    randint = torch.randint

    def with_first_times(*args: object, **kwargs: object) -> Tensor:
        times = randint(*args, **kwargs)
        times[::3] = 0
        return times

    cfg = replace(TINY, **VARIANTS[variant])
    options = {"mask_strategy": schedule, "use_weighted_loss": weighted, "label_drop_prob": 0.5}
    ours, theirs = oracle.pair(code, cfg, 2, **options)
    latents, labels = random_images(cfg, 6)
    with mock.patch.object(torch, "randint", with_first_times), autocast(precision, "cpu"):
        loss, draw = oracle.loss_and_draw(theirs, cfg, latents, labels)
        mine = ours.train()(latents, labels, draw)
    both = with_gradients(ours, mine), with_gradients(theirs, loss)
    if together:
        yield both
    else:
        yield from (tuple(values[part] for values in both) for part in (slice(1), slice(1, None)))


@functools.cache
def fitted_head(dtype: torch.dtype) -> tuple[DiffusionHead, Tensor]:
    """A head taught briefly that z (M, D) means some tokens (M, C), and z: a random one is no denoiser, and sends x to
    hundreds."""
    torch.manual_seed(4)
    z, x0, head = torch.randn(128, TINY.width), torch.randn(128, TINY.token_channels), DiffusionHead(TINY)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    for _ in range(200):
        time, noise = torch.randint(diffusion.T, (len(z),)), torch.randn_like(x0)
        output = head(diffusion.q_sample(x0, noise, time), time, z)
        optimizer.zero_grad()
        diffusion.denoising_loss(output, x0, noise, time)[0].mean().backward()
        optimizer.step()
    return head.eval().requires_grad_(False), z


@torch.no_grad()
def tokens_of(code: SimpleNamespace, head: DiffusionHead, z: Tensor, cfg: SampleConfig) -> Result:
    """Tokens (M, C) from the same noise; z: conditional and unconditional (2, M, D)."""
    both = list(z)[: 1 if cfg.cfg_scale == 1 else 2]
    wanted, noise = oracle.solve(code, head, both, cfg)
    tokens = sampling.sample_tokens(head, both, noise, cfg, sampling.embed_times(head, cfg), cfg.cfg_scale)
    return [tokens], [wanted]


def solver(code: SimpleNamespace, name: str, steps: int, scale: float) -> Iterator[Result]:
    """Tokens of a solver. Unclipped and in so few steps, DDPM turns its first step's error into tokens of 1e4: what it
    adds in its last steps shows in float64 only."""
    head, z = fitted_head(torch.get_default_dtype())
    cfg = replace(SOLVERS[name], solver_steps=steps, cfg_scale=scale)
    yield tokens_of(code, head, z.view(2, -1, TINY.width), cfg)


def sampler(
    code: SimpleNamespace, name: str, precision: Precision = "float32", cfg_schedule: str = "constant"
) -> Iterator[Result]:
    """Latents (B, channels, grid, grid) of whole runs, guided in an interval: reveal counts, positions and noise as the
    official loop drew them. DDPM's of random weights do not fit into float16."""
    cfg = replace(SOLVERS[name], precision=precision, cfg_schedule=cfg_schedule)
    ours, theirs = oracle.pair(code, PATCHED, 8, **oracle.sampling_options(cfg))
    labels = torch.arange(16) % PATCHED.classes
    with autocast(precision, "cpu"):
        wanted, counts, draw = oracle.generate(theirs, labels, PATCHED, cfg)
    cast_linear(ours, precision)
    tokens, _ = sampling.reveal(ours, labels, cfg, counts, draw, sampling.embed_times(ours.head, cfg))
    yield [ours.unpatchify(tokens)], [wanted]


def mask_counts(code: SimpleNamespace, schedule: str, t_min: float) -> Iterator[Result]:
    """Numbers of masked tokens in training: both codes draw them their own way, so their distributions are compared."""
    torch.manual_seed(5)
    model, rng = oracle.build(code, SQUARE, mask_strategy=schedule, clamp_t_min=t_min), np.random.default_rng(5)
    masks = (model.random_masking(torch.zeros(1, SQUARE.tokens, 1))[0] for _ in range(10 * RUNS))
    ours = [
        schedules.draw_mask_counts(schedule, t_min, SQUARE.tokens, 1, rng, shared=True)[1].item()
        for _ in range(30 * RUNS)
    ]
    yield ks_distance(np.array(ours), np.array([int(mask.sum()) for mask in masks]))


def reveal_counts(code: SimpleNamespace, schedule: str, steps: int) -> Iterator[Result]:
    """Numbers of tokens revealed at each step: the mean, and the distribution."""
    torch.manual_seed(5)
    rng, length = np.random.default_rng(5), SQUARE.tokens
    model, _, counts = oracle.without_networks(code, SQUARE, mask_strategy=schedule)
    theirs = np.zeros((RUNS, steps), dtype=int)
    for run in theirs:
        counts.clear()
        with contextlib.redirect_stdout(io.StringIO()):  # it says so when the tokens run out
            model.sample_tokens(1, steps)
        run[: len(counts)] = counts
    ours = np.array([schedules.reveal_counts(schedule, steps, length, rng) for _ in range(20 * RUNS)])
    off = theirs.mean(axis=0) - schedules.expected_reveal_counts(schedule, steps, length)
    # Where a step is all but certain, a single rare event must not count as a deviation of many errors.
    error = np.maximum(ours.std(axis=0, ddof=1), RUNS**-0.5) / RUNS**0.5
    yield float(np.abs(off / error).max())
    yield max(ks_distance(ours[:, i], theirs[:, i]) for i in range(steps))


def network_passes(
    code: SimpleNamespace, models: str, steps: int, low: float, high: float, expected: int
) -> Iterator[Result]:
    """Forward passes for an image, guided in (low, high], counted in the official loop."""
    torch.manual_seed(7)
    model, passes, _ = oracle.without_networks(code, replace(TINY, grid=16), cfg_t_min=low, cfg_t_max=high)
    model.sample_tokens(1, steps, cfg=4.0, labels=torch.tensor([0]))
    yield abs(sum(passes) - expected) + abs(schedules.nfe(steps, 4.0, (low, high)) - expected)


def training_steps(code: SimpleNamespace) -> Iterator[Result]:
    """Weights and EMA after five steps of both training loops on the same draws, with warm-up, every gradient clipped,
    and an EMA fast enough to tell from the weights."""
    batch, drop = 6, 0.3
    cfg = TrainConfig(5, batch, 1e-3, warmup_steps=2, grad_clip=0.5, ema=0.8, label_dropout=drop)
    ours, theirs = oracle.pair(code, TINY, 10, clamp_t_min=cfg.t_min, label_drop_prob=drop)
    latents, labels = random_images(TINY, batch)
    order = (training.batch_indices(step, batch, batch, 0) for step in range(cfg.steps))
    average, draws, norms = oracle.train_epoch(code, theirs, TINY, cfg, [(latents[i], labels[i]) for i in order])
    assert min(norms) > cfg.grad_clip, "the clip has to act"
    with (
        mock.patch.object(training, "EMIGM", lambda _: ours),
        mock.patch.object(training, "draw_training", mock.Mock(side_effect=draws)),
        tempfile.TemporaryDirectory() as folder,
    ):
        run = {"seed": 0, "state_folder": Path(folder), "data_id": "-"}
        images = SimpleNamespace(labels=labels.numpy(), views=1, large=False, rows=lambda i, _: latents[i])
        result = training.train(TINY, cfg, images, Pixels(1.0), **run)

    def compared(name: str, values: Tensor) -> Tensor:
        values = values.detach().clone()
        if name.endswith("qkv.bias") and values.dtype == torch.float32:
            # A key's bias has no effect: its gradient is rounding, which AdamW scales up.
            values[TINY.width : 2 * TINY.width] = 0
        return values

    names = [name for name, _ in theirs.named_parameters()]
    for mine, wanted in ((dict(ours.named_parameters()), theirs.parameters()), (result.ema, average)):
        mine = {official_name(name): p for name, p in mine.items()}
        pairs = zip(names, wanted, strict=True)
        yield tuple(zip(*((compared(n, mine[n]), compared(n, p)) for n, p in pairs), strict=True))


@torch.no_grad()
def checkpoint(code: SimpleNamespace, variant: str) -> Iterator[Result]:
    """A file the official code saved, imported: z against the model its evaluation makes of that file."""
    cfg = replace(TINY, **VARIANTS[variant])
    _, theirs = oracle.pair(code, cfg, 12)
    average = [p + 0.02 * torch.randn_like(p) for p in theirs.parameters()]
    with tempfile.TemporaryDirectory() as folder:
        path, evaluated = oracle.save_checkpoint(code, theirs, average, Path(folder))
        import_official(path, Path(folder) / "model", cfg)
        ours = load_model(Path(folder) / "model")
    yield conditions_of(ours, evaluated, (16, 8))


EXACT, HALF = {"float32": 1e-5, "float64": 1e-10}, {"float16": 1.5, "bf16": 1.5}
"""Tolerances by precision. That of a half precision is of how far it takes ours from float32 over how far it takes the
official code; more would say that ours rounds what the official code does not."""
FLOAT32, COUNT = {"float32": EXACT["float32"]}, {"": 0}
EXACT_DDPM = EXACT | {"float64": DDPM_FLOAT64}
SIGMAS, KS = 5.0, 2.5
"""Tolerances of distributions: of a mean in standard errors; of the Kolmogorov-Smirnov distance x sqrt(n m / (n + m)).
Equal distributions pass all of the few hundred comparisons together in more than 99% of runs."""

ALONE = [()]
EVERY_VARIANT = [(what,) for what in VARIANTS]
WEIGHTED = [("", schedule, True) for schedule in schedules.SCHEDULES]
SOLVED = {name: list(itertools.product([name], (8, 14), (1.0, 4.0))) for name in SOLVERS}
GUIDED = [("dpm-solver", "float32", name) for name in schedules.CFG_SCHEDULES if name != "constant"]
MASKED = [("exp", 0.2), ("exp", 0.0), ("cosine", 0.0), ("linear", 0.0)]
REVEALED = list(itertools.product(schedules.SCHEDULES, (12, 36)))
"""At 36 steps, as many as tokens, the rule of at least one decides most of them."""
BUDGETS = [
    ("256 xs, s, b, l", 16, 0.1, 0.3, 19), ("256 h", 16, 0.2, 0.4, 19),
    ("256 xs, s, l", 128, 0.18, 0.6, 181), ("256 b", 128, 0.05, 0.4, 173), ("256 h, many steps", 128, 0.3, 0.7, 179),
    ("512 all", 16, 0.15, 0.35, 19), ("512 all, many steps", 64, 0.25, 0.5, 80),
]  # fmt: skip
"""Steps N, guidance interval and passes of the nine models at their two sampling configurations each."""
ROUNDED = "{p}: rounding over the official code's"
MASKS, REVEALS = "distribution of the masked tokens, {}, t_min {:g}", "distribution of the reveal counts, {}, N {}"

COMPARISONS: list[tuple[Callable, list[tuple], tuple[str, ...], dict[str, Any]]] = [
    (architectures, ALONE, ("architectures of the nine models: tensors of another name or shape",), COUNT),
    (initial_weights, ALONE, ("initial weights: spread of every tensor, in standard errors",), {"": SIGMAS}),
    (conditions, EVERY_VARIANT, ("z{}, {p}",), EXACT),
    (real_size, ALONE, ("256-xs: z, {p}", "256-xs: dpm-solver, K 8, cfg 4, {p}"), FLOAT32),
    (losses, EVERY_VARIANT, ("loss{}, {p}", "gradients{}, {p}"), EXACT),
    (losses, WEIGHTED, ("loss, ELBO weight, {1}, {p}", "gradients, ELBO weight, {1}, {p}"), EXACT),
    (solver, SOLVED["dpm-solver"], ("{}, K {}, cfg {:g}, {p}",), EXACT),
    (solver, SOLVED["ddpm, temperature 0.7"], ("{}, K {}, cfg {:g}, {p}",), EXACT_DDPM),
    (sampler, [("dpm-solver",)], ("whole sampler, {}, N 6, K 8, cfg 4, {p}",), EXACT),
    (sampler, [("ddpm, temperature 0.7",)], ("whole sampler, {}, N 6, K 8, cfg 4, {p}",), EXACT_DDPM),
    (sampler, GUIDED, ("whole sampler, {0}, N 6, K 8, cfg 4, {2} schedule, {p}",), EXACT),
    (conditions, ALONE, (f"z, {ROUNDED}",), HALF),
    (sampler, [("dpm-solver",)], (f"whole sampler, {ROUNDED}",), HALF),
    (losses, [("", "exp", False, True)], (f"loss and gradients, {ROUNDED}",), HALF),
    (mask_counts, MASKED, (f"{MASKS}: KS",), {"": KS}),
    (reveal_counts, REVEALED, (f"{REVEALS}: mean, in standard errors", f"{REVEALS}: KS"), {"": (SIGMAS, KS)}),
    (network_passes, BUDGETS, ("NFE of {}: N {}, ({:g}, {:g}], {} passes",), COUNT),
    (training_steps, ALONE, ("weights after 5 training steps, {p}", "EMA after 5 training steps, {p}"), EXACT),
    (checkpoint, EVERY_VARIANT, ("z of an official checkpoint{}, {p}",), FLOAT32),
]
"""What both sides compute; in which settings; the names of its results, from setting and precision; their tolerances
by precision."""
