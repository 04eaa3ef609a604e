"""uint8 images -> features -> FID, IS, KID, precision and recall, through torch-fidelity; nearest neighbours.

The only module that knows torch-fidelity. The digits' features come from a small classifier, registered there
as an extractor, so that every number passes through the same functions that serve Inception.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id

from emigm.classifier import DIGITS_FEATURES, load_classifier
from emigm.config import ExtractorConfig
from emigm.parsing import ConfigError
from emigm.records import write_atomically

SEED = 2020
"""Of the random splits inside IS and KID (torch-fidelity's default)."""


class DigitsExtractor(FeatureExtractorBase):
    """The classifier as torch-fidelity wants it; layers "64" and "logits"."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str = "", **_):
        super().__init__(name, features_list)
        self.model = load_classifier(Path(feature_extractor_weights_path))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        layers = dict(zip(self.get_provided_features_list(), self.model(pixels), strict=True))
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (str(DIGITS_FEATURES), "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else str(DIGITS_FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        return False


register_feature_extractor("digits-cnn", DigitsExtractor)


class Features(NamedTuple):
    """What the metrics need to know of a set of images."""

    pool: Tensor  # (n, d)
    logits: Tensor  # (n, classes)


class Reference(NamedTuple):
    """The real images generated ones are compared with."""

    mu: np.ndarray  # (d,)
    sigma: np.ndarray  # (d, d)
    pool: Tensor  # (n, d), for KID, precision and recall


def load_extractor(cfg: ExtractorConfig, weights: Path, device: str = "cpu") -> Callable[[np.ndarray], Features]:
    """A function from uint8 pixels (n, c, h, w) to `Features`."""
    layers = [str(DIGITS_FEATURES), "logits"]
    cuda = device != "cpu"
    options = {"feature_extractor_weights_path": str(weights), "verbose": False}
    extractor = create_feature_extractor(cfg.kind, layers, cuda=cuda, **options)

    def extract(pixels: np.ndarray) -> Features:
        images = _Images(torch.from_numpy(pixels))
        found = extract_featuresdict_from_input_id(
            1, extractor, input1=images, batch_size=256, cuda=cuda, save_cpu_ram=True, verbose=False
        )
        return Features(found[layers[0]], found[layers[1]])

    return extract


class _Images(torch.utils.data.Dataset):
    """Bare tensors, as torch-fidelity asks."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[i]


def reference_of(features: Features) -> Reference:
    """Statistics of real images."""
    statistics = fid_features_to_statistics(features.pool)
    return Reference(statistics["mu"], statistics["sigma"], features.pool)


def save_reference(path: Path, reference: Reference) -> None:
    """Write `mu`, `sigma` (the layout of ADM's reference files) and the features, as `.npz`."""
    arrays = {"mu": reference.mu, "sigma": reference.sigma, "pool": reference.pool.numpy()}
    write_atomically(path, lambda p: np.savez(p, **arrays))


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote; raises ConfigError when missing or damaged."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the reference stage has not run (dvc repro)")
    try:
        with np.load(path) as f:
            return Reference(f["mu"], f["sigma"], torch.from_numpy(f["pool"]))
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise ConfigError(f"{path}: truncated or damaged ({e}); delete it and run dvc repro") from e


def fid(features: Features, reference: Reference) -> float:
    """Frechet distance to the reference; the reference's statistics may be of any float type."""
    mine = fid_features_to_statistics(features.pool)
    theirs = {
        "mu": reference.mu.astype(mine["mu"].dtype),
        "sigma": reference.sigma.astype(mine["sigma"].dtype),
    }
    return fid_statistics_to_metric(mine, theirs, False)["frechet_inception_distance"]


def inception_score(features: Features) -> float:
    """Inception score over 10 splits."""
    return isc_features_to_metric(features.logits, splits=10, shuffle=True, rng_seed=SEED)["inception_score_mean"]


def scores(features: Features, reference: Reference, labels: np.ndarray, kid_subset: int) -> dict[str, float]:
    """All metrics of generated images: fid, isc, kid, precision, recall, label_accuracy.

    Args:
        features: of the generated images.
        reference: real images.
        labels: the classes they were generated for (n,).
        kid_subset: images of each of KID's 20 subsets.
    """
    subset = min(kid_subset, len(features.pool), len(reference.pool))
    kid = kid_features_to_metric(
        features.pool, reference.pool, kid_subsets=20, kid_subset_size=subset, rng_seed=SEED, verbose=False
    )
    # torch-fidelity takes the generated images first.
    prc = prc_features_to_metric(features.pool, reference.pool, verbose=False)
    return {
        "fid": fid(features, reference),
        "isc": inception_score(features),
        "kid": kid["kernel_inception_distance_mean"],
        "precision": prc["precision"],
        "recall": prc["recall"],
        "label_accuracy": float((features.logits.argmax(1).numpy() == labels).mean()),
    }


def nearest_distance(pixels: np.ndarray, others: np.ndarray) -> float:
    """Mean distance (root mean square over pixels, in grey levels 0..255) of each image to its nearest in `others`."""
    a, b = (torch.from_numpy(p.reshape(len(p), -1).astype(np.float32)) for p in (pixels, others))
    return float((torch.cdist(a, b).min(dim=1).values / a.shape[1] ** 0.5).mean())
