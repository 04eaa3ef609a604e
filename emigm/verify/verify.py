"""`emigm verify`: is what lies in results/ whole, and does it say what other results say? No torch.

*Whole*: every file has the bytes that its stage wrote or read (`emigm.verify.pipeline`), and every record has the
benchmark's settings (`emigm.verify.whole`). *Reproduced*: facts are those of the other results, every metric is
equivalent (`emigm.verify.equivalence`), and no claim's verdict has turned round.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from emigm.config.benchmark import Benchmark, load_benchmark
from emigm.config.compose import FOLDER, SOURCE, params_file
from emigm.config.errors import ConfigError
from emigm.config.parsing import known
from emigm.records.record import GitError, git
from emigm.verify.cells import Record
from emigm.verify.equivalence import REPRODUCED, Comparison, compare
from emigm.verify.findings import RESULTS, Findings
from emigm.verify.pipeline import Pipelines, opened, pipelines
from emigm.verify.whole import check_records, read_all

READ = (f"{RESULTS}/*/records/*.json", f"{RESULTS}/*claims.csv")
"""Files of a revision that results here are compared with."""
CONTRARY = {"holds", "does not hold"}
"""Verdicts on a claim of which one is the contrary of the other."""


@dataclass
class Verification:
    """What was found for one benchmark."""

    name: str
    findings: Findings
    comparison: Comparison | None = None
    """None: nothing was compared."""
    hindrance: str = ""
    """Why nothing could be compared, such as git's reason; empty: the other side has no results of it."""
    again: frozenset[str] = frozenset()
    """Stages that ran again: those whose record is not, byte for byte, that of the other side."""
    records: int = 0
    devices: tuple[str, str] = ("", "")
    """On which ours and theirs were made."""
    commits: tuple[str, ...] = ()
    """Whose code made ours."""
    same_claims: int = 0
    """Claims whose verdict is the same."""
    claims: list[str] = field(default_factory=list)
    """Claims whose verdict is another."""
    contrary: list[str] = field(default_factory=list)
    """Those of them whose verdict is the contrary."""
    deep: list[str] = field(default_factory=list)
    """What was generated and scored again, with the same outcome."""

    @property
    def whole(self) -> bool:
        return not self.findings.problems

    @property
    def same(self) -> bool:
        compared = self.comparison is None or self.comparison.status == REPRODUCED
        return compared and not (self.contrary or self.hindrance)


def verify(
    names: Sequence[str] = (), against: str | None = None, root: Path | None = None, deep: bool = False
) -> list[Verification]:
    """Verify benchmarks.

    Args:
        names: of benchmarks, or of other folders of benchmarks/ with a pipeline; none: all that have results here.
        against: a revision of this repository (None: HEAD), the name of a DVC experiment, or a folder that is, or
            holds, another's results/.
        root: of the checkout (default: the working directory).
        deep: read large files outside results/ too.

    Raises:
        ConfigError: an unknown benchmark, revision or folder; results that are asked for are not there, or git does not
            give them.
    """
    root = (Path.cwd() if root is None else root).resolve()
    every = pipelines(root)
    for name in names:
        known("benchmark", name, every)
        if not _has_results(root, name):
            raise ConfigError(f"{name}: no results in {RESULTS}/{name}; run dvc repro {FOLDER}/{name}/dvc.yaml")
    chosen = list(names) or [name for name in every if _has_results(root, name)]
    if not chosen:
        raise ConfigError(f"no benchmark has results in {root / RESULTS}; run dvc repro")
    with other_results(root, against) as (theirs, hindrance), opened(root) as chain:
        found = [_verify(chain, name, theirs, against, deep) for name in chosen]
        for one in found:
            one.hindrance = hindrance
        strays = Findings()
        others = {path.name for path in (root / RESULTS).iterdir()} - set(every)
        for name in [] if names else sorted(others):
            chain.strays(f"{RESULTS}/{name}", strays)
    return found + ([Verification(RESULTS, strays)] if strays.problems else [])


def _has_results(root: Path, name: str) -> bool:
    return any(p.is_file() for p in (root / RESULTS / name).rglob("*"))


