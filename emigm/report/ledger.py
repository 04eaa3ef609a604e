"""The ledger: benchmarks/claims.yaml carried out on the runs there are. Effects, tests and verdicts.

The rule, fixed before the runs. Every effect is a gain: positive where the records agree with the paper.
1. A comparison is a t test paired by seed. The smallest effect that matters is a share of the span from held-out images
   to class shuffle, the same for all models on the same data; for released weights, of which no tokens are shuffled, it
   is the known spread of a FID between training runs. Where a side is a printed number or one run of released weights,
   that spread is its error, and no smallest effect applies.
2. A claim holds when all its comparisons do, so the one that speaks least for it decides, by its own p (intersection-
   union). It fails when one of its c comparisons is contrary, with c times its p. Either takes an effect that matters.
   Where a precondition (`given`) does not hold, only what is contrary by what matters and beyond chance counts.
3. Holm's procedure over the claims on the same data, this project's questions apart. A claim that has not run, or takes
   no verdict, counts with p = 1, so that the strictest level is known before the runs.
4. "No difference that matters": all comparisons pass both one-sided tests against the margin, after Holm likewise.
5. Intervals have the level at which Holm's procedure looked at the claim: one excludes 0 where the test rejects it; of
   "no difference", the level of its two tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from emigm import flops
from emigm.config.benchmark import load_benchmark
from emigm.config.compose import params_file
from emigm.model.schedules import expected_reveal_counts
from emigm.paper.claims import EXACT, METRICS, Cell, Claim, Claims, Comparison, Place, load_claims
from emigm.paper.reported import PAPER_IMAGES, value
from emigm.records.frame import baselines, benchmarks_with_results, find_root, runs
from emigm.report.statistics import Estimate, fid_infinity, holm, runs_needed, t_interval, three_digits, unit_means
from emigm.report.tables import NONE, NOT_RUN, plural

HOLDS, FAILS, SMALL, OPEN = "holds", "does not hold", "no difference that matters", "not decided"
UNTESTABLE, UNCOUNTED, DRY = "not testable here", "not counted", "no verdict (dry run)"
VERDICTS = (HOLDS, FAILS, SMALL, OPEN, UNTESTABLE, UNCOUNTED, DRY, NOT_RUN)
HIGHER_IS_BETTER = {"fid_infinity": -1, "kid": -1, "precision": 1, "recall": 1}
"""Metric shown beside FID -> 1 where higher is better, else -1; `fid_infinity` is FID of infinitely many images."""
ALIKE = {"scored_images": "numbers of images", "extractor_identity": "extractors", "reference": "real images"}
"""Columns in which the sides of a comparison must agree."""
RESOLUTIONS = {"imagenet256": 256, "table2": 256, "imagenet512": 512, "table3": 512}
"""Place of a claim -> resolution of the paper's table that it quotes."""
FINAL = -1.0
"""Stands for the final weights, where a snapshot is a share of the training."""


@dataclass(frozen=True)
class Outcome:
    """What one comparison gave."""

    comparison: Comparison
    status: str = NOT_RUN
    """A verdict that stands before any test; empty where the test decides."""
    means: tuple[float, ...] = ()
    """Of its terms, in the formula's order."""
    gain: Estimate | None = None
    margin: float = 0.0
    """Smallest gain that matters, in units of the metric."""
    bound: float = 0.0
    """What the gain must exceed: 0, or minus the margin where the claim only says that something is kept."""
    test: str = NONE
    remarks: tuple[str, ...] = ()

    @property
    def p_contrary(self) -> float:
        """One-sided p of "no better than the bound": large where the records speak against the claim."""
        return self.gain.p_above(self.bound)

    @property
    def p(self) -> float:
        """Two-sided p."""
        return 2 * min(self.p_contrary, (-self.gain).p_above(-self.bound), 0.5)

    @property
    def agrees(self) -> bool:
        """Whether it speaks for the claim."""
        return self.gain.effect > self.bound

    @property
    def matters(self) -> bool:
        """Whether the gain is one that matters; a claim's own margin stands in its bound or factor."""
        return bool(self.bound) or abs(self.gain.effect) >= self.margin

    @property
    def plain(self) -> str:
        """ "exp_4 < linear_4: 4.31 and 4.53, gain 0.216 [0.056, 0.489]"."""
        said = f"{' and '.join(map(three_digits, self.means))}, gain {self.gain.text}" if self.gain else NOT_RUN
        return f"{self.comparison.text}: {said}"


