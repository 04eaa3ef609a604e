"""Whether two machines' cells say the same. No torch.

**The rule.** Counts, settings and whatever else does not depend on rounding must be identical. Of two values of a
measured cell that are not *identical*, the difference lies in an interval, which decides: *reproduced* where all of it
lies within a margin fixed beforehand (a test of equivalence: two one-sided t tests, each at 5%; Schuirmann, 1987),
*differs* where all of it lies outside, at 5% over all measured cells of the benchmark together (Bonferroni; over all
metrics together where metrics are decided), and *undecided* in between: the runs scatter too much to tell.

*The difference.* Both sides have the same training and sampling seeds, so runs are paired by them: what the seeds
decide alike cancels, and what is left is what the machine did. Standard error: variance over training seeds of the
paired differences over their number, and over sampling seeds (pooled within training seeds) over theirs, each the
larger of the cell's own and of that pooled over all sizes and budgets of the metric. Degrees of freedom: training
seeds less one, over the same cells, each size's once.

*The metric.* Few cells of two training seeds can be decided one by one, where another processor changes a training as
much as another seed does. So a metric with undecided cells is decided once more over all its sizes and budgets: a
training's differences, as shares of their cells' margins, are one value, and the interval of these values' mean has to
lie within one margin (standard error: their variance, or that within trainings where it is larger). A benchmark is
reproduced where no cell differs and every metric with undecided cells is reproduced so.

*The margin* is the smallest difference that matters, `matters`, and no more than `SPREADS` standard deviations of a
single run (over both kinds of seeds, pooled over the metric; the smaller of both sides'), but a quarter of what matters
at least, or `OF_VALUE` of the value where that is less.

A cell of one value a side has no error to test with; its difference must lie within half the margin.

How often the rule errs, tests/test_equivalence.py computes from the trainings of the benchmark `ladder` (5 sizes, 6
seeds), dealt out to two machines that have nothing in common but their settings. Of 400 such pairs with two seeds each,
80% are reproduced, 20% undecided; with three seeds 99% and 1%; none differs. With every FID worse by the margin, 4% of
200 are reproduced; by two margins, none, and 80% differ; by three, all differ. What mostly passes unseen with two seeds
is a change of one size alone: 81% of 100 are reproduced where H is worse by the margin, 47% by two, 2% by three.
Exchanging the sides changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

from emigm.records.cells import Cell, Record, Unit, cells_of
from emigm.records.summary import seed_variances

LEVEL = 0.05
"""Of each of the two one-sided tests."""
IDENTICAL, REPRODUCED, UNDECIDED, DIFFERS = "identical", "reproduced", "undecided", "differs"
OF_DISTANCE = 0.1
"""Smallest difference that matters, as a share of the distance from held-out images to class shuffle."""
OF_VALUE = 0.05
"""Smallest difference that matters, as a share of the value itself, of what has no such distance."""
ABSOLUTE = {
    "precision": 0.05,
    "recall": 0.05,
    "label_accuracy": 0.05,
    "train_accuracy": 0.02,
    "holdout_accuracy": 0.02,
    "ratio": 0.05,
    "unit_mean": 0.01,
    "unit_std": 0.01,
}
"""Smallest difference that matters of shares, of the context gate's ratio (what lies between the gate's limit of 0.95
and a model that ignores its context), and of latents of unit deviation."""
BY_DISTANCE = {"fid": "fid", "clean_fid": "fid", "kid": "kid"}
"""Metric -> the one whose distance between the baselines it is held against."""
SPREADS = 4


@dataclass(frozen=True)
class Verdict:
    """What the comparison of a cell gave."""

    cell: str
    status: str
    ours: Any
    theirs: Any
    margin: float | None = None
    reached: float | None = None
    """Bound of the difference at the test's level, to be below the margin; None: a fact."""
    note: str = ""
    group: str = ""

    @property
    def share(self) -> float:
        """Of the margin that is used; infinite for facts that differ."""
        if self.status == IDENTICAL:
            return 0.0
        return self.reached / self.margin if self.margin and self.reached is not None else math.inf

    def __str__(self) -> str:
        if self.reached is None:
            return f"{self.cell}: {_plain(self.ours)}, was {_plain(self.theirs)}{self.note and f' ({self.note})'}"
        test = f"difference up to {self.reached:.3g}, margin {self.margin:.3g}"
        return f"{self.cell}: {self.ours:.5g}, was {self.theirs:.5g} ({test}{self.note and f'; {self.note}'})"


