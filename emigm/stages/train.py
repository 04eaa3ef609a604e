"""Train one size of the ladder, all its training seeds, and hold each run against the context gate.

With `weights: released` the authors' checkpoint is fetched and imported instead.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.autoencoder import Autoencoder, load_autoencoder, weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.paths import STATE, data_folder, model_folder, results_folder, snapshot_folder
from emigm.config.schema import ModelConfig
from emigm.data.images import PARTS, Part
from emigm.data.latents import INDEX, LatentStore
from emigm.distributed import World, join
from emigm.flops import mean_training_step, parameters
from emigm.gate import check_context, context_errors, context_ratio
from emigm.io import checksums, sha256, write_atomically
from emigm.launching import run_stage
from emigm.model.checkpoints import import_official
from emigm.model.model import EMIGM, compiled_graphs, load_model, save_model
from emigm.pools import Progress, in_turn, parallel
from emigm.records.record import cpu_seconds, mean_and_spread, write_record
from emigm.train import TrainingImages, train

IN_MEMORY = 2**30
"""Bytes up to which all latents are read at once; larger ones are read batch by batch."""


def train_size(benchmark: Benchmark, size: str) -> None:
    world = join(benchmark.run)
    if benchmark.weights == "trained":
        train_seeds(benchmark, size, world)
    elif world.is_main:
        import_released(benchmark, size, world)


def train_seeds(benchmark: Benchmark, size: str, world: World) -> None:
    """Train all seeds: one after another with all processes, or at once on the cores of one machine."""
    cfg, model_cfg = benchmark.train_config(size), benchmark.model_config(size)
    state = STATE / benchmark.name / f"train-{size}"
    job = partial(train_seed, benchmark, size, state, world)
    latents = data_folder(benchmark) / "latents"
    for part in PARTS:  # before any work, in case one is damaged
        open_latents(benchmark, part, model_cfg)
    inputs = checksums(*(latents / part / INDEX for part in PARTS), *weight_files(benchmark.autoencoder.weights))
    label = f"train {benchmark.name}-{size}"
    if world.is_plain:
        import torch._dynamo  # noqa: F401  # every optimizer does: here once, not for seconds in every process

        runs = parallel(job, cfg.seeds, cfg.steps, "step", label)
    else:
        runs = in_turn(job, cfg.seeds, cfg.steps, "step", label, world.is_main)

    flops, images = mean_training_step(model_cfg, cfg), cfg.steps * cfg.batch
    results = {
        "parameters": parameters(model_cfg),
        "seconds": mean_and_spread([r["seconds"] for r in runs]),
        "images_per_second": mean_and_spread([images / r["seconds"] for r in runs]),
        "peak_memory": max(r["peak_memory"] for r in runs) if world.device != "cpu" else None,
        "flops_per_step": flops,
        "flops": flops * cfg.steps,
        "images": images,
        "snapshots": [{"step": n, "images": n * cfg.batch, "flops": n * flops} for n in cfg.snapshot_steps],
        "final_loss": mean_and_spread([r["curve"][-1][1] for r in runs]),
        "skipped_steps": [r["skipped"] for r in runs],
        "compiled_graphs": runs[-1]["graphs"],  # by the process that trained the last seed
        "context": context_summary(benchmark, [r["errors"] for r in runs]),
    }
    others = sum(world.gather(cpu_seconds())[1:])
    if world.is_main:
        settings = {"size": size, "model": model_cfg, "train": cfg, "gate": benchmark.gate, "weights": "trained"}
        curve = write_curve(curve_file(benchmark, size), [r["curve"] for r in runs])
        write_record(
            benchmark,
            f"train-{size}",
            results,
            device=world.device,
            processes=world.size,
            inputs=inputs,
            outputs=checksums(*(model_folder(benchmark, size, seed) for seed in cfg.seeds), curve),
            others_cpu_seconds=others,
            **settings,
        )
    for seed, run in zip(cfg.seeds, runs, strict=True):
        check_context(run["errors"], benchmark.gate, f"{benchmark.name}-{size}, training seed {seed}")
    if world.is_main:
        shutil.rmtree(state)


def train_seed(
    benchmark: Benchmark, size: str, state: Path, world: World, seed: int, progress: Progress
) -> dict[str, Any]:
    """Train one seed, save it, and measure what context gives it on held-out images."""
    cfg, model_cfg = benchmark.train_config(size), benchmark.model_config(size)
    store, autoencoder = open_latents(benchmark, "train", model_cfg), load_autoencoder(benchmark.autoencoder)
    images = training_images(store, world)
    world.start_memory()
    result = train(
        model_cfg,
        cfg,
        images,
        autoencoder,
        seed=seed,
        state_folder=state,
        data_id=sha256(store.folder / INDEX),
        world=world,
        micro_batch=benchmark.run.train_batch,
        compiled=benchmark.run.compile,
        on_start=progress,
        on_step=progress,
    )
    memory = world.peak_memory()
    if world.is_main:
        facts = {"origin": "trained", "seed": seed, "autoencoder": benchmark.autoencoder.space}
        for steps, point in result.snapshots.items():
            save_model(snapshot_folder(benchmark, size, seed, steps), point.load(), model_cfg, steps=steps, **facts)
        save_model(model_folder(benchmark, size, seed), result.ema, model_cfg, steps=cfg.steps, **facts)

    model = EMIGM(model_cfg).to(world.device).eval().requires_grad_(False)
    model.load_state_dict(result.ema)
    errors = world.gather(held_out_errors(benchmark, model, autoencoder, world.device))[0]
    return {
        "curve": result.curve,
        "seconds": result.seconds,
        "skipped": result.skipped,
        "graphs": compiled_graphs() if benchmark.run.compile else None,
        "errors": errors,
        "peak_memory": memory,
    }


def open_latents(benchmark: Benchmark, part: Part, cfg: ModelConfig) -> LatentStore:
    """Latents of a part; raises ConfigError where they are damaged, or not what the benchmark is about."""
    store = LatentStore(data_folder(benchmark) / "latents" / part)
    store.check(cfg.classes, part=part, autoencoder=benchmark.autoencoder.space)
    return store


def training_images(store: LatentStore, world: World) -> TrainingImages:
    """The store's images: in memory when they fit, else from its shards, whose checksums the processes verify."""
    if len(store) * store.rows(np.zeros(1, dtype=np.int64)).nbytes > IN_MEMORY:
        store.verify(world.share(store.shards))
        world.barrier()
        return TrainingImages(store.labels, store.views, lambda i, view: torch.from_numpy(store.rows(i, view)), True)
    raw = torch.from_numpy(store.rows(np.arange(len(store))))
    rows = lambda i, view: raw[torch.from_numpy(i), torch.from_numpy(view)]  # noqa: E731
    return TrainingImages(store.labels, store.views, rows, False)


