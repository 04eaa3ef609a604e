"""What `emigm verify` says: lines for people, whose last is the verdict in one sentence, and JSON for programs."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emigm.config.errors import ConfigError
from emigm.io import write_atomically
from emigm.report.tables import plural
from emigm.verify.equivalence import DIFFERS, IDENTICAL, STATUSES, UNDECIDED, Comparison, Verdict
from emigm.verify.verify import Verification, commit

SAID = ("identical", "within their margin", "beyond it", "different")
"""`STATUSES` of cells, in words."""
SHOWN = 5
"""Cells of a kind that are printed."""
SAME_IN_JSON = ("whole", "problems", "unchecked", "devices", "same_claims", "claims", "deep")
"""Names of a `Verification` that JSON has too."""


def report(verified: Sequence[Verification], against: str | None = None) -> str:
    """What a person reads; the last line is the verdict in one sentence."""
    lines = [line for one in verified for line in _lines(one, against or "HEAD")]
    return "\n".join([*lines, verdict(verified, against)])


def _lines(one: Verification, other: str) -> Iterator[str]:
    yield one.name
    if one.whole:
        records = f"{plural(one.records, 'record')}, " if one.records else ""
        yield f"  whole: {records}{one.files} files and folders as they were written"
    else:
        yield f"  not whole: {plural(len(one.problems), 'problem')}"
    yield from (f"    {problem}" for problem in one.problems)
    if one.unchecked:
        folders = sorted({"/".join(p.split("/")[:2]) for p in one.unchecked})
        yield f"  not here, so not looked at: {len(one.unchecked)} files and folders of {', '.join(folders)}"
    if one.comparison is not None:
        yield from _compared(one, one.comparison, other)
    elif one.records or one.hindrance:
        yield f"  not compared: {one.hindrance or f'{other} has no results of it'}"
    if one.claims or one.same_claims:
        yield f"  {plural(one.same_claims, 'claim')} with the verdict of {other}, {len(one.claims)} without"
    yield from (f"    {claim}" for claim in one.claims)
    yield from (f"  generated again: {chunk}" for chunk in one.deep)


def _compared(one: Verification, comparison: Comparison, other: str) -> Iterator[str]:
    yield f"  against {other}: {_counts([one])}"
    if unchanged := one.records - len(one.again):
        yield f"  {unchanged} of {one.records} records are those of {other}: their stages have not run again"
    ours, theirs = one.devices
    if one.again:
        yield f"  made on {ours}" + ("" if ours == theirs else f"; those of {other} on {theirs}")
    changed = [v for v in comparison.verdicts if v.status not in (IDENTICAL, DIFFERS)]
    yield from (f"    {v.status} {v}" for v in [*_largest(changed)[:SHOWN], *_largest(comparison.metrics)])
    facts = [v for v in comparison.verdicts if v.status == DIFFERS]
    lists = {DIFFERS: facts, "has not run here": comparison.missing, f"is not in {other}": comparison.extra}
    for kind, names in lists.items():
        yield from (f"    {kind}: {name}" for name in names[:SHOWN])
        if len(names) > SHOWN:
            yield f"    ... {kind}: {len(names):,} in all"


def _largest(verdicts: Sequence[Any]) -> list[Any]:
    """Verdicts on cells or metrics, those first that use most of their margin."""
    return sorted(verdicts, key=lambda v: -v.share)


def made_again(one: Verification) -> list[Verdict]:
    """Verdicts on the cells whose stage has run again."""
    return [v for v in (one.comparison or Comparison()).verdicts if v.cell.split(" ")[0] in one.again]


def _counts(verified: Sequence[Verification]) -> str:
    again = [v.status for one in verified for v in made_again(one)]
    cells = sum(len(one.comparison.verdicts) for one in verified if one.comparison)
    said = [f"{again.count(s)} {word}" for s, word in zip(STATUSES, SAID, strict=True) if s in again or s == IDENTICAL]
    return f"{len(again):,} of {plural(cells, 'cell')} made again, {', '.join(said)}"


def verdict(verified: Sequence[Verification], against: str | None = None) -> str:
    """One sentence."""
    other = against or "HEAD"
    if problems := [p for one in verified for p in one.problems]:
        return f"not whole: {plural(len(problems), 'problem')}, the first: {problems[0]}"
    compared = [one for one in verified if one.comparison is not None]

    def named(part: str, status: str) -> list[str]:
        verdicts = ((one.name, v) for one in compared for v in _largest(getattr(one.comparison, part)))
        return [f"{name} {v}" for name, v in verdicts if v.status == status]

    differences = {
        "fact": named("verdicts", DIFFERS),
        "metric": named("metrics", DIFFERS),
        "cell": [f"{one.name} {name}" for one in compared for name in one.comparison.missing],
        "claim": [claim for one in verified for claim in one.contrary],
    }
    more = {"cell": f" of {other} not run here", "claim": " turned round"}
    texts = [f"{plural(len(d), kind)}{more.get(kind, '')}, the first {d[0]}" for kind, d in differences.items() if d]
    if texts:
        return f"differs: {'; '.join(texts)}"
    if undecided := named("metrics", UNDECIDED):
        metrics = plural(len(undecided), "metric")
        return f"undecided: {metrics} shown neither to be the same nor to differ, the first {undecided[0]}"
    if hindrance := next((one.hindrance for one in verified if one.hindrance), ""):
        return f"not compared with {other}: {hindrance} (results are whole; --against takes a folder of results too)"
    changed = sum(len(one.claims) for one in verified)
    end = f", {plural(changed, 'claim')} decided otherwise" if changed else ""
    if without := [one.name for one in verified if one.records and one.comparison is None]:
        end += f"; {other} has no records of {', '.join(without)} to compare with"
    if not compared:
        files = plural(sum(one.files for one in verified), "file")
        return f"whole: {files} and folders as they were written{end}"
    if not any(one.again for one in compared):
        records = plural(sum(one.records for one in compared), "record")
        return f"unchanged: the {records} are those of {other}, and whole; no stage has run again{end}"
    if any(v.status == UNDECIDED for one in compared for v in made_again(one)):
        end = f", whose metrics are reproduced as a whole{end}"
    return f"reproduced: {_counts(compared)}{end}"


def as_json(verified: Sequence[Verification], against: str | None = None) -> dict[str, Any]:
    """Everything that was found, for programs."""
    benchmarks = {}
    for one in verified:
        comparison = one.comparison or Comparison()
        benchmarks[one.name] = {name: getattr(one, name) for name in SAME_IN_JSON} | {
            "compared": one.comparison is not None,
            "not_compared_because": one.hindrance,
            "stages_run_again": sorted(one.again),
            "cells": [asdict(v) | {"made_again": v.cell.split(" ")[0] in one.again} for v in comparison.verdicts],
            "metrics": [asdict(m) for m in comparison.metrics],
            "missing": comparison.missing,
            "extra": comparison.extra,
            "contrary_claims": one.contrary,
        }
    tree = {"holds": holds(verified), "verdict": verdict(verified, against), "against": against or "HEAD"}
    return json.loads(json.dumps({**tree, "benchmarks": benchmarks}, default=str))


def log(path: Path, verified: Sequence[Verification], against: str | None = None, note: str | None = None) -> None:
    """Append the verdict to `path` as one line of JSON: when, of which commit, on which machine, and the counts of the
    cells that were made again; docs/reproductions.jsonl holds such lines, and the site shows them. Raises ConfigError
    where no stage has run again, so that there is nothing to log."""
    if not any(one.again for one in verified):
        raise ConfigError(f"{path}: nothing to log, since no stage has run again here; make reproduce in a fresh clone")
    line = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": ", ".join(sorted({c for one in verified for c in one.commits})) or None,
        "against": against if against and Path(against).is_dir() else commit(against or "HEAD"),
        **({"note": note} if note else {}),
        "holds": holds(verified),
        "verdict": verdict(verified, against),
        "benchmarks": {},
    }
    for one in verified:
        if one.again:
            again = Counter(v.status for v in made_again(one))
            line["benchmarks"][one.name] = {"devices": list(one.devices)} | {
                status: again[status] for status in STATUSES
            }
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_atomically(path, lambda p: p.write_text(before + json.dumps(line) + "\n", encoding="utf-8"))


def holds(verified: Sequence[Verification]) -> bool:
    """Whether everything holds."""
    return all(one.whole and one.same for one in verified)
