"""Intervals and tests of the claims: against scipy, closed forms and draws of a known truth."""

import itertools

import numpy as np
import pytest
from scipy import stats

from emigm.report.statistics import fid_infinity, holm, page_p, t_interval, trend, unit_means, welch


def assert_estimate(found, effect, interval, p, df):
    assert found.effect == pytest.approx(effect)
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    assert found.p == pytest.approx(p)
    assert found.df == pytest.approx(df)


def test_sampling_seeds_are_averaged_within_a_training_seed():
    runs = [(0, 0, 1.0), (0, 1, 3.0), (5, 0, 10.0), (5, 1, 20.0)]
    assert unit_means(runs) == ("training", {0: 2.0, 5: 15.0})
    assert unit_means(runs[:2]) == ("sampling", {0: 1.0, 1: 3.0})


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_paired_differences_is_scipys(level):
    a, b = np.random.default_rng(0).standard_normal((2, 5))
    theirs = stats.ttest_rel(a, b)
    assert_estimate(
        t_interval(a - b, level), (a - b).mean(), theirs.confidence_interval(level), theirs.pvalue, theirs.df
    )


def test_a_single_value_has_no_interval():
    assert t_interval([2.0]).effect == 2 and t_interval([2.0]).half is None


def test_two_groups_of_welch_are_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 4), rng.normal(0, 3, 7)
    theirs = stats.ttest_ind(a, b, equal_var=False)
    found = welch([(1, a), (-1, b)])
    assert_estimate(found, a.mean() - b.mean(), theirs.confidence_interval(), theirs.pvalue, theirs.df)


def test_groups_of_equal_variance_pool_their_degrees_of_freedom():
    values = np.array([-1.0, 0.0, 1.0])
    found = welch([(1, values + 5), (-1, values), (-1, values), (1, values + 2)])
    error = np.sqrt(4 * 1 / 3)
    half = stats.t.ppf(0.975, 8) * error
    assert_estimate(found, 7, (7 - half, 7 + half), 2 * stats.t.sf(7 / error, 8), 8)


def test_the_trend_is_least_squares_with_dummy_variables():
    rng = np.random.default_rng(2)
    x, n, k = np.array([0.0, 0.7, 1.1, 2.0]), 3, 4
    y = rng.normal(size=(n, 1)) * 10 - 2 * x + rng.normal(size=(n, k))
    design = np.column_stack([np.tile(x, n), np.repeat(np.eye(n), k, axis=0)])
    solution, rss, *_ = np.linalg.lstsq(design, y.ravel())
    df = n * k - n - 1
    error = np.sqrt(rss[0] / df * np.linalg.inv(design.T @ design)[0, 0])
    half = stats.t.ppf(0.975, df) * error
    interval = (solution[0] - half, solution[0] + half)
    assert_estimate(trend(x, y), solution[0], interval, 2 * stats.t.sf(abs(solution[0]) / error, df), df)


def test_pages_test_is_the_share_of_rankings_that_fall_as_clearly():
    blocks, ranks = [[3.0, 2.0, 1.0, 0.5], [9.0, 7.0, 8.0, 1.0]], range(1, 5)
    orders = [sum(i * r for i, r in zip(ranks, order, strict=True)) for order in itertools.permutations(ranks)]
    measured = sum(np.dot(ranks, 5 - stats.rankdata(block)) for block in blocks)
    as_clear = [a + b >= measured for a in orders for b in orders]
    assert page_p(blocks) == pytest.approx(np.mean(as_clear))
    assert page_p(blocks[:1]) is None


def test_holm_multiplies_by_the_hypotheses_left_and_never_falls():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_fid_of_infinitely_many_images_is_the_intercept_in_one_over_n():
    sizes = np.array([500, 1000, 2000, 4000, 4000])
    fids = 2.5 + 300 / sizes + np.array([0.02, -0.01, 0.0, 0.01, -0.01])
    design = np.column_stack([np.ones(5), 1 / sizes])
    solution, rss, *_ = np.linalg.lstsq(design, fids)
    error = np.sqrt(rss[0] / 3 * np.linalg.inv(design.T @ design)[0, 0])
    found = fid_infinity(sizes, fids)
    assert found.effect == pytest.approx(solution[0])
    assert found.high - found.effect == pytest.approx(stats.t.ppf(0.975, 3) * error)
    assert fid_infinity([1000, 2000], [2.8, 2.65]).effect == pytest.approx(2.5)
    with pytest.raises(ValueError, match="two different numbers"):
        fid_infinity([1000, 1000], [2.8, 2.9])


def paired(rng):
    """Two variants of equal mean whose runs share a seed's effect, averaged over two sampling seeds."""
    shared = rng.normal(0, 2, (4, 1, 1)) + rng.normal(0, 1, (4, 2, 1))
    runs = shared + rng.normal(0, 1, (4, 1, 2)) + rng.normal(0, 0.5, (4, 2, 2))
    means = runs.mean(axis=1)
    return t_interval(means[:, 0] - means[:, 1])


DRAWS = {
    "paired by training seed": paired,
    "groups of unlike spread": lambda rng: welch([(1, rng.normal(0, 1, 6)), (-1, rng.normal(0, 2, 8))]),
    "trend": lambda rng: trend(range(5), rng.normal(0, 3, (2, 1)) + rng.normal(0, 1, (2, 5))),
    "fid": lambda rng: fid_infinity([1, 2, 4, 8, 16], rng.normal(0, 1, 5)),
}
"""Intervals of an effect that is 0."""


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_intervals_contain_the_truth_as_often_as_they_say(draw):
    rng = np.random.default_rng(0)
    found = [draw(rng) for _ in range(1000)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert abs(covered - 0.95) < 0.025  # 3.6 standard errors
    assert covered == np.mean([one.p >= 0.05 for one in found])


def test_runs_of_one_training_seed_taken_as_independent_would_promise_too_much():
    rng = np.random.default_rng(0)
    runs = [rng.normal(0, 1, (4, 1)) + rng.normal(0, 0.3, (4, 2)) for _ in range(1000)]
    naive = [t_interval(one.ravel()) for one in runs]
    assert np.mean([one.low <= 0 <= one.high for one in naive]) < 0.9
