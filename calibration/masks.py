"""Masks: the pixels that a truth marks as defect, decided by the stored values and never by brightness.

A mask has two kinds of pixels. Black, 0 or transparent is not defect. The one other value or colour is defect, whether
255, 1, 65535, True or red. Void borders, class and instance numbers, and edges smoothed by JPEG or a paint program give
more values: they are refused with the values found, because a threshold would lose one of them. Also refused:

- two colours, or two entries of a palette, unless exactly one is black;
- black on transparent, partial transparency, and a defect of more than one colour: it may be the background;
- one value throughout that is neither black nor white (the type's largest value);
- TIFF that stores white as 0, as tifffile does for boolean arrays: its values contradict its appearance;
- 90 % defect or more, as in a mask drawn black on white. White throughout is accepted: no defect would be lost.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from runtime.errors import FrameError
from runtime.files import open_plain
from runtime.frames import decode_frame, page_count
from runtime.pixels import row_blocks
from runtime.recipe import FrameOptions
from runtime.tiff import REDUCED_OR_MASK, palette_colours

from .errors import DatasetError

MOST_SHARE = 0.9
_SHOWN = 6
_READERS: dict[bytes, Callable[[BinaryIO], ImageFile]] = {
    b"\x89P": PngImageFile,
    b"\xff\xd8": JpegImageFile,
    b"BM": BmpImageFile,
}
"""By the first two bytes. `Image.open` would apply the host program's limit on the size of an image."""
_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B"}
_UNASSOCIATED_ALPHA = 2


@dataclass(frozen=True, slots=True)
class StoredMask:
    """A mask as stored in its file. Rows and columns are the stored ones, as in frames.

    pixels: numbers [H, W], or uint8 [H, W, 2 ... 4] of grey and opacity, colour, or colour and opacity.
    white: the largest value of the type.
    palette: red, green, blue and opacity of each number, where the numbers are entries of a palette.
    """

    path: Path
    pixels: NDArray[Any]
    white: int = 255
    palette: tuple[tuple[int, ...], ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """[height, width]."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of the values of a mask. code: the number that `_codes` gives its pixels."""

    code: int | float
    text: str
    black: bool
    white: bool
    opacity: int = 255


def read_mask(path: Path) -> StoredMask:
    """The pixels of a mask file, not yet judged. Raises DatasetError if it is unreadable or of an unsupported kind."""
    name = str(path)
    try:
        if (pages := page_count(name)) > 1:
            raise DatasetError(path, f"the mask holds {pages} pages; save the right one as a file of its own")
        decode_frame(name, FrameOptions(), name)  # the checks of frames: complete, of bounded size, one picture
        with io.BufferedReader(open_plain(path)) as file:
            head = file.peek(2)[:2]
            return _of_tiff(file, path) if head in (b"II", b"MM") else _of_picture(_READERS[head](file), path)
    except FrameError as exc:
        raise DatasetError(path, f"the mask cannot be read: {exc.reason}") from exc
    except DatasetError:
        raise
    except Exception as exc:  # of a file that changes meanwhile, Pillow and tifffile raise almost anything
        raise DatasetError(path, f"the mask cannot be read: {exc}") from exc


def _of_picture(picture: ImageFile, path: Path) -> StoredMask:
    mode, wide = picture.mode, picture.mode.startswith("I")
    if mode not in _MODES:
        raise DatasetError(path, f"the mask holds {mode} colours; save it as grey, 0 and 255")
    if not wide and any(";16" in str(tile[3]) for tile in picture.tile):  # of these Pillow keeps 8 bits
        raise DatasetError(path, "the mask holds 16-bit colours; save it as grey, 0 and 255")
    if mode == "P":
        picture.apply_transparency()
        table = picture.getpalette("RGBA") or []
        entries = tuple(tuple(table[start : start + 4]) for start in range(0, len(table), 4))
        return StoredMask(path, _array(picture), palette=entries)
    if "transparency" in picture.info:  # one grey, or one colour, is declared transparent
        if wide:
            raise DatasetError(path, "the mask declares one of its 16-bit values transparent; save it with 8 bits")
        return StoredMask(path, _array(picture.convert("RGBA")))
    return StoredMask(path, _array(picture), 65535 if wide else 1 if mode == "1" else 255)


def _of_tiff(file: BinaryIO, path: Path) -> StoredMask:
    with TiffFile(file, name=path.name) as opened:
        page = opened.pages.first
        _check_page(page, path)
        pixels = page.asarray()
        table = None if page.colormap is None else palette_colours(page.colormap)
        white = 1 if pixels.dtype.kind == "f" else (1 << page.bitspersample) - 1
    if page.axes == "SYX":  # planar: one colour after the other
        pixels = np.moveaxis(pixels, 0, -1)
    if table is None or page.photometric != PHOTOMETRIC.PALETTE:
        return StoredMask(path, pixels, white)
    return StoredMask(path, pixels, white, tuple((*entry, 255) for entry in table.tolist()))


def _check_page(page: TiffPage, path: Path) -> None:
    """Refuse, before the pixels are read, a page that would be misread."""
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        raise DatasetError(
            path,
            "the mask stores white as 0, so its values and its appearance mark opposite areas; save it with black as 0 "
            "(tifffile: photometric='minisblack')",
        )
    if page.photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.PALETTE, PHOTOMETRIC.RGB):
        kind = getattr(page.photometric, "name", page.photometric)
        raise DatasetError(path, f"the mask holds {kind} colours; save it as grey, 0 and 255")
    if page.subfiletype & REDUCED_OR_MASK or page.axes not in ("YX", "YXS", "SYX"):
        raise DatasetError(path, "the mask's first page is a reduced copy or a volume; save the full-size page alone")
    colours = 3 if page.photometric == PHOTOMETRIC.RGB else 1
    if page.samplesperpixel > 1 and page.dtype != np.uint8:
        raise DatasetError(path, "the mask holds colours or opacity of more than 8 bits; save it as grey, 0 and 255")
    if page.samplesperpixel > colours and tuple(page.extrasamples) != (_UNASSOCIATED_ALPHA,):
        raise DatasetError(path, "the mask holds an extra channel of unknown meaning; save it as grey, 0 and 255")


