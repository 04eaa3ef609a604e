"""Execute one notebook into results/<benchmark>/notebooks/<notebook>, with all that it saves."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from emigm.config.errors import RunError
from emigm.config.parsing import known
from emigm.config.paths import results_folder
from emigm.io import TEMPORARY
from emigm.launching import in_one_line, only_one
from emigm.report.tables import write_text

FOLDER = Path("notebooks")
LONGEST_SOCKET = 90  # characters of a temporary folder that leave room for a socket's name: 107 are allowed in all


def execute(name: str, benchmark: str | None, into: str) -> Path:
    """What `papermill notebooks/<name>.ipynb ... -p benchmark <benchmark> -p out <folder>` does, into the folder
    results/<into>/notebooks/<name>, which is returned; `benchmark` None: the notebook gathers several by itself.

    The same records give the same bytes: the executed notebook holds no times, and no path of the machine. Earlier
    files stay until the notebook has come to its end. RunError where a cell failed, with its mistake or traceback.
    """
    known("notebook", name, sorted(path.stem for path in FOLDER.glob("*.ipynb")))
    out = results_folder(into) / "notebooks" / name
    work, asked = out.with_name(f".{name}{TEMPORARY}"), {} if benchmark is None else {"benchmark": benchmark}
    with only_one(into, f"notebook-{name}"):
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir(parents=True)
        try:
            notebook, written = (
                parameterize_notebook(load_notebook_node(str(FOLDER / f"{name}.ipynb")), asked | {"out": where})
                for where in (work.as_posix(), out.as_posix())
            )
            _run(notebook, f"{FOLDER / name}.ipynb, for results/{into}")
            for i, (cell, named) in enumerate(zip(notebook.cells, written.cells, strict=True)):
                cell["id"], cell["source"] = f"cell-{i}", named["source"]  # the identifier of the parameters is random
            for part in (notebook, *notebook.cells):
                part.metadata.pop("papermill", None)
            write_text(work / f"{name}.ipynb", nbformat.writes(notebook))
            shutil.rmtree(out, ignore_errors=True)
            work.rename(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return out


def _run(notebook: nbformat.NotebookNode, title: str) -> None:
    """Execute all cells in a kernel whose sockets lie in a temporary folder of its own, outside of the repository."""
    with tempfile.TemporaryDirectory(prefix="emigm-kernel-", ignore_cleanup_errors=True) as folder:
        sockets = sys.platform == "linux" and len(folder) < LONGEST_SOCKET
        client = NotebookClient(notebook, record_timing=False, timeout=None)
        client.km = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # this interpreter's kernel, not a user's own
            connection_file=os.path.join(folder, "kernel.json"),
            transport="ipc" if sockets else "tcp",  # over TCP kernels warn of eavesdropping
        )
        try:
            client.execute()
        except DeadKernelError as e:
            remedy = "as where memory runs out; free some, then type the same command again"
            raise RunError(f"{title}: its kernel died, {remedy}") from e
        except CellExecutionError as e:
            mistake = e.ename in ("ConfigError", "RunError")  # one message; else where it happened, without colours
            message = e.evalue if mistake else re.sub(r"\x1b\[[0-9;]*m", "", str(e))
            raise RunError(f"{title}: {message}") from e


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
