"""What the encoder reads of frames: 8-bit ranges, parity and golden frames are measured on these rows. No torch here.

Of a frame in tiles that is a few of them; the frame as a whole only where the recipe reads it, too.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from runtime.frames import cut_rows, prepare
from runtime.manifest import Encoder
from runtime.pixels import Pixels
from runtime.recipe import FrameOptions
from runtime.windows import cut, lay_out

from ..teaching.support_pixels import area_average

TILES = 2
"""Of every frame in tiles, at random by its pixels; the first is the one with most of the defect, if a mask tells."""


def rows_of(
    pixels: Pixels, encoder: Encoder, options: FrameOptions, name: str, mask: NDArray[np.generic] | None = None
) -> list[Pixels]:
    """Rows of a batch, uint8 [input height, input width] each: the frame, or TILES of its tiles, after which comes the
    whole frame if the options have it. mask: of the frame's size. Raises FrameError.
    """
    kept = cut_rows(pixels, options, name)
    layout = lay_out((kept.shape[0], kept.shape[1]), encoder, options, name)
    if layout is None:
        return [prepare(pixels, encoder, options, name)]
    tiles = cut(kept, layout, encoder)
    content = hashlib.sha256(np.ascontiguousarray(tiles.canvas).data).digest()
    order = np.random.default_rng(int.from_bytes(content, "big")).permutation(len(layout.corners)).tolist()
    if mask is not None:
        height = mask.shape[0]
        cover = area_average(mask[options.ignore_top : height - options.ignore_bottom], layout.canvas)
        held = [float(cover[tiles.place(corner)].sum(dtype=np.float64)) for corner in layout.corners]
        first = max(order, key=lambda number: held[number])
        order = [first, *(number for number in order if number != first)]
    chosen = order[:TILES] + ([len(layout.corners)] if layout.whole else [])
    return [tiles.pixels(number).copy() for number in chosen]  # views would keep the canvas alive
