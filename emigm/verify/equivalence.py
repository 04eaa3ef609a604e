"""Whether two machines' cells say the same. No torch.

**The rule.** Counts, settings and whatever else does not depend on rounding must be identical. Of two values of a
measured cell that are not *identical*, the difference lies in an interval, which decides: *reproduced* where all of it
lies within a margin (a test of equivalence: two one-sided t tests, each at 5%; Schuirmann, 1987), *differs* where all
of it lies outside, at 5% over all cells of the benchmark together (Bonferroni), and *undecided* in between: the runs
scatter too much to tell.

*The difference.* Both sides have the same seeds, so repetitions are paired by them: what the seeds decide alike
cancels, and what is left is what the machine did. A repetition is a training, its sampling seeds averaged; of released
weights, a sampling seed; of what has positions in place of seeds, a position. Standard error: from the variance of the
paired differences, the largest of the cell's own, of what its sampling seeds alone would give, and of that pooled over
all sizes and budgets of the metric whose cells are not identical, which takes them to scatter alike. Degrees of
freedom: repetitions less one, over these, each size's once; where a difference is to be shown by the cell's own
variance, its own. Of one repetition nothing is known of the error: reproduced is a difference of less than half the
margin, and differs one of 2 `FAR` margins.

*The metric.* Few cells of two trainings can be decided one by one, where another processor changes a training as much
as another seed does. So a metric with undecided cells is decided once more, over all its cells that are not identical:
a repetition's differences, as shares of their cells' margins, are one value. The interval of these values' mean has to
lie within one margin (standard error: from their variance, or that within repetitions where it is larger), and so that
opposite changes do not cancel, every size's mean and every budget's has to lie within one margin, or within `FEW` where
it is of fewer than `MANY` repetitions. A benchmark is reproduced where no cell differs and every metric with undecided
cells is reproduced so. A metric differs where its interval lies outside of the margin at 5% over all metrics, or at 5%
alone and its mean is `FAR` margins away.

*The margin* is the smallest difference that matters, `matters`, and no more than `SPREADS` standard deviations of a
single run (over both kinds of seeds, pooled over the metric; the smaller of both sides'), but a quarter of what matters
at least, or `OF_VALUE` of the value where that is less. Neighbouring sizes can lie closer together than a margin, so
their order is not what is verified.

*Not judged*: speed; `reveal`, whose pictures are shown; and snapshots, whose FID halfway through a training moves from
seed to seed by up to ten times what matters.

*How often it errs.* Trainings of `ladder` (5 sizes, 6 seeds) are dealt out to two machines that have nothing in common
but their settings; 100 pairs of machines, of two seeds each (of three), where FIDs are worse by so many margins beside:

    worse                   reproduced   differs      worse                      reproduced   differs
    none                    62 (98)      0 (0)        N = 16 alone, by 1         35 (57)      0 (0)
    all, by 1               0 (5)        0 (0)        H alone, by 1              49 (80)      0 (0)
    all, by 2               0 (0)        83 (100)     H alone, by 2              12 (20)      1 (8)
    all, by 3               0 (0)        100 (100)    H alone, by 3              0 (0)        4 (44)
    XS -1.5 to H +1.5       14 (29)      0 (0)        N = 4 -1.5, N = 16 +1.5    0 (0)        1 (2)

The others are undecided. Methods whose trainings scatter unequally fare worse: of 60 such pairs of `ablations`, three
seeds each and nothing worse, none is reproduced and 3 differ. `python tests/test_equivalence.py` prints these numbers,
and its tests hold the rule to them on fewer pairs.

The margins were fixed after the first two runs of docs/reproductions.jsonl, the limits of a metric's parts after the
fourth; the fifth is the first that the whole rule judges unseen. Exchanging the sides changes nothing but what is
called missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

from emigm.records.summary import seed_variances
from emigm.verify.cells import Cell, Record, Unit, cells_of
from emigm.verify.findings import count

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
"""Of a single run: no margin is wider."""
MANY, FEW = 5, 1.5
"""Repetitions from which on a size's or a budget's mean has to lie within one margin; the margins for fewer."""
FAR = 3
"""Margins beyond which a metric differs at 5%, however many metrics there are."""


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

    @property
    def share(self) -> float:
        """Of the margin that is used; infinite for facts that differ."""
        if self.status == IDENTICAL:
            return 0.0
        return self.reached / self.margin if self.margin and self.reached is not None else math.inf

    def __str__(self) -> str:
        if self.reached is None:
            return f"{self.cell}: {_plain(self.ours)}, was {_plain(self.theirs)}{self.note and f' ({self.note})'}"
        test = f"95% bound of the difference {self.reached:.3g}, margin {self.margin:.3g}"
        return f"{self.cell}: {self.ours:.5g}, was {self.theirs:.5g} ({test}{self.note and f'; {self.note}'})"


@dataclass(frozen=True)
class Metric:
    """What the comparison of a metric over all its cells that are not identical gave."""

    name: str
    """Such as "evaluate fid"."""
    status: str
    cells: int
    repetitions: int
    mean: float
    """Difference, as a share of the cells' margins."""
    reached: float | None
    """95% bound of its absolute value, to be below 1; None: one repetition."""
    part: str = ""
    """Sizes and budgets whose own means are too large, with these."""

    @property
    def share(self) -> float:
        return math.inf if self.reached is None else self.reached

    def __str__(self) -> str:
        over = f"{self.name}, {count(self.cells, 'cell')} of {count(self.repetitions, 'repetition')}"
        bound = "" if self.reached is None else f", 95% bound {self.reached:.3f}, to be below 1"
        return f"{over}: mean difference {self.mean:+.3f} of the margin{bound}{self.part and f'; {self.part}'}"


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
            changed = [(a, b, m) for (a, b), m in zip(pairs, margins, strict=True) if a.values != b.values]
            found.metrics.append(_over_all(group, changed, LEVEL / len(measured)))
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
    """How the cells of a group scatter: paired differences, and single runs."""

    between: float
    """Variance of the paired differences over repetitions."""
    freedom: int
    """Its degrees of freedom."""
    run: float | None
    """Standard deviation of one run, of the side where it is smaller; None: one run."""


