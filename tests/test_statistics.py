"""Spreads, intervals and tests: against scipy, closed forms and draws of a known truth."""

# ruff: noqa: RUF001
# × is meant.

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emigm.report.statistics import (
    Estimate,
    combined,
    fid_infinity,
    holm,
    runs_needed,
    summarise,
    t_interval,
    visible_effect,
)

# The combined standard error of tables and error bars


def seeded(values):
    """(training seed, sampling seed, value) of an array (training seeds, sampling seeds)."""
    return [(t, s, v) for t, row in enumerate(np.atleast_2d(values)) for s, v in enumerate(row)]


def test_the_error_adds_both_kinds_of_seeds_and_one_seed_of_a_kind_adds_nothing():
    values = np.array([[1.0, 3.0], [5.0, 9.0], [2.0, 2.0]])
    spread = combined(seeded(values))
    train, sample = values.mean(1).var(ddof=1) / 3, values.var(axis=1, ddof=1).mean() / 2
    assert spread.mean == pytest.approx(values.mean()) and spread.error == pytest.approx(np.sqrt(train + sample))
    assert spread.n == "3×2"
    assert combined(seeded([[1.0, 3.0]])).error == combined(seeded([[1.0], [3.0]])).error == pytest.approx(1.0)
    assert combined(seeded([[1.0]])).error is None
    with pytest.raises(ValueError, match="no runs"):
        combined([])


@pytest.mark.parametrize(
    ("sizes", "spreads", "least", "most"),
    [  # (training seeds, sampling seeds), (deviation of training seeds, own sampling seeds, shared sampling seeds)
        ((2, 3), (0, 1, 0), 0.91, 0.96),
        ((6, 2), (0, 1, 0), 0.98, 1.0),
        ((6, 2), (1, 0.2, 0), 0.78, 0.84),
        ((2, 3), (1, 0.2, 0), 0.60, 0.67),
        ((6, 2), (0.3, 0.5, 1), 0.72, 0.79),
    ],
)
def test_a_repetition_with_other_seeds_lies_within_two_errors_as_often_as_said(sizes, spreads, least, most):
    rng, (own, each, shared), within = np.random.default_rng(0), spreads, []

    def draw():
        noise = each * rng.normal(size=sizes) + shared * rng.normal(size=(1, sizes[1]))
        return own * rng.normal(size=(sizes[0], 1)) + noise

    for _ in range(3000):
        first = combined(seeded(draw()))
        within.append(abs(draw().mean() - first.mean) <= 2 * first.error)
    assert least <= np.mean(within) <= most


def test_a_summary_keeps_order_and_other_columns_and_a_cell_that_has_not_run_has_no_number():
    cells = {"4": [[1.0, 2.0], [3.0, 4.0]], "16": [[5.0, 5.0], [5.0, 5.0]]}
    frame = pd.DataFrame(
        {"benchmark": "x", "size": "a", "budget": budget, "snapshot": np.nan, "train_seed": t, "sample_seed": s}
        | {"fid": v, "N": int(budget), "passes": 1.5 * int(budget)}
        for budget, values in cells.items()
        for t, s, v in seeded(values)
    )
    summary = summarise(frame, "fid")
    assert summary["budget"].tolist() == ["4", "16"] and summary["mean"].tolist() == [2.5, 5.0]
    assert summary["n"].tolist() == ["2×2"] * 2 and summary["passes"].tolist() == [6.0, 24.0]
    assert summary["error"].iloc[1] == 0
    frame.loc[frame["budget"] == "16", "fid"] = np.nan
    summary = summarise(frame, "fid").set_index("budget")
    assert summary.loc["16", ["mean", "error"]].isna().all() and summary.loc["4", "mean"] == 2.5


# Estimates and tests


def test_a_single_value_has_no_interval_and_equal_ones_have_no_width():
    assert t_interval([2.0]).effect == 2 and t_interval([2.0]).low is None
    same = t_interval([2.0, 2.0, 2.0])
    assert (same.low, same.high, same.p) == (2, 2, 0)


