"""Prepare the data set: training and held-out images, or the list of the photos they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import images_folder
from emigm.data.images import NONE, PARTS, load_split, save_images
from emigm.data.photos import scan_photos
from emigm.io import checksums, write_index, write_json
from emigm.launching import run_stage
from emigm.records.record import write_record


def prepare(benchmark: Benchmark) -> None:
    folder = images_folder(benchmark)
    if benchmark.data.dataset != "imagenet":
        written, results = prepare_arrays(benchmark, folder)
    elif benchmark.weights == "trained":
        written, results = prepare_photos(benchmark, folder)
    else:
        reason = "released weights are not trained here, and are scored against stored statistics"
        write_json(folder / NONE, {"reason": reason})
        written, results = [NONE], {"none": reason, "classes": benchmark.data.classes}
    for file in folder.iterdir():  # what another configuration left
        if file.name not in written:
            file.unlink()
    write_record(benchmark, "prepare", results, device="cpu", outputs=checksums(folder), data=benchmark.data)


def prepare_arrays(benchmark: Benchmark, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Write both parts of a small data set; returns the files' names and the record's results."""
    split = load_split(benchmark.data)
    for part, (pixels, labels) in split.items():
        save_images(folder / f"{part}.npz", pixels, labels)
    pixels, labels = split["train"]
    numbers = {f"{part}_images": len(split[part][0]) for part in PARTS}
    results = numbers | {"classes": int(labels.max()) + 1, "shape": list(pixels.shape[1:])}
    return [f"{part}.npz" for part in PARTS], results


def prepare_photos(benchmark: Benchmark, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Write the lists of both parts' photos; returns the files' names and the record's results."""
    cfg = benchmark.data
    roots = {"train": ("root", cfg.root), "holdout": ("holdout_root", cfg.holdout_root)}
    photos = {
        part: scan_photos(Path(root), cfg.classes, f"benchmark.data.{key}", benchmark.run.workers)
        for part, (key, root) in roots.items()
    }
    if differing := set(photos["train"]["classes"]) ^ set(photos["holdout"]["classes"]):
        raise ConfigError(
            f"benchmark.data.holdout_root = {cfg.holdout_root}: its class folders are not those of {cfg.root}; "
            f"{len(differing)} are in one only, such as {min(differing)}"
        )
    for part in PARTS:
        manifest = {"root": roots[part][1], "resolution": cfg.resolution, **photos[part]}
        write_index(folder / f"{part}.json", manifest)
    numbers = {f"{part}_images": len(photos[part]["files"]) for part in PARTS}
    results = numbers | {"classes": cfg.classes, "shape": [3, cfg.resolution, cfg.resolution]}
    return [f"{part}.json" for part in PARTS], results


if __name__ == "__main__":
    run_stage(prepare, one_process=True)