def _verify(chain: Pipelines, name: str, theirs: Path | None, against: str | None, deep: bool) -> Verification:
    root, one, other = chain.root, Verification(name, Findings()), f"{against or 'HEAD'}: "
    if (root / FOLDER / name / SOURCE).is_file():
        benchmark, folder = load_benchmark(root / params_file(name)), f"{RESULTS}/{name}/records"
        records = read_all(root, folder, one.findings)
        check_records(benchmark, records, _shared(root, benchmark), folder, one.findings)
        one.records, one.commits = len(records), _made(records, "commit")
        if theirs is not None and (theirs / name / "records").is_dir():
            reference = read_all(theirs, f"{name}/records", one.findings, f"{other}{RESULTS}/")
            one.comparison = compare(records, reference)
            one.devices = ", ".join(_made(records, "device")), ", ".join(_made(reference, "device"))
            ours, before = _contents(root / folder), _contents(theirs / name / "records")
            one.again = frozenset(stage for stage in records if ours[stage] != before.get(stage))
        elif theirs is not None and against is not None:
            raise ConfigError(f"{other}has no results of {name}")
    chain.check(name, one.findings, deep)
    chain.strays(f"{RESULTS}/{name}", one.findings)
    for path in sorted((root / RESULTS / name).rglob("claims.csv")):
        if theirs is not None and (before := theirs / path.relative_to(root / RESULTS)).is_file():
            _compare_claims(path, before, one)
    return one


def _contents(folder: Path) -> dict[str, bytes]:
    """Bytes of the records of a folder, by stage."""
    return {path.stem: path.read_bytes() for path in folder.glob("*.json")}


def _shared(root: Path, benchmark: Benchmark) -> dict[str, Record]:
    """Records of the images, the extractor and the models that other benchmarks make."""
    shared: dict[str, Record] = {}
    homes = ((benchmark.images_of, ("prepare", "extractor")), (benchmark.models_of or benchmark.name, ("train-",)))
    for home, stages in homes:
        if home != benchmark.name:
            records = read_all(root, f"{RESULTS}/{home}/records", Findings())
            shared |= {stage: record for stage, record in records.items() if stage.startswith(stages)}
    return shared


def _made(records: Mapping[str, Record], key: str) -> tuple[str, ...]:
    """What the records' provenance says under a key, each once."""
    return tuple(sorted({str(r["provenance"][key]) for r in records.values() if r["provenance"].get(key) is not None}))


@contextmanager
def other_results(root: Path, against: str | None) -> Iterator[tuple[Path | None, str]]:
    """(the results/ to compare with, why there is none): a given folder, or a revision's records and claims.
    Neither: HEAD is no commit yet."""
    if against is not None and Path(against).is_dir():
        inner = Path(against) / RESULTS
        yield (inner if inner.is_dir() else Path(against)).resolve(), ""
        return
    try:
        revision = commit(against or "HEAD", root)
    except GitError as e:
        if against is not None:
            raise ConfigError(f"{against}: no folder, and {e}") from e
        yield None, str(e)
        return
    if revision is None and against is not None:
        raise ConfigError(f"{against}: neither a folder nor a revision nor a DVC experiment of this repository")
    if revision is None:
        yield None, ""
        return
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", revision, root=root))) as tar:
            wanted = [m for m in tar if any(fnmatch(m.name, pattern) for pattern in READ)]
            tar.extractall(folder, wanted, filter="data")
        yield Path(folder) / RESULTS, ""


def commit(revision: str, root: Path = Path()) -> str | None:
    """Hash of a revision, or of a DVC experiment by name; None: there is no such.

    Raises:
        GitError: git is not there or refuses.
    """
    git("rev-parse", "--git-dir", root=root)
    try:
        return git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", root=root).decode().strip()
    except GitError:
        refs = git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{revision}", root=root).decode().split()
    if len(refs) > 1:
        raise ConfigError(f"{revision}: {len(refs)} DVC experiments have this name; give the commit of one")
    return refs[0] if refs else None


def _compare_claims(ours: Path, theirs: Path, one: Verification) -> None:
    """Name the claims whose verdict has changed."""
    mine, before = _claims(ours), _claims(theirs)
    for key in dict.fromkeys((*before, *mine)):
        now, was = mine.get(key, "not here"), before.get(key, "not there")
        if now == was:
            one.same_claims += 1
            continue
        one.claims.append(f"claim {key}: {now}, was {was}")
        if {now, was} == CONTRARY:
            one.contrary.append(one.claims[-1])


def _claims(path: Path) -> dict[str, str]:
    """Verdict of every claim, by its ID and what else tells its rows apart."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).rename(columns=str.lower)
    except ValueError as e:
        raise ConfigError(f"{path}: no CSV ({e}); run dvc repro") from e
    keys = [key for key in ("id", "data", "benchmark", "n") if key in table]
    if not {"id", "verdict"} <= set(table) or table.duplicated(keys).any():
        raise ConfigError(f"{path}: has no columns ID and Verdict, or a claim twice; run dvc repro")
    return dict(zip(table[keys].agg(" ".join, axis=1), table["verdict"], strict=True))
