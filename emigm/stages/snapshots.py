"""Generate and score images of one size's snapshots and final weights, at one NFE budget: FID along training."""

from __future__ import annotations

from functools import partial
from typing import Any

from emigm.autoencoders.autoencoder import weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import data_folder, snapshot_folder
from emigm.data.samples import Chunks, SampleSet
from emigm.flops import mean_training_step
from emigm.io import checksums
from emigm.launching import Progress, run_stage
from emigm.metrics.measuring import Scorer
from emigm.metrics.scores import load_reference
from emigm.model.model import CONFIG_FILE, WEIGHTS_FILE
from emigm.sample import Sampler
from emigm.stages.context import StageRun

Point = tuple[int, int, int]
"""Steps of training, training seed, sampling seed."""


def score_snapshots(benchmark: Benchmark, size: str) -> None:
    evaluation, train = benchmark.evaluation, benchmark.train_config(size)
    if (settings := evaluation.snapshots) is None:
        raise ConfigError("benchmark.evaluation.snapshots is missing; give its budget and number of images")
    run = StageRun(benchmark, f"snapshots-{size}")
    load_reference(data_folder(benchmark) / "reference.npz")  # before any work, in case it fails
    steps = (*sorted(train.snapshot_steps), train.steps)
    points = [(n, t, s) for n in steps for t in train.seeds for s in evaluation.seeds]
    written = run.map(partial(sample_point, run, size), points, settings.images, "image")
    run.world.barrier()  # now every chunk is written
    if run.world.is_main:
        for (step, train_seed, seed), chunks in zip(points, written, strict=True):
            chunks.finish(benchmark=benchmark.name, size=size, step=step, train_seed=train_seed, seed=seed)
    run.world.barrier()

    scorer = Scorer(benchmark, run.world.device, neighbours=False)
    samples = {point: SampleSet(c.files, settings.images) for point, c in zip(points, written, strict=True)}
    features, label = run.state / "features", f"features {benchmark.name}-{size}"
    scorer.measure_all(list(samples.values()), features, run.world, label)
    if not run.goes_on():
        return

    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in steps}
    for (n, train_seed, seed), of_point in samples.items():
        runs[n].append({"train_seed": train_seed, "sample_seed": seed} | scorer.score_run(of_point, features)[1])
    flops = mean_training_step(benchmark.model_config(size), train)
    models = [snapshot_folder(benchmark, size, t, n) for n in steps for t in train.seeds]
    files = [folder / name for folder in models for name in (CONFIG_FILE, WEIGHTS_FILE)]
    run.finish(
        {"points": [{"step": n, "images": n * train.batch, "flops": n * flops, "runs": runs[n]} for n in steps]},
        inputs=checksums(*files, *weight_files(benchmark.autoencoder.weights)) | scorer.inputs,
        extractor_identity=scorer.extract.identity,
        reference_source=scorer.reference.facts,
    )
    run.clean()


def sample_point(run: StageRun, size: str, point: Point, progress: Progress) -> Chunks:
    """Images of one point, each process its chunks; the seeds of a point are those of the final weights' images."""
    (step, train_seed, seed), settings = point, run.benchmark.evaluation.snapshots
    weights = snapshot_folder(run.benchmark, size, train_seed, step)
    cfg = run.benchmark.sample_config(size, settings.budget)
    sampler = Sampler(run.benchmark, size, weights, cfg, train_seed, run.world.device)
    if (trained := sampler.facts.get("steps", step)) != step:
        raise ConfigError(f"{weights}: weights after {trained} steps, expected {step}; train this size again")
    folder = run.state / "-".join(map(str, point))
    return sampler.write(seed, settings.images, folder, run.world, progress)


if __name__ == "__main__":
    run_stage(score_snapshots, "size")
