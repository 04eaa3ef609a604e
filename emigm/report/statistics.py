"""Spreads, intervals and tests over few training and sampling seeds. No records, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq


def three_digits(value: float) -> str:
    """Three significant digits ("1.00"), and no exponent above 1000."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


class Spread(NamedTuple):
    """A mean over training and sampling seeds with its combined standard error."""

    mean: float
    error: float | None
    """Combined standard error (`combined`); None for one run."""
    train_seeds: int
    sample_seeds: int
    """Sampling seeds of each training seed."""

    @property
    def n(self) -> str:
        """Training seeds × sampling seeds of each, as tables print it."""
        return f"{self.train_seeds}×{self.sample_seeds}"  # noqa: RUF001


def combined(runs: Iterable[tuple[int, int, float]]) -> Spread:
    """Mean of (training seed, sampling seed, value) and the standard error that both kinds of seeds give it.

    error² = s_T² / T + s_S² / S: s_T is the standard deviation over T training seeds of their means over S sampling
    seeds, s_S that over the sampling seeds within a training seed (pooled); a kind with one seed contributes nothing.
    The second term guards against an s_T that is small by chance (tests/test_statistics.py: how often it is right).
    """
    groups: dict[int, list[float]] = {}
    for train, _, value in runs:
        groups.setdefault(train, []).append(value)
    if not groups:
        raise ValueError("no runs: a mean needs one at least")
    parts = [np.array(values, dtype=float) for values in groups.values()]
    means, number = np.array([part.mean() for part in parts]), min(map(len, parts))
    variances = [means.var(ddof=1) / len(parts)] if len(parts) > 1 else []
    if freedom := sum(len(part) - 1 for part in parts):
        variances.append(sum(((part - part.mean()) ** 2).sum() for part in parts) / freedom / number)
    error = math.sqrt(math.fsum(variances)) if variances else None
    return Spread(float(means.mean()), error, len(parts), number)


CELL = ("benchmark", "size", "budget", "snapshot")
"""What the runs of one cell of a table have in common."""


def summarise(
    frame: pd.DataFrame, metric: str, by: Sequence[str] = CELL, also: Sequence[str] = ("N", "passes")
) -> pd.DataFrame:
    """`combined` of a metric for each group of a frame of runs (`emigm.records.frame.runs`), in the frame's order: the
    columns of `by`; mean, error (NaN for one run), train_seeds, sample_seeds, n; the means of the columns `also`.
    Groups that lack the metric altogether keep their row, with NaN."""
    rows, also = [], list(dict.fromkeys(also))
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        known = group.dropna(subset=[metric])
        row = dict(zip(by, key, strict=True)) | {name: pd.to_numeric(group[name]).mean() for name in also}
        if len(known):
            spread = combined(known[["train_seed", "sample_seed", metric]].itertuples(index=False, name=None))
            row |= spread._asdict() | {"n": spread.n}
        rows.append(row)
    columns = [*by, *Spread._fields, "n", *also]
    return pd.DataFrame(rows, columns=columns).astype({"mean": float, "error": float})


@dataclass(frozen=True)
class Estimate:
    """An effect and its standard error, with Student's intervals and tests."""

    effect: float
    error: float | None = None
    """None: too few values to know it; then there is neither interval nor p."""
    freedom: float = math.inf
    """Degrees of freedom; infinity (the normal distribution) where the error is known from elsewhere."""
    level: float = 0.95
    """Of the interval."""

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.error is None else self.error * float(stats.t.ppf((1 + self.level) / 2, self.freedom))

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.error is None else self.effect - self.half

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.error is None else self.effect + self.half

    @property
    def p(self) -> float | None:
        """Two-sided p of no effect."""
        return None if self.error is None else min(1.0, 2 * min(self.p_above(), (-self).p_above()))

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p of the hypothesis that the effect is at most `bound`."""
        if not self.error:  # equal values: a t statistic of x / 0
            return float(self.effect <= bound)
        return float(stats.t.sf((self.effect - bound) / self.error, self.freedom))

    def p_within(self, margin: float) -> float:
        """p of the hypothesis that the effect is `margin` or more in either direction (two one-sided tests)."""
        return max(self.p_above(-margin), (-self).p_above(-margin))

    def at(self, level: float) -> Estimate:
        """With an interval of another level."""
        return replace(self, level=level)

    @property
    def text(self) -> str:
        """ "0.53 [0.41, 0.65]"."""
        interval = "" if self.low is None else f" [{three_digits(self.low)}, {three_digits(self.high)}]"
        return f"{three_digits(self.effect)}{interval}"

    def __neg__(self) -> Estimate:
        return replace(self, effect=-self.effect)


def unit_means(runs: pd.DataFrame, metric: str) -> pd.Series:
    """Means of the independent units of `runs` (columns train_seed, sample_seed and the metric), by seed: of training
    seeds, whose sampling seeds share weights; with one training seed, of sampling seeds, which say nothing of other
    training runs. The series is named by the kind of its seeds, "training" or "sampling"."""
    unit = "train_seed" if runs["train_seed"].nunique() > 1 else "sample_seed"
    means = runs.groupby(unit)[metric].mean()
    return means.rename({"train_seed": "training", "sample_seed": "sampling"}[unit])


def t_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Student's interval of a mean with the t test of 0; of paired differences, the paired t test."""
    x = np.asarray(values, dtype=float)
    error = None if len(x) < 2 else 0.0 if np.ptp(x) == 0 else float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(float(x.mean()), error, len(x) - 1, level)


def visible_effect(n: int, spread: float, alpha: float, power: float = 0.8) -> float:
    """The effect that a two-sided paired t test of n differences with standard deviation `spread` finds with that
    probability: its noncentral t distribution, solved for the noncentrality."""
    limit = stats.t.ppf(1 - alpha / 2, n - 1)
    noncentral = brentq(lambda nc: stats.nct.sf(limit, n - 1, nc) - power, 0, 10 * limit + 10)
    return noncentral * spread / math.sqrt(n)


def runs_needed(effect: float, spread: float, alpha: float, power: float = 0.8) -> int:
    """How many runs of both sides it takes for a two-sided normal test to find an effect with that probability, where
    the difference of one run each has the standard deviation `spread`."""
    quantiles = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return max(1, math.ceil((quantiles * spread / effect) ** 2))


def holm(p_values: Sequence[float], alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Holm's adjusted p values (1979), in the given order: of all tests whose adjusted p is below a, the chance that
    any is of no effect is at most a, however the tests depend on each other. And what the procedure multiplies each p
    by before it is held against alpha, the number of tests that were not rejected before it: an interval of level
    1 - alpha / factor excludes 0 exactly where the test is rejected."""
    p = np.asarray(p_values, dtype=float)
    order, rank = np.argsort(p), stats.rankdata(p, method="ordinal") - 1
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return adjusted, len(p) - np.minimum(rank, (adjusted < alpha).sum())


def fid_infinity(by_images: Mapping[int, float], degree: int = 1) -> float:
    """FID of infinitely many images: the intercept of a polynomial in 1/n through {number of images: FID of so many}.
    A line: Chong and Forsyth, arXiv 1911.07023; a curve tells whether it is bent. NaN with too few numbers."""
    if len(by_images) <= degree:
        return math.nan
    n = np.array(sorted(by_images), dtype=float)
    x = n.max() / n  # near 1, for the fit's condition
    return float(np.polynomial.polynomial.polyfit(x, [by_images[int(k)] for k in n], degree)[0])
