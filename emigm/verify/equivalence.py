"""Every number of a benchmark's records as a cell, a fact or measured, and whether two machines' cells say the same. No
torch. A cell's name is such as "evaluate-xs 4 fid": the stage, then keys of its results.

**Facts** (counts, settings, whatever does not depend on rounding) must be identical.

**Metrics** are decided by one test of equivalence each (two one-sided t tests at 5 %; Schuirmann, 1987), over the cells
that are not identical. Both sides have the same seeds, so differences are paired by them: what the seeds decide alike
cancels. A value is the mean difference, in margins, of one (model, training seed), over its sampling seeds and sampling
configurations; of released weights a sampling seed stands for the training seed. The 90 % interval of the values' mean
decides: *reproduced* where it lies within one margin, and no model's and no sampling configuration's mean reaches
`LOOSE` margins, so that opposite changes do not cancel; *differs* where it lies wholly outside; else *undecided*. Of
one value nothing is known of the error: its interval reaches from a `FAR`-th of the difference to twice the difference.

**The margin** is the smallest difference that `matters`, but no more than `SPREADS` standard deviations of a single run
(pooled over the metric; of the side where it is smaller), and then a quarter of what matters at least, or `OF_VALUE` of
the value where that is less. A cell by itself is *identical*, *reproduced* (its means lie within its margin) or
*undecided* (beyond it); measured cells are decided by their metric alone.

**Not judged**: speed; pictures, and what is measured of the few images of one; the scores of snapshots, which move from
seed to seed by up to ten margins.

**How often it errs**: simulated trainings of the default benchmark (5 models; FID's standard deviation 0.1 over
training seeds, 0.06 over sampling seeds) on two machines that have nothing in common but their settings; 100 pairs of
one seed each (of three), where FIDs are worse by so many tenths of the distance between the baselines beside:

    worse                   reproduced   differs
    none                    55 (100)     0 (0)
    all, by 1               0 (0)        100 (100)
    XS -1.5 to H +1.5       0 (0)        0 (0)
    H alone, by 2           0 (0)        0 (0)

The others are undecided. `tests/test_equivalence.py` holds fewer such pairs against these numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from emigm.records.record import Record, differing

LEVEL = 0.05
"""Of each of the two one-sided tests."""
LOOSE, FAR, SPREADS = 1.5, 6, 4
SIDES = ("_ours", "_theirs")
IDENTICAL, REPRODUCED, UNDECIDED, DIFFERS = "identical", "reproduced", "undecided", "differs"
STATUSES = (IDENTICAL, REPRODUCED, UNDECIDED, DIFFERS)
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
COSTS = ("seconds", "images_per_second", "seconds_per_image", "peak_memory", "process_seconds", "compiled_graphs")
"""Keys that say how fast a machine is, which no other has to reproduce."""
PICTURED = ("samples", "from_off")
"""Keys of what the reveal stage measures of the images of its pictures."""
EXACT = ("nfe", "passes", "flops", "flops_per_step")
"""Floating-point numbers that are counts."""
ROUNDED = ("codes_used",)
"""Counts that depend on rounding."""
COLUMNS = ("cell", "metric", "group", "size", "seed", "sample", "value")
Path = tuple[str, ...]
"""Keys that lead to a value of a record's results."""


class Measured(dict[tuple[Any, Any], float]):
    """Values by what pairs them with those of another side: training seed and sampling seed; position, or sampling seed
    of released weights, and 0."""


@dataclass(frozen=True)
class Verdict:
    """What the comparison of a cell gave; `margin` is None of a fact."""

    cell: str
    status: str
    ours: Any
    theirs: Any
    margin: float | None = None

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
    """What the test of a metric, over its cells that are not identical, gave: mean difference in margins of so many
    values (pairs of model and training seed), its 90 % interval, and the models and sampling configurations whose own
    means are too large, with these."""

    name: str
    status: str
    cells: int
    values: int
    mean: float
    low: float
    high: float
    parts: str = ""

    @property
    def share(self) -> float:
        return max(-self.low, self.high)

    def __str__(self) -> str:
        interval = f"mean difference {self.mean:+.3f} margins (90% interval {self.low:+.3f} to {self.high:+.3f})"
        of = f"{self.cells} cells, {self.values} values of a model and a training seed"
        return f"{self.name}: {interval}{self.parts and f'; {self.parts}'}; {of}"


@dataclass
class Comparison:
    """All verdicts of one benchmark, the metrics of which a cell is not identical, and the cells that only one side
    has: those of the reference that have not run here (`missing`), and ours (`extra`)."""

    verdicts: list[Verdict] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        outcomes = {m.status for m in self.metrics}
        if self.missing or DIFFERS in outcomes or any(v.status == DIFFERS for v in self.verdicts):
            return DIFFERS
        return UNDECIDED if UNDECIDED in outcomes else REPRODUCED


