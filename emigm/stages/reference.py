"""Statistics of the real images, and the baselines every FID is read against."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

from emigm.autoencoders.autoencoder import weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.paths import PARTS, data_folder, expand, extractor_folder, images_folder, results_folder
from emigm.data.images import open_images, why_none
from emigm.data.samples import chunk_ranges
from emigm.io import INDEX, checksums, fingerprint, sha256
from emigm.launching import run_stage
from emigm.metrics.adm import AdmReference
from emigm.metrics.features import Extractor, extractor_of
from emigm.metrics.measuring import Images, measure_images, measured
from emigm.metrics.real_images import reconstructed, shuffled, stored_reference, training_reference
from emigm.metrics.scores import save_reference
from emigm.pictures import GREY, GRID_COLUMNS, SHOWN, grid_of, save_png
from emigm.stages.context import StageRun

CHUNK = 500
"""Real images whose features are kept together."""
MOST_PHOTOS = 100_000
"""Photos whose features are held in memory at once, at most."""


def make_reference(benchmark: Benchmark) -> None:
    run, path = StageRun(benchmark, "reference"), data_folder(benchmark) / "reference.npz"
    extract = extractor_of(benchmark, run.world.device)
    sets = image_sets(benchmark, extract)
    every, label = [i for part in sets.values() for i in part], f"features of real images {benchmark.name}"
    measure_images(every, extract, run.state, run.world, label)
    if not run.goes_on():
        return
    features = {name: measured(part, run.state) for name, part in sets.items()}
    if (stored := benchmark.evaluation.reference) is not None:
        reference, results = stored_reference(expand(stored), extract, features.get("stored"))
    else:
        reference, results = training_reference(benchmark, features)
    read = inputs(benchmark)
    save_reference(path, reference._replace(facts={**(reference.facts or {}), "inputs": read}))
    run.finish(
        results,
        inputs=read,
        outputs=checksums(path, save_real_grid(benchmark)),
        extractor_identity=extract.identity,
    )
    run.clean()


def inputs(benchmark: Benchmark) -> dict[str, str]:
    """Checksums of all the stage reads: extractor, stored statistics, latents where tokens are shuffled, images."""
    stored, files = benchmark.evaluation.reference, [extractor_folder(benchmark)]
    if stored is not None:
        files.append(expand(stored))
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
        whole = rank < np.bincount(source.labels)[source.labels].min()  # a grid has an image of each class in turn
        order, rank = order[whole], rank[whole]
        grid = source.pixels(order[np.lexsort((source.labels[order], rank))][:SHOWN])
    save_png(path, grid_of(grid, classes, GRID_COLUMNS))
    return path


def image_sets(benchmark: Benchmark, extract: Extractor) -> dict[str, list[Images]]:
    """The sets of images whose features are needed: "stored" beside stored statistics, where there are any, or
    "train", "holdout", and what an ideal model of single tokens, or of latents, would make: "shuffled-<seed>" where
    tokens are patches of pixels, else "reconstructed"."""

    def parts(identity: str, number: int, read: Callable[[int, int], np.ndarray]) -> list[Images]:
        """A set that `identity` names and `read(start, stop)` reads."""
        return [
            Images(fingerprint(identity, start, stop, extract.key), stop - start, partial(read, start, stop))
            for start, stop in chunk_ranges(number, CHUNK)
        ]

    def parts_made(identity: str, number: int, make: Callable[[], np.ndarray]) -> list[Images]:
        """The same of images that `make` makes all at once, where some are not measured yet."""
        pixels = cache(make)
        return parts(identity, number, lambda start, stop: pixels()[start:stop])

    evaluation, folder = benchmark.evaluation, images_folder(benchmark)
    if evaluation.reference is not None:
        adm = AdmReference(expand(evaluation.reference), extract.widths)
        return {"stored": parts(sha256(adm.path), adm.images, adm.pixels)} if adm.images else {}
    sources = {part: open_images(folder, part, benchmark.run.workers) for part in PARTS}
    if (most := max(map(len, sources.values()))) > MOST_PHOTOS:
        raise ConfigError(
            f"evaluation.reference is missing: features of {most:,} images do not fit in memory; name a "
            "file of stored statistics, such as VIRTUAL_imagenet256_labeled.npz"
        )
    sets = {
        part: parts(sha256(source.path), len(source), lambda start, stop, s=source: s.pixels(range(start, stop)))
        for part, source in sources.items()
    }
    if benchmark.autoencoder.kind == "pixels":
        model = as_dict(benchmark.model_config(benchmark.sizes[0]))
        number = min(evaluation.images, len(sources["train"]))
        for seed in evaluation.seeds:
            identity = fingerprint(sha256(sources["train"].path), as_dict(benchmark.autoencoder), model, seed)
            sets[f"shuffled-{seed}"] = parts_made(identity, number, lambda seed=seed: shuffled(benchmark, seed)[0])
    else:
        identity = sha256(data_folder(benchmark) / "latents" / "holdout" / INDEX)
        decoded = partial(reconstructed, benchmark, extract.device)
        sets["reconstructed"] = parts_made(identity, len(sources["holdout"]), decoded)
    return sets


if __name__ == "__main__":
    run_stage(make_reference)
