"""The pixels of PNG files, inflated by ISA-L: most of what reading a frame costs, in half of zlib's time.

Pillow reads the header and undoes the row filters. The inflating in between, and that alone, is done here: Pillow is
handed the same bytes as a stream that is not compressed.
"""

from __future__ import annotations

import io
import math
import struct
import threading
from collections.abc import Iterator

from isal import igzip_lib, isal_zlib
from PIL import Image

_BYTES_A_PIXEL = {"L": 1, "RGB": 3, "I;16B": 2}
"""By Pillow's raw mode. Pillow itself decodes all others."""
_LARGEST = 1 << 25
"""Bytes of pixels up to which a thread keeps a buffer for them; Pillow decodes larger images."""
_BLOCK = 65_535
"""Most that a stored block holds (RFC 1951, section 3.2.4)."""


class _Stream(threading.local):
    """A thread's buffer, as large as the largest so far. A new one for every frame costs as much as ISA-L saves."""

    buffer = memoryview(b"")

    def of(self, size: int) -> memoryview:
        """`size` bytes of it."""
        if len(self.buffer) < size:
            self.buffer = memoryview(bytearray(size))
        return self.buffer[:size]


_own = _Stream()


def decoded(image: Image.Image) -> Image.Image:
    """The image with its pixels decoded, if it is a plain PNG held in memory and not yet loaded; else as it came.

    Raises OSError, ValueError or ISA-L's error where the data are damaged or end too early.
    """
    source, tiles = getattr(image, "fp", None), getattr(image, "tile", [])
    if image.format != "PNG" or not isinstance(source, io.BytesIO) or len(tiles) != 1 or image.info.get("interlace"):
        return image
    if getattr(image, "n_frames", 1) != 1:  # later pages are stored in chunks of another kind
        return image
    codec, extents, offset, raw_mode = tiles[0]
    if codec != "zip" or extents != (0, 0, *image.size) or raw_mode not in _BYTES_A_PIXEL:
        return image
    # A byte before each row says how it was filtered (PNG, section 9).
    size = image.height * (1 + image.width * _BYTES_A_PIXEL[raw_mode])
    if size > _LARGEST:
        return image
    return Image.frombytes(image.mode, image.size, _stored(source.getvalue(), offset, size), "zip", raw_mode)


def _stored(file: bytes, offset: int, size: int) -> memoryview:
    """The image data of a PNG file, `size` bytes inflated, as a zlib stream of stored blocks (RFC 1950, RFC 1951).

    It is valid until the thread's next call. No more than `size` is inflated, whatever the file holds.
    """
    stream = _own.of(2 + size + 5 * math.ceil(size / _BLOCK) + 4)
    stream[:2] = b"\x78\x01"
    for start in range(0, size, _BLOCK):
        length = min(_BLOCK, size - start)
        head = start + length == size, length, length ^ 0xFFFF
        struct.pack_into("<BHH", stream, 2 + 5 * (start // _BLOCK) + start, *head)
    chunks = _image_data(memoryview(file), offset)
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
    done, checksum = 0, 1
    while done < size and not inflater.eof:
        chunk = next(chunks, None) if inflater.needs_input else b""
        if chunk is None:
            break
        part = inflater.decompress(chunk, min(size - done, _BLOCK - done % _BLOCK))
        at = 2 + 5 * (done // _BLOCK + 1) + done
        stream[at : at + len(part)] = part
        done += len(part)
        checksum = isal_zlib.adler32(part, checksum)
    if done < size:
        raise OSError(f"its pixels end after {done} of {size} bytes")
    stream[-4:] = struct.pack(">I", checksum)
    return stream


def _image_data(file: memoryview, offset: int) -> Iterator[memoryview]:
    """The data of the IDAT chunks; those of the first begin at `offset`."""
    start = offset - 8  # length and name, then the data, then a checksum; the stream has its own, which is checked
    while bytes(file[start + 4 : start + 8]) == b"IDAT":
        length = int.from_bytes(file[start : start + 4], "big")
        yield file[start + 8 : start + 8 + length]
        start += 12 + length
