"""Whether two machines' cells say the same. No torch.

**Facts** (counts, settings, whatever does not depend on rounding) must be identical.

**Metrics** are decided by one test of equivalence each (two one-sided t tests at 5 %; Schuirmann, 1987), over the cells
that are not identical. Both sides have the same seeds, so differences are paired by them: what the seeds decide alike
cancels. A value is the mean difference, in margins, of one (size, training seed), over its sampling seeds and sampling
configurations; of released weights a sampling seed stands for the training seed. The 90 % interval of the values' mean
decides: *reproduced* where it lies within one margin, and no size's and no sampling configuration's mean reaches
`LOOSE` margins, so that opposite changes do not cancel; *differs* where it lies wholly outside; else *undecided*. Of
one value nothing is known of the error: its interval reaches from a `FAR`-th of the difference to twice the difference.

**The margin** is the smallest difference that `matters`, but no more than `SPREADS` standard deviations of a single run
(pooled over the metric; of the side where it is smaller), and then a quarter of what matters at least, or `OF_VALUE` of
the value where that is less. A cell by itself is *identical*, *reproduced* (its means lie within its margin) or
*undecided* (beyond it); measured cells are decided by their metric alone.

**Not judged**: speed; pictures; the scores of snapshots, which move from seed to seed by up to ten margins.

**How often it errs**: trainings of `ladder` (5 sizes, 6 seeds) are dealt out to two machines that have nothing in
common but their settings; 100 pairs of two seeds each (of three), where FIDs are worse by so many margins beside:

    worse                   reproduced   differs      worse                      reproduced   differs
    none                    62 (98)      0 (0)        N = 16 alone, by 1         52 (93)      0 (0)
    all, by 1               0 (5)        6 (8)        H alone, by 1              49 (80)      0 (0)
    all, by 2               0 (0)        100 (100)    H alone, by 2              12 (20)      0 (0)
    all, by 3               0 (0)        100 (100)    H alone, by 3              0 (0)        0 (0)
    XS -1.5 to H +1.5       13 (29)      0 (0)        N = 4 -1.5, N = 16 +1.5    9 (11)       0 (0)

The others are undecided. `python tests/test_equivalence.py` prints these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from emigm.verify.cells import Cell, Record, cells_of

LEVEL = 0.05
"""Of each of the two one-sided tests."""
LOOSE, FAR = 1.5, 6
IDENTICAL, REPRODUCED, UNDECIDED, DIFFERS = "identical", "reproduced", "undecided", "differs"
OF_DISTANCE = 0.1
"""Smallest difference that matters, as a share of the distance from held-out images to class shuffle."""
OF_VALUE = 0.05
"""Smallest difference that matters, as a share of the value itself, of what has no such distance."""
ABSOLUTE = {
    **dict.fromkeys(("precision", "recall", "label_accuracy", "cas", "ratio"), 0.05),
    **dict.fromkeys(("train_accuracy", "holdout_accuracy"), 0.02),
    **dict.fromkeys(("unit_mean", "unit_std"), 0.01),
}
"""Smallest difference that matters of shares, of the context gate's ratio (what lies between the gate's limit of 0.95
and a model that ignores its context), and of latents of unit deviation."""
BY_DISTANCE = {"fid": "fid", "clean_fid": "fid", "sfid": "sfid", "kid": "kid"}
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
    """None: a fact."""

    @property
    def share(self) -> float:
        """Difference in margins; infinite for facts that differ."""
        if self.status == IDENTICAL:
            return 0.0
        return abs(self.ours - self.theirs) / self.margin if self.margin else math.inf

    def __str__(self) -> str:
        if self.margin is None:
            return f"{self.cell}: {str(self.ours)[:60]}, was {str(self.theirs)[:60]}"
        return f"{self.cell}: {self.ours:.5g}, was {self.theirs:.5g} (margin {self.margin:.3g})"


@dataclass(frozen=True)
class Metric:
    """What the test of a metric, over its cells that are not identical, gave; differences in margins."""

    name: str
    status: str
    cells: int
    values: int
    """Pairs of size and training seed."""
    mean: float
    low: float
    high: float
    """The 90 % interval of the mean."""
    parts: str = ""
    """Sizes and sampling configurations whose own means are too large, with these."""

    @property
    def share(self) -> float:
        return max(-self.low, self.high)

    def __str__(self) -> str:
        interval = f"mean difference {self.mean:+.3f} margins (90% interval {self.low:+.3f} to {self.high:+.3f})"
        of = f"{self.cells} cells, {self.values} values of a size and a training seed"
        return f"{self.name}: {interval}{self.parts and f'; {self.parts}'}; {of}"


@dataclass
class Comparison:
    """All verdicts of one benchmark, and the cells that only one side has."""

    verdicts: list[Verdict] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    """Those of which a cell is not identical."""
    missing: list[str] = field(default_factory=list)
    """Cells of the reference that have not run here."""
    extra: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        outcomes = {m.status for m in self.metrics}
        if self.missing or DIFFERS in outcomes or any(v.status == DIFFERS for v in self.verdicts):
            return DIFFERS
        return UNDECIDED if UNDECIDED in outcomes else REPRODUCED


def compare(ours: Mapping[str, Record], theirs: Mapping[str, Record]) -> Comparison:
    """Verdicts on all cells of two sets of records of one benchmark, by stage; see the rule above."""
    mine, reference = cells_of(ours), cells_of(theirs)
    missing, extra = ([n for n in x if n not in y] for x, y in ((reference, mine), (mine, reference)))
    found = Comparison(missing=missing, extra=extra)
    measured: dict[str, list[tuple[Cell, Cell]]] = {}
    for a, b in ((mine[name], reference[name]) for name in reference if name in mine):
        if a.values is None or b.values is None or a.values.keys() != b.values.keys():
            found.verdicts.append(_fact(a, b))
        else:
            measured.setdefault(a.group, []).append((a, b))
    distances = {m: min(_distance(mine, base), _distance(reference, base)) for m, base in BY_DISTANCE.items()}
    for group, pairs in measured.items():
        run, changed = _deviation(pairs), []
        for a, b in pairs:
            limit = margin(a, b, run, distances.get(a.metric, math.inf))
            status = REPRODUCED if abs(a.mean - b.mean) < limit else UNDECIDED
            if a.values == b.values:
                status = IDENTICAL
            else:
                changed.append((a, b, limit))
            found.verdicts.append(Verdict(a.name, status, a.mean, b.mean, limit))
        if changed:
            found.metrics.append(equivalence(group, changed))
    return found


def equivalence(group: str, changed: Sequence[tuple[Cell, Cell, float]]) -> Metric:
    """The test of one metric over cells (ours, theirs, margin) that are not identical."""
    rows = [
        (a.size, a.name.partition(" ")[2], seed, (value - b.values[seed, sample]) / limit)
        for a, b, limit in changed
        for (seed, sample), value in a.values.items()
    ]
    frame = pd.DataFrame(rows, columns=["size", "configuration", "seed", "difference"])
    values = frame.groupby(["size", "seed"])["difference"].mean()
    mean, n = float(values.mean()), len(values)
    half = float(stats.t.ppf(1 - LEVEL, n - 1) * stats.sem(values)) if n > 1 else 0.0
    low, high = (mean - half, mean + half) if n > 1 else sorted((mean / FAR, 2 * mean))
    means = pd.concat([frame.groupby(part)["difference"].mean() for part in ("size", "configuration")])
    parts = ", ".join(f"{part} alone {m:+.2f}" for part, m in means.items() if abs(m) >= LOOSE and n > 1)
    status = DIFFERS if low >= 1 or high <= -1 else REPRODUCED if max(-low, high) < 1 and not parts else UNDECIDED
    return Metric(group, status, len(changed), n, mean, low, high, parts)


def _fact(a: Cell, b: Cell) -> Verdict:
    """Of two facts, or of values of different seeds; a setting that is absent is one that is None."""
    ours, theirs = (flat(c.fact) if c.values is None else dict(c.values) for c in (a, b))
    differing = [k for k in (*theirs, *ours) if ours.get(k) != theirs.get(k)]
    if not differing:
        return Verdict(a.name, IDENTICAL, a.fact, b.fact)
    if a.values is None and b.values is None:
        return Verdict(f"{a.name} {differing[0]}".strip(), DIFFERS, ours.get(differing[0]), theirs.get(differing[0]))
    return Verdict(a.name, DIFFERS, str(ours), str(theirs))


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Values of nested mappings by their dotted keys."""
    if not isinstance(tree, Mapping):
        return {name: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{name}.{key}".lstrip(".")).items()}


def _deviation(pairs: Iterable[tuple[Cell, Cell]]) -> float:
    """Standard deviation of a single run, pooled over cells, of the side where it is smaller; infinite of one run."""
    several = [pair for pair in pairs if len(pair[0].values) > 1]
    sides = zip(*several, strict=True)
    pooled = [float(np.mean([np.var(list(c.values.values()), ddof=1) for c in side])) for side in sides]
    return math.sqrt(min(pooled, default=math.inf))


def margin(a: Cell, b: Cell, run: float, distance: float) -> float:
    """Of two cells; `run` is the standard deviation of a single run."""
    value = float(np.mean(np.abs([*a.values.values(), *b.values.values()])))
    most = matters(a.metric, value, distance)
    return min(most, max(SPREADS * run, min(most / 4, OF_VALUE * value)))


def matters(metric: str, value: float, distance: float) -> float:
    """Smallest difference of a metric, such as "fid", that matters.

    Args:
        value: its size.
        distance: from held-out images to class shuffle; infinite: not measured.
    """
    if metric in ABSOLUTE:
        return ABSOLUTE[metric]
    return OF_DISTANCE * distance if 0 < distance < math.inf else OF_VALUE * value


def _distance(cells: Mapping[str, Cell], metric: str) -> float:
    ends = [cells.get(f"reference baselines {name} {metric}") for name in ("holdout", "class_shuffle")]
    return abs(ends[0].mean - ends[1].mean) if all(c is not None and c.values for c in ends) else math.inf
