"""Gather the scores of all models and sampling configurations for `dvc metrics` and `dvc plots`."""

from __future__ import annotations

from emigm.config.benchmark import Benchmark
from emigm.config.paths import results_folder
from emigm.io import write_atomically, write_json
from emigm.launching import run_stage
from emigm.records.record import read_record
from emigm.records.summary import curves_table, run_metrics, scores_table


def summary(benchmark: Benchmark) -> None:
    folder, sizes, budgets = results_folder(benchmark.name), benchmark.sizes, benchmark.budgets
    trained = results_folder(benchmark.models_of or benchmark.name)
    stages = ["reference", *(f"evaluate-{size}" for size in sizes)]
    stages += [f"sample-{size}-{budget}" for size in sizes for budget in budgets]
    records = {stage: read_record(folder / "records" / f"{stage}.json") for stage in stages}
    records |= {f"train-{size}": read_record(trained / "records" / f"train-{size}.json") for size in sizes}
    curves = {size: (trained / "curves" / f"{size}.csv").read_text() for size in sizes}
    tables = {"scores.csv": scores_table(sizes, budgets, records), "curves.csv": curves_table(curves)}
    for name, text in tables.items():
        write_atomically(folder / name, lambda p, text=text: p.write_text(text))
    for name, metrics in run_metrics(sizes, budgets, records).items():  # DVC has removed the folder
        write_json(folder / "metrics" / name, metrics)


if __name__ == "__main__":
    run_stage(summary, one_process=True)
