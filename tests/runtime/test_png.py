"""PNG pixels are those that Pillow reads, and damaged files are refused, by ISA-L and by zlib alike."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import chunk, encoded, png_of
from PIL import Image

from runtime import png
from runtime.errors import FrameError
from runtime.frames import read_frame

pytestmark = pytest.mark.usefixtures("inflating")
RNG = np.random.default_rng(0)


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    """Grey that the row filters have something to do with."""
    rows, columns = np.indices(shape[:2])
    base = 120 + 60 * np.sin(rows / 7) + 40 * np.cos(columns / 11)
    noise = RNG.integers(0, 9, shape)
    return ((base[..., None] if len(shape) == 3 else base) + noise).astype(np.uint8)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(png.decode(data, "frame").values)


def rebuilt(data: bytes, pixels: bytes, part: int, *, interlace: int = 0) -> bytes:
    """The PNG with another zlib stream, in IDAT chunks of `part` bytes and an empty one."""
    head = bytearray(data[16:29])
    head[12] = interlace
    parts = [pixels[i : i + part] for i in range(0, len(pixels), part)]
    parts.insert(1, b"")
    return b"".join([data[:8], chunk(b"IHDR", bytes(head)), *(chunk(b"IDAT", p) for p in parts), chunk(b"IEND", b"")])


def image_data(data: bytes) -> bytes:
    """The zlib stream of a PNG, read off the format."""
    found, at = b"", 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IDAT":
            found += data[at + 8 : at + 8 + length]
        at += 12 + length
    return found


IMAGES = {
    "grey": Image.fromarray(smooth((480, 481))),
    "one pixel": Image.fromarray(smooth((1, 1))),
    "one row of more than a block": Image.fromarray(smooth((1, 30_000, 3))),
    "just a block": Image.fromarray(smooth((255, 256))),
    "colour": Image.fromarray(smooth((150, 211, 3))),
    "16 bit": Image.fromarray(RNG.integers(0, 65536, (200, 301)).astype(np.uint16)),
    "noise": Image.fromarray(RNG.integers(0, 256, (300, 300), dtype=np.uint8)),
}


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("name", IMAGES)
def test_the_pixels_are_those_that_pillow_reads(name: str, level: int) -> None:
    data = encoded(IMAGES[name], compress_level=level)
    np.testing.assert_array_equal(decoded(data), np.asarray(IMAGES[name]))


@pytest.mark.parametrize("part", [1, 7, 1000, 65_535, 10**6])
def test_the_chunks_may_have_any_size(part: int) -> None:
    grey = Image.fromarray(smooth((90, 91)))
    data = encoded(grey)
    np.testing.assert_array_equal(decoded(rebuilt(data, image_data(data), part)), np.asarray(grey))


def test_a_larger_and_a_smaller_image_after_each_other_and_in_threads() -> None:
    images = [Image.fromarray(smooth((side, side + 3))) for side in (500, 20, 300, 600, 5)] * 8
    files = [encoded(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for image, result in zip(images, pool.map(decoded, files), strict=True):
            np.testing.assert_array_equal(result, np.asarray(image))


KINDS = {
    "1 bit": (0, 1, 8),
    "2 bit": (0, 2, 16),
    "4 bit": (0, 4, 32),
    "grey": (0, 8, 64),
    "16 bit": (0, 16, 128),
    "colour": (2, 8, 192),
    "16-bit colour": (2, 16, 384),
    "4-bit palette": (3, 4, 32),
    "palette": (3, 8, 64),
    "alpha": (4, 8, 128),
    "16-bit alpha": (4, 16, 256),
    "colour and alpha": (6, 8, 256),
    "16-bit colour and alpha": (6, 16, 512),
}
"""Colour type, depth, and bytes of a row of 64 pixels."""


def of_kind(name: str, rows: int) -> bytes:
    """A file of 64 pixels a row that promises 48 rows and holds `rows` of noise."""
    kind, depth, stride = KINDS[name]
    raw = b"".join(b"\0" + RNG.integers(0, 256, stride, dtype=np.uint8).tobytes() for _ in range(rows))
    palette = [(b"PLTE", RNG.integers(0, 256, 3 << depth, dtype=np.uint8).tobytes())] if kind == 3 else []
    return png_of((64, 48), depth, kind, *palette, (b"IDAT", zlib.compress(raw)))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("large", [False, True])
def test_every_kind_is_read_as_pillow_reads_it_and_whole_or_not_at_all(
    name: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(png, "_LARGEST", 100)
    whole = of_kind(name, 48)
    image = opened(whole)
    grey = image if image.mode.startswith("I") else image.convert("RGBA").convert("L")
    np.testing.assert_array_equal(
        read_frame(whole), np.rint(np.asarray(grey) / 257) if image.mode.startswith("I") else np.asarray(grey)
    )
    for rows in (0, 20, 47):
        with pytest.raises(FrameError, match="its pixels end after"):
            read_frame(of_kind(name, rows))
    cut = of_kind(name, 48)
    with pytest.raises(FrameError):
        read_frame(cut[: len(cut) * 2 // 3])


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "RGBA"])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 5), (61, 47)])
def test_interlaced_files_are_read_as_pillow_reads_them(mode: str, size: tuple[int, int]) -> None:
    """Pillow does not write them: a grey one of constant rows is one in either order, so the passes are made here."""
    values = np.asarray(Image.fromarray(smooth((size[1], size[0], 3))).convert(mode if mode != "1" else "L"))
    values = values > 127 if mode == "1" else values
    kind, depth = {"L": (0, 8), "RGB": (2, 8), "P": (3, 8), "1": (0, 1), "RGBA": (6, 8)}[mode]
    raw = b""
    for left, top, across, down in png._PASSES:
        part = values[top::down, left::across]
        if part.size:
            rows = np.packbits(part, axis=1) if mode == "1" else part
            raw += b"".join(b"\0" + row.tobytes() for row in rows)
    palette = [(b"PLTE", bytes(range(256)) * 3)] if mode == "P" else []
    for pixels, whole in ((raw, True), (raw[:-1], False)):
        data = png_of(size, depth, kind, *palette, (b"IDAT", zlib.compress(pixels)), interlaced=1)
        if whole:
            np.testing.assert_array_equal(read_frame(data), np.asarray(opened(data).convert("RGBA").convert("L")))
        else:
            with pytest.raises(FrameError, match="its pixels end after"):
                read_frame(data)


def test_of_far_more_compressed_data_than_pixels_a_bounded_part_is_read() -> None:
    """Blocks that hold nothing, 5 bytes each: as many as a file has room for, and pixels behind them."""
    nothing = b"\x00\x00\x00\xff\xff"
    pixels = zlib.compress(bytes(72))[2:]
    few, many = (png_of((8, 8), 8, 0, (b"IDAT", b"\x78\x01" + nothing * n + pixels)) for n in (1_000, 100_000))
    assert not read_frame(few).any()
    with pytest.raises(FrameError, match="its pixels end after 0 of 72"):
        read_frame(many)


def test_metadata_change_no_pixel() -> None:
    """Text that unpacks to gigabytes, a profile that is none, checksums that are wrong: of no use to a frame."""
    flood = zlib.compress(bytes(50_000_000), 9)
    extra = b"".join(chunk(b"zTXt", b"note\0\0" + flood) for _ in range(200))
    extra += chunk(b"iCCP", b"x\0\0damaged") + chunk(b"gAMA", b"")[:-1] + b"?"
    data = of_kind("grey", 48)
    head = len(b"\x89PNG\r\n\x1a\n") + len(chunk(b"IHDR", bytes(13)))
    np.testing.assert_array_equal(read_frame(data[:head] + extra + data[head:]), read_frame(data))


@pytest.mark.parametrize("length", [60, 1000, -3000, -40])
def test_a_file_that_ends_early_is_an_error_that_counts(length: int) -> None:
    data = encoded(IMAGES["noise"])
    with pytest.raises(OSError, match=r"its pixels end after \d+ of 90300 bytes"):
        decoded(data[:length])


def test_pixels_that_end_early_are_an_error() -> None:
    data = encoded(IMAGES["grey"])
    short = zlib.compress(zlib.decompress(image_data(data))[:-1])
    with pytest.raises(OSError, match="its pixels end after 231359 of 231360 bytes"):
        decoded(rebuilt(data, short, 10**6))


def pixels_of(data: bytes, decode: Callable[[bytes], np.ndarray]) -> bytes | None:
    """None if the file is refused."""
    try:
        return decode(data).tobytes()
    except Exception:
        return None


@pytest.mark.parametrize("level", [0, 6])
def test_a_file_with_any_damaged_byte_of_pixels_is_refused(level: int) -> None:
    data = encoded(IMAGES["noise"], compress_level=level)
    for at in [*range(41, len(data) - 24, 997), *range(len(data) - 24, len(data) - 12)]:  # every byte of the checksums
        damaged = bytearray(data)
        damaged[at] ^= 0x55
        assert pixels_of(bytes(damaged), decoded) is None


@pytest.mark.parametrize("name", ["grey", "noise"])
@pytest.mark.parametrize("options", [{}, {"interlace": 1}, {"compress_level": 0}])
def test_a_file_whose_rest_is_zeros_is_refused(name: str, options: dict[str, int]) -> None:
    """As a copy that broke off leaves it: zeros may inflate to as many pixels as are missing."""
    data = encoded(IMAGES[name], **options)
    for start in range(60, len(data) - 12, len(data) // 50):
        assert pixels_of(data[:start] + bytes(len(data) - start), decoded) is None


def test_a_bomb_is_not_inflated_past_the_promised_pixels() -> None:
    """What follows the pixels is never looked at: 200 MB of zeros here, of which 64 bytes are promised."""
    data = encoded(Image.fromarray(np.zeros((8, 7), np.uint8)))
    bomb = rebuilt(data, zlib.compress(bytes(200_000_000), 1), 10**6)
    assert not decoded(bomb).any()
