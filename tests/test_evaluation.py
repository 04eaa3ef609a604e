"""The stages extractor, reference and evaluate on a tiny benchmark: scores, shared work, resuming, records."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stored import record, together, write_samples

from benchmarks.faults import faults
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError, RunError
from emigm.config.parsing import parse
from emigm.data.images import load_images, load_split, save_images
from emigm.data.samples import SampleSet
from emigm.metrics import measuring
from emigm.metrics.classifier import classification_accuracy_score
from emigm.metrics.features import load_extractor
from emigm.metrics.real_images import neighbour_ratios, reconstructed, shuffle_sources, stored_reference, subset_fid
from emigm.metrics.scores import fid, load_reference, reference_of
from emigm.stages.encode import encode
from emigm.stages.evaluate import evaluate
from emigm.stages.extractor import make_extractor
from emigm.stages.reference import make_reference, save_real_grid
from emigm.stages.snapshots import score_snapshots

TREE = faults.BENCHMARK | {
    "budgets": ["4", "16"],
    "extractor": {"kind": "cnn", "training": {"steps": 40, "batch": 128, "lr": 0.001, "seeds": [0, 1]}},
    "run": {"device": "cpu", "score_batch": 32},
    "evaluation": {"images": 70, "seeds": [0, 1], "chunk": 30, "cas_steps": 30},
    "sampling": {b: {"settings": {"steps": int(b), "solver_steps": 8}} for b in ("4", "16")},
}


def benchmark(**changes) -> Benchmark:
    tree = TREE | {k: TREE[k] | v for k, v in changes.items()}
    return parse(Benchmark, tree, "benchmark")


def write_run(budget: str, train_seed: int, seed: int, pixels, labels) -> None:
    """What the sample stage leaves of one training and one sampling seed."""
    facts = {"benchmark": "tiny", "size": "xs", "budget": budget, "train_seed": train_seed, "seed": seed}
    write_samples(Path("samples/tiny/xs") / budget / f"train{train_seed}-seed{seed}", pixels, labels, 30, **facts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A working directory in which evaluate, and all before it, has run in one process, and evaluate's record; images
    are real ones with noise."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cfg = benchmark()
        split = load_split(cfg.data)
        for part, (pixels, labels) in split.items():
            save_images(Path("data/tiny/images") / f"{part}.npz", pixels, labels)
        encode(cfg)
        make_extractor(cfg)
        make_reference(cfg)
        rng = np.random.default_rng(0)
        for budget, t, seed in itertools.product(("4", "16"), (0, 1), (0, 1)):
            chosen = rng.choice(len(split["train"][0]), 70, replace=False)
            pixels = split["train"][0][chosen] // 2 + rng.integers(0, 100, (70, 1, 8, 8), dtype=np.uint8)
            write_run(budget, t, seed, pixels, split["train"][1][chosen])
        evaluate(cfg, "xs")
        return folder, record("tiny", "evaluate-xs")


@pytest.fixture
def alone(prepared, monkeypatch):
    """The evaluate record of one process, in the folder of which a test runs."""
    monkeypatch.chdir(prepared[0])
    yield prepared[1]
    assert not Path(".state/tiny/evaluate-xs").exists(), "evaluate left its resume state"


def test_every_run_is_scored(alone):
    assert set(alone["results"]) == {"4", "16"}
    for cell in alone["results"].values():
        assert [(r["train_seed"], r["sample_seed"]) for r in cell["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for run, by_images in zip(cell["runs"], cell["fid_by_images"], strict=True):
            assert run["clean_fid"] is run["sfid"] is None and run["label_accuracy"] > 0.3
            assert list(run["fid_by_extractor"]) == ["0", "1"] and run["fid_by_extractor"]["0"] == run["fid"]
            assert run["fid_by_extractor"]["1"] != run["fid"] and run["fid_by_extractor"]["1"] > 0
            assert 0 <= run["precision"] <= 1 and 0 <= run["recall"] <= 1 and 1 <= run["isc"] <= 10
            assert min(run["nearest_train"], run["nearest_holdout"]) > 0
            assert by_images == {k: run[k] for k in ("train_seed", "sample_seed")} | {"fid": {"70": run["fid"]}}
    settings = alone["settings"]
    assert settings["images"] == 70 and settings["reference_source"]["kind"] == "training images"
    identity = {"kind": "cnn", "sha256": record("tiny", "extractor")["results"]["sha256"]}
    assert settings["extractor_identity"] == identity


def test_scores_are_those_of_all_images_at_once(alone):
    pixels, _ = SampleSet("samples/tiny/xs/4/train0-seed1", 70).all()
    extract = load_extractor(benchmark().extractor, Path("data/tiny/extractor"))
    expected = fid(extract(pixels), load_reference(Path("data/tiny/reference.npz")))
    assert alone["results"]["4"]["runs"][1]["fid"] == pytest.approx(expected, rel=1e-4)


def test_cas_is_of_all_sampling_seeds_of_a_training_together_and_stands_in_each_run(alone):
    images = [SampleSet(f"samples/tiny/xs/4/train1-seed{s}", 70).all() for s in (0, 1)]
    both = tuple(np.concatenate(parts) for parts in zip(*images, strict=True))
    training = benchmark().extractor.training
    expected = classification_accuracy_score(both, load_images("data/tiny/images/holdout.npz"), training, 30)
    assert [run["cas"] for run in alone["results"]["4"]["runs"]][2:] == [expected] * 2
    assert len({run["cas"] for cell in alone["results"].values() for run in cell["runs"]}) > 1


def test_a_killed_evaluation_measures_only_what_is_missing(alone, monkeypatch):
    measured, original = [], measuring.write_arrays

    def write(path, **arrays):
        if len(measured) == 5:
            measured.append(None)
            raise KeyboardInterrupt
        measured.append(path)
        original(path, **arrays)

    monkeypatch.setattr(measuring, "write_arrays", write)
    with pytest.raises(KeyboardInterrupt):
        evaluate(benchmark(), "xs")
    evaluate(benchmark(), "xs")
    runs, chunks = 2 * 2 * 2, 3  # budgets, training seeds, sampling seeds
    assert len(measured) == len(set(measured)) == runs * chunks + 1
    assert record("tiny", "evaluate-xs")["results"] == alone["results"]


def test_two_processes_give_the_same_records_bit_for_bit(alone):
    def reference_and_evaluate(world):
        make_reference(benchmark())
        evaluate(benchmark(), "xs")

    file, results = Path("data/tiny/reference.npz"), record("tiny", "reference")["results"]
    statistics = file.read_bytes()
    together(reference_and_evaluate)
    evaluated = record("tiny", "evaluate-xs")
    assert evaluated["results"] == alone["results"] and (evaluated["processes"], alone["processes"]) == (2, 1)
    assert file.read_bytes() == statistics and record("tiny", "reference")["results"] == results


def test_changed_samples_are_measured_anew(alone):
    pixels, labels = SampleSet("samples/tiny/xs/4/train0-seed0", 70).all()
    write_run("4", 0, 0, pixels // 2, labels)
    evaluate(benchmark(), "xs")
    write_run("4", 0, 0, pixels, labels)
    runs, before = record("tiny", "evaluate-xs")["results"]["4"]["runs"], alone["results"]["4"]["runs"]
    assert runs[0]["fid"] != before[0]["fid"] and runs[2:] == before[2:]
    assert runs[1] == before[1] | {"cas": runs[0]["cas"]}  # the training seed's images together


def test_the_reference_of_training_images_has_its_baselines_at_the_number_of_scored_images(alone):
    results, baselines = record("tiny", "reference")["results"], record("tiny", "reference")["results"]["baselines"]
    assert results["source"] == {"kind": "training images", "feature_images": 1438}
    assert results["real"]["images"] == 1438 and set(baselines) == {"holdout", "train_subset", "class_shuffle"}
    assert {b["images"] for b in baselines.values()} == {70}
    assert baselines["class_shuffle"]["fid"]["mean"] > 1.2 * baselines["holdout"]["fid"]["mean"]
    subsets = baselines["train_subset"]["fid"]["values"]
    for name in ("holdout", "class_shuffle"):
        assert list(baselines[name]["fid_by_extractor"]) == ["0", "1"]
        assert baselines[name]["fid_by_extractor"]["0"] == baselines[name]["fid"]
    assert 0.2 < baselines["class_shuffle"]["cas"]["mean"] < baselines["train_subset"]["cas"]["mean"] <= 1
    assert len(subsets) == 5 and min(subsets) > 0 and results["nearest"]["holdout_to_train"] > 0
    assert np.mean(results["nearest"]["real_ratio"]["values"]) == pytest.approx(1, abs=0.05)
    assert Path("results/tiny/grids/real.png").stat().st_size > 100 and not Path(".state/tiny/reference").exists()


def test_latents_are_decoded_on_the_device_of_the_extractor_for_the_baseline(monkeypatch):
    class Store(tuple):
        def rows(self, index, view):
            return np.zeros((len(index), 1))

    def load(cfg, device="cpu"):
        raise RunError(f"autoencoder on {device}")

    monkeypatch.setattr("emigm.metrics.real_images.LatentStore", lambda folder: Store("ab"))
    monkeypatch.setattr("emigm.metrics.real_images.load_autoencoder", load)
    with pytest.raises(RunError, match="autoencoder on cuda:1"):
        reconstructed(benchmark(), "cuda:1")


def test_a_grid_of_real_images_ends_where_the_smallest_class_does(tmp_path, monkeypatch):
    labels, shown = np.array([0] * 2 + [1] * 5 + [2] * 5), []

    def pixels(index):
        shown.extend(labels[index].tolist())
        return np.zeros((len(index), 1, 4, 4), dtype=np.uint8)

    source = SimpleNamespace(labels=labels, pixels=pixels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("emigm.stages.reference.open_images", lambda *_: source)
    monkeypatch.setattr("emigm.stages.reference.why_none", lambda folder: None)
    save_real_grid(benchmark())
    assert shown == [0, 1, 2, 0, 1, 2]


def test_more_photos_than_fit_in_memory_ask_for_stored_statistics(alone, monkeypatch):
    monkeypatch.setattr("emigm.stages.reference.MOST_PHOTOS", 1000)
    with pytest.raises(ConfigError, match=r"evaluation\.reference is missing: features of 1,438 images do not fit"):
        make_reference(benchmark())


def test_snapshots_without_settings_are_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.snapshots is missing"):
        score_snapshots(benchmark(), "xs")


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
    features = {"pool": pool, "logits": torch.zeros(200, 2)}
    assert subset_fid(features, 150, 0) == pytest.approx(subset_fid(features, 100, 0))  # at most half
    order = np.random.default_rng(0).permutation(200)
    ours, rest = pool[order[:80]], pool[order[80:]]
    expected = fid({"pool": ours}, reference_of({"pool": rest}))
    assert subset_fid(features, 80, 0) == pytest.approx(expected)


def test_images_that_copy_a_set_are_nearer_to_it_and_others_are_not():
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)
    ratios = neighbour_ratios(real, images=100, known=100)
    assert len(ratios) == 20 and np.mean(ratios) == pytest.approx(1, abs=0.05)
    few = neighbour_ratios(real[:30], images=100, known=100)  # ten each
    assert len(few) == 20 and np.isfinite(few).all()


def test_stored_statistics_without_images_leave_what_needs_images_unmeasured(prepared, tmp_path, alone, monkeypatch):
    """And the record says so: no baselines, null scores, no summary of them."""
    shutil.copytree(prepared[0], tmp_path / "tiny")
    monkeypatch.chdir(tmp_path / "tiny")
    mine = load_reference(Path("data/tiny/reference.npz"))
    mu, sigma = mine.statistics["pool"]
    np.savez("statistics.npz", mu=mu.astype(np.float32), sigma=sigma)
    cfg = benchmark(evaluation={"reference": "statistics.npz"})
    make_reference(cfg)
    evaluate(cfg, "xs")
    results, evaluated = record("tiny", "reference")["results"], record("tiny", "evaluate-xs")
    assert results["baselines"] == {} and "real" not in results
    source = evaluated["settings"]["reference_source"]
    assert source == results["source"] and source["feature_images"] is None
    assert source["file"] == "statistics.npz" and source["keys"] == ["mu", "sigma"]
    run = evaluated["results"]["4"]["runs"][0]
    assert run["kid"] is run["recall"] is run["fid_by_extractor"] is None
    assert run["fid"] == pytest.approx(alone["results"]["4"]["runs"][0]["fid"], rel=1e-5)


def test_images_beside_stored_statistics_give_the_features(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    pool = torch.from_numpy(rng.standard_normal((40, 5))).float()
    mu, sigma = reference_of({"pool": pool}).statistics["pool"]
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu - 1, sigma_s=sigma)
    features = {"pool": pool, "logits": torch.zeros(40, 10), "spatial": pool - 1, "clean": pool + 1}
    widths = SimpleNamespace(widths={"pool": 5, "spatial": 5})
    reference, results = stored_reference(tmp_path / "adm.npz", widths, features)
    assert torch.equal(reference.pool, pool) and list(reference.statistics) == ["pool", "spatial", "clean"]
    assert reference.statistics["clean"][0] == pytest.approx(mu + 1)
    assert results["stored_images"]["sfid"] == pytest.approx(0, abs=1e-6)
    assert results["source"]["feature_images"] == 40 and results["stored_images"]["fid"] == pytest.approx(0, abs=1e-6)
    assert results["stored_images"]["isc"] == pytest.approx(1) and results["baselines"] == {}
