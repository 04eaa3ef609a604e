"""Gather the scores of all sizes and budgets for `dvc metrics` and `dvc plots`."""

from __future__ import annotations

from emigm.config.benchmark import Benchmark
from emigm.config.paths import results_folder
from emigm.files import write_atomically, write_json
from emigm.records.record import read_record
from emigm.runtime.launching import run_stage

SHOWN = ("fid", "isc")
"""Scores in metrics.json, a column each for `dvc metrics show`; table2-metrics.csv has them all."""


def summarise(benchmark: Benchmark) -> None:
    folder = results_folder(benchmark.name)
    metrics: dict[str, dict] = {}
    rows = ["size,budget,parameters,nfe,fid,fid_train_std,fid_sample_std"]
    for size in benchmark.sizes:
        trained = read_record(folder / "records" / f"train-{size}.json")["results"]
        metrics[size] = {}
        if trained["context"] is not None:  # released weights have none without held-out latents
            metrics[size]["context_ratio"] = trained["context"]["ratio"]["mean"]
        evaluated = read_record(folder / "records" / f"evaluate-{size}.json")["results"]
        for budget in benchmark.budgets:
            scored = evaluated[budget]["summary"]
            sampled = read_record(folder / "records" / f"sample-{size}-{budget}.json")["results"]
            metrics[size][f"n{budget}"] = {name: scored[name]["mean"] for name in SHOWN if name in scored}
            fid = scored["fid"]
            row = (
                size,
                budget,
                trained["parameters"],
                sampled["nfe"],
                fid["mean"],
                fid["train_std"],
                fid["sample_std"],
            )
            rows.append(",".join("" if v is None else str(v) for v in row))
    baselines = read_record(folder / "records" / "reference.json")["results"]["baselines"]
    write_curves(benchmark)
    metrics["baselines"] = {name: baseline["fid"]["mean"] for name, baseline in baselines.items()}
    write_json(folder / "metrics.json", metrics)
    write_atomically(folder / "fid.csv", lambda p: p.write_text("\n".join(rows) + "\n"))


def write_curves(benchmark: Benchmark) -> None:
    """The training curves of all sizes as one table, for one chart."""
    folder = results_folder(benchmark.name)
    lines = ["size,step,loss,least,greatest"]
    for size in benchmark.sizes:
        rows = (folder / "curves" / f"{size}.csv").read_text().splitlines()[1:]
        lines += [f"{size},{row}" for row in rows]
    write_atomically(folder / "curves.csv", lambda p: p.write_text("\n".join(lines) + "\n"))


if __name__ == "__main__":
    run_stage(summarise, one_process=True)
