"""How large the tiles of a recipe are: as asked for, or by the sizes of the supports' defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from calibration.dataset import GOOD, Sample
from calibration.errors import DatasetError
from runtime.frames import cut_rows
from runtime.manifest import Encoder
from runtime.recipe import FrameOptions

NATIVE, AUTO, NONE = "native", "auto", "none"
OVERLAP_SHARE = 8
"""Neighbouring tiles share an eighth of a tile by default: on frames as the encoder reads them, 30 pixels."""
PATCHES_PER_DEFECT = 2.0
"""So many patches along a small defect are enough to see it; with fewer, `auto` takes tiles."""
SMALL = 10
"""Percentile of the defects' sizes that counts as a small one."""
LARGE_PART = 0.4
"""A tile that covers this part of the frame or more gains nothing over the whole frame (docs/tiles.md: magnetic tiles,
of which one covers 0.47)."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """What was asked for. tile: pixels, or "native" (as many as the encoder reads), "auto" (by the masks) or "none".

    overlap: pixels; None for an eighth of the tile. whole: read the whole frame beside its tiles.
    """

    tile: int | str
    overlap: int | None = None
    whole: bool = False


def with_tiles(
    options: FrameOptions, tiling: Tiling, supports: Sequence[Sample], encoder: Encoder
) -> tuple[FrameOptions, str]:
    """The options with the tiles instead of their own, and why they are so.

    Raises ValueError for sizes out of range or an overlap that is no smaller than the tile; with "auto", DatasetError
    if no defect has a mask.
    """
    options = replace(options, tile=0, overlap=0, whole=False)
    if tiling.tile == NONE:
        return options, "no tiles: each frame as a whole, as asked for"
    native = encoder.image_size[0]
    tile, why = (native, "as many pixels as the encoder reads") if tiling.tile == NATIVE else (tiling.tile, "as given")
    if tile == AUTO:
        tile, why = _by_defects(options, supports, encoder)
    if not tile:
        return options, why
    assert isinstance(tile, int)
    overlap = tile // OVERLAP_SHARE if tiling.overlap is None else tiling.overlap
    chosen = replace(options, tile=tile, overlap=overlap, whole=tiling.whole)
    return chosen, f"tiles of {tile} pixels that overlap by {overlap}: {why}"


def _by_defects(options: FrameOptions, supports: Sequence[Sample], encoder: Encoder) -> tuple[int, str]:
    """The tile in pixels, 0 for none, and why.

    A frame that is not square is squashed more along one axis. The defect's patches count along that one.
    """
    sizes, frames = [], []
    for sample in supports:
        if sample.label == GOOD or sample.mask is None:
            continue
        frame = cut_rows(sample.read(options), options, str(sample.path))
        cut = (options.ignore_top, options.ignore_bottom)
        mask = sample.read_mask((frame.shape[0] + sum(cut), frame.shape[1]), cut)
        if mask is not None:
            sizes.append(_size(cut_rows(mask, options, str(sample.mask))))
            frames.append(frame.shape)
    if not sizes:
        raise DatasetError(
            supports[0].path.parent.parent,
            "no defect among the supports has a mask that shows it in the rows that count, so --tile auto has nothing "
            "to go by",
        )
    small = float(np.percentile(sizes, SMALL))
    sides: NDArray[np.int64] = np.array(frames, np.int64)
    patch = float(np.median((sides / encoder.grid).max(axis=1)))
    spans = small / patch
    seen = (
        f"a small defect of {small:.0f} pixels spans {spans:.2f} patches of the whole frame, {patch:.0f} pixels each "
        "where it is squashed most"
    )
    if spans >= PATCHES_PER_DEFECT:
        return 0, f"no tiles: {seen}, and {PATCHES_PER_DEFECT:g} are enough"
    tile = max(encoder.image_size[0], round(small * encoder.grid[0] / PATCHES_PER_DEFECT))
    window = tile * np.array(encoder.grid) / encoder.grid[0]
    part = float(np.median((np.minimum(window, sides) / sides).prod(axis=1)))
    if part >= LARGE_PART:
        return 0, f"no tiles: {seen}, and a tile of {tile} would cover {part:.0%} of the frame"
    return tile, seen


def _size(mask: NDArray[np.uint8]) -> int:
    """The longer side of the largest connected part, in pixels."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return 0
    largest = int(np.bincount(parts.ravel())[1:].argmax())
    return max(int(part.stop - part.start) for part in ndimage.find_objects(parts)[largest])
