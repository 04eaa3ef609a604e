"""Training: optimizer, schedule, EMA, resume, and the context gate."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_model import TINY, random_model
from torch import nn

from emigm import train as training
from emigm.autoencoders.autoencoder import KL16, Pixels
from emigm.config.errors import ConfigError, RunError
from emigm.config.schema import GateConfig, TrainConfig
from emigm.distributed import World
from emigm.gate import check_context, context_errors, context_ratio
from emigm.model.model import EMIGM
from emigm.model.precision import autocast
from emigm.train import TrainState, batch_indices, batch_views, draw_training, train_step

MODEL = replace(TINY, channels=1, classes=2, dropout=0.1)
CATEGORICAL = replace(MODEL, conditional="categorical", codebook=5)
EXACT = replace(MODEL, dropout=0.0)
"""Dropout's masks depend on the split of a batch, so what compares splits goes without."""
RECIPE = TrainConfig(steps=12, batch=8, mask_group=4, lr=1e-3, warmup_steps=2, checkpoint_every=5, lr_schedule="cosine")
FLOAT16 = replace(RECIPE, precision="float16")
MUON = replace(RECIPE, optimizer="muon", muon_lr=5e-3)
SNAPSHOTS = replace(RECIPE, snapshots=(0.25, 0.5, 2 / 3))  # after 3, 6 and 8 steps; resume points at 5, 10
LATENTS = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(32) % 2


def images(latents=LATENTS, labels=LABELS, views=1, large=False):
    """A store of latents that lie in memory as (n, views, ...), or (n, ...) for one view."""
    stored = latents if views > 1 else latents[:, None]
    return SimpleNamespace(labels=labels, views=views, large=large, rows=lambda i, v: stored[i, v])


class Killed(Exception):
    pass


def run(folder, recipe=RECIPE, data=None, *, model=MODEL, autoencoder=None, kill_at=None, **options):
    """Train on the images above; `kill_at`: stop there, as a killed process does."""

    def on_step(step):
        if step == kill_at:
            raise Killed

    options = {"seed": 0, "state_folder": folder, "data_id": "data", "on_step": on_step, **options}
    return training.train(model, recipe, images() if data is None else data, autoencoder or Pixels(1.0), **options)


def killed(folder, recipe, at=8):
    """A run that was killed after `at` steps."""
    with pytest.raises(Killed):
        run(folder, recipe, kill_at=at)


def steps_done(folder, recipe, **options):
    """After how many steps a run goes on in this folder."""
    begun = []
    run(folder, recipe, on_start=begun.append, **options)
    return begun[0]


