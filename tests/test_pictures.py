"""Grids of images."""

import numpy as np
import pytest

from emigm.pictures import SIDE, grid_of


def numbered(n, c=1, side=3):
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, c, side, side))


def values(grid, side=3):
    return grid[:: side + 1, :: side + 1].tolist()


def test_a_row_holds_one_class():
    assert values(grid_of(numbered(9), classes=3, columns=2)) == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("n", "classes", "expected"),
    [(8, 64, [[0, 1, 2], [3, 4, 5]]), (2, 64, [[0, 1]]), (2, 3, [[0, 1]]), (1, 1000, [[0]])],
)
def test_with_many_classes_or_few_images_they_stand_in_order(n, classes, expected):
    assert values(grid_of(numbered(n), classes, columns=3)) == expected


def test_a_grid_of_large_photos_stays_small():
    grid = grid_of(numbered(40, c=3, side=256), classes=1000, columns=12)
    assert grid.shape[2] == 3 and max(grid.shape) <= SIDE


def test_images_are_set_apart_by_grey():
    grid = grid_of(numbered(4), classes=2, columns=2)
    assert (grid[3::4] == 96).all() and (grid[:, 3::4] == 96).all()
