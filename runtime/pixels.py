"""Turn pixels as a file or an array stores them into 8-bit grey, for the readers of every format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import FrameError
from .fab.sem_values import NOTHING, SemMetadata

Pixels: TypeAlias = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535
"""JPEG's limit too. The memory of a resize grows with the side, not only with the number of pixels."""
MAX_BYTES = 400_000_000
"""For one frame as stored, unpacked. With the decoder's copies, reading stays below a gigabyte."""
BLOCK = 1 << 20
"""Pixels that are converted at once, so that a large frame never has a second whole copy."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_DARK_SHARE = 8
"""A frame of more than 8 bits gets a warning if its values span less than 1 / _DARK_SHARE of their range."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """The pixels of one frame before they are made 8-bit grey.

    values: an array [H, W] or [H, W, 3], or an 8-bit Pillow image.
    white: the value that is white, if the file defines it; None for 8 bits, floats, and 16 bits, whose white is
        `FrameOptions.white_level`.
    inverted: 0 is white, and `white` is black.
    orientation: the tag 274 of EXIF and TIFF; 1 is upright. It is never applied.
    wide_colour: 16-bit colour. Its white is always 65535: Pillow keeps only the upper eight bits of PNG files.
    sem: what the file says about the tool.
    """

    values: NDArray[Any] | Image.Image
    white: int | None = None
    inverted: bool = False
    orientation: int = 1
    wide_colour: bool = False
    sem: SemMetadata = NOTHING


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A frame in 8-bit grey, [height, width] or a Pillow image of mode L, with its warnings.

    sem: what the file, and the files beside it if they were asked for, say about the tool. It has its own warnings.
    """

    pixels: Pixels | Image.Image
    warnings: tuple[str, ...] = ()
    sem: SemMetadata = NOTHING


def check_pixels(width: int, height: int, name: str) -> None:
    """Refuse implausible sizes before memory is allocated. Raises FrameError."""
    if width * height > MAX_PIXELS:
        raise FrameError(name, f"is {width}x{height} pixels, more than {MAX_PIXELS / 1e6:g} megapixels")
    if max(width, height) > MAX_SIDE:
        raise FrameError(name, f"is {width}x{height} pixels, more than {MAX_SIDE} along one side")
    if width * height == 0:
        raise FrameError(name, "has no pixels")


def check_bytes(size: int, name: str) -> None:
    """Refuse a frame whose pixels need more memory than MAX_BYTES. Raises FrameError."""
    if size > MAX_BYTES:
        raise FrameError(
            name, f"holds {size / 1e6:.0f} MB of pixels, more than {MAX_BYTES / 1e6:g}; save it as grey of 8 or 16 bits"
        )


def decoded(stored: Stored, white_level: int, name: str) -> Decoded:
    """`stored` as grey, with a warning for each property that may not have been meant.

    Raises FrameError if the values have no meaning as grey.
    """
    values, warnings = stored.values, []
    if stored.orientation != 1:
        warnings.append(
            f"its orientation tag ({stored.orientation}) is not applied: pixels are judged and counted as stored"
        )
    if stored.wide_colour and white_level != 65535:
        raise FrameError(
            name, f"holds 16-bit colour, which cannot be scaled to white_level={white_level}; save it as grey"
        )
    if isinstance(values, Image.Image):
        image = values if values.mode == "L" else values.convert("L")
        if stored.wide_colour:
            grey = np.asarray(image)
            warnings += _unused(257 * int(grey.min()), 257 * int(grey.max()), 65535, "u")
        return Decoded(image, tuple(warnings), stored.sem)
    grey, unused = to_grey(values, stored.white, white_level, inverted=stored.inverted, name=name)
    warnings += unused
    return Decoded(grey, tuple(warnings), stored.sem)


def to_grey(
    values: NDArray[Any], white: int | None, white_level: int, *, inverted: bool = False, name: str
) -> tuple[Pixels, list[str]]:
    """Values [H, W] or [H, W, 3] as grey uint8 [H, W], always a copy; and at most one warning.

    white: the value that is white, if it is known; else 255 for 8 bits, 1 for floats, and `white_level`.
    Colour becomes luma (ITU-R 601, as Pillow's "L"). The warning reports that values of more than 8 bits use little of
    their range; 8-bit frames get none, since their white is certain. Raises FrameError.
    """
    kind, eight = values.dtype.kind, values.dtype.itemsize == 1
    white = 1 if kind == "f" else white or (255 if eight else white_level)
    warning: list[str] = []
    if values.dtype != np.uint8:
        low, high = _range(values, name)
        _check_range(low, high, values.dtype, white, name)
        if not eight:
            warning = _unused(float(low), float(high), white, kind)
    grey = np.empty(values.shape[:2], np.uint8)
    for rows in row_blocks(*values.shape[:2]):
        grey[rows] = _scaled(values[rows], white)
    return (np.subtract(255, grey, out=grey) if inverted else grey), warning


def row_blocks(height: int, width: int, most: int = BLOCK) -> Iterator[slice]:
    """All rows in blocks of about `most` pixels."""
    step = max(1, most // max(1, width))
    return (slice(start, min(height, start + step)) for start in range(0, height, step))


def _range(values: NDArray[Any], name: str) -> tuple[Any, Any]:
    """The least and the greatest value. Raises FrameError if a value is NaN or infinite."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise FrameError(name, "holds NaN or infinite values")
    return low, high


def _check_range(low: Any, high: Any, dtype: np.dtype[Any], white: int, name: str) -> None:
    if dtype.kind == "f":
        if low < 0 or high > 1:
            found = ", ".join(np.format_float_positional(value, trim="-") for value in (low, high))
            raise FrameError(name, f"float frames lie in [0, 1]; this one in [{found}]")
    elif dtype.itemsize > 2 and white <= 65535 and not 0 <= low <= high <= 65535:
        bits = 8 * dtype.itemsize
        raise FrameError(name, f"holds {bits}-bit values outside 0 ... 65535; save it with 8 or 16 bits")
    elif low < 0:
        raise FrameError(name, f"holds negative values, down to {low}; save it with unsigned ones")


def _scaled(values: NDArray[Any], white: int) -> Pixels:
    if values.dtype == np.uint8 and white == 255:
        return np.asarray(Image.fromarray(values).convert("L")) if values.ndim == 3 else values
    if values.ndim == 2 and values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.take(_table(white), values)
    scaled = values.astype(np.float32)
    scaled *= np.float32(255 / white)
    if scaled.ndim == 3:
        scaled = scaled @ _LUMA
    np.rint(scaled, out=scaled)
    grey: Pixels = np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)
    return grey


@lru_cache(maxsize=8)
def _table(white: int) -> Pixels:
    """What each 16-bit value becomes."""
    scaled = np.arange(65536, dtype=np.float32) * np.float32(255 / white)
    table: Pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return table


def _unused(low: float, high: float, white: int, kind: str) -> list[str]:
    if (high - low) * _DARK_SHARE >= white:
        return []
    advice = "" if kind == "f" else "; if the tool stores fewer bits, set white_level"
    return [f"its values lie in [{low:g}, {high:g}], under 1/{_DARK_SHARE} of the range up to {white} (white){advice}"]
