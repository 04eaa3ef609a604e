"""Train one size of the ladder, all its training seeds, and hold each run against the context gate.

With `weights: released` the authors' checkpoint is fetched and imported instead.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emigm.autoencoders.autoencoder import load_autoencoder, weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.paths import PARTS, Part, data_folder, model_folder, results_folder, snapshot_folder
from emigm.config.schema import GateConfig, ModelConfig, TrainConfig
from emigm.data.latents import LatentStore
from emigm.flops import mean_training_step, parameters
from emigm.gate import check_context, context_ratio, held_out_errors
from emigm.io import INDEX, checksums, sha256, write_atomically
from emigm.launching import Progress, run_stage
from emigm.model.checkpoints import import_official
from emigm.model.model import EMIGM, compiled_graphs, load_model, save_model
from emigm.stages.context import StageRun
from emigm.train import train

COSTS = ("seconds", "images_per_second", "peak_memory", "flops_per_step", "flops", "images", "final_loss")
COSTS += ("skipped_steps", "compiled_graphs")  # what the record says of training, and not of released weights


def train_size(benchmark: Benchmark, size: str) -> None:
    """Train all seeds, one after another with all processes, or at once on the cores of one machine; or import."""
    run, trains = StageRun(benchmark, f"train-{size}"), benchmark.weights == "trained"
    cfg, model_cfg = benchmark.train_config(size), benchmark.model_config(size)
    parts = PARTS if trains else ("holdout",) if has_holdout(benchmark) else ()
    indexes = [open_latents(benchmark, part, size).folder / INDEX for part in parts]  # before any work: one may be bad
    inputs = checksums(*indexes, *weight_files(benchmark.autoencoder.weights))
    if trains:
        import torch._dynamo  # noqa: F401  # every optimizer does: here once, not for seconds in every process

        runs = run.map(partial(train_seed, run, size), cfg.seeds, cfg.steps, "step")
    else:
        runs = [import_released(benchmark, size, run.world.device)] if run.world.is_main else []
    if not run.goes_on():
        return

    errors = [r["errors"] for r in runs if r["errors"]]
    results = {"parameters": parameters(model_cfg), "snapshots": []}
    results |= costs(model_cfg, cfg, runs) if trains else dict.fromkeys(COSTS)
    results["context"] = context_summary(benchmark.gate, errors) if errors else None
    source = {} if trains else {"source": runs[0]["source"]}
    inputs |= {} if trains else checksums(runs[0]["checkpoint"])
    models = [model_folder(benchmark, size, seed) for seed in cfg.seeds]
    outputs = checksums(*models, write_curve(benchmark, size, [r["curve"] for r in runs]))
    run.finish(results, inputs=inputs, outputs=outputs, **source)
    for seed, measured in zip(cfg.seeds, errors, strict=False):
        which = f"training seed {seed}" if trains else "released weights"
        remedy = () if trains else ("Check autoencoder.scale, autoencoder.weights and the held-out images.",)
        check_context(measured, benchmark.gate, f"{benchmark.name}-{size}, {which}", *remedy)
    run.clean()


def costs(model_cfg: ModelConfig, cfg: TrainConfig, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the record says of the training of all seeds."""
    flops, images = mean_training_step(model_cfg, cfg), cfg.steps * cfg.batch
    memory = [r["peak_memory"] for r in runs if r["peak_memory"] is not None]
    return {
        "seconds": {"values": [r["seconds"] for r in runs]},
        "images_per_second": {"values": [images / r["seconds"] for r in runs]},
        "peak_memory": max(memory, default=None),
        "flops_per_step": flops,
        "flops": flops * cfg.steps,
        "images": images,
        "snapshots": [{"step": n, "images": n * cfg.batch, "flops": n * flops} for n in cfg.snapshot_steps],
        "final_loss": {"values": [r["curve"][-1][1] for r in runs]},
        "skipped_steps": [r["skipped"] for r in runs],
        "compiled_graphs": runs[-1]["graphs"],  # by the process that trained the last seed
    }


def context_summary(gate: GateConfig, errors: list[dict[int, float]]) -> dict[str, Any]:
    """What the record says of the context gate, given each run's errors by the number of visible tokens."""
    ratios = [context_ratio(e) for e in errors]
    return {
        "errors": {str(v): {"values": [e[v] for e in errors]} for v in gate.visible},
        "ratio": {"values": ratios},
        "passed": all(ratio <= gate.max_ratio for ratio in ratios),
    }


