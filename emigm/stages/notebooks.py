"""Execute every notebook of tables and figures, several at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import papermill

from emigm.benchmark import Benchmark
from emigm.records import results_folder
from emigm.workspace import Progress, parallel, run_stage


def execute_all(benchmark: Benchmark) -> None:
    notebooks = sorted(Path("notebooks").glob("*.ipynb"))
    folder = results_folder(benchmark.name) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    parallel(partial(execute, benchmark.name, folder), notebooks, 1, "notebook", f"notebooks {benchmark.name}")


def execute(benchmark: str, folder: Path, notebook: Path, progress: Progress) -> None:
    """What `papermill <notebook> <folder>/<notebook> -p benchmark <benchmark>` does."""
    papermill.execute_notebook(notebook, folder / notebook.name, {"benchmark": benchmark}, progress_bar=False)
    progress(1)


if __name__ == "__main__":
    run_stage(execute_all, one_process=True)
