"""Parity with the official code: the same weights and draws go through both, and the results are compared.

A difference is max|ours - theirs| / max|theirs|, unless its row says otherwise. It is taken in float32, and in
float64 with both codes' casts to float32 lifted (`oracle.in_float64`): those casts bound how far the official
code agrees with itself; without them only the order of operations is left to differ.

In float16, in which the official evaluation runs, and in bf16, both codes are rounded: there the distance of ours from
the official float32 result is compared with that of the official half precision (`check_half_precision`).

Not compared: dropout, which the two draw in another order; and the official loss with the ELBO weight but without the
MAE trick: it then draws a masking time for every image, untruncated, as ours does whenever the trick is off (tests
compare how masks are weighed).
"""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from emigm import sample as sampling
from emigm import train as training
from emigm.autoencoders.autoencoder import Pixels
from emigm.config.schema import ModelConfig, SampleConfig, TrainConfig
from emigm.model import diffusion, schedules
from emigm.model.checkpoints import import_official, official_name, to_official
from emigm.model.head import DiffusionHead
from emigm.model.model import EMIGM, load_model
from emigm.paper.settings import PAPER_MODELS
from emigm.tools import half_precision, oracle
from emigm.train import batch_indices

FLOAT32, FLOAT64 = 1e-5, 1e-10
"""Tolerances in the two precisions."""
DDPM_FLOAT64 = 1e-9
"""The official respaced process gets alpha bar back from its betas; at the noisiest step beta is within 1e-6 of 1,
and 1 - beta keeps ten digits."""
SIGMAS, KS = 5.0, 2.5
"""Tolerances of distributions: of a mean in standard errors; of the Kolmogorov-Smirnov distance x sqrt(n m / (n + m)).
Equal distributions pass all of the few hundred comparisons together in more than 99% of runs."""
ROUNDING = 1.5
"""Tolerance of how far a half precision takes ours from float32, over how far it takes the official code; more would
say that ours rounds what the official code does not."""

TRANSFORMER = {"width": 32, "encoder_blocks": 2, "decoder_blocks": 2, "heads": 4, "buffer": 3, "dropout": 0.0}
TINY = ModelConfig(grid=4, channels=3, classes=5, head_width=48, head_blocks=2, **TRANSFORMER)
PATCHED = replace(TINY, grid=8, patch=2)
VARIANTS = {
    "": {},
    ", own mask token": {"cfg_with_mask": False},
    ", no MAE trick": {"mae": False},
    ", own mask token, no MAE trick": {"cfg_with_mask": False, "mae": False},
}
SOLVERS = (("dpm-solver", None, "dpm-solver"), ("ddpm", 0.7, "ddpm, temperature 0.7"))

BUDGETS = {
    "256 xs, s, b, l": (16, (0.1, 0.3)),
    "256 h": (16, (0.2, 0.4)),
    "256 xs, s, l": (128, (0.18, 0.6)),
    "256 b": (128, (0.05, 0.4)),
    "256 h, many steps": (128, (0.3, 0.7)),
    "512 all": (16, (0.15, 0.35)),
    "512 all, many steps": (64, (0.25, 0.5)),
}
"""Steps N and guidance interval of the nine models at their two budgets each."""


class Row(NamedTuple):
    """One comparison."""

    name: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


Rows = Iterator[Row]


def precisions(code: SimpleNamespace) -> list[tuple[str, float, Callable]]:
    """(name, tolerance, context to work in) of float32 and float64."""
    in_float64 = functools.partial(oracle.in_float64, code)
    return [("float32", FLOAT32, contextlib.nullcontext), ("float64", FLOAT64, in_float64)]


