"""Statistics of the real images, and the floors every FID is read against."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.autoencoder import load_autoencoder
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.paths import STATE, data_folder
from emigm.data.images import PARTS, ImageSource, open_images
from emigm.data.latents import INDEX, LatentStore
from emigm.files import checksums, fingerprint, sha256
from emigm.metrics.adm import AdmReference
from emigm.metrics.features import Extractor, Features, load_extractor
from emigm.metrics.measuring import Chunk, as_arrays, from_arrays, measure_chunks, measured
from emigm.metrics.scores import (
    Reference,
    fid,
    inception_score,
    nearest_distance,
    reference_of,
    same_number,
    save_reference,
    scores,
)
from emigm.model.model import EMIGM
from emigm.records.record import mean_and_spread, write_record
from emigm.runtime.distributed import join
from emigm.runtime.launching import run_stage

CHUNK = 500
"""Real images whose features are kept together."""
MOST_PHOTOS = 100_000
"""Photos whose features are held in memory at once, at most."""


def make_reference(benchmark: Benchmark) -> None:
    world = join(benchmark.run)
    if benchmark.extractor.kind == "digits-cnn":
        torch.set_num_threads(1)
    run, folder = benchmark.run, data_folder(benchmark)
    extract = load_extractor(benchmark.extractor, folder / "extractor", world.device, run.score_batch, run.workers)
    sets = image_sets(benchmark, extract)
    state = STATE / benchmark.name / "reference"
    chunks = [c for part in sets.values() for c in part]
    measure_chunks(
        chunks, lambda pixels: as_arrays(extract(pixels)), state, world, f"features of real images {benchmark.name}"
    )
    others = world.others_cpu_seconds()
    if not world.is_main:
        return
    features = {name: from_arrays(measured(part, state)) for name, part in sets.items()}
    stored = benchmark.evaluation.reference
    found = stored_reference(Path(stored), extract, features) if stored else training_reference(benchmark, features)
    reference, results = found
    read = inputs(benchmark)
    facts = {**reference.facts, "extractor": extract.identity["sha256"], "inputs": read}
    save_reference(folder / "reference.npz", reference._replace(facts=facts))
    write_record(
        benchmark,
        "reference",
        results,
        device=world.device,
        processes=world.size,
        inputs=read,
        outputs=checksums(folder / "reference.npz"),
        others_cpu_seconds=others,
        evaluation=benchmark.evaluation,
        extractor=benchmark.extractor,
        extractor_identity=extract.identity,
    )
    shutil.rmtree(state, ignore_errors=True)


def inputs(benchmark: Benchmark) -> dict[str, str]:
    """Checksums of all that the stage reads: extractor, images, latents where tokens are shuffled, stored statistics
    in place of the images."""
    folder, stored = data_folder(benchmark), benchmark.evaluation.reference
    files = [folder / "extractor"]
    if stored is not None:
        files.append(Path(stored))
    else:
        files += [open_images(folder / "images", part).path for part in PARTS]
        if benchmark.autoencoder.kind == "pixels":
            files.append(folder / "latents" / "train" / INDEX)
    return checksums(*files)


def image_sets(benchmark: Benchmark, extract: Extractor) -> dict[str, list[Chunk]]:
    """The sets of images whose features are needed: "stored" beside stored statistics, where there are any, or
    "train", "holdout", and "shuffled-<seed>" where tokens are patches of pixels."""
    stored = benchmark.evaluation.reference
    if stored is not None:
        adm = AdmReference(stored, extract.width)
        return {"stored": chunks_of(sha256(adm.path), adm.images, adm.pixels, extract)} if adm.images else {}
    folder, sets = data_folder(benchmark) / "images", {}
    for part in ("train", "holdout"):
        source = open_images(folder, part, benchmark.run.workers)
        if len(source) > MOST_PHOTOS:
            raise ConfigError(
                f"evaluation.reference is missing: features of {len(source):,} images do not fit in memory; name a "
                "file of stored statistics, such as VIRTUAL_imagenet256_labeled.npz"
            )
        sets[part] = chunks_of(sha256(source.path), len(source), partial(read_range, source), extract)
    if benchmark.autoencoder.kind == "pixels":
        model = as_dict(benchmark.model_config(benchmark.sizes[0]))
        number = min(benchmark.evaluation.images, sum(c.images for c in sets["train"]))
        for seed in benchmark.evaluation.seeds:
            pixels = cache(partial(shuffled, benchmark, seed))
            identity = fingerprint(sha256(folder / "train.npz"), as_dict(benchmark.autoencoder), model, seed)
            sets[f"shuffled-{seed}"] = chunks_of(identity, number, partial(read_part, pixels), extract)
    return sets


def chunks_of(identity: str, images: int, read: Callable[[int, int], np.ndarray], extract: Extractor) -> list[Chunk]:
    """Chunks of a set that `identity` names and `read(start, stop)` reads."""
    ranges = [(start, min(start + CHUNK, images)) for start in range(0, images, CHUNK)]
    return [
        Chunk(fingerprint(identity, start, stop, extract.identity), stop - start, partial(read, start, stop))
        for start, stop in ranges
    ]


def read_range(source: ImageSource, start: int, stop: int) -> np.ndarray:
    return source.pixels(range(start, stop))


def read_part(make: Callable[[], np.ndarray], start: int, stop: int) -> np.ndarray:
    return make()[start:stop]


def stored_reference(path: Path, extract: Extractor, features: dict[str, Features]) -> tuple[Reference, dict[str, Any]]:
    """Stored statistics with the features of the images stored beside them, and the record's results: no floors, as
    no other real images are at hand."""
    adm = AdmReference(path, extract.width)
    images = features.get("stored")
    facts = {"kind": "stored statistics", "file": path.name, "sha256": sha256(path), "keys": adm.keys}
    facts["feature_images"] = adm.images
    reference = Reference(adm.mu, adm.sigma, facts=facts)
    results: dict[str, Any] = {"source": facts, "floors": {}}
    if images is not None:
        of_images = reference_of(images)
        reference = reference._replace(pool=images.pool, clean=of_images.clean)
        # Of fewer images than the statistics: shows whether extractor and statistics belong together.
        results["stored_images"] = {
            "images": adm.images,
            "isc": inception_score(images),
            "fid": fid(images, reference),
        }
    return reference, results


def training_reference(benchmark: Benchmark, features: dict[str, Features]) -> tuple[Reference, dict[str, Any]]:
    """Statistics of the training images, and the record's results with the floors."""
    folder, evaluation = data_folder(benchmark) / "images", benchmark.evaluation
    real, held_out = features["train"], features["holdout"]
    n = len(held_out.pool)
    facts = {"kind": "training images", "feature_images": len(real.pool)}
    reference = reference_of(real, **facts)
    classified = benchmark.extractor.kind == "digits-cnn"

    def scored(images: Features, labels: np.ndarray) -> dict[str, float]:
        found = scores(images, reference, labels if classified else None, evaluation.kid_subset)
        return {name: value for name, value in found.items() if value is not None}

    holdout = open_images(folder, "holdout", benchmark.run.workers)
    # As many training images as held-out ones, so that a part of the floor that is mere sample size shows.
    bootstrap = [bootstrap_fid(real, reference, n, seed) for seed in evaluation.seeds]
    floors = {
        "holdout": {**{k: {"mean": v} for k, v in scored(held_out, holdout.labels).items()}, "images": n},
        "train_bootstrap": {"fid": mean_and_spread(bootstrap), "images": n},
    }
    shuffles = {s: features[f"shuffled-{s}"] for s in evaluation.seeds if f"shuffled-{s}" in features}
    if shuffles:
        labels = open_images(folder, "train").labels
        found = [scored(f, labels[shuffle(benchmark, labels, seed)[1]]) for seed, f in shuffles.items()]
        images = len(next(iter(shuffles.values())).pool)
        floors["class_shuffle"] = {**{k: mean_and_spread([s[k] for s in found]) for k in found[0]}, "images": images}
    results = {
        "source": facts,
        "floors": floors,
        "real": {"isc": inception_score(real), "images": len(real.pool)},
    }
    if benchmark.data.dataset != "imagenet":
        train = open_images(folder, "train")
        pixels = holdout.pixels(range(n))
        nearest = nearest_distance(pixels, same_number(train.pixels(range(len(train))), pixels))
        results["nearest"] = {"holdout_to_train": nearest}
    return reference, results


