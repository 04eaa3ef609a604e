"""Runs with known effects, as a frame and as records on disk: no number here was measured."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pandas as pd

from emigm.io import write_json
from emigm.paper.claims import Cells, Claims

GROUND = "MNIST"
SIZES = ("xs", "s", "b", "l", "h")
Effect = Callable[[Cells], float]


def cells_of(claims: Claims, ground: str = GROUND) -> list[Cells]:
    """Every cell that a claim reads on one kind of data."""
    cells = []
    for claim in claims.claims:
        for place in claim.at if claims.ground(claim.at[0].benchmark).startswith(ground) else ():
            if claims.ground(place.benchmark).startswith(ground):
                cells += claim.cells(place)
    return list(dict.fromkeys(cells))


def simulate(
    claims: Claims, effect: Effect = lambda cell: 0.0, seed: int = 0, seeds: int = 6, samples: int = 2,
    noise: float = 0.2, shared: float = 0.3,
) -> pd.DataFrame:  # fmt: skip
    """A frame like `emigm.records.frame.runs`: FID 5 + `effect` of a cell + what the runs of one training seed share
    (deviation `shared`) + noise of each run."""
    rng, rows, common = np.random.default_rng(seed), [], {}
    for cell in cells_of(claims):
        for t in range(10, 10 + seeds):
            own = common.setdefault((cell.benchmark, t), rng.normal(0, shared))
            for s in range(samples):
                run = {"benchmark": cell.benchmark, "size": cell.size, "budget": cell.budget, "train_seed": t}
                run |= {"sample_seed": 100 * t + s, "snapshot": np.nan if cell.snapshot is None else cell.snapshot}
                run |= {"fid": 5 + effect(cell) + own + rng.normal(0, noise)}
                run |= {"seconds_per_image": 1 + (cell.size in SIZES and 0.1) + rng.normal(0, 0.01)}
                rows.append(run | facts(cell))
    return pd.DataFrame(rows)


def facts(cell: Cells) -> dict:
    """What does not differ between the runs of a cell."""
    digits = "".join(c for c in cell.budget.split("_")[-1] if c.isdigit())
    return {
        "gate_ratio": 0.7, "gate_passed": True, "dry_run": False, "weights": "trained", "scored_images": 1000,
        "fid_by_images": None, "passes": float(digits or cell.budget.split("_")[0]), "parameters": 1e5,
        "N": float(digits or cell.budget.split("_")[0]), "sample_device": "CPU", "reference": "training images",
        "flops": 10.0 ** (12 + (SIZES.index(cell.size) / 2 if cell.size in SIZES else 2)), "extractor_identity": "cnn",
    }  # fmt: skip


def write_records(root, frame: pd.DataFrame) -> None:
    """Records whose runs are those of the frame, under root/results, as the stages write them."""
    rng = np.random.default_rng(1)
    scorer = {"images": 1000, "extractor": {"kind": "cnn"}, "extractor_identity": {"sha256": "made up"}}
    for (name, size), model in frame.groupby(["benchmark", "size"]):
        common = {"schema": 2, "title": f"Made up {name}", "dry_run": False, "weights": "trained", "benchmark": name}
        common |= {"provenance": {"device": "CPU", "commit": "0" * 40, "date": "2026-01-01T00:00:00+00:00"}}
        common |= {"images_of": name}
        save = functools.partial(write, root / "results" / name / "records", common)
        seeds, ratio = sorted(map(int, model["train_seed"].unique())), model["gate_ratio"].iloc[0]
        model_settings = {
            "grid": 14, "channels": 1, "classes": 10, "patch": 2, "width": 64, "heads": 4, "buffer": 4,
            "encoder_blocks": 1, "decoder_blocks": 1, "head_width": 64, "head_blocks": 1, "mae": "nomae" not in size,
        }  # fmt: skip
        train = {
            "steps": 3000, "batch": 64, "lr": 0.004, "seeds": seeds, "t_min": 0.0, "lr_schedule": "constant",
            "schedule": next((s for s in ("linear", "cosine") if s in size), "exp"), "masking": "independent",
            "weight": "elbo" if "elbo" in size or size == "mdm" else "one",
        }  # fmt: skip
        results = {"parameters": 30_000, "flops": float(model["flops"].iloc[0]), "images": 192_000}
        results |= {"context": {"ratio": {"values": [ratio] * len(seeds)}, "passed": True}}
        save(f"train-{size}", results, size=size, model=model_settings, train=train, gate={"max_ratio": 0.95})
        scores, along, scored_along = {}, {}, snapshots_of(model)
        for budget, runs in model.groupby("budget", sort=False):
            own = sorted(map(int, runs["sample_seed"].unique()))
            scores[budget] = {"runs": [], "fid_by_images": []}
            for run in runs.itertuples():
                key = {"train_seed": int(run.train_seed), "sample_seed": int(run.sample_seed)}
                scored = key | {"fid": run.fid, "kid": run.fid / 20, "precision": 0.7, "recall": 0.6, "isc": 7.0}
                final = np.isnan(run.snapshot)
                if final:
                    near = {"nearest_train": 40 + rng.normal(0, 0.1), "nearest_holdout": 41.0}
                    scores[budget]["runs"].append(scored | near)
                    curve = {str(n): run.fid + 500 / n + rng.normal(0, 0.02) for n in (1000, 500, 250)}
                    scores[budget]["fid_by_images"].append(key | {"fid": curve})
                if not final or budget in scored_along:
                    along.setdefault(1.0 if final else run.snapshot, []).append(scored)
            word, steps = budget.split("_")[0], runs["N"].iloc[0]
            scale = float(word[5:]) / (100 if len(word) > 7 else 10) if word.startswith("scale") else 1.5
            sample = {
                "steps": int(steps), "cfg_scale": scale if word[:4] in ("scal", "tmin") else 1.0, "schedule": "exp",
                "cfg_interval": [0.2, 1.0], "order": "binomial", "x0_clip": None, "solver": "dpm-solver",
                "solver_steps": 12,
            }  # fmt: skip
            passes = float(steps) * (1.5 if word.startswith("tmin") else 1)
            results = {"passes": passes, "nfe": passes, "seconds_per_image": {"mean": 1.0}, "images_per_second": 2.0}
            settings = {"size": size, "budget": budget, "sample": sample, "train_seeds": seeds, "seeds": own}
            save(f"sample-{size}-{budget}", results, **settings)
        save(f"evaluate-{size}", scores, reference="training images", size=size, **scorer)
        shuffle = {"fid": {"mean": 11.0, "n": 2, "std": 0.2}, "kid": {"mean": 0.28, "n": 2, "std": 0.01}}
        known = {"class_shuffle": shuffle | {"images": 1000}, "holdout": {"fid": {"mean": 1.1}, "images": 1000}}
        nearest = {"real_ratio": {"mean": 1.0, "values": list(1 + 0.005 * rng.standard_normal(20))}}
        save("reference", {"baselines": known, "nearest": nearest})
        if scored_along:
            points = [{"step": round(3000 * share), "runs": runs} for share, runs in sorted(along.items())]
            settings = {"size": size, "budget": scored_along[0], "train": train, "seeds": own, **scorer}
            save(f"snapshots-{size}", {"points": points}, reference="training images", **settings)
        counts = {"train_images": 4000, "holdout_images": 1000, "shape": [1, 14, 14], "classes": 10}
        save("prepare", counts, data={"dataset": "mnist"})
        save("extractor", {"features": 64})


def snapshots_of(model: pd.DataFrame) -> list[str]:
    """Budgets that a model's snapshots are scored at."""
    return list(model.loc[model["snapshot"].notna(), "budget"].unique())


def write(folder, common: dict, stage: str, results: dict, reference: str | None = None, **settings) -> None:
    record = common | ({"reference": reference} if reference else {}) | {"stage": stage}
    write_json(folder / f"{stage}.json", record | {"settings": settings, "results": results})
