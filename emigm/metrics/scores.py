"""Features -> FID, sFID, IS, KID, precision and recall; nearest neighbours.

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
from torch_fidelity.metric_prc import prc_features_to_metric

from emigm.config.errors import ConfigError, check
from emigm.io import read_arrays, write_arrays
from emigm.metrics.adm import check_statistics
from emigm.metrics.features import Features

REMEDY = "delete it and run dvc repro"
SEED = 2020
"""Of the random splits inside IS (torch-fidelity's default)."""
NEIGHBOUR = 3
"""Precision and recall: an image's ball reaches to its third nearest neighbour."""
ROWS = 2000
"""Images whose features are taken at once into a sum or a matrix of distances: 50,000 take about 2 GB, not 20."""


class Reference(NamedTuple):
    """The real images generated ones are compared with."""

    statistics: dict[str, tuple[np.ndarray, np.ndarray]]  # name of features => mean and covariance, of "pool" always
    pool: Tensor | None = None  # (n, d), for KID, precision and recall; None: there are no images to take them from
    facts: dict[str, Any] | None = None  # where all this comes from, for records


def statistics(pool: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of features (n, d), in float64.

    They are accumulated over `ROWS` images at a time, in two passes, so that no second copy of all features is held.
    """
    n, d = pool.shape
    check(n >= 2, f"evaluation.images = {n}: FID needs at least two images")
    mu, scatter = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for rows in pool.split(ROWS):
        mu += rows.double().sum(0) / n
    for rows in pool.split(ROWS):
        centred = rows.double() - mu
        scatter.addmm_(centred.T, centred)
    return mu.numpy(), (scatter / (n - 1)).numpy()


def reference_of(features: Features, **facts: Any) -> Reference:
    """Statistics of real images."""
    of = {name: statistics(values) for name, values in features.items() if name != "logits"}
    return Reference(of, features["pool"], facts)


def save_reference(path: Path, reference: Reference) -> None:
    """Write `mu` and `sigma`, `<name>_mu` and `<name>_sigma` of other features than pool, the pool features and the
    facts, as `.npz`."""
    arrays = {"facts": np.array(json.dumps(reference.facts or {}))}
    for name, pair in reference.statistics.items():
        arrays |= dict(zip(_keys(name), pair, strict=True))
    if reference.pool is not None:
        arrays["pool"] = reference.pool.numpy()
    write_arrays(path, **arrays)


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote; raises ConfigError when missing, damaged, or no statistics of anything."""
    check(path.is_file(), f"{path}: no such file; the reference stage has not run (dvc repro)")
    arrays, of = read_arrays(path, ("mu", "sigma", "facts"), REMEDY), {}
    for name in ["pool", *(key.removesuffix("_mu") for key in arrays if key.endswith("_mu"))]:
        pair = {key: arrays[key] for key in _keys(name)}
        mu, sigma = pair.values()
        check_statistics(pair, mu.size, path, REMEDY)
        of[name] = mu, sigma
    pool = torch.from_numpy(arrays["pool"]) if "pool" in arrays else None
    if pool is not None and not pool.isfinite().all():
        raise ConfigError(f"{path}: pool holds NaN or infinity; {REMEDY}")
    return Reference(of, pool, json.loads(str(arrays["facts"])))


def _keys(name: str) -> tuple[str, str]:
    """Names of the arrays with the statistics of some features."""
    prefix = "" if name == "pool" else f"{name}_"
    return f"{prefix}mu", f"{prefix}sigma"


def fid(features: Features, reference: Reference, name: str = "pool") -> float | None:
    """Frechet distance of the features of that name to the reference, whose statistics may be of any float type; None
    where either has none. Of "pool" it is FID; of "clean" clean-fid's; of "spatial" sFID as ADM defines it (Nash et al.
    2021, arXiv 2103.03841, with the features of ADM's evaluator)."""
    if name not in features or name not in reference.statistics:
        return None
    return frechet_distance(*statistics(features[name]), *reference.statistics[name])


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
        n = len(features["pool"]) // number
        if n > features["pool"].shape[1]:
            pieces = [{"pool": features["pool"][i * n : (i + 1) * n]} for i in range(number)]
            by_images[str(n)] = float(np.mean([fid(piece, reference) for piece in pieces]))
    return by_images


def inception_score(features: Features) -> float:
    """Inception score over 10 splits (as many as images, where these are fewer)."""
    options = {"splits": min(10, len(features["logits"])), "shuffle": True, "rng_seed": SEED}
    return isc_features_to_metric(features["logits"], **options)["inception_score_mean"]


def kid(features: Features, reference: Reference) -> float | None:
    """Squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, unbiased, of all images of both sides at once
    (Binkowski et al. 2018, arXiv 1801.01401), in the kernel's own unit (papers often print it times 1,000); of one
    distribution it is 0 on average, and negative as often. None without features, or of a single image."""
    x, y = features["pool"], reference.pool
    if y is None or min(len(x), len(y)) < 2:
        return None
    return _mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y)


def _mean_kernel(a: Tensor, b: Tensor) -> float:
    """Mean of KID's kernel over a row of a (n, d) and one of b (m, d), or over two different rows where `a is b`; in
    float64, of `ROWS` x `ROWS` pairs at a time."""
    total, same = 0.0, a is b
    for i, x in enumerate(a.split(ROWS)):
        for j, y in enumerate(b.split(ROWS)):
            if not same or i <= j:  # a pair of different rows once
                kernel = (x.double() @ y.double().T / a.shape[1] + 1) ** 3
                total += float((kernel.triu(1) if same and i == j else kernel).sum())
    return total / (len(a) * (len(a) - 1) / 2 if same else len(a) * len(b))


def precision_recall(features: Features, reference: Reference) -> tuple[float | None, float | None]:
    """Share of the generated images among the real ones, and of the real among the generated (Kynkaanniemi et al. 2019,
    arXiv 1904.06991): within the ball of one of them, which reaches to its third nearest neighbour other than itself.

    All images of both sides, as ADM's evaluator counts them, but distances in float32, where it rounds them to float16.
    None without features, or with too few of them to have such neighbours.
    """
    if reference.pool is None or min(len(features["pool"]), len(reference.pool)) <= NEIGHBOUR:
        return None, None
    options = {"prc_neighborhood": NEIGHBOUR, "prc_batch_size": ROWS, "save_cpu_ram": True, "verbose": False}
    values = prc_features_to_metric(features["pool"], reference.pool, **options)  # the generated images come first
    return values["precision"], values["recall"]


def scores(features: Features, reference: Reference, labels: np.ndarray | None) -> dict[str, Any]:
    """All metrics of generated images; None: not measured.

    fid, isc, kid, precision, recall, clean_fid, sfid; label_accuracy, the share that the extractor classifies as the
    class asked for; fid_by_extractor: {seed: FID} of every classifier.

    `labels` (n,) are the classes they were generated for; None where the extractor does not classify these.
    """
    precision, recall = precision_recall(features, reference)
    classifiers = {name.removeprefix("seed"): name for name in reference.statistics if name.startswith("seed")}
    return {
        "fid": fid(features, reference),
        "isc": inception_score(features),
        "kid": kid(features, reference),
        "precision": precision,
        "recall": recall,
        "label_accuracy": None if labels is None else float((features["logits"].argmax(1).numpy() == labels).mean()),
        "clean_fid": fid(features, reference, "clean"),
        "sfid": fid(features, reference, "spatial"),
        "fid_by_extractor": {seed: fid(features, reference, name) for seed, name in classifiers.items()} or None,
    }


def nearest(pixels: np.ndarray, others: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of `others` to each image, nearest first: distances (root mean square over pixels, in grey levels
    0..255), float32 (n, k), and their places in `others`, int64 (n, k)."""
    a, b = (torch.from_numpy(p.reshape(len(p), -1).astype(np.float32)) for p in (pixels, others))
    parts = [torch.cdist(rows, b).topk(k, dim=1, largest=False) for rows in a.split(ROWS)]
    distances, places = (torch.cat(of_rows) for of_rows in zip(*parts, strict=True))
    return (distances / a.shape[1] ** 0.5).numpy(), places.numpy()


def nearest_distance(pixels: np.ndarray, others: np.ndarray) -> float:
    """Mean distance of the images to their `nearest` in `others`."""
    return float(nearest(pixels, others)[0][:, 0].mean(dtype=np.float64))


def same_number(train: np.ndarray, holdout: np.ndarray) -> np.ndarray:
    """As many training images as held-out ones: nearest distances to sets of different sizes cannot be compared."""
    n = min(len(train), len(holdout))
    return train[np.random.default_rng(0).choice(len(train), n, replace=False)]
