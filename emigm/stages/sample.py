"""Generate images: one size at one NFE budget, for every training and sampling seed."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoder import load_autoencoder
from emigm.config import Benchmark
from emigm.images import load_images, save_images
from emigm.model import WEIGHTS_FILE, load_model
from emigm.pictures import save_grid
from emigm.records import mean_and_spread, results_folder, sha256, write_atomically, write_record
from emigm.sampling import generate
from emigm.schedules import nfe
from emigm.training import fingerprint
from emigm.workspace import (
    STATE,
    Progress,
    Stopwatch,
    model_folder,
    parallel,
    run_stage,
    samples_folder,
    samples_name,
)

GRID_COLUMNS = 12


def sample(benchmark: Benchmark, size: str, budget: str) -> None:
    cfg, evaluation = benchmark.sample_config(size, budget), benchmark.evaluation
    train_seeds = benchmark.train_config(size).seeds
    state = STATE / benchmark.name / f"sample-{size}-{budget}"
    items = [(t, s) for t in train_seeds for s in evaluation.seeds]
    label = f"sample {benchmark.name}-{size}-{budget}"
    job = partial(sample_seed, benchmark, size, budget, state)
    runs = parallel(job, items, evaluation.images, "image", label)

    first, _ = load_images(samples_folder(benchmark, size, budget) / samples_name(*items[0]))
    classes = benchmark.model_config(size).classes
    save_grid(results_folder(benchmark.name) / "grids" / f"{size}-{budget}.png", first, classes, GRID_COLUMNS)
    results = {
        "nfe": nfe(cfg.steps, cfg.cfg_scale, cfg.cfg_interval),
        "passes": float(np.mean([r["passes"] for r in runs])),
        "seconds_per_image": mean_and_spread([r["seconds"] / evaluation.images for r in runs]),
    }
    settings = {"size": size, "budget": budget, "sample": cfg, "images": evaluation.images, "chunk": evaluation.chunk}
    seeds = {"train_seeds": list(train_seeds), "seeds": list(evaluation.seeds)}
    write_record(benchmark, f"sample-{size}-{budget}", results, device="cpu", **settings, **seeds)
    shutil.rmtree(state)


def sample_seed(
    benchmark: Benchmark, size: str, budget: str, state: Path, item: tuple[int, int], progress: Progress
) -> dict[str, Any]:
    """Images of one training seed and one sampling seed; finished chunks are kept and not made again."""
    train_seed, seed = item
    cfg, evaluation = benchmark.sample_config(size, budget), benchmark.evaluation
    folder = model_folder(benchmark, size, train_seed)
    model = load_model(folder, expect=benchmark.model_config(size))
    autoencoder = load_autoencoder(benchmark.autoencoder)
    labels = balanced_labels(evaluation.images, model.cfg.classes)
    key = fingerprint(sha256(folder / WEIGHTS_FILE), str(cfg), str(benchmark.autoencoder), evaluation.chunk, seed)

    pixels, seconds, passes = [], 0.0, 0.0
    for start in range(0, evaluation.images, evaluation.chunk):
        stop = min(start + evaluation.chunk, evaluation.images)
        path = state / f"{key}-{start}-{stop}.npz"
        if not path.is_file():
            make_chunk(path, model, autoencoder, labels[start:stop], cfg, seed, start, evaluation.chunk)
        with np.load(path) as chunk:
            pixels.append(chunk["pixels"])
            seconds += float(chunk["seconds"])
            passes += float(chunk["passes"]) * (stop - start)
        progress(stop)
    out = samples_folder(benchmark, size, budget) / samples_name(train_seed, seed)
    save_images(out, np.concatenate(pixels), labels.numpy())
    return {"seconds": seconds, "passes": passes / evaluation.images}


def make_chunk(path: Path, model, autoencoder, labels: torch.Tensor, cfg, seed: int, first: int, chunk: int) -> None:
    """Generate and decode one chunk of images (index `first` on) into `path`."""
    watch = Stopwatch()
    pieces = list(generate(model, labels, cfg, seed=seed, first=first, chunk=chunk, batch=chunk))
    pixels = autoencoder.decode(torch.cat([p.latents for p in pieces])).numpy()
    facts = {"seconds": watch.seconds(), "passes": pieces[0].passes}
    write_atomically(path, lambda p: np.savez(p, pixels=pixels, **facts))


def balanced_labels(images: int, classes: int) -> torch.Tensor:
    """Classes in turn, so that every run of images is balanced, int64 (images,)."""
    return torch.arange(images) % classes


if __name__ == "__main__":
    run_stage(sample, "size", "budget")
