"""Generate images: one size at one NFE budget, for every training and sampling seed."""

from __future__ import annotations

from functools import partial

import numpy as np

from emigm.autoencoders.autoencoder import weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.paths import model_folder, results_folder, samples_folder, samples_name
from emigm.data.samples import Chunks, SampleSet
from emigm.io import INDEX, checksums, sha256
from emigm.launching import Progress, run_stage
from emigm.model.model import WEIGHTS_FILE, compiled_graphs
from emigm.model.schedules import nfe
from emigm.pictures import GRID_COLUMNS, SHOWN, grid_of, save_png
from emigm.sample import Sampler
from emigm.stages.context import StageRun


def sample(benchmark: Benchmark, size: str, budget: str) -> None:
    run = StageRun(benchmark, f"sample-{size}-{budget}")
    cfg, evaluation = benchmark.sample_config(size, budget), benchmark.evaluation
    train_seeds, images = benchmark.train_config(size).seeds, evaluation.images
    items = [(t, s) for t in train_seeds for s in evaluation.seeds]
    run.world.start_memory()
    written = run.map(partial(sample_run, run, size, budget), items, images, "image")
    memory = run.world.peak_memory()
    if not run.goes_on():
        return

    models = {t: model_folder(benchmark, size, t) for t in train_seeds}
    inputs = checksums(*models.values(), *weight_files(benchmark.autoencoder.weights))
    facts = {"benchmark": benchmark.name, "size": size, "budget": budget}
    costs = [
        chunks.finish(**facts, train_seed=t, seed=s, weights=inputs[(models[t] / WEIGHTS_FILE).as_posix()])
        for (t, s), chunks in zip(items, written, strict=True)
    ]
    seconds = [sum(c["seconds"] for c in of_run) / images for of_run in costs]
    passes = [sum(c["passes"] * c["images"] for c in of_run) / images for of_run in costs]
    results = {
        "nfe": nfe(cfg.steps, cfg.cfg_scale, cfg.cfg_interval),
        "passes": float(np.mean(passes)),
        "seconds_per_image": {"values": seconds, "workers": run.workers(len(items))},  # seconds of one
        "peak_memory": memory,
        "compiled_graphs": compiled_graphs() if benchmark.run.compile and not run.world.is_plain else None,
    }
    grid = results_folder(benchmark.name) / "grids" / f"{size}-{budget}.png"
    first = SampleSet(written[0].files, images).first(SHOWN)
    save_png(grid, grid_of(first, benchmark.model_config(size).classes, GRID_COLUMNS))
    folders = [samples_folder(benchmark, size, budget) / samples_name(*item) for item in items]
    indexes = {(f / INDEX).as_posix(): sha256(c.files / INDEX) for f, c in zip(folders, written, strict=True)}
    run.finish(results, inputs=inputs, outputs=indexes | checksums(grid))
    for folder, chunks in zip(folders, written, strict=True):  # at the very end: until then a kill loses nothing
        chunks.move(folder)
    run.clean()


def sample_run(run: StageRun, size: str, budget: str, seeds: tuple[int, int], progress: Progress) -> Chunks:
    """This process's chunks of the images of one training and one sampling seed; finished ones are not made again."""
    benchmark, (train_seed, seed) = run.benchmark, seeds
    weights, cfg = model_folder(benchmark, size, train_seed), benchmark.sample_config(size, budget)
    sampler = Sampler(benchmark, size, weights, cfg, train_seed, run.world.device)
    return sampler.write(seed, benchmark.evaluation.images, run.state / samples_name(*seeds), run.world, progress)


if __name__ == "__main__":
    run_stage(sample, "size", "budget")