def train_seed(run: StageRun, size: str, seed: int, progress: Progress) -> dict[str, Any]:
    """Train one seed, save it, and measure what context gives it on held-out images."""
    benchmark, world = run.benchmark, run.world
    cfg, model_cfg = benchmark.train_config(size), benchmark.model_config(size)
    store, autoencoder = open_latents(benchmark, "train", size), load_autoencoder(benchmark.autoencoder)
    if store.large:  # a small one was verified when it was opened
        store.verify(world.share(store.shards))
        world.barrier()
    world.start_memory()
    machine = {"world": world, "micro_batch": benchmark.run.train_batch, "compiled": benchmark.run.compile}
    names = {"seed": seed, "state_folder": run.state, "data_id": sha256(store.folder / INDEX)}
    result = train(model_cfg, cfg, store, autoencoder, **names, **machine, on_start=progress, on_step=progress)
    memory = world.peak_memory()
    if world.is_main:
        facts = {"origin": "trained", "seed": seed, "autoencoder": benchmark.autoencoder.space}
        for steps, point in result.snapshots.items():
            save_model(snapshot_folder(benchmark, size, seed, steps), point.load(), model_cfg, steps=steps, **facts)
        save_model(model_folder(benchmark, size, seed), result.ema, model_cfg, steps=cfg.steps, **facts)

    model = EMIGM(model_cfg).to(world.device).eval().requires_grad_(False)
    model.load_state_dict(result.ema)
    return {
        "curve": result.curve,
        "seconds": result.seconds,
        "skipped": result.skipped,
        "graphs": compiled_graphs() if benchmark.run.compile else None,
        "errors": world.gather(errors_of(model, benchmark, size, world.device))[0],
        "peak_memory": memory,
    }


def import_released(benchmark: Benchmark, size: str, device: str) -> dict[str, Any]:
    """Turn the authors' checkpoint into the model folder; the gate applies where there are held-out latents."""
    from emigm.tools.fetch import fetch_official  # its libraries take a second

    released, model_cfg = benchmark.released, benchmark.model_config(size)
    checkpoint, (seed,) = fetch_official(released, size), benchmark.train_config(size).seeds
    folder = model_folder(benchmark, size, seed)
    known = {"token": released.token, "checksum": released.sha256.get(size), "autoencoder": benchmark.autoencoder.space}
    source = import_official(checkpoint, folder, model_cfg, **known)["source"]
    errors = None
    if has_holdout(benchmark):
        errors = errors_of(load_model(folder, expect=model_cfg, device=device), benchmark, size, device)
    return {"checkpoint": checkpoint, "source": source, "curve": [], "errors": errors}


def has_holdout(benchmark: Benchmark) -> bool:
    return (data_folder(benchmark) / "latents" / "holdout").is_dir()


def open_latents(benchmark: Benchmark, part: Part, size: str) -> LatentStore:
    """Latents of a part; raises ConfigError where they are damaged, or another benchmark's."""
    store = LatentStore(data_folder(benchmark) / "latents" / part)
    store.check(benchmark.model_config(size).classes, part=part, autoencoder=benchmark.autoencoder.space)
    return store


def errors_of(model: EMIGM, benchmark: Benchmark, size: str, device: str) -> dict[int, float]:
    """The context gate's errors on held-out images."""
    held_out, autoencoder = open_latents(benchmark, "holdout", size), load_autoencoder(benchmark.autoencoder)
    return held_out_errors(model, held_out, autoencoder, benchmark.gate, device)


def write_curve(benchmark: Benchmark, size: str, curves: list[list[tuple[int, float]]]) -> Path:
    """Training loss as CSV (step, mean over the training seeds, least, greatest), for `dvc plots`; returns its path."""
    path = results_folder(benchmark.name) / "curves" / f"{size}.csv"
    lines = ["step,loss,least,greatest"]
    for points in zip(*curves, strict=True):
        losses = [loss for _, loss in points]
        lines.append(f"{points[0][0]},{np.mean(losses):.6f},{min(losses):.6f},{max(losses):.6f}")
    write_atomically(path, lambda p: p.write_text("\n".join(lines) + "\n"))
    return path


if __name__ == "__main__":
    run_stage(train_size, "size")
