"""Generated images on disk: one folder for each training and sampling seed, one file for each chunk of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emigm.config.errors import ConfigError
from emigm.data.images import load_images, save_images

CHUNK_PATTERN = "[0-9]*-[0-9]*.npz"


def chunk_name(start: int, stop: int) -> str:
    """File of the images start .. stop - 1."""
    return f"{start:06d}-{stop:06d}.npz"


def chunk_ranges(images: int, chunk: int) -> list[tuple[int, int]]:
    """(start, stop) of every chunk; the last may be smaller."""
    return [(start, min(start + chunk, images)) for start in range(0, images, chunk)]


def save_chunk(folder: Path, start: int, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write the images with indices start, start + 1, ...: pixels uint8 (n, c, h, w), labels int64 (n,)."""
    save_images(folder / chunk_name(start, start + len(pixels)), pixels, labels)


class SampleSet:
    """The images of one folder, in order of their indices; pixels are read chunk by chunk.

    Raises:
        ConfigError: the folder is missing, or does not hold images 0 .. `images` - 1.
    """

    def __init__(self, folder: str | Path, images: int):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(f"{self.folder}: no such folder; the sample stage has not run (dvc repro)")
        self.ranges = sorted(tuple(map(int, p.stem.split("-"))) for p in self.folder.glob(CHUNK_PATTERN))
        expected = 0
        for start, stop in self.ranges:
            if start != expected:
                break
            expected = stop
        if expected != images or self.ranges[-1][1] != images:
            raise ConfigError(
                f"{self.folder}: holds {expected} images without a gap, expected {images} in all; delete it and run "
                "dvc repro"
            )

    def __len__(self) -> int:
        return self.ranges[-1][1]

    def chunk(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (n, c, h, w) and labels int64 (n,) of the i-th chunk."""
        return load_images(self.folder / chunk_name(*self.ranges[i]))

    def first(self, n: int) -> np.ndarray:
        """Pixels uint8 (n, c, h, w) of the first n images, or of all where there are fewer."""
        found: list[np.ndarray] = []
        for pixels, _ in self:
            found.append(pixels)
            if sum(map(len, found)) >= n:
                break
        return np.concatenate(found)[:n]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.chunk(i) for i in range(len(self.ranges)))

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of all images; for small sets."""
        pixels, labels = zip(*self, strict=True)
        return np.concatenate(pixels), np.concatenate(labels)