def compare(ours: Mapping[str, Record], theirs: Mapping[str, Record]) -> Comparison:
    """Verdicts on all cells of two sets of records of one benchmark, by stage; see the rule above."""
    (facts, mine), (before, reference) = cells_of(ours), cells_of(theirs)
    comparison = Comparison(missing=[n for n in before if n not in facts], extra=[n for n in facts if n not in before])
    measured, differ = set(mine["cell"]) & set(reference["cell"]), set()
    for name in [name for name in before if name in facts]:
        if first := next(differing(facts[name], before[name]), None):
            differ.add(name)
            comparison.verdicts.append(Verdict(f"{name} {first[0]}".strip(), DIFFERS, *first[1:]))
        elif name not in measured:
            comparison.verdicts.append(Verdict(name, IDENTICAL, facts[name], before[name]))
    distances = {m: min(_distance(mine, base), _distance(reference, base)) for m, base in BY_DISTANCE.items()}
    values = mine.merge(reference[["cell", "seed", "sample", "value"]], on=["cell", "seed", "sample"], suffixes=SIDES)
    values = values[~values["cell"].isin(differ)]
    for group, of_group in values.groupby("group", sort=False):
        cells = _cells(of_group, distances)
        comparison.verdicts += [Verdict(**c) for c in cells.rename_axis("cell").reset_index().to_dict("records")]
        changed = of_group[of_group["cell"].map(cells["status"]) != IDENTICAL]
        if not changed.empty:
            differences = (changed["value_ours"] - changed["value_theirs"]) / changed["cell"].map(cells["margin"])
            comparison.metrics.append(equivalence(group, changed.assign(difference=differences)))
    return comparison


def _cells(values: pd.DataFrame, distances: Mapping[str, float]) -> pd.DataFrame:
    """Status, means and margin of the cells of one group, from their paired values."""
    by_cell, sides = values.groupby("cell", sort=False), ["value_ours", "value_theirs"]
    variances = by_cell[sides].var().mean()  # of cells of one run there is none
    deviation = math.sqrt(variances.min()) if variances.notna().all() else math.inf
    cells = by_cell[sides].mean().set_axis(["ours", "theirs"], axis=1)
    size, metric = by_cell[sides].agg(lambda v: v.abs().mean()).mean(axis=1), values["metric"].iloc[0]
    most = size.map(lambda value: matters(metric, value, distances.get(metric, math.inf)))
    cells["margin"] = np.minimum(most, np.maximum(SPREADS * deviation, np.minimum(most / 4, OF_VALUE * size)))
    near = (cells["ours"] - cells["theirs"]).abs() < cells["margin"]
    same = (values["value_ours"] == values["value_theirs"]).groupby(values["cell"], sort=False).all()
    cells["status"] = np.select([same, near], [IDENTICAL, REPRODUCED], UNDECIDED)
    return cells


def equivalence(group: str, changed: pd.DataFrame) -> Metric:
    """The test of one metric over its cells that are not identical, from their paired values with the `difference` of
    each in margins."""
    values = changed.groupby(["size", "seed"])["difference"].mean()
    mean, n = float(values.mean()), len(values)
    half = float(stats.t.ppf(1 - LEVEL, n - 1) * stats.sem(values)) if n > 1 else 0.0
    low, high = (mean - half, mean + half) if n > 1 else sorted((mean / FAR, 2 * mean))
    configuration = changed["cell"].str.partition(" ")[2]
    means = pd.concat([changed.groupby(part)["difference"].mean() for part in ("size", configuration)])
    parts = ", ".join(f"{part} alone {m:+.2f}" for part, m in means.items() if abs(m) >= LOOSE)
    status = DIFFERS if low >= 1 or high <= -1 else REPRODUCED if max(-low, high) < 1 and not parts else UNDECIDED
    return Metric(group, status, changed["cell"].nunique(), n, mean, low, high, parts)


def matters(metric: str, value: float, distance: float) -> float:
    """Smallest difference of a metric, such as "fid", that matters, at its `value`; `distance` is that from held-out
    images to class shuffle, infinite where it was not measured."""
    if metric in ABSOLUTE:
        return ABSOLUTE[metric]
    return OF_DISTANCE * distance if 0 < distance < math.inf else OF_VALUE * value


