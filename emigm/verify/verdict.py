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
from emigm.verify.equivalence import DIFFERS, IDENTICAL, REPRODUCED, UNDECIDED, Comparison, Verdict
from emigm.verify.findings import count
from emigm.verify.verify import Verification, commit

STATUSES = (IDENTICAL, REPRODUCED, UNDECIDED, DIFFERS)
SAID = ("identical", "within their margin", "beyond it", "different")
"""Statuses of cells, in words."""
SHOWN = 5
"""Cells of a kind that are printed."""


def report(found: Sequence[Verification], against: str | None = None) -> str:
    """What a person reads; the last line is the verdict in one sentence."""
    return "\n".join([*(line for one in found for line in _lines(one, against or "HEAD")), verdict(found, against)])


def _lines(one: Verification, other: str) -> Iterator[str]:
    findings = one.findings
    yield one.name
    if one.whole:
        records = f"{count(one.records, 'record')}, " if one.records else ""
        yield f"  whole: {records}{findings.files} files and folders as they were written"
    else:
        yield f"  not whole: {count(len(findings.problems), 'problem')}"
    yield from (f"    {problem}" for problem in findings.problems)
    if findings.unchecked:
        folders = sorted({"/".join(p.split("/")[:2]) for p in findings.unchecked})
        yield f"  not here, so not looked at: {len(findings.unchecked)} files and folders of {', '.join(folders)}"
    if one.comparison is not None:
        yield from _compared(one, one.comparison, other)
    elif one.records or one.hindrance:
        yield f"  not compared: {one.hindrance or f'{other} has no results of it'}"
    if one.claims or one.same_claims:
        yield f"  {count(one.same_claims, 'claim')} with the verdict of {other}, {len(one.claims)} without"
    yield from (f"    {claim}" for claim in one.claims)
    yield from (f"  generated again: {chunk}" for chunk in one.deep)


def _compared(one: Verification, comparison: Comparison, other: str) -> Iterator[str]:
    yield f"  against {other}: {_counts([one])}"
    if len(one.again) < one.records:
        unchanged = one.records - len(one.again)
        yield f"  {unchanged} of {one.records} records are those of {other}: their stages have not run again"
    ours, theirs = one.devices
    if one.again:
        yield f"  made on {ours}" + ("" if ours == theirs else f"; those of {other} on {theirs}")
    changed = _largest([v for v in comparison.verdicts if v.status not in (IDENTICAL, DIFFERS)])
    yield from (f"    {v.status} {v}" for v in [*changed[:SHOWN], *_largest(comparison.metrics)])
    facts = [v for v in comparison.verdicts if v.status == DIFFERS]
    lists = {DIFFERS: facts, "has not run here": comparison.missing, f"is not in {other}": comparison.extra}
    for kind, names in lists.items():
        yield from (f"    {kind}: {name}" for name in names[:SHOWN])
        if len(names) > SHOWN:
            yield f"    ... {kind}: {len(names):,} in all"


def _largest(found: Sequence[Any]) -> list[Any]:
    """Verdicts on cells or metrics, those first that use most of their margin."""
    return sorted(found, key=lambda v: -v.share)


def made_again(one: Verification) -> list[Verdict]:
    """Verdicts on the cells whose stage has run again."""
    return [v for v in (one.comparison or Comparison()).verdicts if v.cell.split(" ")[0] in one.again]


def _counts(found: Sequence[Verification]) -> str:
    again = [v.status for one in found for v in made_again(one)]
    cells = sum(len(one.comparison.verdicts) for one in found if one.comparison)
    said = [f"{again.count(s)} {word}" for s, word in zip(STATUSES, SAID, strict=True) if s in again or s == IDENTICAL]
    return f"{len(again):,} of {count(cells, 'cell')} made again, {', '.join(said)}"


