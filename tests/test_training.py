"""Training: optimizer, schedule, EMA, resume, and the context gate."""

import dataclasses

import numpy as np
import pytest
import torch
from test_model import TINY, random_model

from emigm.config import GateConfig, TrainConfig
from emigm.model import EMIGM
from emigm.parsing import ConfigError, RunError
from emigm.training import (
    batch_indices,
    check_context,
    context_errors,
    context_ratio,
    learning_rate,
    parameter_groups,
    train,
    update_ema,
)

MODEL = dataclasses.replace(TINY, channels=1, classes=2, dropout=0.1)
RECIPE = TrainConfig(steps=12, batch=8, lr=1e-3, warmup_steps=2, checkpoint_every=5, lr_schedule="cosine")
LATENTS = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(32) % 2


class Killed(Exception):
    pass


def run(folder, recipe=RECIPE, *, kill_at=None, data_id="data", seed=0, latents=LATENTS):
    def on_step(step, loss):
        if step == kill_at:
            raise Killed

    return train(
        MODEL,
        recipe,
        lambda index, generator: latents[index],
        LABELS,
        seed=seed,
        state_folder=folder,
        data_id=data_id,
        on_step=on_step,
    )


def test_a_killed_run_resumes_to_the_same_weights_and_curve(tmp_path):
    whole = run(tmp_path / "a")
    with pytest.raises(Killed):
        run(tmp_path / "b", kill_at=8)
    resumed = run(tmp_path / "b")
    assert all(torch.equal(whole.ema[k], resumed.ema[k]) for k in whole.ema)
    assert whole.curve == resumed.curve


def test_resuming_goes_on_from_the_last_checkpoint_and_not_from_the_start(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=8)
    steps = []
    train(
        MODEL,
        RECIPE,
        lambda i, g: LATENTS[i],
        LABELS,
        seed=0,
        state_folder=tmp_path,
        data_id="data",
        on_step=lambda step, loss: steps.append(step),
    )
    assert steps == list(range(6, 13))


def test_a_resume_point_of_another_configuration_or_data_set_is_not_used(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=8)
    fresh = run(tmp_path / "fresh", data_id="other")
    assert all(
        torch.equal(a, b) for a, b in zip(run(tmp_path, data_id="other").ema.values(), fresh.ema.values(), strict=True)
    )


def test_a_damaged_resume_point_is_named(tmp_path):
    run(tmp_path)
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"train-.*\.pt: damaged"):
        run(tmp_path)


def test_training_seeds_differ_and_repeat(tmp_path):
    a, b, c = (run(tmp_path / n, seed=s).ema["head.input_proj.weight"] for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(RunError, match="loss is nan at step 0"):
        run(tmp_path, latents=torch.full_like(LATENTS, float("nan")))


def test_warm_up_is_linear_and_cosine_ends_near_zero():
    rates = [learning_rate(dataclasses.replace(RECIPE, steps=100, warmup_steps=10), s) for s in range(100)]
    assert rates[0] == 0 and rates[5] == pytest.approx(0.5e-3) and max(rates) == rates[10] == 1e-3
    assert rates[-1] < 1e-6 and learning_rate(dataclasses.replace(RECIPE, lr_schedule="constant"), 11) == 1e-3


def test_weight_decay_spares_biases_norms_and_the_head():
    model = EMIGM(MODEL)
    spared, decayed = parameter_groups(model, 0.02)
    assert spared["weight_decay"] == 0 and decayed["weight_decay"] == 0.02
    chosen = {id(p) for p in decayed["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in chosen}
    assert "backbone.class_emb.weight" in names and "backbone.encoder_blocks.0.attn.qkv.weight" in names
    assert not any(n.endswith(".bias") or n.startswith("head.") or ".norm" in n for n in names)
    assert len(spared["params"]) + len(decayed["params"]) == len(list(model.parameters()))


def test_ema_is_the_exponential_average():
    ema, new = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, -2.0])]
    update_ema(ema, new, 0.9)
    assert torch.allclose(ema[0], torch.tensor([1.2, 1.6]))


def test_epochs_are_permutations_that_depend_on_the_seed():
    epoch = np.concatenate([batch_indices(step, 32, 8, seed=0) for step in range(4)])
    assert sorted(epoch) == list(range(32))
    assert not np.array_equal(batch_indices(0, 32, 8, 0), batch_indices(4, 32, 8, 0))
    assert not np.array_equal(batch_indices(0, 32, 8, 0), batch_indices(0, 32, 8, 1))
    with pytest.raises(ConfigError, match="larger than the training set"):
        batch_indices(0, 4, 8, 0)


def context_free(model: EMIGM) -> EMIGM:
    """The model with every visible token made invisible to the others: its attention adds nothing."""
    with torch.no_grad():
        for block in [*model.backbone.encoder_blocks, *model.backbone.decoder_blocks]:
            block.attn.proj.weight.zero_()
    return model


def test_the_gate_stops_a_model_that_ignores_context_and_says_why():
    errors = context_errors(
        context_free(random_model()), torch.randn(8, 3, 4, 4), torch.zeros(8, dtype=torch.int64), (0, 8, 15), seed=0
    )
    assert errors[0] == pytest.approx(errors[8], rel=1e-5) == pytest.approx(errors[15], rel=1e-5)
    with pytest.raises(RunError, match=r"digits-xs.*ignores context.*class and position"):
        check_context(errors, GateConfig(visible=(0, 8, 15)), "digits-xs")


def test_the_gate_lets_a_model_pass_that_learned_context(tmp_path):
    """Images whose tokens are all equal: one visible token tells everything."""
    level = torch.randn(512, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    latents = level.expand(512, 1, 4, 4).contiguous()
    labels = np.zeros(512, dtype=np.int64)
    cfg = dataclasses.replace(MODEL, dropout=0.0, init_std=0.5)
    recipe = TrainConfig(steps=250, batch=64, lr=3e-3, weight_decay=0.0, ema=0.98, warmup_steps=10)
    result = train(
        cfg,
        recipe,
        lambda i, g: latents[i],
        labels,
        seed=0,
        state_folder=tmp_path,
        data_id="equal",
        on_step=lambda *_: None,
    )
    model = EMIGM(cfg).eval()
    model.load_state_dict(result.ema)
    errors = context_errors(model, latents[:128], torch.zeros(128, dtype=torch.int64), (0, 4, 8), seed=0)
    assert context_ratio(errors) < 0.8
    check_context(errors, GateConfig(visible=(0, 4, 8)), "equal tokens")
