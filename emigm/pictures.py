"""Grids of images as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from emigm.files import write_atomically

GREY = 96
GRID_COLUMNS = 12
SHOWN = 120
"""Images that a grid is chosen from, at most."""
SIDE = 1300
"""Pixels of a grid's sides, at most: grids are tracked by git."""


def grid_of(pixels: np.ndarray, classes: int, columns: int) -> np.ndarray:
    """Tile images of classes 0, 1, ... in turn (n, c, h, w), uint8 (H, W) or (H, W, 3).

    With ten classes at most, a row holds the first images of one class; with more, the images stand in order, ten
    rows at most. There are at most `columns` columns, and fewer rows and columns where there are too few images, or
    where they are large. One pixel of grey at the right and below sets each image apart.
    """
    most_rows, most_columns = (max(1, SIDE // (side + 1)) for side in pixels.shape[2:])
    if classes <= 10 and len(pixels) >= classes:
        rows, columns = min(classes, most_rows), min(columns, most_columns, len(pixels) // classes)
        chosen = [[pixels[column * classes + row] for column in range(columns)] for row in range(rows)]
    else:
        columns = min(columns, most_columns, len(pixels))
        rows = min(10, most_rows, len(pixels) // columns)
        chosen = [pixels[row * columns : (row + 1) * columns] for row in range(rows)]
    apart = np.pad(np.array(chosen), [(0, 0), (0, 0), (0, 0), (0, 1), (0, 1)], constant_values=GREY)
    tiled = apart.transpose(2, 0, 3, 1, 4)  # c, row, h, column, w
    c, _, h, _, w = tiled.shape
    image = tiled.reshape(c, rows * h, columns * w)
    return image[0] if c == 1 else image.transpose(1, 2, 0)


def save_grid(path: Path, pixels: np.ndarray, classes: int, columns: int) -> None:
    """Write `grid_of` the images as PNG, at their own size."""
    image = Image.fromarray(grid_of(pixels, classes, columns))
    write_atomically(path, lambda p: image.save(p, format="PNG"))
