"""Pictures of how images come about: schedules step by step, an animation, guidance, nearest training images."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.autoencoder import weight_files
from emigm.config.benchmark import Benchmark
from emigm.config.paths import PARTS, images_folder, model_folder, results_folder
from emigm.config.schema import SampleConfig
from emigm.data.images import open_images
from emigm.io import checksums
from emigm.launching import run_stage
from emigm.metrics.scores import nearest, nearest_distance
from emigm.model.schedules import SCHEDULES, nfe
from emigm.pictures import after_step, columns_of, rows_of_images, save_animation, save_png, to_look_at
from emigm.sample import Sampler, balanced_labels, generate_with_steps
from emigm.stages.context import StageRun

FOLDER = Path("grids") / "reveal"  # below a benchmark's results
ANIMATED, IN_A_ROW = 60, 10  # images of the animation, at most; and those of a row, one of each of the first classes
FOLLOWED = (2, 7)  # indices of the images whose steps are shown under every schedule
NEIGHBOURS = 3

Generated = Callable[[SampleConfig, int], tuple[np.ndarray, np.ndarray]]
"""(settings, n) => the first n images that the sample stage makes with them, and the steps that revealed their tokens
(n, L)."""


def make_pictures(benchmark: Benchmark, size: str) -> None:
    run, evaluation = StageRun(benchmark, f"reveal-{size}"), benchmark.evaluation
    if run.world.device == "cpu":
        torch.set_num_threads(1)  # as where samples are made
    budget = max(benchmark.budgets, key=lambda name: benchmark.sample_config(size, name).steps)
    cfg, train_seed = benchmark.sample_config(size, budget), benchmark.train_config(size).seeds[0]
    weights = model_folder(benchmark, size, train_seed)
    sampler = Sampler(benchmark, size, weights, cfg, train_seed, run.world.device)
    model = sampler.model.cfg

    def images(settings: SampleConfig, n: int) -> tuple[np.ndarray, np.ndarray]:
        labels, options = balanced_labels(n, model.classes), sampler.options(evaluation.seeds[0])
        latents, steps = generate_with_steps(sampler.model, labels, settings, **options)
        return sampler.decode(latents), steps.cpu().numpy()

    folder, parts = results_folder(benchmark.name) / FOLDER, images_folder(benchmark)
    shutil.rmtree(folder, ignore_errors=True)
    pixels, steps = images(cfg, ANIMATED)
    side = to_look_at(pixels[:1]).shape[-1]
    columns = min(IN_A_ROW // 2 if side > 100 else IN_A_ROW, model.classes)
    animated = save_animation(folder / "animation.png", pixels, steps, cfg.steps, columns)
    shown = columns_of(cfg.steps, side)
    results = {"animated": {"images": animated, "columns": columns}, "steps_shown": shown}
    results["schedules"] = schedules(images, cfg, shown, folder / "schedules.png")
    if cfg.cfg_scale != 1:
        results["guidance"] = guidance(images, cfg, folder / "guidance.png")
    inputs = checksums(weights, *weight_files(benchmark.autoencoder.weights))
    if benchmark.data.dataset != "imagenet":  # distances of photos in pixels say nothing
        results["nearest"] = neighbours(pixels[:IN_A_ROW], parts, folder / "neighbours.png")
        inputs |= checksums(*(parts / f"{part}.npz" for part in PARTS))
    settings = {"size": size, "budget": budget, "sample": cfg, "chunk": evaluation.chunk, "tokens": model.tokens}
    settings |= {"train_seed": train_seed, "sample_seed": evaluation.seeds[0], "followed": list(FOLLOWED)}
    run.finish(results, inputs=inputs, outputs=checksums(folder), **settings)


def schedules(images: Generated, cfg: SampleConfig, shown: list[int], path: Path) -> dict[str, list[float]]:
    """Draw the same images under every mask schedule, a row each, after the steps `shown`; of every schedule the
    tokens revealed after each step, mean over a row of images."""
    rows, revealed = [], {}
    for name in reversed(SCHEDULES):  # the paper's, exp, first
        pixels, steps = images(dataclasses.replace(cfg, schedule=name), IN_A_ROW)
        revealed[name] = [float((steps <= step).sum(1).mean()) for step in range(1, cfg.steps + 1)]
        rows.append([np.concatenate([after_step(pixels[[i]], steps[[i]], n) for n in shown]) for i in FOLLOWED])
    save_png(path, rows_of_images(*(row[i] for i in range(len(FOLLOWED)) for row in rows)))
    return revealed


def guidance(images: Generated, cfg: SampleConfig, path: Path) -> dict[str, dict[str, float]]:
    """Draw the same images without guidance, guided at every step, and guided in the interval; of each its NFE, and
    how far its images are from those without (root mean square over pixels, in grey levels)."""
    unguided, everywhere = dataclasses.replace(cfg, cfg_scale=1.0), dataclasses.replace(cfg, cfg_interval=(0.0, 1.0))
    ways = {"off": unguided, "every step": everywhere, "interval": cfg}
    rows = {name: images(way, IN_A_ROW)[0] for name, way in ways.items()}
    save_png(path, rows_of_images(*rows.values()))
    results, off = {}, rows["off"].astype(np.float64)
    for name, way in ways.items():
        distance = float(np.sqrt(((rows[name] - off) ** 2).mean((1, 2, 3))).mean())
        results[name] = {"nfe": nfe(cfg.steps, way.cfg_scale, way.cfg_interval), "from_off": distance}
    return results


def neighbours(pixels: np.ndarray, parts: Path, path: Path) -> dict[str, Any]:
    """Draw images above their nearest training images, nearest first; the distances (`metrics.scores.nearest`), and
    the mean distance of held-out images to their nearest."""
    train, holdout = (source.pixels(range(len(source))) for source in (open_images(parts, part) for part in PARTS))
    distances, places = nearest(pixels, train, NEIGHBOURS)
    save_png(path, rows_of_images(pixels, *(train[column] for column in places.T)))
    return {"samples": distances.tolist(), "holdout": nearest_distance(holdout, train), "train_images": len(train)}


if __name__ == "__main__":
    run_stage(make_pictures, "size", one_process=True)
