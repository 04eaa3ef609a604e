"""Generate and score images of one size's snapshots and final weights, at one NFE budget: FID along training."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from emigm.autoencoders.autoencoder import weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import STATE, data_folder, extractor_folder, model_folder, snapshot_folder
from emigm.data.samples import Chunks, SampleSet
from emigm.distributed import World, join
from emigm.flops import mean_training_step
from emigm.io import checksums
from emigm.launching import run_stage
from emigm.metrics.features import extractor_of
from emigm.metrics.measuring import measure_chunks, measured
from emigm.metrics.scores import load_reference
from emigm.model.model import CONFIG_FILE, WEIGHTS_FILE
from emigm.pools import Progress, in_turn, parallel
from emigm.records.record import cpu_seconds, write_record
from emigm.stages.evaluate import check_made_from, chunks_of, measure, score
from emigm.stages.sample import check_facts, sample_model

Point = tuple[int, int, int]
"""Steps of training, training seed, sampling seed."""


def score_snapshots(benchmark: Benchmark, size: str) -> None:
    world = join(benchmark.run)
    evaluation, train = benchmark.evaluation, benchmark.train_config(size)
    settings = evaluation.snapshots
    if settings is None:
        raise ConfigError("benchmark.evaluation.snapshots is missing; give its budget and number of images")
    path = data_folder(benchmark) / "reference.npz"
    reference = load_reference(path)  # before any work, in case it fails
    steps = (*sorted(train.snapshot_steps), train.steps)
    points = [(n, t, s) for n in steps for t in train.seeds for s in evaluation.seeds]
    state = STATE / benchmark.name / f"snapshots-{size}"
    world.check_shared(state)
    label = f"{benchmark.name}-{size}"
    job = partial(sample_point, benchmark, size, state, world)
    if world.is_plain:
        written = parallel(job, points, settings.images, "image", f"snapshots {label}")
    else:
        written = in_turn(job, points, settings.images, "image", f"snapshots {label}", world.is_main)
    world.barrier()  # now every chunk is written
    if world.is_main:
        for (step, train_seed, seed), chunks in zip(points, written, strict=True):
            chunks.finish(benchmark=benchmark.name, size=size, step=step, train_seed=train_seed, seed=seed)
    world.barrier()

    extract = extractor_of(benchmark, world.device)
    samples = {point: SampleSet(c.store, settings.images) for point, c in zip(points, written, strict=True)}
    chunks = {point: chunks_of(images, extract.key) for point, images in samples.items()}
    every = [c for of_point in chunks.values() for c in of_point]
    models = [weights_folder(benchmark, size, n, t) for n in steps for t in train.seeds]
    files = [f / name for f in models for name in (CONFIG_FILE, WEIGHTS_FILE)]
    inputs = checksums(*files, *weight_files(benchmark.autoencoder.weights), extractor_folder(benchmark), path)
    check_made_from(path, reference, inputs)
    measure_chunks(every, partial(measure, extract, {}), state / "features", world, f"features {label}")
    others = sum(world.gather(cpu_seconds())[1:])
    if not world.is_main:
        return

    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in steps}
    for (n, train_seed, seed), images in samples.items():
        labels = images.all()[1] if extract.classifies else None
        found = measured(chunks[n, train_seed, seed], state / "features")
        seeds = {"train_seed": train_seed, "sample_seed": seed}
        runs[n].append(seeds | score(found, reference, labels, evaluation.kid_subset))
    flops = mean_training_step(benchmark.model_config(size), train)
    results = [{"step": n, "images": n * train.batch, "flops": n * flops, "runs": runs[n]} for n in steps]
    write_record(
        benchmark,
        f"snapshots-{size}",
        {"points": results},
        device=world.device,
        processes=world.size,
        inputs=inputs,
        others_cpu_seconds=others,
        size=size,
        budget=settings.budget,
        sample=benchmark.sample_config(size, settings.budget),
        images=settings.images,
        train=train,
        extractor=benchmark.extractor,
        extractor_identity=extract.identity,
        reference_source=reference.facts,
        train_seeds=list(train.seeds),
        seeds=list(evaluation.seeds),
    )
    shutil.rmtree(state)


def sample_point(
    benchmark: Benchmark, size: str, state: Path, world: World, point: Point, progress: Progress
) -> Chunks:
    """Images of one point, each process its chunks; the seeds of a point are those of the final weights' images."""
    (step, *item), settings = point, benchmark.evaluation.snapshots
    weights, cfg = weights_folder(benchmark, size, step, item[0]), benchmark.sample_config(size, settings.budget)
    check_facts(weights, steps=step)
    return sample_model(benchmark, size, weights, cfg, settings.images, tuple(item), state, world, progress)


def weights_folder(benchmark: Benchmark, size: str, step: int, train_seed: int) -> Path:
    """Where the weights after `step` steps lie."""
    if step == benchmark.train_config(size).steps:
        return model_folder(benchmark, size, train_seed)
    return snapshot_folder(benchmark, size, train_seed, step)


if __name__ == "__main__":
    run_stage(score_snapshots, "size")
