"""Make the feature extractor: train small classifiers and measure them, or check Inception's weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.config.benchmark import Benchmark
from emigm.config.paths import PARTS, expand, extractor_folder, images_folder
from emigm.config.schema import ClassifierTraining
from emigm.data.images import open_images
from emigm.io import checksums
from emigm.launching import Progress, parallel, run_stage
from emigm.metrics.classifier import (
    FEATURES,
    accuracy,
    load_classifier,
    note_weights,
    save_classifier,
    train_classifier,
)
from emigm.records.record import write_record


def make_extractor(benchmark: Benchmark) -> None:
    make = check_inception_weights if benchmark.extractor.kind == "inception" else train_on_images
    folder = extractor_folder(benchmark)
    results, inputs = make(benchmark, folder)
    files = {"inputs": inputs, "outputs": checksums(folder)}
    write_record(benchmark, "extractor", results, device="cpu", **files)


def train_on_images(benchmark: Benchmark, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Train on the training images, once a seed; accuracy on these and on the held-out ones, and checksums of both."""
    torch.set_num_threads(1)
    sources = {part: open_images(images_folder(benchmark), part) for part in PARTS}
    images = {part: (source.pixels(range(len(source))), source.labels) for part, source in sources.items()}
    training, label = benchmark.extractor.training, f"extractor of {benchmark.name}"
    job = partial(train_one, images["train"], training, folder)
    files = parallel(job, training.seeds, training.steps, "step", label)
    sums = [facts["sha256"] for facts in note_weights(folder, *files)]
    results: dict[str, Any] = {"features": FEATURES, "sha256": dict(zip(map(str, training.seeds), sums, strict=True))}
    for part, (pixels, labels) in images.items():
        accuracies = [accuracy(load_classifier(file), pixels, labels) for file in files]
        results |= {f"{part}_accuracy": {"values": accuracies}, f"{part}_images": len(labels)}
    return results, checksums(*(source.path for source in sources.values()))


def train_one(
    images: tuple[np.ndarray, np.ndarray], training: ClassifierTraining, folder: Path, seed: int, progress: Progress
) -> Path:
    """Train the classifier of one seed and write it; returns its file."""
    model = train_classifier(*images, training, seed)
    progress(training.steps)
    return save_classifier(folder, seed, model)


def check_inception_weights(benchmark: Benchmark, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Check that torch-fidelity can use the weights, and note which file they are."""
    from emigm.metrics.features import INCEPTION_SHA256, load_extractor, write_source  # seconds to import

    weights = expand(benchmark.extractor.weights)
    facts = write_source(folder, weights)
    extractor = load_extractor(benchmark.extractor, folder)
    if not extractor.identity["published"]:
        print(
            f"warning: {facts['path']} is not the published file (its sha256 begins {facts['sha256'][:8]}, not "
            f"{INCEPTION_SHA256[:8]}); no FID can be compared with others"
        )
    file = {"file": Path(facts["path"]).name, "sha256": facts["sha256"], "bytes": facts["bytes"]}
    results = {"features": extractor.widths["pool"], **file, "published": extractor.identity["published"]}
    return results, {weights.as_posix(): facts["sha256"]}


if __name__ == "__main__":
    run_stage(make_extractor, one_process=True)
