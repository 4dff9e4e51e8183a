"""Support frames as the graph reads them: each as a whole, or some of its tiles (`runtime.windows`).

K counts frames, with tiles or without. Of a defect frame the tiles that hold the defect teach: with the frame's label,
a tile without it would be wrong. Of a good frame some random tiles teach; `other_tiles` gives the rest, of which
`export.teach` takes those that a first recipe finds most suspicious.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.dataset import GOOD, Sample
from calibration.errors import DatasetError
from runtime.frames import cut_rows, prepare
from runtime.manifest import Encoder
from runtime.recipe import FrameOptions
from runtime.windows import Size, Tiles, cut, lay_out

DEFECT_TILES = 2
"""Of every defect frame: the serving tile that holds most of the defect, and shifted ones."""
GOOD_TILES = 4
"""Of every good frame, at random."""
MOST_OF_DEFECT = 0.8
"""A shifted tile holds at least this part of what the serving tile holds."""
_SHIFTS = 50
"""Random shifts that are tried for that."""


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """A support frame, or one of its tiles.

    frame: uint8 [input height, input width]. cover: the defect's fraction of every pixel, float32 of the same shape;
    None if the truth is unknown. label, group: of the frame. number: of the frame among the supports.
    corner: the tile's first patch (row, column) on the canvas; None for a whole frame.
    """

    frame: NDArray[np.uint8]
    cover: NDArray[np.float32] | None
    label: str
    group: str
    number: int
    corner: Size | None = None


def read_supports(samples: Sequence[Sample], encoder: Encoder, options: FrameOptions, seed: int) -> list[Support]:
    """All that teaches, frame by frame. Which tiles teach depends on `seed` and the frame's pixels only.

    Raises FrameError; DatasetError, also for a defect frame without a mask where a recipe reads tiles.
    """
    found: list[Support] = []
    for number, sample in enumerate(samples):
        whole, tiled = _read(sample, number, encoder, options)
        found += [whole] if tiled is None else tiled.taught(seed)
        if tiled is not None and options.whole:
            found.append(whole)
    return found


def other_tiles(sample: Sample, number: int, encoder: Encoder, options: FrameOptions, seed: int) -> list[Support]:
    """The serving tiles of a good frame that `read_supports` does not give. Raises as it."""
    _, tiled = _read(sample, number, encoder, options)
    return [] if tiled is None else tiled.others(seed)


def area_average(mask: NDArray[np.generic], size: Size) -> NDArray[np.float32]:
    """The covered fraction of each cell of a [height, width] grid, float32 in [0, 1].

    A pixel counts in the cell that holds its centre, so none is lost if the sizes do not divide.
    """
    image = Image.fromarray(np.asarray(mask, dtype=np.float32))
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BOX), dtype=np.float32)


def _read(sample: Sample, number: int, encoder: Encoder, options: FrameOptions) -> tuple[Support, _TiledFrame | None]:
    """A frame as a whole, and in its tiles unless one covers it."""
    pixels = sample.read(options)
    mask = sample.read_mask((pixels.shape[0], pixels.shape[1]), (options.ignore_top, options.ignore_bottom))
    mask = None if mask is None else cut_rows(mask, options, str(sample.mask))
    kept = cut_rows(pixels, options, str(sample.path))
    cover = None if mask is None else area_average(mask, encoder.input_size)
    layout = lay_out((kept.shape[0], kept.shape[1]), encoder, options, str(sample.path))
    frame = prepare(pixels, encoder, options, str(sample.path))
    whole = Support(frame, cover, sample.label, sample.group, number)
    if layout is None:
        return whole, None
    if mask is None:
        raise DatasetError(
            sample.path,
            "has no mask that shows a defect in the rows that count, and a recipe that reads frames in tiles is taught "
            "by the tiles that hold the defect: draw a mask, or read frames as a whole with --tile none",
        )
    return whole, _TiledFrame(whole, cut(kept, layout, encoder), area_average(mask, layout.canvas))


@dataclass(frozen=True, slots=True, eq=False)
class _TiledFrame:
    """A support frame in tiles. cover: the defect's fraction of every pixel of the canvas, float32."""

    whole: Support
    tiles: Tiles
    cover: NDArray[np.float32]

    def taught(self, seed: int) -> list[Support]:
        """The tiles that teach."""
        corners = self._good_corners(seed) if self.whole.label == GOOD else self._defect_corners(seed)
        return [self._tile(corner) for corner in corners]

    def others(self, seed: int) -> list[Support]:
        """The serving tiles of a good frame that do not."""
        taken = self._good_corners(seed)
        return [self._tile(corner) for corner in self.tiles.layout.corners if corner not in taken]

    def _tile(self, corner: Size) -> Support:
        # Copies: views would keep the whole frame alive.
        frame, cover = self.tiles.at(corner).copy(), self.cover[self.tiles.place(corner)].copy()
        return replace(self.whole, frame=frame, cover=cover, corner=corner)

    def _good_corners(self, seed: int) -> list[Size]:
        corners = self.tiles.layout.corners
        return [corners[index] for index in self._random(seed).permutation(len(corners))[:GOOD_TILES]]

    def _defect_corners(self, seed: int) -> list[Size]:
        """The serving tile with most of the defect, and random ones around it that hold nearly as much."""
        layout, rng = self.tiles.layout, self._random(seed)
        held = {corner: self._held(corner) for corner in layout.corners}
        first = max(held, key=lambda corner: held[corner])
        chosen = [first]
        for _ in range(_SHIFTS):
            row, column = (
                int(rng.integers(max(0, start - window), min(cells - window, start + window) + 1))
                for start, window, cells in zip(first, layout.window, layout.cells, strict=True)
            )
            if len(chosen) == DEFECT_TILES:
                break
            if (row, column) not in chosen and self._held((row, column)) >= MOST_OF_DEFECT * held[first]:
                chosen.append((row, column))
        return chosen

    def _held(self, corner: Size) -> float:
        """How much of the defect a tile holds, in pixels of the canvas."""
        return float(self.cover[self.tiles.place(corner)].sum(dtype=np.float64))

    def _random(self, seed: int) -> np.random.Generator:
        content = hashlib.sha256(np.ascontiguousarray(self.tiles.canvas).data).digest()
        return np.random.default_rng([seed, int.from_bytes(content, "big")])
