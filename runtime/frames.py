"""Read frames: files, their content, Pillow images and arrays become the 8-bit grey pixels that the graph takes.

Teaching, calibration and serving share this module, so that all three see the same pixels. Pillow's global switches
(truncated files, the size limit, plug-ins) do not change how a file is read.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import bmp, inflate, jpeg, png, tiff
from .arguments import whole_number
from .errors import FrameError, raised_by_handler
from .fab.sem_sides import read_sides
from .fab.sem_values import NOTHING, combined
from .files import open_plain
from .manifest import Encoder
from .pixels import MAX_PIXELS, MAX_SIDE, Decoded, Pixels, Stored, check_pixels, decoded
from .recipe import FrameOptions
from .resize import resize

__all__ = ["MAX_PIXELS", "MAX_SIDE", "Pixels"]  # names of runtime.pixels that users expect here

FrameSource: TypeAlias = (
    "str | os.PathLike[str] | EncodedFrame | bytes | bytearray | BinaryIO | Image.Image | NDArray[Any]"
)

MAX_FILE_BYTES = 1 << 29
"""For files that are read at once. TIFF stacks may be larger: they are read page by page."""
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES)
_BUFFER = 1 << 16
_IMAGE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F"}
_PHOTOMETRIC, _WHITE_IS_ZERO, _ORIENTATION = 262, 0, 274  # TIFF 6.0, section 8
_PAGE = re.compile(r"(?P<file>.+)#(?P<page>[0-9]{1,9})")
_log = logging.getLogger("sem_clip")


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame as the content of its file, with a name: from an object store, a message or a table.

    It is read as the file would be: same pixels, errors, warnings and checksum.
    name: names the frame in results and errors, with "#3" for page 3. Nothing is opened by it, and "#3" in it chooses
        no page.
    data: the whole content of a PNG, JPEG, BMP or TIFF file. Other types are a FrameError when the frame is read, so
        that one bad row of a table costs one frame.
    page: which frame of a TIFF stack, counted from 1; None where the file holds one frame.
    Raises ValueError for a name or a page of another type, and for an empty name.
    """

    name: str
    data: bytes = field(repr=False)
    page: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a text that names the frame, not {self.name!r:.60}")
        if self.page is not None:
            object.__setattr__(self, "page", whole_number("page", self.page, 1))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frame ready for the graph.

    pixels: uint8 [input height, input width], grey.
    frame_size: [height, width] of the original frame, ignored rows included.
    checksum: of the whole frame's grey pixels; an overlay is drawn only on equal ones.
    warnings: what was read and may not have been meant.
    pixel_size_nm: sides (x, y) of a pixel of the original frame; None if unknown.
    """

    pixels: Pixels
    frame_size: tuple[int, int]
    source: str
    path: str | None
    seconds: float = 0.0
    checksum: int | None = None
    warnings: tuple[str, ...] = ()
    pixel_size_nm: tuple[float, float] | None = None


def describe(source: FrameSource, index: int | None = None) -> str:
    """The name of a frame in results and messages: its path, else its place in the call."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, EncodedFrame):
        page = "" if source.page is None or source.name.endswith(f"#{source.page}") else f"#{source.page}"
        return source.name + page
    name = getattr(source, "filename", "") or getattr(source, "name", "")
    if isinstance(name, str | os.PathLike) and name:
        return os.fsdecode(name)
    return "frame" if index is None else f"frame[{index}]"


def path_of(source: FrameSource) -> str | None:
    """`source` as a path, if it is one."""
    return os.fsdecode(source) if isinstance(source, str | os.PathLike) else None


def is_stored(source: FrameSource) -> bool:
    """Whether the pixels lie in a file or its content, and not in memory that the caller knows. They get a checksum."""
    return isinstance(source, str | os.PathLike | EncodedFrame)


def read_frame(source: FrameSource, options: FrameOptions | None = None, name: str | None = None) -> Pixels:
    """The whole frame as grey uint8 [height, width], including rows to ignore.

    source: a path (PNG, JPEG, BMP or TIFF; `file.tif#3` is the third frame of a stack), the content of such a file,
        bare or with a name (`EncodedFrame`), a file object opened in binary mode (read from where it is), a Pillow
        image (its pixels as Pillow has them), or an array [H, W], [H, W, 1] or [H, W, 3] of uint8, uint16 or float in
        [0, 1].
    Colour becomes luma (ITU-R 601, as Pillow's "L"); a palette is looked up first. Packed samples of N bits are scaled
    by 2^N - 1, 16-bit values so that `options.white_level` is white. Nothing is stretched by a frame's own minimum and
    maximum. Orientation tags are not applied: rows and columns are those that are stored.
    A stack's frames are its pages, except reduced copies and masks. Of a JPEG with several pictures the first counts.
    What may not have been meant is logged as a warning of "sem_clip". Raises FrameError.
    """
    name = name or describe(source)
    frame = decode_frame(source, options or FrameOptions(), name)
    for warning in frame.warnings:
        _log.warning("%s: %s", name, warning)
    return np.array(frame.pixels) if isinstance(frame.pixels, Image.Image) else frame.pixels


