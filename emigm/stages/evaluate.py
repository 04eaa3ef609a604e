"""Score the images of one size at every NFE budget: FID, IS, KID, precision, recall, and memorisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from emigm.config import Benchmark
from emigm.images import load_images
from emigm.metrics import Features, Reference, load_extractor, load_reference, nearest_distance, scores
from emigm.records import write_record
from emigm.workspace import data_folder, run_stage, samples_folder, samples_name


def evaluate(benchmark: Benchmark, size: str) -> None:
    torch.set_num_threads(1)
    folder, evaluation = data_folder(benchmark), benchmark.evaluation
    reference = load_reference(folder / "reference.npz")  # before any work, in case it fails
    extract = load_extractor(benchmark.extractor, folder / "extractor.safetensors")
    holdout, _ = load_images(folder / "images" / "holdout.npz")
    train, _ = load_images(folder / "images" / "train.npz")
    # Nearest distances to sets of different sizes cannot be compared.
    train = train[np.random.default_rng(0).choice(len(train), len(holdout), replace=False)]

    results = {}
    for budget in benchmark.budgets:
        runs = score_runs(benchmark, size, budget, extract, reference, train, holdout)
        metrics = [k for k in runs[0] if not k.endswith("_seed")]
        results[budget] = {"runs": runs, "summary": {m: summarise(runs, m) for m in metrics}}
    settings = {"size": size, "images": evaluation.images, "extractor": benchmark.extractor}
    seeds = {"train_seeds": list(benchmark.train_config(size).seeds), "seeds": list(evaluation.seeds)}
    write_record(benchmark, f"evaluate-{size}", results, device="cpu", **settings, **seeds)


def score_runs(
    benchmark: Benchmark,
    size: str,
    budget: str,
    extract: Callable[[np.ndarray], Features],
    reference: Reference,
    train: np.ndarray,
    holdout: np.ndarray,
) -> list[dict[str, Any]]:
    """Scores of every training and sampling seed at one budget; `train` and `holdout` are equally many images."""
    evaluation = benchmark.evaluation
    runs = []
    for train_seed in benchmark.train_config(size).seeds:
        for seed in evaluation.seeds:
            pixels, labels = load_images(samples_folder(benchmark, size, budget) / samples_name(train_seed, seed))
            run = {"train_seed": train_seed, "sample_seed": seed}
            run |= scores(extract(pixels), reference, labels, evaluation.kid_subset)
            run |= {
                "nearest_train": nearest_distance(pixels, train),
                "nearest_holdout": nearest_distance(pixels, holdout),
            }
            runs.append(run)
    return runs


def summarise(runs: list[dict[str, Any]], metric: str) -> dict[str, float | None]:
    """Mean over all runs; standard deviation over training seeds (of their means over sampling seeds) and over
    sampling seeds (within a training seed, pooled); None where there is one seed only."""
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run["train_seed"], []).append(run[metric])
    groups = [np.array(v) for v in by_seed.values()]
    means = np.array([g.mean() for g in groups])
    return {
        "mean": float(means.mean()),
        "train_std": float(means.std(ddof=1)) if len(groups) > 1 else None,
        "sample_std": math.sqrt(np.mean([g.var(ddof=1) for g in groups])) if len(groups[0]) > 1 else None,
    }


if __name__ == "__main__":
    run_stage(evaluate, "size")
