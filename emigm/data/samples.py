"""Generated images on disk: one folder for each training and sampling seed, one file for each chunk of images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError, check
from emigm.config.paths import samples_folder, samples_name
from emigm.data.images import load_images, save_images
from emigm.io import INDEX, Parts, read_index, sha256

REMEDY = "delete the folder and run dvc repro"


def chunk_name(start: int, stop: int) -> str:
    """File of the images start .. stop - 1."""
    return f"{start:06d}-{stop:06d}.npz"


def chunk_ranges(images: int, chunk: int) -> list[tuple[int, int]]:
    """(start, stop) of every chunk; the last may be smaller."""
    return [(start, min(start + chunk, images)) for start in range(0, images, chunk)]


class Chunks(Parts):
    """So many `images` under way in a working folder, in files of `chunk` each; `files` becomes a SampleSet.

    `key` says what they are made by.
    """

    def __init__(self, folder: Path, images: int, chunk: int, key: str = ""):
        self.ranges = chunk_ranges(images, chunk)
        super().__init__(folder, [chunk_name(*r) for r in self.ranges], key)

    def write(self, i: int, pixels: np.ndarray, labels: np.ndarray, **cost: float) -> None:
        """Write the i-th chunk: pixels uint8 (n, c, h, w), labels int64 (n,), and what making it cost."""
        self.add(self.names[i], partial(save_images, pixels=pixels, labels=labels), **cost)

    def finish(self, **facts: Any) -> list[dict[str, Any]]:
        """Write the index, with facts on what the images are; returns the number of images and the cost of every chunk.
        Raises RunError where one is missing or damaged."""
        notes = self.notes()
        files = {name: note["checksum"] for name, note in zip(self.names, notes, strict=True)}
        self.seal({"facts": facts, "files": files})
        numbers = [stop - start for start, stop in self.ranges]
        return [{"images": n} | note["facts"] for n, note in zip(numbers, notes, strict=True)]


class SampleSet:
    """The images 0 .. `images` - 1 of one training and one sampling seed; pixels are read chunk by chunk. ConfigError
    where the folder is missing or damaged, holds other images, or its index other facts than the `expected` ones."""

    def __init__(self, folder: str | Path, images: int, **expected: Any):
        self.folder = Path(folder)
        check(self.folder.is_dir(), f"{self.folder}: no such folder; the sample stage has not run (dvc repro)")
        index = read_index(self.folder / INDEX, REMEDY)
        self.facts, self.checksums = index["facts"], index["files"]
        for name, value in expected.items():
            own = f"its images are of {name} {self.facts.get(name)}"
            check(self.facts.get(name) == value, f"{self.folder}: {own}, expected {value}; {REMEDY}")
        self.ranges = sorted(tuple(map(int, name.removesuffix(".npz").split("-"))) for name in self.checksums)
        whole = 0  # images without a gap
        for start, stop in self.ranges:
            if start != whole or not (self.folder / chunk_name(start, stop)).is_file():
                break
            whole = stop
        if whole != images or self.ranges[-1][1] != images:
            raise ConfigError(f"{self.folder}: holds {whole} images without a gap, expected {images} in all; {REMEDY}")

    def __len__(self) -> int:
        return self.ranges[-1][1]

    def checksum(self, i: int) -> str:
        """Of the file of the i-th chunk, as it was written."""
        return self.checksums[chunk_name(*self.ranges[i])]

    def chunk(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (n, c, h, w) and labels int64 (n,) of the i-th chunk; raises ConfigError unless it is as it was
        written."""
        file = self.folder / chunk_name(*self.ranges[i])
        images = load_images(file)
        check(sha256(file) == self.checksum(i), f"{file}: checksum differs; {REMEDY}")
        return images

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.chunk(i) for i in range(len(self.ranges)))

    def first(self, n: int) -> np.ndarray:
        """Pixels uint8 (n, c, h, w) of the first n images, or of all where there are fewer."""
        needed = [i for i, (start, _) in enumerate(self.ranges) if start < n]
        return np.concatenate([self.chunk(i)[0] for i in needed])[:n]

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of all images; for small sets."""
        pixels, labels = zip(*self, strict=True)
        return np.concatenate(pixels), np.concatenate(labels)


def open_samples(benchmark: Benchmark, size: str, budget: str, train_seed: int, seed: int) -> SampleSet:
    """What the sample stage left of one run."""
    folder = samples_folder(benchmark, size, budget) / samples_name(train_seed, seed)
    facts = {"benchmark": benchmark.name, "size": size, "budget": budget, "train_seed": train_seed, "seed": seed}
    return SampleSet(folder, benchmark.evaluation.images, **facts)
