"""JPEG files are whole or refused, wherever they end early, and hostile ones are refused before they cost anything."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded as encoded_as
from pictures import reason
from PIL import Image

from runtime import jpeg
from runtime.errors import FrameError
from runtime.frames import page_count, read_frame

RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (33, 41, 4), dtype=np.uint8)
ROWS, COLUMNS = np.indices((70, 90))
SMOOTH = (120 + 60 * np.sin(ROWS / 9) + 50 * np.cos(COLUMNS / 7)).astype(np.uint8)
MODES = {"L": NOISE[:, :, 0], "RGB": NOISE[:, :, :3], "CMYK": NOISE}
STREAMS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "coarse": {"quality": 20},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "full chroma": {"subsampling": 0},
}


def encoded(pixels: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    image = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()) if mode else pixels
    return encoded_as(image, "JPEG", **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stream", STREAMS)
def test_the_pixels_are_those_that_pillow_decodes(mode: str, stream: str) -> None:
    data = encoded(MODES[mode], mode, **STREAMS[stream])
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(read_frame(data), np.asarray(image.convert("L")))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stream", STREAMS)
def test_data_that_end_early_are_refused_though_the_end_mark_is_there(mode: str, stream: str) -> None:
    """libjpeg fills the rest with grey and warns, which nobody hears. Only of the last block may some bits be lost."""
    data = encoded(MODES[mode], mode, **STREAMS[stream])
    whole = np.asarray(jpeg.decode(data, "frame").values).astype(int)
    accepted = 0
    for length in range(20, len(data) - 2, 3):
        try:
            pixels = np.asarray(jpeg.decode(data[:length] + b"\xff\xd9", "frame").values).astype(int)
        except Exception:
            continue
        accepted += 1
        changed = np.argwhere((pixels != whole).reshape(*whole.shape[:2], -1).any(axis=2))
        assert changed.size == 0 or (changed >= (32, 32)).all() or (changed >= (16, 16)).all(), length
        assert length > len(data) - 40, length
    assert accepted < 12


@pytest.mark.parametrize("grey", [0, 60, 128, 255])
@pytest.mark.parametrize("stream", STREAMS)
def test_flat_jpeg_frames_are_accepted_as_whole(grey: int, stream: str) -> None:
    """What data that end early look like, and these do not."""
    options = {key: value for key, value in STREAMS[stream].items() if key != "subsampling"}
    data = encoded(np.full((48, 64), grey, np.uint8), **options)
    assert abs(int(read_frame(data)[47, 63]) - grey) <= 3


def test_half_a_file_is_refused_with_and_without_an_end_mark() -> None:
    data = encoded(SMOOTH)
    for cut in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9", data[:-2], data[:-1]):
        assert reason(cut) == "is damaged or truncated (its JPEG data end too early)"


def test_data_after_the_first_picture_are_ignored(tmp_path: Path) -> None:
    first, second = Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[::-1].copy())
    first.save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=[second])
    first.save(tmp_path / "one.jpg")
    assert page_count(tmp_path / "two.jpg") == 1
    np.testing.assert_array_equal(read_frame(tmp_path / "two.jpg"), read_frame(tmp_path / "one.jpg"))
    np.testing.assert_array_equal(read_frame(f"{tmp_path / 'two.jpg'}#1"), read_frame(tmp_path / "one.jpg"))
    with pytest.raises(FrameError, match="there is no page 2"):
        read_frame(f"{tmp_path / 'two.jpg'}#2")


def scans(count: int, side: int) -> bytes:
    """A progressive frame with its first scan again and again."""
    data = encoded(np.full((side, side), 100, np.uint8), progressive=True)
    starts = [k for k in range(len(data) - 1) if data[k : k + 2] == b"\xff\xda"]
    return data[: starts[0]] + data[starts[0] : starts[1]] * count + data[starts[0] :]


@pytest.mark.parametrize(("count", "side"), [(5000, 16), (90, 4000)])
def test_more_scans_than_a_frame_needs_are_refused_at_once(count: int, side: int) -> None:
    data = scans(count, side)
    began = time.process_time()
    assert reason(data).startswith("is a JPEG of ")
    assert time.process_time() - began < 5


def test_hostile_markers_end_soon() -> None:
    data = encoded(SMOOTH)
    began = time.process_time()
    assert "more than 10,000 segments" in reason(data[:2] + b"\xff\xfe\x00\x02" * 5_000_000 + data[2:])
    assert "end too early" in reason(data[:2] + b"\xff" * 20_000_000)
    at = data.index(b"\xff\xda")
    assert reason(data[: at + 30] + b"\xff\x00" * 5_000_000)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (1, 0xC3, "is a lossless or arithmetic JPEG"),
        (1, 0xC9, "is a lossless or arithmetic JPEG"),
        (4, 12, "is a JPEG of 12 bits"),
        (9, 2, "is damaged or truncated"),
        (5, 0xFF, "is damaged or truncated"),
    ],
)
def test_unsupported_kinds_are_refused_by_name(at: int, value: int, said: str) -> None:
    data = bytearray(encoded(SMOOTH))
    frame = data.index(b"\xff\xc0")
    data[frame + at] = value
    assert reason(bytes(data)).startswith(said)


def test_the_place_in_a_larger_file_bounds_the_picture() -> None:
    data = encoded(SMOOTH)
    assert jpeg.decode(data, "frame", most=(90, 70)).values.size == (90, 70)
    with pytest.raises(FrameError, match="90x70 pixels of JPEG data in the place of 90x64"):
        jpeg.decode(data, "frame", most=(90, 64))


@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_tag_is_read(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = jpeg.decode(encoded(SMOOTH, exif=exif), "frame")
    assert stored.orientation == (orientation if 1 <= orientation <= 8 else 1)
    for damaged in (b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + bytes(7)):
        assert jpeg.exif_orientation(damaged) == 1
