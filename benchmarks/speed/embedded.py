"""`emigm bench --embedded`: training steps per processor second of the default benchmark, and what its stages take to
start."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.speed.bench import random_training, write_speed
from benchmarks.speed.timing import matrix_rate, seconds_of, spread
from emigm import stages
from emigm.config.benchmark import Benchmark
from emigm.config.compose import compose_benchmark
from emigm.config.paths import results_folder
from emigm.flops import mean_training_step
from emigm.launching import keep_freed_memory
from emigm.records.record import cpu_seconds, read_record

STAGES = [p.stem for p in sorted(Path(stages.__file__).parent.glob("*.py")) if "__main__" in p.read_text("utf-8")]
WARM_UP = 3


def measure_beside(tracked: Path, out: Path, steps: int, repeats: int) -> str:
    """Measure the default benchmark, write the record to the folder `out`, and say how it compares with the record in
    the folder `tracked`, where there is one."""
    benchmark, old = compose_benchmark(None), tracked / "cpu-embedded.json"
    before = read_record(old)["results"] if old.is_file() else None
    results = bench_embedded(benchmark, steps, repeats) | {"spent_cpu_seconds": spent(benchmark.name)}
    settings = {"benchmark": benchmark.name, "steps": steps, "repeats": repeats, "device": "cpu", "threads": 1}
    path = write_speed(out, "embedded", results, settings, "cpu")
    return f"{beside(results, before)}\n{path}: written"


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
    rounds = [{size: seconds_of(run, "cpu") for size, run in runs.items()} for _ in tqdm(range(repeats), "training")]
    training = {}
    for size in runs:
        seconds = [taken[size] for taken in rounds]
        flops = float(mean_training_step(benchmark.model_config(size), benchmark.train_config(size), 200))
        speed = steps / statistics.median(seconds)
        training[size] = {"steps_per_cpu_second": speed, "spread": spread(seconds), "flops": flops}
        training[size]["share_of_matrix_rate"] = flops * speed / rate
    rounds = [{stage: start_up(stage) for stage in STAGES} for _ in tqdm(range(repeats), "start-up")]
    started = {stage: [taken[stage] for taken in rounds] for stage in STAGES}
    start = {name: {"cpu_seconds": statistics.median(s), "spread": spread(s)} for name, s in started.items()}
    return {"matrix_rates": {"float32": rate}, "training": training, "start_up": start}


def training_steps(benchmark: Benchmark, size: str, steps: int) -> Callable[[], None]:
    """What takes so many steps of the benchmark's own recipe, over its whole course, on random images."""
    recipe = benchmark.train_config(size)
    step = random_training(benchmark.model_config(size), recipe)

    def take(chosen: list[int]) -> None:
        for number in chosen:
            step(number)

    take(list(range(WARM_UP)))
    return lambda: take(np.linspace(0, recipe.steps - 1, steps).astype(int).tolist())


def start_up(stage: str) -> float:
    """Processor seconds until a stage's module is imported, in a process of its own."""

    def of_children() -> float:
        return cpu_seconds() - time.process_time()

    begun = of_children()
    subprocess.run([sys.executable, "-c", f"import emigm.stages.{stage}"], check=True)
    return of_children() - begun


def beside(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """What was measured, a line each, and its ratio to an earlier record, of other code or another machine.

    Both are relative to their machine's matrix rate, which takes most of its speed out of the ratio in training, and
    little in start-up. Above 1: faster than on record.
    """
    rate, old_rate = (r["matrix_rates"]["float32"] for r in (now, before or now))
    old = before or {"training": {}, "start_up": {}}
    lines = []
    for size, new in now["training"].items():
        share = new["share_of_matrix_rate"]
        text = f"{size}: {new['steps_per_cpu_second']:.1f} training steps a CPU second, {share:.0%} of the matrix rate"
        lines.append((text, share / old["training"][size]["share_of_matrix_rate"] if size in old["training"] else None))
    for stage, new in now["start_up"].items():
        text, seconds = f"{stage}: {new['cpu_seconds']:.1f} CPU seconds to start", new["cpu_seconds"] * rate
        known = old["start_up"].get(stage)
        lines.append((text, known and known["cpu_seconds"] * old_rate / seconds))
    said = "{}; {:.2f} of the record's speed, relative to the matrix rate"
    return "\n".join(text if ratio is None else said.format(text, ratio) for text, ratio in lines)
