"""What `emigm verify` says: lines for people, whose last is the verdict in one sentence, and JSON for programs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emigm.config.errors import ConfigError
from emigm.io import write_atomically
from emigm.verify.equivalence import DIFFERS, IDENTICAL, REPRODUCED, UNDECIDED, Comparison
from emigm.verify.findings import count
from emigm.verify.verify import Verification, commit

STATUSES = (IDENTICAL, REPRODUCED, UNDECIDED, DIFFERS)
SHOWN = 5
"""Largest differences, other settings and missing cells that are printed."""


def report(found: Sequence[Verification], against: str | None = None) -> str:
    """What a person reads; the last line is the verdict in one sentence."""
    other = "HEAD" if against is None else against
    lines = []
    for one in found:
        findings, comparison = one.findings, one.comparison
        lines.append(f"{one.name}")
        if one.whole:
            records = f"{count(one.records, 'record')}, " if one.records else ""
            lines.append(f"  whole: {records}{findings.files} files and folders as they were written")
        else:
            lines.append(f"  not whole: {count(len(findings.problems), 'problem')}")
            lines += [f"    {p}" for p in findings.problems]
        lines += [f"  {what}" for what in findings.earlier]
        if findings.unchecked:
            folders = sorted({"/".join(p.split("/")[:2]) for p in findings.unchecked})
            lines.append(f"  not here, so not looked at: {len(findings.unchecked)} files of {', '.join(folders)}")
        if comparison is None:
            if one.records:
                lines.append(f"  not compared: {other} has no results of it")
        else:
            lines += _compared(one, comparison, other)
        if one.claims or one.same_claims:
            lines.append(f"  {count(one.same_claims, 'claim')} with the verdict of {other}, {len(one.claims)} without")
        lines += [f"    {claim}" for claim in one.claims]
        lines += [f"  generated again: {chunk}" for chunk in one.deep]
    return "\n".join((*lines, verdict(found, against)))


def _compared(one: Verification, comparison: Comparison, other: str) -> Iterator[str]:
    counts = ", ".join(f"{len(comparison.of(s))} {s}" for s in STATUSES)
    yield f"  against {other}: {count(len(comparison.verdicts), 'cell')}: {counts}"
    if one.unchanged:
        yield f"  {one.unchanged} of {one.records} records are those of {other}: their stages have not run again"
    ours, theirs = one.devices
    if one.unchanged < one.records:
        yield f"  made on {ours}" + ("" if ours == theirs else f"; those of {other} on {theirs}")
    yield from (f"    other settings: {text}" for text in one.unlike[:SHOWN])
    if len(one.unlike) > SHOWN:
        yield f"    ... other settings: {len(one.unlike):,} in all"
    differing = comparison.of(DIFFERS)
    others = comparison.of(UNDECIDED) or comparison.of(REPRODUCED)
    for v in _largest(differing) or _largest(others)[:SHOWN]:
        yield f"    {v.status} {v}"
    yield from (f"    {m.status} {m}" for m in _largest(comparison.metrics))
    for kind, names in (("has not run here", comparison.missing), (f"is not in {other}", comparison.extra)):
        yield from (f"    {name}: {kind}" for name in names[:SHOWN])
        if len(names) > SHOWN:
            yield f"    ... {kind}: {count(len(names), 'cell')} in all"


def _largest(found: Sequence[Any]) -> list[Any]:
    """Verdicts on cells or metrics, those first that use most of their margin."""
    return sorted(found, key=lambda v: -v.share)


def verdict(found: Sequence[Verification], against: str | None = None) -> str:
    """One sentence; it names what stands by earlier code."""
    earlier = [one.name for one in found if one.findings.earlier]
    return _verdict(found, against) + (f"; by earlier code: {', '.join(earlier)}" if earlier else "")


def _verdict(found: Sequence[Verification], against: str | None) -> str:
    other = "HEAD" if against is None else against
    problems = [p for one in found for p in one.findings.problems]
    if problems:
        return f"not whole: {count(len(problems), 'problem')}, the first: {problems[0]}"
    compared = [one for one in found if one.comparison is not None]
    cells = [v for one in compared for v in one.comparison.verdicts]
    metrics = [m for one in compared for m in one.comparison.metrics]

    def named(what: str, status: str) -> list[str]:
        found = ((one.name, v) for one in compared for v in _largest(getattr(one.comparison, what)))
        return [f"{name} {v}" for name, v in found if v.status == status]

    differing, shifted, undecided = named("verdicts", DIFFERS), named("metrics", DIFFERS), named("metrics", UNDECIDED)
    missing = [f"{one.name} {name}" for one in compared for name in one.comparison.missing]
    contrary = [c for one in found for c in one.contrary]
    unlike = [f"{one.name} {text}" for one in found for text in one.unlike]
    what = []
    if unlike:
        what.append(f"the settings are not those of {other}, the first {unlike[0]}")
    if differing:
        what.append(f"{len(differing)} of {count(len(cells), 'cell')}, the first {differing[0]}")
    if shifted:
        what.append(f"{count(len(shifted), 'metric')} over all sizes, the first {shifted[0]}")
    if missing:
        what.append(f"{count(len(missing), 'cell')} of {other} not run here, the first {missing[0]}")
    if contrary:
        what.append(f"{count(len(contrary), 'claim')} turned round, the first {contrary[0]}")
    if what:
        return f"differs: {'; '.join(what)}"
    if undecided:
        metric = count(len(undecided), "metric")
        return f"undecided: {metric} shown neither to be the same nor to differ, the first {undecided[0]}"
    records = sum(one.records for one in found)
    changed = sum(len(one.claims) for one in found)
    claims = f", {count(changed, 'claim')} decided otherwise" if changed else ""
    if not cells:
        files = count(sum(one.findings.files for one in found), "file")
        none = f", but {other} has no records to compare with" if records else ""
        return f"whole: {files} and folders as they were written{none}{claims}"
    if all(one.unchanged == one.records for one in compared):
        text = f"unchanged: the {count(records, 'record')} are those of {other}, and whole; no stage has run again"
        return text + claims
    identical, within, scattered = (sum(v.status == s for v in cells) for s in (IDENTICAL, REPRODUCED, UNDECIDED))
    text = f"reproduced: {count(len(cells), 'cell')}, {identical} identical, {within} within tolerance"
    if scattered:
        of = count(len(metrics), "metric")
        text += f"; {scattered} too scattered to tell one by one, whose {of} agree over all sizes and budgets"
    return text + claims


def as_json(found: Sequence[Verification], against: str | None = None) -> dict[str, Any]:
    """Everything that was found, for programs."""
    benchmarks = {}
    for one in found:
        comparison = one.comparison or Comparison()
        benchmarks[one.name] = {
            "whole": one.whole,
            "problems": one.findings.problems,
            "unchecked": one.findings.unchecked,
            "earlier": one.findings.earlier,
            "compared": one.comparison is not None,
            "unchanged_records": one.unchanged,
            "devices": list(one.devices),
            "cells": [
                {
                    "cell": v.cell,
                    "status": v.status,
                    "ours": v.ours if isinstance(v.ours, (int, float, str, bool)) else str(v.ours),
                    "theirs": v.theirs if isinstance(v.theirs, (int, float, str, bool)) else str(v.theirs),
                    "margin": v.margin,
                    "reached": v.reached,
                    "note": v.note,
                }
                for v in comparison.verdicts
            ],
            "metrics": [asdict(m) for m in comparison.metrics],
            "missing": comparison.missing,
            "extra": comparison.extra,
            "same_claims": one.same_claims,
            "claims": one.claims,
            "contrary_claims": one.contrary,
            "unlike_settings": one.unlike,
            "deep": one.deep,
        }
    tree = {"holds": holds(found), "verdict": verdict(found, against), "against": against or "HEAD"}
    return json.loads(json.dumps({**tree, "benchmarks": benchmarks}))


def log(path: Path, found: Sequence[Verification], against: str | None = None, note: str | None = None) -> None:
    """Append the verdict to `path` as one line of JSON: when, of which commit, on which machine, and the cells' counts.

    docs/reproductions.jsonl holds such lines, and the site shows them.

    Raises:
        ConfigError: no stage has run again, so that there is nothing to log.
    """
    if not any(one.unchanged < one.records for one in found if one.comparison is not None):
        raise ConfigError(f"{path}: nothing to log, since no stage has run again here; make reproduce in a fresh clone")
    compared = {
        one.name: {"devices": list(one.devices)} | {status: len(one.comparison.of(status)) for status in STATUSES}
        for one in found
        if one.comparison is not None
    }
    line = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": ", ".join(sorted({c for one in found for c in one.commits})) or None,
        "against": commit(against or "HEAD") or str(against),
        **({"note": note} if note else {}),
        "holds": holds(found),
        "verdict": verdict(found, against),
        "benchmarks": compared,
    }
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_atomically(path, lambda p: p.write_text(before + json.dumps(line) + "\n", encoding="utf-8"))


def holds(found: Sequence[Verification]) -> bool:
    """Whether everything holds."""
    return all(one.whole and one.same for one in found)
