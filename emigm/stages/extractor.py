"""Make the feature extractor: train the digits' classifier and measure it, or check Inception's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from emigm.config.benchmark import Benchmark
from emigm.config.paths import extractor_folder, images_folder
from emigm.data.images import load_images
from emigm.files import sha256
from emigm.metrics.classifier import (
    DIGITS_FEATURES,
    WEIGHTS_FILE,
    load_classifier,
    save_classifier,
    train_digits_classifier,
)
from emigm.records.record import write_record
from emigm.runtime.launching import run_stage


def make_extractor(benchmark: Benchmark) -> None:
    make = check_inception_weights if benchmark.extractor.kind == "inception" else train_classifier
    results = make(benchmark, extractor_folder(benchmark))
    write_record(benchmark, "extractor", results, device="cpu", extractor=benchmark.extractor)


def train_classifier(benchmark: Benchmark, folder: Path) -> dict[str, Any]:
    """Train on the training images; accuracy on these and on the held-out ones."""
    torch.set_num_threads(1)
    images = images_folder(benchmark)
    weights = folder / WEIGHTS_FILE
    pixels, labels = load_images(images / "train.npz")
    save_classifier(weights, train_digits_classifier(pixels, labels, benchmark.extractor.training))

    model = load_classifier(weights)
    results: dict[str, Any] = {"features": DIGITS_FEATURES, "sha256": sha256(weights)}
    for part in ("train", "holdout"):
        pixels, labels = load_images(images / f"{part}.npz")
        right = model(torch.from_numpy(pixels))[1].argmax(1).numpy() == labels
        results[f"{part}_accuracy"] = float(right.mean())
        results[f"{part}_images"] = len(labels)
    return results


def check_inception_weights(benchmark: Benchmark, folder: Path) -> dict[str, Any]:
    """Check that torch-fidelity can use the weights, and note which file they are."""
    from emigm.metrics.features import INCEPTION_SHA256, load_extractor, write_source

    facts = write_source(folder, Path(benchmark.extractor.weights))
    extractor = load_extractor(benchmark.extractor, folder)
    if not extractor.identity["published"]:
        print(
            f"warning: {facts['path']} is not the published file (its sha256 begins {facts['sha256'][:8]}, not "
            f"{INCEPTION_SHA256}); no FID can be compared with others"
        )
    file = {"file": Path(facts["path"]).name, "sha256": facts["sha256"], "bytes": facts["bytes"]}
    return {"features": extractor.width, **file, "published": extractor.identity["published"]}


if __name__ == "__main__":
    run_stage(make_extractor, one_process=True)
