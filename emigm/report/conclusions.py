"""What the ledger adds up to, in sentences that can be quoted: tally, conclusions, and where metrics disagree."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from emigm.records.frame import benchmarks_with_results, find_root, runs
from emigm.report.ledger import BESIDE, FAILS, HOLDS, MIXED, VERDICTS, Ledger
from emigm.report.tables import plural

PAPER, QUESTION = "the paper", "this project"
"""Whose a row of the ledger is: a conclusion of the paper, or a question of this project."""
COLUMNS = ("extractor", "features", "reference", "sample.cfg_scale", "sample.cfg_interval", "sample.x0_clip")
"""What notebooks read beside the columns that `runs` always has."""


def runs_of(*benchmarks: str) -> pd.DataFrame:
    """`emigm.records.frame.runs` of those benchmarks that have records; with its columns, but empty, where none has."""
    known = benchmarks_with_results(find_root())
    frame = runs(None, [name for name in benchmarks if name in known])
    return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *COLUMNS])))


def tally(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Kind of data -> verdict -> how many of the paper's conclusions came to it, in the ledger's table (claims.csv)."""
    groups = table[table["Of"] == PAPER].groupby("Data", sort=False)["Verdict"]
    counts = {data: Counter(verdicts) for data, verdicts in groups}
    return {data: {verdict: of[verdict] for verdict in VERDICTS if of[verdict]} for data, of in counts.items()}


def tally_table(table: pd.DataFrame) -> pd.DataFrame:
    """The tally, a row for each kind of data and a column for each verdict that occurs."""
    counts = pd.DataFrame(tally(table)).T.reindex(columns=VERDICTS).dropna(axis=1, how="all")
    return counts.astype("Int64").astype(object).where(counts.notna(), None).rename_axis("Data").reset_index()


def told(counts: dict[str, dict[str, int]]) -> tuple[str, ...]:
    """A tally as one sentence for each kind of data."""
    return tuple(
        f"{data}, {plural(sum(of.values()), 'conclusion')} of the paper: "
        f"{', '.join(f'{verdict} {n}' for verdict, n in of.items())}."
        for data, of in counts.items()
    )


def verdicts(ledger: Ledger) -> tuple[str, ...]:
    """The paper's conclusions, a paragraph for each kind of data and verdict: how many, and which."""
    clauses: dict[tuple[str, str], list[str]] = {}
    for claim in ledger.claims.claims:
        for place in () if claim.question else claim.at:
            verdict, detail = ledger.verdict(claim, place), ""
            if verdict == MIXED:
                at = ledger.by_steps(claim, place).items()
                detail = f": {', '.join(f'N = {n}: {which}' for n, which in at)}"
            elif all(o.test == "computed" for o in ledger.of(claim, place)):
                detail = ", computed"  # from formulas, without a run
            key = ledger.claims.ground(place.benchmark), verdict
            clauses.setdefault(key, []).append(f"{claim.claim} ({claim.source}){detail}")
    grounds = list(ledger.claims.grounds)
    order = sorted(clauses, key=lambda key: (grounds.index(key[0]), VERDICTS.index(key[1])))
    return tuple(f"**{', '.join(key)}: {len(clauses[key])}.** {capital('; '.join(clauses[key]))}." for key in order)


def capital(clause: str) -> str:
    """A claim as it begins a sentence."""
    return clause if clause.startswith("eMIGM") else f"{clause[0].upper()}{clause[1:]}"


def disagreements(ledger: Ledger) -> tuple[str, ...]:
    """Verdicts that rest on FID where KID, precision, recall or FID of infinitely many images says the contrary: KID,
    precision and recall beyond their interval, the extrapolated FIDs by their sign."""
    texts = []
    for o in ledger.outcomes:
        if o.verdict not in (HOLDS, FAILS) or not o.gain:
            continue
        contrary = []
        for name, gain in o.beside:
            turned = gain if o.gain.effect > 0 else -gain
            if turned.effect < 0 and (name.startswith("fid") or (turned.high is not None and turned.high < 0)):
                metric, better = BESIDE[name]
                contrary.append(f"a {'lower' if better > 0 else 'higher'} {metric} (by {abs(turned).text})")
        size, listed = abs(o.gain).text, "; ".join(contrary)
        text = f"the side with the lower FID (by {size}) has {listed}"
        if not o.sides:
            text = (
                f"FID speaks {'for' if o.gain.effect > 0 else 'against'} it (by {size}), but {listed} to the contrary"
            )
        texts += [f"{o.claim.id} ({o.comparison}): {text}."] if contrary else []
    return tuple(dict.fromkeys(texts))


def effects(ledger: Ledger, *sources: str) -> tuple[str, ...]:
    """A sentence for each claim of some figures or tables that was measured: its effects with their intervals, no
    verdict. A last one says what the intervals are, and where the verdicts are."""
    texts = []
    for claim in ledger.claims.claims:
        for place in claim.at if any(source in claim.source for source in sources) else ():
            if measured := [o.plain for o in ledger.of(claim, place) if o.gain is not None]:
                texts.append(f"{claim.source}, {claim.claim}: {'; '.join(measured)}.")
    if texts:
        texts.append(
            f"FID unless said; […]: the {ledger.claims.level:.0%} interval of that comparison alone. Verdicts, which "
            "take all comparisons together, are in the ledger."
        )
    return tuple(texts)
