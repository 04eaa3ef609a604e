"""Mask schedules, reveal counts, guidance windows and NFE."""

import numpy as np
import pytest
from scipy.stats import truncnorm

from emigm.config.errors import ConfigError
from emigm.model.schedules import (
    ALL_SCHEDULES,
    draw_mask_counts,
    expected_reveal_counts,
    gamma,
    guided_steps,
    nfe,
    reveal_counts,
    reveal_probability,
    train_time,
    truncated_normal_ratio,
)
from emigm.paper.settings import paper_sampling

NAMES = sorted(ALL_SCHEDULES)


@pytest.mark.parametrize("name", NAMES)
def test_gamma_rises_from_nearly_0_to_nearly_1_by_its_slope(name):
    t, h = np.linspace(0.05, 0.95, 19), 1e-6
    slope = ALL_SCHEDULES[name](t)[1]
    assert np.allclose(slope, (gamma(name, t + h) - gamma(name, t - h)) / (2 * h), rtol=1e-6)
    g = gamma(name, np.linspace(0, 1, 101))
    assert g[0] == pytest.approx(0, abs=1e-12) and g[-1] == pytest.approx(1, abs=0.01)
    assert (np.diff(g) > 0).all()


def test_mask_counts_follow_the_binomial_distribution_and_leave_at_least_two():
    rng = np.random.default_rng(0)
    counts = np.array([draw_mask_counts("exp", 0.2, 16, 1, rng, shared=True)[1].item() for _ in range(4000)])
    assert counts.min() >= 2
    t = train_time(np.random.default_rng(1).random(200_000), 0.2)
    assert train_time(0.0, 0.2) == pytest.approx(0.2 * 0.999 + 0.001) and train_time(1.0, 0.2) == 1.0
    assert counts.mean() == pytest.approx(16 * gamma("exp", t).mean(), abs=0.15)


def test_mars_ratio_is_scipys_truncated_normal_and_its_count_the_ceiling():
    u = (np.arange(999) + 0.5) / 999
    ratios = np.array([truncated_normal_ratio(x) for x in u])
    np.testing.assert_allclose(ratios, truncnorm.ppf(u, (0.7 - 1) / 0.25, 0, loc=1, scale=0.25), rtol=1e-9)
    rng = np.random.default_rng(0)
    one = [draw_mask_counts(None, None, 49, 1, rng, "truncated_normal", shared=True) for _ in range(3000)]
    times, each = draw_mask_counts(None, None, 49, 3000, rng, "truncated_normal")
    assert times is None and all(t is None for t, _ in one)
    for counts in (np.concatenate([count for _, count in one]), each):
        assert counts.min() >= 35 and counts.max() == 49  # ceil(0.7 x 49)
        assert counts.mean() == pytest.approx(np.ceil(49 * ratios).mean(), abs=0.3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masking", ["independent", "exact_count"])
def test_mask_counts_are_those_of_their_times(name, masking):
    """Of images with a time each; of a group with one."""
    t, counts = draw_mask_counts(name, 0.0, 16, 20_000, np.random.default_rng(0), masking)
    expected = 16 * gamma(name, t)
    assert len(np.unique(t)) == len(t) == len(counts) and np.corrcoef(counts, expected)[0, 1] > 0.85
    if masking == "independent":
        assert counts.mean() == pytest.approx(expected.mean(), abs=0.1)
        return
    assert np.array_equal(counts, np.ceil(expected))
    rng = np.random.default_rng(0)
    for _ in range(50):
        (t,), (count,) = draw_mask_counts(name, 0.0, 64, 1, rng, masking, shared=True)
        assert count == np.ceil(64 * float(gamma(name, t))) and 1 <= count <= 64


def test_a_group_without_any_masked_token_is_drawn_again():
    rng = np.random.default_rng(0)
    assert all(draw_mask_counts("linear", 0.0, 2, 1, rng)[1].sum() > 0 for _ in range(200))


@pytest.mark.parametrize("name", NAMES)
def test_reveal_counts_reveal_every_token_once_and_their_mean_is_the_expected(name):
    for steps, tokens in ((1, 16), (4, 16), (16, 16), (16, 256), (128, 256)):
        counts = reveal_counts(name, steps, tokens, np.random.default_rng(0))
        assert len(counts) == steps and counts.sum() == tokens and reveal_probability(name, steps)[-1] == 1.0
        assert (counts[: np.searchsorted(np.cumsum(counts), tokens) + 1] >= 1).all()
    rng = np.random.default_rng(0)
    drawn = np.array([reveal_counts(name, 8, 64, rng) for _ in range(4000)])
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(axis=0) - expected_reveal_counts(name, 8, 64)) < 5 * error + 1e-9).all()
    first = {n: expected_reveal_counts(n, 16, 256)[:4].sum() for n in ("exp", "cosine", "linear")}
    assert first["exp"] < first["cosine"] < first["linear"]


@pytest.mark.parametrize(
    ("resolution", "size", "steps", "interval", "guided"),  # as counted in the official sampler's loop
    [(256, "l", 16, (0.1, 0.3), 3), (256, "h", 16, (0.2, 0.4), 3), (256, "xs", 128, (0.18, 0.6), 53),
     (256, "b", 128, (0.05, 0.4), 45), (256, "h", 128, (0.3, 0.7), 51), (512, "s", 16, (0.15, 0.35), 3),
     (512, "l", 64, (0.25, 0.5), 16)],
)  # fmt: skip
def test_the_papers_sampling_configurations_and_their_nfe(resolution, size, steps, interval, guided):
    cfg = paper_sampling(resolution, size, steps)
    assert (cfg.cfg_interval, cfg.cfg_scale, cfg.solver_steps) == (interval, 4.0, 8 if steps == 16 else 14)
    assert nfe(steps, 4.0, interval) == steps + guided
    with pytest.raises(ConfigError, match="the paper's budgets"):
        paper_sampling(resolution, size, 32)


def test_guidance_acts_on_a_half_open_interval_and_never_at_scale_1():
    assert guided_steps(10, 2.0, (0.2, 0.4)).tolist() == [s in (6, 7) for s in range(10)]  # s = .40001 is out
    assert not guided_steps(10, 1.0, (0.0, 1.0)).any()
