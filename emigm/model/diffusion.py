"""Gaussian diffusion of single tokens: training loss, DDPM and DPM-Solver++ over any noise-prediction function.

The process has T = 1000 steps with cosine betas; the network predicts the noise and interpolates the variance. Shapes:
M tokens, C channels, K solver steps. All functions are pure.

DDPM: Ho et al. 2020, arXiv 2006.11239. Improved DDPM: Nichol & Dhariwal 2021, arXiv 2102.09672. DPM-Solver: Lu et al.
2022, arXiv 2206.00927. DPM-Solver++: Lu et al. 2022, arXiv 2211.01095.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

T = 1000
LAMBDA_MIN = -5.1  # DPM-Solver's clip: knots of the noise schedule with log(alpha/sigma) below this are dropped


@lru_cache
def cosine_betas() -> np.ndarray:
    """Betas of the cosine schedule, float64 (T,); at most 0.999 (improved DDPM, equation 17)."""

    def alpha_bar(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), 0.999) for i in range(T)])


class Tables(NamedTuple):
    """Coefficients of a (possibly respaced) process with K steps, each (K,) in ascending noise (DDPM, equations 4 and
    7; improved DDPM, equation 19)."""

    # x_t = signal * x0 + sigma * noise. In float32 neither can be had from the other, nor from alpha bar, near t = 0.
    signal: Tensor
    sigma: Tensor
    posterior_x0: Tensor  # q(x_{t-1} | x_t, x0) has mean posterior_x0 * x0 + posterior_xt * x_t
    posterior_xt: Tensor
    log_var_min: Tensor  # log variance of that posterior, its first entry replaced by its second
    log_var_max: Tensor  # log beta


def respaced_times(steps: int) -> np.ndarray:
    """The `steps` times of the full process, 0 and T-1 included, as evenly spaced as integers allow (K,) (improved
    DDPM, section 4)."""
    stride = (T - 1) / (steps - 1) if steps > 1 else 1
    # A running sum: with products, ties of round() can fall the other way.
    return np.array([round(t) for t in itertools.accumulate([0.0] + [stride] * (steps - 1))])


@lru_cache
def tables(steps: int = T, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tables:
    """Coefficients of the process respaced to `steps` steps; computed in float64."""
    times = respaced_times(steps)
    alpha_bar = np.cumprod(1 - cosine_betas())[times]
    previous = np.append(1.0, alpha_bar[:-1])
    betas = 1 - alpha_bar / previous
    variance = betas * (1 - previous) / (1 - alpha_bar)
    log_variance = np.log(np.append(variance[min(1, steps - 1)], variance[1:]) if steps > 1 else betas)
    columns = (
        np.sqrt(alpha_bar),
        np.sqrt(1 - alpha_bar),
        betas * np.sqrt(previous) / (1 - alpha_bar),
        (1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bar),
        log_variance,
        np.log(betas),
    )
    return Tables(*(torch.as_tensor(c, device=device).to(dtype) for c in columns))


def q_sample(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) noise for tokens x0 (M, C) at steps t (M,) (DDPM, equation 4)."""
    tab = tables(T, x0.dtype, str(x0.device))
    return tab.signal[t, None] * x0 + tab.sigma[t, None] * noise


