"""Mask schedules, mask draws, reveal counts, guidance windows and NFE (Tables 1 and 4, Figures 5 and 6).

Pure functions on numbers and numpy arrays. Time runs from t = 1 (all tokens masked) to t = 0 (none).

Masked diffusion (MDM): Shi et al. 2024, arXiv 2406.04329; Sahoo et al. 2024, arXiv 2406.07524. MaskGIT: Chang et al.
2022, arXiv 2202.04200. MAR: Li et al. 2024, arXiv 2406.11838.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

TIME_EPS = 1e-5  # last time of sampling: the times of a run are N + 1 points from 1 to this
TRAIN_EPS = 1e-3  # training times are squeezed into [TRAIN_EPS, 1]


def linear(t):
    """gamma(t) = t and gamma'(t)."""
    return t, np.ones_like(t)


def cosine(t):
    """gamma(t) = cos(pi/2 (1 - t)) and gamma'(t)."""
    angle = math.pi / 2 * (1 - t)
    return np.cos(angle), math.pi / 2 * np.sin(angle)


def exp(t):
    """gamma(t) = 1 - exp(-5 t) and gamma'(t)."""
    decay = np.exp(-5 * t)
    return 1 - decay, 5 * decay


def log_exp(t):
    """gamma(t) = log(1 + (e^5 - 1) t) / 5 and gamma'(t) (Table 9 of the published paper)."""
    growth = math.expm1(5)
    return np.log1p(growth * t) / 5, growth / (5 * (1 + growth * t))


SCHEDULES: dict[str, Callable] = {"linear": linear, "cosine": cosine, "exp": exp}
"""Table 4: name -> t -> (gamma(t), gamma'(t)); gamma(t) is the probability that a token is masked at t."""
ALL_SCHEDULES = {**SCHEDULES, "log-exp": log_exp}  # those of Table 9 as well


def gamma(schedule: str, t):
    """Probability that a token is masked at time t in [0, 1]."""
    return ALL_SCHEDULES[schedule](np.asarray(t, dtype=np.float64))[0]


def elbo_weight(schedule: str, t):
    """w(t) = gamma'(t) / gamma(t), the ELBO's weight (Shi et al., section 3; Table 4 prints it negated, since t runs
    from 1 to 0)."""
    value, slope = ALL_SCHEDULES[schedule](np.asarray(t, dtype=np.float64))
    return slope / value


def train_time(u, t_min: float):
    """Training time from u ~ U(0, 1): truncated to t >= t_min (Figure 2d), then squeezed away from 0."""
    return (1 - TRAIN_EPS) * np.maximum(u, t_min) + TRAIN_EPS


def truncated_normal_ratio(u: float) -> float:
    """MAR's share of masked tokens from u ~ U(0, 1): normal with mean 1 and deviation 0.25, truncated to [0.7, 1], by
    the inverse of its distribution function (MAR's code)."""
    normal = NormalDist(1.0, 0.25)
    low = normal.cdf(0.7)
    return normal.inv_cdf(low + u * (0.5 - low))


