"""What follows from records: the summary of runs, and the files that `dvc metrics` and `dvc plots` show. No torch.

The stages write these, and `emigm verify` computes them again from the records that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHOWN = ("fid", "isc")
"""Scores in metrics.json, a column each for `dvc metrics show`; the table of scores has them all."""
KEYS = ("train_seed", "sample_seed")
"""What tells runs of one size and budget apart; all else in a run is a metric."""
Record = Mapping[str, Any]


def seed_variances(values: Mapping[Any, Sequence[float]]) -> tuple[float | None, float | None]:
    """Variance over training seeds of their means over sampling seeds, and over sampling seeds within a training seed
    (pooled); None where there is one seed only.

    Args:
        values: training seed -> a value for each sampling seed; equally many for all.
    """
    groups = [np.array(v, dtype=float) for v in values.values()]
    between = float(np.var([g.mean() for g in groups], ddof=1)) if len(groups) > 1 else None
    within = float(np.mean([g.var(ddof=1) for g in groups])) if len(groups[0]) > 1 else None
    return between, within


def summarise(runs: Sequence[Record], metric: str) -> dict[str, float | None]:
    """Mean over all runs, and the standard deviations that belong to `seed_variances`."""
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run["train_seed"], []).append(run[metric])
    between, within = (None if v is None else float(np.sqrt(v)) for v in seed_variances(by_seed))
    return {
        "mean": float(np.mean([np.mean(v) for v in by_seed.values()])),
        "train_std": between,
        "sample_std": within,
    }


def summaries(runs: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    """Summary of every metric that was measured in all runs of one size and budget."""
    metrics = [k for k in runs[0] if k not in KEYS]
    return {m: summarise(runs, m) for m in metrics if all(r[m] is not None for r in runs)}


def metrics_tree(sizes: Sequence[str], budgets: Sequence[str], records: Mapping[str, Record]) -> dict[str, Any]:
    """Content of metrics.json, from the records by stage."""
    metrics: dict[str, Any] = {}
    for size in sizes:
        context = records[f"train-{size}"]["results"]["context"]
        # Released weights have no gate without held-out latents.
        metrics[size] = {} if context is None else {"context_ratio": context["ratio"]["mean"]}
        for budget in budgets:
            scored = summaries(records[f"evaluate-{size}"]["results"][budget]["runs"])
            metrics[size][f"n{budget}"] = {name: scored[name]["mean"] for name in SHOWN if name in scored}
    baselines = records["reference"]["results"]["baselines"]
    metrics["baselines"] = {name: baseline["fid"]["mean"] for name, baseline in baselines.items()}
    return metrics


def fid_table(sizes: Sequence[str], budgets: Sequence[str], records: Mapping[str, Record]) -> str:
    """Content of fid.csv."""
    lines = ["size,budget,parameters,nfe,fid,fid_train_std,fid_sample_std"]
    for size in sizes:
        parameters = records[f"train-{size}"]["results"]["parameters"]
        for budget in budgets:
            nfe = records[f"sample-{size}-{budget}"]["results"]["nfe"]
            fid = summaries(records[f"evaluate-{size}"]["results"][budget]["runs"])["fid"]
            row = (size, budget, parameters, nfe, fid["mean"], fid["train_std"], fid["sample_std"])
            lines.append(",".join("" if v is None else str(v) for v in row))
    return "\n".join(lines) + "\n"


def curves_table(curves: Mapping[str, str]) -> str:
    """Content of curves.csv: the curves of all sizes (size -> its CSV) as one table, for one chart."""
    lines = ["size,step,loss,least,greatest"]
    lines += [f"{size},{row}" for size, text in curves.items() for row in text.splitlines()[1:]]
    return "\n".join(lines) + "\n"
