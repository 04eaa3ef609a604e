"""What the ledger adds up to: its tables, the tally, and the sentences that can be quoted. All from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from emigm.records.frame import benchmarks_with_results, find_root, runs
from emigm.report.claims import METRICS, Claim
from emigm.report.ledger import (
    BESIDE,
    DRY,
    FAILS,
    HOLDS,
    MIXED,
    NOT_RUN,
    OPEN,
    SMALL,
    UNCOUNTED,
    UNTESTABLE,
    VERDICTS,
    Ledger,
    Outcome,
)
from emigm.report.tables import plural

COLUMNS = ("extractor", "features", "reference", "sample.cfg_scale", "sample.cfg_interval", "sample.x0_clip")
"""What notebooks read beside the columns that `runs` always has."""


def runs_of(*benchmarks: str) -> pd.DataFrame:
    """`emigm.records.frame.runs` of those benchmarks that have records; with its columns, but empty, where none has."""
    there = benchmarks_with_results(find_root())
    frame = runs(None, [name for name in benchmarks if name in there])
    return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *COLUMNS])))


def tally(ledger: Ledger) -> tuple[str, ...]:
    """One sentence for each kind of data: how many of the paper's conclusions came to which verdict."""
    found: dict[str, Counter] = {}
    for claim in ledger.claims.claims:
        for place in claim.at if not claim.question else ():
            found.setdefault(ledger.claims.ground(place.benchmark), Counter())[ledger.verdict(claim, place)] += 1
    return tuple(
        f"{data}: {plural(numbers.total(), 'conclusion')} of the paper: "
        + ", ".join(f"{numbers[verdict]} {verdict}" for verdict in VERDICTS if numbers[verdict])
        + "."
        for data, numbers in found.items()
    )


def conclusion(ledger: Ledger) -> str:
    """A paragraph to quote: which of the paper's conclusions hold on which data, which on none, which take ImageNet."""
    groups: dict[str, list[str]] = {}
    for claim in ledger.claims.claims:
        if claim.question:
            continue
        at = {ledger.claims.ground(p.benchmark): ledger.verdict(claim, p) for p in claim.at}
        text = f"{claim.claim} ({claim.source})"
        holding = [data for data, verdict in at.items() if verdict == HOLDS]
        if holding:
            groups.setdefault(f"Of the paper's conclusions these hold on {' and '.join(holding)}", []).append(text)
            continue
        run = {data: verdict for data, verdict in at.items() if verdict not in (NOT_RUN, DRY)}
        if not run:
            groups.setdefault(f"These need {' and '.join(at)}, which was not run", []).append(text)
        for data, verdict in run.items():
            detail = f"; {_at_steps(ledger, claim, data)}" if verdict == MIXED else ""
            head = {
                FAILS: "These hold on none of the data that they were tested on",
                MIXED: f"These hold on {data} at some numbers of steps and fail at others",
                SMALL: f"These make no difference that matters on {data}",
                OPEN: f"Not decided on {data}",
                UNTESTABLE: f"Not testable on {data}, where a precondition is not met",
                UNCOUNTED: f"Not counted on {data}, where models fail the context gate",
            }[verdict]
            groups.setdefault(head, []).append(f"{text}{detail}")
    order = sorted(groups, key=lambda head: (not head.startswith("Of"), head.startswith("These need")))
    return " ".join(f"{head}: {'; '.join(groups[head])}." for head in order)


def _at_steps(ledger: Ledger, claim: Claim, data: str) -> str:
    place = next(p for p in claim.at if ledger.claims.ground(p.benchmark) == data)
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
                contrary.append(f"{BESIDE[name][0]} is {replace(o, gain=other).plain}")
        if contrary:
            found.append(
                f"{o.claim.id} ({o.comparison}): FID is {o.plain} for the paper's choice, but {'; '.join(contrary)}."
            )
    return tuple(dict.fromkeys(found))


