"""SEM metadata of a frame, and what they mean for its answer: the size of a pixel, and rows that are no image."""

from __future__ import annotations

import os

import numpy as np

from ..frames import FrameSource, decode_frame, describe
from ..pixels import Decoded
from ..recipe import FrameOptions
from .sem_values import Pair as Pair
from .sem_values import SemMetadata as SemMetadata
from .sem_values import same_size


def read_sem_metadata(source: FrameSource) -> SemMetadata:
    """What the tool wrote into a frame's file and, for a path, into the files beside it.

    source: as for `frames.read_frame`; `file.tif#3` is page 3 of a stack. Files beside it are those of Hitachi and JEOL
        (.txt) and of Tescan (.hdr). An array or a Pillow image has no metadata.
    Whatever cannot be read, or is contradicted, is None and has a warning. Raises FrameError only for what is no frame.
    """
    return decode_frame(source, FrameOptions(), describe(source), isinstance(source, str | os.PathLike)).sem


def about(frame: Decoded, options: FrameOptions) -> tuple[Pair | None, tuple[str, ...]]:
    """Sides (x, y) of a frame's pixels in nm, None where unknown; and warnings of metadata and text bars."""
    sem = frame.sem
    size, warnings = sem.pixel_size_nm, [*sem.warnings]
    stated = options.pixel_size_nm
    if size is None:
        size = stated
    elif stated is not None and not same_size(size, stated):
        warnings.append(
            f"a pixel is {size[0]:g} x {size[1]:g} nm by {sem.source['pixel_size_nm']}, which counts, and "
            f"{stated[0]:g} x {stated[1]:g} nm were stated"
        )
    if bar := _bar_warning(frame, options):
        warnings.append(bar)
    return size, tuple(warnings)


def _bar_warning(frame: Decoded, options: FrameOptions) -> str:
    """What is wrong about the rows that are ignored; "" if nothing is known to be."""
    bars, told = options.bars, frame.sem.bar_rows
    if bars is not None and (bars.top, bars.bottom) == (options.ignore_top, options.ignore_bottom):
        return bars.disagreement(np.asarray(frame.pixels), told)
    if told is not None and (told[0] > options.ignore_top or told[1] > options.ignore_bottom):
        return (
            f"{frame.sem.source['bar_rows']} says that the text bars have {told[0]} rows at the top and {told[1]} at "
            f"the bottom, and {options.ignore_top} and {options.ignore_bottom} are ignored: teach with --ignore auto"
        )
    return ""