def _scatter(pairs: Sequence[tuple[Cell, Cell]]) -> Scatter:
    changed = [(a.size, _means(_by_seed(_difference(a, b)))) for a, b in pairs if a.values != b.values]
    sides = [[seed_variances(_by_seed(c.values)) for c in side] for side in zip(*pairs, strict=True)]
    return Scatter(
        _mean(np.var(list(values.values()), ddof=1) for _, values in changed if len(values) > 1),
        sum({size: len(values) - 1 for size, values in changed}.values()),
        min(math.sqrt(_mean(v for v, _ in s) + _mean(v for _, v in s)) for s in sides)
        if any(len(a.values) > 1 for a, _ in pairs)
        else None,
    )


def equivalence(a: Cell, b: Cell, scatter: Scatter, margin: float, level: float) -> Verdict:
    """Two one-sided tests of two cells' paired values; `level` is that at which a difference is shown."""
    if a.values == b.values:
        return Verdict(a.name, IDENTICAL, a.mean, b.mean)
    by_seed = _by_seed(_difference(a, b))
    values = list(_means(by_seed).values())
    difference, note = abs(math.fsum(values) / len(values)), ""
    if len(values) == 1:
        reached, least, note = 2 * difference, difference / (2 * FAR), "one repetition"
    else:
        own, within = (v or 0.0 for v in seed_variances(by_seed))
        own = max(own, within / len(next(iter(by_seed.values()))))  # trainings can agree by chance
        error = math.sqrt(max(own, scatter.between) / len(values))
        reached = difference + _t(scatter.freedom, LEVEL) * error
        least = difference - _t(len(values) - 1 if own > scatter.between else scatter.freedom, level) * error
    status = REPRODUCED if reached < margin else DIFFERS if least >= margin else UNDECIDED
    if status == UNDECIDED and not note:
        note = "too much scatter to tell"
    return Verdict(a.name, status, a.mean, b.mean, margin, reached, note)


def _over_all(group: str, changed: Sequence[tuple[Cell, Cell, float]], level: float) -> Metric:
    """A metric over all its cells, (ours, theirs, margin) each, that are not identical."""
    shares: dict[Any, list[float]] = {}
    parts: dict[str, dict[Any, list[float]]] = {}
    for a, b, margin in changed:
        for seed, differences in _by_seed(_difference(a, b)).items():
            found = [d / margin for d in differences]
            for part in (shares, *(parts.setdefault(name, {}) for name in (a.size, a.name.partition(" ")[2]))):
                part.setdefault((a.size, seed), []).extend(found)
    values = np.array([_mean(v) for v in shares.values()])
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Metric(group, UNDECIDED, len(changed), n, mean, None)
    within = _mean(np.var(v, ddof=1) / len(v) if len(v) > 1 else 0.0 for v in shares.values())
    error = math.sqrt(max(float(values.var(ddof=1)), within) / n)
    reached, sure, shown = (abs(mean) + s * _t(n - 1, p) * error for s, p in ((1, LEVEL), (-1, LEVEL), (-1, level)))
    if shown >= 1 or (sure >= 1 and abs(mean) >= FAR):
        return Metric(group, DIFFERS, len(changed), n, mean, reached)
    means = {part: (_mean(map(_mean, of.values())), len(of)) for part, of in parts.items()}
    beyond = [f"{part} alone {m:+.2f}" for part, (m, k) in means.items() if abs(m) >= (1 if k >= MANY else FEW)]
    status = REPRODUCED if reached < 1 and not beyond else UNDECIDED
    return Metric(group, status, len(changed), n, mean, reached, ", ".join(beyond))


def _t(freedom: int, level: float) -> float:
    return float(stdtrit(freedom, 1 - level))


def _means(by_seed: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
    """Mean over sampling seeds of each training, or of what else is repeated."""
    return {seed: math.fsum(v) / len(v) for seed, v in by_seed.items()}


def _margin(a: Cell, b: Cell, scatter: Scatter, distance: float | None) -> float:
    value = math.fsum(abs(v) for c in (a, b) for v in c.values.values()) / (len(a.values) + len(b.values))
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
    return OF_DISTANCE * distance if distance else OF_VALUE * value


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
    return math.fsum(known) / len(known) if known else 0.0


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
