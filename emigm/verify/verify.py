"""`emigm verify`: is what lies in results/ whole, and does it say what other results say? No torch.

*Whole*: every file has the bytes that its stage wrote or read (`emigm.verify.pipeline`), and every record has the
benchmark's settings, and inputs that another record says it wrote. *Reproduced*: facts are those of the other results,
every metric is equivalent (`emigm.verify.equivalence`), and no claim's verdict has turned round.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

from emigm.config.benchmark import Benchmark, load_benchmark
from emigm.config.compose import FOLDER, SOURCE, params_file
from emigm.config.errors import ConfigError, check
from emigm.config.parsing import known
from emigm.records.record import GitError, Record, differing, expected_records, git, read_record
from emigm.verify.equivalence import REPRODUCED, Comparison, cells_of, compare
from emigm.verify.pipeline import REMEDY, RESULTS, Pipelines, made, opened, pipelines

READ = (f"{RESULTS}/*/records/*.json", f"{RESULTS}/*claims.csv")
"""Files of a revision that results here are compared with."""
CONTRARY = {"holds", "does not hold"}
"""Verdicts on a claim of which one is the contrary of the other."""


@dataclass
class Verification:
    """What was found for one benchmark.

    `problems`: what is wrong, by name; `unchecked`: what could not be looked at; `files`: how many files and folders
    were compared byte by byte. `comparison` is None where nothing was compared; `hindrance` says why, such as git's
    reason (empty: the other side has no results of it). `again`: stages that ran again, whose record is not, byte for
    byte, that of the other side. `devices` that ours and theirs were made on; `commits` whose code made ours.
    `same_claims` counts the claims whose verdict is the same, `claims` names those whose verdict is another, `contrary`
    those of them where it is the contrary. `deep`: what was generated and scored again, with the same outcome.
    """

    name: str
    comparison: Comparison | None = None
    hindrance: str = ""
    again: frozenset[str] = frozenset()
    records: int = 0
    devices: tuple[str, str] = ("", "")
    commits: tuple[str, ...] = ()
    same_claims: int = 0
    claims: list[str] = field(default_factory=list)
    contrary: list[str] = field(default_factory=list)
    deep: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    files: int = 0

    def refuse(self, problem: str) -> None:
        self.problems += [] if problem in self.problems else [problem]

    def skip(self, path: str) -> None:
        self.unchecked += [] if path in self.unchecked else [path]

    @property
    def whole(self) -> bool:
        return not self.problems

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
    present = [name for name in every if any(p.is_file() for p in (root / RESULTS / name).rglob("*"))]
    for name in names:
        known("benchmark", name, every)
        check(name in present, f"{name}: no results in {RESULTS}/{name}; run dvc repro {FOLDER}/{name}/dvc.yaml")
    check(names or present, f"no benchmark has results in {root / RESULTS}; run dvc repro")
    with other_results(root, against) as (theirs, hindrance), opened(root) as chain:
        verified = [_verify(chain, name, theirs, hindrance, against, deep) for name in names or present]
        strays = Verification(RESULTS)
        for name in [] if names else sorted({path.name for path in (root / RESULTS).iterdir()} - set(every)):
            chain.strays(f"{RESULTS}/{name}", strays)
    return verified + ([strays] if strays.problems else [])


def _verify(
    chain: Pipelines, name: str, theirs: Path | None, hindrance: str, against: str | None, deep: bool
) -> Verification:
    root, one, other = chain.root, Verification(name, hindrance=hindrance), f"{against or 'HEAD'}: "
    if (root / FOLDER / name / SOURCE).is_file():
        benchmark, folder = load_benchmark(root / params_file(name)), f"{RESULTS}/{name}/records"
        records, shared = readable_records(root, folder, one), {}
        for home, stages in ((benchmark.images_of, ("prepare", "extractor")), (benchmark.models_of or name, "train-")):
            if home != name:
                others = readable_records(root, f"{RESULTS}/{home}/records", Verification(home))
                shared |= {stage: record for stage, record in others.items() if stage.startswith(stages)}
        check_records(benchmark, records, shared, folder, one)
        one.records, one.commits = len(records), _provenance(records, "commit")
        if theirs is not None and (theirs / name / "records").is_dir():
            reference = readable_records(theirs, f"{name}/records", one, f"{other}{RESULTS}/")
            one.comparison = compare(records, reference)
            one.devices = ", ".join(_provenance(records, "device")), ", ".join(_provenance(reference, "device"))
            paths = [(root / folder / f"{s}.json", theirs / name / "records" / f"{s}.json") for s in records]
            one.again = frozenset(p.stem for p, q in paths if not (q.is_file() and p.read_bytes() == q.read_bytes()))
        elif theirs is not None and against is not None:
            raise ConfigError(f"{other}has no results of {name}")
    chain.check(name, one, deep)
    chain.strays(f"{RESULTS}/{name}", one)
    for path in sorted((root / RESULTS / name).rglob("claims.csv")):
        if theirs is not None and (before := theirs / path.relative_to(root / RESULTS)).is_file():
            _compare_claims(_claims(path), _claims(before), one)
    return one


def _provenance(records: Mapping[str, Record], key: str) -> tuple[str, ...]:
    """What the records' provenance says under a key, each once."""
    return tuple(sorted({str(r["provenance"][key]) for r in records.values() if r["provenance"].get(key) is not None}))


