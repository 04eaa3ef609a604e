"""benchmarks/claims.yaml: what the paper concludes, and the comparisons that each conclusion is held against."""

# ruff: noqa: RUF001
# × and − are meant.
from __future__ import annotations

import datetime
import math
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

import yaml

from emigm.config.errors import ConfigError
from emigm.config.parsing import config, known, parse
from emigm.model.schedules import SCHEDULES
from emigm.paper.reported import reported

FILE = Path("benchmarks/claims.yaml")
EXACT = {"passes": "forward passes of an image", "parameters": "parameters"}
"""Counts, which have no interval."""
METRICS = {"fid": "FID", "seconds_per_image": "seconds for one image"} | EXACT
Expect = Literal["lower", "higher"]


@config(kw_only=True)
class Cells:
    """One side of a comparison: a size at one budget. "{N}", "{first}" and "{last}" in the budget stand for a place's
    numbers of steps."""

    budget: str
    size: str | None = None
    """None: the place's own."""
    benchmark: str | None = None
    """None: the place's own."""
    snapshot: float | None = None
    """Share of the training after which the weights were kept; None: its end, scored on all images."""

    def label(self, home: str) -> str:
        """ "emigm at 16", with its benchmark where that is not `home`."""
        where = "" if self.benchmark == home else f"{self.benchmark}: "
        when = "" if self.snapshot is None else f" after {self.snapshot:.0%} of the training"
        return f"{where}{self.size} at {self.budget}{when}"


@config(kw_only=True)
class Reported:
    """Another method's row of Table 2 (resolution 256) or 3 (512), as the paper prints it."""

    resolution: int
    method: str

    def value(self, metric: str) -> float:
        """Its FID, NFE (for `passes`) or parameters."""
        rows = reported(self.resolution).query("family != 'Ours'")
        known("reported method", self.method, rows["method"].unique())
        (row,) = rows[rows["method"] == self.method].itertuples()
        if metric == "passes":
            return math.prod(float(part) for part in row.nfe.split("x"))
        if metric == "parameters":
            if not row.params:
                raise ConfigError(f"{FILE}: the paper reports no parameters of {self.method}")
            return float(row.params[:-1]) * {"M": 1e6, "B": 1e9}[row.params[-1]]
        return float(row.fid)


@config(kw_only=True)
class Difference:
    """`left` is lower (or higher) than `factor` × what it is held against."""

    left: Cells
    expect: Expect
    right: Cells | None = None
    reported: Reported | None = None
    beyond: tuple[Cells, Cells] | None = None
    """The difference must exceed that of these two in the expected direction."""
    factor: float = 1.0
    """Other than 1: the margin that the claim itself allows, in place of the smallest effect that matters."""
    metric: str = "fid"

    def __post_init__(self):
        known(f"metric of {FILE}", self.metric, METRICS)
        need((self.right is None) != (self.reported is None), "a difference needs either right or reported")

    @property
    def sides(self) -> list[tuple[float, Cells]]:
        """Own sides with their weights in the effect."""
        right, beyond = [self.right] if self.right else [], self.beyond or ()
        weights = [1.0, *[-self.factor] * len(right), *(-1.0, 1.0)[: len(beyond)]]
        return list(zip(weights, [self.left, *right, *beyond], strict=True))

    @property
    def by_steps(self) -> bool:
        """Whether a budget names N, so that there is a comparison for each."""
        return any("{N}" in cells.budget for _, cells in self.sides)

    def label(self, home: str) -> str:
        """The comparison as a formula."""
        factor = f"{self.factor:g} × " if self.factor != 1 else ""
        other = self.right.label(home) if self.right else f"{self.reported.method} (as reported)"
        text = f"{self.left.label(home)} − {factor}{other}"
        return f"({text}) − ({self.beyond[0].label(home)} − {self.beyond[1].label(home)})" if self.beyond else text

    @property
    def against(self) -> str:
        """The comparison in a few words: "emigm against mar at 4"."""
        left, right = self.left, self.right
        if self.reported:
            return f"{left.size} at {left.budget} against {self.reported.method} as reported"
        if self.beyond:
            return f"gain at {left.budget} beyond that at {self.beyond[0].budget}"
        if left.size == right.size:
            return f"{left.budget} against {right.budget}"
        here = "" if left.budget == right.budget else f" at {left.budget}"
        return f"{left.size}{here} against {right.label(right.benchmark)}"

    def at(self, place: Place) -> list[tuple[int | None, Difference]]:
        """N (None: it names none) and the comparison with N and the place's own names filled in, for each N."""

        def fill(cells: Cells, n: int | None) -> Cells:
            names = {"N": n, "first": min(place.steps, default=""), "last": max(place.steps, default="")}
            size, benchmark = cells.size or place.size, cells.benchmark or place.benchmark
            return replace(cells, budget=cells.budget.format(**names), size=size, benchmark=benchmark)

        filled = []
        for n in place.steps if self.by_steps else (None,):
            right, beyond = self.right and fill(self.right, n), self.beyond and tuple(fill(c, n) for c in self.beyond)
            filled.append((n, replace(self, left=fill(self.left, n), right=right, beyond=beyond)))
        return filled


