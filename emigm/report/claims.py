"""The claims ledger: each conclusion of the paper, the comparison that tests it here, and its verdict.

`benchmarks/claims.yaml` fixes the comparisons before there are records; this module only carries them out.
"""

# ruff: noqa: RUF001
# × and − are meant.
from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from emigm.model.schedules import SCHEDULES, expected_reveal_counts
from emigm.report.family import FAMILIES, failed_seeds
from emigm.report.ledger import (
    EXACT,
    NAMES,
    OVER,
    Cells,
    Claim,
    Difference,
    Expect,
    Ledger,
    Reveals,
    Trend,
    load_ledger,
)
from emigm.report.results import (
    NONE,
    NOT_RUN,
    PAPER_IMAGES,
    Results,
    benchmarks,
    gate_note,
    load,
    plural,
    thousands,
    weights_of,
)
from emigm.report.statistics import Estimate, holm, page_p, t_interval, trend, unit_means, welch
from emigm.report.tables import Table

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not decided"
DRY = "no verdict (dry run)"


@dataclass(frozen=True)
class Outcome:
    """What one test of a claim gave."""

    claim: str
    comparison: str
    metric: str
    verdict: str
    test: str = NONE
    estimate: Estimate | None = None
    remarks: tuple[str, ...] = ()


Find = Callable[[str], Results]
"""Benchmark -> its records, none where it has not run."""


def claims(results: Results) -> Table:
    """The whole ledger with its verdicts for a benchmark that heads a family (`emigm.report.family`), what has not run
    included; for another the claims that it tests itself. Below them every comparison."""
    ledger, whole = load_ledger(results.root), results.name in FAMILIES
    own = [claim for claim in ledger.claims if whole or claim.benchmark == results.name]
    others = _finder(results.root)
    outcomes = _outcomes(own, ledger, lambda name: results if name == results.name else others(name))
    frame = _claims(own, outcomes)
    if whole:
        frame.insert(3, "Benchmark", [claim.benchmark for claim in own])
    gates = gate_note(results) if any("context gate" in text for one in outcomes for text in one.remarks) else ""
    none = f"No claim of benchmarks/claims.yaml is tested on {results.name}."
    notes = results.notes(*(_notes(ledger, outcomes) if own else (none,)), gates)
    heading = results.heading("Claims of the paper" + ("" if whole else f" on {results.name}"))
    compared = results.heading("Comparisons")
    below = Table(results.folder, "claims-comparisons", compared, _comparisons(outcomes), _test_notes(ledger))
    return Table(results.folder, "claims", heading, frame, notes, below)


def _finder(root: Path) -> Find:
    there = benchmarks(root)
    return functools.cache(lambda name: load(name, root) if name in there else Results(root, name, {}))


def _outcomes(some: Iterable[Claim], ledger: Ledger, find: Find) -> list[Outcome]:
    found = []
    for claim in some:
        found += [_difference(claim, one, ledger, find) for one in claim.differences]
        found += [_trend(claim, claim.trend, ledger, find)] if claim.trend else []
        found += [_reveals(claim, claim.reveals, find)] if claim.reveals else []
    return found


def _difference(claim: Claim, one: Difference, ledger: Ledger, find: Find) -> Outcome:
    sides = [(weight, find(cells.benchmark or claim.benchmark), cells) for weight, cells in one.groups]
    remarks = _remarks([(results, [cells.size]) for _, results, cells in sides], claim.benchmark)
    made = Outcome(claim.id, one.label(claim.benchmark), NAMES[one.metric], NOT_RUN, remarks=remarks)
    dry = any(results.dry_run for _, results, _ in sides)
    constant = one.factor * one.reported.value(one.metric) if one.reported else 0.0
    if one.metric in EXACT:
        numbers = [(weight, _count(results, cells, one.metric)) for weight, results, cells in sides]
        if any(number is None for _, number in numbers):
            return made
        effect = math.fsum(weight * number for weight, number in numbers) - constant
        verdict = DRY if dry else HOLDS if (effect < 0) == (one.expect == "lower") and effect else FAILS
        return replace(made, verdict=verdict, test="a count", estimate=Estimate(effect))
    units = [(weight, _values(results, cells, one.metric)) for weight, results, cells in sides]
    if any(unit is None for _, unit in units):
        return made
    unlike = _unlike([(results, cells) for _, results, cells in sides], one)
    estimate, test = _estimate(units, constant, len({results.name for _, results, _ in sides}) == 1, ledger.level)
    width = ledger.max_width if one.factor == 1 else math.inf
    verdict, why = _verdict(estimate, one.expect, width)
    if unlike:
        verdict, why = OPEN, f"not comparable: {unlike}"
    if dry:
        verdict, why = DRY, ""
    single = "one training seed: nothing of other training runs" if "sampling seed" in test else ""
    more = tuple(filter(None, (why, single)))
    return replace(made, verdict=verdict, test=test, estimate=estimate, remarks=(*more, *remarks))


