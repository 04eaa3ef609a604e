"""The ledger: benchmarks/claims.yaml carried out on the runs there are. Estimates, verdicts, and what they add up to.

Every effect is written as a gain: positive where the records agree with the paper.
"""

# ruff: noqa: RUF001
# × and − are meant.
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from emigm.model.schedules import SCHEDULES, expected_reveal_counts
from emigm.paper.reported import PAPER_IMAGES
from emigm.report.claims import EXACT, Cells, Claim, Claims, Difference, Place
from emigm.report.statistics import (
    Estimate,
    fid_infinity,
    holm,
    known_spread,
    slopes,
    t_interval,
    unit_means,
    welch,
)
from emigm.report.tables import NONE, NOT_RUN, plural

HOLDS, FAILS, SMALL, OPEN = "holds", "does not hold", "no difference that matters", "not decided"
MIXED, UNTESTABLE, UNCOUNTED = "holds at some N only", "not testable here", "not counted (context gate)"
DRY = "no verdict (dry run)"
VERDICTS = (HOLDS, FAILS, MIXED, SMALL, OPEN, UNTESTABLE, UNCOUNTED, DRY, NOT_RUN)
BESIDE = {
    "fid_line": ("FID of infinitely many images (line in 1/n)", -1),
    "fid_curve": ("FID of infinitely many images (curve in 1/n)", -1),
    "kid": ("KID", -1),
    "precision": ("precision", 1),
    "recall": ("recall", 1),
}
"""Metric shown beside FID -> its name, and 1 where higher is better."""
Measure = Callable[[str], "tuple[Estimate, str] | None"]
"""Metric -> effect and how it was tested; None: a record or the metric is missing."""


@dataclass(frozen=True)
class Outcome:
    """What one comparison gave."""

    claim: Claim
    place: Place
    comparison: str
    against: str
    """What is compared with, in a few words."""
    metric: str
    verdict: str
    """Empty until Holm's adjustment gives it."""
    steps: int | None = None
    """N, where the comparison is made at several."""
    given: bool = False
    """A precondition, which is no claim of its own: its p is not adjusted and counts in no other's."""
    gain: Estimate | None = None
    scale: float = math.nan
    """What the gain is relative to: the mean of what the side is held against."""
    margin: float = 0.0
    """Smallest gain that matters, in units of the metric."""
    adjusted: float | None = None
    """Holm's p."""
    test: str = NONE
    beside: tuple[tuple[str, Estimate], ...] = ()
    """Gains in other metrics."""
    failed: bool = False
    """A model that takes part fails the context gate."""
    remarks: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for the same comparison, whichever claim makes it."""
        return self.place.benchmark, self.comparison, self.metric

    @property
    def plain(self) -> str:
        """ "better by 0.53 [0.41, 0.65]": for the paper's choice, larger being better by definition."""
        if self.gain is None:
            return NOT_RUN
        sign = 1 if self.gain.effect >= 0 else -1
        found = self.gain if sign > 0 else -self.gain
        interval = "" if found.low is None else f" [{_number(found.low)}, {_number(found.high)}]"
        return f"{'better' if sign > 0 else 'worse'} by {_number(found.effect)}{interval}"


