"""What the ledger adds up to: its tables, the tally, and the sentences that can be quoted. All from the records."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from emigm.paper.claims import Claim, Place
from emigm.records.frame import benchmarks_with_results, find_root, runs
from emigm.report.ledger import (
    BESIDE,
    FAILS,
    HOLDS,
    MIXED,
    VERDICTS,
    Ledger,
)
from emigm.report.tables import plural

PAPER, QUESTION = "the paper", "this project"
"""Whose a row of the ledger is: a conclusion of the paper, or a question of this project."""
COLUMNS = ("extractor", "features", "reference", "sample.cfg_scale", "sample.cfg_interval", "sample.x0_clip")
"""What notebooks read beside the columns that `runs` always has."""


def runs_of(*benchmarks: str) -> pd.DataFrame:
    """`emigm.records.frame.runs` of those benchmarks that have records; with its columns, but empty, where none has."""
    there = benchmarks_with_results(find_root())
    frame = runs(None, [name for name in benchmarks if name in there])
    return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *COLUMNS])))


def tally(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Kind of data -> verdict -> how many of the paper's conclusions came to it, in the ledger's table (claims.csv)."""
    found: dict[str, dict[str, int]] = {}
    for data, rows in table[table["Of"] == PAPER].groupby("Data", sort=False):
        counts = Counter(rows["Verdict"])
        found[data] = {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}
    return found


def told(counts: dict[str, dict[str, int]]) -> tuple[str, ...]:
    """A tally as one sentence for each kind of data."""
    return tuple(
        f"{data}, {plural(sum(of.values()), 'conclusion')} of the paper: "
        + ", ".join(f"{verdict} {n}" for verdict, n in of.items())
        + "."
        for data, of in counts.items()
    )


def verdicts(ledger: Ledger) -> tuple[str, ...]:
    """The paper's conclusions, a paragraph for each kind of data and verdict: how many, and which."""
    found: dict[tuple[str, str], list[str]] = {}
    for claim in ledger.claims.claims:
        for place in () if claim.question else claim.at:
            data, verdict = ledger.claims.ground(place.benchmark), ledger.verdict(claim, place)
            detail = f": {_at_steps(ledger, claim, place)}" if verdict == MIXED else _computed(ledger, claim, place)
            found.setdefault((data, verdict), []).append(f"{claim.claim} ({claim.source}){detail}")
    grounds = list(ledger.claims.grounds)
    order = sorted(found, key=lambda key: (grounds.index(key[0]), VERDICTS.index(key[1])))
    return tuple(
        f"**{data}, {verdict}: {len(found[data, verdict])}.** {capital('; '.join(found[data, verdict]))}."
        for data, verdict in order
    )


def capital(clause: str) -> str:
    """A claim as it begins a sentence."""
    return clause if clause.startswith("eMIGM") else f"{clause[0].upper()}{clause[1:]}"


def _computed(ledger: Ledger, claim: Claim, place: Place) -> str:
    """A mark where a verdict follows from formulas, without a run."""
    return ", computed" if all(o.test == "computed" for o in ledger.of(claim, place)) else ""


def _at_steps(ledger: Ledger, claim: Claim, place: Place) -> str:
    return ", ".join(f"N = {n}: {verdict}" for n, verdict in ledger.by_steps(claim, place).items())


def disagreements(ledger: Ledger) -> tuple[str, ...]:
    """Verdicts that rest on FID where KID, precision, recall or FID of infinitely many images says the contrary: KID,
    precision and recall beyond their interval, the extrapolated FIDs by their sign."""
    found = []
    for o in ledger.outcomes:
        if o.verdict not in (HOLDS, FAILS) or not o.gain:
            continue
        sign, contrary = 1 if o.gain.effect > 0 else -1, []
        for name, other in o.beside:
            turned = other if sign > 0 else -other
            if turned.effect < 0 and (name.startswith("fid") or (turned.high is not None and turned.high < 0)):
                what, better = BESIDE[name]
                contrary.append(f"a {'lower' if better > 0 else 'higher'} {what} (by {abs(turned).text})")
        if not contrary:
            continue
        size, contrary = abs(o.gain).text, "; ".join(contrary)
        if o.sides:
            text = f"the side with the lower FID (by {size}) has {contrary}"
        else:
            text = f"FID speaks {'for' if sign > 0 else 'against'} it (by {size}), but {contrary} to the contrary"
        found.append(f"{o.claim.id} ({o.comparison}): {text}.")
    return tuple(dict.fromkeys(found))


def effects(ledger: Ledger, *sources: str) -> tuple[str, ...]:
    """A sentence for each claim of some figures or tables that was measured: its effects with their intervals, no
    verdict. A last one says what the intervals are."""
    found = []
    for claim in ledger.claims.claims:
        for place in claim.at if any(source in claim.source for source in sources) else ():
            measured = [o for o in ledger.of(claim, place) if o.gain is not None]
            if measured:
                listed = "; ".join(o.plain for o in measured)
                found.append(f"{claim.source}, {claim.claim}: {listed}.")
    if found:
        found.append(
            f"FID unless said; […]: the {ledger.claims.level:.0%} interval of that comparison alone. The verdicts, "
            "adjusted for all comparisons of the page, are in the ledger."
        )
    return tuple(found)