def decode_frame(source: FrameSource, options: FrameOptions, name: str, sides: bool = False) -> Decoded:
    """`read_frame` for `prepare`: 8-bit files and images stay Pillow images of mode L, which saves copies. The result
    holds the warnings."""
    with _decoding(name):
        if isinstance(source, np.ndarray):
            return _from_array(source, options, name)
        if isinstance(source, str | os.PathLike):
            return _from_file(os.fsdecode(source), options, name, sides)
        if isinstance(source, EncodedFrame):
            return _from_bytes(_content(source, name), source.page, options, name)
        if isinstance(source, Image.Image):
            return _from_image(source, options, name)
        if isinstance(source, bytes | bytearray):
            return _from_bytes(bytes(source), None, options, name)
        if callable(getattr(source, "read", None)):
            return _from_bytes(_read_object(source, name), None, options, name)
    kind = type(source).__name__
    raise FrameError(name, f"a frame is a path, bytes, a file object, a Pillow image or a numpy array, not {kind}")


def prepare(pixels: Pixels | Image.Image, encoder: Encoder, options: FrameOptions, name: str) -> Pixels:
    """Cut the ignored rows and bring the frame to the graph's input size: uint8 [input height, input width].

    Without a resize in the graph, `resize` squashes any size (antialiased bicubic). With one, the frame must have
    exactly the size that the graph was exported for. Raises FrameError.
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


def checksum_of(grey: Pixels) -> int:
    """CRC-32 of grey pixels, to compare them within microseconds."""
    return int(inflate.crc32(np.ascontiguousarray(grey)))


def page_count(path: str | os.PathLike[str] | EncodedFrame) -> int:
    """How many frames an image file, or its content, holds: TIFF pages that are neither reduced copies nor masks; 1 in
    other formats.

    Raises FrameError.
    """
    if isinstance(path, EncodedFrame):
        with _decoding(path.name):
            data = _content(path, path.name)
            kind = _reader(data, path.name)
            return tiff.frame_count(io.BytesIO(data), path.name) if kind is tiff else 1
    name = os.fsdecode(path)
    with _opened(name, name) as file, _decoding(name):
        head = file.read(8)
        if head[:4] in tiff.SIGNATURES:
            with io.BufferedReader(file, _BUFFER) as buffered:
                return tiff.frame_count(buffered, name, _identity(file))
        _reader(head, name)
    return 1


@contextmanager
def _opened(path: str, name: str) -> Iterator[io.FileIO]:
    try:
        file = open_plain(path)
    except FileNotFoundError:
        raise FrameError(name, "no such file") from None
    except IsADirectoryError:
        raise FrameError(name, "is a folder, not a frame") from None
    except (OSError, ValueError) as exc:  # ValueError: a name that no file can have
        raise FrameError(name, f"cannot be opened ({getattr(exc, 'strerror', None) or exc})") from exc
    with file:
        yield file


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn the errors of damaged data (OSError, SyntaxError, struct.error ...) into FrameError."""
    try:
        yield
    except FrameError:
        raise
    except MemoryError as exc:
        raise FrameError(name, "needs more memory than is left") from exc
    except Exception as exc:
        if raised_by_handler(exc):
            raise  # a signal handler of the calling program raised it; the frame is fine
        raise FrameError(name, f"is damaged or truncated ({str(exc) or type(exc).__name__})") from exc


def _from_file(path: str, options: FrameOptions, name: str, sides: bool) -> Decoded:
    path, page = split_page(path)
    frame = _from_page(path, page, options, name)
    if not sides:
        return frame
    size = frame.pixels.size[::-1] if isinstance(frame.pixels, Image.Image) else frame.pixels.shape
    beside = read_sides(path, (size[0], size[1]))
    return frame if beside is NOTHING else replace(frame, sem=combined(frame.sem, beside))


def _from_page(path: str, page: int | None, options: FrameOptions, name: str) -> Decoded:
    with _opened(path, name) as file:
        # A stack is not read as a whole for each of its pages; any other file is read in one call.
        if path.lower().endswith(TIFF_SUFFIXES) and file.read(4) in tiff.SIGNATURES:
            with io.BufferedReader(file, _BUFFER) as buffered:
                stored = tiff.decode(buffered, page, name, _identity(file), path)
            return decoded(stored, options.white_level, name)
        file.seek(0)
        data = _read(file, name)
    return _from_bytes(data, page, options, name, path)


