"""Runs with known effects, as a frame and as records on disk: no number here was measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from emigm.io import write_json
from emigm.paper.claims import Cell, Claims

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
    for (name, size), model in frame.groupby(["benchmark", "size"]):
        folder = root / "results" / name / "records"
        seeds = sorted(map(int, model["train_seed"].unique()))
        common = {"schema": 2, "title": f"Made up {name}", "dry_run": False, "weights": "trained", "benchmark": name}
        common |= {"provenance": {"device": "CPU", "commit": "0" * 40, "date": "2026-01-01T00:00:00+00:00"}}
        common |= {"images_of": name}
        model_settings = {
            "grid": 14, "channels": 1, "classes": 10, "patch": 2, "width": 64, "heads": 4, "buffer": 4,
            "encoder_blocks": 1, "decoder_blocks": 1, "head_width": 64, "head_blocks": 1,
            "mae": not size.startswith(("elbo", "one")),
        }  # fmt: skip
        schedule = next((s for s in ("linear", "cosine", "log_exp") if s in size), "exp").replace("_", "-")
        train = {"steps": 3000, "batch": 64, "lr": 0.004, "seeds": seeds, "schedule": schedule, "t_min": 0.0}
        train["lr_schedule"] = "constant"
        train |= {"weight": "elbo" if "elbo" in size or size == "mdm" else "one", "masking": "independent"}
        ratio = model["gate_ratio"].iloc[0]
        results = {"parameters": 30_000, "flops": float(model["flops"].iloc[0]), "images": 192_000}
        results |= {"context": {"ratio": {"values": [ratio] * len(seeds)}, "passed": True}}
        settings = {"size": size, "model": model_settings, "train": train, "gate": {"max_ratio": 0.95}}
        write(folder, common, f"train-{size}", results, **settings)
        scores, along = {}, {}
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
                if budget in snapshots_of(model):
                    along.setdefault(1.0, []).append(scored)
            kind, _, rest = budget.partition("_")
            scale = float(f"{rest[0]}.{rest[1:]}") if kind == "scale" else 2.0
            guided = "plain" not in budget
            interval = (
                [int(x) / 10 for x in rest.split("_")] if kind == "grid" else [0.1, 0.3] if kind == "late" else [0, 1]
            )
            sample = {"steps": int(runs["N"].iloc[0]), "cfg_scale": scale if guided else 1.0, "cfg_interval": interval}
            sample |= {"cfg_schedule": "constant", "schedule": "exp", "order": "binomial", "x0_clip": None}
            ddpm = {"solver": "ddpm", "solver_steps": 100, "x0_clip": None if kind == "unclipped" else 0.8}
            solver = {"solver": "dpm-solver", "solver_steps": 12}
            sample |= ddpm if kind in ("exp", "cosine", "linear", "unclipped") else solver
            passes = float(runs["passes"].iloc[0])
            results = {"passes": passes, "nfe": passes, "seconds_per_image": {"mean": 1.0}, "images_per_second": 2.0}
            settings = {"size": size, "budget": budget, "sample": sample, "train_seeds": seeds, "seeds": own}
            write(folder, common, f"sample-{size}-{budget}", results, **settings)
        scorer = {"images": 1000, "extractor": {"kind": "cnn"}, "extractor_identity": {"sha256": "made up"}}
        write(folder, common | {"reference": "training images"}, f"evaluate-{size}", scores, size=size, **scorer)
        shuffle = {"fid": {"mean": 9.51, "n": 2, "std": 0.2}, "kid": {"mean": 0.28, "n": 2, "std": 0.01}}
        shuffle |= {"isc": {"mean": 6.0}, "images": 1000}
        held_out = {"fid": {"mean": 1.1}, "isc": {"mean": 9.0}, "images": 1000}
        known = {"baselines": {"class_shuffle": shuffle, "holdout": held_out}}
        known["nearest"] = {"real_ratio": {"mean": 1.0, "values": list(1 + 0.005 * rng.standard_normal(20))}}
        write(folder, common, "reference", known)
        if snapshots_of(model):
            points = [{"step": round(3000 * share), "runs": runs} for share, runs in sorted(along.items())]
            settings = {"size": size, "budget": snapshots_of(model)[0], "train": train, "images": 1000, "seeds": own}
            settings |= {"extractor": {"kind": "cnn"}, "extractor_identity": {"sha256": "made up"}}
            real = common | {"reference": "training images"}
            write(folder, real, f"snapshots-{size}", {"points": points}, **settings)
        data = {"data": {"dataset": "mnist"}}
        counts = {"train_images": 4000, "holdout_images": 1000}
        write(folder, common, "prepare", counts | {"shape": [1, 14, 14], "classes": 10}, **data)
        write(folder, common, "extractor", {"features": 64})


def snapshots_of(model: pd.DataFrame) -> list[str]:
    """Budgets that a model's snapshots are scored at."""
    return list(model.loc[model["snapshot"].notna(), "budget"].unique())


def write(folder, common: dict, stage: str, results: dict, **settings) -> None:
    write_json(folder / f"{stage}.json", common | {"stage": stage, "settings": settings, "results": results})
