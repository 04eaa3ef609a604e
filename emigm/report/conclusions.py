"""What the ledger adds up to: its tables, the tally, and the sentences that can be quoted. All from the records."""

# ruff: noqa: RUF001
# × and – are meant.
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd
from scipy import stats

from emigm.report.claims import METRICS
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
from emigm.report.statistics import unit_means
from emigm.report.tables import NONE, plural

AGAINST = (FAILS, MIXED, SMALL)


def claims_frame(ledger: Ledger) -> pd.DataFrame:
    """A row for each claim and place, as text."""
    rows = []
    for claim in ledger.claims.claims:
        for place in claim.at:
            found, by_steps = ledger.of(claim, place), ledger.by_steps(claim, place)
            remarks = dict.fromkeys([claim.note, *(r for o in found for r in o.remarks)])
            rows.append(
                {
                    "ID": claim.id,
                    "Claim": f"{claim.claim[0].upper()}{claim.claim[1:]}",
                    "Source": claim.source,
                    "Data": ledger.claims.ground(place.benchmark),
                    "Verdict": ledger.verdict(claim, place),
                    "By N": "; ".join(f"{n}: {verdict}" for n, verdict in by_steps.items()) or NONE,
                    "For the paper's choice": "; ".join(dict.fromkeys(_plain(o) for o in found)),
                    "Remarks": "; ".join(r.rstrip(".") for r in remarks if r) or NONE,
                }
            )
    return pd.DataFrame(rows)


def comparisons_frame(ledger: Ledger) -> pd.DataFrame:
    """A row for each comparison; numbers as numbers, the gains positive for what the paper concludes."""
    rows = []
    for o in ledger.outcomes:
        gain = o.gain
        row = {"id": o.claim.id, "data": ledger.claims.ground(o.place.benchmark), "benchmark": o.place.benchmark}
        row |= {"N": o.steps, "role": "precondition" if o.given else "test", "comparison": o.comparison}
        row |= {"metric": METRICS.get(o.metric, o.metric), "verdict": o.verdict, "for_the_papers_choice": o.plain}
        row |= {name: gain and getattr(gain, field) for name, field in GAIN.items()} | {"p_holm": o.adjusted}
        row |= {"relative_gain": gain and gain.effect / o.scale, "smallest_gain": o.margin or None, "test": o.test}
        for name, beside in dict(o.beside).items():
            row |= {f"{name}_gain": beside.effect, f"{name}_low": beside.low, f"{name}_high": beside.high}
        rows.append(row | {"remarks": "; ".join(o.remarks)})
    columns = [f"{name}_{part}" for name in BESIDE for part in ("gain", "low", "high")]
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=[*(c for c in frame if c not in columns and c != "remarks"), *columns, "remarks"])


GAIN = {"gain": "effect", "low": "low", "high": "high", "p": "p"}


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


def _at_steps(ledger: Ledger, claim, data: str) -> str:
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
                contrary.append(f"{BESIDE[name][0]} is {_turned(o, other)}")
        if contrary:
            found.append(f"{o.claim.id} ({o.comparison}): FID is {o.plain} for the paper's choice, but {'; '.join(contrary)}.")
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
        f"Over {len(runs)} training runs of {frame['benchmark'].iloc[0]} FID at N = {budget} correlates {found.statistic:.2f} "
        f"[{low:.2f}, {high:.2f}] with the context ratio: the nearer to 1, the more a verdict says how soon a model "
        "finds context."
    )


def memorisation(frame: pd.DataFrame, splits: Sequence[float]) -> str:
    """Whether generated images lie nearer to training images than real ones do that were never trained on.

    Args:
        frame: runs with nearest_train and nearest_holdout, the mean distances to equally many images of either.
        splits: the same ratio, training over held-out, of real held-out images over random splits of them.
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
    if not len(splits):
        return f"{text} The ratio of real held-out images was not measured, so this says nothing of copying."
    real = pd.Series(splits, dtype=float)
    low, high = real.quantile(0.025), real.quantile(0.975)
    below = (ratio < low).sum()
    verdict = "no sign of copying beyond what real images show" if below <= 0.05 * len(ratio) else (
        "generated images do lie nearer to the training images than unseen real ones do"
    )
    return (
        f"{text} Real held-out images over {plural(len(real), 'random split')}: median {real.median():.3f}, 95% from "
        f"{low:.3f} to {high:.3f}; {below:,} of {plural(len(ratio), 'run')} lie below that: {verdict}."
    )


def _plain(o: Outcome) -> str:
    unit = {"fid": "", "tokens": " tokens"}.get(o.metric) or (f" {METRICS[o.metric]}" if o.metric in METRICS and o.metric != "fid" else "")
    return f"{o.plain}{unit}" + (f" (N = {o.steps})" if o.steps else "")


def _turned(o: Outcome, other) -> str:
    from dataclasses import replace

    return replace(o, gain=other).plain
