"""`emigm bench --embedded`: training steps per processor second of the default benchmark, and what its stages take to
start."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.speed.bench import write_speed
from benchmarks.speed.timing import matrix_rate, spread
from emigm.autoencoders.autoencoder import Pixels
from emigm.config.benchmark import Benchmark
from emigm.config.compose import compose_benchmark
from emigm.config.paths import results_folder
from emigm.distributed import ALONE
from emigm.flops import mean_training_step
from emigm.pools import keep_freed_memory
from emigm.records.record import cpu_seconds, read_record
from emigm.train import TrainingImages, TrainingRun

STAGES = (
    "prepare",
    "extractor",
    "encode",
    "reference",
    "train",
    "sample",
    "reveal",
    "evaluate",
    "snapshots",
    "summary",
    "notebooks",
    "index",
)
WARM_UP = 3


def measure_beside(tracked: Path, out: Path, steps: int, repeats: int) -> str:
    """Measure the default benchmark, write the record to the folder `out`, and say how it compares with the record in
    the folder `tracked`, where there is one."""
    benchmark, old = compose_benchmark(None), tracked / "cpu-embedded.json"
    before = read_record(old)["results"] if old.is_file() else None
    found = bench_embedded(benchmark, steps, repeats) | {"spent_cpu_seconds": spent(benchmark.name)}
    settings = {"benchmark": benchmark.name, "steps": steps, "repeats": repeats, "device": "cpu", "threads": 1}
    path = write_speed(out, "embedded", found, settings, "cpu")
    return f"{beside(found, before)}\n{path}: written"


def spent(benchmark: str) -> dict[str, float]:
    """Processor seconds of each stage with a record in results/, as its last run took them."""
    records = sorted((results_folder(benchmark) / "records").glob("[!.]*.json"))
    return {path.stem: read_record(path)["provenance"]["cpu_seconds"] for path in records}


def bench_embedded(benchmark: Benchmark, steps: int, repeats: int) -> dict[str, Any]:
    """What the record holds as `results`: training by size, start-up by stage; on one thread, as the stages work.

    Sizes, and then stages, are measured in turn, `repeats` times.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    rate = matrix_rate("cpu", "float32")
    runs = {size: training_steps(benchmark, size, steps) for size in benchmark.sizes}
    taken = {size: [] for size in runs}
    for _ in tqdm(range(repeats), "training", leave=False):
        for size, run in runs.items():
            taken[size].append(run())
    training = {}
    for size, seconds in taken.items():
        flops = float(mean_training_step(benchmark.model_config(size), benchmark.train_config(size), 200))
        speed = steps / statistics.median(seconds)
        training[size] = {"steps_per_cpu_second": speed, "spread": spread(seconds), "flops": flops}
        training[size]["share_of_matrix_rate"] = flops * speed / rate
    started: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in tqdm(range(repeats), "start-up", leave=False):
        for stage, seconds in start_up(STAGES):
            started[stage].append(seconds)
    start = {name: {"cpu_seconds": statistics.median(s), "spread": spread(s)} for name, s in started.items()}
    return {"matrix_rates": {"float32": rate}, "training": training, "start_up": start}


def training_steps(benchmark: Benchmark, size: str, steps: int) -> Callable[[], float]:
    """What takes so many steps of the benchmark's own recipe, over its whole course, on random images, and returns the
    processor seconds."""
    cfg, recipe = benchmark.model_config(size), benchmark.train_config(size)
    torch.manual_seed(0)
    latents = torch.randn(recipe.batch, cfg.channels, cfg.grid, cfg.grid)
    labels = torch.arange(recipe.batch) % cfg.classes
    images = TrainingImages(labels.numpy(), 1, lambda i, _: latents[i], read_ahead=False)
    run = TrainingRun(cfg, recipe, images, Pixels(1.0), 0, Path(), "-", ALONE)
    for step in range(WARM_UP):
        run.step(step, latents, labels)

    def once() -> float:
        begun = time.process_time()
        for step in np.linspace(0, recipe.steps - 1, steps).astype(int):
            run.step(int(step), latents, labels)
        run.unread.clear()
        return time.process_time() - begun

    return once


def start_up(stages: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Processor seconds until a stage's module is imported, by stage."""
    for stage in stages:
        begun = cpu_seconds() - time.process_time()
        subprocess.run([sys.executable, "-c", f"import emigm.stages.{stage}"], check=True)
        yield stage, cpu_seconds() - time.process_time() - begun


def beside(found: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """What was measured, a line each, and its ratio to an earlier record, of other code or another machine.

    Both are relative to their machine's matrix rate, which takes most of its speed out of the ratio in training, and
    little in start-up. Above 1: faster than on record.
    """
    rates = [r["matrix_rates"]["float32"] for r in (found, before or found)]
    lines = []
    for size, now in found["training"].items():
        text = f"{size}: {now['steps_per_cpu_second']:.1f} training steps a CPU second, "
        lines.append(f"{text}{now['share_of_matrix_rate']:.0%} of the matrix rate")
        if before is not None and size in before["training"]:
            ratio = now["share_of_matrix_rate"] / before["training"][size]["share_of_matrix_rate"]
            lines[-1] += f"; {ratio:.2f} of the record's speed, relative to the matrix rate"
    for stage, now in found["start_up"].items():
        lines.append(f"{stage}: {now['cpu_seconds']:.1f} CPU seconds to start")
        if before is not None and stage in before["start_up"]:
            ratio = before["start_up"][stage]["cpu_seconds"] * rates[1] / (now["cpu_seconds"] * rates[0])
            lines[-1] += f"; {ratio:.2f} of the record's speed, relative to the matrix rate"
    return "\n".join(lines)