def test_a_known_error_gives_the_normal_interval():
    found = Estimate(-1.0, 0.5)
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, -1, 0.5))
    assert found.p == pytest.approx(2 * stats.norm.cdf(-2)) and found.at(0.9).half == pytest.approx(0.5 * 1.6449, 1e-4)


def test_both_one_sided_tests_are_scipys():
    x = np.random.default_rng(5).normal(0.1, 0.3, 8)
    found = t_interval(x)
    sides = [stats.ttest_1samp(x, b, alternative=way).pvalue for b, way in ((-0.5, "greater"), (0.5, "less"))]
    assert found.p_within(0.5) == pytest.approx(max(sides))
    inside = found.at(1 - 2 * found.p_within(0.5))  # the interval of that level touches the nearer bound
    assert max(-inside.low, inside.high) == pytest.approx(0.5)
    same = t_interval([0.1, 0.1])
    assert same.p_within(0.2) == 0 and same.p_within(0.05) == 1


def test_the_visible_effect_is_found_as_often_as_said():
    n, spread, alpha = 6, 0.2, 0.01
    effect = visible_effect(n, spread, alpha)
    draws = np.random.default_rng(0).normal(effect, spread, (4000, n))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < alpha) == pytest.approx(0.8, abs=0.02)
    assert visible_effect(12, spread, alpha) < effect < visible_effect(n, spread, alpha / 10)


def test_as_many_runs_are_needed_as_find_the_effect_as_often_as_said():
    effect, spread, alpha = 0.04, 0.05, 0.05
    n, rng = runs_needed(effect, spread, alpha), np.random.default_rng(0)

    def power(runs):
        means = effect + spread / np.sqrt(runs) * rng.standard_normal(20000)
        return np.mean(2 * stats.norm.sf(abs(means) / spread * np.sqrt(runs)) < alpha)

    assert power(n) >= 0.79 and power(n - 1) < 0.81 and n == 13


def test_holm_rejects_what_closed_testing_by_bonferroni_rejects():
    """Reference: a hypothesis is rejected where every set of hypotheses with it is, each by its own Bonferroni test."""
    p = np.random.default_rng(3).uniform(0, 0.05, 6)
    for i, adjusted in enumerate(holm(p)[0]):
        sets = [[j for j in range(6) if j == i or code >> j & 1] for code in range(64)]
        assert adjusted == pytest.approx(min(1, max(len(s) * min(p[s]) for s in sets)))
    assert holm([0.9, 0.8])[0].tolist() == [1, 1] and holm([])[0].tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_a_p_times_its_factor_is_below_alpha_exactly_where_holm_rejects(seed):
    p = np.random.default_rng(seed).uniform(0, 1, 12) ** 4
    adjusted, factors = holm(p, 0.05)
    rejected = adjusted < 0.05
    assert ((p * factors < 0.05) == rejected).all() and set(factors[~rejected]) == {12 - rejected.sum()}


def test_fid_of_infinitely_many_images_is_the_intercept_in_one_over_n_from_which_a_bent_curve_parts():
    line = {n: 2.5 + 300 / n for n in (1000, 500, 250)}
    assert fid_infinity(line) == pytest.approx(2.5) and fid_infinity(line, degree=2) == pytest.approx(2.5)
    noisy = {n: f + e for (n, f), e in zip(line.items(), (0.02, -0.01, 0.03), strict=True)}
    design = np.column_stack([np.ones(3), 1 / np.array(list(noisy))])
    assert fid_infinity(noisy) == pytest.approx(np.linalg.lstsq(design, list(noisy.values()))[0][0])
    bent = {n: 2.5 + 300 / n + 4e4 / n**2 for n in (1000, 500, 250)}
    assert fid_infinity(bent, degree=2) == pytest.approx(2.5)
    assert fid_infinity(bent) < 2.45
    assert np.isnan(fid_infinity({1000: 2.8})) and np.isnan(fid_infinity({1000: 2.8, 500: 3.0}, degree=2))