def readable_records(root: Path, folder: str, one: Verification, label: str = "") -> dict[str, Record]:
    """Records of a `records` folder under `root` by stage; damaged ones are refused by name, after `label`."""
    records = {}
    for path in sorted((root / folder).glob("[!.]*.json")):
        try:
            record = read_record(path)
            if (record["stage"], record["benchmark"]) != (path.stem, path.parents[1].name):
                raise ConfigError(f"{path}: is the record of {record['benchmark']} {record['stage']}, under its name")
            for part in ("inputs", "outputs", "provenance"):
                dict.items(record[part])
            json.dumps(record["results"], allow_nan=False)
            cells_of({path.stem: record})
        except (ConfigError, KeyError, TypeError, AttributeError, ValueError, IndexError) as e:
            odd = "holds NaN or infinity" if "JSON compliant" in str(e) else f"{type(e).__name__}: {e}"
            problem = str(e) if isinstance(e, ConfigError) else f"{path}: lacks what its stage writes ({odd}); {REMEDY}"
            one.refuse(problem.replace(f"{root}/", label))
        else:
            records[path.stem] = record
    return records


def check_records(
    benchmark: Benchmark, records: Mapping[str, Record], shared: Mapping[str, Record], where: str, one: Verification
) -> None:
    """Refuse settings that are not the benchmark's, and inputs that are not what the stage before wrote.

    `records` are the benchmark's by stage, from the folder `where`; `shared` those of the benchmarks that make the
    images, the extractor and the models, where these are others.
    """
    for stage, expected in expected_records(benchmark).items():
        path = f"{where}/{stage}.json"
        if stage not in records:
            if not any(p.startswith(f"{path}:") for p in one.problems):
                one.refuse(f"{path}: missing; {REMEDY}")
            continue
        for name, ours, theirs in differing(expected, records[stage], listed=2):
            one.refuse(f"{path}: made with {name} = {short(theirs)}, but the benchmark says {short(ours)}")
    written = {path: (s, c) for s, r in {**shared, **records}.items() for path, c in r["outputs"].items()}
    for stage, record in records.items():
        for path, checksum in record["inputs"].items():
            maker, expected = written.get(path, (None, None))
            if maker is None and made(path):
                one.refuse(f"{where}/{stage}.json: read {path}, which no record says it wrote")
            elif maker is not None and checksum != expected:
                one.refuse(f"{where}/{stage}.json: read another {path} than {maker}.json wrote; {REMEDY}")


def short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    if revision is None:
        check(against is None, f"{against}: neither a folder nor a revision nor a DVC experiment of this repository")
        yield None, ""
        return
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", revision, root=root))) as tar:
            wanted = [m for m in tar if any(fnmatch(m.name, pattern) for pattern in READ)]
            tar.extractall(folder, wanted, filter="data")
        yield Path(folder) / RESULTS, ""


def commit(revision: str, root: Path = Path()) -> str | None:
    """Hash of a revision, or of a DVC experiment by name; None: there is no such. Raises GitError where git is not
    there or refuses."""
    git("rev-parse", "--git-dir", root=root)
    try:
        return git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", root=root).decode().strip()
    except GitError:
        refs = git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{revision}", root=root).decode().split()
    check(len(refs) <= 1, f"{revision}: {len(refs)} DVC experiments have this name; give the commit of one")
    return refs[0] if refs else None


def _compare_claims(ours: Mapping[str, str], theirs: Mapping[str, str], one: Verification) -> None:
    """Name the claims whose verdict has changed."""
    for key in {**theirs, **ours}:
        now, was = ours.get(key, "not here"), theirs.get(key, "not there")
        one.same_claims += now == was
        if now != was:
            one.claims.append(f"claim {key}: {now}, was {was}")
            one.contrary += [one.claims[-1]] if {now, was} == CONTRARY else []


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
