"""`emigm verify`: is what lies in results/ whole, and does it say what the tracked results say? No torch.

*Whole*: every record follows from its runs, its settings and the records before it (`emigm.verify.whole`), and every
file has the bytes that its stage wrote or read (`emigm.verify.pipeline`), but code that has changed since results that
are listed (`emigm.verify.earlier`). *Reproduced*: every cell is identical to that of the results it is held against,
or equivalent within a margin fixed beforehand, by itself or with its metric's other cells (`emigm.verify.equivalence`
says by which test), and no claim's verdict has turned round.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emigm.config.benchmark import Benchmark, load_benchmark
from emigm.config.compose import FOLDER, SOURCE, params_file, sources
from emigm.config.errors import ConfigError
from emigm.config.parsing import known
from emigm.verify.earlier import FILE as EARLIER
from emigm.verify.earlier import extracted, git, listed, read_earlier
from emigm.verify.equivalence import Comparison, compare
from emigm.verify.findings import RESULTS, Findings, differing, short
from emigm.verify.pipeline import Pipeline, check_pipeline
from emigm.verify.whole import check_artefacts, check_derived, check_records, expected_settings, read_all

CLAIMS = "claims.csv"
CONTRARY = {"holds", "does not hold"}
"""Verdicts on a claim of which one is the contrary of the other."""


@dataclass
class Verification:
    """What was found for one benchmark."""

    name: str
    findings: Findings
    comparison: Comparison | None = None
    """None: there is nothing to compare with."""
    unchanged: int = 0
    """Records that are those of the other side, byte for byte: their stages have not run again."""
    records: int = 0
    devices: tuple[str, str] = ("", "")
    """On which ours and theirs were made."""
    commits: tuple[str, ...] = ()
    """Whose code made ours."""
    unlike: list[str] = field(default_factory=list)
    """Settings in which the other side's benchmark differs from ours."""
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
        return not self.contrary and not self.unlike and (self.comparison is None or self.comparison.same)


def verify(
    names: Sequence[str] = (), against: str | None = None, root: Path | None = None, deep: bool = False
) -> list[Verification]:
    """Verify benchmarks.

    Args:
        names: of benchmarks, or of other folders of benchmarks/ with a pipeline; none: all that have results here.
        against: a revision of this repository (None: HEAD), or a folder that is, or holds, another's results/.
        root: of the checkout (default: the working directory).
        deep: read large files outside results/ too.

    Raises:
        ConfigError: an unknown benchmark, revision or folder; results that are asked for are not there.
    """
    root = Path.cwd() if root is None else root
    there = pipelines(root)
    for name in names:
        known("benchmark", name, there)
    chosen = list(names) or [name for name in there if _has_results(root, name)]
    if not chosen:
        raise ConfigError(f"no benchmark has results in {root / RESULTS}; run dvc repro")
    for name in names:
        if not _has_results(root, name):
            raise ConfigError(f"{name}: no results in {RESULTS}/{name}; run dvc repro {FOLDER}/{name}/dvc.yaml")
    with other_results(root, against) as theirs:
        found = [_verify(root, name, theirs, against, deep) for name in chosen]
    if not names and (strays := _strays(root, there)).problems:
        found.append(Verification(RESULTS, strays))
    return found


def _strays(root: Path, names: Sequence[str]) -> Findings:
    """What lies in results/ beside the benchmarks' folders and is made by no stage."""
    found = Findings()
    for name in sorted(read_earlier(root).keys() - set(names)):
        found.refuse(f"{EARLIER}: {name} is no folder of {FOLDER}/ with a pipeline")
    outs = {out for name in names for stage in Pipeline(root, name).stages for out in stage.outs}
    for path in sorted((root / RESULTS).iterdir()):
        name = f"{RESULTS}/{path.name}"
        if path.name not in names and not any(out == name or out.startswith(f"{name}/") for out in outs):
            found.refuse(f"{name}: no stage of any benchmark makes it")
    return found


def pipelines(root: Path) -> list[str]:
    """Benchmarks, and other folders of benchmarks/ with a pipeline of their own."""
    others = (p.parent.name for p in (root / FOLDER).glob("*/dvc.yaml"))
    return sorted({*sources(root), *others})


def _has_results(root: Path, name: str) -> bool:
    return any(p.is_file() for p in (root / RESULTS / name).rglob("*"))