@dataclass(frozen=True)
class Entry:
    """A claim at one place: its comparisons and its verdict."""

    claim: Claim
    place: Place
    data: str
    """As the file names it."""
    outcomes: tuple[Outcome, ...]
    """Preconditions left out; with intervals of the claim's level."""
    given: tuple[Outcome, ...] = ()
    verdict: str = NOT_RUN
    adjusted: float | None = None
    """Holm's p; None where nothing is tested."""
    by_steps: tuple[tuple[int, str], ...] = ()
    """N and the verdict of what was compared at it, where there are several, adjusted for their number."""
    remarks: tuple[str, ...] = ()
    among: int = 0
    """Comparisons among which a contrary one is looked for; 0: its own."""

    @property
    def open(self) -> list[Outcome]:
        """The comparisons whose tests decide; none where another status stands in the way."""
        blocked = any(o.status not in ("", HOLDS, UNTESTABLE) for o in self.outcomes)
        return [] if blocked else [o for o in self.outcomes if not o.status]

    @property
    def deciding(self) -> Outcome | None:
        """The comparison that speaks least for the claim, of those tested or else of those measured."""
        measured = [o for o in self.outcomes if o.gain]
        return max(
            self.open or measured,
            key=lambda o: (o.status == FAILS, o.matters and not o.agrees, o.p_contrary, -o.gain.effect),
            default=None,
        )

    @property
    def p(self) -> float:
        """Of the deciding comparison; for the claim it must hold, against it any of all could have been contrary."""
        return min(1.0, self.deciding.p * (1 if self.deciding.agrees else self.chances)) if self.open else 1.0

    @property
    def chances(self) -> int:
        """How many comparisons could have been contrary, those of an unmet precondition among them."""
        return self.among or sum(o.comparison.tested and o.status in ("", UNTESTABLE) for o in self.outcomes)

    @property
    def p_within(self) -> float:
        """p of "some comparison differs by what matters"; a claim that allows a margin of its own has none."""
        judged = self.open and all(o.margin and not o.bound for o in self.open)
        return max(o.gain.p_within(o.margin) for o in self.open) if judged else 1.0

    def judged(self, alpha: float, sign: int = 1, same: int = 1, against: int | None = None) -> str:
        """One verdict of comparisons that must all hold, with each p multiplied by what Holm's procedure says; that of
        a contrary one by `against` (default: `sign`)."""
        statuses = [o.status for o in self.outcomes if o.status != UNTESTABLE] or [UNTESTABLE]
        if first := next((s for s in (NOT_RUN, DRY, FAILS, UNCOUNTED, OPEN, UNTESTABLE) if s in statuses), ""):
            return first
        if not self.open:
            return HOLDS
        worst = self.deciding
        if worst.agrees and self.p * sign < alpha and all(o.matters for o in self.open):
            return HOLDS
        if not worst.agrees and worst.matters and self.p * (against or sign) < alpha:
            return FAILS
        return SMALL if self.p_within * same < alpha else OPEN

    def with_verdict(self, alpha: float, adjusted: float, sign: int, same: int) -> Entry:
        """The entry with its verdict, those at each N, and intervals of the level that decided."""
        verdict, why = self.judged(alpha, sign, same), ()
        if verdict == OPEN and self.p < alpha <= self.p * sign:
            why = (f"not beyond chance once adjusted for the claims on these data (p = {adjusted:.2g})",)
        elif verdict == OPEN and self.open and self.p * sign < alpha:
            small = next((o for o in self.open if not o.matters), self.deciding)
            why = (f"smaller than what matters ({three_digits(small.margin)})",)
        numbers, by_steps = dict.fromkeys(o.comparison.steps for o in self.outcomes if o.comparison.steps), []
        for n in numbers if len(numbers) > 1 else ():
            of = tuple(o for o in self.outcomes if o.comparison.steps == n)
            at = replace(self, outcomes=of, among=self.chances)  # at whichever N, that many could have been contrary
            implied = verdict in (HOLDS, SMALL) and UNTESTABLE not in [o.status for o in at.outcomes]
            own = at.judged(alpha, len(numbers) * sign, len(numbers) * same, sign)
            by_steps.append((n, verdict if implied else own))
        contrary = self.chances if self.open and not self.deciding.agrees else 1
        level = 1 - (2 * alpha / same if verdict == SMALL else alpha / sign / contrary)
        outcomes = tuple(replace(o, gain=o.gain and o.gain.at(level)) for o in self.outcomes)
        telling = outcomes if any(o.comparison.tested for o in outcomes) else filter(None, [self.deciding])
        remarks = tuple(dict.fromkeys([*why, *(remark for o in telling for remark in o.remarks)]))
        p = adjusted if self.open else None
        return replace(self, outcomes=outcomes, remarks=remarks, verdict=verdict, adjusted=p, by_steps=tuple(by_steps))


