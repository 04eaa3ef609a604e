"""The store of raw latents: shards, their index and checksums. No torch.

Three spaces of data: pixels (uint8 NCHW), raw latents (what is stored), unit latents (raw x scale, what the
network sees).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from emigm.config.errors import ConfigError, RunError
from emigm.io import read_index, sha256, write_atomically, write_index

INDEX = "index.json"
SHARD_ROWS = 4096
"""Images of a shard. A store keeps one file open for each: ImageNet's 313 stay below the usual limit of 1024."""
CHECKED_ON_OPENING = 2**30
"""Bytes up to which a store's checksums are verified whenever it is opened: about a second."""


class Shards:
    """Shards under way, written by one process or several at once.

    Beside each lies a note with its checksum and what it was made from, so that a killed run goes on where it stopped.

    Args:
        folder: working folder; holds `store`, which becomes a LatentStore, and the notes.
        rows: images in all.
        key: what the latents are made from; a shard made from something else does not count.
        shard_rows: images of one shard; the last may have fewer.
    """

    def __init__(self, folder: Path, rows: int, key: str, shard_rows: int = SHARD_ROWS):
        self.folder, self.store = folder, folder / "store"
        self.key = key
        self.ranges = [range(i, min(i + shard_rows, rows)) for i in range(0, rows, shard_rows)]
        self.store.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.ranges)

    def missing(self) -> list[int]:
        """Shards that are still to be written."""
        return [i for i in range(len(self)) if self._note(i) is None]

    def write(self, i: int, latents: np.ndarray, seconds: float = 0.0) -> None:
        """Write shard i.

        Args:
            i: number of the shard.
            latents: raw latents (rows, views, ...) of the images `ranges[i]`.
            seconds: what making it took.
        """
        path = self._file(i)

        def save(temporary: Path) -> None:
            with temporary.open("wb") as f:  # given a name, numpy adds a suffix to it
                np.save(f, np.ascontiguousarray(latents))

        write_atomically(path, save)
        facts = {"file": path.name, "rows": len(latents), "bytes": path.stat().st_size, "sha256": sha256(path)}
        note = {"key": self.key, "start": self.ranges[i].start, "seconds": seconds, "shard": facts}
        write_index(self._note_file(i), note)

    def seconds(self) -> float:
        """What making all shards took, summed over processes and interrupted runs."""
        return sum(note["seconds"] for note in self._notes())

    def finish(self, labels: np.ndarray, facts: dict[str, Any]) -> None:
        """Make `store` whole: write its index and remove what does not belong there.

        Args:
            labels: int64 (n,).
            facts: for the index: what the latents are.

        Raises:
            RunError: a shard is missing.
        """
        shards = [note["shard"] for note in self._notes()]
        kept = {INDEX, *(s["file"] for s in shards)}
        for file in self.store.iterdir():
            if file.name not in kept:
                file.unlink()
        write_index(self.store / INDEX, {"facts": facts, "labels": labels.tolist(), "shards": shards})

    def move(self, folder: Path) -> None:
        """Move the finished store to `folder`, in place of what is there, and remove the working folder."""
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.store, folder)  # copies where .state and data are on two disks
        shutil.rmtree(self.folder)

    def _file(self, i: int) -> Path:
        return self.store / f"latents-{i:05d}.npy"

    def _note_file(self, i: int) -> Path:
        return self.folder / "notes" / f"{i:05d}.json"

    def _note(self, i: int) -> dict[str, Any] | None:
        """Note of shard i, if it is finished, whole and made from the same."""
        file, path = self._file(i), self._note_file(i)
        if not (path.is_file() and file.is_file()):
            return None
        try:
            note = read_index(path, "")
        except ConfigError:  # the machine went down before the note was on the disk
            return None
        rows, shard = self.ranges[i], note["shard"]
        made_from = (note["key"], note["start"], shard["rows"], shard["bytes"])
        return note if made_from == (self.key, rows.start, len(rows), file.stat().st_size) else None

    def _notes(self) -> list[dict[str, Any]]:
        if missing := self.missing():
            raise RunError(f"{self._file(missing[0])}: shard was not written; run the same command again")
        return [self._note(i) for i in range(len(self))]


