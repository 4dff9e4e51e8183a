"""The pixels of one TIFF page: strips or tiles are unpacked here, within bounds, and assembled by tifffile.

Files of SEM tools need no further package: uncompressed and deflate data, and by Pillow LZW, PackBits and JPEG. Other
compressions need the codecs of imagecodecs, which is as large as an engine and therefore an extra.
"""

from __future__ import annotations

import io
import lzma
import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from tifffile import COMPRESSION, TiffPage

from . import inflate, jpeg
from .errors import FrameError

_Part: TypeAlias = "bytes | memoryview"
_NONE, _JPEG = 1, 7
_BY_LIBTIFF = {5: "LZW", 32773: "PackBits"}
_DEFLATE, _LZMA, _ZSTD = (8, 32946), (34925,), (34926, 50000)
_PREDICTED = (5, *_DEFLATE, *_LZMA, *_ZSTD)
"""Compressions that allow a predictor; with others, readers disagree about its meaning."""
_MOST_SEGMENTS = 131_072
_SMALL = 1 << 22
"""Pixels outside of the image that tiles may cover, for an image of any size."""
_LZMA_MEMORY = 1 << 27
_SPARE = 1 << 20
"""Surplus bytes that a strip may hold, for a strip of any size."""
_BAND = 1 << 24
"""Bytes of strips that tifffile gets at once."""
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_PLAIN_TAGS = 9


def read(page: TiffPage, file: BinaryIO, name: str, part: int | None = None) -> NDArray[Any]:
    """The samples of a page as stored: [height, width, samples], in this machine's byte order or the file's.

    part: the number, from 0, among images that follow each other where the page has its own. Raises FrameError,
    and the errors of codecs on damaged data.
    """
    _check(page, name)
    if part is not None or in_one_piece(page):
        return _together(_piece(page, file, name, part or 0))
    segments = _segments(page, file, name, reverse=page.fillorder == 2 and page.compression != _JPEG)
    if page.compression == _JPEG:
        return _together(_from_jpeg(page, segments, name))
    return _together(_assembled(page, segments, name))


def in_one_piece(page: TiffPage) -> bool:
    """Whether the pixels lie in the file as in memory, except for the order of bytes and bits."""
    return bool(page.is_contiguous)


def _together(shaped: NDArray[Any]) -> NDArray[Any]:
    """[planes, 1, H, W, samples], one of these being 1, as [H, W, samples]."""
    return np.moveaxis(shaped[:, 0, :, :, 0], 0, 2) if shaped.shape[0] > 1 else shaped[0, 0]


def _check(page: TiffPage, name: str) -> None:
    """Refuse what is not supported, by name, and impossible places of pixels, before any pixel is read."""
    compression, predictor = int(page.compression), int(page.predictor)
    if compression not in (_NONE, _JPEG, *_BY_LIBTIFF, *_DEFLATE, *_LZMA, *_ZSTD):
        raise FrameError(
            name, f"is compressed by {_name_of(compression)}, which is not read in TIFF; save it with LZW, or with none"
        )
    if predictor != 1 and compression != _JPEG:
        kind = "" if page.dtype is None else page.dtype.kind
        sound = (predictor == 2 and kind in "ui") or (predictor == 3 and kind == "f")
        if compression not in _PREDICTED or not sound or page.bitspersample not in (8, 16, 32, 64):
            raise FrameError(
                name,
                f"has predictor {predictor} with compression {_name_of(compression)} of {page.bitspersample}-bit "
                "samples, which readers do not agree on; save it without a predictor",
            )
    if compression == _JPEG and page.bitspersample != 8:
        raise FrameError(name, f"holds JPEG data of {page.bitspersample} bits, which are not read; save it with LZW")
    across, down, planes = _grid(page)
    count = across * down * planes
    if count > _MOST_SEGMENTS:
        raise FrameError(name, f"is cut into {count:,} strips or tiles, more than {_MOST_SEGMENTS:,}")
    width, rows = _segment_size(page)
    if page.is_tiled and across * width * down * rows > max(_SMALL, 4 * page.imagewidth * page.imagelength):
        raise FrameError(name, f"is cut into tiles of {width}x{rows} pixels, most of which lie outside of it")
    if not len(page.dataoffsets) == len(page.databytecounts) == count:
        raise FrameError(name, f"is damaged: it should have {count} strips or tiles and names {len(page.dataoffsets)}")


def _name_of(compression: int) -> str:
    try:
        return COMPRESSION(compression).name
    except ValueError:
        return f"an unknown method ({compression})"


def _segment_size(page: TiffPage) -> tuple[int, int]:
    """Width and rows of a tile, or of a strip but the last."""
    return (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)


