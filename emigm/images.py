"""Datasets in: pixels (uint8 NCHW) and labels."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from emigm.config import DataConfig
from emigm.parsing import ConfigError
from emigm.records import write_atomically


def load_split(cfg: DataConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train", "holdout"} -> (pixels uint8 NCHW, labels int64)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # grey levels 0..16
    labels = digits.target.astype(np.int64)
    held_out = holdout_mask(labels, cfg.holdout, cfg.split_seed)
    return {"train": (pixels[~held_out], labels[~held_out]), "holdout": (pixels[held_out], labels[held_out])}


def holdout_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Bool (n,): the held-out images, the same fraction of every class (rounded), drawn with `seed`."""
    if not 0 < fraction < 1:
        raise ConfigError(f"benchmark.data.holdout = {fraction} is outside (0, 1)")
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        mask[rng.choice(members, round(fraction * len(members)), replace=False)] = True
    return mask


def save_images(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write pixels (uint8 NCHW) and labels (int64) as one `.npz`."""
    write_atomically(path, lambda p: np.savez(p, pixels=pixels, labels=labels))


def load_images(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (uint8 NCHW) and labels (int64) written by `save_images`."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the stage that makes it has not run (dvc repro)")
    try:
        with np.load(path) as f:
            return f["pixels"], f["labels"]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise ConfigError(f"{path}: truncated or damaged ({e}); delete it and run dvc repro") from e
