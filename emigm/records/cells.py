"""Every number of the records as a cell, and whether two machines' cells say the same. No torch.

**The rule.** Counts, settings and whatever else does not depend on rounding must be identical. A measured cell is
*identical* where all its values are; *reproduced* where the difference of the two sides is shown to be smaller than a
margin fixed beforehand; and *differs* otherwise. That is a test of equivalence (two one-sided t tests, each at 5%:
Schuirmann, 1987), so a cell that scatters too much to tell is not reproduced, which no test of a difference would say.

*The difference.* Both sides have the same training and sampling seeds, so runs are paired by them: what the seeds
decide alike cancels, and what is left is what the machine did. Standard error: variance over training seeds of the
paired differences over their number, and over sampling seeds (pooled within training seeds) over theirs, each the
larger of the cell's own and of that pooled over all sizes and budgets of the metric.

*The margin* is the smallest difference that matters, `matters`, and no more than `SPREADS` standard deviations of a
single run (over both kinds of seeds, pooled over the metric; the smaller of both sides'), but a quarter of what matters
at least. Of two training seeds, four are what a repetition needs to pass in 98% of cases where the machine changes as
much as another seed does; where runs scatter more than what matters, it has to do better than that.

A cell of one value a side has no error to test with; its difference must lie within half the margin.

The constants were chosen on the digits benchmark as two kinds of processor made it (AMD EPYC and Intel Xeon, records
of the commits aad8d21 and 1e69a5e; 5 sizes, 2 budgets, 2 x 3 seeds), all of whose cells they pass. Exchanging the
sides changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

from emigm.records.summary import KEYS, seed_variances

LEVEL = 0.05
"""Of each of the two one-sided tests."""
IDENTICAL, REPRODUCED, DIFFERS = "identical", "reproduced", "differs"
OF_DISTANCE = 0.2
"""Smallest difference that matters, as a share of the distance from held-out images to class shuffle."""
OF_VALUE = 0.05
"""Smallest difference that matters, as a share of the value itself, where the baselines do not say more."""
ABSOLUTE = {
    "precision": 0.05,
    "recall": 0.05,
    "label_accuracy": 0.05,
    "train_accuracy": 0.02,
    "holdout_accuracy": 0.02,
    "ratio": 0.02,
    "unit_mean": 0.01,
    "unit_std": 0.01,
}
"""Smallest difference that matters of shares, of the context gate's ratio, and of latents of unit deviation."""
BY_DISTANCE = {"fid": "fid", "clean_fid": "fid", "isc": "isc", "kid": "kid"}
"""Metric -> the one whose distance between the baselines it is held against."""
SPREADS = 4
COSTS = ("seconds", "images_per_second", "seconds_per_image", "peak_memory", "process_seconds", "compiled_graphs")
"""Keys that say how fast a machine is, which no other has to reproduce."""
EXACT = ("nfe", "passes", "flops", "flops_per_step")
"""Floating-point numbers that are counts."""
ROUNDED = ("codes_used",)
"""Counts that depend on rounding."""
Unit = tuple[Any, Any]
"""What pairs the runs of two sides: training seed and sampling seed, or position and 0."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number, or one fact, of a benchmark's records."""

    name: str
    """Such as "evaluate-xs 4 fid"."""
    metric: str
    """Last part of the name: what says which differences matter."""
    group: str
    """Cells whose scatter is pooled have the same."""
    values: Mapping[Unit, float] | None = None
    """Measured values by seeds; None: a fact."""
    fact: Any = None

    @property
    def mean(self) -> float:
        return math.fsum(self.values.values()) / len(self.values)


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
        test = f"difference up to {self.reached:.3g}, margin {self.margin:.3g}"
        return f"{self.cell}: {self.ours:.5g}, was {self.theirs:.5g} ({test}{self.note and f'; {self.note}'})"


@dataclass
class Comparison:
    """All verdicts of one benchmark, and the cells that only one side has."""

    verdicts: list[Verdict] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Cells of the reference that have not run here."""
    extra: list[str] = field(default_factory=list)

    def of(self, status: str) -> list[Verdict]:
        return [v for v in self.verdicts if v.status == status]


def cells_of(records: Mapping[str, Record]) -> dict[str, Cell]:
    """All cells of a benchmark's records, by name."""
    found = {}
    for stage, record in records.items():
        facts = _settings(record)
        found[f"{stage} settings"] = Cell(f"{stage} settings", "settings", "", fact=facts)
        fitted = record["settings"].get("autoencoder", {}).get("kind") == "kmeans"  # a codebook of this machine's own
        results = {k: v for k, v in record["results"].items() if not (fitted and k == "weights_sha256")}
        for path, value in _cells(results):
            name = " ".join((stage, *path))
            group = " ".join((stage.split("-")[0], *(p for p in path[1:] or path)))
            if isinstance(value, dict):
                found[name] = Cell(name, _metric(path), group, values=value)
            else:
                found[name] = Cell(name, path[-1], group, fact=value)
    return found


def _settings(record: Record) -> dict[str, Any]:
    """What a record was made with, without what each machine makes itself: a trained extractor's checksum."""
    settings = dict(record["settings"])
    identity = settings.get("extractor_identity") or {}
    if not identity.get("published", False):
        settings["extractor_identity"] = {k: v for k, v in identity.items() if k != "sha256"}
    keys = ("benchmark", "dry_run", "weights", "reference", "scale")
    return {**{k: record.get(k) for k in keys}, **settings}


