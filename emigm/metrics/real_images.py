"""What generated images are compared with: statistics of the real images, and the baselines beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.autoencoder import load_autoencoder
from emigm.config.benchmark import Benchmark
from emigm.config.paths import PARTS, data_folder, images_folder
from emigm.data.images import open_images
from emigm.data.latents import LatentStore
from emigm.io import sha256
from emigm.metrics.adm import AdmReference
from emigm.metrics.baselines import neighbour_ratios, shuffle_sources, subset_fid
from emigm.metrics.features import Extractor, Features
from emigm.metrics.scores import (
    Reference,
    fid,
    inception_score,
    nearest_distance,
    reference_of,
    same_number,
    scores,
)
from emigm.model.model import EMIGM
from emigm.records.record import mean_and_spread

SUBSETS = 5
"""Random subsets of the training images behind their baseline."""


def stored_reference(path: Path, extract: Extractor, images: Features | None) -> tuple[Reference, dict[str, Any]]:
    """Stored statistics with the features of the images stored beside them, and the record's results: no
    baselines, as no other real images are at hand."""
    adm = AdmReference(path, extract.width)
    facts = {"kind": "stored statistics", "file": path.name, "sha256": sha256(path), "keys": adm.keys}
    facts["feature_images"] = adm.images
    reference = Reference(adm.mu, adm.sigma, facts=facts)
    results: dict[str, Any] = {"source": facts, "baselines": {}}
    if images is not None:
        reference = reference._replace(pool=images.pool, clean=reference_of(images).clean)
        # Of fewer images than the statistics: shows whether extractor and statistics belong together.
        isc = inception_score(images)
        results["stored_images"] = {"images": adm.images, "isc": isc, "fid": fid(images, reference)}
    return reference, results


def training_reference(benchmark: Benchmark, features: dict[str, Features]) -> tuple[Reference, dict[str, Any]]:
    """Statistics of the training images, and the record's results with the baselines."""
    evaluation, real = benchmark.evaluation, features["train"]
    facts = {"kind": "training images", "feature_images": len(real.pool)}
    reference = reference_of(real, **facts)
    sources = {part: open_images(images_folder(benchmark), part, benchmark.run.workers) for part in PARTS}
    labels = {part: source.labels for part, source in sources.items()}
    # Held-out images as many as are generated, where there are so many: FID and IS depend on the number.
    n = min(evaluation.images, len(labels["holdout"]))
    chosen = np.random.default_rng(0).permutation(len(labels["holdout"]))[:n]
    subset = min(evaluation.images, len(labels["train"]) // 2)

    def scored(images: Features, classes: np.ndarray) -> dict[str, float]:
        known = classes if benchmark.extractor.kind == "cnn" else None
        found = scores(images, reference, known, evaluation.kid_subset)
        return {name: value for name, value in found.items() if value is not None}

    def held_out(name: str) -> dict[str, Any]:
        images = Features(*(None if f is None else f[chosen] for f in features[name]))
        return {k: {"mean": v} for k, v in scored(images, labels["holdout"][chosen]).items()} | {"images": n}

    subset_fids = [subset_fid(real, subset, seed) for seed in range(SUBSETS)]
    baselines = {"holdout": held_out("holdout")}
    baselines["train_subset"] = {"fid": mean_and_spread(subset_fids), "images": subset}
    if "reconstructed" in features:  # what the autoencoder loses: the baseline of models of its latents
        baselines["reconstruction"] = held_out("reconstructed")
    else:
        tokens = benchmark.model_config(benchmark.sizes[0]).tokens
        shuffles = {seed: features[f"shuffled-{seed}"] for seed in evaluation.seeds}
        number = len(shuffles[evaluation.seeds[0]].pool)
        found = [
            scored(images, labels["train"][shuffle_sources(labels["train"], tokens, number, seed)[1]])
            for seed, images in shuffles.items()
        ]
        baselines["class_shuffle"] = {k: mean_and_spread([s[k] for s in found]) for k in found[0]} | {"images": number}
    results = {
        "source": facts,
        "baselines": baselines,
        "real": {"isc": inception_score(real), "images": len(real.pool)},
    }
    if benchmark.data.dataset != "imagenet":
        train, holdout = (source.pixels(range(len(source))) for source in sources.values())
        ratios = neighbour_ratios(np.concatenate([train, holdout]), evaluation.images, len(holdout))
        results["nearest"] = {
            "holdout_to_train": nearest_distance(holdout, same_number(train, holdout)),
            "real_ratio": mean_and_spread(ratios),
        }
    return reference, results


def reconstructed(benchmark: Benchmark) -> np.ndarray:
    """The held-out images decoded from their latents, uint8 (n, c, h, w)."""
    store = LatentStore(data_folder(benchmark) / "latents" / "holdout")
    raw = torch.from_numpy(store.rows(np.arange(len(store)), view=0))
    autoencoder = load_autoencoder(benchmark.autoencoder)
    return autoencoder.decode(autoencoder.sample(raw, torch.Generator().manual_seed(0))).numpy()


def shuffled(benchmark: Benchmark, seed: int) -> np.ndarray:
    """Class-shuffled training images (`shuffle_sources`), uint8 (n, c, h, w): as many as a model generates, since FID
    depends on the number."""
    store = LatentStore(data_folder(benchmark) / "latents" / "train")
    autoencoder = load_autoencoder(benchmark.autoencoder)
    raw = torch.from_numpy(store.rows(np.arange(len(store)), view=0))
    unit = autoencoder.sample(raw, torch.Generator().manual_seed(seed))
    with torch.device("meta"):
        model = EMIGM(benchmark.model_config(benchmark.sizes[0]))  # for its patches alone
    tokens = model.patchify(unit)
    sources, _ = shuffle_sources(store.labels, tokens.shape[1], benchmark.evaluation.images, seed)
    mixed = tokens[torch.from_numpy(sources), torch.arange(tokens.shape[1])]
    return autoencoder.decode(model.unpatchify(mixed)).numpy()
