"""Score the images of one size at every NFE budget: FID, IS, KID, precision, recall, and memorisation."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import STATE, data_folder, extractor_folder, images_folder, samples_folder, samples_name
from emigm.data.images import PARTS, open_images
from emigm.data.samples import INDEX, SampleSet
from emigm.distributed import join
from emigm.io import checksums, fingerprint
from emigm.launching import run_stage
from emigm.metrics.features import Extractor, extractor_of
from emigm.metrics.measuring import Chunk, as_arrays, from_arrays, measure_chunks, measured
from emigm.metrics.scores import (
    Reference,
    clean_fid,
    fid_of_parts,
    load_reference,
    nearest_distances,
    same_number,
    scores,
)
from emigm.records.record import cpu_seconds, write_record

Run = tuple[str, int, int]
"""Budget, training seed, sampling seed."""


def evaluate(benchmark: Benchmark, size: str) -> None:
    world = join(benchmark.run)
    train_seeds = benchmark.train_config(size).seeds
    path = data_folder(benchmark) / "reference.npz"
    reference = load_reference(path)  # before any work, in case it fails
    extract = extractor_of(benchmark, world.device)
    runs = [(b, t, s) for b in benchmark.budgets for t in train_seeds for s in benchmark.evaluation.seeds]
    images = {r: open_samples(benchmark, size, r) for r in runs}
    known = known_images(benchmark)
    pixels = checksums(*(images_folder(benchmark) / f"{part}.npz" for part in (PARTS if known else ())))
    inputs = checksums(*(s.folder / INDEX for s in images.values()), extractor_folder(benchmark), path) | pixels
    check_made_from(path, reference, inputs)
    identity = [*extract.key, *pixels.values()]
    chunks = {r: chunks_of(samples, identity) for r, samples in images.items()}
    state = STATE / benchmark.name / f"evaluate-{size}"
    label = f"{benchmark.name}-{size}"
    measure_chunks(
        [c for r in runs for c in chunks[r]], partial(measure, extract, known), state, world, f"features {label}"
    )
    others = sum(world.gather(cpu_seconds())[1:])
    if not world.is_main:
        return

    results: dict[str, Any] = {budget: {"runs": [], "fid_by_images": []} for budget in benchmark.budgets}
    for budget, train_seed, seed in tqdm(runs, desc=f"score {label}", unit="run"):
        found = measured(chunks[budget, train_seed, seed], state)
        labels = images[budget, train_seed, seed].all()[1] if extract.classifies else None
        scored = score(found, reference, labels, benchmark.evaluation.kid_subset)
        seeds = {"train_seed": train_seed, "sample_seed": seed}
        by_images = {str(benchmark.evaluation.images): scored["fid"]} | fid_of_parts(from_arrays(found), reference)
        results[budget]["runs"].append(seeds | scored)
        results[budget]["fid_by_images"].append(seeds | {"fid": by_images})
    write_record(
        benchmark,
        f"evaluate-{size}",
        results,
        device=world.device,
        processes=world.size,
        inputs=inputs,
        others_cpu_seconds=others,
        size=size,
        images=benchmark.evaluation.images,
        extractor=benchmark.extractor,
        extractor_identity=extract.identity,
        reference_source={k: v for k, v in reference.facts.items() if k != "inputs"},
        train_seeds=list(train_seeds),
        seeds=list(benchmark.evaluation.seeds),
    )
    shutil.rmtree(state)


def check_made_from(path: Path, reference: Reference, inputs: dict[str, str]) -> None:
    """Raise ConfigError where a file that is read here, the extractor or images, is not what the reference is of."""
    for file, checksum in reference.facts["inputs"].items():
        if inputs.get(file, checksum) != checksum:
            raise ConfigError(f"{path}: was made with another {file} (sha256 {checksum}); run dvc repro")


def open_samples(benchmark: Benchmark, size: str, run: Run) -> SampleSet:
    budget, train_seed, seed = run
    folder = samples_folder(benchmark, size, budget) / samples_name(train_seed, seed)
    what = {"benchmark": benchmark.name, "size": size, "budget": budget, "train_seed": train_seed, "seed": seed}
    return SampleSet(folder, benchmark.evaluation.images, **what)


def known_images(benchmark: Benchmark) -> dict[str, np.ndarray]:
    """Equally many training and held-out images, for nearest neighbours in pixels; none of data sets of photos, where
    such neighbours say nothing."""
    if benchmark.data.dataset == "imagenet":
        return {}
    folder = images_folder(benchmark)
    train, holdout = (source.pixels(range(len(source))) for source in map(partial(open_images, folder), PARTS))
    return {"nearest_train": same_number(train, holdout), "nearest_holdout": holdout}


def chunks_of(samples: SampleSet, identity: Any) -> list[Chunk]:
    """The files of one run; `identity` says what is measured on them."""
    return [
        Chunk(fingerprint(samples.checksum(i), identity), r[1] - r[0], partial(read, samples, i))
        for i, r in enumerate(samples.ranges)
    ]


def read(samples: SampleSet, i: int) -> np.ndarray:
    return samples.chunk(i)[0]


def measure(extract: Extractor, known: dict[str, np.ndarray], pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Features, and the distance of each image to its nearest among the `known` ones."""
    return as_arrays(extract(pixels)) | {name: nearest_distances(pixels, others) for name, others in known.items()}


def score(
    found: dict[str, np.ndarray], reference: Reference, labels: np.ndarray | None, kid_subset: int
) -> dict[str, float | None]:
    """Every metric of one run; None: not measured."""
    features = from_arrays(found)
    nearest = {
        name: float(found[name].mean(dtype=np.float64)) if name in found else None
        for name in ("nearest_train", "nearest_holdout")
    }
    return scores(features, reference, labels, kid_subset) | nearest | {"clean_fid": clean_fid(features, reference)}


if __name__ == "__main__":
    run_stage(evaluate, "size")
