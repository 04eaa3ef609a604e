"""Prepare the data set: training and held-out images."""

from __future__ import annotations

from emigm.config import Benchmark
from emigm.images import load_split, save_images
from emigm.records import write_record
from emigm.workspace import data_folder, run_stage


def prepare(benchmark: Benchmark) -> None:
    split = load_split(benchmark.data)
    folder = data_folder(benchmark) / "images"
    for part, (pixels, labels) in split.items():
        save_images(folder / f"{part}.npz", pixels, labels)
    pixels, labels = split["train"]
    results = {
        "train_images": len(pixels),
        "holdout_images": len(split["holdout"][0]),
        "classes": int(labels.max()) + 1,
        "shape": list(pixels.shape[1:]),
    }
    write_record(benchmark, "prepare", results, device="cpu", data=benchmark.data)


if __name__ == "__main__":
    run_stage(prepare)
