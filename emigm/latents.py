"""The store of raw latents: shards, their index and checksums.

Three spaces of data: pixels (uint8 NCHW), raw latents (what is stored), unit latents (raw x scale, what the
network sees).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from emigm.parsing import ConfigError
from emigm.records import sha256, write_atomically, write_json

INDEX = "index.json"
SHARD_ROWS = 4096


def write_latents(folder: Path, latents: np.ndarray, labels: np.ndarray, facts: dict) -> None:
    """Write raw latents (n, views, ...) and labels (n,) as shards with checksums; the index comes last, so a folder
    that has one is whole. `facts` (autoencoder, scale, ...) go into the index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for i, start in enumerate(range(0, len(latents), SHARD_ROWS)):
        rows = slice(start, start + SHARD_ROWS)
        path = folder / f"latents-{i:05d}.npy"
        write_atomically(path, lambda p, rows=rows: np.save(p, np.ascontiguousarray(latents[rows])))
        shards.append(
            {"file": path.name, "rows": len(latents[rows]), "bytes": path.stat().st_size, "sha256": sha256(path)}
        )
    write_json(folder / INDEX, {"facts": facts, "labels": labels.tolist(), "shards": shards})


class LatentStore:
    """Raw latents of a data set, memory-mapped shard by shard.

    Raises:
        ConfigError: the index or a shard is missing, truncated, or fails its checksum.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; run the encode stage (dvc repro)")
        try:
            index = json.loads(path.read_text())
        except json.JSONDecodeError as e:
            raise ConfigError(f"{path}: not valid JSON ({e}); delete the folder and encode again") from e
        self.facts = index["facts"]
        self.labels = np.array(index["labels"], dtype=np.int64)
        maps = []
        for shard in index["shards"]:
            file = self.folder / shard["file"]
            if not file.is_file():
                raise ConfigError(f"{file}: shard is missing; delete {self.folder} and run the encode stage again")
            if file.stat().st_size != shard["bytes"]:
                raise ConfigError(
                    f"{file}: shard is truncated ({file.stat().st_size} bytes, expected {shard['bytes']}); "
                    f"delete {self.folder} and run the encode stage again"
                )
            if sha256(file) != shard["sha256"]:
                raise ConfigError(f"{file}: checksum differs; delete {self.folder} and run the encode stage again")
            maps.append(np.load(file, mmap_mode="r"))
        self._maps = maps
        self._starts = np.cumsum([0] + [len(m) for m in maps])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Raw latents of the given images, in that order (n, views, ...): the image, then its flip if encoded."""
        out = np.empty((len(indices), *self._maps[0].shape[1:]), dtype=self._maps[0].dtype)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        for s in np.unique(shard):
            here = shard == s
            out[here] = self._maps[s][indices[here] - self._starts[s]]
        return out
