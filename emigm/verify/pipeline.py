"""What DVC says of pipelines: which stages are stale, and which files are not as their stage wrote them. No torch.

DVC trusts a file whose time of change and size are as they were; here it begins with an empty memory, so that it reads
every byte. It needs no git for this.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emigm.config.compose import DEFAULT, FOLDER, sources
from emigm.config.errors import ConfigError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

    from emigm.verify.verify import Verification

RESULTS = "results"
REMEDY = "run dvc repro"
MADE = ("data", "models", "samples")
"""Folders that stages fill and git does not track."""
NO_STAGE = (f"{RESULTS}/speed/measured", f"{RESULTS}/README.md", f"{RESULTS}/evidence/README.md")
"""Records of `emigm bench`, since times are nothing to reproduce, and the pages that `make readme` writes: what no
stage makes."""
LARGEST = 2**30
"""Bytes above which a file or folder outside results/ is not read, unless asked for."""


def pipelines(root: Path) -> list[str]:
    """Benchmarks, and other folders of benchmarks/ with a pipeline of their own."""
    return sorted({*sources(root), *(path.parent.name for path in (root / FOLDER).glob("*/dvc.yaml"))})


class Pipelines:
    """All pipelines of a checkout; raises ConfigError where a dvc.yaml or dvc.lock is damaged."""

    def __init__(self, root: Path, repo: Repo):
        self.root, self.repo, self.stages = root, repo, {}
        for name in pipelines(root):
            file = (root if name == DEFAULT else root / FOLDER / name) / "dvc.yaml"
            with one_line(f"{file.relative_to(root)} or the dvc.lock beside it"):
                self.stages[name] = repo.stage.load_all(str(file)) if file.is_file() else []
        self.makers = {self.path(out): (s, out) for stages in self.stages.values() for s in stages for out in s.outs}

    def path(self, item: Output) -> str:
        """Of an output or a dependency, as from the root."""
        return Path(item.fs_path).relative_to(self.root).as_posix()

    def check(self, name: str, one: Verification, everything: bool = False) -> None:
        """Compare every file that a pipeline's stages made or read with dvc.lock; what is wrong goes to `one`.
        `everything`: files and folders larger than `LARGEST` outside results/ are read as well."""
        wrong, stale = set(), defaultdict(list)  # stale: (path of a dependency, what is wrong with it) -> stages

        def refuse(problem: str) -> None:
            one.refuse(f"{problem}; {REMEDY}")

        for stage in self.stages[name]:
            lock = Path(stage.path).with_suffix(".lock").relative_to(self.root)
            if not any(out.hash_info for out in stage.outs):
                refuse(f"{lock}: has no stage {stage.name}: it has not run")
                continue
            if stage.changed_stage():
                refuse(f"{lock}: stage {stage.name} ran another command than dvc.yaml gives it")
            for out in stage.outs:
                path, state = self.path(out), self._state(out, one, everything)
                if state == "new":
                    refuse(f"{lock}: stage {stage.name} lists no {path}")
                elif state == "modified":
                    wrong.add(path)
                    refuse(f"{path}: is not what stage {stage.name} wrote, which {lock} lists")
                elif state == "deleted" and not made(path):
                    refuse(f"{path}: missing; stage {stage.name} writes it")
            for dep in stage.deps:
                path, state = self.path(dep), self._state(dep, one, everything)
                maker, out = self.makers.get(path, (None, None))
                if state and state != "new" and made(path) and maker is not None and maker.path != stage.path:
                    one.skip(path)  # another benchmark's, made again here: what was tracked is not here
                elif isinstance(state, dict):
                    refuse(f"{lock}: stage {stage.name} ran with another {', '.join(state)}")
                elif state == "new":
                    stale[path, "is a dependency without which"].append(stage.name)
                elif state == "deleted" and maker is not None and out.hash_info != dep.hash_info:
                    refuse(f"{lock}: stage {stage.name} read another {path} than stage {maker.name} made")
                elif state == "modified" or (state == "deleted" and maker is None and not made(path)):
                    stale[path, "has changed since"].append(stage.name)
        for (path, text), names in stale.items():
            if not any(within(w, path) or within(path, w) for w in wrong):
                more = ", ..." if len(names) > 3 else ""
                ran = names[0] if len(names) == 1 else f"{len(names)} stages ({', '.join(names[:3])}{more})"
                refuse(f"{path}: {text} {ran} ran")

    def _state(self, item: Output, one: Verification, everything: bool) -> str | dict[str, str] | None:
        """How an output or a dependency is not as dvc.lock lists it: "new" (it does not), "modified" or "deleted"; of
        parameters {key: how}. None: it is, or is not looked at."""
        path = self.path(item)
        if not item.hash_info:
            return "new"
        if made(path) and not item.exists:
            one.skip(path)
            return "deleted"
        if not within(path, RESULTS) and (item.meta.size or 0) > LARGEST and not everything:
            one.skip(f"{path} (large: with --deep)")
            return None
        one.files += 1
        with one_line(path):
            return next(iter(item.workspace_status().values()), None)

    def strays(self, folder: str, one: Verification) -> None:
        """Name the files of a folder in results/ that no stage makes; what DVC ignores is none."""
        top = self.root / folder
        for file in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            path = file.relative_to(self.root).as_posix()
            known = any(within(path, out) for out in (*self.makers, *NO_STAGE))
            if not known and not self.repo.dvcignore.is_ignored_file(str(file)):
                one.refuse(f"{path}: no stage makes it")


@contextmanager
def opened(root: Path) -> Iterator[Pipelines]:
    """The pipelines of a checkout, with nothing remembered of its files."""
    from dvc.repo import Repo

    with tempfile.TemporaryDirectory() as memory, one_line(str(root)):
        repo = Repo(str(root), config={"core": {"site_cache_dir": memory, "no_scm": True}})
        with repo:
            yield Pipelines(root, repo)


@contextmanager
def one_line(file: str) -> Iterator[None]:
    """Make an error of DVC, or what it raises on a damaged file, one line that names the file."""
    from dvc.exceptions import DvcException

    try:
        yield
    except (DvcException, AttributeError, KeyError, TypeError) as e:
        raise ConfigError(f"{file}: damaged, or not readable by DVC ({str(e).splitlines()[0]})") from e


def made(path: str) -> bool:
    """Whether stages fill the folder of it, which git does not track."""
    return path.split("/")[0] in MADE


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
