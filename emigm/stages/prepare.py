"""Prepare the data set: training and held-out images, or the list of the photos they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.paths import PARTS, images_folder
from emigm.data.images import NONE, load_split, save_images
from emigm.data.photos import class_names, scan_both
from emigm.io import checksums, write_index, write_json
from emigm.launching import run_stage
from emigm.records.record import write_record


def prepare(benchmark: Benchmark) -> None:
    folder, cfg = images_folder(benchmark), benchmark.data
    if cfg.dataset != "imagenet":
        written, results = prepare_arrays(benchmark, folder)
    elif benchmark.weights == "trained":
        written, results = prepare_photos(benchmark, folder)
    else:
        reason = "released weights are not trained here, and are scored against stored statistics"
        write_json(folder / NONE, {"reason": reason})
        written, results = [NONE], {"none": reason, "classes": cfg.classes}
    for file in folder.iterdir():  # what another configuration left
        if file.name not in written:
            file.unlink()
    write_record(benchmark, "prepare", results, device="cpu", outputs=checksums(folder))


def prepare_arrays(benchmark: Benchmark, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Write both parts of a small data set; returns the files' names and the record's results."""
    split, results = load_split(benchmark.data, benchmark.run.workers), {}
    for part, (pixels, labels) in split.items():
        save_images(folder / f"{part}.npz", pixels, labels)
        results[f"{part}_images"] = len(pixels)
    pixels, labels = split["train"]
    results |= {"classes": int(labels.max()) + 1, "shape": list(pixels.shape[1:])}
    if benchmark.data.dataset == "folder":
        results["class_names"] = class_names(benchmark.data.root)
    return [f"{part}.npz" for part in PARTS], results


def prepare_photos(benchmark: Benchmark, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Write the lists of both parts' photos; returns the files' names and the record's results."""
    cfg, results = benchmark.data, {}
    photos = scan_both(cfg.root, cfg.holdout_root, cfg.classes, benchmark.run.workers)
    for part, root in zip(PARTS, (cfg.root, cfg.holdout_root), strict=True):
        write_index(folder / f"{part}.json", {"root": root, "resolution": cfg.resolution, **photos[part]})
        results[f"{part}_images"] = len(photos[part]["files"])
    results |= {"classes": cfg.classes, "shape": [3, cfg.resolution, cfg.resolution]}
    return [f"{part}.json" for part in PARTS], results


if __name__ == "__main__":
    run_stage(prepare, one_process=True)
