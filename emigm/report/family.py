"""Which benchmarks belong together, and what their records say by training seed: the ground of Figures 2, 3 and 7."""

# ruff: noqa: RUF001
# × and – are meant: they are the paper's notation.
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from emigm.report.results import NOT_RUN, Results, benchmarks, floors, gate_note, load, plural
from emigm.report.statistics import t_interval

FAMILIES = {"digits": {"training": "ablations", "systems": "codes", "sampling": "sampling"}}
"""Benchmark -> the ones run on its data: training choices (Figure 2, Table 1), systems with codes (Table 1), and
sampling choices (Figures 3 and 7)."""
LEVEL = 0.95
"""Of the confidence intervals."""
FLOOR_LINES = ("Class shuffle", "Held-out real images")
"""Floors drawn in the figures: what a model reaches that ignores context, and what real images reach."""


class Cell(NamedTuple):
    """One evaluated model at one sampling budget, all training seeds."""

    size: str
    budget: str
    fid: dict[int, float]
    """By training seed: the mean over sampling seeds."""
    failed: frozenset[int]
    """Training seeds that fail the context gate."""
    steps: int
    """N."""
    scale: float
    """Guidance scale."""
    passes: float
    """Forward passes of the network for an image."""

    @property
    def mean(self) -> float:
        """Mean over training seeds."""
        return math.fsum(self.fid.values()) / len(self.fid)

    @property
    def half(self) -> float:
        """Half the width of the confidence interval of `mean`; 0 where one training seed says nothing of it."""
        return t_interval(list(self.fid.values()), LEVEL).half or 0.0


@dataclass(frozen=True)
class Member:
    """What a benchmark's family has in one role."""

    asked: Results
    """The benchmark that a table or figure was asked for."""
    results: Results
    """The member's records; none where it has not run, or there is no such member."""
    role: str

    @property
    def marked(self) -> Results:
        """Whose title, notes and mark apply: a dry run's, where either is one."""
        return self.results if self.results.dry_run else self.asked

    @property
    def reason(self) -> str:
        """Why nothing is shown; empty where there are records."""
        if self.results.records:
            return ""
        if family(self.asked) is None:
            return f"{NOT_RUN}: no benchmark of {self.role} choices belongs to {self.asked.name}"
        return f"{NOT_RUN}: results/{self.results.name} holds no records"


def family(results: Results) -> dict[str, str] | None:
    """Role -> benchmark, of the family that a benchmark heads or is of; None: it has none."""
    return next((roles for head, roles in FAMILIES.items() if results.name in (head, *roles.values())), None)


def head(results: Results) -> str | None:
    """The benchmark whose figures draw the records of this one; None: it draws its own."""
    return next((name for name, roles in FAMILIES.items() if results.name in roles.values()), None)


def member(results: Results, role: str) -> Member:
    """The benchmark of a family that has a role."""
    roles = family(results)
    name = results.name if roles is None else roles[role]
    if roles is None or name not in benchmarks(results.root):
        return Member(results, Results(results.root, name, {}), role)
    return Member(results, load(name, results.root), role)


def cell(results: Results, size: str, budget: str) -> Cell | None:
    """FID by training seed of one size at one budget; None: not run."""
    runs = results.get(f"evaluate-{size}", "results", budget, "runs")
    stage = f"sample-{size}-{budget}"
    sample, passes = results.get(stage, "settings", "sample"), results.get(stage, "results", "passes")
    if not runs or sample is None or passes is None:
        return None
    fid = by_training_seed(runs, "fid")
    return Cell(size, budget, fid, failed_seeds(results, size), sample["steps"], sample["cfg_scale"], passes)


def by_training_seed(runs: list[dict[str, float]], metric: str) -> dict[int, float]:
    """Mean over sampling seeds, by training seed."""
    groups: dict[int, list[float]] = {}
    for run in runs:
        groups.setdefault(run["train_seed"], []).append(run[metric])
    return {seed: math.fsum(values) / len(values) for seed, values in sorted(groups.items())}


def ratios(results: Results, size: str) -> dict[int, float]:
    """The context gate's ratio by training seed; empty where it was not measured."""
    values = results.get(f"train-{size}", "results", "context", "ratio", "values")
    seeds = results.get(f"train-{size}", "settings", "train", "seeds")
    return dict(zip(seeds, values, strict=True)) if values and seeds else {}


def failed_seeds(results: Results, size: str) -> frozenset[int]:
    """Training seeds of a size whose ratio is above the gate's limit."""
    limit = gate_limit(results, size)
    return frozenset(seed for seed, ratio in ratios(results, size).items() if limit is not None and ratio > limit)


def gate_limit(results: Results, size: str) -> float | None:
    """Greatest ratio that passes the context gate."""
    return results.get(f"train-{size}", "settings", "gate", "max_ratio")


def floor_lines(results: Results) -> dict[str, float]:
    """FID of the floors that figures draw, by label."""
    found = floors(results)
    return {label: found[label]["fid"]["mean"] for label in FLOOR_LINES if label in found}


def gate_verdicts(results: Results, sizes: list[str]) -> str:
    """What the context gate is, and which training seeds of `sizes` fail it."""
    measured = [s for s in sizes if ratios(results, s)]
    if not measured:
        return f"Context gate: {NOT_RUN}."
    failures = [
        f"{size} ({len(bad)} of {plural(len(ratios(results, size)), 'training seed')})"
        for size in measured
        if (bad := failed_seeds(results, size))
    ]
    verdict = f"FAILED (×) by {', '.join(failures)}" if failures else "passed by every training seed shown"
    return f"{gate_note(results)} Here: {verdict}."


def interval_note(cells: list[Cell]) -> str:
    """What points and bars are."""
    numbers = sorted({len(c.fid) for c in cells})
    if not numbers:
        return ""
    n = " or ".join(map(str, numbers))
    bars = f"Bars: {LEVEL:.0%} t-intervals of the mean over training seeds (n = {n})"
    if numbers == [1]:
        bars = "No bars: one training seed"
    return f"Small marks: one training seed each, the mean over its sampling seeds. {bars}."


def clip_note(results: Results, size: str, budgets: list[str]) -> str:
    """That DDPM clips at `budgets`, where it does."""
    stages = [f"sample-{size}-{budget}" for budget in budgets]
    clips = {results.get(stage, "settings", "sample", "x0_clip") for stage in stages} - {None}
    if not clips:
        return ""
    limits = " or ".join(f"±{clip:g}" for clip in sorted(clips))
    return f"DDPM clips the predicted token at {limits} (unit latents), which the official code does not."


def training_note(results: Results) -> str:
    """On how many images and steps the models were trained, where all sizes agree."""
    pairs = {
        (results.get(f"train-{s}", "results", "images"), results.get(f"train-{s}", "settings", "train", "steps"))
        for s in results.sizes
    }
    known = [f"{images:,} images in {steps:,} steps" for images, steps in sorted(pairs - {(None, None)})]
    return f"Records: results/{results.name}; trained on {' or '.join(known)}." if known else ""