def shuffled(benchmark: Benchmark, seed: int) -> np.ndarray:
    """Training images with every token drawn from another image of the class, position by position: what a model
    reaches that knows class and position but ignores context. Pixels uint8 (n, c, h, w), as many as a model
    generates, since FID depends on the number."""
    store = LatentStore(data_folder(benchmark) / "latents" / "train")
    autoencoder = load_autoencoder(benchmark.autoencoder)
    raw = torch.from_numpy(store.rows(np.arange(len(store)), view=0))
    unit = autoencoder.sample(raw, torch.Generator().manual_seed(seed))
    with torch.device("meta"):
        model = EMIGM(benchmark.model_config(benchmark.sizes[0]))  # for its patches alone
    tokens = model.patchify(unit)
    sources, _ = shuffle(benchmark, store.labels, seed)
    mixed = tokens[torch.from_numpy(sources), torch.arange(tokens.shape[1])]
    return autoencoder.decode(model.unpatchify(mixed)).numpy()


def shuffle(benchmark: Benchmark, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which image each token comes from (n, L), and the images (n,) whose classes these are."""
    rng = np.random.default_rng(seed)
    sources = np.empty((len(labels), benchmark.model_config(benchmark.sizes[0]).tokens), dtype=np.int64)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        for position in range(sources.shape[1]):
            sources[members, position] = rng.permutation(members)
    chosen = rng.permutation(len(labels))[: benchmark.evaluation.images]
    return sources[chosen], chosen


def bootstrap_fid(real: Features, reference: Reference, n: int, seed: int) -> float:
    """FID of n training images drawn without replacement: how much of a floor is sample size."""
    chosen = np.random.default_rng(seed).choice(len(real.pool), min(n, len(real.pool)), replace=False)
    return fid(Features(real.pool[chosen], real.logits[chosen]), reference)


if __name__ == "__main__":
    run_stage(make_reference)
