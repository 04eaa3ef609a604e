"""Gather the scores of all sizes and budgets for `dvc metrics` and `dvc plots`."""

from __future__ import annotations

from emigm.config.benchmark import Benchmark
from emigm.config.paths import results_folder
from emigm.io import write_atomically, write_json
from emigm.launching import run_stage
from emigm.records.record import read_record
from emigm.records.summary import curves_table, fid_table, metrics_tree


def summary(benchmark: Benchmark) -> None:
    folder, sizes, budgets = results_folder(benchmark.name), benchmark.sizes, benchmark.budgets
    stages = ["reference", *(f"{stage}-{size}" for stage in ("train", "evaluate") for size in sizes)]
    stages += [f"sample-{size}-{budget}" for size in sizes for budget in budgets]
    records = {stage: read_record(folder / "records" / f"{stage}.json") for stage in stages}
    curves = {size: (folder / "curves" / f"{size}.csv").read_text() for size in sizes}
    tables = {"fid.csv": fid_table(sizes, budgets, records), "curves.csv": curves_table(curves)}
    for name, text in tables.items():
        write_atomically(folder / name, lambda p, text=text: p.write_text(text))
    write_json(folder / "metrics.json", metrics_tree(sizes, budgets, records))


if __name__ == "__main__":
    run_stage(summary, one_process=True)