class Ledger:
    """All outcomes of a file of claims on a frame of runs (`emigm.records.frame.runs`)."""

    def __init__(self, claims: Claims, frame: pd.DataFrame):
        frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *BESIDE])))
        curves = frame["fid_by_images"].map(lambda c: c if isinstance(c, dict) else {})
        for name, degree in (("fid_line", 1), ("fid_curve", 2)):
            frame[name] = curves.map(partial(fid_infinity, degree=degree)).astype(float)
        frame["snapshot"] = frame["snapshot"].astype(float).fillna(1.0)
        self.claims = claims
        self.cells = dict(tuple(frame.groupby(["benchmark", "size", "budget", "snapshot"])))
        self.models = dict(tuple(frame.groupby(["benchmark", "size"])))
        found = [one for claim in claims.claims for place in claim.at for one in self._outcomes(claim, place)]
        self.outcomes = tuple(self._judged(found))

    # Estimates

    def _outcomes(self, claim: Claim, place: Place) -> Iterable[Outcome]:
        for given, differences in ((True, claim.given), (False, claim.differences)):
            for one in differences:
                for n in place.steps if "{N}" in one.text else (None,):
                    yield self._difference(claim, place, one.at(place, n), n, given)
        for trend in claim.trends:
            yield self._trend(claim, place, trend.sizes, trend.budget)
        if claim.sweep:
            yield from self._sweep(claim, place)
        if claim.reveals:
            yield self._reveals(claim, place)

    def _difference(self, claim: Claim, place: Place, one: Difference, steps: int | None, given: bool) -> Outcome:
        made = Outcome(claim, place, one.label(place.benchmark), one.against, one.metric, NOT_RUN, steps, given)
        cells, sign = [cells for _, cells in one.sides], -1 if one.expect == "lower" else 1
        constant = one.factor * one.reported.value(one.metric) if one.reported else 0.0
        if one.metric in EXACT:
            numbers = [w * v for w, c in one.sides if (v := self._mean(c, one.metric)) is not None]
            if len(numbers) < len(cells):
                return made
            gain = sign * (math.fsum(numbers) - constant)
            verdict = DRY if self._dry(cells) else HOLDS if gain > 0 else FAILS
            scale = constant or abs(self._mean(one.right, one.metric))
            return replace(made, verdict=verdict, gain=Estimate(gain), scale=scale, test="a count")
        scale = constant or one.factor * (self._mean(one.right, one.metric) or math.nan)
        spread = self.claims.reported_spread

        def measure(metric: str) -> tuple[Estimate, str] | None:
            if one.reported:
                mean = self._mean(one.left, metric) if metric == "fid" else None
                error = spread * math.hypot(mean or 0, constant)
                estimate = mean and known_spread(mean - constant, error, self.claims.level)
                return estimate and (estimate, f"known spread of {spread:.0%}")
            return self._contrast(one.sides, metric)

        exact = one.factor != 1
        return self._measured(replace(made, scale=scale), cells, measure, sign, exact, one.reported is not None)

    def _trend(self, claim: Claim, place: Place, sizes: tuple[str, ...], budget: str) -> Outcome:
        cells = [Cells(budget=budget, size=size, benchmark=place.benchmark) for size in sizes]
        label = f"slope over {', '.join(sizes)} at {budget}, for ten times the training FLOPs"
        flops = [self._mean(c, "flops") for c in cells]
        means = [self._mean(c, "fid") for c in cells]
        made = Outcome(claim, place, label, f"slope from {sizes[0]} to {sizes[-1]}", "fid", NOT_RUN)
        if None in flops or None in means:
            return made

        def measure(metric: str) -> tuple[Estimate, str] | None:
            found = [self._units(c, metric) for c in cells]
            if any(units is None for units in found):
                return None
            values = pd.concat(found, axis=1, join="inner")
            test = f"t test of the slopes of {plural(len(values), f'{found[0].name} seed')}"
            return t_interval(slopes([math.log10(f) for f in flops], values), self.claims.level), test

        return self._measured(replace(made, scale=math.fsum(means) / len(means)), cells, measure, -1)

    def _sweep(self, claim: Claim, place: Place) -> Iterable[Outcome]:
        """The best inner budget against both ends; for each seed it is the best of the other seeds' mean."""
        cells = [Cells(budget=b, size=place.size, benchmark=place.benchmark) for b in claim.sweep]
        fids = [self._units(c, "fid") for c in cells]
        for end in (0, -1):
            label = f"best of {', '.join(claim.sweep[1:-1])} − {claim.sweep[end]} ({place.size})"
            made = Outcome(claim, place, label, claim.sweep[end], "fid", NOT_RUN)
            if any(units is None for units in fids):
                yield made
                continue
            table = pd.concat(fids, axis=1, join="inner", keys=claim.sweep)
            inner = table[list(claim.sweep[1:-1])]
            others = (inner.sum() - inner) / (len(inner) - 1) if len(inner) > 1 else inner
            chosen = others.idxmin(axis=1)

            def measure(metric: str, end=end, chosen=chosen) -> tuple[Estimate, str] | None:
                found = {c.budget: self._units(c, metric) for c in cells}
                if any(units is None for units in found.values()):
                    return None
                gains = [found[best][seed] - found[claim.sweep[end]][seed] for seed, best in chosen.items()]
                test = f"paired t test, {plural(len(gains), f'{fids[0].name} seed')}"
                return t_interval(gains, self.claims.level), test

            picks = ", ".join(f"{best} ({plural(n, 'seed')})" for best, n in Counter(chosen).most_common())
            scale, remarks = float(table[claim.sweep[end]].mean()), (f"chosen on the other seeds: {picks}",)
            yield self._measured(replace(made, scale=scale, remarks=remarks), cells, measure, -1)

    def _reveals(self, claim: Claim, place: Place) -> Outcome:
        (n,), tokens = place.steps, place.tokens
        early = {name: float(expected_reveal_counts(name, n, tokens)[: n // 2].sum()) for name in SCHEDULES}
        closest = min((name for name in SCHEDULES if name != claim.reveals), key=early.get)
        gain = early[closest] - early[claim.reveals]
        label = f"tokens in the first half of the steps: {claim.reveals} − {closest}, L = {tokens}, N = {n}"
        made = Outcome(claim, place, label, closest, "tokens", HOLDS if gain > 0 else FAILS, test="computed")
        return replace(made, gain=Estimate(gain), scale=early[closest])

    def _measured(
        self, made: Outcome, cells: list[Cells], measure: Measure, sign: int, exact: bool = False, paper: bool = False
    ) -> Outcome:
        """`made` with the gain in its metric and in those beside it, and with all that must be known of its models."""
        found = measure(made.metric)
        if found is None:
            return made
        verdict, remarks, failed = "", [], False
        if unlike := self._unlike(cells, made.metric, paper):
            verdict, remarks = OPEN, [f"not comparable: different {unlike}"]
        if self._dry(cells):
            verdict = DRY
        for name, size in dict.fromkeys((c.benchmark, c.size) for c in cells):
            model = self.models[name, size].dropna(subset=["gate_ratio"]).drop_duplicates("train_seed")
            bad = model[~model["gate_passed"].astype(bool)]
            if len(bad):
                seeds = ", ".join(f"{seed:g}" for seed in bad["train_seed"])
                remarks.append(f"{size} FAILED the context gate (training seed {seeds})")
            elif model["gate_ratio"].max() > self.claims.well_trained:
                worst = model["gate_ratio"].max()
                remarks.append(f"{size} is trained little past the threshold (context ratio {worst:.2f})")
            failed = failed or len(bad) > 0
            if (self.models[name, size]["weights"] == "released").any():
                remarks.append("released weights: nothing of other training runs")
        gain, test = found[0] if sign > 0 else -found[0], found[1]
        beside = []
        for name, (_, better) in BESIDE.items() if made.metric == "fid" and not exact else ():
            if other := measure(name):
                beside.append((name, -other[0] if sign * better > 0 else other[0]))
        margin = 0.0 if exact else self.claims.smallest_effect * abs(made.scale)
        return replace(
            made, verdict=verdict, gain=gain, margin=margin, test=test, beside=tuple(beside), failed=failed,
            remarks=(*made.remarks, *dict.fromkeys(remarks)),
        )  # fmt: skip

    def _contrast(self, sides: list[tuple[float, Cells]], metric: str) -> tuple[Estimate, str] | None:
        """The weighted sum of the sides: paired by seed where all have the same, else Welch's test of two sides."""
        units = [(weight, self._units(cells, metric)) for weight, cells in sides]
        if any(found is None for _, found in units):
            return None
        first = units[0][1]
        if all(found.name == first.name and set(found.index) == set(first.index) for _, found in units):
            sums = sum(weight * found for weight, found in units)
            return t_interval(sums, self.claims.level), f"paired t test, {plural(len(sums), f'{first.name} seed')}"
        if len(units) > 2:
            return None
        (a, left), (b, right) = units
        numbers = " and ".join(plural(len(found), f"{found.name} seed") for found in (left, right))
        return welch(a * left, -b * right, self.claims.level), f"Welch's t test, {numbers}"

    def _units(self, cells: Cells, metric: str) -> pd.Series | None:
        runs = self.cells.get((cells.benchmark, cells.size, cells.budget, cells.snapshot))
        return None if runs is None or runs[metric].isna().any() else unit_means(runs, metric)

    def _mean(self, cells: Cells, metric: str) -> float | None:
        runs = self.cells.get((cells.benchmark, cells.size, cells.budget, cells.snapshot))
        return None if runs is None or runs[metric].isna().any() else float(runs[metric].mean())

    def _dry(self, cells: Iterable[Cells]) -> bool:
        return any(bool(self.models[c.benchmark, c.size]["dry_run"].any()) for c in cells)

    def _unlike(self, cells: list[Cells], metric: str, paper: bool) -> str:
        """In what the sides were measured differently; empty where they were not."""
        runs = pd.concat([self.cells[c.benchmark, c.size, c.budget, c.snapshot] for c in cells])
        if metric == "seconds_per_image":
            return "machines" if runs["sample_device"].nunique() > 1 else ""
        images = {*runs["scored_images"], *([PAPER_IMAGES] if paper else ())}
        scorers = runs.reindex(columns=["extractor_identity", "reference"]).astype(str).drop_duplicates()
        parts = (
            "numbers of images" if len(images) > 1 else "",
            "extractors or real images" if len(scorers) > 1 else "",
        )
        return ", ".join(filter(None, parts))

    # Verdicts

    def _judged(self, found: list[Outcome]) -> Iterable[Outcome]:
        """Verdicts after Holm's adjustment over all comparisons with a p value; one that several claims make counts
        once. A precondition is tested first, at `alpha` itself, and decides only whether others are looked at."""
        tests = {o.key: o.gain.p for o in found if not o.given and o.gain and o.gain.p is not None}
        adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
        given: dict[tuple, list[Outcome]] = {}
        for one in found:
            if one.given:
                judged = self._verdict(replace(one, adjusted=one.gain and one.gain.p))
                given.setdefault((one.claim.id, one.place.benchmark), []).append(judged)
                yield replace(judged, adjusted=None)
                continue
            p = adjusted.get(one.key)
            judged = self._verdict(replace(one, adjusted=None if p is None else float(p)))
            first = [g for g in given.get((one.claim.id, one.place.benchmark), ()) if g.steps in (None, one.steps)]
            missing = [g for g in first if g.verdict != HOLDS]
            if missing and judged.verdict not in (NOT_RUN, DRY):
                why = f"precondition {missing[0].verdict}: {missing[0].comparison} is {missing[0].plain}"
                judged = replace(judged, verdict=UNTESTABLE, remarks=(why, *judged.remarks))
            yield judged

    def _verdict(self, one: Outcome) -> Outcome:
        if one.verdict:
            return one
        if one.failed:
            return replace(one, verdict=UNCOUNTED)
        gain, p = one.gain, one.adjusted
        if p is None:
            return replace(one, verdict=OPEN, remarks=("too few seeds for an interval", *one.remarks))
        if p < self.claims.alpha and abs(gain.effect) >= one.margin:
            return replace(one, verdict=HOLDS if gain.effect > 0 else FAILS)
        if -one.margin < gain.low and gain.high < one.margin:
            return replace(one, verdict=SMALL)
        why = f"p (Holm) = {p:.2g}" if p >= self.claims.alpha else f"smaller than {self.claims.smallest_effect:.0%}"
        return replace(one, verdict=OPEN, remarks=(why, *one.remarks))

    def of(self, claim: Claim, place: Place) -> list[Outcome]:
        """The comparisons of a claim at a place, preconditions left out."""
        return [o for o in self.outcomes if (o.claim, o.place) == (claim, place) and not o.given]

    def verdict(self, claim: Claim, place: Place) -> str:
        """The claim's verdict there."""
        return together(self.of(claim, place))

    def remarks(self, claim: Claim, place: Place) -> tuple[str, ...]:
        """What must be known of the claim and its comparisons, each once."""
        found = dict.fromkeys([claim.note, *(remark for o in self.of(claim, place) for remark in o.remarks)])
        return tuple(remark.rstrip(".") for remark in found if remark)

    def by_steps(self, claim: Claim, place: Place) -> dict[int, str]:
        """N -> verdict of what was compared at it."""
        found = [o for o in self.of(claim, place) if o.steps is not None]
        return {n: together([o for o in found if o.steps == n]) for n in dict.fromkeys(o.steps for o in found)}


def together(outcomes: list[Outcome]) -> str:
    """One verdict of several comparisons, all of which must hold."""
    verdicts = [o.verdict for o in outcomes]
    for first in (NOT_RUN, DRY):
        if first in verdicts or not verdicts:
            return first
    verdicts = [v for v in verdicts if v != UNTESTABLE] or [UNTESTABLE]
    steps = dict.fromkeys(o.steps for o in outcomes)
    at = [together([o for o in outcomes if o.steps == n]) for n in steps] if len(steps) > 1 else []
    if FAILS in verdicts and HOLDS in at:
        return MIXED
    return next(v for v in (FAILS, UNTESTABLE, UNCOUNTED, OPEN, SMALL, HOLDS) if v in verdicts)


def _number(value: float) -> str:
    """Three significant digits, and no exponent above 1000."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
