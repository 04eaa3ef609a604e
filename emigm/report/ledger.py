"""The ledger: benchmarks/claims.yaml carried out on the runs there are. Estimates, verdicts, and what they add up to.

Every effect is written as a gain: positive where the records agree with the paper.
"""

# ruff: noqa: RUF001
# × and − are meant.
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial

import pandas as pd

from emigm.model.schedules import SCHEDULES, expected_reveal_counts
from emigm.paper.claims import EXACT, METRICS, Cells, Claim, Claims, Difference, Place
from emigm.paper.reported import PAPER_IMAGES
from emigm.report.statistics import (
    Estimate,
    fid_infinity,
    holm,
    known_spread,
    slope_weights,
    t_interval,
    three_digits,
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
MEASURED = ("scored_images", "extractor_identity", "reference", "sample_device")
"""Columns that tell whether two sides were measured alike."""
FINAL = -1.0
"""Stands for the final weights, where a snapshot is a share of the training."""
Measure = Callable[[str], "tuple[Estimate, str] | None"]
"""Metric -> effect and how it was tested; None: a record or the metric is missing."""


@dataclass(frozen=True)
class Outcome:
    """What one comparison gave."""

    claim: Claim
    place: Place
    comparison: str
    against: str
    """The comparison in a few words."""
    metric: str = "fid"
    verdict: str = NOT_RUN
    """Empty until Holm's adjustment gives it."""
    steps: int | None = None
    """N, where the comparison is made at several."""
    given: bool = False
    """A precondition, which is no claim of its own: its p is not adjusted and counts in no other's."""
    sides: tuple[tuple[str, float], ...] = ()
    """The two sides and their means, factor left out; empty where there are not just two."""
    factor: float = 1.0
    """Of the second side: the margin that the claim itself allows."""
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
        """ "exp_4 (4.31) against linear_4 (4.53): lower by 0.216 [0.056, 0.489]"; no verdict, which needs Holm's p."""
        if self.gain is None:
            return f"{self.against}: {NOT_RUN}"
        unit = "" if self.metric == "fid" else f" {METRICS.get(self.metric, self.metric)}"
        if not self.sides:
            return f"{self.against}: {self.gain.text}{unit}"
        (left, mean), (right, other) = self.sides
        values = f"{left} ({three_digits(mean)}) against {right} ({three_digits(other)})"
        if mean == other:
            return f"{values}: the same{unit and ' in'}{unit}"
        than = "" if self.factor == 1 else f" than {self.factor:g} times the latter"
        return f"{values}: {'lower' if mean < self.factor * other else 'higher'}{than} by {abs(self.gain).text}{unit}"


class Ledger:
    """All outcomes of a file of claims on a frame of runs (`emigm.records.frame.runs`)."""

    def __init__(self, claims: Claims, frame: pd.DataFrame):
        frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *BESIDE, *MEASURED])))
        curves = frame["fid_by_images"].map(lambda c: c if isinstance(c, dict) else {})
        for name, degree in (("fid_line", 1), ("fid_curve", 2)):
            frame[name] = curves.map(partial(fid_infinity, degree=degree)).astype(float)
        frame["snapshot"] = frame["snapshot"].astype(float).fillna(FINAL)
        self.claims = claims
        self.cells = dict(tuple(frame.groupby(["benchmark", "size", "budget", "snapshot"])))
        self.models = {key: self._model(runs) for key, runs in frame.groupby(["benchmark", "size"])}
        measured = [one for claim in claims.claims for place in claim.at for one in self._outcomes(claim, place)]
        self.outcomes = tuple(self._judged(measured))

    # Estimates

    def _outcomes(self, claim: Claim, place: Place) -> Iterable[Outcome]:
        for given, differences in ((True, claim.given), (False, claim.differences)):
            for wanted in differences:
                for n, one in wanted.at(place):
                    yield self._difference(claim, place, one, n, given)
        for trend in claim.trends:
            yield self._trend(claim, place, trend.sizes, trend.budget)
        if claim.sweep:
            yield from self._sweep(claim, place)
        if claim.reveals:
            yield self._reveals(claim, place)

    def _difference(self, claim: Claim, place: Place, one: Difference, steps: int | None, given: bool) -> Outcome:
        outcome = Outcome(claim, place, one.label(place.benchmark), one.against, one.metric, steps=steps, given=given)
        cells, sign = [cells for _, cells in one.sides], -1 if one.expect == "lower" else 1
        means = [self._mean(c, one.metric) for c in cells]
        if None in means:
            return outcome
        printed = one.reported.value(one.metric) if one.reported else None
        constant = one.factor * (printed or 0.0)
        outcome = replace(outcome, scale=abs(constant or one.factor * means[1]), factor=one.factor)
        if not one.beyond:
            compared = means[0], means[1] if printed is None else printed
            outcome = replace(outcome, sides=tuple(zip(one.against.split(" against "), compared, strict=True)))
        if one.metric in EXACT:
            gain = sign * (math.fsum(w * mean for (w, _), mean in zip(one.sides, means, strict=True)) - constant)
            verdict = DRY if self._dry(cells) else HOLDS if gain > 0 else FAILS
            return replace(outcome, verdict=verdict, gain=Estimate(gain), test="a count")
        measure = partial(self._contrast, one.sides)
        if one.reported:
            error = self.claims.reported_spread * math.hypot(means[0], constant)
            effect = known_spread(means[0] - constant, error, self.claims.level)
            measure = {"fid": (effect, f"known spread of {self.claims.reported_spread:.0%}")}.get
        return self._measured(outcome, cells, measure, sign, one.factor != 1, one.reported is not None)

    def _trend(self, claim: Claim, place: Place, sizes: tuple[str, ...], budget: str) -> Outcome:
        """FID over log10 of the training FLOPs: one slope a seed, so that what its runs share drops out."""
        cells = [Cells(budget=budget, size=size, benchmark=place.benchmark) for size in sizes]
        label = f"slope over {', '.join(sizes)} at {budget}, for ten times the training FLOPs"
        outcome = Outcome(claim, place, label, f"fall for tenfold FLOPs, {sizes[0]} to {sizes[-1]}")
        flops, means = ([self._mean(c, metric) for c in cells] for metric in ("flops", "fid"))
        if None in flops or None in means:
            return outcome
        sides = list(zip(slope_weights([math.log10(f) for f in flops]), cells, strict=True))
        outcome = replace(outcome, scale=math.fsum(means) / len(means))
        return self._measured(outcome, cells, partial(self._contrast, sides), -1)

    def _sweep(self, claim: Claim, place: Place) -> Iterable[Outcome]:
        """The best inner budget against both ends, chosen on the first third of the seeds, rounded down but one at
        least, and tested on the others.

        Chosen for each seed on all others, it would differ from an equal end twice as often as alpha says.
        """
        cells = [Cells(budget=b, size=place.size, benchmark=place.benchmark) for b in claim.sweep]
        inner, fids = list(claim.sweep[1:-1]), self._table(cells, "fid")
        for end in (claim.sweep[0], claim.sweep[-1]):
            label = f"best of {', '.join(inner)} − {end} ({place.size})"
            outcome = Outcome(claim, place, label, f"best between against {end}")
            if fids is None or len(fids) < 2:
                yield outcome
                continue
            choosing = fids.index[: max(1, len(fids) // 3)]
            best = fids.loc[choosing, inner].mean().idxmin()

            def measure(metric: str, end=end, best=best, choosing=choosing) -> tuple[Estimate, str] | None:
                table = self._table(cells, metric)
                if table is None:
                    return None
                tested = table.drop(choosing)
                return t_interval(tested[best] - tested[end], self.claims.level), f"paired t test, {_seeds(tested)}"

            seeds = f"{fids.index.name} seed{'' if len(choosing) == 1 else 's'}"
            how = f"{best}, chosen on {seeds} {', '.join(f'{seed:g}' for seed in choosing)}"
            sides = tuple((budget, float(fids.drop(choosing)[budget].mean())) for budget in (best, end))
            outcome = replace(outcome, against=f"{best} against {end}", sides=sides, remarks=(how,))
            yield self._measured(replace(outcome, scale=float(fids[end].mean())), cells, measure, -1)

    def _reveals(self, claim: Claim, place: Place) -> Outcome:
        """Tokens that two schedules reveal early: computed, not measured."""
        (n,), tokens = place.steps, place.tokens
        early = {name: early_tokens(name, n, tokens) for name in SCHEDULES}
        own, closest = claim.reveals, min((name for name in SCHEDULES if name != claim.reveals), key=early.get)
        gain = early[closest] - early[own]
        label = f"tokens in the first half of the steps: {own} − {closest}, L = {tokens}, N = {n}"
        outcome = Outcome(claim, place, label, f"{own} against {closest}", "tokens", HOLDS if gain > 0 else FAILS)
        sides = tuple((name, early[name]) for name in (own, closest))
        return replace(outcome, test="computed", gain=Estimate(gain), scale=early[closest], sides=sides)

    def _measured(
        self,
        outcome: Outcome,
        cells: list[Cells],
        measure: Measure,
        sign: int,
        exact: bool = False,
        paper: bool = False,
    ) -> Outcome:
        """The gain in the outcome's metric and in those beside it, and what must be known of its models.

        Args:
            sign: -1 where the paper expects a lower metric.
            exact: the claim itself allows a margin, so no other applies.
            paper: one side is a number that the paper reports.
        """
        effect = measure(outcome.metric)
        if effect is None:
            return outcome
        unlike, models = self._unlike(cells, outcome.metric, paper), dict.fromkeys((c.benchmark, c.size) for c in cells)
        remarks = [f"not comparable: different {unlike}"] if unlike else []
        remarks += [remark for model in models for remark in self.models[model][2]]
        beside = []
        for name, (_, better) in BESIDE.items() if outcome.metric == "fid" and not exact else ():
            if other := measure(name):
                beside.append((name, -other[0] if sign * better > 0 else other[0]))
        return replace(
            outcome,
            verdict=DRY if self._dry(cells) else OPEN if unlike else "",
            margin=0.0 if exact else self.claims.smallest_effect * outcome.scale,
            beside=tuple(beside),
            failed=any(self.models[model][1] for model in models),
            gain=effect[0] if sign > 0 else -effect[0],
            test=effect[1],
            remarks=(*outcome.remarks, *dict.fromkeys(remarks)),
        )

    def _contrast(self, sides: list[tuple[float, Cells]], metric: str) -> tuple[Estimate, str] | None:
        """The weighted sum of the sides: paired by seed where all have the same, else Welch's test of two sides."""
        units = [self._units(cells, metric) for _, cells in sides]
        if any(unit is None for unit in units):
            return None
        weighted, first = [weight * unit for (weight, _), unit in zip(sides, units, strict=True)], units[0]
        if all(unit.name == first.name and set(unit.index) == set(first.index) for unit in units):
            return t_interval(sum(weighted), self.claims.level), f"paired t test, {_seeds(first)}"
        if len(units) > 2:
            return None
        left, right = weighted
        return welch(left, -right, self.claims.level), f"Welch's t test, {' and '.join(map(_seeds, units))}"

    def _units(self, cells: Cells, metric: str) -> pd.Series | None:
        """Means of the independent units; None where a run or the metric is missing."""
        runs = self.cells.get(_key(cells))
        return None if runs is None or runs[metric].isna().any() else unit_means(runs, metric)

    def _mean(self, cells: Cells, metric: str) -> float | None:
        units = self._units(cells, metric)
        return None if units is None else float(units.mean())

    def _table(self, cells: list[Cells], metric: str) -> pd.DataFrame | None:
        """A row a seed that all cells have, a column a budget; None where something is missing."""
        units = {c.budget: self._units(c, metric) for c in cells}
        if any(unit is None for unit in units.values()):
            return None
        return pd.concat(units, axis=1, join="inner").rename_axis(units[cells[0].budget].name)

    def _model(self, runs: pd.DataFrame) -> tuple[bool, bool, tuple[str, ...]]:
        """Whether a model is a dry run's and fails the context gate, and what must be known of it."""
        size, remarks = runs["size"].iloc[0], []
        gated = runs.dropna(subset=["gate_ratio"]).drop_duplicates("train_seed")
        bad = gated[~gated["gate_passed"].astype(bool)]
        if len(bad):
            seeds = ", ".join(f"{seed:g}" for seed in bad["train_seed"])
            remarks.append(f"{size} FAILED the context gate (training seed {seeds})")
        elif (worst := gated["gate_ratio"].max()) > self.claims.well_trained:
            remarks.append(f"{size} uses little context (its worst training run's context ratio is {worst:.2f})")
        if (runs["weights"] == "released").any():
            remarks.append("released weights: nothing of other training runs")
        return bool(runs["dry_run"].any()), len(bad) > 0, tuple(remarks)

    def _dry(self, cells: Iterable[Cells]) -> bool:
        return any(self.models[c.benchmark, c.size][0] for c in cells)

    def _unlike(self, cells: list[Cells], metric: str, paper: bool) -> str:
        """In what the sides were measured differently; empty where they were not."""
        runs = pd.concat([self.cells[_key(c)] for c in cells])[list(MEASURED)].astype(str)
        unlike = runs.nunique() > 1
        if metric == "seconds_per_image":
            return "machines" if unlike["sample_device"] else ""
        images = {*map(float, runs["scored_images"]), *([float(PAPER_IMAGES)] if paper else [])}
        parts = ["numbers of images"] if len(images) > 1 else []
        parts += ["extractors or real images"] if unlike["extractor_identity"] or unlike["reference"] else []
        return ", ".join(parts)

    # Verdicts

    def _judged(self, outcomes: list[Outcome]) -> Iterable[Outcome]:
        """Verdicts after Holm's adjustment over all comparisons with a p value; one that several claims make counts
        once. A precondition is tested first, at `alpha` itself, and decides only whether others are looked at."""
        tests = {o.key: o.gain.p for o in outcomes if not o.given and o.gain and o.gain.p is not None}
        adjusted = dict(zip(tests, map(float, holm(list(tests.values()))), strict=True))
        given: list[Outcome] = []
        for one in outcomes:
            if one.given:
                judged = replace(self._verdict(one, one.gain and one.gain.p), adjusted=None)
                given.append(judged)
            else:
                judged = self._verdict(one, adjusted.get(one.key))
                unmet = [g for g in given if (g.claim, g.place) == (one.claim, one.place) and g.verdict != HOLDS
                         and g.steps in (None, one.steps)]  # fmt: skip
                if unmet and judged.verdict not in (NOT_RUN, DRY):
                    why = f"precondition {unmet[0].verdict}: {unmet[0].plain}"
                    judged = replace(judged, verdict=UNTESTABLE, remarks=(why, *judged.remarks))
            yield judged

    def _verdict(self, one: Outcome, p: float | None) -> Outcome:
        """The outcome with its adjusted p, and the verdict that it gives where none stands yet."""
        one, gain = replace(one, adjusted=p), one.gain
        if one.verdict:
            return one
        if one.failed:
            return replace(one, verdict=UNCOUNTED)
        if p is None:
            return replace(one, verdict=OPEN, remarks=("too few seeds for an interval", *one.remarks))
        if p < self.claims.alpha and abs(gain.effect) >= one.margin:
            return replace(one, verdict=HOLDS if gain.effect > 0 else FAILS)
        if -one.margin < gain.low and gain.high < one.margin:
            return replace(one, verdict=SMALL)
        why = ()
        if p < self.claims.alpha:
            why = (f"smaller than {self.claims.smallest_effect:.0%}",)
        elif gain.low > 0 or gain.high < 0:
            at = "" if one.steps is None else f" at N = {one.steps}"
            why = (f"not beyond chance{at} once adjusted for all comparisons (p = {p:.2g})",)
        return replace(one, verdict=OPEN, remarks=(*why, *one.remarks))

    def of(self, claim: Claim, place: Place) -> list[Outcome]:
        """The comparisons of a claim at a place, preconditions left out."""
        return [o for o in self.outcomes if (o.claim, o.place) == (claim, place) and not o.given]

    def verdict(self, claim: Claim, place: Place) -> str:
        """The claim's verdict there."""
        return together(self.of(claim, place))

    def remarks(self, claim: Claim, place: Place) -> tuple[str, ...]:
        """What must be known of the claim and its comparisons, each once."""
        remarks = dict.fromkeys([claim.note, *(remark for o in self.of(claim, place) for remark in o.remarks)])
        return tuple(remark.rstrip(".") for remark in remarks if remark)

    def by_steps(self, claim: Claim, place: Place) -> dict[int, str]:
        """N -> verdict of what was compared at it."""
        outcomes = [o for o in self.of(claim, place) if o.steps is not None]
        return {n: together([o for o in outcomes if o.steps == n]) for n in dict.fromkeys(o.steps for o in outcomes)}


@cache
def early_tokens(schedule: str, steps: int, tokens: int) -> float:
    """Expected number of tokens that the first half of the steps reveals."""
    return float(expected_reveal_counts(schedule, steps, tokens)[: steps // 2].sum())


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


def _key(cells: Cells) -> tuple[str, str, str, float]:
    return cells.benchmark, cells.size, cells.budget, FINAL if cells.snapshot is None else cells.snapshot


def _seeds(units: pd.Series | pd.DataFrame) -> str:
    kind = units.name if isinstance(units, pd.Series) else units.index.name
    return plural(len(units), f"{kind} seed")
