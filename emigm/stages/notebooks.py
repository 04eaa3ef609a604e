"""Execute one notebook into results/<benchmark>/notebooks/<notebook>, with all that it saves."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from emigm.config.errors import RunError
from emigm.config.parsing import known
from emigm.config.paths import results_folder
from emigm.launching import in_one_line
from emigm.report.tables import write_text

FOLDER = Path("notebooks")


def execute(name: str, benchmark: str | None, into: str) -> Path:
    """What `papermill notebooks/<name>.ipynb ... -p benchmark <benchmark> -p out <folder>` does.

    Args:
        name: of the notebook.
        benchmark: what it shows; None: what it shows by itself (one that gathers several benchmarks).
        into: folder of results/ that gets it.

    The same records give the same bytes: the executed notebook holds no times, and no path of the machine.

    Returns:
        The folder with <name>.ipynb and what the notebook saved. A notebook that fails leaves none behind.

    Raises:
        ConfigError: there is no such notebook.
        RunError: a cell failed; the message is a user's mistake in one line, or else holds the traceback.
    """
    known("notebook", name, sorted(path.stem for path in FOLDER.glob("*.ipynb")))
    out = results_folder(into) / "notebooks" / name
    shutil.rmtree(out, ignore_errors=True)
    notebook = load_notebook_node(str(FOLDER / f"{name}.ipynb"))
    asked = {} if benchmark is None else {"benchmark": benchmark}
    notebook = parameterize_notebook(notebook, asked | {"out": out.as_posix()})
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"  # that of the parameters' is random
    config = Config()
    config.KernelManager.transport = (
        "ipc" if sys.platform == "linux" else "tcp"
    )  # over TCP kernels warn of eavesdropping
    try:
        NotebookClient(notebook, kernel_name="python3", record_timing=False, timeout=None, config=config).execute()
    except DeadKernelError as e:
        shutil.rmtree(out, ignore_errors=True)
        raise RunError(
            f"{FOLDER / name}.ipynb, for results/{into}: its kernel died, as where memory runs out; free some, then "
            "type the same command again"
        ) from e
    except CellExecutionError as e:
        shutil.rmtree(out, ignore_errors=True)
        mistake = e.ename in ("ConfigError", "RunError")  # one message; else where it happened, without colours
        what = e.evalue if mistake else re.sub(r"\x1b\[[0-9;]*m", "", str(e))
        raise RunError(f"{FOLDER / name}.ipynb, for results/{into}: {what}") from e
    for part in (notebook, *notebook.cells):
        part.metadata.pop("papermill", None)
    write_text(out / f"{name}.ipynb", nbformat.writes(notebook))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of notebooks/NAME.ipynb")
    parser.add_argument("--benchmark", help="what it shows (default: what it shows by itself)")
    parser.add_argument("--into", help="folder of results/ that gets it (default: the benchmark's)")
    options = parser.parse_args()
    if not (options.into or options.benchmark):
        parser.error("give --benchmark, --into or both")
    with in_one_line():
        execute(options.name, options.benchmark, options.into or options.benchmark)


if __name__ == "__main__":
    main()
