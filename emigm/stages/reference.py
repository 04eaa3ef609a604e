"""Statistics of the real images, and the baselines every FID is read against."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.autoencoder import load_autoencoder, weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.paths import STATE, data_folder, extractor_folder, images_folder, results_folder
from emigm.data.images import PARTS, ImageSource, open_images, why_none
from emigm.data.latents import INDEX, LatentStore
from emigm.distributed import join
from emigm.io import checksums, fingerprint, sha256
from emigm.launching import run_stage
from emigm.metrics.adm import AdmReference
from emigm.metrics.baselines import neighbour_ratios, shuffle_sources, subset_fid
from emigm.metrics.features import Extractor, Features, extractor_of
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
from emigm.pictures import GREY, GRID_COLUMNS, SHOWN, save_grid
from emigm.records.record import cpu_seconds, mean_and_spread, write_record

CHUNK = 500
"""Real images whose features are kept together."""
SUBSETS = 5
"""Random subsets of the training images behind their baseline."""
MOST_PHOTOS = 100_000
"""Photos whose features are held in memory at once, at most."""


def make_reference(benchmark: Benchmark) -> None:
    world = join(benchmark.run)
    folder = data_folder(benchmark)
    extract = extractor_of(benchmark, world.device)
    sets = image_sets(benchmark, extract)
    state = STATE / benchmark.name / "reference"
    chunks = [c for part in sets.values() for c in part]
    measure_chunks(
        chunks, lambda pixels: as_arrays(extract(pixels)), state, world, f"features of real images {benchmark.name}"
    )
    others = sum(world.gather(cpu_seconds())[1:])
    if not world.is_main:
        return
    features = {name: from_arrays(measured(part, state)) for name, part in sets.items()}
    stored = benchmark.evaluation.reference
    found = stored_reference(Path(stored), extract, features) if stored else training_reference(benchmark, features)
    reference, results = found
    read = inputs(benchmark)
    facts = {**(reference.facts or {}), "inputs": read}
    save_reference(folder / "reference.npz", reference._replace(facts=facts))
    grid = save_real_grid(benchmark)
    write_record(
        benchmark,
        "reference",
        results,
        device=world.device,
        processes=world.size,
        inputs=read,
        outputs=checksums(folder / "reference.npz", grid),
        others_cpu_seconds=others,
        evaluation=benchmark.evaluation,
        extractor=benchmark.extractor,
        extractor_identity=extract.identity,
    )
    shutil.rmtree(state, ignore_errors=True)


def inputs(benchmark: Benchmark) -> dict[str, str]:
    """Checksums of all the stage reads: extractor, stored statistics, latents where tokens are shuffled, images."""
    stored, files = benchmark.evaluation.reference, [extractor_folder(benchmark)]
    if stored is not None:
        files.append(Path(stored))
    else:  # shuffled tokens are those of pixels; other autoencoders are measured by what they reconstruct
        part = "train" if benchmark.autoencoder.kind == "pixels" else "holdout"
        files += [data_folder(benchmark) / "latents" / part / INDEX, *weight_files(benchmark.autoencoder.weights)]
    if why_none(images_folder(benchmark)) is None:
        files += [open_images(images_folder(benchmark), part).path for part in PARTS]
    return checksums(*files)


def save_real_grid(benchmark: Benchmark) -> Path:
    """Real training images as a grid, in the order of classes that grids of samples have; one grey pixel where there
    are no images at hand; returns its file."""
    path, grid = results_folder(benchmark.name) / "grids" / "real.png", np.full((1, 1, 1, 1), GREY, dtype=np.uint8)
    classes = benchmark.model_config(benchmark.sizes[0]).classes
    if why_none(images_folder(benchmark)) is None:
        source = open_images(images_folder(benchmark), "train", benchmark.run.workers)
        order = np.argsort(source.labels, kind="stable")
        rank = np.arange(len(order)) - np.searchsorted(source.labels[order], source.labels[order])
        grid = source.pixels(order[np.lexsort((source.labels[order], rank))][:SHOWN])
    save_grid(path, grid, classes, GRID_COLUMNS)
    return path


def image_sets(benchmark: Benchmark, extract: Extractor) -> dict[str, list[Chunk]]:
    """The sets of images whose features are needed: "stored" beside stored statistics, where there are any, or
    "train", "holdout", and "shuffled-<seed>" where tokens are patches of pixels."""
    stored = benchmark.evaluation.reference
    if stored is not None:
        adm = AdmReference(stored, extract.width)
        return {"stored": chunks_of(sha256(adm.path), adm.images, adm.pixels, extract)} if adm.images else {}
    folder, sets = images_folder(benchmark), {}
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
    else:
        index = data_folder(benchmark) / "latents" / "holdout" / INDEX
        pixels = cache(partial(reconstructed, benchmark))
        number = sum(c.images for c in sets["holdout"])
        sets["reconstructed"] = chunks_of(sha256(index), number, partial(read_part, pixels), extract)
    return sets


def chunks_of(identity: str, images: int, read: Callable[[int, int], np.ndarray], extract: Extractor) -> list[Chunk]:
    """Chunks of a set that `identity` names and `read(start, stop)` reads."""
    ranges = [(start, min(start + CHUNK, images)) for start in range(0, images, CHUNK)]
    return [
        Chunk(fingerprint(identity, start, stop, extract.key), stop - start, partial(read, start, stop))
        for start, stop in ranges
    ]


def read_range(source: ImageSource, start: int, stop: int) -> np.ndarray:
    return source.pixels(range(start, stop))


def read_part(make: Callable[[], np.ndarray], start: int, stop: int) -> np.ndarray:
    return make()[start:stop]


def stored_reference(path: Path, extract: Extractor, features: dict[str, Features]) -> tuple[Reference, dict[str, Any]]:
    """Stored statistics with the features of the images stored beside them, and the record's results: no
    baselines, as no other real images are at hand."""
    adm = AdmReference(path, extract.width)
    images = features.get("stored")
    facts = {"kind": "stored statistics", "file": path.name, "sha256": sha256(path), "keys": adm.keys}
    facts["feature_images"] = adm.images
    reference = Reference(adm.mu, adm.sigma, facts=facts)
    results: dict[str, Any] = {"source": facts, "baselines": {}}
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
    """Statistics of the training images, and the record's results with the baselines."""
    folder, evaluation = images_folder(benchmark), benchmark.evaluation
    real, held_out = features["train"], features["holdout"]
    facts = {"kind": "training images", "feature_images": len(real.pool)}
    reference = reference_of(real, **facts)
    classified = benchmark.extractor.kind == "cnn"

    def scored(images: Features, labels: np.ndarray) -> dict[str, float]:
        found = scores(images, reference, labels if classified else None, evaluation.kid_subset)
        return {name: value for name, value in found.items() if value is not None}

    sources = {part: open_images(folder, part, benchmark.run.workers) for part in PARTS}
    labels, n = sources["train"].labels, min(evaluation.images, len(held_out.pool))
    # Held-out images as many as are generated, where there are so many: FID and IS depend on the number.
    chosen = np.random.default_rng(0).permutation(len(held_out.pool))[:n]
    same = Features(held_out.pool[chosen], held_out.logits[chosen])
    subset = min(evaluation.images, len(labels) // 2)
    baselines = {
        "holdout": {
            **{k: {"mean": v} for k, v in scored(same, sources["holdout"].labels[chosen]).items()},
            "images": n,
        },
        "train_subset": {
            "fid": mean_and_spread([subset_fid(real, subset, seed) for seed in range(SUBSETS)]),
            "images": subset,
        },
    }
    if "reconstructed" in features:  # what the autoencoder loses: the baseline of models of its latents
        images = Features(*(None if f is None else f[chosen] for f in features["reconstructed"]))
        found = scored(images, sources["holdout"].labels[chosen])
        baselines["reconstruction"] = {**{k: {"mean": v} for k, v in found.items()}, "images": n}
    shuffles = {s: features[f"shuffled-{s}"] for s in evaluation.seeds if f"shuffled-{s}" in features}
    if shuffles:
        tokens = benchmark.model_config(benchmark.sizes[0]).tokens
        found = [
            scored(f, labels[shuffle_sources(labels, tokens, len(f.pool), seed)[1]]) for seed, f in shuffles.items()
        ]
        images = len(next(iter(shuffles.values())).pool)
        baselines["class_shuffle"] = {**{k: mean_and_spread([s[k] for s in found]) for k in found[0]}, "images": images}
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


if __name__ == "__main__":
    run_stage(make_reference)