def _array(image: Image.Image) -> NDArray[Any]:
    """`np.asarray` without its two copies: they would take 0.6 GB for the largest colour mask."""
    first = np.asarray(image.crop((0, 0, image.width, 1)))
    pixels = np.empty((image.height, *first.shape[1:]), first.dtype)
    for rows in row_blocks(image.height, image.width):
        pixels[rows] = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
    return pixels


def defect_pixels(mask: StoredMask) -> NDArray[np.uint8]:
    """0/1 uint8 [H, W]: 1 is defect. Raises DatasetError, with the values found, unless there are one or two kinds."""
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
            f"the mask is {math.floor(100 * share)} % defect ({defect.text}), as if drawn black on white: invert it, "
            "or make it white throughout if the defect fills the frame",
        )
    return marked


def _defect(kinds: Sequence[_Kind], path: Path) -> _Kind:
    """The one of two kinds that is defect."""
    clear = [kind for kind in kinds if kind.opacity == 0]
    opaque = [kind for kind in kinds if kind.opacity == 255]
    background = clear if clear else [kind for kind in opaque if kind.black]
    others = [kind for kind in kinds if kind not in background]
    if len(background) == len(others) == 1 and not others[0].black and (clear or len(opaque) == 2):
        return others[0]
    found = " and ".join(kind.text for kind in kinds)
    raise DatasetError(
        path,
        f"the mask holds {found}, which does not show where the defect is; save it as grey: 0 is not defect, 255 is",
    )


def _kinds(mask: StoredMask) -> list[_Kind]:
    """The kinds of pixels in the mask, one or two. Raises DatasetError if there are more."""
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
        if not 0 <= code < math.inf:
            raise DatasetError(mask.path, f"the mask holds {code:.9g}; save it as grey: 0 is not defect, 255 is")
        return _Kind(code, f"{code:.9g}", black=code == 0, white=code == mask.white)
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
    """Blocks of rows with one number per pixel. A transparent pixel is 0, whatever colour is stored under it."""
    for rows in row_blocks(*pixels.shape[:2]):
        block = pixels[rows]
        if block.ndim == 3:
            code = block[..., 0].astype(np.uint32)
            for channel in range(1, block.shape[2]):
                code <<= 8
                code |= block[..., channel]
            if block.shape[2] in (2, 4):
                code[block[..., -1] == 0] = 0
            block = code
        yield rows, block
