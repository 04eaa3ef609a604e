"""Baselines that scores are read against: as many real images as models are scored with, and class shuffle."""

from __future__ import annotations

import numpy as np

from emigm.metrics.features import Features
from emigm.metrics.scores import fid, nearest_distance, reference_of

SPLITS = 20
"""Random splits of the real images behind `neighbour_ratios`."""


def shuffle_sources(labels: np.ndarray, tokens: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class shuffle: what a model reaches that knows class and position of a token but ignores all other tokens.

    Args:
        labels: classes of the training images (n,).
        tokens: L.
        images: how many shuffled images are wanted, at most n.
        seed: of the permutations.

    Returns:
        Which training image each token comes from, of the same class as the others, int64 (images, L); and the
        training images (images,) whose classes these are.
    """
    rng = np.random.default_rng(seed)
    sources = np.empty((len(labels), tokens), dtype=np.int64)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        for position in range(tokens):
            sources[members, position] = rng.permutation(members)
    chosen = rng.permutation(len(labels))[:images]
    return sources[chosen], chosen


def subset_fid(real: Features, images: int, seed: int) -> float:
    """FID of `images` real images against all the others: the part of a FID that is mere sample size.

    No image is in both sets. `images` is at most half of what there is.
    """
    order = np.random.default_rng(seed).permutation(len(real["pool"]))
    images = min(images, len(order) // 2)
    subset, rest = ({"pool": real["pool"][i]} for i in (order[:images], order[images:]))
    return fid(subset, reference_of(rest))


def neighbour_ratios(pixels: np.ndarray, images: int, known: int, splits: int = SPLITS) -> list[float]:
    """The ratio (distance to the nearest of `known` images) / (distance to the nearest of as many others), for real
    images that resemble neither set more: what generated images are held against that may copy training images.

    Args:
        pixels: all real images (n, c, h, w), in any order.
        images: how many are measured in a split.
        known: images of each of the two sets.
        splits: random splits into three disjoint sets, one ratio each.
    """
    total = images + 2 * known
    if total > len(pixels):
        images, known = (part * len(pixels) // total for part in (images, known))
    ratios = []
    for seed in range(splits):
        order = np.random.default_rng([seed, 7]).permutation(len(pixels))
        measured, a, b = np.split(order[: images + 2 * known], [images, images + known])
        distances = [nearest_distance(pixels[measured], pixels[others]) for others in (a, b)]
        ratios.append(distances[0] / distances[1])
    return ratios
