"""Train the feature extractor on the training images, and measure it on the held-out ones."""

from __future__ import annotations

import torch

from emigm.classifier import DIGITS_FEATURES, load_classifier, save_classifier, train_digits_classifier
from emigm.config import Benchmark
from emigm.images import load_images
from emigm.records import write_record
from emigm.workspace import data_folder, run_stage


def train_extractor(benchmark: Benchmark) -> None:
    torch.set_num_threads(1)
    images = data_folder(benchmark) / "images"
    pixels, labels = load_images(images / "train.npz")
    weights = data_folder(benchmark) / "extractor.safetensors"
    save_classifier(weights, train_digits_classifier(pixels, labels, benchmark.extractor.training))

    model = load_classifier(weights)
    results = {"features": DIGITS_FEATURES}
    for part in ("train", "holdout"):
        pixels, labels = load_images(images / f"{part}.npz")
        right = model(torch.from_numpy(pixels))[1].argmax(1).numpy() == labels
        results[f"{part}_accuracy"] = float(right.mean())
        results[f"{part}_images"] = len(labels)
    write_record(benchmark, "extractor", results, device="cpu", extractor=benchmark.extractor)


if __name__ == "__main__":
    run_stage(train_extractor)
