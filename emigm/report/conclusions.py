"""What the ledger adds up to, in sentences that can be quoted: the tally, and the few that matter."""

from __future__ import annotations

import re
from collections import Counter

import pandas as pd

from emigm.records.frame import benchmarks_with_results, find_root, runs
from emigm.report.ledger import VERDICTS, Ledger
from emigm.report.tables import NONE

PAPER, QUESTION = "the paper", "this project"
"""Whose a row of the ledger is: a conclusion of the paper, or a question of this project."""
WORDS = {
    r"(?:colour-)?codes(\d*)/(\w+)": lambda m: f"{m[2]} ({m[1] or 512} codes)",
    r"[\w-]+/(?=\w)": "",
    r"elbo_(\w+)": r"\1 (ELBO)",
    r"one_log_exp": "log-exp (weight 1)",
    r"one_(\w+)": r"\1 (weight 1)",
    r"mae_exp": "with the MAE trick",
    r"tmin4": "t ≥ 0.4",
    r"fake_token": "fake class token",
    r"(?<!\S)emigm\b": "eMIGM",
    r"(?<!\S)mar(_cosine)?\b": lambda m: "MAR" + " (cosine)" * bool(m[1]),
    r"(?<!\S)maskgit\b": "MaskGIT",
    r"(?<!\S)(mdm|xs|s|b|l|h)(_equal)?\b": lambda m: m[1].upper() + " (equal FLOPs)" * bool(m[2]),
    r"plain_(\d+)": r"no guidance at N = \1",
    r"scale_(\d)(\d+)": r"scale \1.\2",
    r"grid_(\d)(\d)_(\d)(\d)": r"guidance in (\1.\2, \3.\4]",
    r"([a-z]+)_(\d+)": r"\1 at N = \2",
    r" at (?=\d)": " at N = ",
}
"""How a row or a sampling configuration is called -> what a reader sees."""


def runs_of(*benchmarks: str) -> pd.DataFrame:
    """`emigm.records.frame.runs` of those benchmarks that have records; with its columns, but empty, where none has."""
    known = benchmarks_with_results(find_root())
    return runs(None, [name for name in benchmarks if name in known])


def tally(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Data -> verdict -> how many of the paper's conclusions came to it, in the ledger's table (claims.csv)."""
    groups = table[table["Of"] == PAPER].groupby("Data", sort=False)["Verdict"]
    counts = {data: Counter(verdicts) for data, verdicts in groups}
    return {data: {verdict: of[verdict] for verdict in VERDICTS if of[verdict]} for data, of in counts.items()}


def front(table: pd.DataFrame) -> tuple[str, ...]:
    """The few claims that matter most in the ledger's table (claims.csv), a sentence each: verdict and effect on the
    first data that a claim names, then on all others that it was measured on."""
    said: dict[str, list[str]] = {}
    for row in table[table["Front"] == "yes"].itertuples():
        text = f"**{row.Verdict}**" + f": {in_words(row.Effect)}" * (row.Effect != NONE)
        parts = said.setdefault(f"{row.Claim} ({row.Source}): ", [])
        if not parts or row.Effect != NONE:
            parts.append(f"on {row.Data} {text}" if parts else text)
    return tuple(f"{claim}{'; '.join(parts)}." for claim, parts in said.items())


def in_words(effect: str) -> str:
    """A comparison as a reader sees it: "one_exp at 16_plain < xs at 16: 1.31 and 1.52" => "exp (weight 1) at N = 16
    without guidance < XS at N = 16: 1.31 and 1.52"."""
    compared, *measured = effect.rpartition(": ")
    compared = compared.replace("_plain", " without guidance")
    for pattern, text in WORDS.items():
        compared = re.sub(pattern, text, compared)
    return "".join([compared, *measured])


def effects(ledger: Ledger, *sources: str, at: str | None = None) -> tuple[str, ...]:
    """A sentence for each claim of some figures or tables that was measured (`at` one benchmark): its verdict and the
    comparison that decides it, in words; on which data, where that is not said by `at`."""

    def on(entry) -> str:
        asked = " (a question of this project, no claim of the paper)" * entry.claim.question
        return asked + (f" on {entry.data}" if at is None and len(entry.claim.at) > 1 else "")

    return tuple(
        f"{entry.claim.source}, {entry.claim.claim}{on(entry)}: **{entry.verdict}** ({in_words(entry.deciding.plain)})."
        for entry in ledger.entries
        if entry.deciding
        and at in (None, entry.place.benchmark)
        and any(source in entry.claim.source for source in sources)
    )