def _identity(file: io.FileIO) -> tuple[int, ...]:
    """Identity of an open file, which changes with its content."""
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _read(file: io.FileIO, name: str) -> bytes:
    """All of a file, in one system call if that returns all of it."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE_BYTES:
        raise FrameError(name, f"is a file of {size / 1e6:.0f} MB, more than {MAX_FILE_BYTES / 1e6:.0f}")
    data = file.read(size) or b""
    return data if 0 < size == len(data) else data + file.readall()


def _read_object(source: Any, name: str) -> bytes:
    """The rest of a file object."""
    parts: list[bytes] = []
    left = MAX_FILE_BYTES
    while part := source.read(left + 1):
        if not isinstance(part, bytes | bytearray):
            raise FrameError(name, f"is a file object that gives {type(part).__name__}; open it in binary mode")
        left -= len(part)
        if left < 0:
            raise FrameError(name, f"is a file object of more than {MAX_FILE_BYTES / 1e6:.0f} MB; name the file")
        parts.append(bytes(part))
    return b"".join(parts)


def _content(frame: EncodedFrame, name: str) -> bytes:
    if not isinstance(frame.data, bytes):
        raise FrameError(name, f"holds {type(frame.data).__name__} instead of bytes, the content of an image file")
    return frame.data


def _from_bytes(data: bytes, page: int | None, options: FrameOptions, name: str, path: str | None = None) -> Decoded:
    """A frame from the content of a file."""
    if page is not None and page != 1 and data[:4] not in tiff.SIGNATURES:
        raise FrameError(name, f"there is no page {page}; the file holds pages 1 to 1")
    kind = _reader(data, name)
    if kind is tiff:
        stored = tiff.decode(io.BytesIO(data), page, name, None, path)
    else:
        stored = kind.decode(data, name)
    return decoded(stored, options.white_level, name)


def _from_image(image: Image.Image, options: FrameOptions, name: str) -> Decoded:
    """A frame that Pillow has opened. Formats that Pillow would silently misread are refused before decoding."""
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if image.mode not in _IMAGE_MODES and not wide:
        raise FrameError(name, f"is a Pillow image of mode {image.mode}, which is not read; convert it to L or RGB")
    check_pixels(image.width, image.height, name)
    wide_colour = not wide and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if wide and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise FrameError(name, "stores white as 0, which is understood up to 8 bits only; save it with black as 0")
    turned = getattr(image, "tag_v2", {}).get(_ORIENTATION, 1)  # gone once Pillow has loaded and turned the image
    try:
        image.load()  # here, where errors of damaged data are handled
    except ValueError as exc:
        if "closed" not in str(exc):
            raise
        raise FrameError(name, "is a Pillow image that was closed before it was used") from exc
    if image.mode == "P":
        image = image.convert("RGBA")  # on conversion to "RGB", Pillow warns about transparent palettes
    values = np.asarray(image) if wide else image
    frame = decoded(Stored(values, wide_colour=wide_colour), options.white_level, name)
    if turned == 1:
        return frame
    how = f"Pillow turned it by its orientation tag ({turned}): the same file, given by its name, is judged as stored"
    return Decoded(frame.pixels, (how, *frame.warnings))


def plain_array(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers as a plain array; the `copy` of a subclass, for example, need not copy.

    A masked array with masked pixels stays one, and reading it is refused.
    """
    return array if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array) else np.asarray(array)


def _from_array(array: NDArray[Any], options: FrameOptions, name: str) -> Decoded:
    array = plain_array(array)
    if isinstance(array, np.ma.MaskedArray):
        raise FrameError(name, f"is a masked array without {np.count_nonzero(array.mask)} of its values; fill them")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise FrameError(name, f"has shape {list(array.shape)}; expected [height, width] or [height, width, 3]")
    check_pixels(array.shape[1], array.shape[0], name)
    if array.dtype.kind != "f" and not (array.dtype.kind == "u" and array.dtype.itemsize <= 2):
        raise FrameError(name, f"has type {array.dtype}; expected uint8, uint16 or float in [0, 1]")
    return decoded(Stored(array), options.white_level, name)


def _reader(head: bytes, name: str) -> Any:
    """The module that reads files with this beginning; the suffix does not matter. Raises FrameError."""
    if head[:4] in tiff.SIGNATURES:
        return tiff
    for reader in (png, jpeg, bmp):
        if head.startswith(reader.SIGNATURE):
            return reader
    raise FrameError(name, f"is not a readable {', '.join(FORMATS)} file" if head else "is empty (0 bytes)")


def split_page(path: str) -> tuple[str, int | None]:
    """`file.tif#3` is frame 3 of `file.tif`. If a file of that very name exists too, the stack comes first: a name
    keeps its meaning when other files appear."""
    match = _PAGE.fullmatch(path)
    if match is None:
        return path, None
    try:
        named = Path(path).exists()
    except OSError:  # a name too long, for example; opening it gives the error
        named = False
    if named and not _is_stack(match["file"]):
        return path, None
    return match["file"], int(match["page"])


def _is_stack(path: str) -> bool:
    try:
        return page_count(path) > 1
    except FrameError:
        return False
