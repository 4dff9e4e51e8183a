"""Outlines of masks: as polygons whose fill is the mask again, and as the pixels of the border."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.review.outline import MOST_CORNERS, border, closed_polygons


def filled(polygons: list[list[tuple[int, int]]], shape: tuple[int, int]) -> np.ndarray:
    """The even-odd fill: each edge along a column turns all pixels on its right."""
    inside = np.zeros(shape, bool)
    for corners in polygons:
        for (x, y), (to_x, to_y) in zip(corners, [*corners[1:], corners[0]], strict=True):
            assert (x == to_x) != (y == to_y)
            if x == to_x:
                inside[min(y, to_y) : max(y, to_y), x:] ^= True
    return inside


def area(corners: list[tuple[int, int]]) -> float:
    """Signed: positive for clockwise on the screen."""
    pairs = zip(corners, [*corners[1:], corners[0]], strict=True)
    return sum(x * to_y - to_x * y for (x, y), (to_x, to_y) in pairs) / 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_fill_of_the_polygons_is_the_mask(share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 24), rng.integers(1, 24))) < share
    polygons = closed_polygons(mask)
    assert polygons is not None
    np.testing.assert_array_equal(filled(polygons, mask.shape), mask)
    assert sum(map(area, polygons)) == mask.sum()


def test_a_ring_has_an_outer_border_and_a_hole_that_runs_the_other_way() -> None:
    mask = np.ones((5, 6), bool)
    mask[2, 2:4] = False
    outer, hole = closed_polygons(mask) or []
    assert sorted(outer) == [(0, 0), (0, 5), (6, 0), (6, 5)]
    assert (area(outer), area(hole)) == (30, -2)


def test_pixels_that_touch_by_a_corner_have_a_polygon_each() -> None:
    for mask in (np.eye(2, dtype=bool), np.eye(2, dtype=bool)[::-1]):
        assert [len(corners) for corners in closed_polygons(mask) or []] == [4, 4]


def test_straight_edges_have_no_corner_between_their_ends() -> None:
    mask = np.zeros((40, 40), bool)
    mask[3:30, 4:35] = True
    (corners,) = closed_polygons(mask) or []
    assert sorted(corners) == [(4, 3), (4, 30), (35, 3), (35, 30)]


def test_more_corners_than_can_be_drawn_are_none() -> None:
    side = 2 * int(np.sqrt(MOST_CORNERS / 4)) + 4
    mask = np.zeros((side, side), bool)
    mask[::2, ::2] = True
    assert closed_polygons(mask) is None


def test_the_border_is_the_outermost_pixels() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:5, 1:5] = True
    inner = np.zeros((6, 6), bool)
    inner[2:4, 2:4] = True
    np.testing.assert_array_equal(border(mask), mask & ~inner)
    assert border(np.ones((3, 3), bool)).sum() == 8