def _cells(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, values by seeds or a fact) of everything in a record's results that a repetition must show again."""
    if isinstance(tree, Mapping):
        if "runs" in tree:
            yield from _runs(tree, path)
        elif "mean" in tree:
            values = tree.get("values", [tree["mean"]])
            yield path, {(i, 0): float(v) for i, v in enumerate(values)}
        else:
            for key, value in tree.items():
                own_bytes = key == "sha256" and not tree.get("published", True)
                trained = key == "sha256" and "holdout_accuracy" in tree
                if key not in COSTS and not own_bytes and not trained:
                    yield from _cells(value, (*path, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, Mapping) and "step" in item for item in tree):
        for item in tree:
            yield from _cells({k: v for k, v in item.items() if k != "step"}, (*path, f"step {item['step']}"))
    elif path[-1] in ROUNDED or (isinstance(tree, float) and path[-1] not in EXACT):
        yield path, {(0, 0): float(tree)}
    else:
        yield path, tree


def _runs(scored: Record, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    tables = [(run, {k: v for k, v in run.items() if k not in KEYS}) for run in scored["runs"]]
    for curve in scored.get("fid_by_images", ()):
        tables.append((curve, {f"fid of {n} images": v for n, v in curve["fid"].items()}))
    found: dict[str, dict[Unit, Any]] = {}
    for run, metrics in tables:
        for metric, value in metrics.items():
            found.setdefault(metric, {})[run["train_seed"], run["sample_seed"]] = value
    for name, values in found.items():
        if all(v is None for v in values.values()):
            yield (*path, name), "not measured"
        elif not all(isinstance(v, (int, float)) for v in values.values()):
            yield (*path, name), sorted(map(str, values.items()))
        else:
            yield (*path, name), values
    yield from (((*path, k), v) for k, v in scored.items() if k not in ("runs", "summary", "fid_by_images"))


def _metric(path: tuple[str, ...]) -> str:
    return path[-1].split(" of ")[0]


def compare(ours: Mapping[str, Record], theirs: Mapping[str, Record]) -> Comparison:
    """Verdicts on all cells of two sets of records of one benchmark, by stage; see the rule above."""
    mine, reference = cells_of(ours), cells_of(theirs)
    found = Comparison([], [n for n in reference if n not in mine], [n for n in mine if n not in reference])
    pairs = [(mine[name], reference[name]) for name in reference if name in mine]
    scatter = _scatter(pairs)
    distances = {m: _least(_distance(side, base) for side in (mine, reference)) for m, base in BY_DISTANCE.items()}
    for a, b in pairs:
        if a.values is None or b.values is None or set(a.values) != set(b.values):
            found.verdicts.append(_fact(a, b))
        elif a.values == b.values:
            found.verdicts.append(Verdict(a.name, IDENTICAL, a.mean, b.mean))
        else:
            found.verdicts.append(equivalence(a, b, scatter[a.group], distances.get(a.metric)))
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
    run: float | None
    """Standard deviation of one run, of the side where it is smaller; None: one run."""


def _scatter(pairs: Iterable[tuple[Cell, Cell]]) -> dict[str, Scatter]:
    groups: dict[str, list[tuple[Cell, Cell]]] = {}
    for a, b in pairs:
        if a.values is not None and b.values is not None and set(a.values) == set(b.values):
            groups.setdefault(a.group, []).append((a, b))
    found = {}
    for name, cells in groups.items():
        differences = [seed_variances(_by_seed(_difference(a, b))) for a, b in cells]
        sides = [[seed_variances(_by_seed(c.values)) for c in side] for side in zip(*cells, strict=True)]
        many = any(len(a.values) > 1 for a, _ in cells)
        found[name] = Scatter(
            _mean(v for v, _ in differences),
            _mean(v for _, v in differences),
            sum(len(a.values) - 1 for a, _ in cells),
            min(math.sqrt(_mean(v for v, _ in s) + _mean(v for _, v in s)) for s in sides) if many else None,
        )
    return found


def equivalence(a: Cell, b: Cell, scatter: Scatter, distance: float | None) -> Verdict:
    """Two one-sided tests of two cells' paired values."""
    margin = _margin(a, b, scatter, distance)
    values = _difference(a, b)
    difference = abs(math.fsum(values.values()) / len(values))
    if len(values) == 1:
        reached, note = 2 * difference, "one value"
    else:
        by_seed = _by_seed(values)
        between, within = (v or 0.0 for v in seed_variances(by_seed))
        samples = len(next(iter(by_seed.values())))
        variance = max(between, scatter.between) / len(by_seed) + max(within, scatter.within) / samples
        half = float(stdtrit(scatter.freedom, 1 - LEVEL)) * math.sqrt(variance)
        reached, note = difference + half, ""
        if difference < margin <= reached:
            note = "too much scatter to tell"
    return Verdict(a.name, REPRODUCED if reached < margin else DIFFERS, a.mean, b.mean, margin, reached, note)


def _margin(a: Cell, b: Cell, scatter: Scatter, distance: float | None) -> float:
    most = matters(a.metric, (abs(a.mean) + abs(b.mean)) / 2, distance)
    return most if scatter.run is None else min(most, max(SPREADS * scatter.run, most / 4))


def matters(metric: str, value: float, distance: float | None) -> float:
    """Smallest difference of a metric that matters.

    Args:
        metric: such as "fid".
        value: its size.
        distance: from held-out images to class shuffle; None: not measured.
    """
    if metric in ABSOLUTE:
        return ABSOLUTE[metric]
    return max(OF_VALUE * value, OF_DISTANCE * (distance or 0.0))


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
