"""Where stages keep what they make, and paths as people write them. No torch in this module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the configuration's own modules expand paths too
    from emigm.config.benchmark import Benchmark

Part = Literal["train", "holdout"]
PARTS: tuple[Part, ...] = ("train", "holdout")  # of a data set
STATE = Path(".state")  # resume points of interrupted stages; a stage removes its own when all it makes is written


def expand(path: str | Path) -> Path:
    """The path with `~` and `$VARIABLES` replaced by what they stand for; one that is not set stays as it is."""
    return Path(os.path.expandvars(path)).expanduser()


def data_folder(benchmark: Benchmark) -> Path:
    """Latents and reference statistics."""
    return Path("data", benchmark.name)


def images_folder(benchmark: Benchmark) -> Path:
    """Images of both parts, or the lists of their photos; shared by all benchmarks of one data set."""
    return Path("data", benchmark.images_of, "images")


def extractor_folder(benchmark: Benchmark) -> Path:
    """The feature extractor, shared as the images are."""
    return Path("data", benchmark.images_of, "extractor")


def model_folder(benchmark: Benchmark, size: str, seed: int) -> Path:
    """One trained model."""
    return Path("models", benchmark.models_of or benchmark.name, size, f"seed{seed}")


def snapshot_folder(benchmark: Benchmark, size: str, seed: int, step: int) -> Path:
    """The EMA weights of that model after `step` steps of its training: a snapshot, or the model itself at the end."""
    folder = model_folder(benchmark, size, seed)
    return folder if step == benchmark.train_config(size).steps else folder / f"snapshot-{step}"


def samples_folder(benchmark: Benchmark, size: str, budget: str) -> Path:
    """Generated images of one model and sampling configuration."""
    return Path("samples", benchmark.name, size, budget)


def samples_name(train_seed: int, sample_seed: int) -> str:
    """Folder of the images of one training and one sampling seed; see `emigm.data.samples`."""
    return f"train{train_seed}-seed{sample_seed}"


def weights_folder(benchmark: str, size: str) -> Path:
    """The copy of one trained model that git tracks; see `emigm.stages.weights`."""
    return results_folder(benchmark) / "weights" / size


def results_folder(benchmark: str) -> Path:
    """Where a benchmark's tracked results lie."""
    return Path("results", benchmark)
