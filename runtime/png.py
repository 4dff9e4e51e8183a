"""PNG files: the chunks are read here, the pixels inflated by `runtime.inflate`, and the row filters undone by Pillow.

Pillow gets the inflated bytes as a stream without compression. Reading the chunks here keeps a file's metadata, and
Pillow's global switches, from changing the pixels.
"""

from __future__ import annotations

import io
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin

from . import inflate
from .errors import FrameError
from .jpeg import exif_orientation
from .pixels import Stored, check_bytes, check_pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per pixel, by colour type."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, and the steps, of the passes of an interlaced image (PNG, section 8.2)."""
_LARGEST = 1 << 25
"""Bytes of pixels up to which a thread keeps a buffer for them. Pillow inflates larger images a second time."""
_BLOCK = 65_535
"""The most bytes that a stored block holds (RFC 1951, section 3.2.4)."""


class _Buffer(threading.local):
    """A thread's buffer, as large as its largest image so far. A new one per frame costs as much as ISA-L saves."""

    buffer = memoryview(b"")

    def of(self, size: int) -> memoryview:
        """The first `size` bytes of the buffer."""
        if len(self.buffer) < size:
            self.buffer = memoryview(bytearray(size))
        return self.buffer[:size]


_own = _Buffer()


@dataclass(frozen=True, slots=True)
class _Chunks:
    """What reading needs. header, palette: whole chunks; data: the compressed pixels in parts."""

    header: bytes
    palette: bytes
    data: list[memoryview]
    orientation: int


def decode(data: bytes, name: str) -> Stored:
    """The pixels of a PNG file, as Pillow has them: 16-bit grey as such, 16-bit colour by its upper 8 bits.

    Raises FrameError; OSError, ValueError or the inflating library's error where the data are damaged or end too early.
    """
    chunks = _walk(memoryview(data), name)
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", chunks.header[8:21])
    check_pixels(width, height, name)
    bits = depth * _SAMPLES.get(kind, 0)
    check_bytes(width * height * bits // 8, name)
    # Pillow knows what the bits mean; it gets only the head of the file.
    with PngImagePlugin.PngImageFile(io.BytesIO(SIGNATURE + chunks.header + chunks.palette + _EMPTY)) as head:
        mode, raw_mode, palette = head.mode, head.tile[0][3], head.palette
    size = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in _sizes(width, height, interlaced))
    data = _enough(chunks.data, size)
    inflated = _stored(data, size) if size <= _LARGEST else _checked(data, size)
    image = Image.frombytes(mode, (width, height), inflated, "zip", raw_mode, interlaced)
    if palette is not None:
        image.palette = palette
        image = image.convert("RGB")
    values = np.asarray(image) if mode.startswith("I") else image
    return Stored(values, orientation=chunks.orientation, wide_colour=depth == 16 and mode[0] != "I")


def _sizes(width: int, height: int, interlaced: int) -> Iterator[tuple[int, int]]:
    """Columns and rows of each pass; a byte before each row names its filter (PNG, section 9)."""
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            yield columns, rows


def _walk(file: memoryview, name: str) -> _Chunks:
    """The chunks up to the end of the pixels. Checksums are verified, except those of metadata: a file that ends in
    zeros, as after an interrupted copy, may still inflate to enough pixels."""
    header = palette = b""
    data: list[memoryview] = []
    orientation, at = 1, len(SIGNATURE)
    while at + 12 <= len(file):
        length, kind = int.from_bytes(file[at : at + 4], "big"), bytes(file[at + 4 : at + 8])
        body, end = file[at + 8 : at + 8 + length], at + 12 + length
        if kind != b"IDAT" and (data or end > len(file)):
            break
        checked = kind in (b"IHDR", b"PLTE", b"IDAT") and end <= len(file)
        if checked and inflate.crc32(file[at + 4 : end - 4]) != int.from_bytes(file[end - 4 : end], "big"):
            raise FrameError(name, f"is damaged or truncated (a wrong checksum of {kind.decode()})")
        if kind == b"IDAT":
            data.append(body)  # the last may be cut short, after all of its pixels
        elif kind in (b"IHDR", b"PLTE"):
            if kind == b"IHDR" and (at != len(SIGNATURE) or length != 13):
                raise FrameError(name, "is damaged or truncated (a wrong header)")
            header, palette = (bytes(file[at:end]), b"") if kind == b"IHDR" else (header, bytes(file[at:end]))
        elif kind == b"acTL" and int.from_bytes(body[:4], "big") > 1:
            pictures = int.from_bytes(body[:4], "big")
            raise FrameError(name, f"is an animation of {pictures} pictures; save the one that is meant as a PNG file")
        elif kind == b"eXIf":
            orientation = exif_orientation(bytes(body))
        at = end
    if not header or not data:
        raise FrameError(name, "is damaged or truncated (a PNG without pixels)")
    return _Chunks(header, palette, data, orientation)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_EMPTY = _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def _enough(chunks: list[memoryview], size: int) -> bytes:
    """The content of the IDAT chunks, joined, and no more than a sane file needs for `size` bytes of pixels."""
    room, parts = 2 * size + _BLOCK, []
    for chunk in chunks:
        parts.append(chunk[:room])
        room -= len(parts[-1])
    return b"".join(parts)


def _stored(data: bytes, size: int) -> memoryview:
    """`size` bytes inflated, as a zlib stream of stored blocks (RFC 1950, RFC 1951).

    It is valid until the thread's next call. No more than `size` bytes are inflated.
    """
    pixels = memoryview(b"".join(_inflated(data, size)))
    stream = _own.of(2 + size + 5 * math.ceil(size / _BLOCK) + 4)
    stream[:2] = b"\x78\x01"
    at = 2
    for start in range(0, size, _BLOCK):
        part = pixels[start : start + _BLOCK]
        struct.pack_into("<BHH", stream, at, start + len(part) == size, len(part), len(part) ^ 0xFFFF)
        stream[at + 5 : at + 5 + len(part)] = part
        at += 5 + len(part)
    stream[-4:] = struct.pack(">I", inflate.adler32(pixels))
    return stream


def _checked(data: bytes, size: int) -> bytes:
    """The file's own stream, once it is known to hold `size` bytes of pixels."""
    for _ in _inflated(data, size):
        pass
    return data


def _inflated(data: bytes, size: int) -> Iterator[bytes]:
    """`size` bytes inflated, in one part where they are `_LARGEST` at most. Raises OSError if there are fewer.

    Every call hands the GIL over, and decoders then wait for it: so there are few.
    """
    inflater = inflate.inflater()
    done = 0
    while done < size and not inflater.eof:
        part = inflater.decompress(data, min(size - done, _LARGEST))
        if not part:
            break
        done += len(part)
        data = b""
        yield part
    if done < size:
        raise OSError(f"its pixels end after {done} of {size} bytes")
