"""Generate images: one size at one NFE budget, for every training and sampling seed."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.autoencoder import load_autoencoder, weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import STATE, model_folder, results_folder, samples_folder, samples_name
from emigm.config.schema import SampleConfig
from emigm.data.samples import INDEX, Chunks, SampleSet
from emigm.distributed import World, join
from emigm.io import checksums, fingerprint, sha256
from emigm.launching import run_stage
from emigm.model.model import (
    REMEDY,
    WEIGHTS_FILE,
    cast_linear,
    compile_networks,
    compiled_graphs,
    load_model,
    read_model_config,
)
from emigm.model.schedules import nfe
from emigm.pictures import GRID_COLUMNS, SHOWN, save_grid
from emigm.pools import Progress, Stopwatch, cores, in_turn, parallel
from emigm.records.record import cpu_seconds, mean_and_spread, write_record
from emigm.sample import batch_ranges, generate


def sample(benchmark: Benchmark, size: str, budget: str) -> None:
    world = join(benchmark.run)
    cfg, evaluation = benchmark.sample_config(size, budget), benchmark.evaluation
    train_seeds = benchmark.train_config(size).seeds
    state = STATE / benchmark.name / f"sample-{size}-{budget}"
    items = [(t, s) for t in train_seeds for s in evaluation.seeds]
    label = f"sample {benchmark.name}-{size}-{budget}"
    job = partial(sample_seed, benchmark, size, budget, state, world)
    world.check_shared(state)
    world.start_memory()
    if world.is_plain:
        workers = min(len(items), cores())
        written = parallel(job, items, evaluation.images, "image", label)
    else:
        workers = world.size
        written = in_turn(job, items, evaluation.images, "image", label, world.is_main)
    memory, others = world.peak_memory(), sum(world.gather(cpu_seconds())[1:])
    world.barrier()  # now every chunk is written
    if not world.is_main:
        return

    models = {t: model_folder(benchmark, size, t) for t in train_seeds}
    inputs = checksums(*models.values(), *weight_files(benchmark.autoencoder.weights))
    what = {"benchmark": benchmark.name, "size": size, "budget": budget}
    costs = [
        chunks.finish(**what, train_seed=t, seed=s, weights=inputs[(models[t] / WEIGHTS_FILE).as_posix()])
        for (t, s), chunks in zip(items, written, strict=True)
    ]
    seconds = mean_and_spread([sum(c["seconds"] for c in run) / evaluation.images for run in costs])
    results = {
        "nfe": nfe(cfg.steps, cfg.cfg_scale, cfg.cfg_interval),
        "passes": float(np.mean([sum(c["passes"] * c["images"] for c in run) / evaluation.images for run in costs])),
        "seconds_per_image": seconds,  # of one worker
        "images_per_second": workers / statistics.fmean(seconds["values"]),  # of all together
        "peak_memory": memory,
        "compiled_graphs": compiled_graphs() if benchmark.run.compile and not world.is_plain else None,
    }
    grid = results_folder(benchmark.name) / "grids" / f"{size}-{budget}.png"
    first = SampleSet(written[0].store, evaluation.images).first(SHOWN)
    save_grid(grid, first, benchmark.model_config(size).classes, GRID_COLUMNS)
    settings = {
        "size": size,
        "budget": budget,
        "sample": cfg,
        "autoencoder": benchmark.autoencoder,
        "images": evaluation.images,
        "chunk": evaluation.chunk,
    }
    seeds = {"train_seeds": list(train_seeds), "seeds": list(evaluation.seeds)}
    folders = [samples_folder(benchmark, size, budget) / samples_name(*item) for item in items]
    indexes = {(f / INDEX).as_posix(): sha256(c.store / INDEX) for f, c in zip(folders, written, strict=True)}
    files = {"inputs": inputs, "outputs": indexes | checksums(grid), "others_cpu_seconds": others}
    name, where = f"sample-{size}-{budget}", {"device": world.device, "processes": world.size}
    write_record(benchmark, name, results, **where, **files, **settings, **seeds)
    for folder, chunks in zip(folders, written, strict=True):
        chunks.move(folder)
    shutil.rmtree(state)


def sample_seed(
    benchmark: Benchmark,
    size: str,
    budget: str,
    state: Path,
    world: World,
    item: tuple[int, int],
    progress: Progress,
) -> Chunks:
    """This process's chunks of the images of one training and one sampling seed; finished ones are not made again.

    Returns all processes' chunks, in a folder in `state`.
    """
    cfg, images = benchmark.sample_config(size, budget), benchmark.evaluation.images
    weights = model_folder(benchmark, size, item[0])
    return sample_model(benchmark, size, weights, cfg, images, item, state, world, progress)


def sample_model(
    benchmark: Benchmark,
    size: str,
    weights: Path,
    cfg: SampleConfig,
    images: int,
    item: tuple[int, int],
    state: Path,
    world: World,
    progress: Progress,
) -> Chunks:
    """As `sample_seed`, of the model in the folder `weights`."""
    (train_seed, index), chunk = item, benchmark.evaluation.chunk
    make = Maker(benchmark, size, weights, cfg, train_seed, world.device)
    seed = sampling_seed(train_seed, index)
    folder = state / fingerprint(
        sha256(weights / WEIGHTS_FILE), str(cfg), str(benchmark.autoencoder), images, chunk, seed
    )
    chunks = Chunks(folder, images, chunk)
    mine = world.share(len(chunks.ranges))
    missing = chunks.missing(mine)
    done = images * (len(mine) - len(missing)) // max(1, len(mine))
    progress(done)
    made, written = make.chunks(index, [chunks.ranges[i] for i in missing]), None
    with ThreadPoolExecutor(1) as thread:  # writes a chunk while the next one is made
        for n, i in enumerate(missing, 1):
            watch = Stopwatch()
            pixels, labels, passes = next(made)
            seconds = watch.seconds()
            if written is not None:
                written.result()
            written = thread.submit(chunks.write, i, pixels, labels, seconds=seconds, passes=passes)
            progress(done + (images - done) * n // len(missing))
        if written is not None:
            written.result()
    return chunks


class Maker:
    """Makes chunks of images with the model in a folder.

    Raises:
        ConfigError: the model is missing, damaged, or another than the benchmark says.
    """

    def __init__(self, benchmark: Benchmark, size: str, weights: Path, cfg: SampleConfig, train_seed: int, device: str):
        check_facts(weights, seed=train_seed, autoencoder=benchmark.autoencoder.space)
        self.model = load_model(weights, expect=benchmark.model_config(size), device=device)
        cast_linear(self.model, cfg.precision)
        if benchmark.run.compile:
            compile_networks(self.model)
        self.autoencoder = load_autoencoder(benchmark.autoencoder, device)
        self.cfg, self.train_seed, self.run = cfg, train_seed, benchmark.run
        self.chunk = benchmark.evaluation.chunk

    def __call__(self, index: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Images start .. stop - 1, a chunk, of the `index` of evaluation.seeds, as `chunks` gives them."""
        return next(self.chunks(index, [(start, stop)]))

    def chunks(self, index: int, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """The chunks (start, stop) of the images of the `index` of evaluation.seeds, one after another.

        Yields:
            Pixels uint8 (n, c, h, w), labels int64 (n,), and forward passes an image.
        """
        labels = balanced_labels(max(stop for _, stop in ranges), self.model.cfg.classes)
        seed, split = sampling_seed(self.train_seed, index), {"chunk": self.chunk, "batch": self.run.sample_batch}
        made = generate(self.model, labels, self.cfg, seed=seed, ranges=ranges, **split)
        for start, stop in ranges:
            parts = list(islice(made, len(batch_ranges(start, stop, **split))))
            latents = torch.cat([part.latents for part in parts])
            pixels = self.autoencoder.decode(latents, self.run.encode_batch).cpu().numpy()
            yield pixels, labels[start:stop].numpy(), parts[0].passes


def check_facts(folder: Path, **expected: Any) -> None:
    """Raise ConfigError where a model folder's facts, such as its latent scale, are not the expected ones."""
    _, facts = read_model_config(folder)
    for name, value in expected.items():
        if facts.get(name, value) != value:
            raise ConfigError(f"{folder}: a model of {name} {facts[name]}, expected {value}; {REMEDY}")


def sampling_seed(train_seed: int, index: int) -> int:
    """Seed of all randomness behind the images of one training seed and the `index` of evaluation.seeds.

    Every condition that shares a training seed shares it too, so that comparisons are paired, while models of different
    training seeds have noise of their own: their spread is then that of independent repetitions.
    """
    return 1000 * train_seed + index


def balanced_labels(images: int, classes: int) -> torch.Tensor:
    """Classes in turn, so that every run of images is balanced, int64 (images,)."""
    return torch.arange(images) % classes


if __name__ == "__main__":
    run_stage(sample, "size", "budget")
