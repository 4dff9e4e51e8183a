"""Frames in: files, Pillow images and arrays become the 8-bit grey pixels that the graph takes.

One module for teaching, calibration and serving, so that all three see the same pixels.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from . import png
from .errors import FrameError
from .files import open_plain
from .manifest import Encoder
from .recipe import FrameOptions
from .resize import resize

FrameSource: TypeAlias = "str | Path | Image.Image | NDArray[Any]"
Pixels: TypeAlias = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535
"""JPEG's limit too. What a resize needs grows with the side, and not with the pixels alone."""
_READ_WHOLE = 1 << 25
"""Bytes of a file up to which it is read at once. Larger ones, stacks of many pages mostly, are read as needed."""
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, section 8
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_PAGE = re.compile(r"(?P<file>.+)#(?P<page>[0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frame ready for the graph.

    pixels: uint8 [input height, input width], grey.
    frame_size: [height, width] of the frame as it came, ignored rows included.
    """

    pixels: Pixels
    frame_size: tuple[int, int]
    source: str
    path: str | None
    seconds: float = 0.0


def describe(source: FrameSource, index: int | None = None) -> str:
    """What to call a frame in results and messages: its path, else its place in the call."""
    if isinstance(source, str | Path):
        return str(source)
    name = getattr(source, "filename", "")
    return str(name) if name else ("frame" if index is None else f"frame[{index}]")


def read_frame(source: FrameSource, options: FrameOptions | None = None, name: str | None = None) -> Pixels:
    """The whole frame as grey uint8 [height, width]; rows to ignore are still there.

    source: a path (PNG, JPEG, BMP or TIFF; `file.tif#3` is the third page), a Pillow image, or an array [H, W],
        [H, W, 1] or [H, W, 3] of uint8, uint16 or float in [0, 1].
    Colour becomes luma (ITU-R 601, as Pillow's "L"); a palette is looked up first. 16-bit values are scaled so that
    `options.white_level` is white. Nothing is stretched by a frame's own minimum and maximum.
    Raises FrameError.
    """
    grey = decode_frame(source, options or FrameOptions(), name or describe(source))
    return np.array(grey) if isinstance(grey, Image.Image) else grey


def decode_frame(source: FrameSource, options: FrameOptions, name: str) -> Pixels | Image.Image:
    """`read_frame` for `prepare`: 8-bit files and images stay Pillow images of mode L, which saves copies."""
    if isinstance(source, str | Path):
        return _from_file(str(source), options, name)
    if isinstance(source, Image.Image):
        with _decoding(name):
            _check_stored(source, options, name)
            return _from_image(source, options, name)
    if isinstance(source, np.ndarray):
        return _from_array(source, options, name)
    raise FrameError(name, f"a frame is a path, a Pillow image or a numpy array, not {type(source).__name__}")


def prepare(pixels: Pixels | Image.Image, encoder: Encoder, options: FrameOptions, name: str) -> Pixels:
    """Cut the ignored rows and bring the frame to the graph's input size: uint8 [input height, input width].

    Without a resize in the graph any size is squashed by `resize`, antialiased bicubic; with one, the frame must have
    exactly the size the graph was exported for. Raises FrameError.
    """
    height, width = encoder.input_size
    if isinstance(pixels, Image.Image):
        pixels = np.asarray(pixels)
    kept = cut_rows(pixels, options, name)
    if kept.shape == (height, width):
        return np.ascontiguousarray(kept)
    if encoder.resizes_in_graph:
        raise FrameError(
            name,
            f"is {kept.shape[0]}x{kept.shape[1]} (height x width, ignored rows cut) and this bundle was exported for "
            f"frames of {height}x{width}: export without --frame-size to take any size",
        )
    return resize(kept, (height, width))


def cut_rows(pixels: Pixels, options: FrameOptions, name: str) -> Pixels:
    """The frame without `ignore_top` and `ignore_bottom` rows (a view). FrameError if nothing would be left."""
    height = pixels.shape[0]
    if options.ignore_top + options.ignore_bottom >= height:
        raise FrameError(
            name,
            f"has {height} rows and all of them would be ignored "
            f"(ignore_top={options.ignore_top}, ignore_bottom={options.ignore_bottom})",
        )
    return pixels[options.ignore_top : height - options.ignore_bottom]


def page_count(path: str | Path) -> int:
    """How many pages the image file holds. Raises FrameError."""
    name = str(path)
    with _open(name, name) as image, _decoding(name):
        return int(getattr(image, "n_frames", 1))


def _open(path: str, name: str) -> Image.Image:
    try:
        with open_plain(path) as file:
            # Pillow's many small reads and seeks of a file each hand over the GIL, and decoders wait for each other.
            size = os.fstat(file.fileno()).st_size
            source = path if size > _READ_WHOLE else io.BytesIO(_read(file, size))
        image = Image.open(source, formats=FORMATS)
    except FileNotFoundError:
        raise FrameError(name, "no such file") from None
    except IsADirectoryError:
        raise FrameError(name, "is a folder, not a frame") from None
    except UnidentifiedImageError as exc:
        size = Path(path).stat().st_size
        what = "is empty (0 bytes)" if size == 0 else f"is not a readable {', '.join(FORMATS)} file"
        raise FrameError(name, what) from exc
    except Image.DecompressionBombError as exc:
        raise FrameError(name, f"is larger than {MAX_PIXELS / 1e6:g} megapixels") from exc
    except Exception as exc:  # Pillow's plugins raise almost anything on hostile headers.
        raise FrameError(name, f"cannot be opened ({getattr(exc, 'strerror', None) or exc})") from exc
    try:
        _check_pixels(image.width, image.height, name)
    except FrameError:
        image.close()
        raise
    return image


def _read(file: io.FileIO, size: int) -> bytes:
    """All of a file of `size` bytes in one call of the system, where that gives all of them."""
    data = file.read(size) or b""
    return data if 0 < size == len(data) else data + file.readall()


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """As in `_open`: damaged data surface as OSError, SyntaxError, struct.error ..., and all become FrameError."""
    try:
        yield
    except FrameError:
        raise
    except Exception as exc:
        raise FrameError(name, f"is damaged or truncated ({exc})") from exc


def _from_file(path: str, options: FrameOptions, name: str) -> Pixels | Image.Image:
    path, page = _split_page(path)
    with _open(path, name) as image, _decoding(name):
        pages = int(getattr(image, "n_frames", 1))
        if page is None and pages > 1:
            raise FrameError(name, f"holds {pages} pages; name one of them: {path}#1 ... {path}#{pages}")
        if page is not None and not 1 <= page <= pages:
            raise FrameError(name, f"there is no page {page}; the file holds pages 1 to {pages}")
        if page is not None:
            image.seek(page - 1)
        _check_stored(image, options, name)
        return _from_image(png.decoded(image), options, name)


def _split_page(path: str) -> tuple[str, int | None]:
    """`file.tif#3` is page 3 of `file.tif`, unless a file has that very name."""
    match = _PAGE.fullmatch(path)
    if match is None:
        return path, None
    try:
        named = Path(path).exists()
    except OSError:  # a name too long, for example; opening it will say so
        named = False
    return (path, None) if named else (match["file"], int(match["page"]))


def _check_stored(image: Image.Image, options: FrameOptions, name: str) -> None:
    """Refuse what Pillow would read as other pixels than were meant, without a word. Before the pixels are decoded."""
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    raw_modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
    if not wide and options.white_level != 65535 and any(";16" in mode for mode in raw_modes):
        # Of 16-bit colour Pillow keeps the upper eight bits, which knows nothing of another white.
        raise FrameError(
            name, f"holds 16-bit colour, which cannot be scaled to white_level={options.white_level}; save it as grey"
        )
    if wide and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise FrameError(name, "stores white as 0, which is understood up to 8 bits only; save it with black as 0")


def _from_image(image: Image.Image, options: FrameOptions, name: str) -> Pixels | Image.Image:
    _check_pixels(image.width, image.height, name)
    # Pillow's own conversion of 16- and 32-bit images to "L" clips at 255 instead of scaling.
    if image.mode.startswith("I;16"):
        return _from_array(np.asarray(image).astype(np.uint16), options, name)
    if image.mode == "I":
        wide = np.asarray(image)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise FrameError(name, "holds 32-bit values outside 0 ... 65535; save it with 8 or 16 bits")
        return _from_array(wide.astype(np.uint16), options, name)
    if image.mode == "F":
        return _from_array(np.asarray(image), options, name)
    if image.mode == "P":
        image = image.convert("RGBA")  # to "RGB", Pillow warns about palettes that hold transparency
    image.load()  # here, where damaged data is understood
    return image if image.mode == "L" else image.convert("L")


def _from_array(array: NDArray[Any], options: FrameOptions, name: str) -> Pixels:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise FrameError(name, f"has shape {list(array.shape)}; expected [height, width] or [height, width, 3]")
    _check_pixels(array.shape[1], array.shape[0], name)
    if array.dtype == np.uint8:
        return np.array(Image.fromarray(array).convert("L")) if array.ndim == 3 else np.array(array)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # either byte order
        values = array.astype(np.float32) * np.float32(255 / options.white_level)
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise FrameError(name, "holds NaN or infinite values")
        if array.min() < 0 or array.max() > 1:
            raise FrameError(name, f"float frames lie in [0, 1]; this one in [{array.min():g}, {array.max():g}]")
        values = array.astype(np.float32) * np.float32(255)
    else:
        raise FrameError(name, f"has type {array.dtype}; expected uint8, uint16 or float in [0, 1]")
    if values.ndim == 3:
        values = values @ np.array([0.299, 0.587, 0.114], np.float32)
    grey: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return grey


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise FrameError(name, f"is {width}x{height} pixels, more than {MAX_PIXELS / 1e6:g} megapixels")
    if max(width, height) > MAX_SIDE:
        raise FrameError(name, f"is {width}x{height} pixels, more than {MAX_SIDE} along one side")
    if width * height == 0:
        raise FrameError(name, "has no pixels")
