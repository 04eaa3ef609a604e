"""`emigm bench --embedded`: training steps per processor second of the default benchmark, and what its stages take to
start."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.autoencoder import Pixels
from emigm.config.benchmark import Benchmark
from emigm.flops import mean_training_step
from emigm.records.record import cpu_seconds
from emigm.runtime.distributed import ALONE
from emigm.runtime.pools import keep_freed_memory
from emigm.tools.timing import matrix_rate
from emigm.training import TrainingImages, TrainingRun

STAGES = ("prepare", "extractor", "encode", "reference", "train", "sample", "evaluate", "summary", "notebooks", "index")
WARM_UP = 3


def bench_embedded(benchmark: Benchmark, steps: int) -> dict[str, Any]:
    """What the record holds as `results`: training by size, start-up by stage; on one thread, as the stages work."""
    torch.set_num_threads(1)
    keep_freed_memory()
    rate = matrix_rate("cpu", "float32")
    training = {}
    for size in benchmark.sizes:
        training[size] = training_speed(benchmark, size, steps)
        training[size]["share_of_matrix_rate"] = training[size]["flops"] * training[size]["steps_per_cpu_second"] / rate
        print(f"{size}: {training[size]['steps_per_cpu_second']:.1f} steps a CPU second", flush=True)
    started = {}
    for stage, seconds in start_up(STAGES):
        started[stage] = seconds
        print(f"{stage}: {seconds:.1f} CPU seconds to start", flush=True)
    return {"matrix_rates": {"float32": rate}, "training": training, "start_up_cpu_seconds": started}


def training_speed(benchmark: Benchmark, size: str, steps: int) -> dict[str, float]:
    """Steps of the benchmark's own recipe on random images, per second of the processor."""
    cfg, recipe = benchmark.model_config(size), benchmark.train_config(size)
    torch.manual_seed(0)
    latents = torch.randn(recipe.batch, cfg.channels, cfg.grid, cfg.grid)
    labels = torch.arange(recipe.batch) % cfg.classes
    images = TrainingImages(labels.numpy(), 1, lambda i, _: latents[i], read_ahead=False)
    run = TrainingRun(cfg, recipe, images, Pixels(1.0), 0, Path(), "-", ALONE)
    begun = 0.0
    for step in np.linspace(0, recipe.steps - 1, WARM_UP + steps).astype(int):
        if run.done and begun == 0.0 and len(run.unread) == WARM_UP:
            begun = time.process_time()
        run.step(int(step), latents, labels)
    return {
        "steps_per_cpu_second": steps / (time.process_time() - begun),
        "flops": float(mean_training_step(cfg, recipe, 200)),
    }


def start_up(stages: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Processor seconds until a stage's module is imported, by stage."""
    for stage in stages:
        begun = cpu_seconds() - time.process_time()
        subprocess.run([sys.executable, "-c", f"import emigm.stages.{stage}"], check=True)
        yield stage, cpu_seconds() - time.process_time() - begun
