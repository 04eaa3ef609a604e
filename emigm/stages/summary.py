"""Gather the scores of all models and sampling configurations for `dvc metrics` and `dvc plots`."""

from __future__ import annotations

from pathlib import Path

from emigm.config.benchmark import Benchmark
from emigm.config.errors import check
from emigm.config.paths import results_folder
from emigm.io import write_json
from emigm.launching import run_stage
from emigm.records.frame import runs
from emigm.report.statistics import summarise
from emigm.report.tables import METRICS, write_text


def summary(benchmark: Benchmark) -> None:
    """Write what DVC shows.

    scores.csv: of every model and sampling configuration the mean of each metric, and FID's combined standard error.
    metrics/<model>-<sampling configuration>.json: FID and IS, a row each of `dvc metrics show`, so that its table is as
    wide for many as for one. curves.csv: the curves of all models for one chart.
    """
    folder, trained = results_folder(benchmark.name), results_folder(benchmark.models_of or benchmark.name)
    frame = runs(Path(), [benchmark.name])
    frame = frame[frame["snapshot"].isna() & frame["fid"].notna()]
    frame = frame[frame["size"].isin(benchmark.sizes) & frame["budget"].isin(benchmark.budgets)]
    number, expected = frame.groupby(["size", "budget"]).ngroups, len(benchmark.sizes) * len(benchmark.budgets)
    remedy = "run dvc repro, which evaluates the others"
    check(number == expected, f"{folder}: {number} of {expected} models and configurations have scores; {remedy}")
    also = ["parameters", "nfe", "gate_ratio", *(m for m in METRICS if m in frame and frame[m].notna().all())]
    cells = summarise(frame, "fid", ("size", "budget"), also).astype({"parameters": int})
    cells = cells.drop(columns=["mean", "train_seeds", "sample_seeds", "n"]).rename(columns={"error": "fid_error"})
    write_text(folder / "scores.csv", cells.to_csv(index=False, lineterminator="\n"))
    for row in cells.to_dict("records"):  # DVC has removed the folder
        shown = {key: row[key] for key in ("fid", "isc")}
        write_json(folder / "metrics" / f"{row['size']}-{row['budget']}.json", shown)

    lines = ["size,step,loss,least,greatest"]
    for size in benchmark.sizes:
        rows = (trained / "curves" / f"{size}.csv").read_text(encoding="utf-8").splitlines()[1:]
        lines += [f"{size},{row}" for row in rows]
    write_text(folder / "curves.csv", "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_stage(summary, one_process=True)
