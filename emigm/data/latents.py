"""The store of raw latents: shards, their index and checksums. No torch.

Three spaces of data: pixels (uint8 NCHW), raw latents (what is stored), unit latents (raw x scale, what the
network sees).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emigm.config.errors import ConfigError, check
from emigm.io import INDEX, Parts, read_index, sha256, write_array

SHARD_ROWS = 4096
"""Images of a shard. A store keeps one file open for each: ImageNet's 313 stay below the usual limit of 1024."""
CHECKED_ON_OPENING = 2**30
"""Bytes up to which a store's checksums are verified whenever it is opened: about a second."""
REMEDY = "delete the folder and run the encode stage again (dvc repro)"


class Shards(Parts):
    """Latents of so many images (`rows`) under way in a working folder; `files` becomes a LatentStore.

    `key` says what they are made from.
    """

    def __init__(self, folder: Path, rows: int, key: str, shard_rows: int = SHARD_ROWS):
        self.ranges = [range(i, min(i + shard_rows, rows)) for i in range(0, rows, shard_rows)]
        names = [f"latents-{i:05d}.npy" for i in range(len(self.ranges))]
        super().__init__(folder, names, f"{key}-{rows}-{shard_rows}")

    def write(self, i: int, latents: np.ndarray, seconds: float = 0.0) -> None:
        """Write shard i: raw latents (rows, views, ...) of the images `ranges[i]`, which took so many seconds."""
        self.add(self.names[i], partial(write_array, array=latents), seconds=seconds)

    def finish(self, labels: np.ndarray, facts: dict[str, Any]) -> float:
        """Write the index, with labels int64 (n,) and facts on what the latents are; returns the seconds that making
        all shards took, over processes and interrupted runs. Raises RunError where one is missing."""
        notes = self.notes()
        shards = [
            {"file": name, "rows": len(rows), "bytes": note["bytes"], "sha256": note["checksum"]}
            for name, rows, note in zip(self.names, self.ranges, notes, strict=True)
        ]
        self.seal({"facts": facts, "labels": labels.tolist(), "shards": shards})
        return sum(note["facts"]["seconds"] for note in notes)


class LatentStore:
    """Raw latents of a data set, memory-mapped shard by shard.

    Opening it raises ConfigError where the index or a shard is missing or truncated, or, unless the store is `large`,
    fails its checksum.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = read_index(self.folder / INDEX, REMEDY)
        self.facts, self._shards = index["facts"], index["shards"]
        self.labels = np.array(index["labels"], dtype=np.int64)
        files = [self.folder / shard["file"] for shard in self._shards]
        for file, shard in zip(files, self._shards, strict=True):
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise ConfigError(f"{file}: shard is missing or truncated; {REMEDY}")
        self.large = sum(shard["bytes"] for shard in self._shards) > CHECKED_ON_OPENING
        if not self.large:
            self.verify()
        self._maps = [np.load(file, mmap_mode="r") for file in files]
        self._starts = np.cumsum([0] + [len(m) for m in self._maps])
        if len(self) != len(self.labels):
            raise ConfigError(f"{self.folder / INDEX}: {len(self.labels)} labels of {len(self)} latents; {REMEDY}")

    def check(self, classes: int, **expected: Any) -> None:
        """Raise ConfigError unless all labels are below `classes` and the index's facts are the expected ones."""
        path = self.folder / INDEX
        for name, value in expected.items():
            own = self.facts.get(name, value)
            check(own == value, f"{path}: latents of {name} {own}, expected {value}; {REMEDY}")
        if not 0 <= self.labels.min() <= self.labels.max() < classes:
            raise ConfigError(
                f"{path}: labels {self.labels.min()} to {self.labels.max()}, expected 0 to {classes - 1}; set "
                f"benchmark.model.classes to the data set's number, or {REMEDY}"
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
        Raises ConfigError for the first shard that was changed."""
        for shard in self._shards if shards is None else [self._shards[i] for i in shards]:
            file = self.folder / shard["file"]
            check(sha256(file) == shard["sha256"], f"{file}: checksum differs; {REMEDY}")

    def rows(self, indices: np.ndarray, view: int | np.ndarray | None = None) -> np.ndarray:
        """Raw latents of the images `indices` (n,), in that order: (n, views, ...), or (n, ...) of one `view` of each,
        an int for all or int (n,): 0 the image, 1 its flip. The others are not read."""
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