@config(kw_only=True)
class Trend:
    """FID falls along the sizes with the logarithm of their training FLOPs."""

    sizes: tuple[str, ...]
    budget: str


@config(kw_only=True)
class Place:
    """Where a claim is tested."""

    benchmark: str
    size: str | None = None
    steps: tuple[int, ...] = ()
    """Values of N; a comparison that names "{N}" is made at each, and has a verdict for each."""
    tokens: int | None = None
    """L, for what is computed."""


@config(kw_only=True)
class Claim:
    """A conclusion of the paper and its tests, all of which must hold."""

    id: str
    source: str
    """Figure or table of the paper."""
    claim: str
    """A clause that can follow "that": no capital in front, no full stop."""
    at: tuple[Place, ...]
    given: tuple[Difference, ...] = ()
    """What must hold first (at the same N, where both name it); else the claim is not testable there."""
    differences: tuple[Difference, ...] = ()
    trends: tuple[Trend, ...] = ()
    sweep: tuple[str, ...] = ()
    """Budgets: the best of the inner ones, chosen on some seeds, has a lower FID than both ends on the others."""
    reveals: str | None = None
    """A schedule that reveals fewer tokens in the first half of the steps than the others; computed, not measured."""
    question: bool = False
    """Asked by this project, not concluded by the paper: judged alike, and left out of the tally."""
    note: str | None = None

    def __post_init__(self):
        tests = self.differences or self.trends or self.sweep or self.reveals
        need(
            self.at and tests, f"claim {self.id} has no place (at), or no test (differences, trends, sweep or reveals)"
        )
        budgets = "".join(cells.budget for one in (*self.given, *self.differences) for _, cells in one.sides)
        for place in self.at:
            need("{" not in budgets or place.steps, f"claim {self.id} names {{N}}, but no steps on {place.benchmark}")
        need(
            not self.sweep or len(self.sweep) > 2, f"claim {self.id}: a sweep needs two ends, and a budget between them"
        )
        if self.reveals:
            known(f"schedule of {FILE}", self.reveals, SCHEDULES)

    def cells(self, place: Place) -> list[Cells]:
        """Every cell that its tests read at a place, once each."""
        differences = [one for wanted in (*self.given, *self.differences) for _, one in wanted.at(place)]
        named = [(size, trend.budget) for trend in self.trends for size in trend.sizes]
        named += [(place.size, budget) for budget in self.sweep]
        cells = [cells for one in differences for _, cells in one.sides]
        cells += [Cells(budget=budget, size=size, benchmark=place.benchmark) for size, budget in named]
        return list(dict.fromkeys(cells))


@config(kw_only=True)
class Amendment:
    """A change of claims, thresholds or settings after they had been fixed, with its reason."""

    date: datetime.date
    text: str


@config(kw_only=True)
class Claims:
    """benchmarks/claims.yaml."""

    level: float
    """Of the confidence intervals."""
    alpha: float
    """Holm's adjusted p must be below it."""
    smallest_effect: float
    """The smallest effect that matters, relative to what a side is held against."""
    well_trained: float
    """Greatest context ratio of a model that counts as trained well past the threshold."""
    reported_spread: float
    """Relative standard deviation of a FID over training runs, where both sides are one run."""
    grounds: dict[str, tuple[str, ...]]
    """Data, as the text names it -> the benchmarks on it."""
    claims: tuple[Claim, ...]
    amendments: tuple[Amendment, ...] = field(default=())

    def __post_init__(self):
        for name in ("level", "alpha", "smallest_effect", "well_trained", "reported_spread"):
            need(0 < getattr(self, name) < 1, f"{name} = {getattr(self, name)} is outside (0, 1)")
        ids = [claim.id for claim in self.claims]
        for claim in self.claims:
            need(ids.count(claim.id) == 1, f"two claims have the id {claim.id}; rename one")
            for place in claim.at:
                self.ground(place.benchmark)

    def ground(self, benchmark: str) -> str:
        """The data of a benchmark, as the text names it."""
        data = next((data for data, names in self.grounds.items() if benchmark in names), None)
        need(data, f"grounds names no data of benchmark {benchmark}; add it there")
        return data


def need(fulfilled: object, message: str) -> None:
    """Raise ConfigError about the file where a condition is not fulfilled."""
    if not fulfilled:
        raise ConfigError(f"{FILE}: {message}")


def load_claims(root: Path) -> Claims:
    """Read benchmarks/claims.yaml; ConfigError names a key that is unknown, missing or of a wrong type."""
    path = root / FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; restore it (git checkout {FILE})")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: not valid YAML: {e}") from e
    return parse(Claims, tree, str(FILE))