def draw_mask_counts(
    schedule: str | None,
    t_min: float | None,
    tokens: int,
    images: int,
    rng: np.random.Generator,
    masking: str = "independent",
    shared: bool = False,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Times (n,) and numbers of masked tokens (n,) of n images, each its own or one `shared` by all (Table 1).

    At time t the number is binomial with probability gamma(t) ("independent", MDM), or ceil(L gamma(t)) ("exact_count",
    MaskGIT, section 3.1). Drawn again while no token is masked, or fewer than two of each image where an "independent"
    number is shared, as the official code does. "truncated_normal" has no times: ceil(L r) tokens are masked, r from
    `truncated_normal_ratio`.
    """
    draws, least = (1, 2 if masking == "independent" else 1) if shared else (images, 1)
    if masking == "truncated_normal":
        counts = [math.ceil(tokens * truncated_normal_ratio(u)) for u in rng.random(draws)]
        return None, np.resize(counts, images)
    while True:
        t = train_time(rng.random(draws), t_min)
        probability, exact = gamma(schedule, t), masking == "exact_count"
        counts = np.ceil(tokens * probability).astype(int) if exact else rng.binomial(tokens, probability)
        if counts.max() >= least:
            return np.resize(t, images), np.resize(counts, images)


def sampling_times(steps: int) -> np.ndarray:
    """The N + 1 times of a run, linear from 1 to TIME_EPS, float32 (N + 1,)."""
    return np.linspace(1.0, TIME_EPS, steps + 1, dtype=np.float32)


def reveal_probability(schedule: str, steps: int) -> np.ndarray:
    """Probability that a still-masked token is revealed at each step: 1 - gamma(s)/gamma(t), the reverse posterior of
    masked diffusion (Sahoo et al., section 3.2); 1 at the last, (N,)."""
    g = gamma(schedule, sampling_times(steps))
    probability = 1 - g[1:] / g[:-1]
    probability[-1] = 1.0
    return probability


def reveal_counts(schedule: str, steps: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens revealed at each step, int (N,), summing to `tokens`.

    Each masked token is revealed independently, but at least one at every step while any is left.
    """
    left, counts = tokens, []
    for p in reveal_probability(schedule, steps):
        n = min(left, max(1, int(rng.binomial(left, p))))
        counts.append(n)
        left -= n
    return np.array(counts)


def exact_reveal_counts(schedule: str, steps: int, tokens: int) -> np.ndarray:
    """Tokens revealed at each step when floor(L gamma(s)) stay masked after it, int (N,), summing to `tokens`.

    At least one at every step while any is left (MaskGIT, section 3.2, and MAR, with the cosine schedule).
    """
    left, counts = tokens, []
    for g in [*gamma(schedule, np.linspace(1, 0, steps + 1)[1:-1]), 0.0]:
        # The little more keeps rounding from losing a token of an exact product.
        n = max(min(left, 1), left - math.floor(tokens * g + 1e-9))
        counts.append(n)
        left -= n
    return np.array(counts)


def step_counts(order: str, schedule: str, steps: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens revealed at each step, int (N,): random numbers for the order "binomial", else exact ones."""
    if order == "binomial":
        return reveal_counts(schedule, steps, tokens, rng)
    return exact_reveal_counts(schedule, steps, tokens)


def expected_reveal_counts(schedule: str, steps: int, tokens: int) -> np.ndarray:
    """Mean of `reveal_counts` (N,), exactly, by carrying the distribution of the number still masked (Figure 6)."""
    from scipy.stats import binom  # a second to import

    masked = np.zeros(tokens + 1)  # probability that so many are still masked
    masked[tokens] = 1.0
    left, drawn = np.ogrid[: tokens + 1, : tokens + 1]
    revealed = np.minimum(left, np.maximum(drawn, 1))
    means = []
    for p in reveal_probability(schedule, steps):
        share = masked[:, None] * binom.pmf(drawn, left, p)  # probability of (left, drawn)
        means.append((share * revealed).sum())
        masked = np.bincount((left - revealed).ravel(), share.ravel(), minlength=tokens + 1)
    return np.array(means)


def guided_steps(steps: int, cfg_scale: float, interval: tuple[float, float]) -> np.ndarray:
    """Which steps use guidance: t_min < s <= t_max at the step's end s, bool (N,) (the guidance interval of
    Kynkäänniemi et al. 2024, arXiv 2404.07724, on masking times; Figure 3c)."""
    s = sampling_times(steps)[1:]
    low, high = interval
    return (s > np.float32(low)) & (s <= np.float32(high)) & (cfg_scale != 1.0)


CFG_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1,
    "linear": lambda share: share,
    "power": lambda share: share**2,
    "cubic": lambda share: share**3,
    "exp": lambda share: 1 - math.exp(-5 * share),
    "cosine": lambda share: math.cos(math.pi / 2 * (1 - share)),
}
"""How guidance grows with the share of revealed tokens, those of the step included, as in MAR's and the official
code. The paper takes "linear" up to its section 5.2 and "constant" from 5.3 on."""


def guidance_scale(cfg_schedule: str, cfg_scale: float, share: float) -> float:
    """Scale of a guided step after which this `share` of the tokens is revealed: 1 + (cfg_scale - 1) f(share)."""
    if cfg_schedule == "constant":  # without rounding
        return cfg_scale
    return 1 + (cfg_scale - 1) * CFG_SCHEDULES[cfg_schedule](share)


def nfe(steps: int, cfg_scale: float, interval: tuple[float, float]) -> float:
    """Forward passes of the network for one image: N x (1 + fraction of guided steps) (Tables 2 and 3)."""
    return steps + float(guided_steps(steps, cfg_scale, interval).sum())