def _grid(page: TiffPage) -> tuple[int, int, int]:
    """Counts of strips or tiles: across, down, and separate planes."""
    planes = page.samplesperpixel if page.planarconfig == 2 and page.samplesperpixel > 1 else 1
    if page.is_tiled:
        if not page.tilewidth or not page.tilelength:
            raise ValueError("its tiles have no size")
        return -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength), planes
    return 1, -(-page.imagelength // max(1, page.rowsperstrip)), planes


def _piece(page: TiffPage, file: BinaryIO, name: str, part: int) -> NDArray[Any]:
    """Pixels that lie in one piece in the file."""
    size = page.nbytes
    if part == 0 and sum(page.databytecounts) < size:
        raise FrameError(name, f"is truncated: it names {sum(page.databytecounts)} of {size} bytes of pixels")
    file.seek(page.dataoffsets[0] + part * size)
    data = file.read(size)
    if len(data) < size:
        raise FrameError(name, f"is truncated: its pixels end after {len(data)} of {size} bytes")
    if page.fillorder == 2:
        data = _reversed(data)
    return _as_stored(page, data)


def _as_stored(page: TiffPage, data: bytes | bytearray) -> NDArray[Any]:
    assert page.dtype is not None  # checked, as all properties of the page
    return np.frombuffer(data, page.dtype.newbyteorder(page.parent.byteorder)).reshape(page.shaped)


def _segments(page: TiffPage, file: BinaryIO, name: str, *, reverse: bool) -> Iterator[_Part]:
    """The strips or tiles as stored, in order; FrameError if one is missing or cut. reverse: bits of bytes."""
    end = file.seek(0, 2)
    if sum(page.databytecounts) > end:
        raise FrameError(name, "is damaged: its strips or tiles overlap or lie past the end of the file")
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if not all(map(all, places)):
        lacking = [all(place) for place in places].index(False)
        raise FrameError(name, f"lacks the pixels of strip or tile {lacking + 1} of {len(places)}")
    first, last = min(page.dataoffsets), max(map(sum, places))
    if last > end:
        raise FrameError(name, "is truncated: its pixels lie past the end of the file")
    parts: Iterator[_Part]
    if last < first + 2 * sum(page.databytecounts):  # close together, so they are read at once
        file.seek(first)
        together = memoryview(file.read(last - first))
        parts = (together[offset - first : offset - first + count] for offset, count in places)
    else:
        parts = (_part(file, offset, count) for offset, count in places)
    return map(_reversed, parts) if reverse else parts


def _part(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _reversed(data: _Part) -> bytes:
    return bytes(data).translate(_REVERSED)


def _assembled(page: TiffPage, segments: Iterator[_Part], name: str) -> NDArray[Any]:
    """Unpack, and leave predictor, byte order and packed bits to tifffile: [planes, 1, H, W, samples]."""
    across, down, planes = _grid(page)
    samples, height = page.shaped[4], page.imagelength
    compression = int(page.compression)
    if compression in _ZSTD or int(page.predictor) == 3 or page.bitspersample not in (1, 8, 16, 32, 64):
        _require_imagecodecs(page, name)
    width, rows = _segment_size(page)
    row = (width * samples * page.bitspersample + 7) // 8
    if not page.is_tiled and page.predictor == 1 and page.bitspersample in (8, 16, 32, 64):
        all_rows = [
            _unpacked(compression, list(islice(segments, down)), row, min(rows, height), height, name)
            for _ in range(planes)
        ]
        return _as_stored(page, b"".join(all_rows) if planes > 1 else all_rows[0])
    # tifffile gets unpacked data, and strips of a convenient size: rows do not depend on each other.
    page.compression, page.fillorder = COMPRESSION.NONE, 1
    length, step = rows * across * down, rows
    if not page.is_tiled:
        length, step = height, min(height, max(1, _BAND // row))
        page.rowsperstrip = step
    result = np.empty(page.shaped, page.dtype)
    pieces = -(-length // step)
    for plane in range(planes):
        parts = list(islice(segments, across * down))
        whole = memoryview(_unpacked(compression, parts, row, min(rows, length), length, name))
        for piece in range(pieces):
            data = whole[piece * step * row : (piece + 1) * step * row]
            values, (_, _, top, left, _), _ = page.decode(data, plane * pieces + piece)
            assert values is not None
            there = result[plane][:, top : top + values.shape[1], left : left + values.shape[2]]
            there[...] = values[:, : there.shape[1], : there.shape[2]]
    return result


def _unpacked(compression: int, parts: list[_Part], row: int, rows: int, length: int, name: str) -> bytes | bytearray:
    """`length` rows of `row` bytes out of `parts`, each of which holds `rows` of them, the last one the rest.

    No more is unpacked, even if a part holds more; FrameError if it holds less.
    """
    if compression in _BY_LIBTIFF and row * length <= _BAND:
        return _by_libtiff(compression, parts, row, rows, length)
    whole = bytearray(row * length)
    if compression in _BY_LIBTIFF:  # a band at a time, because Pillow copies its input
        step = max(1, _BAND // (rows * row))
        for index in range(0, len(parts), step):
            start = index * rows
            stop = min(start + step * rows, length)
            band, parts[index : index + step] = parts[index : index + step], [b""] * len(parts[index : index + step])
            whole[start * row : stop * row] = _by_libtiff(compression, band, row, rows, stop - start)
        return whole
    for index in range(len(parts)):
        start = index * rows * row
        size = min(rows * row, len(whole) - start)
        data, parts[index] = _inflated(compression, parts[index], size), b""
        if len(data) < size:
            raise FrameError(name, f"is truncated: strip or tile {index + 1} ends after {len(data)} of {size} bytes")
        whole[start : start + size] = memoryview(data)[:size]
    return whole


def _inflated(compression: int, data: _Part, size: int) -> _Part:
    """Up to `size` bytes, or a few more."""
    if compression in _DEFLATE:
        return _to_the_end(inflate.inflater(), data, size)
    if compression in _LZMA:
        return _to_the_end(lzma.LZMADecompressor(memlimit=_LZMA_MEMORY), data, size)
    if compression in _ZSTD:
        import imagecodecs

        return bytes(imagecodecs.zstd_decode(bytes(data), out=size))
    return data


def _to_the_end(unpacker: inflate.Inflater, data: _Part, size: int) -> bytes:
    """Up to `size` + 1 bytes. The stream is read to its end, where its checksum is: damaged data may be longer.

    Some writers fill the last strip up to its full height; the surplus is dropped.
    """
    unpacked = unpacker.decompress(data, size + 1)
    spare = max(size, _SPARE)
    step = max(_SPARE, size // 16)  # zlib copies what is left of the input in every call, so there are few
    while spare > 0 and not unpacker.eof and not unpacker.needs_input:
        spare -= max(1, len(unpacker.decompress(b"", min(spare, step))))
    if not unpacker.eof:
        raise ValueError("its compressed data do not end where they should")
    return unpacked


def _by_libtiff(compression: int, parts: list[_Part], row: int, rows: int, length: int) -> bytes:
    """As `_unpacked`, by Pillow's libtiff, which is twice as fast as imagecodecs at LZW and gets a small TIFF file."""
    codec, arguments = _decoder(compression)
    image = Image.frombytes("L", (row, length), _plain(compression, parts, row, rows, length), codec, arguments)
    return bytes(image.tobytes())


def _plain(compression: int, parts: list[_Part], row: int, rows: int, length: int) -> bytes:
    """A TIFF file of `parts` as strips of grey bytes; its only page begins at byte 8."""
    start = 8 + 2 + 12 * _PLAIN_TAGS + 4
    counts = [len(part) for part in parts]
    offsets = list(accumulate(counts[:-1], initial=start + 8 * len(parts)))
    places = (start, start + 4 * len(parts)) if len(parts) > 1 else (offsets[0], counts[0])
    tags = {256: row, 257: length, 258: 8, 259: compression, 262: 1, 273: places[0], 277: 1, 278: rows, 279: places[1]}
    entries = [
        struct.pack("<HHII", tag, 4, len(parts) if tag in (273, 279) else 1, value) for tag, value in tags.items()
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(entries) + bytes(4)
    return b"".join([head, struct.pack(f"<{2 * len(parts)}I", *offsets, *counts), *parts])


@lru_cache
def _decoder(compression: int) -> tuple[str, tuple[Any, ...]]:
    """Pillow's decoder for `_plain`, and its arguments, which only Pillow's file reader knows."""
    with TiffImagePlugin.TiffImageFile(io.BytesIO(_plain(compression, [b"\0"], 1, 1, 1))) as image:
        codec, _, _, arguments = image.tile[0]
    return codec, arguments if isinstance(arguments, tuple) else (arguments,)


def _from_jpeg(page: TiffPage, segments: Iterator[_Part], name: str) -> NDArray[Any]:
    """JPEG streams, one per strip or tile: [planes, 1, H, W, samples]."""
    across, down, _ = _grid(page)
    width, rows = _segment_size(page)
    colour = {2: 0, 6: 1}.get(int(page.photometric)) if page.shaped[4] > 1 else None
    result = np.empty(page.shaped, np.uint8)
    for index, data in enumerate(segments):
        plane, place = divmod(index, across * down)
        top, left = place // across * rows, place % across * width
        there = result[plane, 0, top : top + rows, left : left + width]
        tables = page.jpegtables or b""
        image = jpeg.decode(bytes(data), name, tables=tables, colour=colour, most=(width, rows)).values
        values = np.asarray(image)
        values = values.reshape(*values.shape[:2], -1)
        whole = (rows, width, there.shape[2])
        if values.shape not in (whole, there.shape):
            raise FrameError(
                name, f"is damaged: strip or tile {index + 1} holds {list(values.shape)}, not {list(whole)}"
            )
        there[...] = values[: there.shape[0], : there.shape[1]]
    return result


def _require_imagecodecs(page: TiffPage, name: str) -> None:
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        what = f"{page.bitspersample}-bit samples, compression {_name_of(int(page.compression))}"
        raise FrameError(
            name, f"needs the package imagecodecs ({what}, predictor {page.predictor}): pip install 'sem-clip[tiff]'"
        ) from None
