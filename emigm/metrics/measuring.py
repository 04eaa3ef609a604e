"""Images measured chunk by chunk: shared by all processes of a stage, kept on the disk until the stage is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from emigm.distributed import World
from emigm.io import read_arrays, write_arrays
from emigm.metrics.features import Features


class Chunk(NamedTuple):
    """Images that are read and measured together."""

    key: str
    """Names the images and all that is measured on them; what was found under the same name is taken."""
    images: int
    read: Callable[[], np.ndarray]
    """Pixels, uint8 (images, c, h, w)."""


def measure_chunks(
    chunks: Iterable[Chunk],
    measure: Callable[[np.ndarray], dict[str, np.ndarray]],
    state: Path,
    world: World,
    label: str,
) -> None:
    """Measure this process's share of the chunks into `state`, one file each; what is there already is kept.

    Returns when all processes are done. A file depends on its chunk alone, so their number changes nothing.
    """
    world.check_shared(state)
    chunks = list(chunks)
    mine = [chunks[i] for i in world.share(len(chunks))]
    total = sum(c.images for c in mine)
    with tqdm(total=total, unit="image", desc=label, disable=not world.is_main, mininterval=1.0) as bar:
        for chunk in mine:
            path = state / f"{chunk.key}.npz"
            if not path.is_file():
                found = measure(chunk.read())
                write_arrays(path, **found)
            bar.update(chunk.images)
    world.barrier()


def measured(chunks: Iterable[Chunk], state: Path) -> dict[str, np.ndarray]:
    """What `measure_chunks` found, put together in the order of the chunks."""
    parts = []
    for chunk in chunks:
        remedy = "delete it and type the same command again"
        parts.append(read_arrays(state / f"{chunk.key}.npz", (), remedy))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def as_arrays(features: Features) -> dict[str, np.ndarray]:
    """For `measure_chunks`."""
    return {name: tensor.numpy() for name, tensor in features._asdict().items() if tensor is not None}


def from_arrays(arrays: dict[str, np.ndarray]) -> Features:
    """The features among what `measured` gives."""
    return Features(*(torch.from_numpy(arrays[name]) if name in arrays else None for name in Features._fields))
