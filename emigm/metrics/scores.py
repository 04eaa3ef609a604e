"""Features -> FID, IS, KID, precision and recall, through torch-fidelity; nearest neighbours.

Features are float32, statistics float64, whatever the extractor and the device.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from emigm.config.errors import ConfigError
from emigm.io import read_arrays, write_arrays
from emigm.metrics.adm import check_statistics
from emigm.metrics.features import Features

REMEDY = "delete it and run dvc repro"
SEED = 2020
"""Of the random splits inside IS and KID (torch-fidelity's default)."""
NEIGHBOUR = 3
"""Precision and recall: an image's ball reaches to its third nearest neighbour."""
PRC_ROWS = 2000
"""Rows of the matrix of distances held at once: scores of 50,000 images take about 2 GB, not 20."""
ROWS = 2000
"""Images whose features are taken into mean and covariance at once."""


class Reference(NamedTuple):
    """The real images generated ones are compared with."""

    mu: np.ndarray  # float64 (d,)
    sigma: np.ndarray  # float64 (d, d)
    pool: Tensor | None = None  # (n, d), for KID, precision and recall; None: there are no images to take them from
    clean: tuple[np.ndarray, np.ndarray] | None = None  # mu and sigma of the features behind clean-fid's resizing
    facts: dict[str, Any] | None = None  # where all this comes from, for records


def statistics(pool: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of features (n, d), in float64.

    They are accumulated over `ROWS` images at a time, in two passes, so that no second copy of all features is held.
    """
    n, d = pool.shape
    if n < 2:
        raise ConfigError(f"evaluation.images = {n}: FID needs at least two images")
    mu, scatter = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for rows in pool.split(ROWS):
        mu += rows.double().sum(0) / n
    for rows in pool.split(ROWS):
        centred = rows.double() - mu
        scatter.addmm_(centred.T, centred)
    return mu.numpy(), (scatter / (n - 1)).numpy()


def reference_of(features: Features, **facts: Any) -> Reference:
    """Statistics of real images."""
    clean = None if features.clean is None else statistics(features.clean)
    return Reference(*statistics(features.pool), features.pool, clean, facts)


def save_reference(path: Path, reference: Reference) -> None:
    """Write `mu`, `sigma` (the layout of ADM's reference files), the features and the facts, as `.npz`."""
    arrays = {"mu": reference.mu, "sigma": reference.sigma, "facts": np.array(json.dumps(reference.facts or {}))}
    if reference.pool is not None:
        arrays["pool"] = reference.pool.numpy()
    if reference.clean is not None:
        arrays["clean_mu"], arrays["clean_sigma"] = reference.clean
    write_arrays(path, **arrays)


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote; raises ConfigError when missing, damaged, or no statistics of anything."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the reference stage has not run (dvc repro)")
    arrays = read_arrays(path, ("mu", "sigma", "facts"), REMEDY)
    pool = torch.from_numpy(arrays["pool"]) if "pool" in arrays else None
    clean = (arrays["clean_mu"], arrays["clean_sigma"]) if "clean_mu" in arrays else None
    for mu, sigma in ((arrays["mu"], arrays["sigma"]), *([clean] if clean else [])):
        check_statistics(mu, sigma, arrays["mu"].size, path, REMEDY)
    if pool is not None and not pool.isfinite().all():
        raise ConfigError(f"{path}: pool holds NaN or infinity; {REMEDY}")
    return Reference(arrays["mu"], arrays["sigma"], pool, clean, json.loads(str(arrays["facts"])))


def fid(features: Features, reference: Reference) -> float:
    """Frechet distance to the reference; the reference's statistics may be of any float type."""
    return frechet_distance(*statistics(features.pool), reference.mu, reference.sigma)


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Of two normal distributions, |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Heusel et al. 2017, arXiv 1706.08500,
    equation 6); means (d,), covariances (d, d).

    The product's eigenvalues are those of S2^1/2 S1 S2^1/2, which is symmetric: several times faster than those of a
    product that is not.
    """
    mu1, sigma1, mu2, sigma2 = (a.astype(np.float64) for a in (mu1, sigma1, mu2, sigma2))
    values, vectors = np.linalg.eigh(sigma2)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ sigma1 @ root).clip(0)).sum()
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap)


def fid_of_parts(features: Features, reference: Reference, parts: tuple[int, ...] = (2, 4)) -> dict[str, float]:
    """FID of fewer images, {their number: mean over disjoint parts}, the images being split in so many `parts`.

    FID of n images is too high by about a constant over n (Chong and Forsyth, arXiv 1911.07023): how it falls with n
    says what it would be of infinitely many (`emigm.report.statistics.fid_infinity`). Parts of no more images than
    features are left out: their covariance is singular, and FID does not fall like that.
    """
    by_images = {}
    for number in parts:
        n = len(features.pool) // number
        if n > features.pool.shape[1]:
            pieces = [features._replace(pool=features.pool[i * n : (i + 1) * n]) for i in range(number)]
            by_images[str(n)] = float(np.mean([fid(piece, reference) for piece in pieces]))
    return by_images


def clean_fid(features: Features, reference: Reference) -> float | None:
    """FID of the features behind clean-fid's resizing; None where there are none, of either images."""
    if features.clean is None or reference.clean is None:
        return None
    return frechet_distance(*statistics(features.clean), *reference.clean)


def inception_score(features: Features) -> float:
    """Inception score over 10 splits (as many as images, where these are fewer)."""
    splits = min(10, len(features.logits))
    return isc_features_to_metric(features.logits, splits=splits, shuffle=True, rng_seed=SEED)["inception_score_mean"]


def kid(features: Features, reference: Reference, subset: int) -> float | None:
    """Kernel distance, over 20 subsets of `subset` images, or of all where these are fewer; None without features."""
    if reference.pool is None:
        return None
    subset = min(subset, len(features.pool), len(reference.pool))
    options = {"kid_subsets": 20, "kid_subset_size": subset, "rng_seed": SEED, "verbose": False}
    return kid_features_to_metric(features.pool, reference.pool, **options)["kernel_inception_distance_mean"]


def precision_recall(features: Features, reference: Reference) -> tuple[float | None, float | None]:
    """Share of the generated images among the real ones, and of the real among the generated; None without features,
    or with too few of them to have such neighbours."""
    if reference.pool is None or min(len(features.pool), len(reference.pool)) <= NEIGHBOUR:
        return None, None
    options = {"prc_neighborhood": NEIGHBOUR, "prc_batch_size": PRC_ROWS, "save_cpu_ram": True, "verbose": False}
    values = prc_features_to_metric(features.pool, reference.pool, **options)  # the generated images come first
    return values["precision"], values["recall"]


def scores(
    features: Features, reference: Reference, labels: np.ndarray | None, kid_subset: int
) -> dict[str, float | None]:
    """All metrics of generated images: fid, isc, kid, precision, recall, label_accuracy; None: not measured.

    `labels` (n,) are the classes they were generated for; None where the extractor does not classify these.
    """
    precision, recall = precision_recall(features, reference)
    return {
        "fid": fid(features, reference),
        "isc": inception_score(features),
        "kid": kid(features, reference, kid_subset),
        "precision": precision,
        "recall": recall,
        "label_accuracy": None if labels is None else float((features.logits.argmax(1).numpy() == labels).mean()),
    }


def nearest(pixels: np.ndarray, others: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of `others` to each image, nearest first: distances (root mean square over pixels, in grey levels
    0..255), float32 (n, k), and their places in `others`, int64 (n, k)."""
    a, b = (torch.from_numpy(p.reshape(len(p), -1).astype(np.float32)) for p in (pixels, others))
    parts = [torch.cdist(rows, b).topk(k, dim=1, largest=False) for rows in a.split(PRC_ROWS)]
    distances, places = (torch.cat(of_rows) for of_rows in zip(*parts, strict=True))
    return (distances / a.shape[1] ** 0.5).numpy(), places.numpy()


def nearest_distances(pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each image to its `nearest` in `others`, float32 (n,)."""
    return nearest(pixels, others)[0][:, 0]


def nearest_distance(pixels: np.ndarray, others: np.ndarray) -> float:
    """Mean of `nearest_distances`."""
    return float(nearest_distances(pixels, others).mean(dtype=np.float64))


def same_number(train: np.ndarray, holdout: np.ndarray) -> np.ndarray:
    """As many training images as held-out ones: nearest distances to sets of different sizes cannot be compared."""
    n = min(len(train), len(holdout))
    return train[np.random.default_rng(0).choice(len(train), n, replace=False)]