def held_out_errors(benchmark: Benchmark, model: EMIGM, autoencoder: Autoencoder, device: str) -> dict[int, float]:
    """The context gate's errors on held-out images."""
    held_out, gate = open_latents(benchmark, "holdout", model.cfg), benchmark.gate
    rows = np.arange(0, len(held_out), -(-len(held_out) // gate.images))  # evenly: images may be sorted by class
    latents = autoencoder.sample(torch.from_numpy(held_out.rows(rows, 0)), torch.Generator().manual_seed(0))
    labels = torch.from_numpy(held_out.labels[rows])
    return context_errors(model, latents.to(device), labels.to(device), gate.visible, seed=0, repeats=gate.repeats)


def context_summary(benchmark: Benchmark, errors: list[dict[int, float]]) -> dict[str, Any]:
    """What the record says of the context gate, given each run's errors by the number of visible tokens."""
    gate, ratios = benchmark.gate, [context_ratio(e) for e in errors]
    return {
        "errors": {str(v): mean_and_spread([e[v] for e in errors]) for v in gate.visible},
        "ratio": mean_and_spread(ratios),
    }


def import_released(benchmark: Benchmark, size: str, world: World) -> None:
    """Turn the authors' checkpoint into the model folder; the gate applies where there are held-out latents."""
    from emigm.tools.fetch import fetch_official  # its libraries take a second

    released, model_cfg = benchmark.released, benchmark.model_config(size)
    (seed,) = benchmark.train_config(size).seeds
    folder = model_folder(benchmark, size, seed)
    checkpoint, latents = fetch_official(released, size), data_folder(benchmark) / "latents" / "holdout"
    facts = import_official(
        checkpoint,
        folder,
        model_cfg,
        token=released.token,
        checksum=released.sha256.get(size),
        autoencoder=benchmark.autoencoder.space,
    )
    errors = None
    if latents.is_dir():
        model = load_model(folder, expect=model_cfg, device=world.device)
        errors = held_out_errors(benchmark, model, load_autoencoder(benchmark.autoencoder), world.device)
    unknown = (
        "seconds",
        "images_per_second",
        "peak_memory",
        "flops_per_step",
        "flops",
        "images",
        "final_loss",
        "skipped_steps",
        "compiled_graphs",
    )
    results = {
        "parameters": parameters(model_cfg),
        **dict.fromkeys(unknown),
        "snapshots": [],
        "context": None if errors is None else context_summary(benchmark, [errors]),
    }
    settings = {"size": size, "model": model_cfg, "gate": benchmark.gate, "weights": "released"}
    read = [checkpoint, *weight_files(benchmark.autoencoder.weights), *([latents / INDEX] if latents.is_dir() else [])]
    outputs = checksums(folder, write_curve(curve_file(benchmark, size), []))
    files = {"inputs": checksums(*read), "outputs": outputs}
    write_record(benchmark, f"train-{size}", results, device=world.device, source=facts["source"], **files, **settings)
    if errors is not None:
        remedy = "Check autoencoder.scale, autoencoder.weights and the held-out images."
        check_context(errors, benchmark.gate, f"{benchmark.name}-{size}, released weights", remedy)


def curve_file(benchmark: Benchmark, size: str) -> Path:
    return results_folder(benchmark.name) / "curves" / f"{size}.csv"


def write_curve(path: Path, curves: list[list[tuple[int, float]]]) -> Path:
    """Training loss as CSV (step, mean over the training seeds, least, greatest), for `dvc plots`; returns `path`."""
    lines = ["step,loss,least,greatest"]
    for points in zip(*curves, strict=True):
        losses = [loss for _, loss in points]
        lines.append(f"{points[0][0]},{np.mean(losses):.6f},{min(losses):.6f},{max(losses):.6f}")
    write_atomically(path, lambda p: p.write_text("\n".join(lines) + "\n"))
    return path


if __name__ == "__main__":
    run_stage(train_size, "size")
