"""What follows from records: the summary of runs, and the files that `dvc metrics` and `dvc plots` show. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHOWN = ("fid", "isc")
"""Scores in metrics.json, a column each for `dvc metrics show`; the table of scores has them all."""
KEYS = ("train_seed", "sample_seed")
"""What tells runs of one size and budget apart; all else in a run is a metric."""
Record = Mapping[str, Any]


def summaries(runs: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    """Of every metric that was measured in all runs of one size and sampling configuration: the mean over training
    seeds of their means over sampling seeds; the standard deviation of these means over training seeds; and that over
    sampling seeds within a training seed (pooled; equally many for all). None where there is one seed only.
    """
    found = {}
    for metric in [key for key in runs[0] if key not in KEYS]:
        by_seed: dict[Any, list[float]] = {}
        for run in runs:
            by_seed.setdefault(run["train_seed"], []).append(run.get(metric))
        if not all(isinstance(value, (int, float)) for values in by_seed.values() for value in values):
            continue  # not measured, or not one number
        groups = [np.array(values, dtype=float) for values in by_seed.values()]
        means, several = [float(np.mean(g)) for g in groups], len(groups[0]) > 1
        found[metric] = {
            "mean": float(np.mean(means)),
            "train_std": float(np.sqrt(np.var(means, ddof=1))) if len(means) > 1 else None,
            "sample_std": float(np.sqrt(np.mean([g.var(ddof=1) for g in groups]))) if several else None,
        }
    return found


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
