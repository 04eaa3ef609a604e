"""Grids of images as PNG files, and how an image comes about token by token: grids of its steps, and an animation."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from emigm.io import write_atomically

GREY, WHITE, MASKED = 96, 255, 160  # between images, between enlarged ones, and of a token not revealed yet
GRID_COLUMNS = 12
SHOWN = 120  # images that a grid is chosen from, at most
SIDE = 1300  # pixels of a grid's sides, at most: grids are tracked by git
TILE, GAP = 84, 4  # pixels: least side that a small image is enlarged to, and what lies between two
MOST = 1_000_000  # bytes of an animation, at most
FINISHED_MS = 2500  # how long an animation rests on the finished images


def grid_of(pixels: np.ndarray, classes: int, columns: int) -> np.ndarray:
    """Images of classes 0, 1, ... in turn (n, c, h, w) as one, uint8 (H, W) or (H, W, 3), set apart by a grey pixel.

    With ten classes at most, a row holds the first images of one class; with more, the images stand in order, ten
    rows at most. There are fewer rows and `columns` where there are too few images, or where they are large.
    """
    most_rows, most_columns = (max(1, SIDE // (side + 1)) for side in pixels.shape[2:])
    if classes <= 10 and len(pixels) >= classes:
        rows, columns = min(classes, most_rows), min(columns, most_columns, len(pixels) // classes)
        chosen = [[pixels[column * classes + row] for column in range(columns)] for row in range(rows)]
    else:
        columns = min(columns, most_columns, len(pixels))
        rows = min(10, most_rows, len(pixels) // columns)
        chosen = [pixels[row * columns : (row + 1) * columns] for row in range(rows)]
    return tiled(np.array(chosen), 1, GREY)


def tiled(images: np.ndarray, gap: int, colour: int) -> np.ndarray:
    """Rows of images, uint8 (rows, columns, c, h, w), as one, uint8 (H, W) or (H, W, 3); `gap` pixels of a grey level
    at the right and below set each apart."""
    apart = np.pad(images, [(0, 0), (0, 0), (0, 0), (0, gap), (0, gap)], constant_values=colour)
    joined = apart.transpose(2, 0, 3, 1, 4)  # c, row, h, column, w
    c, rows, h, columns, w = joined.shape
    image = joined.reshape(c, rows * h, columns * w)
    return image[0] if c == 1 else image.transpose(1, 2, 0)


def save_png(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 (H, W) or (H, W, 3)."""
    write_atomically(path, lambda p: Image.fromarray(image).save(p, format="PNG"))


def to_look_at(pixels: np.ndarray) -> np.ndarray:
    """Images (..., c, h, w), small ones enlarged, and large ones reduced to means over squares, by an integer."""
    *front, h, w = pixels.shape
    if (times := math.ceil(TILE / h)) > 1:
        return pixels.repeat(times, axis=-2).repeat(times, axis=-1)
    times = next(n for n in range(max(1, h // 128), 0, -1) if h % n == 0)
    squares = pixels.reshape(*front, h // times, times, w // times, times)
    return np.round(squares.mean(axis=(-3, -1), dtype=np.float64)).astype(np.uint8)


def after_step(pixels: np.ndarray, steps: np.ndarray, step: int) -> np.ndarray:
    """Finished images, uint8 (n, c, h, w), as they stood after a step (0: nothing revealed yet): what later `steps`
    revealed, int (n, L) of L tokens in rows and columns, is grey.

    An autoencoder's decoder sees the whole image, so that under one a token's part is shown as it came out at last.
    """
    side = math.isqrt(steps.shape[1])
    later = (steps > step).reshape(-1, 1, side, side)
    later = later.repeat(pixels.shape[2] // side, axis=2).repeat(pixels.shape[3] // side, axis=3)
    return np.where(later, np.uint8(MASKED), pixels)


def rows_of_images(*rows: np.ndarray) -> np.ndarray:
    """Rows of images, each uint8 (columns, c, h, w), `to_look_at` and as one picture, uint8 (H, W) or (H, W, 3)."""
    return tiled(to_look_at(np.stack(rows)), GAP, WHITE)[:-GAP, :-GAP]


def columns_of(steps: int, side: int) -> list[int]:
    """Which of the steps 1 to N a row of images of this side (pixels) has room for: all, or evenly spaced, N last."""
    room = max(2, 16 * (TILE + GAP) // (side + GAP))
    return sorted({round(step) for step in np.linspace(1, steps, min(steps, room))})


def save_animation(path: Path, pixels: np.ndarray, steps: np.ndarray, last: int, columns: int) -> int:
    """Write images coming about as an animated PNG that repeats for ever. It begins with the finished images, which
    are also what a viewer shows that cannot animate it.

    Args:
        path: of the file.
        pixels: finished images, uint8 (n, c, h, w), in rows of so many `columns`; of too many the first rows are shown.
        steps: as `after_step` takes them, of `last` in all.

    Returns:
        How many images are shown; ValueError where one row alone is too large.
    """
    rows = len(pixels) // columns
    while rows:
        data = animation(pixels[: rows * columns], steps[: rows * columns], last, columns)
        if len(data) < MOST:
            write_atomically(path, lambda p, data=data: p.write_bytes(data))
            return rows * columns
        rows //= 2
    raise ValueError(f"an animation of {columns} images of {pixels.shape[2:]} pixels takes more than {MOST} bytes")


def animation(pixels: np.ndarray, steps: np.ndarray, last: int, columns: int) -> bytes:
    """The file of `save_animation`: the finished images, all grey, and a frame for every step but the last, which
    holds what its step reveals alone and lies over those before it."""

    def frame(images: np.ndarray) -> np.ndarray:
        return rows_of_images(*images.reshape(-1, columns, *images.shape[1:]))

    stages = [frame(after_step(pixels, steps, step)) for step in (last, *range(last))]
    opaque = [np.full(stages[0].shape[:2], 255, np.uint8)] * 2
    for before, now in itertools.pairwise(stages[1:]):
        changed = (before != now).reshape(*now.shape[:2], -1).any(-1)
        opaque.append(np.where(changed, 255, 0).astype(np.uint8))
    first, *frames = (_with_alpha(stage, alpha) for stage, alpha in zip(stages, opaque, strict=True))
    buffer, step_ms = io.BytesIO(), max(40, min(250, 4000 // last))
    durations = [FINISHED_MS, 2 * step_ms, *[step_ms] * (last - 1)]
    over = {"blend": PngImagePlugin.Blend.OP_OVER, "disposal": PngImagePlugin.Disposal.OP_NONE}
    first.save(buffer, format="PNG", save_all=True, append_images=frames, duration=durations, loop=0, **over)
    return buffer.getvalue()


def _with_alpha(image: np.ndarray, alpha: np.ndarray) -> Image.Image:
    """Transparent pixels are black: they compress to nothing."""
    colours = image.reshape(*alpha.shape, -1)
    return Image.fromarray(np.concatenate([np.where(alpha[..., None], colours, 0), alpha[..., None]], -1))
