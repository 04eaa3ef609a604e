"""Images of a data set => raw latents, and what a record says of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from emigm.autoencoders.base import Autoencoder
from emigm.data.images import ImageSource
from emigm.data.latents import LatentStore
from emigm.data.photos import DecodingError
from emigm.launching import ahead

STATISTICS_IMAGES = 2048
"""Images, evenly spaced, that the record's mean and deviation of unit latents are taken over, at most."""


def encode_images(
    autoencoder: Autoencoder,
    source: ImageSource,
    rows: range,
    views: int,
    batch: int,
    progress: Callable[[int], Any] = lambda done: None,
) -> np.ndarray:
    """Raw latents of the images `rows`, and of their horizontal flips where `views` is 2, float32 (n, views, ...).

    Each `batch` is read while the one before is encoded; `progress` is called with the number of images in it.

    Raises:
        DecodingError: names all of these images that do not decode.
    """

    def read(rows: range) -> np.ndarray | DecodingError:
        try:
            return source.pixels(rows)
        except DecodingError as e:
            return e

    raw, failures = [], []
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    for pixels in ahead(read, batches, threaded=True):
        if isinstance(pixels, DecodingError):
            failures += pixels.failures
        elif not failures:
            x = torch.from_numpy(pixels)
            raw.append(torch.stack([autoencoder.encode(v, batch) for v in (x, x.flip(3))[:views]], dim=1).numpy())
            progress(len(x))
    if failures:
        raise DecodingError(failures)
    return np.concatenate(raw)


def describe(store: LatentStore, source: ImageSource, autoencoder: Autoencoder) -> dict[str, Any]:
    """What the record says of a part: numbers and shapes, and statistics of some images."""
    chosen = np.arange(0, len(store), -(-len(store) // STATISTICS_IMAGES))
    raw = torch.from_numpy(store.rows(chosen)).flatten(0, 1)
    unit = autoencoder.sample(raw, torch.Generator().manual_seed(0))
    if unit.is_floating_point():
        statistics = {"unit_mean": float(unit.mean()), "unit_std": float(unit.std())}
    else:  # codes have no mean
        statistics = {"codes_used": len(unit.unique())}
    facts = {"images": len(store), "views": store.views, "shape": list(store.shape), **statistics}
    facts["statistics_images"] = len(chosen)
    if autoencoder.kind == "kmeans":  # what codes lose, in grey levels of 0 to 255
        decoded = autoencoder.decode(autoencoder.sample(torch.from_numpy(store.rows(chosen, view=0))))
        difference = decoded.numpy().astype(np.float64) - source.pixels(chosen)
        facts["reconstruction_rmse"] = float(np.sqrt(np.square(difference).mean()))
    return facts
