"""Masks: which pixels a truth marks as defect, by what the file holds and never by how bright it looks.

A mask has two kinds of pixels. Black, 0 or transparent is not defect; the one other value or colour is, whichever it
is: 255, 1, 65535, True, red. So void borders, class and instance numbers, and edges that JPEG or a painting program
smoothed are refused with the values that were found, for a threshold would lose one of them. Refused as well:

- two colours, or two entries of a palette, of which not exactly one is black;
- black on transparent, part transparency, and a defect that is not all of one colour: it may be the background;
- one value throughout that is neither black nor white (the type's largest value);
- TIFF that stores white as 0, as tifffile does with boolean arrays: its numbers say one thing and its looks another;
- 90 % defect and more, which is what a mask drawn black on white looks like. White throughout is taken: it says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime import frames, png
from runtime.errors import FrameError

from .errors import DatasetError

MOST_SHARE = 0.9
_SHOWN = 6
_BLOCK = 1 << 20
"""Pixels that are looked at together: what a mask of 100 megapixels needs beside its own pixels."""
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, section 8
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True)
class StoredMask:
    """A mask as its file holds it.

    pixels: numbers [H, W], or uint8 [H, W, 2 ... 4] of grey and opacity, colour, or colour and opacity.
    palette: red, green, blue and opacity of each number, where the numbers are entries of a palette.
    """

    path: Path
    pixels: NDArray[Any]
    palette: tuple[tuple[int, ...], ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """[height, width]."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of the values of a mask. code: what `_codes` makes of its pixels."""

    code: int | float
    text: str
    black: bool
    white: bool
    opacity: int = 255


def read_mask(path: Path) -> StoredMask:
    """The pixels of a mask file, not yet judged. Raises DatasetError if it is unreadable or of a kind not meant."""
    name = str(path)
    try:
        with frames._open(name, name) as image:
            _check_meant(image, path)
            with frames._decoding(name):
                image = image if "transparency" in image.info else png.decoded(image)
                image.load()
            return _stored(image, path)
    except FrameError as exc:
        raise DatasetError(path, f"the mask cannot be read: {exc.reason}") from exc


def _check_meant(image: Image.Image, path: Path) -> None:
    """Refuse, before the pixels are decoded, what would be read as another mask than was meant."""
    pages = int(getattr(image, "n_frames", 1))
    raw_modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
    if pages > 1:
        raise DatasetError(path, f"the mask holds {pages} pages; save the one that is meant as a file of its own")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise DatasetError(
            path,
            "the mask stores white as 0, so its numbers and its looks mark the opposite; save it with black as 0 "
            "(tifffile: photometric='minisblack')",
        )
    if image.mode not in _MODES:
        raise DatasetError(path, f"the mask holds {image.mode} colours; save it as grey, 0 and 255")
    if not image.mode.startswith("I") and any(";16" in mode for mode in raw_modes):
        raise DatasetError(path, "the mask holds 16-bit colours; save it as grey, 0 and 255")
    if image.format == "TIFF" and any(mode.endswith("X") for mode in raw_modes):
        raise DatasetError(path, "the mask holds a channel of no stated meaning; save it as grey, 0 and 255")


def _stored(image: Image.Image, path: Path) -> StoredMask:
    if image.mode == "P":
        image.apply_transparency()
        table = image.getpalette("RGBA") or []
        return StoredMask(path, _array(image), tuple(tuple(table[i : i + 4]) for i in range(0, len(table), 4)))
    if image.mode == "PA" or "transparency" in image.info:  # the latter: one grey or colour is said to be transparent
        if image.mode.startswith("I"):
            raise DatasetError(
                path, "the mask says that one of its 16-bit values is transparent; save it as 8-bit grey"
            )
        image = image.convert("RGBA")
    return StoredMask(path, _array(image))


