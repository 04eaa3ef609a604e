"""One's own photos (`dataset: folder`): prepared, split, classified in colour, and taken through the stages."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from stored import ROOT, record, write_photos

from emigm.autoencoders.autoencoder import load_autoencoder, weight_files
from emigm.config.compose import compose_benchmark, composed_text, params_file, write_composed
from emigm.config.errors import ConfigError
from emigm.config.schema import AutoencoderConfig, ClassifierTraining, DataConfig, ExtractorConfig
from emigm.data import images
from emigm.data.images import load_images, load_split
from emigm.data.latents import LatentStore
from emigm.data.photos import adm_crop, class_names, decode
from emigm.metrics import classifier
from emigm.metrics.classifier import accuracy, note_weights, save_classifier, train_classifier
from emigm.metrics.features import load_extractor
from emigm.report.notes import data_name
from emigm.stages.encode import encode
from emigm.stages.evaluate import evaluate
from emigm.stages.extractor import make_extractor
from emigm.stages.index import write_page
from emigm.stages.notebooks import execute
from emigm.stages.prepare import prepare
from emigm.stages.reference import make_reference
from emigm.stages.sample import sample
from emigm.stages.summary import summary
from emigm.stages.train import train_size
from emigm.tools import doctor
from emigm.tools.fetch import released_files

BENCHMARK = """
extends: smoke
title: Photos of my own
notebooks: [scores]
data: {dataset: folder, root: photos, holdout: 0.25, classes: 2, resolution: 16, flips: true}
extractor: {training: {steps: 20, batch: 16, lr: 0.003, seeds: [0]}}
evaluation: {images: 6, seeds: [0], chunk: 6}
model: {grid: 16, channels: 3, patch: 4, classes: 2}
train: {steps: 4, batch: 8, seeds: [0]}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a benchmark of photos."""
    monkeypatch.chdir(tmp_path)
    Path("benchmarks/mine").mkdir(parents=True)
    Path("benchmarks/smoke").symlink_to(ROOT / "benchmarks/smoke")
    Path("benchmarks/mine/benchmark.yaml").write_text(BENCHMARK)
    params_file("mine").write_text(composed_text("mine"))
    Path("dvc.yaml").touch()
    Path("notebooks").symlink_to(ROOT / "notebooks")
    return tmp_path


def test_own_photos_are_prepared_learned_sampled_scored_and_shown(here):
    write_photos(here / "photos", {"2": 12, "10": 12})
    benchmark = compose_benchmark("mine")
    for stage in (prepare, make_extractor, encode, make_reference):
        stage(benchmark)
    numbers = {"train_images": 18, "holdout_images": 6, "classes": 2, "shape": [3, 16, 16]}
    assert record("mine", "prepare")["results"] == numbers | {"class_names": ["2", "10"]}
    assert record("mine", "extractor")["results"]["train_accuracy"]["mean"] > 0.9
    assert LatentStore(Path("data/mine/latents/train")).rows(np.arange(18)).shape == (18, 2, 3, 16, 16)
    reference = record("mine", "reference")["results"]
    assert {"holdout", "train_subset", "class_shuffle"} <= set(reference["baselines"])

    train_size(benchmark, "xs")
    sample(benchmark, "xs", "4")
    evaluate(benchmark, "xs")
    summary(benchmark)
    (scored,) = record("mine", "evaluate-xs")["results"]["4"]["runs"]
    assert np.isfinite(scored["fid"]) and record("mine", "train-xs")["results"]["context"]
    (chunk,) = Path("samples/mine/xs/4/train0-seed0").glob("*.npz")
    assert load_images(chunk)[0].shape == (6, 3, 16, 16)
    (row,) = pd.read_csv("results/mine/scores.csv").to_dict("records")
    assert row["fid"] == json.loads(Path("results/mine/metrics/xs-4.json").read_text())["fid"] == scored["fid"]
    assert row["kid"] == scored["kid"] and row["gate_ratio"] > 0 and np.isnan(row["fid_error"])  # of one seed
    table = (execute("scores", "mine", "mine") / "scores.md").read_text()
    assert "Model on Photos of my own" in table and "Held-out real images" in table and "Class shuffle" in table
    page = write_page("mine").read_text()
    assert page.count("Photos of my own") > 1 and "18 training images" in page and "folder" not in page


def test_home_and_variables_in_the_paths_of_a_benchmark_are_expanded(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home")), monkeypatch.setenv("WEIGHTS", str(here / "weights"))
    paths = ("home/vae/kl16.ckpt", "weights/inception.pth", "weights/statistics.npz", "home/cifar/train.parquet")
    for path in paths:
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).touch()
    benchmark, autoencoder = compose_benchmark("mine"), AutoencoderConfig("kl16", 0.2325, "~/vae/kl16.ckpt")
    named = SimpleNamespace(
        autoencoder=autoencoder, data=benchmark.data, sizes=(), weights="",
        extractor=ExtractorConfig("inception", "$WEIGHTS/inception.pth"),
        evaluation=dataclasses.replace(benchmark.evaluation, reference="${WEIGHTS}/statistics.npz"),
    )  # fmt: skip
    assert [file.path for file in released_files(named)] == [here / path for path in paths[:3]]
    assert weight_files(autoencoder.weights) == [here / paths[0]]
    with pytest.raises(ConfigError, match=f"{here}/home/vae/kl16.ckpt: "):
        load_autoencoder(autoencoder)
    (check,) = doctor.check_data(SimpleNamespace(data=DataConfig("cifar10", "~/cifar")))
    assert check.state == doctor.OK
    write_photos(here / "home/photos", {"a": 4, "b": 4})
    assert len(load_split(folder("~/photos"))["train"][0]) == 6 and class_names("$HOME/photos") == ["a", "b"]


def test_the_benchmark_of_the_page_on_own_data_composes_and_misses_nothing(tmp_path, monkeypatch, capsys):
    """Its YAML as it stands there, with Inception too."""
    text = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    example, inception = re.findall(r"```yaml\n(.*?)```", text, re.S)
    mnist = (ROOT / "benchmarks" / "mnist" / "benchmark.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", {str(number): 5 for number in range(10)})
    for name, source in {"mnist": mnist, "photos": example, "inception": example + inception}.items():
        (tmp_path / "benchmarks" / name).mkdir(parents=True)
        (tmp_path / "benchmarks" / name / "benchmark.yaml").write_text(source, encoding="utf-8")
    (tmp_path / "dvc.yaml").touch()
    write_composed()
    benchmark = compose_benchmark("photos")
    assert (benchmark.sizes, benchmark.model_config("l").tokens, benchmark.extractor.kind) == (("s", "l"), 64, "cnn")
    assert doctor.doctor(benchmark) == 0
    assert "10 class folders in photos" in capsys.readouterr().out
    assert compose_benchmark("inception").extractor.weights.endswith(".pth")


NAMES = {"My photos": "My photos", "My photos (32\u00d732 colour)": "My photos", "My photos, 32x32": "My photos"}
NAMES |= dict.fromkeys(["My photos (of 3 x 2 cats)"], "My photos (of 3 x 2 cats)") | {"64x64": "64x64"}


@pytest.mark.parametrize("title", NAMES)
def test_pages_call_own_photos_by_the_title_without_its_resolution(title):
    row = {"benchmark": "mine", "title": title, "dataset": "folder", "resolution": 32, "dry_run": False}
    assert data_name(pd.DataFrame([row, row])) == NAMES[title]


def folder(root, **changes):
    return dataclasses.replace(DataConfig("folder", str(root), holdout=0.25, classes=2, resolution=16), **changes)


def test_photos_are_cropped_and_split_by_class_with_the_seed(tmp_path):
    root = write_photos(tmp_path, {"a": 8, "b": 4})
    split = load_split(folder(root), workers=3)
    crops = {adm_crop(decode("", p), 16).transpose(2, 0, 1).tobytes() for p in root.glob("*/*.*")}
    assert {i.tobytes() for part in split.values() for i in part[0]} == crops and len(crops) == 12
    assert np.bincount(split["train"][1]).tolist() == [6, 3] and np.bincount(split["holdout"][1]).tolist() == [2, 1]
    for seed in (0, 1):
        again = load_split(folder(root, split_seed=seed))
        assert np.array_equal(again["holdout"][0], split["holdout"][0]) == (seed == 0)


def test_held_out_photos_may_lie_in_a_folder_of_their_own(tmp_path):
    write_photos(tmp_path / "train", {"a": 3, "b": 3}), write_photos(tmp_path / "val", {"a": 1, "b": 2})
    split = load_split(folder(tmp_path / "train", holdout=None, holdout_root=str(tmp_path / "val")))
    assert split["train"][1].tolist() == [0, 0, 0, 1, 1, 1] and split["holdout"][1].tolist() == [0, 1, 1]


def test_photos_that_cannot_be_a_data_set_are_refused_by_name(tmp_path, monkeypatch):
    few, more = write_photos(tmp_path / "few", {"a": 8, "b": 1}), write_photos(tmp_path / "more", {"a": 8, "b": 8})
    for name in ("a/a_3.JPEG", "b/b_4.JPEG"):
        (more / name).write_text("<html>")
    for root, message in (
        (few, r"holdout = 0\.25 holds out 0 of the 1 photos of class b; .*add photos"),
        (more, r"2 images do not decode: .*a_3\.JPEG \(not an image\); .*b_4\.JPEG"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_split(folder(root))
    monkeypatch.setattr(images, "MOST_BYTES", 10_000)
    with pytest.raises(ConfigError, match=r"16 photos of 16 x 16 pixels are more than .*lower data\.resolution, or"):
        load_split(folder(more))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.classes": "null"}, "classes is missing for dataset: folder; photos has 2 class folders"),
        ({"data.holdout": "null"}, "holdout is missing for dataset: folder"),
        ({"data.holdout_root": "val"}, "holdout has no effect for dataset: folder"),
        ({"data.dataset": "imagenet", "data.holdout": "null", "data.holdout_root": "val"}, "kind: cnn does not take"),
    ],
)
def test_settings_that_do_not_fit_own_photos_are_refused_by_name(here, settings, message):
    write_photos(here / "photos", {"a": 1, ".hidden": 1, "b": 1})
    with pytest.raises(ConfigError, match=message):
        compose_benchmark("mine", [f"benchmark.{key}={value}" for key, value in settings.items()])


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (3, 13), (3, 64)])
def test_the_classifier_takes_grey_and_colour_of_any_side(tmp_path, monkeypatch, channels, side):
    rng, labels = np.random.default_rng(0), np.arange(40) % 2
    pixels = rng.integers(0, 100, (40, channels, side, side), dtype=np.uint8)
    pixels[labels == 1, -1] += 100
    training = ClassifierTraining(steps=30, batch=16, lr=1e-3, seeds=(3,))
    model = train_classifier(pixels, labels, training, 3)
    assert accuracy(model, pixels, labels) == 1
    note_weights(tmp_path, save_classifier(tmp_path, 3, model))
    features = load_extractor(ExtractorConfig("cnn", training=training), tmp_path)(pixels)
    assert features["pool"].shape == (40, 64) and torch.equal(features["logits"], model(torch.from_numpy(pixels))[1])
    monkeypatch.setattr(classifier, "AT_ONCE", 7)  # a large set is classified in parts
    assert accuracy(model, pixels, labels) == 1
    torch.testing.assert_close(train_classifier(pixels, labels, training, 3).feature_scale, model.feature_scale)
