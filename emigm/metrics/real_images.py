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
from emigm.metrics.classifier import classification_accuracy_score
from emigm.metrics.features import Extractor, Features
from emigm.metrics.scores import (
    Reference,
    fid,
    inception_score,
    nearest_distance,
    reference_of,
    same_number,
    scores,
    statistics,
)
from emigm.model.model import EMIGM

SUBSETS = 5
"""Random subsets of the training images behind their baseline."""
SPLITS = 20
"""Random splits of the real images behind `neighbour_ratios`."""


def stored_reference(path: Path, extract: Extractor, images: Features | None) -> tuple[Reference, dict[str, Any]]:
    """Stored statistics with the features of the images stored beside them, and the record's results: no
    baselines, as no other real images are at hand."""
    adm = AdmReference(path, extract.widths)
    facts = {"kind": "stored statistics", "file": path.name, "sha256": sha256(path), "keys": adm.keys}
    facts["feature_images"] = adm.images
    reference = Reference(adm.statistics, facts=facts)
    results: dict[str, Any] = {"source": facts, "baselines": {}}
    if images is not None:
        more = {"clean": statistics(images["clean"])} if "clean" in images else {}
        reference = reference._replace(statistics=adm.statistics | more, pool=images["pool"])
        # Of fewer images than the statistics: shows whether extractor and statistics belong together.
        found = {"isc": inception_score(images), "fid": fid(images, reference)}
        spatial = fid(images, reference, "spatial")
        results["stored_images"] = {"images": adm.images} | found | ({} if spatial is None else {"sfid": spatial})
    return reference, results


def training_reference(benchmark: Benchmark, features: dict[str, Features]) -> tuple[Reference, dict[str, Any]]:
    """Statistics of the training images, and the record's results with the baselines."""
    evaluation, real = benchmark.evaluation, features["train"]
    facts = {"kind": "training images", "feature_images": len(real["pool"])}
    reference = reference_of(real, **facts)
    sources = {part: open_images(images_folder(benchmark), part, benchmark.run.workers) for part in PARTS}
    labels = {part: source.labels for part, source in sources.items()}
    in_memory = benchmark.data.dataset != "imagenet"
    pixels = {part: source.pixels(range(len(source))) for part, source in sources.items()} if in_memory else {}
    # Held-out images as many as are generated, where there are so many: FID and IS depend on the number.
    n = min(evaluation.images, len(labels["holdout"]))
    chosen = np.random.default_rng(0).permutation(len(labels["holdout"]))[:n]

    def scored(images: Features, classes: np.ndarray) -> dict[str, Any]:
        return scores(images, reference, classes if benchmark.extractor.kind == "cnn" else None)

    def held_out(name: str) -> dict[str, Any]:
        images = {key: values[chosen] for key, values in features[name].items()}
        return _spread([scored(images, labels["holdout"][chosen])]) | {"images": n}

    def cas(images: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
        if evaluation.cas_steps is None:
            return {}
        held_out, training = (pixels["holdout"], labels["holdout"]), benchmark.extractor.training
        value = classification_accuracy_score((images, classes), held_out, training, evaluation.cas_steps)
        return {"cas": {"values": [value]}}

    subset = min(evaluation.images, len(labels["train"]) // 2)
    fids = {"values": [subset_fid(real, subset, seed) for seed in range(SUBSETS)]}
    # CAS of as many real images as a model generates for it.
    among = np.random.default_rng(0).permutation(len(labels["train"]))[: evaluation.images * len(evaluation.seeds)]
    baselines = {"holdout": held_out("holdout"), "train_subset": {"fid": fids, "images": subset}}
    if in_memory:
        baselines["train_subset"] |= cas(pixels["train"][among], labels["train"][among])
    if "reconstructed" in features:  # what the autoencoder loses: the baseline of models of its latents
        baselines["reconstruction"] = held_out("reconstructed")
    else:
        images, classes = zip(*(shuffled(benchmark, seed) for seed in evaluation.seeds), strict=True)
        found = [scored(features[f"shuffled-{s}"], y) for s, y in zip(evaluation.seeds, classes, strict=True)]
        number = {"images": len(images[0])}
        baselines["class_shuffle"] = _spread(found) | cas(np.concatenate(images), np.concatenate(classes)) | number
    results = {
        "source": facts,
        "baselines": baselines,
        "real": {"isc": inception_score(real), "images": len(real["pool"])},
    }
    if in_memory:
        ratios = neighbour_ratios(np.concatenate([*pixels.values()]), evaluation.images, len(pixels["holdout"]))
        results["nearest"] = {
            "holdout_to_train": nearest_distance(pixels["holdout"], same_number(*pixels.values())),
            "real_ratio": {"values": ratios},
        }
    return reference, results


def _spread(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Values of every metric that was measured, over several sets of images."""
    measured = {key: [scored[key] for scored in found] for key, value in found[0].items() if value is not None}
    return {k: _spread(v) if isinstance(v[0], dict) else {"values": v} for k, v in measured.items()}


def reconstructed(benchmark: Benchmark, device: str) -> np.ndarray:
    """The held-out images decoded from their latents on the device, uint8 (n, c, h, w)."""
    store = LatentStore(data_folder(benchmark) / "latents" / "holdout")
    raw = torch.from_numpy(store.rows(np.arange(len(store)), view=0))
    autoencoder = load_autoencoder(benchmark.autoencoder, device)
    return autoencoder.decode(autoencoder.sample(raw, torch.Generator().manual_seed(0))).numpy()


def shuffled(benchmark: Benchmark, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class-shuffled training images (`shuffle_sources`), uint8 (n, c, h, w), and their classes (n,): as many as a
    model generates, since FID depends on the number."""
    store = LatentStore(data_folder(benchmark) / "latents" / "train")
    autoencoder = load_autoencoder(benchmark.autoencoder)
    raw = torch.from_numpy(store.rows(np.arange(len(store)), view=0))
    unit = autoencoder.sample(raw, torch.Generator().manual_seed(seed))
    with torch.device("meta"):
        model = EMIGM(benchmark.model_config(benchmark.sizes[0]))  # for its patches alone
    tokens = model.patchify(unit)
    sources, chosen = shuffle_sources(store.labels, tokens.shape[1], benchmark.evaluation.images, seed)
    mixed = tokens[torch.from_numpy(sources), torch.arange(tokens.shape[1])]
    return autoencoder.decode(model.unpatchify(mixed)).numpy(), store.labels[chosen]


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


def neighbour_ratios(pixels: np.ndarray, images: int, known: int) -> list[float]:
    """The ratio (distance to the nearest of `known` images) / (distance to the nearest of as many others), for real
    images that resemble neither set more: what generated images are held against that may copy training images. One of
    each of `SPLITS` random splits into three disjoint sets.

    Args:
        pixels: all real images (n, c, h, w), in any order.
        images: how many are measured in a split.
        known: images of each of the two sets.
    """
    total = images + 2 * known
    if total > len(pixels):
        images, known = (part * len(pixels) // total for part in (images, known))
    ratios = []
    for seed in range(SPLITS):
        order = np.random.default_rng([seed, 7]).permutation(len(pixels))
        measured, a, b = np.split(order[: images + 2 * known], [images, images + known])
        distances = [nearest_distance(pixels[measured], pixels[others]) for others in (a, b)]
        ratios.append(distances[0] / distances[1])
    return ratios
