"""Generate images: one size at one NFE budget, for every training and sampling seed."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.autoencoder import load_autoencoder
from emigm.config.benchmark import Benchmark
from emigm.config.paths import STATE, model_folder, results_folder, samples_folder, samples_name
from emigm.data.samples import SampleSet, chunk_name, chunk_ranges, save_chunk
from emigm.files import fingerprint, sha256, write_json
from emigm.model.model import WEIGHTS_FILE, load_model
from emigm.model.schedules import nfe
from emigm.pictures import GRID_COLUMNS, SHOWN, save_grid
from emigm.records.record import mean_and_spread, write_record
from emigm.runtime.distributed import World, join
from emigm.runtime.launching import run_stage
from emigm.runtime.pools import Progress, Stopwatch, cores, in_turn, parallel
from emigm.sampling import generate


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
        folders = parallel(job, items, evaluation.images, "image", label)
    else:
        workers = world.size
        folders = in_turn(job, items, evaluation.images, "image", label, world.is_main)
    memory = world.peak_memory()
    world.barrier()  # now every chunk is written
    if not world.is_main:
        return

    sets = [SampleSet(folder, evaluation.images) for folder in folders]
    facts = [read_facts(folder) for folder in folders]
    seconds = mean_and_spread([sum(f["seconds"] for f in run) / evaluation.images for run in facts])
    results = {
        "nfe": nfe(cfg.steps, cfg.cfg_scale, cfg.cfg_interval),
        "passes": float(np.mean([sum(f["passes"] * f["images"] for f in run) / evaluation.images for run in facts])),
        "seconds_per_image": seconds,  # of one worker
        "images_per_second": workers / seconds["mean"],  # of all together
        "peak_memory": memory,
    }
    classes = benchmark.model_config(size).classes
    shown = sets[0].first(SHOWN)
    save_grid(results_folder(benchmark.name) / "grids" / f"{size}-{budget}.png", shown, classes, GRID_COLUMNS)
    settings = {"size": size, "budget": budget, "sample": cfg, "images": evaluation.images, "chunk": evaluation.chunk}
    seeds = {"train_seeds": list(train_seeds), "seeds": list(evaluation.seeds)}
    name = f"sample-{size}-{budget}"
    write_record(benchmark, name, results, device=world.device, processes=world.size, **settings, **seeds)
    for item, folder in zip(items, folders, strict=True):
        out = samples_folder(benchmark, size, budget) / samples_name(*item)
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, out)
    shutil.rmtree(state)


def sample_seed(
    benchmark: Benchmark,
    size: str,
    budget: str,
    state: Path,
    world: World,
    item: tuple[int, int],
    progress: Progress,
) -> Path:
    """This process's chunks of the images of one training and one sampling seed; finished ones are not made again.

    Returns the folder in `state` that holds all processes' chunks.
    """
    train_seed, seed = item
    cfg, evaluation, run = benchmark.sample_config(size, budget), benchmark.evaluation, benchmark.run
    weights = model_folder(benchmark, size, train_seed)
    model = load_model(weights, expect=benchmark.model_config(size), device=world.device)
    autoencoder = load_autoencoder(benchmark.autoencoder, world.device)
    labels = balanced_labels(evaluation.images, model.cfg.classes)
    key = fingerprint(
        sha256(weights / WEIGHTS_FILE), str(cfg), str(benchmark.autoencoder), evaluation.images, evaluation.chunk, seed
    )
    folder = state / key

    chunks = chunk_ranges(evaluation.images, evaluation.chunk)
    mine = world.share(len(chunks))
    missing = [i for i in mine if not (folder / chunk_name(*chunks[i])).is_file()]
    done = evaluation.images * (len(mine) - len(missing)) // max(1, len(mine))
    progress(done)
    for n, i in enumerate(missing, 1):
        start, stop = chunks[i]
        watch = Stopwatch()
        drawn = sampling_seed(train_seed, seed)
        pieces = generate(
            model, labels[start:stop], cfg, seed=drawn, first=start, chunk=evaluation.chunk, batch=run.sample_batch
        )
        latents, passes = zip(*((p.latents, p.passes) for p in pieces), strict=True)
        pixels = autoencoder.decode(torch.cat(latents), run.encode_batch).cpu().numpy()
        facts = {"images": stop - start, "seconds": watch.seconds(), "passes": passes[0]}
        write_json(facts_folder(folder) / f"{start:06d}.json", facts)
        save_chunk(folder, start, pixels, labels[start:stop].numpy())  # last: a chunk that is there has its facts
        progress(done + (evaluation.images - done) * n // len(missing))
    return folder


def sampling_seed(train_seed: int, index: int) -> int:
    """Seed of all randomness behind the images of one training seed and the `index` of evaluation.seeds.

    Every condition that shares a training seed shares it too, so that comparisons are paired, while models of different
    training seeds have noise of their own: their spread is then that of independent repetitions.
    """
    return 1000 * train_seed + index


def facts_folder(folder: Path) -> Path:
    """Where the cost of each chunk of `folder` is noted."""
    return folder.with_name(f"{folder.name}-facts")


def read_facts(folder: Path) -> list[dict[str, Any]]:
    """Images, seconds and passes of every chunk of `folder`."""
    return [json.loads(p.read_text()) for p in sorted(facts_folder(folder).glob("*.json"))]


def balanced_labels(images: int, classes: int) -> torch.Tensor:
    """Classes in turn, so that every run of images is balanced, int64 (images,)."""
    return torch.arange(images) % classes


if __name__ == "__main__":
    run_stage(sample, "size", "budget")