def _distance(measured: pd.DataFrame, metric: str) -> float:
    """From held-out images to class shuffle; infinite where one was not measured."""
    means = measured.groupby("cell")["value"].mean()
    ends = [means.get(f"reference baselines {name} {metric}", math.inf) for name in ("holdout", "class_shuffle")]
    return abs(ends[0] - ends[1]) if max(ends) < math.inf else math.inf


def cells_of(records: Mapping[str, Record]) -> tuple[dict[str, Any], pd.DataFrame]:
    """All cells of a benchmark's records.

    Returns:
        facts: by name; of a measured cell what its values belong to.
        measured: a row a value. `metric` says which differences matter; cells of one `group` (a metric over all models
            and sampling configurations) are decided together; `size`: whose trainings it is of; `seed` and `sample`: as
            of `Measured`.
    """
    facts, rows = {}, []
    for stage, record in records.items():
        kind, size, *_ = (*stage.split("-"), "")
        facts[f"{stage} settings"] = _settings(record)
        fitted = record["settings"].get("autoencoder", {}).get("kind") == "kmeans"  # a codebook of this machine's own
        results = {k: v for k, v in record["results"].items() if not (fitted and k == "weights_sha256")}
        for path, value in _leaves(results):
            name = " ".join((stage, *path))
            if not isinstance(value, Measured):
                facts[name] = value
            elif kind != "snapshots":  # scores before the end of training scatter too much
                group = " ".join((kind, *(p for p in path[1:] or path if not p.isdigit())))
                facts[name] = f"measured with seeds {', '.join(map(str, sorted(value)))}"
                released = kind == "evaluate" and record.get("weights") == "released"  # what is repeated is sampling
                of = (name, path[-1].split(" of ")[0], group, size)
                rows += [(*of, *((s, 0) if released else (t, s)), float(v)) for (t, s), v in value.items()]
    return facts, pd.DataFrame(rows, columns=COLUMNS)


def _settings(record: Record) -> dict[str, Any]:
    """What a record was made with, without what each machine makes itself: a trained extractor's checksum."""
    settings = dict(record["settings"])
    identity = settings.get("extractor_identity") or {}
    if not identity.get("published", False):
        settings["extractor_identity"] = {k: v for k, v in identity.items() if k != "sha256"}
    return {**{k: record.get(k) for k in ("benchmark", "dry_run", "weights", "reference")}, **settings}


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(keys, values by seeds or a fact) of everything in a record's results that a repetition must show again."""
    if isinstance(tree, Mapping):
        if "runs" in tree:
            yield from _runs(tree, path)
        elif "mean" in tree:
            yield path, Measured({(i, 0): v for i, v in enumerate(tree.get("values", [tree["mean"]]))})
        else:
            own_bytes = not tree.get("published", "holdout_accuracy" not in tree)  # of a file that each machine makes
            for key, value in by_extractor(tree).items():
                if key not in (*COSTS, *PICTURED) and not (own_bytes and key == "sha256"):
                    yield from _leaves(value, (*path, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, Mapping) and "step" in item for item in tree):
        for item in tree:
            yield from _leaves({k: v for k, v in item.items() if k != "step"}, (*path, f"step {item['step']}"))
    elif path[-1] in ROUNDED or (isinstance(tree, float) and path[-1] not in EXACT):
        yield path, Measured({(0, 0): tree})
    else:
        yield path, tree


def by_extractor(scored: Record) -> dict[str, Any]:
    """Scores, with FID by each further extractor as one of its own; that by the first one is FID itself."""
    others = list((scored.get("fid_by_extractor") or {}).items())[1:]
    rest = {key: value for key, value in scored.items() if key != "fid_by_extractor"}
    return rest | {f"fid of extractor {seed}": value for seed, value in others}


def _runs(scored: Record, path: Path) -> Iterator[tuple[Path, Any]]:
    """Of every metric of a list of runs its values by seeds, and its FIDs of fewer images."""
    metrics: dict[str, Measured] = defaultdict(Measured)
    for run in scored["runs"]:
        for metric, value in by_extractor(run).items():
            if metric not in ("train_seed", "sample_seed"):
                metrics[metric][run["train_seed"], run["sample_seed"]] = value
    for curve in scored.get("fid_by_images", ()):
        for n in sorted(curve["fid"], key=int)[:-1]:  # that of all images is the run's
            metrics[f"fid of {n} images"][curve["train_seed"], curve["sample_seed"]] = curve["fid"][n]
    for name, values in metrics.items():
        if all(v is None for v in values.values()):
            yield (*path, name), "not measured"
        else:
            measured = all(isinstance(v, (int, float)) for v in values.values())
            yield (*path, name), values if measured else sorted(map(str, values.items()))
    yield from (((*path, k), v) for k, v in scored.items() if k not in ("runs", "fid_by_images"))
