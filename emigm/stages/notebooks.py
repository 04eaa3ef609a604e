"""Execute notebooks of tables and figures, several at once."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import papermill

from emigm.config.benchmark import load_benchmark
from emigm.config.errors import UserError
from emigm.config.parsing import known
from emigm.config.paths import results_folder
from emigm.runtime.pools import Progress, parallel


def execute_all(benchmark: str, names: list[str], part: str) -> None:
    """Execute notebooks/<name>.ipynb of every name, for one benchmark, into results/<benchmark>/<part>."""
    existing = sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))
    for name in names:
        known("notebook", name, existing)
    folder = results_folder(benchmark) / part
    folder.mkdir(parents=True, exist_ok=True)
    parallel(partial(execute, benchmark, folder), names, 1, "notebook", f"notebooks {benchmark}")


def execute(benchmark: str, folder: Path, name: str, progress: Progress) -> None:
    """What `papermill notebooks/<name>.ipynb <folder>/<name>.ipynb -p benchmark <benchmark>` does."""
    notebook = f"{name}.ipynb"
    papermill.execute_notebook(
        Path("notebooks") / notebook, folder / notebook, {"benchmark": benchmark}, progress_bar=False
    )
    progress(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="notebooks/NAME.ipynb")
    parser.add_argument("--benchmark", help="default: that of params.yaml")
    parser.add_argument("--part", default="notebooks", help="folder of the benchmark's results for the executed ones")
    options = parser.parse_args()
    try:
        execute_all(options.benchmark or load_benchmark().name, options.names, options.part)
    except UserError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
