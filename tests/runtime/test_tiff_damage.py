"""TIFF: files that are cut, damaged or hostile are refused in time and in little memory."""

from __future__ import annotations

import io
import lzma
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import SHAPE, assert_grey, made, reason, tags_of
from tiffs import COMPRESSIONS, GREY, LAYOUTS

from runtime import tiff as tiff_module
from runtime.errors import FrameError
from runtime.frames import read_frame


@pytest.mark.usefixtures("inflating")
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_strip_that_ends_early_is_refused_and_not_filled(compression: str | None) -> None:
    for layout in LAYOUTS:
        file, refused = io.BytesIO(), 0
        tifffile.imwrite(file, GREY, compression=compression, metadata=None, **LAYOUTS[layout])
        file.seek(0)
        with tifffile.TiffFile(file) as opened:
            page = opened.pages[0]
            counts = page.tags[325 if layout == "tiles" else 279]
            values = page.databytecounts
            for change in (lambda n: n - 1, lambda n: n // 2, lambda n: 0):
                content = bytearray(file.getvalue())
                size = 8 if counts.dtype == 16 else 4 if counts.dtype == 4 else 2
                at = counts.valueoffset + size * (len(values) - 1)
                content[at : at + size] = change(values[-1]).to_bytes(size, "little")
                try:
                    pixels = read_frame(bytes(content))
                except FrameError:
                    refused += 1
                else:  # an end mark behind the pixels may be missing
                    assert_grey(pixels, GREY)
        assert refused >= 2


def test_pixels_past_the_end_of_the_file_are_missed() -> None:
    whole = made((tags_of(), [GREY.tobytes()]))
    moved = tags_of() | {273: (4, [len(whole) - 100])}
    assert reason(made((moved, [GREY.tobytes()]))).startswith("is truncated: its pixels end after")
    absent = tags_of() | {273: (4, [0, 0]), 279: (4, [0, 0]), 278: (4, [20]), 259: (3, [5])}
    assert reason(made((absent, [b""]))).startswith("lacks the pixels of strip or tile 1 of 2")
    fewer = tags_of() | {278: (4, [10])}
    assert reason(made((fewer, [GREY.tobytes()]))).startswith("is damaged: it should have 4 strips or tiles")


def refused_soon(content: bytes) -> str:
    began = time.process_time()
    said = reason(content)
    assert time.process_time() - began < 5
    return said


def test_pages_that_form_a_loop_are_refused() -> None:
    one = (tags_of(), [GREY.tobytes()])
    first = struct.unpack("<I", made(one)[4:8])[0]
    many = made(*[one] * 150)
    assert "its pages form a loop" in refused_soon(made(one, link=first))
    second = struct.unpack_from("<I", many, first + 2 + 12 * len(one[0]) + 24)[0]  # strips have two tags more
    assert "its pages form a loop" in refused_soon(many[:-4] + struct.pack("<I", second))


def test_too_many_pages_are_refused() -> None:
    page = struct.pack("<HHHII", 1, 256, 3, 1, 5)
    out = bytearray(b"II*\0" + struct.pack("<I", 8))
    for _ in range(tiff_module.MAX_PAGES + 1):
        out += page + struct.pack("<I", len(out) + len(page) + 4)
    assert "more than 100,000 pages" in refused_soon(bytes(out))


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({273: (4, [8])}, ""),
        ({256: (4, [60000]), 257: (4, [60000])}, "more than 100 megapixels"),
        ({256: (4, [10000]), 257: (4, [10000]), 258: (3, [64]), 278: (4, [10000])}, "holds 800 MB of pixels"),
        ({322: (4, [1 << 20]), 323: (4, [1 << 20]), 324: (4, [8]), 325: (4, [9])}, "most of which lie outside of it"),
        ({256: (4, [9000]), 257: (4, [9000]), 322: (4, [1]), 323: (4, [1])}, "more than 131,072"),
        ({262: (2, b"x")}, "its tag 262 is wrong"),
        ({256: (4, [50] * 10_000), 257: (4, [100_000_000])}, "its tag 256 is wrong"),
        ({32997: (4, [50] * 10_000), 257: (4, [100_000_000])}, "its tag 32997 is wrong"),
    ],
)
def test_an_implausible_size_is_refused_before_memory_is_allocated(tags: dict[int, Any], said: str) -> None:
    content = made((tags_of() | tags, [GREY.tobytes()]))
    if said:
        assert said in refused_soon(content)
    else:
        read_frame(content)


def test_tags_of_gigantic_length_or_there_twice_are_refused() -> None:
    content = bytearray(made((tags_of(), [GREY.tobytes()])))
    table = struct.unpack_from("<I", content, 4)[0]
    for entry in range(struct.unpack_from("<H", content, table)[0]):
        damaged = content.copy()
        struct.pack_into("<I", damaged, table + 2 + 12 * entry + 4, 1 << 31)
        assert "its tag " in refused_soon(bytes(damaged))
        double = content.copy()
        double[table + 2 : table + 14] = content[table + 2 + 12 * entry : table + 14 + 12 * entry]
        if entry:
            assert "there twice" in refused_soon(bytes(double))


@pytest.mark.usefixtures("inflating")
def test_compressed_data_unpack_to_what_was_promised_and_no_more() -> None:
    import imagecodecs

    flood = bytes(300_000_000)
    for method, packed in (
        (8, zlib.compress(flood, 1)),
        (34925, lzma.compress(flood, preset=0)),
        (50000, imagecodecs.zstd_encode(flood)),
    ):
        assert "is damaged" in refused_soon(made((tags_of(t259=method), [packed])))


@pytest.mark.usefixtures("inflating")
@pytest.mark.parametrize("method", [8, 34925])
def test_compressed_data_are_verified_where_they_end(method: int) -> None:
    import lzma
    import zlib

    def pack(data: bytes) -> bytes:
        return zlib.compress(data) if method == 8 else lzma.compress(data)

    noise = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    whole = pack(noise.tobytes())
    padded = pack(noise.tobytes() + bytes(5000))  # a last strip that was filled up
    assert_grey(read_frame(made((tags_of(t259=method), [padded]))), noise, within=0)
    for packed in (whole, padded):
        for at in range(20, len(packed), len(packed) // 40):
            zeros = packed[:at] + bytes(len(packed) - at)
            flipped = packed[:at] + bytes([packed[at] ^ 4]) + packed[at + 1 :]
            for damaged in (zeros, flipped):
                assert "damaged" in reason(made((tags_of(t259=method), [damaged])))


def test_strips_that_share_their_bytes_are_refused() -> None:
    rows = 2000
    tags = tags_of((rows, 50), t259=5) | {278: (4, [1]), 273: (4, [8] * rows), 279: (4, [rows * 50] * rows)}
    assert "overlap or lie past the end" in refused_soon(made((tags, [bytes(rows * 50)])))