def relative(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    """max|ours - theirs| / max|theirs|, the latter at least `floor`."""
    difference = (ours - theirs).abs().max().item()
    return difference / max(theirs.abs().max().item(), floor) if difference else 0.0


def worst(differences: Iterable[float]) -> float:
    """The largest, NaN if any is."""
    return float(np.max(list(differences)))


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples x sqrt(n m / (n + m))."""
    values = np.union1d(a, b)
    below = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max() * np.sqrt(len(a) * len(b) / (len(a) + len(b))))


def check_architectures(code: SimpleNamespace) -> Rows:
    """Names and shapes of all tensors, and the heads, of the paper's nine models."""
    makers = {"xs": "emigm_xsmall", "s": "emigm_small", "b": "emigm_base", "l": "emigm_large", "h": "emigm_huge"}
    wrong = 0
    for (_, size), cfg in PAPER_MODELS.items():
        with torch.device("meta"):
            theirs = oracle.build(code, cfg, getattr(code.emigm, makers[size]))
            states = to_official(EMIGM(cfg).state_dict(), cfg), theirs.state_dict()
        shapes = [{(name, tensor.shape) for name, tensor in state.items()} for state in states]
        wrong += len(shapes[0] ^ shapes[1]) + (theirs.decoder_blocks[-1].attn.num_heads != cfg.heads)
    yield Row("architectures of the nine models: tensors of another name or shape", wrong, 0)


def check_initialisation(code: SimpleNamespace) -> Rows:
    """Initial weights: equal where constant, else of the same spread (whose own error is below 1 / sqrt(n))."""
    torch.manual_seed(13)
    ours, theirs = to_official(EMIGM(TINY).state_dict(), TINY), oracle.build(code, TINY).state_dict()
    off = [
        (ours[n].std() / p.std() - 1).abs().item() * p.numel() ** 0.5 if p.std() else float(not p.equal(ours[n])) * 1e9
        for n, p in theirs.items()
    ]
    yield Row("initial weights: spread of every tensor, in standard errors", worst(off), SIGMAS)


def check_conditions(code: SimpleNamespace) -> Rows:
    """z from the same latents, masks and classes, the fake class among them."""
    for what, change in VARIANTS.items():
        for precision, tolerance, context in precisions(code):
            with context():
                ours, theirs = oracle.pair(code, replace(PATCHED, **change), 1)
                differences = [
                    condition_difference(ours, theirs, masked, fake)
                    for masked in (ours.cfg.tokens, ours.cfg.tokens // 2, 1)
                    for fake in (False, True)
                ]
            yield Row(f"z{what}, {precision}", worst(differences), tolerance)


@torch.no_grad()
def condition_difference(ours: EMIGM, theirs: nn.Module, masked: int, fake: bool, batch: int = 3) -> float:
    """Relative difference of z (B, L, D) with `masked` random tokens of each image masked."""
    cfg = ours.cfg
    latents = torch.randn(batch, cfg.channels, cfg.grid, cfg.grid)
    labels = torch.arange(batch) % cfg.classes
    mask = torch.rand(batch, cfg.tokens).argsort(dim=1) < masked
    z = ours.condition(ours.patchify(latents), mask, labels, masked, torch.full((batch,), bool(fake)))
    condition = theirs.fake_latent.repeat(batch, 1) if fake else theirs.class_emb(labels)
    mask = mask.to(latents.dtype)
    encoded = theirs.forward_mae_encoder(theirs.patchify(latents), mask, condition)
    return relative(z, theirs.forward_mae_decoder(encoded, mask))


def check_real_size(code: SimpleNamespace) -> Rows:
    """The 256 XS model, as the official size function builds it."""
    ours, theirs = oracle.pair(code, PAPER_MODELS[256, "xs"], 11, make=code.emigm.emigm_xsmall)
    yield Row("256-xs: z, float32", condition_difference(ours, theirs, 192, False, batch=1), FLOAT32)
    z = torch.randn(2, 8, ours.cfg.width)
    difference = solver_difference(code, ours.head, list(z), SampleConfig(1, 8, 4.0))
    yield Row("256-xs: dpm-solver, K 8, cfg 4, float32", difference, FLOAT32)


def check_loss(code: SimpleNamespace) -> Rows:
    """Training loss and gradients, dropout off; half the classes are dropped, and every third diffusion time is
    0, where the loss has its likelihood term."""

    def set_first_steps(name: str, result: Tensor) -> None:
        if name == "randint":
            result[::3] = 0

    batch = 6
    variants = [(what, change, "exp", False) for what, change in VARIANTS.items()]
    variants += [(f", ELBO weight, {schedule}", {}, schedule, True) for schedule in schedules.SCHEDULES]
    for what, change, schedule, weighted in variants:
        options = {"mask_strategy": schedule, "use_weighted_loss": weighted, "label_drop_prob": 0.5}
        for precision, tolerance, context in precisions(code):
            with context():
                cfg = replace(TINY, **change)
                ours, theirs = oracle.pair(code, cfg, 2, **options)
                latents = torch.randn(batch, cfg.channels, cfg.grid, cfg.grid)
                labels = torch.arange(batch) % cfg.classes
                loss, draw = oracle.loss_and_draw(theirs, cfg, latents, labels, edit=set_first_steps)
                mine = ours.train()(latents, labels, draw)
                loss.backward()
                mine.backward()
                wanted = {name: p.grad for name, p in theirs.named_parameters()}
                floor = half_precision.FLOOR * max(g.abs().max().item() for g in wanted.values())
                gradients = [relative(p.grad, wanted[official_name(n)], floor) for n, p in ours.named_parameters()]
            yield Row(f"loss{what}, {precision}", relative(mine.detach(), loss.detach()), tolerance)
            yield Row(f"gradients{what}, {precision}", worst(gradients), tolerance)


def check_solvers(code: SimpleNamespace) -> Rows:
    """Tokens (M, C) of the two solvers from the same conditions and noise. Unclipped and in so few steps, DDPM turns
    its first step's error into tokens of 1e4: what it adds in its last steps shows in float64 only."""
    for precision, tolerance, context in precisions(code):
        with context():
            torch.manual_seed(4)
            z, x0 = torch.randn(128, TINY.width), torch.randn(128, TINY.token_channels)
            head = fitted_head(z, x0)
            for solver, temperature, what in SOLVERS:
                for steps, scale in ((8, 1.0), (8, 4.0), (14, 1.0), (14, 4.0)):
                    cfg = SampleConfig(1, steps, scale, solver=solver, temperature=temperature)
                    difference = solver_difference(code, head, list(z.chunk(2)), cfg)
                    limit = max(tolerance, DDPM_FLOAT64) if solver == "ddpm" else tolerance
                    yield Row(f"{what}, K {steps}, cfg {scale:g}, {precision}", difference, limit)


def fitted_head(z: Tensor, x0: Tensor) -> DiffusionHead:
    """A head taught briefly that z (M, D) means x0 (M, C): a random one is no denoiser, and sends x to hundreds."""
    head = DiffusionHead(TINY)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    for _ in range(200):
        time, noise = torch.randint(diffusion.T, (len(z),)), torch.randn_like(x0)
        output = head(diffusion.q_sample(x0, noise, time), time, z)
        optimizer.zero_grad()
        diffusion.denoising_loss(output, x0, noise, time)[0].mean().backward()
        optimizer.step()
    return head.eval().requires_grad_(False)


def solver_difference(code: SimpleNamespace, head: DiffusionHead, z: list[Tensor], cfg: SampleConfig) -> float:
    """Relative difference of tokens (M, C); z: [conditional, unconditional], each (M, D)."""
    z = z if cfg.cfg_scale != 1 else z[:1]
    wanted, noise = oracle.solve(code, head, z, cfg)
    with torch.no_grad():
        return relative(sampling.sample_tokens(head, z, noise, cfg), wanted)


def check_sampler(code: SimpleNamespace) -> Rows:
    """Latents (B, channels, grid, grid) of whole runs, guided in an interval: reveal counts, positions and noise
    as the official loop drew them."""
    for solver, temperature, what in SOLVERS:
        cfg = SampleConfig(6, 8, 4.0, (0.1, 0.6), solver=solver, temperature=temperature)
        options = {"num_sampling_steps": "8", "sampling_algo": solver, "cfg_t_min": 0.1, "cfg_t_max": 0.6}
        for precision, tolerance, context in precisions(code):
            with context():
                ours, theirs = oracle.pair(code, PATCHED, 8, **options)
                labels = torch.arange(4)
                wanted, counts, draw = oracle.generate(theirs, labels, PATCHED, cfg)
                tokens, _ = sampling.reveal(ours, labels, cfg, counts, draw, sampling.embed_times(ours.head, cfg))
                difference = relative(ours.unpatchify(tokens), wanted)
            limit = max(tolerance, DDPM_FLOAT64) if solver == "ddpm" else tolerance
            yield Row(f"whole sampler, {what}, N 6, K 8, cfg 4, {precision}", difference, limit)


def check_half_precision(code: SimpleNamespace) -> Rows:
    """float16 and bf16: z, whole runs of the sampler, losses and gradients. DDPM's tokens of random weights do not fit
    into float16."""
    for precision in ("float16", "bf16"):
        for what, difference, cfg in (
            ("z", half_precision.conditions, PATCHED),
            ("whole sampler", half_precision.sampler, PATCHED),
            ("loss and gradients", half_precision.losses, TINY),
        ):
            found = difference(code, cfg, precision)
            yield Row(f"{what}, {precision}: rounding over the official code's", found, ROUNDING)


def check_distributions(code: SimpleNamespace, runs: int = 200) -> Rows:
    """Numbers of masked tokens in training, and of tokens revealed at each step: both codes draw them their own
    way, so their distributions are compared."""
    cfg = replace(TINY, grid=6)
    torch.manual_seed(5)
    rng = np.random.default_rng(5)
    for schedule, t_min in (("exp", 0.2), ("exp", 0.0), ("cosine", 0.0), ("linear", 0.0)):
        model = oracle.build(code, cfg, mask_strategy=schedule, clamp_t_min=t_min)
        masks = (model.random_masking(torch.zeros(1, cfg.tokens, 1))[0] for _ in range(10 * runs))
        theirs = np.array([int(mask.sum()) for mask in masks])
        ours = np.array([schedules.draw_mask_count(schedule, t_min, cfg.tokens, rng)[1] for _ in range(30 * runs)])
        yield Row(f"distribution of the masked tokens, {schedule}, t_min {t_min:g}: KS", ks_distance(ours, theirs), KS)

    for schedule in schedules.SCHEDULES:
        for steps in (12, 36):  # at 36, as many as tokens, the rule of at least one decides most steps
            model, _, counts = oracle.without_networks(code, cfg, mask_strategy=schedule)
            theirs = np.zeros((runs, steps), dtype=int)
            for run in range(runs):
                counts.clear()
                with contextlib.redirect_stdout(io.StringIO()):  # it says so when the tokens run out
                    model.sample_tokens(1, steps)
                theirs[run, : len(counts)] = counts
            ours = np.array([schedules.reveal_counts(schedule, steps, cfg.tokens, rng) for _ in range(20 * runs)])
            off = theirs.mean(axis=0) - schedules.expected_reveal_counts(schedule, steps, cfg.tokens)
            # Where a step is all but certain, a single rare event must not count as a deviation of many errors.
            error = np.maximum(ours.std(axis=0, ddof=1), runs**-0.5) / runs**0.5
            name = f"distribution of the reveal counts, {schedule}, N {steps}"
            yield Row(f"{name}: mean, in standard errors", float(np.abs(off / error).max()), SIGMAS)
            yield Row(f"{name}: KS", worst(ks_distance(ours[:, i], theirs[:, i]) for i in range(steps)), KS)


def check_nfe(code: SimpleNamespace) -> Rows:
    """Passes of the network for an image at the nine models' budgets, counted in the official loop."""
    torch.manual_seed(7)
    for models, (steps, (low, high)) in BUDGETS.items():
        model, passes, _ = oracle.without_networks(code, replace(TINY, grid=16), cfg_t_min=low, cfg_t_max=high)
        model.sample_tokens(1, steps, cfg=4.0, labels=torch.tensor([0]))
        difference = abs(sum(passes) - schedules.nfe(steps, 4.0, (low, high)))
        yield Row(f"NFE of {models}: N {steps}, ({low:g}, {high:g}], {sum(passes)} passes", difference, 0)


def check_training(code: SimpleNamespace) -> Rows:
    """Learning rates, parameter groups, and five steps of both training loops on the same draws."""
    for schedule, warmup in (("constant", 20), ("cosine", 20), ("cosine", 0)):
        cfg = TrainConfig(100, 1, 8e-4, lr_schedule=schedule, warmup_steps=warmup)
        recipe = SimpleNamespace(lr=8e-4, min_lr=0.0, lr_schedule=schedule, warmup_epochs=warmup / 10, epochs=10)
        rate, optimizer = code.lr_sched.adjust_learning_rate, SimpleNamespace(param_groups=[])
        theirs = [rate(optimizer, step / 10, recipe) for step in range(100)]
        ours = [training.learning_rate(cfg, step) for step in range(100)]
        difference = relative(torch.tensor(ours), torch.tensor(theirs))
        yield Row(f"learning rate, {schedule}, warm-up {warmup} of 100 steps", difference, FLOAT32)

    wrong = 0
    for change in VARIANTS.values():
        ours, theirs = oracle.pair(code, replace(TINY, **change), 9)
        decayed = []
        for model, groups in (
            (ours, training.parameter_groups(ours, 0.02)),
            (theirs, code.misc.add_weight_decay(theirs, 0.02)),
        ):
            names = {id(p): official_name(name) for name, p in model.named_parameters()}
            decayed.append({(names[id(p)], group["weight_decay"]) for group in groups for p in group["params"]})
        wrong += len(decayed[0] ^ decayed[1])
    yield Row("weight decay: parameters of another group", wrong, 0)

    for precision, tolerance, context in precisions(code):
        with context():
            yield from train_both(code, precision, tolerance)


def train_both(code: SimpleNamespace, precision: str, tolerance: float) -> Rows:
    """Five steps, with warm-up, every gradient clipped, and an EMA fast enough to tell from the weights."""
    batch, drop = 6, 0.3
    cfg = TrainConfig(5, batch, 1e-3, warmup_steps=2, grad_clip=0.5, ema=0.8, label_dropout=drop)
    ours, theirs = oracle.pair(code, TINY, 10, clamp_t_min=cfg.t_min, label_drop_prob=drop)
    latents, labels = torch.randn(batch, TINY.channels, TINY.grid, TINY.grid), np.arange(batch) % TINY.classes
    order = (batch_indices(step, batch, batch, 0) for step in range(cfg.steps))
    batches = [(latents[i], torch.from_numpy(labels[i])) for i in order]
    average, draws, norms = oracle.train_epoch(code, theirs, TINY, cfg, batches)
    assert min(norms) > cfg.grad_clip, "the clip has to act"
    with (
        mock.patch.object(training, "EMIGM", lambda _: ours),
        mock.patch.object(training, "draw_training", mock.Mock(side_effect=draws)),
        tempfile.TemporaryDirectory() as folder,
    ):
        run = {"seed": 0, "state_folder": Path(folder), "data_id": "-"}
        images = training.TrainingImages(labels, 1, lambda index, _: latents[index], read_ahead=False)
        result = training.train(TINY, cfg, images, Pixels(1.0), **run)

    names = [name for name, _ in theirs.named_parameters()]
    for what, mine, wanted in (
        ("weights", dict(ours.named_parameters()), theirs.parameters()),
        ("EMA", result.ema, average),
    ):
        mine = {official_name(name): p.detach() for name, p in mine.items()}
        differences = []
        for name, p in zip(names, wanted, strict=True):
            kept = torch.ones_like(p)
            if name.endswith("qkv.bias") and precision == "float32":
                # A key's bias has no effect: its gradient is rounding, which AdamW scales up.
                kept[TINY.width : 2 * TINY.width] = 0
            differences.append(relative(kept * mine[name], kept * p.detach()))
        yield Row(f"{what} after 5 training steps, {precision}", worst(differences), tolerance)


@torch.no_grad()
def check_checkpoint(code: SimpleNamespace) -> Rows:
    """A file the official code saved, imported: z against the model its evaluation makes of that file."""
    for what, change in VARIANTS.items():
        cfg = replace(TINY, **change)
        _, theirs = oracle.pair(code, cfg, 12)
        average = [p + 0.02 * torch.randn_like(p) for p in theirs.parameters()]
        with tempfile.TemporaryDirectory() as folder:
            path, evaluated = oracle.save_checkpoint(code, theirs, average, Path(folder))
            import_official(path, Path(folder) / "model", cfg)
            ours = load_model(Path(folder) / "model")
        differences = [condition_difference(ours, evaluated, masked, fake) for masked in (16, 8) for fake in (0, 1)]
        yield Row(f"z of an official checkpoint{what}, float32", worst(differences), FLOAT32)


CHECKS = (
    check_architectures, check_initialisation, check_conditions, check_real_size, check_loss, check_solvers,
    check_sampler, check_half_precision, check_distributions, check_nfe, check_training, check_checkpoint,
)  # fmt: skip


def run_parity(official: str | Path) -> list[Row]:
    """All comparisons with the official code in the clone `official`; takes a minute or two on a CPU.

    Raises:
        ConfigError: the folder is no clone of it, or a package it needs is missing.
    """
    with oracle.official_code(official) as code:
        return [row for check in CHECKS for row in check(code)]


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