def denoising_loss(output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the head for tokens x0 (M, C) noised with `noise` at steps t (M,), given its output (M, 2C).

    The mean squared error of the noise (DDPM, equation 14), plus the variational bound in bits for the variance alone:
    the noise prediction is detached there (improved DDPM, equation 16, with lambda = 1). At t = 0 the bound is the
    likelihood of x0 under the decoder, discretised in bins of 2/255. Returns (loss, mse), each (M,).
    """
    eps, v = output.chunk(2, dim=-1)
    mse = (noise - eps).square().mean(-1)

    tab = tables(T, x0.dtype, str(x0.device))
    signal, sigma, c_x0, c_xt, log_min, log_max = (column[t, None] for column in tab)
    x_t = signal * x0 + sigma * noise
    x0_hat = (x_t - sigma * eps.detach()) / signal
    mean = c_x0 * x0_hat + c_xt * x_t
    log_var = interpolated_log_variance(v, log_min, log_max)
    kl = gaussian_kl(c_x0 * x0 + c_xt * x_t, log_min, mean, log_var)
    nll = -discretised_log_likelihood(x0, mean, 0.5 * log_var)
    bound = torch.where(t[:, None] == 0, nll, kl).mean(-1) / math.log(2)
    return mse + bound, mse


def interpolated_log_variance(v: Tensor, log_min: Tensor, log_max: Tensor) -> Tensor:
    """Log variance between the posterior's and beta's, v in [-1, 1] from one to the other (improved DDPM, equation
    15)."""
    fraction = (v + 1) / 2
    return fraction * log_max + (1 - fraction) * log_min


def gaussian_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N(mean1, e^log_var1) || N(mean2, e^log_var2)) in nats, elementwise."""
    ratio = log_var1 - log_var2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2).square() * (-log_var2).exp())


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability (nats) of the bin of half-width 1/255 around x; the outermost bins reach to infinity.

    DDPM, equation 13; the normal distribution function is replaced by its tanh approximation, as in improved DDPM's
    code.
    """
    inverse = (-log_scale).exp()
    upper = _normal_cdf(inverse * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


Denoiser = Callable[[Tensor, int], Tensor]
"""(x_t (M, C), i: the number of the evaluation's time in the sampler's list of times) -> noise and variance (M, 2C)."""


def ddpm_sample(
    denoiser: Denoiser, noise: Tensor, steps: int, temperature: float = 1.0, x0_clip: float | None = None
) -> Tensor:
    """Tokens (M, C) by ancestral sampling with K = `steps` respaced steps (DDPM, algorithm 2, by equation 7).

    The denoiser's times are `respaced_times(steps)`, of which the last comes first. `noise` (K, M, C) is the initial
    noise, then that of each step but the last, times `temperature`; `x0_clip` bounds |x0_hat| (the official code does
    not clip).
    """
    tab = tables(steps, noise.dtype, str(noise.device))
    x = noise[0]
    for i in reversed(range(steps)):
        eps, v = denoiser(x, i).chunk(2, dim=-1)
        x0 = (x - tab.sigma[i] * eps) / tab.signal[i]
        if x0_clip is not None:
            x0 = x0.clamp(-x0_clip, x0_clip)
        x = tab.posterior_x0[i] * x0 + tab.posterior_xt[i] * x
        if i:
            log_var = interpolated_log_variance(v, tab.log_var_min[i], tab.log_var_max[i])
            x = x + (0.5 * log_var).exp() * temperature * noise[steps - i]
    return x


class SolverStep(NamedTuple):
    """One evaluation of the network in DPM-Solver++ and the update that follows it."""

    time: float  # the time the network is told, in steps of the full process
    sigma: float
    alpha: float
    base: float  # next point = base * x_base + d0 * D0 + difference * (D - D0)
    d0: float
    difference: float
    first: bool  # the evaluation opens an interval: its point becomes the base, its prediction D0


@lru_cache
def dpm_solver_plan(steps: int, dtype: torch.dtype = torch.float32) -> tuple[SolverStep, ...]:
    """Coefficients of DPM-Solver++ (singlestep, third order, uniform in log-SNR) for K = `steps` evaluations.

    DPM-Solver++, proposition 4.1 with the Taylor expansions of section 4: the head predicts the noise, each step goes
    by the x0 that follows from it. `dtype` is the precision of the tables. The official solver works in float32, whose
    rounding near t = 0 moves results by about 1e-3; float32 here reproduces it, and is the default for that reason.
    """
    # The discrete schedule as a piecewise-linear log alpha(t), clipped at LAMBDA_MIN.
    log_alpha = 0.5 * torch.as_tensor(1 - cosine_betas()).log().cumsum(0)
    lam = log_alpha - 0.5 * torch.log(1 - torch.exp(2 * log_alpha))
    log_alpha = log_alpha[lam >= LAMBDA_MIN].to(dtype)
    knots = torch.linspace(0.0, 1.0, len(log_alpha) + 1, dtype=dtype)[1:]
    t_last = 1.0 / len(log_alpha)

    def at(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """lambda, alpha and sigma."""
        la = _interpolate(t, knots, log_alpha)
        variance = 1 - torch.exp(2 * la)
        return la - 0.5 * torch.log(variance), torch.exp(la), torch.sqrt(variance)

    def time_at(lam: Tensor) -> Tensor:
        la = -0.5 * torch.logaddexp(torch.zeros((), dtype=dtype), -2 * lam)
        return _interpolate(la, log_alpha.flip(0), knots.flip(0))

    orders = singlestep_orders(steps)
    ends = torch.tensor([1.0, t_last], dtype=dtype)
    lam_start, lam_end = at(ends)[0]
    outer = time_at(torch.linspace(lam_start.item(), lam_end.item(), len(orders) + 1, dtype=dtype))

    plan = []
    for s, t, order in zip(outer[:-1], outer[1:], orders, strict=True):
        (lam_s, _, sigma_s), (lam_t, _, _) = at(s), at(t)
        h = lam_t - lam_s
        # The fractions are measured back from the interpolated inner times, as the official solver does.
        inner, _, _ = at(time_at(torch.linspace(lam_s.item(), lam_t.item(), order + 1, dtype=dtype)))
        fractions = [(inner[j] - inner[0]) / (inner[order] - inner[0]) for j in range(1, order)]
        points = [s, *(time_at(lam_s + r * h) for r in fractions)]
        for j, point in enumerate(points):
            _, alpha_j, sigma_j = at(point)
            last = j == order - 1
            _, alpha, sigma = at(t if last else points[j + 1])
            step = h if last else fractions[j] * h
            phi1 = torch.expm1(-step)
            if j == 0:
                factor = torch.zeros((), dtype=dtype)
            elif order == 2:
                factor = -0.5 / fractions[0] * alpha * phi1
            else:
                ratio = 1 / fractions[1] if last else fractions[1] / fractions[0]
                factor = ratio * alpha * (phi1 / step + 1)
            numbers = ((point - t_last) * T, sigma_j, alpha_j, sigma / sigma_s, -alpha * phi1, factor)
            plan.append(SolverStep(*(number.item() for number in numbers), first=j == 0))
    return tuple(plan)


def singlestep_orders(steps: int) -> list[int]:
    """Orders of the intervals that spend exactly `steps` evaluations: threes, then the remainder (DPM-Solver, section
    3.4)."""
    threes, rest = divmod(steps, 3)
    return [3] * (threes - 1) + [2, 1] if rest == 0 else [3] * threes + [rest]


def dpm_solver_sample(denoiser: Denoiser, noise: Tensor, plan: Sequence[SolverStep]) -> Tensor:
    """Solve the probability-flow ODE from `noise` (M, C) by a plan of K evaluations; returns tokens (M, C).

    As in the official code the path ends at the first knot of the schedule (sigma = 0.006), undenoised.
    """
    x = base = d0 = noise
    for i, step in enumerate(plan):
        eps, _ = denoiser(x, i).chunk(2, dim=-1)
        d = (x - step.sigma * eps) / step.alpha
        if step.first:
            base, d0 = x, d
        x = step.base * base + step.d0 * d0 + step.difference * (d - d0)
    return x


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation with linear extrapolation; `knots` ascending (n,), x any shape."""
    i = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    x0, x1, y0, y1 = knots[i - 1], knots[i], values[i - 1], values[i]
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)