def verdict(found: Sequence[Verification], against: str | None = None) -> str:
    """One sentence."""
    other = "HEAD" if against is None else against
    problems = [p for one in found for p in one.findings.problems]
    if problems:
        return f"not whole: {count(len(problems), 'problem')}, the first: {problems[0]}"
    compared = [one for one in found if one.comparison is not None]

    def named(part: str, status: str) -> list[str]:
        verdicts = ((one.name, v) for one in compared for v in _largest(getattr(one.comparison, part)))
        return [f"{name} {v}" for name, v in verdicts if v.status == status]

    facts, metrics = named("verdicts", DIFFERS), named("metrics", DIFFERS)
    missing = [f"{one.name} {name}" for one in compared for name in one.comparison.missing]
    contrary = [claim for one in found for claim in one.contrary]
    differences = [
        (count(len(facts), "fact"), facts),
        (count(len(metrics), "metric"), metrics),
        (f"{count(len(missing), 'cell')} of {other} not run here", missing),
        (f"{count(len(contrary), 'claim')} turned round", contrary),
    ]
    if texts := [f"{text}, the first {items[0]}" for text, items in differences if items]:
        return f"differs: {'; '.join(texts)}"
    if undecided := named("metrics", UNDECIDED):
        metrics = count(len(undecided), "metric")
        return f"undecided: {metrics} shown neither to be the same nor to differ, the first {undecided[0]}"
    if hindrance := next((one.hindrance for one in found if one.hindrance), ""):
        return f"not compared with {other}: {hindrance} (results are whole; --against takes a folder of results too)"
    changed = sum(len(one.claims) for one in found)
    more = f", {count(changed, 'claim')} decided otherwise" if changed else ""
    if without := [one.name for one in found if one.records and one.comparison is None]:
        more += f"; {other} has no records of {', '.join(without)} to compare with"
    if not compared:
        files = sum(one.findings.files for one in found)
        return f"whole: {count(files, 'file')} and folders as they were written{more}"
    if not any(one.again for one in compared):
        records = count(sum(one.records for one in compared), "record")
        return f"unchanged: the {records} are those of {other}, and whole; no stage has run again{more}"
    if any(v.status == UNDECIDED for one in compared for v in made_again(one)):
        more = f", whose metrics are reproduced as a whole{more}"
    return f"reproduced: {_counts(compared)}{more}"


def as_json(found: Sequence[Verification], against: str | None = None) -> dict[str, Any]:
    """Everything that was found, for programs."""
    benchmarks = {}
    for one in found:
        comparison = one.comparison or Comparison()
        benchmarks[one.name] = {
            "whole": one.whole,
            "problems": one.findings.problems,
            "unchecked": one.findings.unchecked,
            "compared": one.comparison is not None,
            "not_compared_because": one.hindrance,
            "stages_run_again": sorted(one.again),
            "devices": one.devices,
            "cells": [asdict(v) | {"made_again": v.cell.split(" ")[0] in one.again} for v in comparison.verdicts],
            "metrics": [asdict(m) for m in comparison.metrics],
            "missing": comparison.missing,
            "extra": comparison.extra,
            "same_claims": one.same_claims,
            "claims": one.claims,
            "contrary_claims": one.contrary,
            "deep": one.deep,
        }
    tree = {"holds": holds(found), "verdict": verdict(found, against), "against": against or "HEAD"}
    return json.loads(json.dumps({**tree, "benchmarks": benchmarks}, default=str))


def log(path: Path, found: Sequence[Verification], against: str | None = None, note: str | None = None) -> None:
    """Append the verdict to `path` as one line of JSON: when, of which commit, on which machine, and the counts of the
    cells that were made again.

    docs/reproductions.jsonl holds such lines, and the site shows them.

    Raises:
        ConfigError: no stage has run again, so that there is nothing to log.
    """
    again = {one.name: Counter(v.status for v in made_again(one)) for one in found if one.again}
    if not again:
        raise ConfigError(f"{path}: nothing to log, since no stage has run again here; make reproduce in a fresh clone")
    line = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": ", ".join(sorted({c for one in found for c in one.commits})) or None,
        "against": against if against and Path(against).is_dir() else commit(against or "HEAD"),
        **({"note": note} if note else {}),
        "holds": holds(found),
        "verdict": verdict(found, against),
        "benchmarks": {
            one.name: {"devices": list(one.devices)} | {status: again[one.name][status] for status in STATUSES}
            for one in found
            if one.name in again
        },
    }
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_atomically(path, lambda p: p.write_text(before + json.dumps(line) + "\n", encoding="utf-8"))


def holds(found: Sequence[Verification]) -> bool:
    """Whether everything holds."""
    return all(one.whole and one.same for one in found)
