"""What DVC says of a pipeline: the files its stages make, and the checksums in its dvc.lock. No torch, and no DVC.

DVC itself trusts a file whose time of change and size are as they were; here every byte is read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from emigm.config.benchmark import read_yaml
from emigm.config.compose import DEFAULT, FOLDER
from emigm.config.errors import ConfigError

LARGEST = 2**30
"""Bytes above which a file or folder outside results/ is not read, unless asked for."""
SKIPPED = (".git", ".hg", ".dvc", "__pycache__", ".venv", ".state")
"""Names that DVC, by itself or by .dvcignore, leaves out of a folder."""


@dataclass(frozen=True)
class Stage:
    """A stage as dvc.yaml gives it, and what dvc.lock says of its last run; paths as from the root."""

    name: str
    outs: tuple[str, ...]
    made: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path of an output -> its md5 and size in dvc.lock."""
    read: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path of a dependency -> its md5 and size in dvc.lock."""
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """File of parameters -> key -> value in dvc.lock."""
    has_run: bool = False


class Pipeline:
    """A dvc.yaml with its dvc.lock.

    Args:
        root: of the checkout.
        name: of a benchmark, or of another folder of benchmarks/ that has a pipeline.

    Raises:
        ConfigError: there is none, or it is damaged.
    """

    def __init__(self, root: Path, name: str):
        self.root, self.name = root, name
        self.folder = root if name == DEFAULT else root / FOLDER / name
        self.lock = self.folder / "dvc.lock"

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages, those of a matrix one by one."""
        params = self.folder / "params.yaml"
        values = read_yaml(params) if params.is_file() else {}
        lock = read_yaml(self.lock).get("stages", {}) if self.lock.is_file() else {}
        found = []
        for name, stage in read_yaml(self.folder / "dvc.yaml").get("stages", {}).items():
            for item, variables in _items(name, stage, values):
                wdir = Path(os.path.normpath(self.folder / _filled(stage.get("wdir", "."), variables)))
                entry = lock.get(item)
                found.append(
                    Stage(
                        item,
                        tuple(self._path(wdir, _filled(_key(out), variables)) for out in stage.get("outs", ())),
                        {self._path(wdir, o["path"]): o for o in (entry or {}).get("outs", ())},
                        {self._path(wdir, d["path"]): d for d in (entry or {}).get("deps", ())},
                        {self._path(wdir, file): keys for file, keys in (entry or {}).get("params", {}).items()},
                        entry is not None,
                    )
                )
        return found

    def _path(self, wdir: Path, path: str) -> str:
        return Path(os.path.relpath(os.path.normpath(wdir / path), self.root)).as_posix()


def _key(out: str | Mapping[str, Any]) -> str:
    return out if isinstance(out, str) else next(iter(out))


def _items(name: str, stage: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, variables) of a stage, or of each item of its matrix, as DVC names them."""
    matrix = {k: _filled(v, values) for k, v in stage.get("matrix", {}).items()}
    if not matrix:
        yield name, dict(values)
        return
    for chosen in itertools.product(*matrix.values()):
        item = dict(zip(matrix, chosen, strict=True))
        yield f"{name}@{'-'.join(map(str, chosen))}", {**values, "item": item}


def _filled(text: Any, variables: Mapping[str, Any]) -> Any:
    """A text with every ${key} replaced; one that is a single ${key} becomes that value, of whatever type."""
    if not isinstance(text, str):
        return text

    def value(match: re.Match) -> Any:
        found: Any = variables
        for key in match[1].strip().split("."):
            if not isinstance(found, Mapping) or key not in found:
                raise ConfigError(f"dvc.yaml: no value for {match[0]} in params.yaml; run `emigm compose`")
            found = found[key]
        return found

    whole = re.fullmatch(r"\$\{([^}]+)\}", text)
    return value(whole) if whole else re.sub(r"\$\{([^}]+)\}", lambda m: str(value(m)), text)


def md5(path: Path) -> str:
    """As in dvc.lock: of a file, or of the list of a folder's files, which ends in ".dir"."""
    if not path.is_dir():
        with path.open("rb") as f:
            return hashlib.file_digest(f, "md5").hexdigest()
    files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    listed = [
        {"md5": md5(p), "relpath": name}
        for name, p in sorted(files.items())
        if not any(part in SKIPPED for part in Path(name).parts)
    ]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