def _verify(root: Path, name: str, theirs: Path | None, against: str | None, deep: bool) -> Verification:
    findings = Findings()
    pipeline = Pipeline(root, name)
    found = Verification(name, findings)
    folder = root / RESULTS / name / "records"
    label = f"{RESULTS}/{name}/records"
    if (root / FOLDER / name / SOURCE).is_file():
        benchmark = load_benchmark(root / params_file(name))
        records = read_all(folder, findings)
        findings.problems[:] = [p.replace(f"{root}/", "") for p in findings.problems]
        shared = _shared(root / RESULTS, benchmark)
        sound = check_records(benchmark, records, shared, label, findings)
        check_derived(benchmark, records, root, findings)
        check_artefacts(records, root, findings)
        found.records = len(records)
        if theirs is not None and (theirs / name / "records").is_dir():
            other, their_benchmark = Findings(), benchmark
            if (file := theirs.parent / params_file(name)).is_file():
                try:
                    their_benchmark = load_benchmark(file)
                    found.unlike = _unlike(benchmark, their_benchmark)
                except ConfigError as e:
                    found.unlike = [f"those of the other side cannot be read here ({e})"]
            reference = read_all(theirs / name / "records", other)
            where = f"{against or 'HEAD'}: {label}"
            sound_there = check_records(their_benchmark, reference, _shared(theirs, their_benchmark), where, other)
            unreadable = found.unlike and their_benchmark is benchmark  # no settings to hold their records against
            for problem in [] if unreadable else other.problems:
                findings.refuse(problem.replace(f"{theirs}/", f"{against or 'HEAD'}: {RESULTS}/"))
            found.comparison = compare(sound, sound_there)
            found.devices = ", ".join(_made(records, "device")), ", ".join(_made(reference, "device"))
            found.commits = _made(records, "commit")
            found.unchanged = sum(
                (folder / f"{s}.json").read_bytes() == (theirs / name / "records" / f"{s}.json").read_bytes()
                for s in records
                if s in reference
            )
        elif against is not None:
            raise ConfigError(f"{against}: has no results of {name}")
    check_pipeline(pipeline, findings, deep)
    for ours in sorted((root / RESULTS / name).rglob(CLAIMS)):
        if theirs is not None and (before := theirs / ours.relative_to(root / RESULTS)).is_file():
            _compare_claims(ours, before, found)
    return found


def _shared(results: Path, benchmark: Benchmark) -> dict[str, Any]:
    """Records of the images and the extractor that another benchmark makes."""
    if benchmark.images_of == benchmark.name:
        return {}
    found = read_all(results / benchmark.images_of / "records", Findings())
    return {stage: found[stage] for stage in ("prepare", "extractor") if stage in found}


def _unlike(ours: Benchmark, theirs: Benchmark) -> list[str]:
    """What of the settings that records hold differs, each once, with one of the stages that hold it."""
    mine, other = expected_settings(ours), expected_settings(theirs)
    found: dict[str, str] = {}
    for stage in sorted(mine.keys() & other.keys()):
        for key, value in mine[stage].items():
            for name, now, then in differing(value, other[stage].get(key), key):
                found.setdefault(name, f"{stage}.json: {name} is {short(now)} here, {short(then)} there")
    return list(found.values())


def _made(records: dict[str, Any], key: str) -> tuple[str, ...]:
    """What the records' provenance says under a key, each once."""
    said = {r.get("provenance", {}).get(key) for r in records.values()}
    return tuple(sorted(map(str, said - {None})))


@contextmanager
def other_results(root: Path, against: str | None) -> Iterator[Path | None]:
    """The results/ to compare with, as a folder: a given one, or a revision's records and claims; the composed settings
    lie beside it, as in a checkout, where they are there.

    None where there is no revision to compare with and none was asked for: outside of git.
    """
    if against is not None and Path(against).is_dir():
        inner = Path(against) / RESULTS
        yield (inner if inner.is_dir() else Path(against)).resolve()
        return
    revision = "HEAD" if against is None else against
    if commit(revision, root) is None:
        if against is not None:
            raise ConfigError(f"{against}: neither a folder nor a revision of this repository")
        yield None
        return
    files = listed(root, revision, "-r", "--", f"{RESULTS}/")
    wanted = [p for p in files if p.endswith(f"/{CLAIMS}") or "/records/" in p]
    wanted += listed(root, revision, "--", *(params_file(name).as_posix() for name in sources(root)))
    with extracted(root, revision, wanted) as folder:
        yield folder / RESULTS


def commit(revision: str, root: Path = Path()) -> str | None:
    """Hash of a revision of the checkout; None where there is none."""
    found = git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    return found.decode().strip() if found else None


def _compare_claims(ours: Path, theirs: Path, found: Verification) -> None:
    """Name the claims whose verdict has changed."""
    mine, before = _claims(ours), _claims(theirs)
    for key in dict.fromkeys((*before, *mine)):
        now, was = mine.get(key, "not here"), before.get(key, "not there")
        if now == was:
            found.same_claims += 1
            continue
        text = f"claim {' '.join(key)}: {now}, was {was}"
        found.claims.append(text)
        if {now, was} == CONTRARY:
            found.contrary.append(text)


def _claims(path: Path) -> dict[tuple[str, ...], str]:
    """Verdict of every claim, by its ID and what else tells its rows apart."""
    try:
        with path.open(encoding="utf-8", newline="") as f:
            rows = [{str(k).lower(): str(v) for k, v in row.items()} for row in csv.DictReader(f)]
    except (UnicodeDecodeError, csv.Error) as e:
        raise ConfigError(f"{path}: no CSV ({e}); run dvc repro") from e
    found: dict[tuple[str, ...], str] = {}
    for row in rows:
        if not {"id", "verdict"} <= set(row):
            raise ConfigError(f"{path}: has no columns ID and Verdict; run dvc repro")
        key = tuple(row[k] for k in ("id", "data", "benchmark", "n") if k in row)
        if key in found:
            raise ConfigError(f"{path}: has claim {' '.join(key)} twice; run dvc repro")
        found[key] = row["verdict"]
    return found
