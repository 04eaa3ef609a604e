"""What DVC says of pipelines: which stages are stale, and which files are not as their stage wrote them. No torch.

DVC trusts a file whose time of change and size are as they were; here it begins with an empty memory, so that it reads
every byte. It needs no git for this.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emigm.config.compose import DEFAULT, FOLDER, sources
from emigm.config.errors import ConfigError
from emigm.verify.findings import REMEDY, RESULTS, Findings

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

MADE = ("data", "models", "samples")
"""Folders that stages fill and git does not track."""
MEASURED = f"{RESULTS}/speed/measured"
"""Records of `emigm bench`, which a stage reads and none makes: times are nothing to reproduce."""
FRONT = f"{RESULTS}/README.md"
"""The page of all results, which `make readme` writes."""
LARGEST = 2**30
"""Bytes above which a file or folder outside results/ is not read, unless asked for."""


def pipelines(root: Path) -> list[str]:
    """Benchmarks, and other folders of benchmarks/ with a pipeline of their own."""
    return sorted({*sources(root), *(path.parent.name for path in (root / FOLDER).glob("*/dvc.yaml"))})


class Pipelines:
    """All pipelines of a checkout.

    Raises:
        ConfigError: a dvc.yaml or dvc.lock is damaged.
    """

    def __init__(self, root: Path, repo: Repo):
        self.root, self.repo = root, repo
        self.stages: dict[str, Sequence[PipelineStage]] = {}
        for name in pipelines(root):
            file = (root if name == DEFAULT else root / FOLDER / name) / "dvc.yaml"
            with one_line(f"{file.relative_to(root)} or the dvc.lock beside it"):
                self.stages[name] = repo.stage.load_all(str(file)) if file.is_file() else []
        self.makers = {self.path(out): (s, out) for stages in self.stages.values() for s in stages for out in s.outs}

    def path(self, item: Output) -> str:
        """Of an output or a dependency, as from the root."""
        return Path(item.fs_path).relative_to(self.root).as_posix()

    def check(self, name: str, findings: Findings, everything: bool = False) -> None:
        """Compare every file that a stage made or read with dvc.lock.

        Args:
            name: of the pipeline.
            findings: what is found goes there.
            everything: read files and folders larger than `LARGEST` outside results/ as well.
        """
        wrong: set[str] = set()
        stale: dict[str, dict[str, list[str]]] = {}  # what is wrong with a dependency -> its path -> stages
        for stage in self.stages[name]:
            lock = Path(stage.path).with_suffix(".lock").relative_to(self.root)
            if not any(out.hash_info for out in stage.outs):
                findings.refuse(f"{lock}: has no stage {stage.name}: it has not run; {REMEDY}")
                continue
            if stage.changed_stage():
                findings.refuse(f"{lock}: stage {stage.name} ran another command than dvc.yaml gives it; {REMEDY}")
            for path, state in self._states(stage.outs, findings, everything):
                if state == "new":
                    findings.refuse(f"{lock}: stage {stage.name} lists no {path}; {REMEDY}")
                elif state == "modified":
                    wrong.add(path)
                    findings.refuse(f"{path}: is not what stage {stage.name} wrote, which {lock} lists; {REMEDY}")
                elif state == "deleted" and path.split("/")[0] not in MADE:
                    findings.refuse(f"{path}: missing; stage {stage.name} writes it; {REMEDY}")
            for path, state in self._states(stage.deps, findings, everything):
                read = next(d.hash_info for d in stage.deps if self.path(d) == path)
                maker, out = self.makers.get(path, (None, None))
                if path.split("/")[0] in MADE and maker is not None and maker.path != stage.path and state != "new":
                    # Another benchmark's data, made again here, as on another processor: what was tracked is not here.
                    findings.unchecked += [] if path in findings.unchecked else [path]
                elif isinstance(state, dict):
                    findings.refuse(f"{lock}: stage {stage.name} ran with another {', '.join(state)}; {REMEDY}")
                elif state == "new":
                    stale.setdefault("is a dependency without which", {}).setdefault(path, []).append(stage.name)
                elif state == "deleted" and maker is not None and out.hash_info != read:
                    ran = f"stage {stage.name} read another {path} than stage {maker.name} made"
                    findings.refuse(f"{lock}: {ran}; {REMEDY}")
                elif state == "modified" or (state == "deleted" and maker is None and path.split("/")[0] not in MADE):
                    stale.setdefault("has changed since", {}).setdefault(path, []).append(stage.name)
        for text, paths in stale.items():
            for path, names in paths.items():
                if not any(within(w, path) or within(path, w) for w in wrong):
                    more = ", ..." if len(names) > 3 else ""
                    ran = names[0] if len(names) == 1 else f"{len(names)} stages ({', '.join(names[:3])}{more})"
                    findings.refuse(f"{path}: {text} {ran} ran; {REMEDY}")

    def _states(
        self, items: Iterable[Output], findings: Findings, everything: bool
    ) -> Iterator[tuple[str, str | dict]]:
        """(path, "new", "modified" or "deleted") of what is not as dvc.lock lists it; of parameters {key: so}."""
        for item in items:
            path = self.path(item)
            untracked = path.split("/")[0] in MADE
            if not item.hash_info:
                yield path, "new"
            elif untracked and not item.exists:
                findings.unchecked += [] if path in findings.unchecked else [path]
                yield path, "deleted"
            elif path.split("/")[0] != RESULTS and (item.meta.size or 0) > LARGEST and not everything:
                findings.unchecked.append(f"{path} (large: with --deep)")
            else:
                findings.files += 1
                with one_line(path):
                    yield from ((path, state) for state in item.workspace_status().values())

    def strays(self, folder: str, findings: Findings) -> None:
        """Name the files of a folder in results/ that no stage makes; what DVC ignores is none."""
        outs = [*self.makers, MEASURED, FRONT]
        top = self.root / folder
        for file in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            path = file.relative_to(self.root).as_posix()
            if not any(within(path, out) for out in outs) and not self.repo.dvcignore.is_ignored_file(str(file)):
                findings.refuse(f"{path}: no stage makes it")


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


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