def equal(a, b):
    """Whether two states hold the same weights bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start(cfg, seed):
    """The model a run starts from."""
    torch.manual_seed(seed)
    return EMIGM(cfg).train()


def draw(model, recipe, batch=8):
    return draw_training(model, recipe, batch, np.random.default_rng(0), torch.Generator().manual_seed(0))


# Resume points and snapshots


@pytest.mark.parametrize("recipe", [RECIPE, FLOAT16, MUON, replace(MUON, precision="float16", ema_warmup=True)],
                         ids=["float32", "float16", "muon", "muon16"])  # fmt: skip
def test_a_killed_run_resumes_at_its_last_resume_point_to_the_same_weights_and_curve(tmp_path, recipe):
    whole, begun, steps = run(tmp_path / "a", recipe), [], []
    killed(tmp_path / "b", recipe)
    resumed = run(tmp_path / "b", recipe, on_start=begun.append, on_step=steps.append)
    assert equal(whole.ema, resumed.ema) and whole.curve == resumed.curve
    assert begun == [5] and steps == list(range(6, 13))


@pytest.mark.parametrize(
    ("change", "data", "resumed"),
    [
        ({"seeds": (0, 1)}, "data", 5),
        ({"checkpoint_every": 3}, "data", 5),
        ({"lr": 2e-3}, "data", 0),
        ({"mask_group": 8}, "data", 0),
        ({"precision": "bf16"}, "data", 0),
        ({}, "other", 0),
    ],
)
def test_only_settings_and_data_that_change_the_run_discard_a_resume_point(tmp_path, change, data, resumed):
    killed(tmp_path, RECIPE)
    assert steps_done(tmp_path, replace(RECIPE, **change), data_id=data) == resumed


@pytest.fixture(scope="module")
def with_snapshots(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), SNAPSHOTS)


@pytest.mark.parametrize("kill_at", [3, 6, 7, 8, 10, 12])
def test_snapshots_are_the_same_however_a_run_was_interrupted(tmp_path, with_snapshots, kill_at):
    killed(tmp_path, SNAPSHOTS, kill_at)
    resumed = run(tmp_path, SNAPSHOTS)
    assert list(resumed.snapshots) == [3, 6, 8]
    assert all(equal(point.load(), with_snapshots.snapshots[n].load()) for n, point in resumed.snapshots.items())


def test_a_snapshot_has_the_weights_of_a_run_that_ends_there(tmp_path):
    constant = replace(RECIPE, lr_schedule="constant")  # whose shorter run is the start of a longer one
    short = run(tmp_path / "short", replace(constant, steps=6))
    long = run(tmp_path / "long", replace(constant, snapshots=(0.5,)))
    assert equal(long.snapshots[6].load(), short.ema)


def test_a_run_starts_over_where_a_snapshot_of_its_past_is_missing_and_ends_where_a_resume_point_is_damaged(tmp_path):
    killed(tmp_path, RECIPE)  # a resume point at 5, none of its past kept
    assert steps_done(tmp_path, SNAPSHOTS) == 0
    assert all(point.exists() for point in run(tmp_path, SNAPSHOTS).snapshots.values())
    for file in tmp_path.rglob("*.pt"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"train-.*\.pt: damaged"):
        run(tmp_path, SNAPSHOTS)


def test_loss_that_is_not_finite_ends_the_run_before_anything_of_it_is_saved(tmp_path):
    with pytest.raises(RunError, match="loss is nan at step 0"):
        run(tmp_path, data=images(torch.full_like(LATENTS, float("nan"))))
    assert not list(tmp_path.rglob("*.pt"))
    good, steps = images(), []

    def rows(index, view):
        steps.append(1)
        return good.rows(index, view) * (float("nan") if len(steps) == 7 else 1)

    with pytest.raises(RunError, match="loss is nan at step 6 of seed 0"):
        run(tmp_path, SNAPSHOTS, data=SimpleNamespace(**{**vars(good), "rows": rows}))
    kept = [re.search(r"snapshot\d|$", str(p.relative_to(tmp_path)))[0] for p in tmp_path.rglob("*.pt")]
    assert sorted(kept) == ["", "snapshot3", "snapshot6"]  # at the one after 8 steps it was seen
    assert steps_done(tmp_path, SNAPSHOTS) == 5


def test_weights_that_the_last_step_made_infinite_end_the_run(tmp_path, monkeypatch):
    def overflow(state, *arguments, plain=training.train_step):
        outcome = plain(state, *arguments)
        next(iter(state.ema.values())).fill_(float("inf"))
        return outcome

    monkeypatch.setattr(training, "train_step", overflow)
    with pytest.raises(RunError, match=r"weights of seed 0 are NaN or infinite after 1 steps; lower train\.lr"):
        run(tmp_path, replace(RECIPE, steps=1, warmup_steps=0))


# Rates, averages and optimizers


@pytest.mark.parametrize(
    ("ema", "warmup", "share"),
    [
        (0.9, False, 0.9**20),
        (0.99, True, np.prod([(1 + s) / (10 + s) for s in range(1, 21)])),
        (0.6, True, np.prod([(1 + s) / (10 + s) for s in range(1, 13)]) * 0.6**8),  # 14/23 is the first above 0.6
    ],
)
def test_the_average_holds_the_initial_weights_by_the_product_of_the_decays(ema, warmup, share):
    """Under parameters that do not move, in training at a vanishing rate."""
    cfg = replace(RECIPE, steps=20, lr=1e-12, weight_decay=0.0, ema=ema, ema_warmup=warmup)
    state = TrainState.initial(EXACT, cfg, seed=0)
    state.ema = {name: p + 1 for name, p in state.ema.items()}
    for step in range(20):
        train_step(state, cfg, Pixels(1.0), LATENTS[:8], torch.from_numpy(LABELS[:8]), step, seed=0)
    for held, p in zip(state.ema.values(), state.parameters, strict=True):
        assert torch.allclose(held - p, torch.full_like(p, float(share)), atol=1e-5)


@pytest.mark.parametrize("model", [MODEL, CATEGORICAL], ids=["diffusion", "categorical"])
def test_muon_takes_the_matrices_of_hidden_layers_adamw_all_else_and_each_parameter_one_group(model):
    model = EMIGM(model)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = training.make_optimizer(model, replace(MUON, weight_decay=0.3))
    muon, adamw = ([names[id(p)] for g in part.param_groups for p in g["params"]] for part in optimizer.parts)
    assert sorted(muon + adamw) == sorted(names.values())
    backbone = {f"backbone.{n}" for n in ("encoder_blocks", "decoder_embed", "decoder_blocks")}
    hidden = {".".join(name.split(".")[:2]) for name in muon}
    assert hidden == backbone | {"head.cond_embed", "head.res_blocks"}
    left = [n for n in adamw if n.startswith(tuple(hidden)) and not n.endswith(".bias")]
    assert all("norm" in n or "ln" in n or n.split(".")[3:] == ["0", "weight"] for n in left)
    decays = {names[id(p)]: (g["weight_decay"], g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    assert decays["backbone.decoder_embed.weight"] == (0.3, 5e-3) and decays["head.cond_embed.weight"] == (0, 5e-3)
    assert decays["backbone.class_emb.weight"] == (0.3, 1e-3) and decays["head.cond_embed.bias"] == (0, 1e-3)


def test_a_step_that_overflows_is_skipped_by_both_optimizers_and_others_are_at_one_factor_of_their_rates():
    state = TrainState.initial(MODEL, MUON, seed=0)
    before, scaler = [p.detach().clone() for p in state.parameters], torch.amp.GradScaler("cpu")
    for overflows in (True, False):
        scaler.scale(torch.ones(()))  # which makes the scale
        for p in state.parameters:
            p.grad = torch.ones_like(p)
        if overflows:
            state.model.backbone.class_emb.weight.grad[0, 0] = float("inf")  # AdamW's
        scaler.unscale_(state.optimizer)
        scaler.step(state.optimizer)
        scaler.update()
        assert all(torch.equal(a, b) == overflows for a, b in zip(before, state.parameters, strict=True))
    train_step(state, MUON, Pixels(1.0), LATENTS[:8], torch.from_numpy(LABELS[:8]), 1, seed=0)  # the warm-up has two
    assert [{group["lr"] for group in part.param_groups} for part in state.optimizer.parts] == [{2.5e-3}, {5e-4}]


# Batches


def test_epochs_are_permutations_that_depend_on_the_seed_and_processes_share_each_batch():
    epoch = np.concatenate([batch_indices(step, 32, 8, seed=0) for step in range(4)])
    assert sorted(epoch) == list(range(32))
    for step, seed in ((4, 0), (0, 1)):
        assert not np.array_equal(batch_indices(0, 32, 8, 0), batch_indices(step, 32, 8, seed))
    with pytest.raises(ConfigError, match="larger than the training set"):
        batch_indices(0, 4, 8, 0)
    for size in (1, 2, 4):
        shares = [training.batch_share(8, World(rank, size, "cpu")) for rank in range(size)]
        assert np.concatenate([np.arange(8)[s] for s in shares]).tolist() == list(range(8))
    with pytest.raises(ConfigError, match=r"train\.batch = 8 .*3 processes.*run\.launcher"):
        training.batch_share(8, World(0, 3, "cpu"))


def test_views_are_chosen_with_equal_chance_and_alike_in_every_process(tmp_path):
    views = np.concatenate([batch_views(step, 2, 64, seed=0) for step in range(40)])
    assert set(views) == {0, 1} and abs(views.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(views))
    assert np.array_equal(batch_views(3, 2, 64, seed=0), batch_views(3, 2, 64, seed=0))
    assert not np.array_equal(batch_views(3, 2, 64, seed=0), batch_views(4, 2, 64, seed=0))
    assert (batch_views(3, 1, 64, seed=0) == 0).all()
    seen = []  # a flip is trained on where there is one
    data = images(LATENTS[:, None].expand(-1, 2, -1, -1, -1), views=2)
    rows, data.rows = data.rows, lambda i, v: seen.append(v) or rows(i, v)
    run(tmp_path, data=data)
    assert set(np.concatenate(seen)) == {0, 1}


@pytest.mark.parametrize(
    ("rows", "group", "most"),
    [(slice(0, 8), 8, 3), (slice(8, 16), 4, 8), (slice(4, 9), 8, 1), (slice(0, 8), 8, None), (slice(4, 12), 8, None)],
)
def test_micro_batches_cover_the_share_within_groups_and_keep_below_their_limit(rows, group, most):
    parts = training.micro_batches(rows, group, most)
    assert np.concatenate([np.arange(20)[p] for p in parts]).tolist() == list(range(rows.start, rows.stop))
    assert all(p.stop - p.start <= (most or group) and p.start // group == (p.stop - 1) // group for p in parts)


@pytest.mark.parametrize(("mae", "weight"), [(True, "one"), (True, "elbo"), (False, "elbo")])
def test_any_split_of_a_batch_of_groups_trains_alike(tmp_path, mae, weight):
    model, recipe = replace(EXACT, mae=mae), replace(RECIPE, weight=weight)
    whole = run(tmp_path / "a", recipe, model=model)
    for most in (1, 3):
        parts = run(tmp_path / str(most), recipe, model=model, micro_batch=most)
        assert dict(parts.curve) == pytest.approx(dict(whole.curve), rel=1e-5)
        assert all(torch.allclose(whole.ema[k], parts.ema[k], atol=1e-5) for k in whole.ema)


@pytest.fixture
def clipped(monkeypatch):
    """[(gradients, norm) of every step], as they come to be clipped."""
    kept, clip = [], torch.nn.utils.clip_grad_norm_

    def keep(parameters, limit):
        gradients = [p.grad.clone() for p in parameters]
        kept.append((gradients, clip(parameters, limit)))
        return kept[-1][1]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    return kept


def test_every_group_has_its_masking_time_and_loss_and_gradients_are_the_means_of_the_groups(
    tmp_path, monkeypatch, clipped
):
    """As the official code: a mean over the masked tokens of each GPU, whose gradients are then averaged."""
    recipe = replace(RECIPE, mask_group=2, steps=1, warmup_steps=0, label_dropout=0.0, grad_clip=1e6)
    drawn, counts = [], []
    monkeypatch.setattr(training, "draw_training", lambda *a: drawn.append(draw_training(*a)) or drawn[-1])
    for seed in range(4):
        drawn.clear()
        result, model = run(tmp_path / str(seed), recipe, model=EXACT, seed=seed), start(EXACT, seed)
        losses = []
        for group, d in zip(torch.from_numpy(batch_indices(0, 32, 8, seed)).split(2), drawn, strict=True):
            losses.append(model.token_losses(LATENTS[group], torch.from_numpy(LABELS)[group], d)[0].mean())
        torch.stack(losses).mean().backward()
        assert result.curve == [(1, pytest.approx(torch.stack(losses).mean().item(), rel=1e-5))]
        for p, gradient in zip(model.parameters(), clipped[-1][0], strict=True):
            torch.testing.assert_close(gradient, p.grad, rtol=1e-4, atol=1e-6)
        counts += [set(d.counts.tolist()) for d in drawn]
    assert all(len(count) == 1 for count in counts) and len(set.union(*counts[:4])) > 1


@pytest.mark.parametrize(
    ("mae", "mask_times", "shared"),
    [(True, "auto", True), (True, "group", True), (False, "auto", False), (False, "image", False),
     (False, "group", True)],
)  # fmt: skip
@pytest.mark.parametrize("masking", ["independent", "exact_count", "truncated_normal"])
def test_masking_times_are_a_groups_or_an_images(mae, mask_times, shared, masking):
    model = replace(MODEL, mae=mae)
    recipe = TrainConfig(steps=1, batch=64, lr=1e-3, masking=masking, mask_times=mask_times)
    drawn = draw(model, recipe, 64)
    assert (len(set(drawn.counts.tolist())) == 1) == shared and len(drawn.rows) == drawn.counts.sum()
    if not mae:
        assert EMIGM(model)(LATENTS.repeat(2, 1, 1, 1), torch.from_numpy(LABELS).repeat(2), drawn).isfinite()
    elif masking == "independent":  # the default draws what it always drew
        auto = draw(model, replace(recipe, mask_times="auto"), 64)
        assert torch.equal(auto.rows, drawn.rows) and torch.equal(auto.noise, drawn.noise)


def test_the_elbos_weight_is_that_of_the_groups_time_where_images_share_one():
    recipe = TrainConfig(steps=1, batch=8, lr=1e-3, weight="elbo", mask_times="group", schedule="log-exp")
    a, b = (draw(model, recipe).weight for model in (MODEL, replace(MODEL, mae=False)))
    assert torch.equal(a, b) and len(set(b.tolist())) == 1


def test_reading_ahead_changes_nothing_and_seeds_do(tmp_path):
    first, again = run(tmp_path / "a"), run(tmp_path / "b", data=images(large=True))
    assert first.curve == again.curve and equal(first.ema, again.ema)
    assert not equal(first.ema, run(tmp_path / "c", seed=1).ema)


def test_a_failed_read_in_a_thread_ends_the_run(tmp_path):
    def gone(index, view):
        raise ConfigError("latents-00000.npy: gone")

    with pytest.raises(ConfigError, match="gone"):
        run(tmp_path, data=SimpleNamespace(**{**vars(images(large=True)), "rows": gone}))


def test_noise_of_a_posterior_is_drawn_anew_at_every_step_and_repeats(tmp_path):
    raw, drawn = torch.cat([LATENTS, torch.zeros_like(LATENTS)], dim=1), []

    class Spy(KL16):
        def sample(self, raw, generator=None, *, noise=None):
            drawn.append(noise)
            return super().sample(raw, generator, noise=noise)

    curves = [run(tmp_path / n, data=images(raw), autoencoder=Spy(nn.Identity(), 1.0)).curve for n in "ab"]
    groups = RECIPE.batch // RECIPE.mask_group
    assert curves[0] == curves[1] and len(drawn) == 2 * groups * RECIPE.steps
    assert torch.equal(drawn[0], drawn[groups * RECIPE.steps]) and not torch.equal(drawn[0], drawn[1])
    assert torch.stack(drawn).std().item() == pytest.approx(1, abs=0.05)


# Half precision


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("float16", 0.005)])
def test_half_precision_keeps_weights_and_loss_in_float32_and_trains_alike(tmp_path, clipped, precision, tolerance):
    exact, rounded = run(tmp_path / "a"), run(tmp_path / "b", replace(RECIPE, precision=precision))
    assert all(t.dtype == torch.float32 for t in rounded.ema.values()) and rounded.curve != exact.curve
    assert dict(rounded.curve) == pytest.approx(dict(exact.curve), rel=tolerance)
    assert exact.skipped == 0 and rounded.skipped <= 2 * (precision == "float16")  # until the scale has come down
    with autocast(precision, "cpu"):
        losses = random_model(MODEL).token_losses(LATENTS[:8], torch.from_numpy(LABELS[:8]), draw(MODEL, RECIPE))
    assert {loss.dtype for loss in losses} == {torch.float32}
    norms = torch.stack([norm for _, norm in clipped]).view(2, -1)  # of gradients that are unscaled before they are
    kept = norms[1].isfinite()  # the others are those of steps that are skipped
    assert kept.sum() >= RECIPE.steps - 2 and torch.allclose(*norms[:, kept], rtol=0.05)


def test_a_step_whose_gradients_overflow_is_skipped_and_counted(tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    # The loss times 2^40 does not fit into float16; halved so often that it does, training goes on.
    large = lambda kind, enabled: scaler(kind, init_scale=2.0**40, enabled=enabled)  # noqa: E731
    monkeypatch.setattr(torch.amp, "GradScaler", large)
    recipe = replace(FLOAT16, steps=40, label_dropout=0.0)
    started, result = start(MODEL, 0), run(tmp_path / "a", recipe)
    assert 5 <= result.skipped < 40
    assert any(not torch.equal(p, result.ema[name]) for name, p in started.named_parameters())
    killed(tmp_path / "b", recipe, 23)
    assert run(tmp_path / "b", recipe).skipped == result.skipped  # those before the kill are counted too


# The gate


def test_the_gate_stops_a_model_that_ignores_context_and_says_why():
    model, latents, labels = random_model(), torch.randn(8, 3, 4, 4), torch.zeros(8, dtype=torch.int64)
    once, twice = (context_errors(model, latents, labels, visible, seed=0) for visible in ((0, 8), (0, 0, 8)))
    assert once == twice  # a number of visible tokens asked for twice changes no error
    with torch.no_grad():  # attention adds nothing: no visible token is seen by the others
        for block in [*model.backbone.encoder_blocks, *model.backbone.decoder_blocks]:
            block.attn.proj.weight.zero_()
    errors = context_errors(model, latents, labels, (0, 8, 15), seed=0)
    assert errors[0] == pytest.approx(errors[8], rel=1e-5) == pytest.approx(errors[15], rel=1e-5)
    with pytest.raises(RunError, match=r"digits-xs.*ignores context.*class and position"):
        check_context(errors, GateConfig(visible=(0, 8, 15)), "digits-xs")


def test_the_gate_lets_a_model_pass_that_learned_context(tmp_path):
    """Images whose tokens are all equal: one visible token tells everything."""
    level = torch.randn(512, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    latents, cfg = level.expand(512, 1, 4, 4).contiguous(), replace(EXACT, init_std=0.5)
    recipe = TrainConfig(steps=250, batch=64, lr=3e-3, weight_decay=0.0, ema=0.98, warmup_steps=10)
    result = run(tmp_path, recipe, images(latents, np.zeros(512, dtype=np.int64)), model=cfg)
    model = EMIGM(cfg).eval()
    model.load_state_dict(result.ema)
    errors = context_errors(model, latents[:128], torch.zeros(128, dtype=torch.int64), (0, 4, 8), seed=0)
    assert context_ratio(errors) < 0.8
    check_context(errors, GateConfig(visible=(0, 4, 8)), "equal tokens")
