"""PNG pixels by way of ISA-L are those that Pillow reads, and damaged files stay errors."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.png import _LARGEST, decoded

RNG = np.random.default_rng(0)


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    """Grey that the row filters have something to do with."""
    rows, columns = np.indices(shape[:2])
    base = 120 + 60 * np.sin(rows / 7) + 40 * np.cos(columns / 11)
    noise = RNG.integers(0, 9, shape)
    return ((base[..., None] if len(shape) == 3 else base) + noise).astype(np.uint8)


def encoded(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


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
    "one row of more than a block": Image.fromarray(smooth((1, 70_000))),
    "just a block": Image.fromarray(smooth((255, 256))),
    "colour": Image.fromarray(smooth((150, 211, 3))),
    "16 bit": Image.fromarray(RNG.integers(0, 65536, (200, 301)).astype(np.uint16)),
    "noise": Image.fromarray(RNG.integers(0, 256, (300, 300), dtype=np.uint8)),
}


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("name", IMAGES)
def test_the_pixels_are_those_that_pillow_reads(name: str, level: int) -> None:
    data = encoded(IMAGES[name], compress_level=level)
    image = opened(data)
    result = decoded(image)
    assert result is not image
    assert result.mode == opened(data).mode
    np.testing.assert_array_equal(np.asarray(result), np.asarray(IMAGES[name]))


@pytest.mark.parametrize("part", [1, 7, 1000, 65_535, 10**6])
def test_the_chunks_may_have_any_size(part: int) -> None:
    grey = Image.fromarray(smooth((90, 91)))
    data = encoded(grey)
    np.testing.assert_array_equal(np.asarray(decoded(opened(rebuilt(data, image_data(data), part)))), np.asarray(grey))


def test_a_larger_and_a_smaller_image_after_each_other_and_in_threads() -> None:
    images = [Image.fromarray(smooth((side, side + 3))) for side in (500, 20, 300, 600, 5)] * 8
    files = [encoded(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for image, result in zip(images, pool.map(lambda data: np.asarray(decoded(opened(data))), files), strict=True):
            np.testing.assert_array_equal(result, np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_other_modes_are_left_to_pillow(mode: str) -> None:
    image = opened(encoded(Image.fromarray(smooth((30, 40))).convert(mode)))
    assert decoded(image) is image
    image.load()


def test_interlaced_loaded_large_and_other_files_are_left_to_pillow() -> None:
    grey = Image.fromarray(smooth((8, 8)))
    data = encoded(grey)
    interlaced = opened(rebuilt(data, image_data(data), 100, interlace=1))
    loaded = opened(data)
    loaded.load()
    wide = opened(encoded(Image.new("L", (8192, _LARGEST // 8192))))
    stream = io.BytesIO()
    grey.save(stream, "BMP")
    for image in (interlaced, loaded, wide, opened(stream.getvalue()), grey):
        assert decoded(image) is image


def test_an_open_file_is_left_to_pillow(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(encoded(IMAGES["grey"]))
    with Image.open(path) as image:
        assert decoded(image) is image


@pytest.mark.parametrize("length", [60, 1000, -3000, -40])
def test_a_file_that_ends_early_is_an_error_that_counts(length: int) -> None:
    data = encoded(IMAGES["noise"])
    with pytest.raises(OSError, match=r"its pixels end after \d+ of 90300 bytes"):
        decoded(opened(data[:length]))


def test_pixels_that_end_early_are_an_error() -> None:
    data = encoded(IMAGES["grey"])
    short = zlib.compress(zlib.decompress(image_data(data))[:-1])
    with pytest.raises(OSError, match="its pixels end after 231359 of 231360 bytes"):
        decoded(opened(rebuilt(data, short, 10**6)))


def pixels_of(data: bytes, decode: Callable[[Image.Image], object]) -> bytes | None:
    """None if the file is refused."""
    image = opened(data)
    try:
        return np.asarray(decode(image) or image).tobytes()
    except Exception:
        return None


@pytest.mark.parametrize("level", [0, 6])
def test_what_pillow_refuses_is_refused_whichever_byte_is_damaged(level: int) -> None:
    data = encoded(IMAGES["noise"], compress_level=level)
    places = [*range(41, len(data) - 24, 997), *range(len(data) - 24, len(data) - 12)]  # every byte of the checksums
    refused = 0
    for at in places:
        damaged = bytearray(data)
        damaged[at] ^= 0x55
        ours = pixels_of(bytes(damaged), decoded)
        assert ours == pixels_of(bytes(damaged), Image.Image.load)
        refused += ours is None
    assert refused > 90


def test_a_bomb_is_not_inflated_past_the_promised_pixels() -> None:
    """What follows the pixels is never looked at: 200 MB of zeros here, of which 64 bytes are promised."""
    data = encoded(Image.fromarray(np.zeros((8, 7), np.uint8)))
    bomb = rebuilt(data, zlib.compress(bytes(200_000_000), 1), 10**6)
    assert not np.asarray(decoded(opened(bomb))).any()
