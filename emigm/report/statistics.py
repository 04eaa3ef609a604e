"""Spreads, intervals and tests over few training and sampling seeds. No records, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


def three_digits(value: float) -> str:
    """Three significant digits, and no exponent above 1000."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


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

    error² = s_T² / T + s_S² / S, where s_T is the standard deviation over the T training seeds of their means over S
    sampling seeds each, and s_S that over the sampling seeds within a training seed (pooled). A kind with one seed
    contributes nothing, so that one training run says nothing of other training runs.

    Where every training seed has sampling seeds of its own, s_T² / T alone has the right mean (it holds s_S² / (S T)),
    but of two training seeds it is a draw with one degree of freedom and often far too small; where all share the same
    sampling seeds, their common part never falls with T and s_T does not see it. The second term mends both. The mean
    of a repetition with other seeds lies within two errors of this one in 91% (two training seeds) to 99% (six) of
    cases where sampling seeds decide, and in 64% to 81% where training seeds do (tests/test_statistics.py).
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
    """`combined` of a metric for each group of a frame of runs (`emigm.records.frame.runs`), in the frame's order.

    Returns:
        The columns of `by`; mean, error (NaN for one run), train_seeds, sample_seeds, n; the means of the columns
        `also`. Groups that lack the metric altogether keep their row, with NaN.
    """
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
    """An effect with its confidence interval and two-sided p value (of no effect)."""

    effect: float
    low: float | None = None
    """None, as `high` and `p` are: too few values for an interval."""
    high: float | None = None
    p: float | None = None

    @property
    def text(self) -> str:
        """ "0.53 [0.41, 0.65]"."""
        interval = "" if self.low is None else f" [{three_digits(self.low)}, {three_digits(self.high)}]"
        return f"{three_digits(self.effect)}{interval}"

    def __abs__(self) -> Estimate:
        return -self if self.effect < 0 else self

    def __neg__(self) -> Estimate:
        return Estimate(-self.effect) if self.low is None else Estimate(-self.effect, -self.high, -self.low, self.p)


def unit_means(runs: pd.DataFrame, metric: str) -> pd.Series:
    """Means of the independent units of `runs` (columns train_seed, sample_seed and the metric), by seed.

    Sampling seeds of one training seed share its weights, so they are averaged within it. With one training seed the
    sampling seeds are the units, and the interval says nothing of other training runs. The series is named by the kind
    of its seeds, "training" or "sampling".
    """
    unit = "train_seed" if runs["train_seed"].nunique() > 1 else "sample_seed"
    means = runs.groupby(unit)[metric].mean()
    return means.rename({"train_seed": "training", "sample_seed": "sampling"}[unit])


def t_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Student's interval of a mean with the t test of 0; of paired differences, the paired t test."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return Estimate(float(x.mean()))
    if np.ptp(x) == 0:  # a t statistic of 0 / 0
        return Estimate(float(x[0]), float(x[0]), float(x[0]), float(x[0] == 0))
    return _estimate(x.mean(), stats.ttest_1samp(x, 0.0), level)


def welch(left: Sequence[float], right: Sequence[float], level: float = 0.95) -> Estimate:
    """Welch's interval and test of the difference of two independent groups' means."""
    effect = float(np.mean(left) - np.mean(right))
    if min(len(left), len(right)) < 2:
        return Estimate(effect)
    return _estimate(effect, stats.ttest_ind(left, right, equal_var=False), level)


def known_spread(effect: float, error: float, level: float = 0.95) -> Estimate:
    """Normal interval and test of an effect whose standard error is known from elsewhere."""
    half = float(stats.norm.ppf((1 + level) / 2)) * error
    return Estimate(effect, effect - half, effect + half, 2 * float(stats.norm.sf(abs(effect) / error)))


def slope_weights(x: Sequence[float]) -> np.ndarray:
    """Weights of the values at `x` whose sum is their least-squares slope."""
    a = np.asarray(x, dtype=float) - np.mean(x)
    return a / (a @ a)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p values (1979), in the given order: of all tests whose adjusted p is below a, the chance that
    any is of no effect is at most a, however the tests depend on each other."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return adjusted


def fid_infinity(by_images: Mapping[int, float], degree: int = 1) -> float:
    """FID of infinitely many images: the intercept of a polynomial in 1/n (line: Chong and Forsyth, arXiv 1911.07023).

    Args:
        by_images: number of generated images -> FID of so many.
        degree: 1 for the line, 2 for a curve, which tells whether the line is bent. NaN with too few numbers.
    """
    if len(by_images) <= degree:
        return math.nan
    n = np.array(sorted(by_images), dtype=float)
    x = n.max() / n  # near 1, for the fit's condition
    return float(np.polynomial.polynomial.polyfit(x, [by_images[int(k)] for k in n], degree)[0])


def _estimate(effect: float, test: object, level: float) -> Estimate:
    low, high = test.confidence_interval(level)
    return Estimate(float(effect), float(low), float(high), float(test.pvalue))
