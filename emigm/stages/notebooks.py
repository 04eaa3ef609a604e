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
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
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
LONGEST_SOCKET = 90
"""Characters of a temporary folder that leave room for a socket's name: the system allows 107 in all."""


class OwnKernel(KernelSpecManager):
    """The one kernel is this interpreter's, whichever kernels a user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(name: str, benchmark: str | None, into: str) -> Path:
    """What `papermill notebooks/<name>.ipynb ... -p benchmark <benchmark> -p out <folder>` does, into the folder
    results/<into>/notebooks/<name>, which is returned; `benchmark` None: the notebook gathers several by itself.

    The same records give the same bytes: the executed notebook holds no times, and no path of the machine. Earlier
    files stay until the notebook has come to its end.

    Raises:
        ConfigError: there is no such notebook.
        RunError: a cell failed (the message is a user's mistake in one line, or else holds the traceback), or the same
            notebook is being executed into the same folder.
    """
    known("notebook", name, sorted(path.stem for path in FOLDER.glob("*.ipynb")))
    out = results_folder(into) / "notebooks" / name
    asked = {} if benchmark is None else {"benchmark": benchmark}
    with only_one(into, f"notebook-{name}"):
        for leftover in out.parent.glob(f".{name}.*{TEMPORARY}"):  # of a run that was killed
            shutil.rmtree(leftover)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(TEMPORARY, f".{name}.{os.getpid()}.", out.parent) as folder:
            notebook, written = (
                parameterize_notebook(load_notebook_node(str(FOLDER / f"{name}.ipynb")), asked | {"out": where})
                for where in (Path(folder).as_posix(), out.as_posix())
            )
            _run(notebook, f"{FOLDER / name}.ipynb, for results/{into}")
            for i, (cell, named) in enumerate(zip(notebook.cells, written.cells, strict=True)):
                cell["id"], cell["source"] = f"cell-{i}", named["source"]  # the identifier of the parameters is random
            for part in (notebook, *notebook.cells):
                part.metadata.pop("papermill", None)
            write_text(Path(folder) / f"{name}.ipynb", nbformat.writes(notebook))
            _replace(Path(folder), out)
    return out


def _run(notebook: nbformat.NotebookNode, title: str) -> None:
    """Execute all cells in a kernel whose sockets lie in a temporary folder of its own, outside of the repository."""
    with tempfile.TemporaryDirectory(prefix="emigm-kernel-", ignore_cleanup_errors=True) as folder:
        sockets = sys.platform == "linux" and len(folder) < LONGEST_SOCKET
        client = NotebookClient(notebook, record_timing=False, timeout=None)
        client.km = AsyncKernelManager(
            kernel_spec_manager=OwnKernel(),
            connection_file=os.path.join(folder, "kernel.json"),
            transport="ipc" if sockets else "tcp",  # over TCP kernels warn of eavesdropping
        )
        try:
            client.execute()
        except DeadKernelError as e:
            raise RunError(
                f"{title}: its kernel died, as where memory runs out; free some, then type the same command again"
            ) from e
        except CellExecutionError as e:
            mistake = e.ename in ("ConfigError", "RunError")  # one message; else where it happened, without colours
            message = e.evalue if mistake else re.sub(r"\x1b\[[0-9;]*m", "", str(e))
            raise RunError(f"{title}: {message}") from e


def _replace(new: Path, out: Path) -> None:
    """Put the files of `new` in place of those of `out`, each at once; what `new` does not have goes last."""
    out.mkdir(exist_ok=True)
    names = {path.name for path in new.iterdir()}
    for name in names:
        os.replace(new / name, out / name)
    for path in out.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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
