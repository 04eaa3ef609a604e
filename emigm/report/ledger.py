"""benchmarks/claims.yaml: what the paper concludes, and the comparison that each conclusion is held against."""

# ruff: noqa: RUF001
# × and − are meant.
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from emigm.config.errors import ConfigError
from emigm.config.parsing import known, parse
from emigm.model.schedules import SCHEDULES
from emigm.report.results import METRICS, reported

FILE = Path("benchmarks/claims.yaml")
EXACT = {"passes": "forward passes of an image", "parameters": "parameters"}
"""Counts, which have no interval."""
NAMES = METRICS | EXACT | {"seconds_per_image": "seconds for one image"}
OVER = {"flops": "training FLOPs", "parameters": "parameters"}
Expect = Literal["lower", "higher"]


@dataclass(frozen=True)
class Cells:
    """One side of a comparison: a size at one or several budgets, of which the mean is taken."""

    size: str
    budgets: tuple[str, ...]
    benchmark: str | None = None
    """None: the claim's own."""

    def __post_init__(self):
        if not self.budgets:
            raise ConfigError(f"{FILE}: budgets of {self.size} is empty; name at least one")

    def label(self, home: str) -> str:
        where = "" if self.benchmark in (None, home) else f"{self.benchmark}: "
        return f"{where}{self.size} at {', '.join(self.budgets)}"


@dataclass(frozen=True)
class Reported:
    """Another method's row of Table 2 (resolution 256) or 3 (512), as the paper prints it."""

    resolution: int
    method: str

    def value(self, metric: str) -> float:
        """Its FID, NFE (for `passes`) or parameters."""
        rows = reported()
        rows = rows[(rows["resolution"] == str(self.resolution)) & (rows["family"] != "Ours")]
        known("reported method", self.method, rows["method"].unique())
        (row,) = rows[rows["method"] == self.method].itertuples()
        if metric == "passes":
            return math.prod(float(part) for part in row.nfe.split("x"))
        if metric == "parameters":
            if not row.params:
                raise ConfigError(f"{FILE}: the paper reports no parameters of {self.method}")
            return float(row.params[:-1]) * {"M": 1e6, "B": 1e9}[row.params[-1]]
        return float(row.fid)


@dataclass(frozen=True)
class Pair:
    """Two sides, the first minus the second."""

    left: Cells
    right: Cells


@dataclass(frozen=True)
class Difference:
    """`left` is lower (or higher) than `factor` × what it is held against."""

    left: Cells
    expect: Expect
    right: Cells | None = None
    reported: Reported | None = None
    beyond: Pair | None = None
    """The difference must exceed this one in the expected direction."""
    factor: float = 1.0
    metric: str = "fid"

    def __post_init__(self):
        known(f"metric of {FILE}", self.metric, NAMES)
        if (self.right is None) == (self.reported is None):
            raise ConfigError(f"{FILE}: a difference needs either right or reported")
        if self.beyond is not None and (self.reported is not None or self.factor != 1):
            raise ConfigError(f"{FILE}: beyond goes with right alone, without reported or factor")
        if self.factor <= 0:
            raise ConfigError(f"{FILE}: factor = {self.factor}: must be above 0")
        if self.reported is not None and self.metric not in ("fid", *EXACT):
            raise ConfigError(f"{FILE}: the paper reports no {self.metric} of other methods")

    @property
    def groups(self) -> list[tuple[float, Cells]]:
        """Own sides with their weights in the effect."""
        found = [(1.0, self.left)] + ([(-self.factor, self.right)] if self.right else [])
        return found + ([(-1.0, self.beyond.left), (1.0, self.beyond.right)] if self.beyond else [])

    def label(self, home: str) -> str:
        factor = f"{self.factor:g} × " if self.factor != 1 else ""
        other = self.right.label(home) if self.right else f"{self.reported.method} (as reported)"
        text = f"{self.left.label(home)} − {factor}{other}"
        return f"({text}) − ({self.beyond.left.label(home)} − {self.beyond.right.label(home)})" if self.beyond else text


@dataclass(frozen=True)
class Trend:
    """A metric falls (or rises) along the sizes."""

    sizes: tuple[str, ...]
    budgets: tuple[str, ...]
    over: Literal["flops", "parameters"]
    """What the slope is taken over, on a logarithmic scale."""
    expect: Expect
    metric: str = "fid"

    def __post_init__(self):
        known(f"metric of {FILE}", self.metric, METRICS)
        if len(self.sizes) < 2 or not self.budgets:
            raise ConfigError(f"{FILE}: a trend needs two sizes and one budget at least")


@dataclass(frozen=True)
class Reveals:
    """In the first half of the steps `schedule` reveals fewer tokens than the others; computed, not measured."""

    schedule: str
    steps: int
    tokens: int

    def __post_init__(self):
        known(f"schedule of {FILE}", self.schedule, SCHEDULES)


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper and its tests, all of which must hold."""

    id: str
    source: str
    """Figure or table of the paper."""
    claim: str
    benchmark: str
    """The page it stands on."""
    differences: tuple[Difference, ...] = ()
    trend: Trend | None = None
    reveals: Reveals | None = None
    note: str | None = None

    def __post_init__(self):
        if not (self.differences or self.trend or self.reveals):
            raise ConfigError(f"{FILE}: claim {self.id} has no test; add differences, trend or reveals")


@dataclass(frozen=True)
class Ledger:
    """benchmarks/claims.yaml."""

    level: float
    """Of the confidence intervals."""
    max_width: float
    """Width of an interval over the size of the effect, above which it decides nothing."""
    claims: tuple[Claim, ...]

    def __post_init__(self):
        if not 0 < self.level < 1:
            raise ConfigError(f"{FILE}: level = {self.level} is outside (0, 1)")
        if self.max_width <= 0:
            raise ConfigError(f"{FILE}: max_width = {self.max_width}: must be above 0")
        ids = [claim.id for claim in self.claims]
        for name in ids:
            if ids.count(name) > 1:
                raise ConfigError(f"{FILE}: two claims have the id {name}; rename one")


def load_ledger(root: Path) -> Ledger:
    """Read benchmarks/claims.yaml; ConfigError names a key that is unknown, missing or of a wrong type."""
    path = root / FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; restore it (git checkout {FILE})")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: not valid YAML: {e}") from e
    return parse(Ledger, tree, str(FILE))