def write_latents(
    folder: Path, latents: np.ndarray, labels: np.ndarray, facts: dict[str, Any], shard_rows: int = SHARD_ROWS
) -> None:
    """Write a store of raw latents (n, views, ...) and labels (n,) that are in memory; `facts` go into its index."""
    shards = Shards(folder.with_name(f".{folder.name}"), len(latents), "", shard_rows)
    for i, rows in enumerate(shards.ranges):
        shards.write(i, latents[rows.start : rows.stop])
    shards.finish(labels, facts)
    shards.move(folder)


class LatentStore:
    """Raw latents of a data set, memory-mapped shard by shard.

    Opening it checks that every shard is there and has its size, and in a small store the checksums (`verify` does in a
    large one).

    Raises:
        ConfigError: the index or a shard is missing, truncated, or fails its checksum.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; run the encode stage (dvc repro)")
        index = read_index(path, self._remedy)
        try:
            self.facts, labels, self._shards = index["facts"], index["labels"], index["shards"]
        except KeyError as e:
            raise ConfigError(f"{path}: has no {e}; {self._remedy}") from e
        self.labels = np.array(labels, dtype=np.int64)
        for shard in self._shards:
            self._check_size(shard)
        if sum(shard["bytes"] for shard in self._shards) <= CHECKED_ON_OPENING:
            self.verify()
        self._maps = [self._map(shard) for shard in self._shards]
        self._starts = np.cumsum([0] + [len(m) for m in self._maps])
        if len(self) != len(self.labels) or not self._maps:
            raise ConfigError(f"{path}: {len(self.labels)} labels of {len(self)} latents; {self._remedy}")

    def check(self, classes: int, **expected: Any) -> None:
        """Raise ConfigError unless all labels are below `classes` and the index's facts are the expected ones."""
        path = self.folder / INDEX
        for name, value in expected.items():
            if self.facts.get(name, value) != value:
                raise ConfigError(f"{path}: latents of {name} {self.facts[name]}, expected {value}; {self._remedy}")
        if not 0 <= self.labels.min() <= self.labels.max() < classes:
            raise ConfigError(
                f"{path}: labels {self.labels.min()} to {self.labels.max()}, expected 0 to {classes - 1}; set "
                f"benchmark.model.classes to the data set's number, or {self._remedy}"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._shards)

    @property
    def views(self) -> int:
        """Encoded views of an image: 2 where its flip is one."""
        return self._maps[0].shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the raw latents of one view."""
        return self._maps[0].shape[2:]

    def verify(self, shards: Iterable[int] | None = None) -> None:
        """Compare checksums, of the given shards or of all; processes can share them (`world.share(store.shards)`).

        Raises:
            ConfigError: names the first shard that was changed.
        """
        for shard in self._shards if shards is None else [self._shards[i] for i in shards]:
            file = self.folder / shard["file"]
            if sha256(file) != shard["sha256"]:
                raise ConfigError(f"{file}: checksum differs; {self._remedy}")

    def rows(self, indices: np.ndarray, view: int | np.ndarray | None = None) -> np.ndarray:
        """Raw latents of the given images, in that order.

        Args:
            indices: int (n,).
            view: which view of each, an int for all or int (n,): 0 the image, 1 its flip. The others are not read.

        Returns:
            (n, ...), or with all views (n, views, ...) where `view` is None.
        """
        indices = np.asarray(indices)
        views = None if view is None else np.broadcast_to(view, indices.shape)
        first = self._maps[0]
        out = np.empty((len(indices), *first.shape[1 if views is None else 2 :]), dtype=first.dtype)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        for s in np.unique(shard):
            here = shard == s
            local = indices[here] - self._starts[s]
            out[here] = self._maps[s][local] if views is None else self._maps[s][local, views[here]]
        return out

    @property
    def _remedy(self) -> str:
        return f"delete {self.folder} and run the encode stage again"

    def _map(self, shard: dict[str, Any]) -> np.ndarray:
        file = self.folder / shard["file"]
        try:
            return np.load(file, mmap_mode="r")
        except Exception as e:  # numpy raises many types for a damaged file
            raise ConfigError(f"{file}: not a shard ({e}); {self._remedy}") from e

    def _check_size(self, shard: dict[str, Any]) -> None:
        file = self.folder / shard["file"]
        if not file.is_file():
            raise ConfigError(f"{file}: shard is missing; {self._remedy}")
        if file.stat().st_size != shard["bytes"]:
            raise ConfigError(
                f"{file}: shard is truncated ({file.stat().st_size} bytes, expected {shard['bytes']}); {self._remedy}"
            )
