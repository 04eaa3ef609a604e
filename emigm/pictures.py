"""Grids of images as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from emigm.records import write_atomically

GREY = 96


def grid_of(pixels: np.ndarray, classes: int, columns: int) -> np.ndarray:
    """Tile images of classes 0, 1, ... in turn (n, c, h, w) into rows of one class, uint8 (H, W) or (H, W, 3).

    Rows hold the first `columns` images of each of the first ten classes, as many as there are. One pixel of
    grey at the right and below sets each image apart.
    """
    rows = min(classes, 10)
    columns = min(columns, len(pixels) // classes)
    chosen = [[pixels[column * classes + row] for column in range(columns)] for row in range(rows)]
    apart = np.pad(np.array(chosen), [(0, 0), (0, 0), (0, 0), (0, 1), (0, 1)], constant_values=GREY)
    tiled = apart.transpose(2, 0, 3, 1, 4)  # c, row, h, column, w
    c, _, h, _, w = tiled.shape
    image = tiled.reshape(c, rows * h, columns * w)
    return image[0] if c == 1 else image.transpose(1, 2, 0)


def save_grid(path: Path, pixels: np.ndarray, classes: int, columns: int) -> None:
    """Write `grid_of` the images as PNG, at their own size."""
    image = Image.fromarray(grid_of(pixels, classes, columns))
    write_atomically(path, image.save)