@dataclass(frozen=True)
class Metric:
    """What the comparison of a metric over all its sizes and budgets gave."""

    name: str
    """Such as "evaluate fid"."""
    status: str
    cells: int
    trainings: int
    mean: float
    """Difference, as a share of the cells' margins."""
    reached: float
    """Bound of its absolute value at the test's level, to be below 1."""

    def __str__(self) -> str:
        over = f"{self.name} over {self.cells} cells of {self.trainings} trainings"
        return f"{over}: mean difference {self.mean:+.2f} of the margin, up to {self.reached:.2f}"


@dataclass
class Comparison:
    """All verdicts of one benchmark, and the cells that only one side has."""

    verdicts: list[Verdict] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    """Verdicts on those metrics of which a cell is undecided."""
    missing: list[str] = field(default_factory=list)
    """Cells of the reference that have not run here."""
    extra: list[str] = field(default_factory=list)

    def of(self, status: str) -> list[Verdict]:
        return [v for v in self.verdicts if v.status == status]

    @property
    def same(self) -> bool:
        """Whether no cell differs or is missing, and every metric is reproduced."""
        return not (self.missing or self.of(DIFFERS) or any(m.status != REPRODUCED for m in self.metrics))


def compare(ours: Mapping[str, Record], theirs: Mapping[str, Record]) -> Comparison:
    """Verdicts on all cells of two sets of records of one benchmark, by stage; see the rule above."""
    mine, reference = cells_of(ours), cells_of(theirs)
    missing, extra = ([n for n in x if n not in y] for x, y in ((reference, mine), (mine, reference)))
    found = Comparison(missing=missing, extra=extra)
    measured: dict[str, list[tuple[Cell, Cell]]] = {}
    for name in (n for n in reference if n in mine):
        a, b = mine[name], reference[name]
        if a.values is None or b.values is None or set(a.values) != set(b.values):
            found.verdicts.append(_fact(a, b))
        else:
            measured.setdefault(a.group, []).append((a, b))
    level = LEVEL / max(sum(map(len, measured.values())), 1)
    distances = {m: _least(_distance(side, base) for side in (mine, reference)) for m, base in BY_DISTANCE.items()}
    for group, pairs in measured.items():
        scatter = _scatter(pairs)
        margins = [_margin(a, b, scatter, distances.get(a.metric)) for a, b in pairs]
        verdicts = [equivalence(a, b, scatter, m, level) for (a, b), m in zip(pairs, margins, strict=True)]
        found.verdicts += verdicts
        if any(v.status == UNDECIDED for v in verdicts):
            found.metrics.append(_over_all(group, pairs, margins, LEVEL / len(measured)))
    return found


def _fact(a: Cell, b: Cell) -> Verdict:
    """Of two facts, or of values of different seeds; a setting that is absent is one that is None."""
    ours, theirs = (_flat(c.fact) if c.values is None else dict(c.values) for c in (a, b))
    differing = [k for k in dict.fromkeys((*theirs, *ours)) if ours.get(k) != theirs.get(k)]
    if not differing:
        return Verdict(a.name, IDENTICAL, a.fact, b.fact)
    if a.values is None and b.values is None:
        return Verdict(f"{a.name} {differing[0]}".strip(), DIFFERS, ours.get(differing[0]), theirs.get(differing[0]))
    return Verdict(a.name, DIFFERS, ours, theirs)


@dataclass(frozen=True)
class Scatter:
    """How the cells of a group scatter: paired differences over both kinds of seeds, and single runs."""

    between: float
    """Variance of the paired differences over training seeds."""
    within: float
    """And over sampling seeds."""
    freedom: int
    """Degrees of freedom of the error that both give."""
    run: float | None
    """Standard deviation of one run, of the side where it is smaller; None: one run."""


def _scatter(pairs: Sequence[tuple[Cell, Cell]]) -> Scatter:
    differences = [_by_seed(_difference(a, b)) for a, b in pairs]
    spreads = [seed_variances(d) for d in differences]
    sides = [[seed_variances(_by_seed(c.values)) for c in side] for side in zip(*pairs, strict=True)]
    by_size = {a.size: len(d) - 1 for (a, _), d in zip(pairs, differences, strict=True)}  # of the same trainings
    samples = sum(len(values) - 1 for d in differences for values in d.values())
    return Scatter(
        _mean(v for v, _ in spreads),
        _mean(v for _, v in spreads),
        sum(by_size.values()) or samples,
        min(math.sqrt(_mean(v for v, _ in s) + _mean(v for _, v in s)) for s in sides)
        if any(len(a.values) > 1 for a, _ in pairs)
        else None,
    )


