"""Results that stand although the code of their stages has changed since: which, and the commit whose code made them.

To run every benchmark again takes hours, so that a change of stage code may leave the results of some as they are.
`benchmarks/earlier.yaml` names these, each with the commit and with what was seen of the change's effect; their pages
say so. `emigm verify` lets a stage stand whose records name that commit, and whose checksums in dvc.lock are those of
all the code that it depends on at that commit. What makes no record, a notebook or a page, takes seconds and has to run
again. No torch, and no DVC.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from emigm.config.errors import ConfigError
from emigm.config.parsing import config, matching, parse, read_yaml
from emigm.config.schema import Text

FILE = Path("benchmarks/earlier.yaml")


@config
class Earlier:
    """An entry: results of the code of an earlier commit."""

    commit: Annotated[str, matching("[0-9a-f]{40}", "be the 40 digits of a commit")]
    """As the records' provenance has it."""
    why: Text
    """What was seen of the effect that later changes have, as a sentence."""


def read_earlier(root: Path) -> dict[str, Earlier]:
    """Entries by benchmark, or by another folder of benchmarks/ with a pipeline; none where there is no such file."""
    tree: dict[str, Any] = read_yaml(root / FILE) if (root / FILE).is_file() else {}
    return {name: parse(Earlier, entry, f"{FILE}: {name}") for name, entry in tree.items()}


def commits_of(files: Iterable[Path]) -> list[str]:
    """The commit that each record among the files names in its provenance, "None" where it names none."""
    found = []
    for file in files:
        try:
            tree = json.loads(file.read_text(encoding="utf-8")) if file.suffix == ".json" else {}
        except (OSError, ValueError):  # a damaged record is refused where records are checked
            continue
        provenance = tree.get("provenance") if isinstance(tree, dict) else None
        found += [str(provenance.get("commit"))] if isinstance(provenance, dict) else []
    return found


@contextmanager
def code_at(root: Path, commit: str, paths: Iterable[str]) -> Iterator[Path | None]:
    """A folder with the given files and folders as they are in a commit, those that it has; None where the history is
    not here, in a shallow clone or outside of git.

    Raises:
        ConfigError: the history is here, and the commit is none that led to HEAD.
    """
    if git(root, "merge-base", "--is-ancestor", commit, "HEAD") is None:
        if git(root, "rev-parse", "--is-shallow-repository") == b"false\n" and git(root, "rev-parse", "HEAD"):
            raise ConfigError(f"{FILE}: {commit} is no commit in the history of HEAD")
        yield None
        return
    with extracted(root, commit, listed(root, commit, *sorted(paths))) as folder:
        yield folder


def listed(root: Path, revision: str, *arguments: str) -> list[str]:
    """What `git ls-tree` lists of a revision: the paths among the arguments that it has; with -r, the files in them."""
    found = git(root, "ls-tree", "-z", "--name-only", revision, *arguments) or b""
    return [path for path in found.decode().split("\0") if path]


@contextmanager
def extracted(root: Path, revision: str, paths: Sequence[str]) -> Iterator[Path]:
    """A temporary folder with files and folders of a revision, which has them all, under their own names."""
    with tempfile.TemporaryDirectory() as folder:
        if paths:
            archive = git(root, "archive", "--format=tar", revision, "--", *paths)
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
        yield Path(folder)


def git(root: Path, *arguments: str) -> bytes | None:
    """Output of a git command; None where it fails or there is no git."""
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