def kid_against_shuffle(frame: pd.DataFrame, baselines: pd.DataFrame) -> str:
    """The models of one benchmark whose KID is worse than class shuffle's while their FID is better."""
    shuffle = baselines[baselines["baseline"] == "class_shuffle"].set_index("metric")["mean"]
    if not {"fid", "kid"} <= set(shuffle.index) or "kid" not in frame:
        return ""
    means = frame[frame["snapshot"].isna()].groupby(["size", "budget"], sort=False)[["fid", "kid"]].mean().dropna()
    odd = means[(means["fid"] < shuffle["fid"]) & (means["kid"] > shuffle["kid"])]
    if means.empty:
        return ""
    name = frame["benchmark"].iloc[0]
    if odd.empty:
        return f"On {name} no model has a KID worse than class shuffle's with a FID better than its."
    cells = ", ".join(f"{size} at {budget} ({row.kid:.3g})" for (size, budget), row in odd.iterrows())
    return f"On {name} KID is worse than class shuffle's ({shuffle['kid']:.3g}) while FID is better: {cells}."


def context_correlation(frame: pd.DataFrame, budget: str) -> str:
    """How FID at a budget goes with the context ratio over the runs of one benchmark."""
    runs = frame[(frame["budget"] == budget) & frame["snapshot"].isna()].dropna(subset=["fid", "gate_ratio"])
    runs = runs.groupby(["size", "train_seed"])[["fid", "gate_ratio"]].mean()
    if len(runs) < 4:
        return ""
    found = stats.pearsonr(runs["gate_ratio"], runs["fid"])
    low, high = found.confidence_interval()
    return (
        f"Over {len(runs)} training runs of {frame['benchmark'].iloc[0]} FID at N = {budget} correlates "
        f"{found.statistic:.2f} [{low:.2f}, {high:.2f}] with the context ratio: the nearer to 1, the more a verdict says how soon a model "
        "finds context."
    )


def memorisation(frame: pd.DataFrame, splits: Sequence[float]) -> str:
    """Whether generated images lie nearer to training images than real images lie to one random set of real images.

    Args:
        frame: runs with nearest_train and nearest_holdout, the mean distances to equally many images of either.
        splits: the same ratio for real images and two sets of real images, over random splits of all there are
            (`results.nearest.real_ratio.values` of the reference record).
    """
    runs = frame.reindex(columns=["nearest_train", "nearest_holdout"]).dropna()
    if runs.empty:
        return ""
    ratio = runs["nearest_train"] / runs["nearest_holdout"]
    text = (
        f"Generated images are nearer to training images than to as many held-out ones in {(ratio < 1).sum():,} of "
        f"{plural(len(ratio), 'run')} (ratio of mean distances: median {ratio.median():.3f}, from {ratio.min():.3f} to "
        f"{ratio.max():.3f})."
    )
    if len(splits) < 2:
        return f"{text} The ratio of real images was not measured, so this says nothing of copying."
    low, high = (float(q) for q in stats.t.interval(0.95, len(splits) - 1, np.mean(splits), _prediction_error(splits)))
    below = int((ratio < low).sum())
    verdict = (
        "the models' images lie nearer to their training images than chance explains"
        if below > 0.05 * len(ratio)
        else "no more than chance explains"
    )
    return (
        f"{text} For real images and two random sets of real images the ratio is {np.mean(splits):.3f} over "
        f"{plural(len(splits), 'split')}, and 95% of further splits lie from {low:.3f} to {high:.3f}; "
        f"{below:,} of {plural(len(ratio), 'run')} lie below: {verdict}."
    )


def _prediction_error(values: Sequence[float]) -> float:
    """Standard error of one further value beside the mean of those there are."""
    return float(np.std(values, ddof=1)) * (1 + 1 / len(values)) ** 0.5


def effects(ledger: Ledger, source: str) -> tuple[str, ...]:
    """A sentence for each claim of a figure that was measured: its effects with their intervals, no verdict."""
    found = []
    for claim in ledger.claims.claims:
        for place in claim.at if source in claim.source else ():
            measured = [o for o in ledger.of(claim, place) if o.gain is not None]
            if measured:
                listed = "; ".join(plain(o) for o in measured)
                found.append(f"{claim.source}, {claim.claim}: for the paper's choice {listed}.")
    return tuple(found)


def plain(o: Outcome) -> str:
    """ "better by 0.53 [0.41, 0.65] (linear_4)"."""
    unit = "" if o.metric == "fid" else f" {METRICS.get(o.metric, o.metric)}"
    return f"{o.plain}{unit} ({o.against})"