def equivalence(a: Cell, b: Cell, scatter: Scatter, margin: float, level: float) -> Verdict:
    """Two one-sided tests of two cells' paired values; `level` is that at which a difference is shown."""
    if a.values == b.values:
        return Verdict(a.name, IDENTICAL, a.mean, b.mean, group=a.group)
    values = _difference(a, b)
    difference = abs(math.fsum(values.values()) / len(values))
    if len(values) == 1:
        reached, status, note = 2 * difference, REPRODUCED if 2 * difference < margin else DIFFERS, "one value"
    else:
        by_seed = _by_seed(values)
        between, within = (v or 0.0 for v in seed_variances(by_seed))
        samples = len(next(iter(by_seed.values())))
        variance = max(between, scatter.between) / len(by_seed) + max(within, scatter.within) / samples
        reached, status = _decide(difference, math.sqrt(variance), scatter.freedom, margin, level)
        note = "too much scatter to tell" if status == UNDECIDED else ""
    return Verdict(a.name, status, a.mean, b.mean, margin, reached, note, a.group)


def _decide(difference: float, error: float, freedom: int, margin: float, level: float) -> tuple[float, str]:
    """Bound of the difference, and what its interval says of the margin."""
    reached, least = (
        difference + sign * float(stdtrit(freedom, 1 - p)) * error for sign, p in ((1, LEVEL), (-1, level))
    )
    return reached, REPRODUCED if reached < margin else DIFFERS if least >= margin else UNDECIDED


def _over_all(group: str, pairs: Sequence[tuple[Cell, Cell]], margins: Sequence[float], level: float) -> Metric:
    """A metric over all its cells: a training, or where there is one of each size a sampling seed, gives one value."""
    one = all(len(_by_seed(a.values)) == 1 for a, _ in pairs)
    shares: dict[Any, list[float]] = {}
    for (a, b), margin in zip(pairs, margins, strict=True):
        for unit, difference in _difference(a, b).items():
            shares.setdefault((a.size, unit if one else unit[0]), []).append(difference / margin if difference else 0.0)
    means = np.array([math.fsum(v) / len(v) for v in shares.values()])
    within = np.mean([np.var(v, ddof=1) / len(v) if len(v) > 1 else 0.0 for v in shares.values()])
    mean, error = float(means.mean()), math.sqrt(max(float(means.var(ddof=1)), float(within)) / len(means))
    reached, status = _decide(abs(mean), error, len(means) - 1, 1.0, level)
    return Metric(group, status, len(pairs), len(means), mean, reached)


def _margin(a: Cell, b: Cell, scatter: Scatter, distance: float | None) -> float:
    value = (abs(a.mean) + abs(b.mean)) / 2
    most = matters(a.metric, value, distance)
    least = min(most / 4, OF_VALUE * value)
    return most if scatter.run is None else min(most, max(SPREADS * scatter.run, least))


def matters(metric: str, value: float, distance: float | None) -> float:
    """Smallest difference of a metric that matters.

    Args:
        metric: such as "fid".
        value: its size.
        distance: from held-out images to class shuffle; None: not measured.
    """
    if metric in ABSOLUTE:
        return ABSOLUTE[metric]
    return OF_VALUE * value if distance is None else OF_DISTANCE * distance


def _distance(cells: Mapping[str, Cell], metric: str) -> float | None:
    ends = [cells.get(f"reference baselines {name} {metric}") for name in ("holdout", "class_shuffle")]
    return None if any(c is None or c.values is None for c in ends) else abs(ends[0].mean - ends[1].mean)


def _difference(a: Cell, b: Cell) -> dict[Unit, float]:
    return {unit: value - b.values[unit] for unit, value in a.values.items()}


def _by_seed(values: Mapping[Unit, float]) -> dict[Any, list[float]]:
    found: dict[Any, list[float]] = {}
    for (train, _), value in values.items():
        found.setdefault(train, []).append(value)
    return found


def _mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else 0.0


def _least(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return min(known) if known else None


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {name: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{name}.{key}".lstrip(".")).items()}


def _plain(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
