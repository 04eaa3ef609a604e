"""Runs with known effects, as a frame and as records on disk: no number here was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pandas as pd
from made_up import REPO

from emigm.config.benchmark import load_benchmark
from emigm.config.compose import params_file
from emigm.paper.claims import Cell, Claims
from emigm.records.record import write_record

GROUND = "MNIST"
SIZES = ("xs", "s", "b", "l", "h")
SPANS = {"MNIST-5k (49 tokens)": {"fid": 8.41, "isc": 3.0}}
"""Distances from held-out images to class shuffle, so that the smallest effect that matters is 0.168 in FID."""
Effect = Callable[[Cell], float]


def cells_of(claims: Claims, ground: str = GROUND) -> list[Cell]:
    """Every cell that a claim reads on one kind of data."""
    found = []
    for claim in claims.claims:
        for place in claim.at:
            if claims.ground(place.benchmark).startswith(ground):
                found += claim.cells(place)
    return list(dict.fromkeys(found))


def simulate(
    claims: Claims, effect: Effect = lambda cell: 0.0, seed: int = 0, seeds: int = 6, samples: int = 2,
    noise: float = 0.2, shared: float = 0.3, ground: str = GROUND,
) -> pd.DataFrame:  # fmt: skip
    """A frame like `emigm.records.frame.runs`: FID 5 + `effect` of a cell + what the runs of one training seed share
    (deviation `shared`) + noise of each run."""
    rng, rows, common = np.random.default_rng(seed), [], {}
    for cell in cells_of(claims, ground):
        for t in range(10, 10 + seeds):
            own = common.setdefault((cell.benchmark, t), rng.normal(0, shared))
            for s in range(samples):
                run = {"benchmark": cell.benchmark, "size": cell.size, "budget": cell.budget, "train_seed": t}
                run |= {"sample_seed": 100 * t + s, "snapshot": np.nan if cell.snapshot is None else cell.snapshot}
                run |= {"fid": 5 + effect(cell) + own + rng.normal(0, noise)}
                run |= {"isc": 8 - effect(cell) + own + rng.normal(0, noise)}
                rows.append(run | facts(cell))
    return pd.DataFrame(rows)


def steps_of(budget: str) -> int:
    """N of "16", "16_plain" or "late_16"; 16 of a scale or an interval of guidance."""
    first, last = budget.split("_")[0], budget.split("_")[-1]
    return int(first) if first.isdigit() else 16 if first in ("scale", "grid") else int(last)


def facts(cell: Cell) -> dict:
    """What does not differ between the runs of a cell."""
    n, size = steps_of(cell.budget), SIZES.index(cell.size) if cell.size in SIZES else 2
    return {
        "gate_ratio": 0.7, "gate_passed": True, "dry_run": False, "weights": "trained", "scored_images": 1000,
        "fid_by_images": None, "passes": n * (2.0 if cell.budget.startswith("every") else 1.2), "parameters": 1e5,
        "N": float(n), "sample_device": "CPU", "reference": "training images",
        "flops": 10.0 ** (12 + size / 2), "extractor_identity": "cnn",
    }  # fmt: skip


def write_records(root, frame: pd.DataFrame) -> None:
    """Records whose runs are those of the frame, under root/results, as the stages write them."""
    rng = np.random.default_rng(1)
    with contextlib.chdir(root):
        for (name, size), model in frame.groupby(["benchmark", "size"]):
            bench = load_benchmark(REPO / params_file(name))
            bench = dataclasses.replace(bench, title=f"Made up {name}", images_of=name, models_of=None)
            _write_model(functools.partial(write_record, bench, device="cpu"), bench, size, model, rng)


def _write_model(write, bench, size, model, rng):
    """The records of one model, and of what it shares with the others of its benchmark."""
    seeds = sorted(map(int, model["train_seed"].unique()))
    train = dataclasses.replace(bench.train_config(size), seeds=tuple(seeds))
    ratios = {"values": [model["gate_ratio"].iloc[0]] * len(seeds)}
    results = {"parameters": 30_000, "flops": float(model["flops"].iloc[0]), "images": 192_000}
    write(f"train-{size}", results | {"context": {"ratio": ratios, "passed": True}}, train=train)
    scores, along, identity = {}, {}, {"sha256": "made up"}
    for budget, runs in model.groupby("budget", sort=False):
        own = sorted(map(int, runs["sample_seed"].unique()))
        scores[budget] = {"runs": [], "fid_by_images": []}
        for run in runs.itertuples():
            key = {"train_seed": int(run.train_seed), "sample_seed": int(run.sample_seed)}
            scored = key | {"fid": run.fid, "kid": run.fid / 20, "precision": 0.7, "recall": 0.6, "isc": run.isc}
            if not np.isnan(run.snapshot):
                along.setdefault(run.snapshot, []).append(scored)
                continue
            near = {"nearest_train": 40 + rng.normal(0, 0.1), "nearest_holdout": 41.0}
            scores[budget]["runs"].append(scored | near)
            curve = {str(n): run.fid + 500 / n + rng.normal(0, 0.02) for n in (1000, 500, 250)}
            scores[budget]["fid_by_images"].append(key | {"fid": curve})
            if runs["snapshot"].notna().any():
                along.setdefault(1.0, []).append(scored)
        passes = float(runs["passes"].iloc[0])
        results = {"passes": passes, "nfe": passes, "seconds_per_image": {"mean": 1.0}, "images_per_second": 2.0}
        write(f"sample-{size}-{budget}", results, train_seeds=seeds, seeds=own)
    write(f"evaluate-{size}", scores, extractor_identity=identity)
    shuffle = {"fid": {"mean": 9.51, "n": 2, "std": 0.2}, "kid": {"mean": 0.28, "n": 2, "std": 0.01}}
    shuffle |= {"isc": {"mean": 6.0}, "images": 1000}
    held_out = {"fid": {"mean": 1.1}, "isc": {"mean": 9.0}, "images": 1000}
    known = {"baselines": {"class_shuffle": shuffle, "holdout": held_out}}
    known["nearest"] = {"real_ratio": {"mean": 1.0, "values": list(1 + 0.005 * rng.standard_normal(20))}}
    write("reference", known)
    if along:
        points = [{"step": round(train.steps * share), "runs": runs} for share, runs in sorted(along.items())]
        write(f"snapshots-{size}", {"points": points}, train=train, seeds=own, extractor_identity=identity)
    counts = {"train_images": 4000, "holdout_images": 1000}
    write("prepare", counts | {"shape": [1, *[bench.data.resolution] * 2], "classes": 10})
    write("extractor", {"features": 64})