def _trend(claim: Claim, one: Trend, ledger: Ledger, find: Find) -> Outcome:
    results, metric = find(claim.benchmark), NAMES[one.metric]
    remarks = _remarks([(results, one.sizes)], claim.benchmark)
    comparison = f"slope over {', '.join(one.sizes)} at {', '.join(one.budgets)}"
    made = Outcome(claim.id, comparison, f"{metric} for ten times the {OVER[one.over]}", NOT_RUN, remarks=remarks)
    found = [_values(results, Cells(size, one.budgets), one.metric) for size in one.sizes]
    x = [results.get(f"train-{size}", "results", one.over) for size in one.sizes]
    if any(value is None for value in (*found, *x)):
        return made
    seeds = sorted(set.intersection(*(set(values) for _, values in found)))
    if not seeds:
        return replace(made, verdict=DRY if results.dry_run else OPEN, remarks=("no seed in common", *remarks))
    blocks = [[values[seed] for _, values in found] for seed in seeds]
    estimate = trend([math.log10(value) for value in x], blocks, ledger.level)
    page = page_p(blocks if one.expect == "lower" else [[-value for value in block] for block in blocks])
    ranks = "" if page is None else f"Page's exact trend test: p {_p(page)} (one-sided)"
    verdict, why = _verdict(estimate, one.expect, ledger.max_width)
    if results.dry_run:
        verdict, why = DRY, ""
    test = f"regression, an intercept for each of {plural(len(seeds), f'{found[0][0]} seed')}"
    return replace(made, verdict=verdict, test=test, estimate=estimate, remarks=(*filter(None, (why, ranks)), *remarks))


