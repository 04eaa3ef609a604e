"""benchmarks/claims.yaml: what the paper concludes, and the comparisons that each conclusion is held against."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from pathlib import Path

from emigm.config.errors import check
from emigm.config.parsing import config, known, parse, read_yaml

FILE = Path("benchmarks/claims.yaml")
EXACT = {"passes": "forward passes an image", "flops": "FLOPs an image", "parameters": "parameters",
         "tokens": "tokens predicted in the first half of the steps"}  # fmt: skip
"""Counts, which have no interval. Of `tokens` the sides are quoted names of schedules."""
METRICS = {"fid": "FID", "isc": "IS"} | EXACT
"""Metric -> what texts call it."""
CELL = re.compile(r"(?:([\w-]+)/)?(?:(\w+) at )?(\w+)(?: after (\d+)%)?", re.ASCII)


@dataclass(frozen=True)
class Cell:
    """A model at one sampling configuration."""

    benchmark: str
    size: str
    budget: str
    snapshot: float | None = None
    """Share of the training after which the weights were kept; None: its end, scored on all images."""


@dataclass(frozen=True)
class Comparison:
    """A formula such as "s at 16 < xs at 16", as a weighted sum that is positive where it is true."""

    text: str
    metric: str
    terms: tuple[tuple[float, tuple[Cell | str, ...]], ...] = ()
    """Weights, and cells or rows of the paper's table ("REPA", "eMIGM-B at 128"). Of a term with several cells the best
    is chosen, on seeds that are not tested."""
    own_margin: bool = False
    """It has a factor, which replaces the smallest effect that matters."""
    keeps: bool = False
    """The left side may be worse by the smallest effect that matters."""
    steps: int | None = None
    """N, where the comparison is made at several."""

    @property
    def cells(self) -> list[Cell]:
        """Its cells that are measured."""
        return [cell for _, choice in self.terms for cell in choice if isinstance(cell, Cell)]

    @property
    def tested(self) -> bool:
        """Whether it has a p: it is neither a count, nor printed or computed."""
        return bool(self.cells) and self.metric not in EXACT


@config(kw_only=True)
class Place:
    """Where a claim is tested."""

    benchmark: str
    size: str | None = None
    """Of the sides that name none."""
    steps: tuple[int, ...] = ()
    """Values of N; a comparison that names "{N}" is made at each."""
    names: dict[str, str] = field(default_factory=dict)
    """What other names in braces stand for here."""

    def compared(self, formulas: tuple[str, ...]) -> list[Comparison]:
        """The comparisons of formulas: of each two neighbours in a chain, at each N."""
        names = self.names | {"first": min(self.steps, default=""), "last": max(self.steps, default="")}
        made = []
        for formula in formulas:
            for name, text in names.items():
                formula = formula.replace(f"{{{name}}}", str(text))
            for n in self.steps if "{N}" in formula else (None,):
                made += self._chain(formula.replace("{N}", str(n)), n)
        return made

    def _chain(self, formula: str, n: int | None) -> list[Comparison]:
        metric, _, chain = formula.rpartition(": ")
        metric = metric or "fid"
        known(f"metric in {formula!r} of {FILE}", metric, METRICS)
        parts = [part.strip() for part in re.split("(<=|<|>)", chain)]
        need(len(parts) > 2, f"{formula!r} compares nothing: write two sides with <, <= or > between them")
        made = []
        for left, order, right in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
            factor, _, alone = right.rpartition(" * ")
            sign = 1.0 if order == ">" else -1.0
            terms = [*self._side(left, sign), *self._side(alone, -sign * float(factor or 1))]
            text = f"{'' if metric == 'fid' else f'{METRICS[metric]}: '}{left} {order} {right}".replace('"', "")
            made.append(Comparison(text, metric, tuple(terms), bool(factor), order == "<=", n))
        return made

    def _side(self, text: str, weight: float) -> list[tuple[float, tuple[Cell | str, ...]]]:
        """ "s at 16", "a - b", "a or b" or a quoted row of the paper's table, with the weights of its terms."""
        weights = (weight, -weight)
        need(text.count(" - ") < 2, f"{text!r} is no side of a comparison: write at most one difference")
        terms = [tuple(map(self.cell, term.split(" or "))) for term in text.split(" - ")]
        return list(zip(weights, terms, strict=False))

    def cell(self, text: str) -> Cell | str:
        """One cell or row by its name."""
        if text.startswith('"'):
            return text.strip('"')
        match = CELL.fullmatch(text)
        need(match, f"{text!r} is no side of a comparison: write benchmark/size at configuration after 50%")
        benchmark, size, budget, share = match.groups()
        need(size or self.size, f"{text!r} names no size, nor does its place")
        return Cell(benchmark or self.benchmark, size or self.size, budget, share and int(share) / 100)


@config(kw_only=True)
class Claim:
    """A conclusion of the paper and its tests, all of which must hold."""

    id: str
    source: str
    """Figure, table or section of the paper."""
    claim: str
    """A clause that can follow "that": no capital in front, no full stop."""
    setting: str
    """What all sides have in common."""
    tests: str
    limits: str
    """What its comparisons can show here, and what they cannot refute."""
    at: tuple[Place, ...]
    given: tuple[str, ...] = ()
    """What must hold first (at the same N, where both name it); else only what is contrary counts there."""
    compare: tuple[str, ...] = ()
    question: bool = False
    """Asked by this project, not concluded by the paper: adjusted among the questions, and left out of the tally."""
    front: bool = False
    """One of the few that the front page names."""

    def __post_init__(self):
        need(self.at and self.compare, f"claim {self.id} has no place (at), or no test (compare)")
        for place in self.at:
            self.cells(place)

    def cells(self, place: Place) -> list[Cell]:
        """Every cell that its tests read at a place, once each."""
        return list(dict.fromkeys(c for one in place.compared(self.given + self.compare) for c in one.cells))


@config(kw_only=True)
class Planned:
    """What was known before the runs of one kind of data began, for the power analysis."""

    seeds: int
    span: float
    """FID of class shuffle minus that of held-out images."""
    spread: float
    """Standard deviation of a model's FID over training seeds."""
    spreads: dict[str, float] = field(default_factory=dict)
    """Exceptions, by size."""


@config(kw_only=True)
class Claims:
    """benchmarks/claims.yaml."""

    alpha: float
    """Holm's adjusted p must be below it."""
    smallest_effect: float
    """The smallest effect that matters, relative to the span from held-out images to class shuffle."""
    well_trained: float
    """Greatest context ratio of a model that counts as trained well past the threshold."""
    plateau: float
    """Least slope of log FID over log steps in the last quarter of the training."""
    reported_spread: float
    """Relative standard deviation of a FID over training runs, where a side is one run."""
    grounds: dict[str, tuple[str, ...]]
    """Data, as the text names it -> the benchmarks on it."""
    planned: dict[str, Planned] = field(default_factory=dict)
    """By data."""
    claims: tuple[Claim, ...]
    amendments: dict[datetime.date, str] = field(default_factory=dict)
    """Changes of claims, thresholds or settings after they had been fixed, with their reasons."""

    def __post_init__(self):
        for name in ("alpha", "smallest_effect", "well_trained", "reported_spread"):
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
    check(fulfilled, f"{FILE}: {message}")


def load_claims(root: Path) -> Claims:
    """Read benchmarks/claims.yaml; ConfigError names a key that is unknown, missing or of a wrong type."""
    return parse(Claims, read_yaml(root / FILE), str(FILE))
