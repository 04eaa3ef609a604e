"""FID along training: snapshots as model folders, and their stage."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from stored import record

from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.flops import mean_training_step
from emigm.model.model import load_model, read_model_config
from emigm.stages.encode import encode
from emigm.stages.evaluate import evaluate
from emigm.stages.extractor import make_extractor
from emigm.stages.prepare import prepare
from emigm.stages.reference import make_reference
from emigm.stages.sample import sample
from emigm.stages.snapshots import score_snapshots
from emigm.stages.train import train_size

REPO = Path(__file__).parents[1]
CHANGES = {"extractor.training.steps": 5, "train.steps": 8, "train.warmup_steps": 1, "train.snapshots": [0.25, 0.5]}
CHANGES |= {"evaluation.images": 60, "evaluation.snapshots": "{budget: '4', images: 60}"}
SMALL = [f"benchmark.{key}={value}" for key, value in CHANGES.items()]


def test_training_leaves_snapshots_and_their_costs_and_they_are_scored_as_the_final_weights_are(tmp_path, monkeypatch):
    trained = compose_benchmark("smoke", SMALL, REPO)
    monkeypatch.chdir(tmp_path)
    for stage in (prepare, make_extractor, encode, make_reference):
        stage(trained)
    train_size(trained, "xs")
    models = [Path("models/smoke/xs/seed0", name) for name in ("snapshot-2", "snapshot-4", ".")]
    weights = [load_model(m, expect=trained.model_config("xs")).head.input_proj.weight for m in models]
    assert [read_model_config(m)[1]["steps"] for m in models] == [2, 4, 8]
    assert not any(np.array_equal(a, b) for a, b in itertools.pairwise(weights))
    flops = mean_training_step(trained.model_config("xs"), trained.train_config("xs"))
    costs = [{"step": n, "images": 64 * n, "flops": flops * n} for n in (2, 4)]
    assert record("smoke", "train-xs")["results"]["snapshots"] == costs
    assert not Path(".state/smoke/train-xs").exists()

    score_snapshots(trained, "xs")
    sample(trained, "xs", "4")
    evaluate(trained, "xs")
    points, scored = (record("smoke", f"{stage}-xs")["results"] for stage in ("snapshots", "evaluate"))
    points = points["points"]
    assert [p["step"] for p in points] == [2, 4, 8]
    for mine, other in zip(points[-1]["runs"], scored["4"]["runs"], strict=True):
        assert (mine["train_seed"], mine["sample_seed"]) == (other["train_seed"], other["sample_seed"])
        assert mine["fid"] == pytest.approx(other["fid"], rel=1e-6)  # the same images
    assert points[0]["runs"][0]["fid"] != points[1]["runs"][0]["fid"]
    assert not Path(".state/smoke/snapshots-xs").exists()


def test_the_stage_without_its_settings_and_an_unknown_budget_are_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.snapshots is missing"):
        score_snapshots(compose_benchmark("smoke", [*SMALL, "benchmark.evaluation.snapshots=null"], REPO), "xs")
    with pytest.raises(ConfigError, match=r"snapshots\.budget: .*99"):
        compose_benchmark("smoke", [*SMALL, "benchmark.evaluation.snapshots={budget: '99', images: 4}"], REPO)
