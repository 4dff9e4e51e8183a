"""The outline of a mask: as closed polygons along the edges of its pixels, and as the pixels of its border."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MOST_CORNERS = 50_000
"""Corners of all polygons of a frame together. A smoothed map has hundreds; only a made-up one has more."""
Point: TypeAlias = "tuple[int, int]"


def border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of `mask` [height, width] with a neighbour outside of it, beyond the frame's edge too."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    found: NDArray[np.bool_] = mask & ~inside
    return found


def closed_polygons(mask: NDArray[np.bool_]) -> list[list[Point]] | None:
    """Closed polygons (x, y) around the true pixels of `mask` [height, width]; None for more than MOST_CORNERS corners.

    Corners are corners of pixels, from 0 to width and height. Outer borders run clockwise on the screen and holes the
    other way, so an even-odd or a non-zero fill gives the mask again. The first corner is not repeated.
    """
    along = _straight_edges(mask)
    if 2 * len(along) > MOST_CORNERS:  # as many edges run along columns
        return None
    edges = [((x, y), (to, y)) for x, to, y in along.tolist()]
    # In the mirror the mask would be on the left, so the way is turned.
    edges += [((x, to), (x, y)) for y, to, x in _straight_edges(mask.T).tolist()]
    return _joined(edges)


def _straight_edges(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Edges along rows, as long as they are straight: [n, 3] of x, the x that it leads to, and y.

    The mask is on the right of the way. As y grows downwards, its upper border leads to higher x.
    """
    steps = np.diff(np.pad(mask, 1).astype(np.int8), axis=0)[:, 1:-1]
    found = []
    for sign in (1, -1):  # 1: the mask begins below this line; -1: it ends above
        turns = np.diff(np.pad(steps == sign, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        y, start = np.nonzero(turns == 1)
        stop = np.nonzero(turns == -1)[1]
        found.append(np.stack([start, stop, y] if sign == 1 else [stop, start, y], axis=1))
    return np.concatenate(found)


def _joined(edges: list[tuple[Point, Point]]) -> list[list[Point]]:
    """Edges that follow each other, as polygons."""
    leaving: dict[Point, list[int]] = {}
    for number, (start, _) in enumerate(edges):
        leaving.setdefault(start, []).append(number)
    used = [False] * len(edges)
    polygons = []
    for first in range(len(edges)):
        corners: list[Point] = []
        number = first
        while not used[number]:
            used[number] = True
            start, end = edges[number]
            corners.append(start)
            ways = leaving[end]
            number = ways[0] if len(ways) == 1 else next(way for way in ways if _turns_right(edges[number], edges[way]))
        if corners:
            polygons.append(corners)
    return polygons


def _turns_right(edge: tuple[Point, Point], after: tuple[Point, Point]) -> bool:
    """Where two pixels of the mask touch by a corner alone, the way stays with its own pixel."""
    (x, y), (middle_x, middle_y) = edge
    _, (to_x, to_y) = after
    return (middle_x - x) * (to_y - middle_y) - (middle_y - y) * (to_x - middle_x) > 0
