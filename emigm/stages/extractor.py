"""Make the feature extractor: train a small classifier and measure it, or check Inception's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from emigm.config.benchmark import Benchmark
from emigm.config.paths import PARTS, expand, extractor_folder, images_folder
from emigm.data.images import open_images
from emigm.io import checksums, sha256
from emigm.launching import run_stage
from emigm.metrics.classifier import (
    FEATURES,
    WEIGHTS_FILE,
    accuracy,
    load_classifier,
    save_classifier,
    train_classifier,
)
from emigm.records.record import write_record


def make_extractor(benchmark: Benchmark) -> None:
    make = check_inception_weights if benchmark.extractor.kind == "inception" else train_on_images
    folder = extractor_folder(benchmark)
    results, inputs = make(benchmark, folder)
    files = {"inputs": inputs, "outputs": checksums(folder)}
    write_record(benchmark, "extractor", results, device="cpu", **files, extractor=benchmark.extractor)


def train_on_images(benchmark: Benchmark, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Train on the training images; accuracy on these and on the held-out ones, and the checksums of both."""
    torch.set_num_threads(1)
    sources = {part: open_images(images_folder(benchmark), part) for part in PARTS}
    images = {part: (source.pixels(range(len(source))), source.labels) for part, source in sources.items()}
    weights = folder / WEIGHTS_FILE
    save_classifier(weights, train_classifier(*images["train"], benchmark.extractor.training))
    model = load_classifier(weights)
    results: dict[str, Any] = {"features": FEATURES, "sha256": sha256(weights)}
    for part, (pixels, labels) in images.items():
        results |= {f"{part}_accuracy": accuracy(model, pixels, labels), f"{part}_images": len(labels)}
    return results, checksums(*(source.path for source in sources.values()))


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
    results = {"features": extractor.width, **file, "published": extractor.identity["published"]}
    return results, {weights.as_posix(): facts["sha256"]}


if __name__ == "__main__":
    run_stage(make_extractor, one_process=True)
