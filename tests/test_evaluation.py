"""The stages extractor, reference and evaluate on a tiny benchmark: scores, shared work, resuming, records."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stored import in_processes, write_latents, write_samples

from emigm.autoencoders.autoencoder import load_autoencoder
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import parse
from emigm.data.images import load_split, save_images
from emigm.data.samples import SampleSet
from emigm.metrics import measuring
from emigm.metrics.baselines import neighbour_ratios, shuffle_sources, subset_fid
from emigm.metrics.features import Features
from emigm.metrics.real_images import stored_reference
from emigm.metrics.scores import fid, load_reference, reference_of
from emigm.records.record import read_record
from emigm.records.summary import summaries
from emigm.stages.evaluate import evaluate
from emigm.stages.extractor import make_extractor
from emigm.stages.reference import make_reference

TREE = {
    "name": "tiny", "images_of": "tiny",
    "title": "Tiny digits",
    "dry_run": True,
    "sizes": ["xs"],
    "budgets": ["4", "16"],
    "data": {"dataset": "digits", "holdout": 0.2},
    "autoencoder": {"kind": "pixels", "scale": 1.3},
    "extractor": {"kind": "cnn", "training": {"steps": 40, "batch": 128, "lr": 0.001, "seed": 0}},
    "run": {"device": "cpu", "score_batch": 32},
    "evaluation": {"images": 70, "seeds": [0, 1], "chunk": 30, "kid_subset": 50},
    "gate": {"visible": [0, 8], "on_failure": "mark"},
    "model": {
        "grid": 8, "channels": 1, "patch": 2, "classes": 10, "heads": 2,
        "width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "head_width": 8, "head_blocks": 1,
    },
    "train": {"steps": 2, "batch": 8, "lr": 0.001, "seeds": [0, 1]},
    "ladder": {"xs": {}},
    "sampling": {b: {"settings": {"steps": int(b), "solver_steps": 8}} for b in ("4", "16")},
}  # fmt: skip
CHUNKS = 2 * 2 * 2 * 3
"""Budgets, training seeds, sampling seeds, chunks of one run."""


def benchmark(**changes) -> Benchmark:
    tree = TREE | {k: TREE[k] | v if isinstance(v, dict) else v for k, v in changes.items()}
    return parse(Benchmark, tree, "benchmark")


def write_run(budget: str, train_seed: int, seed: int, pixels, labels) -> Path:
    """What the sample stage leaves of one training and one sampling seed."""
    folder = Path("samples/tiny/xs") / budget / f"train{train_seed}-seed{seed}"
    facts = {"benchmark": "tiny", "size": "xs", "budget": budget, "train_seed": train_seed, "seed": seed}
    write_samples(folder, pixels, labels, 30, **facts)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A working directory in which everything before evaluate has run; images are real ones with noise."""
    folder = tmp_path_factory.mktemp("tiny")
    here = Path.cwd()
    os.chdir(folder)
    try:
        cfg = benchmark()
        split = load_split(cfg.data)
        for part, (pixels, labels) in split.items():
            save_images(Path("data/tiny/images") / f"{part}.npz", pixels, labels)
            raw = load_autoencoder(cfg.autoencoder).encode(torch.from_numpy(pixels))[:, None].numpy()
            write_latents(Path("data/tiny/latents") / part, raw, labels, {})
        make_extractor(cfg)
        make_reference(cfg)
        rng = np.random.default_rng(0)
        for budget, t, seed in [(b, t, s) for b in ("4", "16") for t in (0, 1) for s in (0, 1)]:
            chosen = rng.choice(len(split["train"][0]), 70, replace=False)
            pixels = split["train"][0][chosen] // 2 + rng.integers(0, 100, (70, 1, 8, 8), dtype=np.uint8)
            write_run(budget, t, seed, pixels, split["train"][1][chosen])
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def workspace(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    yield prepared
    assert not (prepared / ".state/tiny/evaluate-xs").exists(), "evaluate left its resume state"


def record(stage: str) -> dict:
    return read_record(f"results/tiny/records/{stage}.json")


@pytest.fixture(scope="module")
def alone(prepared):
    """The evaluate record of one process."""
    here = Path.cwd()
    os.chdir(prepared)
    try:
        evaluate(benchmark(), "xs")
        return record("evaluate-xs")
    finally:
        os.chdir(here)


def test_every_run_is_scored(alone):
    assert set(alone["results"]) == {"4", "16"}
    for cell in alone["results"].values():
        assert [(r["train_seed"], r["sample_seed"]) for r in cell["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for run in cell["runs"]:
            assert run["clean_fid"] is None
            assert 0 <= run["precision"] <= 1 and 0 <= run["recall"] <= 1 and 1 <= run["isc"] <= 10
            assert run["label_accuracy"] > 0.3 and min(run["nearest_train"], run["nearest_holdout"]) > 0
        for run, by_images in zip(cell["runs"], cell["fid_by_images"], strict=True):
            assert by_images == {k: run[k] for k in ("train_seed", "sample_seed")} | {"fid": by_images["fid"]}
            assert by_images["fid"] == {"70": run["fid"]}  # halves have fewer images than features
    settings = alone["settings"]
    assert settings["images"] == 70 and settings["reference_source"]["kind"] == "training images"


def test_scores_are_those_of_all_images_at_once(workspace, alone):
    from emigm.metrics.features import load_extractor

    pixels, _ = SampleSet("samples/tiny/xs/4/train0-seed1", 70).all()
    extract = load_extractor(benchmark().extractor, Path("data/tiny/extractor"))
    expected = fid(extract(pixels), load_reference(Path("data/tiny/reference.npz")))
    assert alone["results"]["4"]["runs"][1]["fid"] == pytest.approx(expected, rel=1e-4)


def test_the_extractor_s_identity_is_its_file_s_checksum(workspace, alone):
    checksum = record("extractor")["results"]["sha256"]
    assert alone["settings"]["extractor_identity"] == {"kind": "cnn", "sha256": checksum}


def test_a_killed_evaluation_measures_only_what_is_missing(workspace, alone, monkeypatch):
    measured, original = [], measuring.write_arrays

    def killed_after_five(path, **arrays):
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(path)
        original(path, **arrays)

    monkeypatch.setattr(measuring, "write_arrays", killed_after_five)
    with pytest.raises(KeyboardInterrupt):
        evaluate(benchmark(), "xs")
    before = {p: p.stat().st_mtime_ns for p in measured}
    monkeypatch.setattr(measuring, "write_arrays", lambda p, **found: (measured.append(p), original(p, **found)))
    monkeypatch.setattr("emigm.stages.context.StageRun.clean", lambda run: None)
    evaluate(benchmark(), "xs")
    assert len(measured) == len(set(measured)) == CHUNKS
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert record("evaluate-xs")["results"] == alone["results"]
    monkeypatch.undo()
    shutil.rmtree(workspace / ".state/tiny/evaluate-xs")


def reference_and_evaluate() -> None:
    make_reference(benchmark())
    evaluate(benchmark(), "xs")


def test_two_processes_give_the_same_records_bit_for_bit(workspace, alone):
    statistics, results = Path("data/tiny/reference.npz").read_bytes(), record("reference")["results"]
    assert in_processes(2, reference_and_evaluate) == [0, 0]
    together = record("evaluate-xs")
    assert together["results"] == alone["results"]
    assert Path("data/tiny/reference.npz").read_bytes() == statistics and record("reference")["results"] == results
    assert together["processes"] == 2 and alone["processes"] == 1


def test_changed_samples_are_measured_anew(workspace, alone):
    pixels, labels = SampleSet("samples/tiny/xs/4/train0-seed0", 70).all()
    write_run("4", 0, 0, pixels // 2, labels)
    evaluate(benchmark(), "xs")
    write_run("4", 0, 0, pixels, labels)
    runs = record("evaluate-xs")["results"]["4"]["runs"]
    assert runs[0]["fid"] != alone["results"]["4"]["runs"][0]["fid"] and runs[1:] == alone["results"]["4"]["runs"][1:]


def test_missing_samples_and_a_missing_reference_are_named(workspace):
    with pytest.raises(ConfigError, match="holds 70 images without a gap"):
        evaluate(benchmark(evaluation={"images": 80}), "xs")
    with pytest.raises(ConfigError, match="train2-seed0: no such folder; the sample stage has not run"):
        evaluate(benchmark(train={"seeds": [2]}), "xs")
    reference = Path("data/tiny/reference.npz")
    reference.rename("moved.npz")
    try:
        with pytest.raises(ConfigError, match=r"reference\.npz: no such file; the reference stage has not run"):
            evaluate(benchmark(), "xs")
    finally:
        Path("moved.npz").rename(reference)


def test_the_reference_of_training_images_has_its_baselines_at_the_number_of_scored_images(workspace):
    results = record("reference")["results"]
    assert results["source"] == {"kind": "training images", "feature_images": 1438}
    assert results["real"]["images"] == 1438
    baselines = results["baselines"]
    assert {name: b["images"] for name, b in baselines.items()} == dict.fromkeys(
        ("holdout", "train_subset", "class_shuffle"), 70
    )
    subsets = baselines["train_subset"]["fid"]["values"]
    assert len(subsets) == 5 and min(subsets) > 0
    assert results["nearest"]["holdout_to_train"] > 0
    assert np.mean(results["nearest"]["real_ratio"]["values"]) == pytest.approx(1, abs=0.05)
    assert Path("results/tiny/grids/real.png").stat().st_size > 100
    assert not Path(".state/tiny/reference").exists()


def test_more_photos_than_fit_in_memory_ask_for_stored_statistics(workspace, monkeypatch):
    monkeypatch.setattr("emigm.stages.reference.MOST_PHOTOS", 1000)
    with pytest.raises(ConfigError, match=r"evaluation\.reference is missing: features of 1,438 images do not fit"):
        make_reference(benchmark())


def test_shuffled_tokens_keep_class_and_position():
    labels = np.random.default_rng(0).integers(0, 10, 200)
    sources, chosen = shuffle_sources(labels, 16, 70, 3)
    assert sources.shape == (70, 16) and (labels[sources] == labels[chosen][:, None]).all()
    full, everyone = shuffle_sources(labels, 16, 200, 3)
    assert all(np.array_equal(np.sort(column), np.arange(200)) for column in full.T)  # each token is used once
    assert np.array_equal(np.sort(everyone), np.arange(200))


def test_a_subset_shares_no_image_with_what_it_is_held_against():
    """Ten copies of one image among many others: the subset's FID would be 0 if its rest were all images."""
    pool = torch.cat([torch.zeros(10, 4), torch.randn(190, 4, generator=torch.Generator().manual_seed(0))])
    features = Features(pool, torch.zeros(200, 2))
    assert subset_fid(features, 150, 0) == pytest.approx(subset_fid(features, 100, 0))  # at most half
    order = np.random.default_rng(0).permutation(200)
    ours, rest = pool[order[:80]], pool[order[80:]]
    expected = fid(Features(ours, ours), reference_of(Features(rest, rest)))
    assert subset_fid(features, 80, 0) == pytest.approx(expected)


def test_images_that_copy_a_set_are_nearer_to_it_and_others_are_not():
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)
    ratios = neighbour_ratios(real, images=100, known=100)
    assert len(ratios) == 20 and np.mean(ratios) == pytest.approx(1, abs=0.05)
    few = neighbour_ratios(real[:30], images=100, known=100)  # ten each
    assert len(few) == 20 and np.isfinite(few).all()


def test_stored_statistics_without_images_leave_what_needs_images_unmeasured(workspace, tmp_path, alone):
    """And the record says so: no baselines, null scores, no summary of them."""
    mine = load_reference(Path("data/tiny/reference.npz"))
    stored = tmp_path / "statistics.npz"
    np.savez(stored, mu=mine.mu.astype(np.float32), sigma=mine.sigma)
    kept = {p: Path(p).read_bytes() for p in ("data/tiny/reference.npz", "results/tiny/records/reference.json")}
    cfg = benchmark(evaluation={"reference": str(stored)})
    make_reference(cfg)
    reference, evaluated = record("reference"), (evaluate(cfg, "xs"), record("evaluate-xs"))[1]
    for path, data in kept.items():
        Path(path).write_bytes(data)
    assert reference["results"]["baselines"] == {} and "real" not in reference["results"]
    source = evaluated["settings"]["reference_source"]
    assert source == reference["results"]["source"]
    assert source["file"] == "statistics.npz" and source["keys"] == ["mu", "sigma"] and source["feature_images"] is None
    cell = evaluated["results"]["4"]
    assert cell["runs"][0]["kid"] is cell["runs"][0]["recall"] is None
    assert cell["runs"][0]["fid"] == pytest.approx(alone["results"]["4"]["runs"][0]["fid"], rel=1e-5)


def test_images_beside_stored_statistics_give_the_features(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    pool = torch.from_numpy(rng.standard_normal((40, 5))).float()
    full = reference_of(Features(pool, pool))
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=full.mu, sigma=full.sigma, mu_s=full.mu)
    features = Features(pool, torch.zeros(40, 10), pool + 1)
    reference, results = stored_reference(tmp_path / "adm.npz", SimpleNamespace(width=5), features)
    assert torch.equal(reference.pool, pool) and reference.clean[0] == pytest.approx(full.mu + 1)
    assert results["source"]["feature_images"] == 40 and results["stored_images"]["fid"] == pytest.approx(0, abs=1e-6)
    assert results["stored_images"]["isc"] == pytest.approx(1) and results["baselines"] == {}


def test_a_metric_that_some_run_lacks_has_no_summary():
    runs = [{"train_seed": 0, "sample_seed": s, "fid": 1.0 + s, "kid": None if s else 1.0} for s in (0, 1)]
    assert set(summaries(runs)) == {"fid"} and summaries(runs)["fid"]["mean"] == 1.5
