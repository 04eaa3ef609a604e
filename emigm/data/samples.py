"""Generated images on disk: one folder for each training and sampling seed, one file for each chunk of images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emigm.config.errors import ConfigError, RunError
from emigm.data.images import load_images, save_images
from emigm.io import read_index, sha256, write_index

INDEX = "index.json"
REMEDY = "delete the folder and run dvc repro"


def chunk_name(start: int, stop: int) -> str:
    """File of the images start .. stop - 1."""
    return f"{start:06d}-{stop:06d}.npz"


def chunk_ranges(images: int, chunk: int) -> list[tuple[int, int]]:
    """(start, stop) of every chunk; the last may be smaller."""
    return [(start, min(start + chunk, images)) for start in range(0, images, chunk)]


class Chunks:
    """Chunks under way, written by one process or several at once.

    Beside each lies a note with its checksum and what it cost, so that a killed run goes on where it stopped.

    Args:
        folder: working folder; holds `store`, which becomes a SampleSet, and the notes.
        images: images in all.
        chunk: images of one chunk.
    """

    def __init__(self, folder: Path, images: int, chunk: int):
        self.folder, self.store = folder, folder / "store"
        self.ranges = chunk_ranges(images, chunk)

    def missing(self, chunks: Sequence[int]) -> list[int]:
        """Those of the given chunks that are still to be written, or are not as they were written."""
        return [i for i in chunks if self._note(i) is None]

    def write(self, i: int, pixels: np.ndarray, labels: np.ndarray, **cost: float) -> None:
        """Write the i-th chunk: pixels uint8 (n, c, h, w), labels int64 (n,), and what making it cost."""
        save_images(self._file(i), pixels, labels)
        write_index(self._note_file(i), {"images": len(pixels), "cost": cost, "checksum": sha256(self._file(i))})

    def finish(self, **facts: Any) -> list[dict[str, Any]]:
        """Make `store` whole: write its index, with facts on what the images are.

        Returns:
            For every chunk its number of images and its cost.

        Raises:
            RunError: a chunk is missing or damaged.
        """
        notes = [self._note(i) for i in range(len(self.ranges))]
        for i, note in enumerate(notes):
            if note is None:
                raise RunError(f"{self._file(i)}: chunk is missing or damaged; type the same command again")
        files = {chunk_name(*r): note["checksum"] for r, note in zip(self.ranges, notes, strict=True)}
        for file in self.store.iterdir():
            if file.name not in files:
                file.unlink()
        write_index(self.store / INDEX, {"facts": facts, "files": files})
        return [{"images": note["images"]} | note["cost"] for note in notes]

    def move(self, folder: Path) -> None:
        """Move the finished store to `folder`, in place of what is there, and remove the working folder."""
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.store, folder)  # copies where .state and samples are on two disks
        shutil.rmtree(self.folder)

    def _file(self, i: int) -> Path:
        return self.store / chunk_name(*self.ranges[i])

    def _note_file(self, i: int) -> Path:
        return self.folder / "notes" / f"{self.ranges[i][0]:06d}.json"

    def _note(self, i: int) -> dict[str, Any] | None:
        """Note of chunk i, if both are there and whole."""
        file = self._file(i)
        try:
            note = read_index(self._note_file(i), "")
        except ConfigError:  # missing, or the machine went down before it was on the disk
            return None
        return note if file.is_file() and sha256(file) == note["checksum"] else None


def write_samples(folder: Path, pixels: np.ndarray, labels: np.ndarray, chunk: int, **facts: Any) -> None:
    """Write a folder of images (n, c, h, w) and labels (n,) that are in memory; `facts` go into its index."""
    chunks = Chunks(folder.with_name(f".{folder.name}"), len(pixels), chunk)
    for i, (start, stop) in enumerate(chunks.ranges):
        chunks.write(i, pixels[start:stop], labels[start:stop])
    chunks.finish(**facts)
    chunks.move(folder)


class SampleSet:
    """The images of one folder, in order of their indices; pixels are read chunk by chunk.

    Args:
        folder: of one training and one sampling seed.
        images: how many there must be.
        expected: facts of the folder's index that must be these, such as the seeds.

    Raises:
        ConfigError: the folder is missing, damaged, or does not hold images 0 .. `images` - 1 of that kind.
    """

    def __init__(self, folder: str | Path, images: int, **expected: Any):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(f"{self.folder}: no such folder; the sample stage has not run (dvc repro)")
        index = read_index(self.folder / INDEX, REMEDY)
        self.facts, self.checksums = index.get("facts", {}), index.get("files", {})
        for name, value in expected.items():
            if self.facts.get(name) != value:
                raise ConfigError(
                    f"{self.folder}: its images are of {name} {self.facts.get(name)}, expected {value}; {REMEDY}"
                )
        self.ranges = sorted(tuple(map(int, name.removesuffix(".npz").split("-"))) for name in self.checksums)
        found = 0
        for start, stop in self.ranges:
            if start != found or not (self.folder / chunk_name(start, stop)).is_file():
                break
            found = stop
        if found != images or self.ranges[-1][1] != images:
            raise ConfigError(f"{self.folder}: holds {found} images without a gap, expected {images} in all; {REMEDY}")

    def __len__(self) -> int:
        return self.ranges[-1][1]

    def checksum(self, i: int) -> str:
        """Of the file of the i-th chunk, as it was written."""
        return self.checksums[chunk_name(*self.ranges[i])]

    def chunk(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (n, c, h, w) and labels int64 (n,) of the i-th chunk.

        Raises:
            ConfigError: the chunk is missing, damaged, another one, or holds another number of images.
        """
        start, stop = self.ranges[i]
        file = self.folder / chunk_name(start, stop)
        pixels, labels = load_images(file)
        if len(pixels) != stop - start:
            raise ConfigError(f"{file}: holds {len(pixels)} images, expected {stop - start}; {REMEDY}")
        if sha256(file) != self.checksum(i):
            raise ConfigError(f"{file}: checksum differs; {REMEDY}")
        return pixels, labels

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