class Ledger:
    """All entries of a file of claims on a frame of runs (`emigm.records.frame.runs`).

    Args:
        spans: data -> metric -> distance from held-out images to class shuffle; without one nothing is tested there but
            released weights.
    """

    def __init__(self, claims: Claims, frame: pd.DataFrame, spans: dict[str, dict[str, float]]):
        frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *HIGHER_IS_BETTER, *ALIKE, *METRICS])))
        curves = frame["fid_by_images"].map(lambda c: c if isinstance(c, dict) else {})
        frame["fid_infinity"] = curves.map(fid_infinity).astype(float)
        frame["snapshot"] = frame["snapshot"].astype(float).round(2).fillna(FINAL)
        frame["scored_images"] = frame["scored_images"].astype(float)
        self.claims, self.spans = claims, spans
        self.rows = dict(tuple(frame.groupby(["benchmark", "size", "budget", "snapshot"])))
        self.models = {key: self._model(rows) for key, rows in frame.groupby(["benchmark", "size"])}
        self.values: dict[tuple[Cell, str], pd.Series] = {}
        entries = [self._measured(claim, place) for claim in claims.claims for place in claim.at]
        for family in dict.fromkeys((e.data, e.claim.question) for e in entries):
            of = [i for i, e in enumerate(entries) if (e.data, e.claim.question) == family]
            tested = [i for i in of if any(o.comparison.tested for o in entries[i].outcomes)]
            signs = holm([entries[i].p for i in tested], claims.alpha)
            same = holm([entries[i].p_within for i in tested], claims.alpha)[1]
            rule = dict(zip(tested, zip(*signs, same, strict=True), strict=True))
            for i in of:
                entries[i] = entries[i].with_verdict(claims.alpha, *rule.get(i, (1.0, 1, 1)))
        self.entries = tuple(entries)

    def _measured(self, claim: Claim, place: Place) -> Entry:
        given, found = ([self._compared(one, place) for one in place.compared(f)] for f in (claim.given, claim.compare))
        entry = Entry(claim, place, self.claims.ground(place.benchmark), tuple(found), tuple(given))
        first = {g: replace(entry, outcomes=(g,)).judged(self.claims.alpha) for g in given}
        for i, one in enumerate(found):
            at = [g for g in given if first[g] != HOLDS and g.comparison.steps in (None, one.comparison.steps)]
            tested = not one.status and not one.agrees and one.matters and one.p < self.claims.alpha
            status = next((s for s in (NOT_RUN, DRY, UNCOUNTED) if s in [first[g] for g in at]), UNTESTABLE)
            contrary = status == UNTESTABLE and (tested or one.status == FAILS)  # which no precondition excuses
            if at and not contrary and one.status not in (NOT_RUN, DRY, UNCOUNTED):
                why = (f"precondition {first[g]}: {g.plain}" for g in at)
                found[i] = replace(one, status=status, remarks=(*why, *one.remarks))
        return replace(entry, outcomes=tuple(found))

    def _compared(self, one: Comparison, place: Place) -> Outcome:
        """The gain in the comparison's metric: counted, printed, or to be tested."""
        terms, drop, remarks = self._chosen(one)
        values = [self._values(term, one.metric, place).drop(drop, errors="ignore") for _, term in terms]
        if any(v.empty for v in values):
            return Outcome(one)
        means = tuple(float(v.mean()) for v in values)
        parts = [weight * mean for (weight, _), mean in zip(terms, means, strict=True)]
        gain = Estimate(math.fsum(parts), self.claims.reported_spread * math.hypot(*parts))
        outcome = Outcome(one, means=means, gain=gain, remarks=remarks)
        if one.tested:
            return self._tested(outcome, terms, values, self.spans.get(self.claims.ground(place.benchmark), {}))
        status = DRY if self._about(one.cells)[0] == DRY else HOLDS if gain.effect > 0 else FAILS
        test, power = ("a count", ()) if one.metric in EXACT else ("as printed", self._power(gain))
        return replace(outcome, status=status, gain=Estimate(gain.effect), test=test, remarks=power)

    def _tested(self, outcome: Outcome, terms: list, values: list[pd.Series], spans: dict[str, float]) -> Outcome:
        """The outcome with its interval and with what must be known of its models. Its gain comes with the error that
        the known spread of one run each gives it."""
        one, cells = outcome.comparison, [term for _, term in terms if isinstance(term, Cell)]
        status, about = self._about(cells)
        printed, few, span = len(cells) < len(terms), min(map(len, values)) < 2, spans.get(one.metric)
        unlike, gain, margin = self._unlike(cells, printed), outcome.gain, self.claims.smallest_effect * (span or 0.0)
        released = any("released" in remark for remark in about)
        if released and span is None and not few:
            span, margin = 0.0, self.claims.reported_spread * max(outcome.means)
        if printed or (few and released):
            test, few, span, margin = f"known spread of {self.claims.reported_spread:.0%}", False, 0.0, 0.0
            about += self._power(gain)
        elif all(v.name == values[0].name and set(v.index) == set(values[0].index) for v in values):
            gain, test = _paired(terms, values), f"paired t test, {plural(len(values[0]), f'{values[0].name} seed')}"
        else:
            gain, test, unlike = Estimate(gain.effect), NONE, [*unlike, "seeds"]
        reasons = [f"not comparable: different {', '.join(unlike)}"] if unlike else []
        reasons += ["too few seeds for an interval"] if few else []
        reasons += ["no class shuffle to measure the smallest effect by"] if span is None else []
        margin = 0.0 if one.own_margin else margin
        outcome = replace(outcome, status=status or OPEN * bool(reasons), gain=gain, margin=margin, test=test)
        remarks = (*outcome.remarks, *reasons, *about)
        return replace(outcome, bound=-margin if one.keeps else 0.0, remarks=remarks)

    def beside(self, one: Comparison, metric: str) -> Estimate | None:
        """The gain of a comparison of FIDs in another metric (`HIGHER_IS_BETTER`); None where it is not measured."""
        terms, drop, _ = self._chosen(one)
        values = [self._values(cell, metric).drop(drop, errors="ignore") for _, cell in terms if isinstance(cell, Cell)]
        known = one.metric == "fid" and len(values) == len(terms) and len({tuple(v.index) for v in values}) == 1
        worse = -HIGHER_IS_BETTER[metric]
        return _paired([(worse * w, cell) for w, cell in terms], values) if known and len(values[0]) else None

    def _chosen(self, one: Comparison) -> tuple[list, list[int], tuple[str, ...]]:
        """The terms with the best cell of each, chosen on the first third of the seeds that all have, rounded down but
        one at least; those seeds, which are not tested; and how it was chosen."""
        if all(len(choice) == 1 for _, choice in one.terms):
            return [(weight, choice[0]) for weight, choice in one.terms], [], ()
        values = {cell: self._values(cell, one.metric) for cell in one.cells}
        if any(v.empty for v in values.values()):  # of several, one that has not run stands for all
            return [(w, min(choice, key=lambda cell: len(values[cell]))) for w, choice in one.terms], [], ()
        seeds = sorted(set.intersection(*(set(v.index) for v in values.values())))
        seeds, terms, how = seeds[: max(1, len(seeds) // 3)], [], ()
        for weight, choice in one.terms:
            best = max(choice, key=lambda cell: weight * values[cell].loc[seeds].mean())
            terms.append((weight, best))
            if len(choice) > 1:
                how = (f"{best.budget}, chosen on seed {', '.join(f'{seed:g}' for seed in seeds)}",)
        return terms, seeds, how

    def _values(self, term: Cell | str, metric: str, place: Place | None = None) -> pd.Series:
        """A term's metric by seed; a printed or computed number alone; empty where something is missing."""
        if isinstance(term, str) and metric == "tokens":
            (n,), tokens = place.steps, int(place.names["L"])
            return pd.Series([float(expected_reveal_counts(term, n, tokens)[: n // 2].sum())])
        if isinstance(term, str):
            return pd.Series([value(RESOLUTIONS[place.benchmark], term, metric)])
        if (term, metric) not in self.values:
            rows, counted = self.rows.get(_key(term)), metric == "flops"
            missing = rows is None or (not counted and rows[metric].isna().any())
            known = [] if missing else [sampling_flops(term)] if counted else unit_means(rows, metric)
            self.values[term, metric] = pd.Series(known, dtype=float)
        return self.values[term, metric]

    def _power(self, gain: Estimate) -> tuple[str, ...]:
        """How many runs behind two FIDs it takes to tell them apart."""
        if not gain.effect:
            return ()
        n, spread = runs_needed(abs(gain.effect), gain.error, self.claims.alpha), self.claims.reported_spread
        apart = f"a difference of {three_digits(abs(gain.effect))} takes {plural(n, 'run')} of both sides to show"
        return (f"{apart} (spread between runs {spread:.0%}, p < {self.claims.alpha:g}, power 80%)",)

    def _about(self, cells: list[Cell]) -> tuple[str, list[str]]:
        """The status that models give a comparison (empty: none), and what must be known of them."""
        models = [self.models[cell.benchmark, cell.size] for cell in cells]
        slopes = [(cell.size, self._slope(cell)) for cell in cells if cell.snapshot is None]
        slow = [f"{size} is not on its plateau (log-slope of FID in the last quarter {slope:.2f})"
                for size, slope in slopes if slope < self.claims.plateau]  # fmt: skip
        status = UNCOUNTED if slow or any(failed for _, failed, _ in models) else ""
        remarks = dict.fromkeys([*slow, *(note for _, _, notes in models for note in notes)])
        return DRY if any(dry for dry, _, _ in models) else status, list(remarks)

    def _model(self, rows: pd.DataFrame) -> tuple[bool, bool, list[str]]:
        """Whether a model is a dry run's, whether it fails the context gate, and what must be known of it."""
        size, gated = rows["size"].iloc[0], rows.dropna(subset=["gate_ratio"]).drop_duplicates("train_seed")
        failed, notes = gated.loc[~gated["gate_passed"].astype(bool), "train_seed"], []
        if len(failed):
            notes.append(f"{size} FAILED the context gate (training seed {', '.join(f'{s:g}' for s in failed)})")
        elif (worst := gated["gate_ratio"].max()) > self.claims.well_trained:
            notes.append(f"{size} uses little context (its worst training run's context ratio is {worst:.2f})")
        if (rows["weights"] == "released").any():
            notes.append("released weights: nothing of other training runs")
        return bool(rows["dry_run"].any()), bool(len(failed)), notes

    def _slope(self, cell: Cell) -> float:
        """Slope of log FID over log steps from a model's last snapshot to the end, 0 where there is none. A model that
        several benchmarks sample has its snapshots in one of them."""
        alike = next((names for names in self.claims.grounds.values() if cell.benchmark in names), ())
        along = {key[3]: float(rows["fid"].mean()) for key, rows in self.rows.items()
                 if key[0] in alike and key[1] == cell.size and key[3] > 0}  # fmt: skip
        *_, before, last = sorted([0.0, 0.0, *along])
        return math.log(along[last] / along[before]) / -math.log(before) if before > 0 and last == 1 else 0.0

    def _unlike(self, cells: list[Cell], printed: bool) -> list[str]:
        """In what the sides were measured differently; `printed`: one is a number of the paper's."""
        rows = [self.rows[_key(cell)] for cell in cells]
        values = {column: {str(value) for of in rows for value in of[column].unique()} for column in ALIKE}
        values["scored_images"] |= {str(float(PAPER_IMAGES))} if printed else set()
        return [what for column, what in ALIKE.items() if len(values[column]) > 1]


def _key(cell: Cell) -> tuple[str, str, str, float]:
    return cell.benchmark, cell.size, cell.budget, cell.snapshot or FINAL


def _paired(terms: list, values: list[pd.Series]) -> Estimate:
    return t_interval(sum(weight * v for (weight, _), v in zip(terms, values, strict=True)))


def sampling_flops(cell: Cell) -> float:
    """FLOPs of generating one image, from the benchmark's settings."""
    bench = load_benchmark(find_root() / params_file(cell.benchmark))
    return flops.sampling(bench.model_config(cell.size), bench.sample_config(cell.size, cell.budget))


def load_ledger() -> Ledger:
    """The ledger of the checkout that one works in: its claims on all runs there are."""
    root = find_root()
    claims, ran, spans = load_claims(root), benchmarks_with_results(root), {}
    grounds = {data: [name for name in names if name in ran] for data, names in claims.grounds.items()}
    for data, name in ((data, name) for data, names in grounds.items() for name in names):
        table = baselines(root, name).pivot(index="metric", columns="baseline", values="mean")
        if {"holdout", "class_shuffle"} <= set(table):  # of codes nothing is shuffled
            spans.setdefault(data, (table["class_shuffle"] - table["holdout"]).abs().dropna().to_dict())
    return Ledger(claims, runs(root, [name for names in grounds.values() for name in names]), spans)
