"""The pipeline's stages one after another on a benchmark whose latents are codes."""

import os
from pathlib import Path

import pytest

from emigm.config.compose import compose_benchmark
from emigm.io import sha256
from emigm.records.record import read_record
from emigm.stages.encode import encode
from emigm.stages.evaluate import evaluate
from emigm.stages.extractor import make_extractor
from emigm.stages.prepare import prepare
from emigm.stages.reference import make_reference
from emigm.stages.sample import sample
from emigm.stages.train import train_size

SMALL = (
    "benchmark.extractor.training.steps=5",
    "benchmark.train.steps=3",
    "benchmark.train.warmup_steps=1",
    "benchmark.train.seeds=[0]",
    "benchmark.gate.images=16",
    "benchmark.gate.repeats=1",
    "benchmark.evaluation.images=20",
    "benchmark.evaluation.chunk=10",
    "benchmark.evaluation.kid_subset=10",
    "benchmark.budgets=['4']",
    "benchmark.autoencoder.codebook=32",
    "benchmark.model.codebook=32",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny version of `codes`, run."""
    folder, benchmark = tmp_path_factory.mktemp("codes"), compose_benchmark("codes", SMALL, Path(__file__).parents[1])
    here = Path.cwd()
    os.chdir(folder)
    try:
        for stage in (prepare, make_extractor, encode, make_reference):
            stage(benchmark)
        for size in benchmark.sizes:
            train_size(benchmark, size)
            sample(benchmark, size, "4")
            evaluate(benchmark, size)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(scope="module")
def records(folder):
    return {p.stem: read_record(p)["results"] for p in (folder / "results/codes/records").glob("*.json")}


def test_every_stage_runs_on_codes_of_a_learned_codebook_whose_loss_is_recorded(folder, records):
    sizes = ("maskgit", "mdm")
    later = {f"{stage}-{size}" for size in sizes for stage in ("train", "evaluate")} | {f"sample-{s}-4" for s in sizes}
    assert set(records) == {"prepare", "extractor", "encode", "reference"} | later
    assert all(run["fid"] > 0 for size in sizes for run in records[f"evaluate-{size}"]["4"]["runs"])
    encoded, baselines = records["encode"], records["reference"]["baselines"]
    assert encoded["train"]["shape"] == [1, 7, 7] and encoded["train"]["codes_used"] == 32
    lost = [encoded[part]["reconstruction_rmse"] for part in ("train", "holdout")]
    assert 0 < lost[0] < 60 and lost[1] == pytest.approx(lost[0], rel=0.05)
    assert baselines["reconstruction"]["fid"]["mean"] > baselines["holdout"]["fid"]["mean"]
    weights = folder / "data" / "codes" / "latents" / "codebook.npz"
    assert list(encoded["weights_sha256"].values()) == [sha256(weights)]
    assert "unit_std" not in encoded["train"]
