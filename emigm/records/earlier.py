"""Results that stand although the code of their stages has changed since: which, and the commit whose code made them.

To run every benchmark again takes hours, so that a change of stage code may leave the results of some as they are.
`benchmarks/earlier.yaml` names these, each with the commit and with what was seen of the change's effect; their pages
say so, and `emigm verify` holds the checksums in dvc.lock to the code of that commit. No torch, and no DVC.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from emigm.config.parsing import Checked, matching, parse, read_yaml
from emigm.config.rules import Text

FILE = Path("benchmarks/earlier.yaml")


@dataclass(frozen=True)
class Earlier(Checked):
    """An entry: results of the code of an earlier commit."""

    commit: Annotated[str, matching("[0-9a-f]{40}", "be the 40 digits of a commit")]
    """As the records' provenance has it."""
    why: Text
    """What was seen of the effect that later changes have, as a sentence."""


def read_earlier(root: Path) -> dict[str, Earlier]:
    """Entries by benchmark, or by another folder of benchmarks/ with a pipeline; none where there is no such file."""
    tree: dict[str, Any] = read_yaml(root / FILE) if (root / FILE).is_file() else {}
    return {name: parse(Earlier, entry, f"{FILE}: {name}") for name, entry in tree.items()}


@contextmanager
def code_at(root: Path, commit: str, paths: Iterable[str]) -> Iterator[Path | None]:
    """A folder with files and folders of a commit, under their own names; None where its history is not here."""
    command = ["git", "-C", str(root), "archive", "--format=tar", commit, "--", *sorted(paths)]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)