def _array(image: Image.Image) -> NDArray[Any]:
    """`np.asarray` without its two copies, which would be 0.6 GB of the largest colour mask."""
    first = np.asarray(image.crop((0, 0, image.width, 1)))
    pixels = np.empty((image.height, *first.shape[1:]), first.dtype)
    rows = max(1, _BLOCK // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def defect_pixels(mask: StoredMask) -> NDArray[np.uint8]:
    """0/1 uint8 [H, W]: 1 is defect. Raises DatasetError, with the values found, for what is no mask of two kinds."""
    kinds = _kinds(mask)
    if len(kinds) == 1:
        (only,) = kinds
        if not (only.black or only.white) or only.opacity < 255:
            raise DatasetError(
                mask.path,
                f"the mask is {only.text} throughout; black (0) is not defect, and a defect that fills the frame is "
                "white (255)",
            )
        return np.full(mask.shape, int(only.white), np.uint8)
    defect = _defect(kinds, mask.path)
    marked = np.empty(mask.shape, np.uint8)
    for rows, codes in _codes(mask.pixels):
        marked[rows] = codes == defect.code
    share = float(np.count_nonzero(marked)) / marked.size
    if share >= MOST_SHARE:
        raise DatasetError(
            mask.path,
            f"the mask is {math.floor(100 * share)} % defect ({defect.text}), as if it were black on white: invert it, "
            "or make it white throughout if the whole frame is meant",
        )
    return marked


def _defect(kinds: Sequence[_Kind], path: Path) -> _Kind:
    """Which of two kinds is defect."""
    clear = [kind for kind in kinds if kind.opacity == 0]
    opaque = [kind for kind in kinds if kind.opacity == 255]
    background = clear if clear else [kind for kind in opaque if kind.black]
    others = [kind for kind in kinds if kind not in background]
    if len(background) == len(others) == 1 and not others[0].black and (clear or len(opaque) == 2):
        return others[0]
    found = " and ".join(kind.text for kind in kinds)
    raise DatasetError(
        path,
        f"the mask holds {found}, which does not say where the defect is; save it as grey: 0 is not defect, 255 is",
    )


def _kinds(mask: StoredMask) -> list[_Kind]:
    """The one or two kinds of pixels that there are. Raises DatasetError if there are more."""
    codes: set[int | float] = set()
    for _, part in _codes(mask.pixels):
        rest = part.ravel()
        for known in codes:
            rest = rest[rest != known]
        codes.update(np.unique(rest).tolist())
        if len(codes) > 2:
            break
    kinds = [_kind(mask, code) for code in sorted(codes)[:_SHOWN]]
    if len(codes) > 2:
        found = ", ".join(kind.text for kind in kinds) + (", ..." if len(codes) > len(kinds) else "")
        raise DatasetError(
            mask.path,
            f"the mask holds at least {len(codes)} values ({found}); it may hold 0, which is not defect, and one "
            "other. Make void borders, class or instance numbers and smoothed edges one or the other",
        )
    return kinds


def _kind(mask: StoredMask, code: int | float) -> _Kind:
    if mask.pixels.ndim == 2 and mask.palette is None:
        limit = 1 if mask.pixels.dtype.kind in "bf" else np.iinfo(mask.pixels.dtype).max
        if not 0 <= code < math.inf:
            raise DatasetError(mask.path, f"the mask holds {code:.9g}; save it as grey: 0 is not defect, 255 is")
        return _Kind(code, f"{code:.9g}", black=code == 0, white=code == limit)
    if mask.palette is not None:
        if code >= len(mask.palette):
            raise DatasetError(mask.path, f"the mask holds the number {code}, which its palette lacks")
        *colour, opacity = mask.palette[int(code)]
        text = f"{code} {tuple(colour)}"
    else:
        channels = mask.pixels.shape[2]
        parts = list(int(code).to_bytes(channels, "big"))
        opacity = parts.pop() if channels in (2, 4) else 255
        colour = parts
        text = f"{tuple(colour)}" if len(colour) > 1 else f"{colour[0]}"
    if opacity < 255:
        text = f"{text} of opacity {opacity}" if opacity else "transparent"
    return _Kind(code, text, black=not any(colour), white=all(part == 255 for part in colour), opacity=opacity)


def _codes(pixels: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Rows by rows, one number a pixel. Of transparent pixels the colour below is nobody's, and 0."""
    rows = max(1, _BLOCK // pixels.shape[1])
    for start in range(0, len(pixels), rows):
        block = pixels[start : start + rows]
        if block.ndim == 3:
            code = block[..., 0].astype(np.uint32)
            for channel in range(1, block.shape[2]):
                code <<= 8
                code |= block[..., channel]
            if block.shape[2] in (2, 4):
                code[block[..., -1] == 0] = 0
            block = code
        yield slice(start, start + len(block)), block
