"""The diffusion of single tokens: DPM-Solver++ against an exact solution, and what clipping bounds under DDPM."""

import math

import numpy as np
import pytest
import torch

from emigm.model import diffusion
from emigm.model.diffusion import T, cosine_betas, ddpm_sample, dpm_solver_plan, dpm_solver_sample

DATA_STD = 0.5


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


def alpha_bar(time):
    """At the solver's own time input, interpolated in log alpha over the schedule's knots."""
    log_abar = np.cumsum(np.log(1 - cosine_betas()))[:996]
    return math.exp(np.interp(time / T + 1 / 996, np.arange(1, 997) / 996, log_abar))


def test_dpm_solver_converges_to_the_exact_solution_of_the_ode():
    """For Gaussian data the flow multiplies the noise by a known factor."""

    def denoiser(x, i):
        """The exact noise prediction for data N(0, DATA_STD^2), with variance at the posterior's end."""
        abar = alpha_bar(float(plan[i].time))
        eps = math.sqrt(1 - abar) * x / (abar * DATA_STD**2 + 1 - abar)
        return torch.cat([eps, -torch.ones_like(x)], dim=-1)

    noise, errors = torch.ones(1, 1, dtype=torch.float64), []
    start, end = (math.sqrt(a * DATA_STD**2 + 1 - a) for a in (alpha_bar(T - T / 996), alpha_bar(0)))
    for steps in (12, 24, 48):
        plan = dpm_solver_plan(steps, torch.float64)
        errors.append(abs(dpm_solver_sample(denoiser, noise, plan).item() - end / start))
    assert errors[0] < 0.05 and errors[2] < 2e-3
    assert errors[0] / errors[1] > 4 and errors[1] / errors[2] > 4  # order 3 would give 8
