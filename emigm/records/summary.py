"""What follows from records: the summary of runs, and the files that `dvc metrics` and `dvc plots` show. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHOWN = ("fid", "isc")
"""Scores in metrics/, a column each for `dvc metrics show`; scores.csv has them all."""
STDS = ("train_std", "sample_std")
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


def run_metrics(sizes: Sequence[str], budgets: Sequence[str], records: Mapping[str, Record]) -> dict[str, Any]:
    """Contents of metrics/<model>-<sampling configuration>.json by name, from the records by stage: a file is a row of
    `dvc metrics show`, so that its table is as wide for many models and configurations as for one."""
    files = {}
    for size in sizes:
        for budget in budgets:
            scored = summaries(records[f"evaluate-{size}"]["results"][budget]["runs"])
            files[f"{size}-{budget}.json"] = {name: scored[name]["mean"] for name in SHOWN if name in scored}
    return files


def scores_table(sizes: Sequence[str], budgets: Sequence[str], records: Mapping[str, Record]) -> str:
    """Content of scores.csv: the mean of every metric, and of FID the standard deviations over seeds."""
    import pandas as pd  # every stage imports this module

    rows = []
    for size in sizes:
        trained = records[f"train-{size}"]["results"]
        context = trained["context"]  # released weights have no gate without held-out latents
        for budget in budgets:
            nfe = records[f"sample-{size}-{budget}"]["results"]["nfe"]
            scored = summaries(records[f"evaluate-{size}"]["results"][budget]["runs"])
            row = {"size": size, "budget": budget, "parameters": trained["parameters"], "nfe": nfe}
            row["context_ratio"] = context and context["ratio"]["mean"]
            row |= {"fid": scored["fid"]["mean"]} | {f"fid_{std}": scored["fid"][std] for std in STDS}
            rows.append(row | {name: value["mean"] for name, value in scored.items() if name != "fid"})
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def curves_table(curves: Mapping[str, str]) -> str:
    """Content of curves.csv: the curves of all sizes (size -> its CSV) as one table, for one chart."""
    lines = ["size,step,loss,least,greatest"]
    lines += [f"{size},{row}" for size, text in curves.items() for row in text.splitlines()[1:]]
    return "\n".join(lines) + "\n"
