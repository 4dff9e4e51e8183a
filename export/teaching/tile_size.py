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

NATIVE, AUTO = "native", "auto"
OVERLAP_SHARE = 8
"""Neighbouring tiles share an eighth of a tile by default: on frames as the encoder reads them, 30 pixels."""
PATCHES_PER_DEFECT = 2.0
"""So many patches along a small defect are enough to see it; with fewer, `auto` takes tiles."""
SMALL = 10
"""Percentile of the defects' sizes that counts as a small one."""
NEARLY_WHOLE = 0.75
"""A tile of this part of the frame's shorter side or more gains nothing over the whole frame."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """What was asked for. tile: pixels, or "native" (as many as the encoder reads), or "auto" (by the masks).

    overlap: pixels; None for an eighth of the tile. whole: read the whole frame beside its tiles.
    """

    tile: int | str
    overlap: int | None = None
    whole: bool = False


def with_tiles(
    options: FrameOptions, tiling: Tiling, supports: Sequence[Sample], encoder: Encoder
) -> tuple[FrameOptions, str]:
    """The options with the tiles, and why they are so.

    Raises ValueError for sizes out of range or an overlap that is no smaller than the tile; with "auto", DatasetError
    if no defect has a mask.
    """
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
    """The tile in pixels, 0 for none, and why."""
    sizes, sides = [], []
    for sample in supports:
        if sample.label == GOOD or sample.mask is None:
            continue
        frame = cut_rows(sample.read(options), options, str(sample.path))
        mask = sample.read_mask((frame.shape[0] + options.ignore_top + options.ignore_bottom, frame.shape[1]))
        if mask is not None:
            sizes.append(_size(cut_rows(mask, options, str(sample.mask))))
            sides.append(min(frame.shape))
    if not sizes:
        raise DatasetError(
            supports[0].path.parent, "no defect among the supports has a mask, so --tile auto has nothing to go by"
        )
    small, side = float(np.percentile(sizes, SMALL)), float(np.median(sides))
    patches = small * encoder.grid[0] / side
    seen = f"a small defect is {small:.0f} of {side:.0f} pixels, {patches:.1f} patches of the whole frame"
    if patches >= PATCHES_PER_DEFECT:
        return 0, f"no tiles: {seen}, and {PATCHES_PER_DEFECT:g} are enough"
    tile = max(encoder.image_size[0], round(small * encoder.grid[0] / PATCHES_PER_DEFECT))
    if tile >= NEARLY_WHOLE * side:
        return 0, f"no tiles: {seen}, and a tile of {tile} would be nearly the whole frame"
    return tile, seen


def _size(mask: NDArray[np.uint8]) -> int:
    """The longer side of the largest connected part, in pixels."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return 0
    largest = int(np.bincount(parts.ravel())[1:].argmax())
    return max(int(part.stop - part.start) for part in ndimage.find_objects(parts)[largest])
