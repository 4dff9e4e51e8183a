"""Tiles: a large frame is read window by window, each as large as the encoder's input, and gets one answer.

The frame is brought to a canvas of whole patches, and windows of that canvas go to the encoder. All windows lie on the
patch grid. So their maps meet patch by patch, and `stitch` makes one map of them, of the canvas.

Where one window covers the frame, the canvas is the encoder's input, and all is as without tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .encoder import Encoder
from .errors import FrameError
from .maps import Map, upsampling_matrix
from .pixels import MAX_PIXELS, Pixels
from .recipe import FrameOptions
from .resize import resize

MAX_WINDOWS = 4096
"""Of one frame: 1.2 GB of features at most, and minutes on a CPU."""
MAX_CANVAS_SIDE = 1 << 20
MAX_CANVAS_CELLS = 1 << 16
"""Along one side. An archived answer may be as large, and no larger."""
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """The windows of a frame.

    cells: patches of the canvas, [rows, columns]. window: patches of a window. cell_px: pixels of a patch.
    corners: the first patch (row, column) of every window, row by row.
    whole: one more window follows, the whole frame at the encoder's size.
    """

    cells: Size
    window: Size
    cell_px: Size
    corners: tuple[Size, ...]
    whole: bool

    @property
    def canvas(self) -> Size:
        """[height, width] of the canvas in pixels."""
        return self.cells[0] * self.cell_px[0], self.cells[1] * self.cell_px[1]

    def __len__(self) -> int:
        return len(self.corners) + self.whole


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """A frame's canvas, uint8 of `layout.canvas`, and, if the layout has it, the whole frame, uint8 [height, width]."""

    layout: Layout
    canvas: Pixels
    whole: Pixels | None

    def pixels(self, number: int) -> Pixels:
        """What the encoder reads of window `number`: a view, uint8 [input height, input width]."""
        layout = self.layout
        if self.whole is not None and number == len(layout.corners):
            return self.whole
        return self.at(layout.corners[number])

    def at(self, corner: Size) -> Pixels:
        """The window with that first patch (row, column): a view."""
        return self.canvas[self.place(corner)]

    def place(self, corner: Size) -> tuple[slice, slice]:
        """Rows and columns of the canvas in that window."""
        rows, columns = (
            slice(first * px, (first + cells) * px)
            for first, cells, px in zip(corner, self.layout.window, self.layout.cell_px, strict=True)
        )
        return rows, columns


def lay_out(size: Size, encoder: Encoder, options: FrameOptions, name: str) -> Layout | None:
    """The windows of a frame of `size` [height, width], ignored rows not counted; None if one window covers it.

    A patch of the canvas shows `tile` / (rows of the encoder's grid) pixels of the frame along both axes. An axis that
    is shorter than a window is stretched to one. Raises FrameError where there would be more than MAX_WINDOWS, or where
    the canvas would be larger than a frame may be: small tiles are enlarged to the encoder's input.
    """
    if not options.tile:
        return None
    cell = options.tile / encoder.grid[0]
    cells = tuple(max(least, round(side / cell)) for side, least in zip(size, encoder.grid, strict=True))
    shared = -(-options.overlap * encoder.grid[0] // options.tile)  # whole patches, none too few
    starts = [_starts(n, g, min(shared, g - 1)) for n, g in zip(cells, encoder.grid, strict=True)]
    count = len(starts[0]) * len(starts[1])
    if count == 1:
        return None
    if count > MAX_WINDOWS:
        raise FrameError(
            name,
            f"is {size[0]}x{size[1]} (height x width, ignored rows cut), which takes {count:,} tiles of {options.tile} "
            f"pixels; {MAX_WINDOWS:,} are the most: teach with larger tiles, or cut the frame",
        )
    cell_px = encoder.input_size[0] // encoder.grid[0], encoder.input_size[1] // encoder.grid[1]
    height, width = (n * px for n, px in zip(cells, cell_px, strict=True))
    if height * width > MAX_PIXELS or max(height, width) > MAX_CANVAS_SIDE or max(cells) > MAX_CANVAS_CELLS:
        raise FrameError(
            name,
            f"is {size[0]}x{size[1]} (height x width, ignored rows cut), and tiles of {options.tile} pixels enlarge it "
            f"to {height}x{width}, or {cells[0]}x{cells[1]} patches; {MAX_PIXELS / 1e6:g} megapixels, and "
            f"{MAX_CANVAS_SIDE:,} pixels and {MAX_CANVAS_CELLS:,} patches along one side, are the most: teach with "
            "larger tiles, or cut the frame",
        )
    corners = tuple((row, column) for row in starts[0] for column in starts[1])
    return Layout((cells[0], cells[1]), encoder.grid, cell_px, corners, options.whole)


def _starts(cells: int, window: int, shared: int) -> list[int]:
    """First cells of as few windows as cover `cells`, each sharing at least `shared` with the next; evenly spread."""
    count = 1 + max(0, -(-(cells - window) // (window - shared)))
    return [round(number * (cells - window) / max(1, count - 1)) for number in range(count)]


def cut(kept: Pixels, layout: Layout, encoder: Encoder) -> Tiles:
    """The tiles of a frame [height, width] without its ignored rows. The result shares no memory with the frame."""
    canvas = kept.copy() if kept.shape == layout.canvas else resize(kept, layout.canvas)
    return Tiles(layout, canvas, resize(kept, encoder.input_size) if layout.whole else None)


def stitch(maps: Map, layout: Layout) -> Map:
    """One map [rows, columns] of the canvas from those of its windows, [n, rows, columns] in the layout's order.

    Where windows overlap it is their mean, each weighted by how far the patch is from the window's border. The whole
    frame's map raises it wherever that is higher.
    """
    total, weight = np.zeros(layout.cells), np.zeros(layout.cells)
    share = _weights(layout.window)
    rows, columns = layout.window
    for (row, column), values in zip(layout.corners, maps, strict=False):
        place = np.s_[row : row + rows, column : column + columns]
        total[place] += share * values
        weight[place] += share
    stitched = (total / weight).astype(np.float32)
    if layout.whole:
        vertical, horizontal = (upsampling_matrix(n, g, 0.0) for n, g in zip(layout.cells, layout.window, strict=True))
        stitched = np.maximum(stitched, vertical @ maps[-1] @ horizontal.T)
    return np.clip(stitched, 0.0, 1.0)


@lru_cache(maxsize=4)
def _weights(window: Size) -> NDArray[np.float64]:
    """Distance of every patch of a window from its nearest border along each axis, multiplied."""
    rows, columns = (np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in window)
    return np.outer(rows, columns).astype(np.float64)
