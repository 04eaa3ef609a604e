"""What DVC says of a pipeline: the files its stages make, and the checksums in its dvc.lock. No torch, and no DVC.

DVC itself trusts a file whose time of change and size are as they were; here every byte is read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from emigm.config.benchmark import read_yaml
from emigm.config.compose import DEFAULT, FOLDER
from emigm.config.errors import ConfigError
from emigm.verify.earlier import FILE as EARLIER
from emigm.verify.earlier import code_at, commits_of, read_earlier
from emigm.verify.findings import REMEDY, RESULTS, Findings, at, differing, short

MEASURED = f"{RESULTS}/speed/measured"
"""Records of `emigm bench`."""
LARGEST = 2**30
"""Bytes above which a file or folder outside results/ is not read, unless asked for."""
SKIPPED = (".git", ".hg", ".dvc", "__pycache__", ".venv", ".state")
"""Names that DVC, by itself or by .dvcignore, leaves out of a folder."""


@dataclass(frozen=True)
class Stage:
    """A stage as dvc.yaml gives it, and what dvc.lock says of its last run; paths as from the root."""

    name: str
    cmd: str
    deps: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    """(file, key) of its parameters."""
    outs: tuple[str, ...]
    ran: str | None = None
    """Its command in dvc.lock; None: it has not run."""
    made: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path of an output -> its md5 and size in dvc.lock."""
    read: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path of a dependency -> its md5 and size in dvc.lock."""
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """File of parameters -> key -> value in dvc.lock."""

    def lacking(self) -> Iterator[str]:
        """What dvc.yaml gives it and its last run did not have."""
        if self.ran != self.cmd:
            yield f"the command {self.cmd}"
        yield from (f"the dependency {path}" for path in self.deps if path not in self.read)
        yield from (f"the parameter {key}" for file, key in self.keys if key not in self.params.get(file, {}))


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
        try:
            return self._stages()
        except (AttributeError, KeyError, TypeError) as e:
            raise ConfigError(f"{self.lock} or dvc.yaml beside it: damaged ({type(e).__name__}: {e})") from e

    def _stages(self) -> list[Stage]:
        params = self.folder / "params.yaml"
        chain = read_yaml(self.folder / "dvc.yaml")
        values = read_yaml(params) if params.is_file() else {}
        for more in chain.get("vars", ()):
            values |= more if isinstance(more, dict) else read_yaml(self.folder / more)
        lock = read_yaml(self.lock).get("stages", {}) if self.lock.is_file() else {}
        found = []
        for name, stage in chain.get("stages", {}).items():
            for item, variables in _items(name, stage, values):
                wdir = Path(os.path.normpath(self.folder / _filled(stage.get("wdir", "."), variables)))
                entry = lock.get(item) or {}
                paths = {
                    kind: tuple(self._path(wdir, _filled(_key(one), variables)) for one in stage.get(kind, ()))
                    for kind in ("deps", "outs")
                }
                keys = [[_filled(text, variables) for text in pair] for pair in _keys(stage.get("params", ()))]
                found.append(
                    Stage(
                        item,
                        _filled(stage.get("cmd"), variables),
                        paths["deps"],
                        tuple((self._path(wdir, file), key) for file, key in keys),
                        paths["outs"],
                        entry.get("cmd"),
                        {self._path(wdir, o["path"]): o for o in entry.get("outs", ())},
                        {self._path(wdir, d["path"]): d for d in entry.get("deps", ())},
                        {self._path(wdir, file): keys for file, keys in entry.get("params", {}).items()},
                    )
                )
        return found

    def _path(self, wdir: Path, path: str) -> str:
        return Path(os.path.relpath(os.path.normpath(wdir / path), self.root)).as_posix()


def _keys(params: Iterable[str | Mapping[str, Sequence[str]]]) -> Iterator[tuple[str, str]]:
    """(file, key) of the parameters that a stage declares."""
    for one in params:
        if isinstance(one, str):
            yield "params.yaml", one
        else:
            yield from ((file, key) for file, keys in one.items() for key in keys)


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


def check_pipeline(pipeline: Pipeline, findings: Findings, everything: bool = False) -> None:
    """Compare every file that a stage made or read with dvc.lock, and name those in results/ that no stage makes.

    Args:
        pipeline: of one benchmark.
        findings: what is found goes there.
        everything: read files and folders larger than `LARGEST` outside results/ as well.
    """
    root, sums = pipeline.root, {}

    def current(path: str) -> str:
        if path not in sums:
            sums[path] = md5(root / path)
            findings.files += 1
        return sums[path]

    lock = pipeline.lock.relative_to(root)
    wrong: set[str] = set()
    for stage in pipeline.stages:
        if stage.ran is None:
            findings.refuse(f"{lock}: has no stage {stage.name}: it has not run; {REMEDY}")
            continue
        for what in stage.lacking():
            findings.refuse(f"{lock}: stage {stage.name} ran without {what}, which dvc.yaml gives it; {REMEDY}")
        for path in stage.outs:
            entry, tracked = stage.made.get(path), path.split("/")[0] == RESULTS
            if entry is None:
                findings.refuse(f"{lock}: stage {stage.name} lists no {path}; {REMEDY}")
            elif not (root / path).exists():
                if tracked:
                    findings.refuse(f"{path}: missing; stage {stage.name} writes it")
                else:
                    findings.unchecked.append(path)
            elif not tracked and entry.get("size", 0) > LARGEST and not everything:
                findings.unchecked.append(f"{path} (large: with --deep)")
            elif current(path) != entry.get("md5"):
                wrong.add(path)
                findings.refuse(
                    f"{path}: is not what stage {stage.name} wrote, which {lock} lists{_changed_files(root, path)}"
                )
    others: dict[str, dict[str, str | None]] = {}  # path -> stage -> its checksum then
    made = {path: (s.name, entry.get("md5")) for s in _with_shared(pipeline) for path, entry in s.made.items()}
    for stage in pipeline.stages:
        for path, entry in stage.read.items():
            maker, checksum = made.get(path, (None, None))
            if maker is not None and not (root / path).exists() and entry.get("md5") != checksum:
                findings.refuse(f"{lock}: stage {stage.name} read another {path} than stage {maker} made; {REMEDY}")
            large = entry.get("size", 0) > LARGEST and not everything
            if large or not (root / path).exists() or any(_within(w, path) or _within(path, w) for w in wrong):
                continue
            if current(path) != entry.get("md5"):
                others.setdefault(path, {})[stage.name] = entry.get("md5")
        for what, ours in _changed_params(stage, root):
            findings.refuse(f"{lock}: stage {stage.name} ran with {what}, but params.yaml says {ours}; {REMEDY}")
    _take_out_earlier(pipeline, others, findings)
    for path, stages in others.items():
        findings.refuse(f"{path}: has changed since {_named(list(stages), 'stage')} ran; {REMEDY}")
    # What `emigm bench` measured is read by a stage and made by none: times are nothing to reproduce.
    measured = [MEASURED] if any(MEASURED in stage.read for stage in pipeline.stages) else []
    outs = [path for stage in pipeline.stages for path in stage.outs] + measured
    folder = root / RESULTS / pipeline.name
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(root).as_posix()
        if file.is_file() and not any(_within(path, out) for out in outs):
            findings.refuse(f"{path}: no stage makes it")


def _take_out_earlier(pipeline: Pipeline, changed: dict[str, dict[str, str | None]], findings: Findings) -> None:
    """Take out of what has `changed` (path -> stage -> its checksum then) the code of the stages that stand though it
    has (`emigm.verify.earlier`)."""
    root, entry = pipeline.root, read_earlier(pipeline.root).get(pipeline.name)
    code = sorted(path for path in changed if _is_code(path))
    ran = {stage for path in code for stage in changed[path]}
    stages = [s for s in pipeline.stages if entry and s.name in ran and _made_at(root, s, entry.commit)]
    if not stages:
        return
    with code_at(root, entry.commit, {path for s in stages for path in s.read if _is_code(path)}) as then:
        if then is None:
            findings.unchecked.append(f"{EARLIER} (commit {entry.commit[:7]})")
        standing = {s.name for s in stages if then is None or _ran_code(s, then)}
    for path in code:
        changed[path] = {stage: read for stage, read in changed[path].items() if stage not in standing}
    for path in [path for path in code if not changed[path]]:
        del changed[path]
    if standing:
        findings.earlier.append(
            f"{_named(sorted(standing), 'stage')} ran the code of commit {entry.commit[:7]}, since which have changed: "
            f"{', '.join(code)}. {entry.why}"
        )


def _is_code(path: str) -> bool:
    return path.split("/")[0] == "emigm"


def _made_at(root: Path, stage: Stage, commit: str) -> bool:
    """Whether a stage has made records, and all of them name the commit."""
    return set(commits_of(root / path for path in stage.made if path.split("/")[0] == RESULTS)) == {commit}


def _ran_code(stage: Stage, then: Path) -> bool:
    """Whether all code that a stage ran is that in the folder `then`."""
    read = {path: entry.get("md5") for path, entry in stage.read.items() if _is_code(path)}
    return all(checksum == (md5(then / path) if (then / path).exists() else None) for path, checksum in read.items())


def _with_shared(pipeline: Pipeline) -> list[Stage]:
    """A pipeline's stages, and those of the benchmarks whose images it shares or whose results it reads."""
    parts = [path.split("/") for stage in pipeline.stages for path in stage.deps]
    others = {p[1] for p in parts if len(p) > 2 and p[0] in ("data", RESULTS)} - {pipeline.name}
    there = [Pipeline(pipeline.root, name) for name in sorted(others)]
    return [*pipeline.stages, *(s for other in there if other.lock.is_file() for s in other.stages)]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _changed_params(stage: Stage, root: Path) -> Iterator[tuple[str, str]]:
    for file, keys in stage.params.items():
        current = read_yaml(root / file) if (root / file).is_file() else {}
        for key, value in keys.items():
            for name, ours, theirs in differing(at(current, key), value, key):
                yield f"{name} = {short(theirs)}", short(ours)


def _changed_files(root: Path, path: str) -> str:
    """Files of a tracked folder that differ from HEAD, for a message; empty without git."""
    if not (root / path).is_dir():
        return ""
    command = ["git", "-C", str(root), "status", "--porcelain", "--", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = [line[3:].strip('"').removeprefix(f"{path}/") for line in done.stdout.splitlines()]
    return f" (changed: {', '.join(names)})" if names else ""


def _named(names: list[str], what: str) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{what} {names[0]}" if len(names) == 1 else f"{len(names)} {what}s ({', '.join(names[:3])}{more})"
