"""Train one size of the ladder, all its training seeds, and hold each run against the context gate."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoder import load_autoencoder
from emigm.config import Benchmark
from emigm.flops import mean_training_step
from emigm.latents import INDEX, LatentStore
from emigm.model import EMIGM, save_model
from emigm.parsing import as_dict
from emigm.records import mean_and_spread, results_folder, sha256, write_atomically, write_record
from emigm.training import check_context, context_errors, context_ratio, train
from emigm.workspace import STATE, Progress, data_folder, model_folder, parallel, run_stage


def train_size(benchmark: Benchmark, size: str) -> None:
    cfg = benchmark.train_config(size)
    state = STATE / benchmark.name / f"train-{size}"
    runs = parallel(
        partial(train_seed, benchmark, size, state), cfg.seeds, cfg.steps, "step", f"train {benchmark.name}-{size}"
    )
    model_cfg = benchmark.model_config(size)
    visible = [str(v) for v in benchmark.gate.visible]
    flops = mean_training_step(model_cfg, cfg)
    results = {
        "parameters": sum(p.numel() for p in meta_model(benchmark, size).parameters()),
        "seconds": mean_and_spread([r["seconds"] for r in runs]),
        "flops_per_step": flops,
        "flops": flops * cfg.steps,
        "images": cfg.steps * cfg.batch,
        "final_loss": mean_and_spread([r["curve"][-1][1] for r in runs]),
        "context": {
            "errors": {v: mean_and_spread([r["errors"][int(v)] for r in runs]) for v in visible},
            "ratio": mean_and_spread([context_ratio(r["errors"]) for r in runs]),
            "passed": all(context_ratio(r["errors"]) <= benchmark.gate.max_ratio for r in runs),
        },
    }
    settings = {"size": size, "model": model_cfg, "train": cfg, "gate": benchmark.gate, "weights": "trained"}
    write_record(benchmark, f"train-{size}", results, device="cpu", **settings)
    write_curve(results_folder(benchmark.name) / "curves" / f"{size}.csv", [r["curve"] for r in runs])
    for seed, run in zip(cfg.seeds, runs, strict=True):
        check_context(run["errors"], benchmark.gate, f"{benchmark.name}-{size}, training seed {seed}")
    shutil.rmtree(state)


def train_seed(benchmark: Benchmark, size: str, state: Path, seed: int, progress: Progress) -> dict[str, Any]:
    """Train one seed, save it, and measure what context gives it on held-out images."""
    folder = data_folder(benchmark) / "latents"
    store, autoencoder = LatentStore(folder / "train"), load_autoencoder(benchmark.autoencoder)
    cfg, model_cfg = benchmark.train_config(size), benchmark.model_config(size)
    raw = torch.from_numpy(store.rows(np.arange(len(store))))

    def fetch(index: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        view = torch.randint(raw.shape[1], (len(index),), generator=generator, device=generator.device).cpu()
        return autoencoder.sample(raw[torch.from_numpy(index), view], generator)

    result = train(
        model_cfg,
        cfg,
        fetch,
        store.labels,
        seed=seed,
        state_folder=state,
        data_id=sha256(folder / "train" / INDEX),
        on_step=lambda step, loss: progress(step),
    )
    facts = {"origin": "trained", "seed": seed, "steps": cfg.steps, "autoencoder": as_dict(benchmark.autoencoder)}
    save_model(model_folder(benchmark, size, seed), result.ema, model_cfg, **facts)

    model = EMIGM(model_cfg).eval().requires_grad_(False)
    model.load_state_dict(result.ema)
    held_out = LatentStore(folder / "holdout")
    rows = np.arange(min(benchmark.gate.images, len(held_out)))
    latents = autoencoder.sample(torch.from_numpy(held_out.rows(rows)[:, 0]), torch.Generator().manual_seed(0))
    labels = torch.from_numpy(held_out.labels[rows])
    errors = context_errors(model, latents, labels, benchmark.gate.visible, seed=0, repeats=benchmark.gate.repeats)
    return {"curve": result.curve, "seconds": result.seconds, "errors": errors}


def meta_model(benchmark: Benchmark, size: str) -> EMIGM:
    """The architecture without its weights."""
    with torch.device("meta"):
        return EMIGM(benchmark.model_config(size))


def write_curve(path: Path, curves: list[list[tuple[int, float]]]) -> None:
    """Training loss as CSV (step, mean over the training seeds, least, greatest), for `dvc plots`."""
    lines = ["step,loss,least,greatest"]
    for points in zip(*curves, strict=True):
        losses = [loss for _, loss in points]
        lines.append(f"{points[0][0]},{np.mean(losses):.6f},{min(losses):.6f},{max(losses):.6f}")
    write_atomically(path, lambda p: p.write_text("\n".join(lines) + "\n"))


if __name__ == "__main__":
    run_stage(train_size, "size")