def _reveals(claim: Claim, one: Reveals, find: Find) -> Outcome:
    early = {name: expected_reveal_counts(name, one.steps, one.tokens)[: one.steps // 2].sum() for name in SCHEDULES}
    rivals = {name: tokens for name, tokens in early.items() if name != one.schedule}
    closest = min(rivals, key=rivals.get)
    effect = float(early[one.schedule] - rivals[closest])
    comparison = f"{one.schedule} − {closest}, L = {one.tokens}, N = {one.steps}"
    metric = "tokens revealed in the first half of the steps"
    verdict = DRY if find(claim.benchmark).dry_run else HOLDS if effect < 0 else FAILS
    return Outcome(claim.id, comparison, metric, verdict, "computed", Estimate(effect))


def _values(results: Results, cells: Cells, metric: str) -> tuple[str, dict[int, float]] | None:
    """Kind of the units and each one's mean over the budgets; None where a record or the metric is missing."""
    found = []
    for budget in cells.budgets:
        runs = _runs(results, cells.size, budget, metric)
        if not runs or any(value is None for *_, value in runs):
            return None
        found.append(unit_means(runs))
    (kind, first), shared = found[0], set.intersection(*(set(means) for _, means in found))
    return kind, {seed: math.fsum(means[seed] for _, means in found) / len(found) for seed in first if seed in shared}


def _runs(results: Results, size: str, budget: str, metric: str) -> list[tuple[int, int, float]]:
    """(training seed, sampling seed, value) of every run."""
    if metric != "seconds_per_image":
        runs = results.get(f"evaluate-{size}", "results", budget, "runs") or []
        return [(run["train_seed"], run["sample_seed"], run.get(metric)) for run in runs]
    stage = f"sample-{size}-{budget}"
    values = results.get(stage, "results", metric, "values") or []
    order = itertools.product(*(results.get(stage, "settings", key) or [] for key in ("train_seeds", "seeds")))
    return [(*seeds, value) for seeds, value in zip(order, values, strict=True)] if values else []


def _count(results: Results, cells: Cells, metric: str) -> float | None:
    """A count's mean over the budgets."""
    stages = [f"sample-{cells.size}-{b}" if metric == "passes" else f"train-{cells.size}" for b in cells.budgets]
    found = [results.get(stage, "results", metric) for stage in stages]
    return None if None in found else math.fsum(found) / len(found)


def _estimate(
    units: list[tuple[float, tuple[str, dict[int, float]]]], constant: float, together: bool, level: float
) -> tuple[Estimate, str]:
    """The weighted sum of the sides less a constant: paired where all sides of one benchmark have the same seeds."""
    kinds = {kind for _, (kind, _) in units}
    kind = kinds.pop() if len(kinds) == 1 else "training and sampling"
    seeds = [set(values) for _, (_, values) in units]
    if together and " " not in kind and all(s == seeds[0] for s in seeds):
        sums = [math.fsum(w * values[seed] for w, (_, values) in units) - constant for seed in sorted(seeds[0])]
        test = "no test" if len(sums) < 2 else "t test" if len(units) == 1 else "paired t test"
        return t_interval(sums, level), f"{test}, {plural(len(sums), f'{kind} seed')}"
    estimate = welch([(weight, list(values.values())) for weight, (_, values) in units], level)
    return estimate, f"Welch's t test, {' and '.join(str(len(s)) for s in seeds)} {kind} seeds"


def _verdict(estimate: Estimate, expect: Expect, max_width: float) -> tuple[str, str]:
    """Verdict, and why there is none."""
    if estimate.low is None:
        return OPEN, "too few seeds for an interval"
    if estimate.low <= 0 <= estimate.high:
        return OPEN, "the interval contains 0"
    if estimate.high - estimate.low > max_width * abs(estimate.effect):
        return OPEN, "the interval is too wide"
    return (HOLDS if (estimate.effect < 0) == (expect == "lower") else FAILS), ""


def _unlike(sides: list[tuple[Results, Cells]], one: Difference) -> str:
    """In what the sides were measured differently; empty where they were not."""
    found: dict[str, set[str]] = {"machines": set(), "numbers of images": set(), "extractors or real images": set()}
    for results, cells in sides:
        if one.metric == "seconds_per_image":
            stages = [f"sample-{cells.size}-{budget}" for budget in cells.budgets]
            found["machines"] |= {str(results.get(stage, "provenance", "device")) for stage in stages}
            continue
        stage = f"evaluate-{cells.size}"
        found["numbers of images"].add(str(results.get(stage, "settings", "images")))
        scorer = [results.get(stage, "settings", "extractor_identity"), results.get(stage, "reference")]
        found["extractors or real images"].add(json.dumps(scorer, sort_keys=True))
    if one.reported is not None and one.metric == "fid":
        found["numbers of images"].add(str(PAPER_IMAGES))
    return ", ".join(f"different {what}" for what, values in found.items() if len(values) > 1)


def _remarks(sides: list[tuple[Results, Iterable[str]]], home: str) -> tuple[str, ...]:
    """What must be known of the runs: context gates that failed, released weights."""
    found: dict[str, None] = {}
    for results, sizes in sides:
        where = "" if results.name == home else f"{results.name}: "
        for size in sizes:
            if results.get(f"train-{size}", "results", "context", "passed") is False:
                seeds = ", ".join(map(str, sorted(failed_seeds(results, size))))
                found[f"{where}{size} FAILED the context gate{f' (training seed {seeds})' if seeds else ''}"] = None
            if weights_of(results, size) == "released":
                found[f"{where}released weights"] = None
    return tuple(found)


def _claims(some: Iterable[Claim], outcomes: list[Outcome]) -> pd.DataFrame:
    rows = []
    for claim in some:
        own = [outcome for outcome in outcomes if outcome.claim == claim.id]
        remarks = dict.fromkeys([claim.note, *(r for o in own for r in o.remarks)])
        rows.append(
            {
                "ID": claim.id,
                "Claim": claim.claim,
                "Source": claim.source,
                "Verdict": _together([outcome.verdict for outcome in own]),
                "Measured": "; ".join(_measured(outcome) for outcome in own) or NOT_RUN,
                "Remarks": "; ".join(r.rstrip(".") for r in remarks if r) or NONE,
            }
        )
    return pd.DataFrame(rows, columns=["ID", "Claim", "Source", "Verdict", "Measured", "Remarks"])


def _together(verdicts: list[str]) -> str:
    """A claim's verdict: that of all its tests."""
    order = (NOT_RUN, DRY, FAILS, OPEN, HOLDS)  # the first that any test has
    return next((verdict for verdict in order if verdict in verdicts), NOT_RUN)


def _comparisons(outcomes: list[Outcome]) -> pd.DataFrame:
    tested = [i for i, outcome in enumerate(outcomes) if outcome.estimate and outcome.estimate.p is not None]
    adjusted = dict(zip(tested, holm([outcomes[i].estimate.p for i in tested]), strict=True))
    rows = [
        {
            "ID": one.claim,
            "Comparison": one.comparison,
            "Metric": one.metric,
            "Effect": NOT_RUN if one.estimate is None else _number(one.estimate.effect),
            "Interval": NOT_RUN if one.estimate is None else _interval(one.estimate),
            "p": _p(one.estimate.p) if i in adjusted else NONE,
            "p (Holm)": _p(adjusted[i]) if i in adjusted else NONE,
            "Test": one.test,
            "Verdict": one.verdict,
            "Remarks": "; ".join(one.remarks) or NONE,
        }
        for i, one in enumerate(outcomes)
    ]
    columns = ("ID", "Comparison", "Metric", "Effect", "Interval", "p", "p (Holm)", "Test", "Verdict", "Remarks")
    return pd.DataFrame(rows, columns=list(columns))


def _measured(outcome: Outcome) -> str:
    if outcome.estimate is None:
        return NOT_RUN
    interval = "" if outcome.estimate.low is None else f" {_interval(outcome.estimate)}"
    return f"{_number(outcome.estimate.effect)}{interval}"


def _interval(estimate: Estimate) -> str:
    return NONE if estimate.low is None else f"[{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float) -> str:
    """A signed number with three significant digits, and no exponent above 1000."""
    return f"{value:+.3g}" if abs(value) < 1000 else f"{value:+,.0f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _notes(ledger: Ledger, outcomes: list[Outcome]) -> tuple[str, ...]:
    done = [outcome for outcome in outcomes if outcome.estimate is not None]
    return (
        "The comparison, budget and test of every claim are fixed in benchmarks/claims.yaml. “Here” is the benchmark "
        "that a claim is tested on: other data and other models than the paper's, unless they are its own.",
        f"Measured: what is compared, left minus right, with its {ledger.level:.0%} interval (“{NOT_RUN}”: a record is "
        f"missing). “{HOLDS}”: all of a claim's comparisons have the expected sign. “{FAILS}”: one has the other sign. "
        f"“{OPEN}”: an interval contains 0, or is wider than {ledger.max_width:g} × the effect (where nothing is held "
        "against a factor).",
        f"{plural(len(outcomes), 'comparison')} planned, {len(done)} made. The intervals are of single comparisons; "
        "Holm's p allows for all of them.",
    )


def _test_notes(ledger: Ledger) -> tuple[str, ...]:
    return (
        f"Interval: {ledger.level:.0%}, Student's t, over training seeds, the sampling seeds of each averaged first. "
        "All runs have the same sampling seeds, so the interval covers no other choice of those, nor of the numbers of "
        "tokens revealed at each step, which are drawn once for a chunk of images. With one "
        "training seed it is over sampling seeds, and says nothing of other training runs.",
        "Paired: by training seed, where both sides have the same in one benchmark (they share the order of the data "
        "and the noise of sampling). Else Welch's test. A trend is a regression on the logarithm, with one intercept "
        "for each training seed.",
        "p is two-sided. p (Holm) is adjusted for all comparisons of this page that have an interval. A number that "
        "the paper reports has no interval of its own.",
        f"FIDs are of equally many images on both sides; fewer than {thousands(PAPER_IMAGES)} raise both: "
        "convergence.png extrapolates to infinitely many.",
    )
