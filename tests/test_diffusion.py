"""The diffusion of single tokens: loss, DDPM and DPM-Solver++ against independent references."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from emigm.model import diffusion
from emigm.model.diffusion import T, cosine_betas, ddpm_sample, dpm_solver_plan, dpm_solver_sample, respaced_times

DATA_STD = 0.5


def gaussian_denoiser(alpha_bar_at):
    """The exact noise prediction for data N(0, DATA_STD^2), with variance at the posterior's end."""

    def denoiser(x, time):
        abar = alpha_bar_at(float(time))
        eps = math.sqrt(1 - abar) * x / (abar * DATA_STD**2 + 1 - abar)
        return torch.cat([eps, -torch.ones_like(x)], dim=-1)

    return denoiser


def at(times, denoiser):
    """A denoiser of (x, time) as one of (x, number of the time)."""
    return lambda x, i: denoiser(x, times[i])


def continuous_alpha_bar(time):
    """alpha_bar at the solver's own time input, interpolated in log alpha over the schedule's knots."""
    log_abar = np.cumsum(np.log(1 - cosine_betas()))[:996]
    return math.exp(np.interp(time / T + 1 / 996, np.arange(1, 997) / 996, log_abar))


def test_betas_are_the_cosine_schedules():
    abar = np.cumprod(1 - cosine_betas())
    t = np.arange(1, T + 1) / T
    expected = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert np.allclose(abar[:-2], expected[:-2], rtol=1e-9)
    assert cosine_betas().max() == 0.999


def test_kl_agrees_with_torch_and_the_discretised_likelihood_is_the_probability_of_the_bin():
    torch.manual_seed(0)
    m1, l1, m2, l2 = torch.randn(4, 50, dtype=torch.float64)
    p, q = (torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in ((m1, l1), (m2, l2)))
    assert torch.allclose(diffusion.gaussian_kl(m1, l1, m2, l2), torch.distributions.kl_divergence(p, q))
    x = torch.tensor([-1.0, -0.2, 0.3, 1.0], dtype=torch.float64)
    mean, scale = torch.tensor(0.1, dtype=torch.float64), 0.5
    ours = diffusion.discretised_log_likelihood(x, mean, torch.tensor(math.log(scale))).exp().numpy()
    low = np.where(x < -0.999, -np.inf, x - 1 / 255)
    high = np.where(x > 0.999, np.inf, x + 1 / 255)
    assert np.allclose(ours, norm.cdf(high, 0.1, scale) - norm.cdf(low, 0.1, scale), rtol=2e-2, atol=1e-6)


def test_respacing_keeps_the_ends_and_the_marginals():
    times = respaced_times(14)
    assert times[0] == 0 and times[-1] == T - 1 and len(set(times)) == 14
    assert torch.equal(diffusion.tables(14).signal, diffusion.tables().signal[torch.from_numpy(times)])


def test_ddpm_reaches_the_variance_of_gaussian_data():
    abar = np.cumprod(1 - cosine_betas())
    noise = torch.randn(250, 4000, 1, generator=torch.Generator().manual_seed(0))
    x = ddpm_sample(at(respaced_times(250), gaussian_denoiser(lambda t: abar[round(t)])), noise, 250)
    assert x.std().item() == pytest.approx(DATA_STD, rel=0.05)


def test_x0_clip_bounds_what_ddpm_returns():
    noise = 3 * torch.randn(14, 200, 1, generator=torch.Generator().manual_seed(0))
    wild = lambda x, time: torch.cat([-x, -torch.ones_like(x)], dim=-1)  # noqa: E731
    assert ddpm_sample(wild, noise, 14, x0_clip=0.7).abs().max() <= 0.7 + 1e-6
    assert ddpm_sample(wild, noise, 14).abs().max() > 10


@pytest.mark.parametrize("steps", range(3, 26))
def test_dpm_solver_spends_exactly_its_steps(steps):
    plan = dpm_solver_plan(steps)
    assert len(plan) == steps == sum(diffusion.singlestep_orders(steps))
    assert [s.time for s in plan] == sorted((s.time for s in plan), reverse=True)


def test_dpm_solver_converges_to_the_exact_solution_of_the_ode():
    """For Gaussian data the flow multiplies the noise by a known factor."""
    noise, errors = torch.ones(1, 1, dtype=torch.float64), []
    alpha_bars = continuous_alpha_bar(T - T / 996), continuous_alpha_bar(0)  # at the start and the end
    start, end = (math.sqrt(a * DATA_STD**2 + 1 - a) for a in alpha_bars)
    for steps in (12, 24, 48):
        plan = dpm_solver_plan(steps, torch.float64)
        x = dpm_solver_sample(at([s.time for s in plan], gaussian_denoiser(continuous_alpha_bar)), noise, plan)
        errors.append(abs(x.item() - end / start))
    assert errors[0] < 0.05 and errors[2] < 2e-3
    assert errors[0] / errors[1] > 4 and errors[1] / errors[2] > 4  # order 3 would give 8
