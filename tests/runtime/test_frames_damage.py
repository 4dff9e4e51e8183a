"""Frames from files that are damaged, cut, too large or no frame."""

from __future__ import annotations

import contextlib
import gc
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grey import COLOUR, DEEP, GREY, palette_image, save_pages
from pictures import assert_grey, encoded, png_of, reason
from PIL import Image

from runtime import pixels as pixels_module
from runtime.errors import FrameError
from runtime.frames import page_count, read_frame


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("absent.png", "no such file"),
        ("absent.tif#2", "no such file"),
        ("folder", "is a folder, not a frame"),
        ("empty.png", "is empty (0 bytes)"),
        ("text.png", "is not a readable PNG, JPEG, BMP, TIFF file"),
        ("picture.gif", "is not a readable PNG, JPEG, BMP, TIFF file"),
    ],
)
def test_what_is_not_a_frame_is_refused_with_the_reason(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("verdict,good\n")
    (tmp_path / "picture.gif").write_bytes(encoded(Image.fromarray(GREY), "GIF"))
    assert reason(tmp_path / name) == expected
    if "#" not in name:
        with pytest.raises(FrameError) as caught:
            page_count(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {expected}"


@pytest.mark.parametrize(
    "name", ["", "nul\0byte.png", "x" * 5000, "x" * 5000 + ".tif#2", "frame.tif#" + "9" * 5000], ids=range(5)
)
def test_impossible_file_names_are_frame_errors(name: str) -> None:
    assert reason(name).startswith(("no such file", "cannot be opened ("))


FILES = {
    "grey.png": encoded(Image.fromarray(GREY), "PNG"),
    "16 bit.png": encoded(Image.fromarray(DEEP), "PNG"),
    "palette.png": encoded(palette_image(), "PNG"),
    "grey.jpg": encoded(Image.fromarray(GREY), "JPEG"),
    "progressive.jpg": encoded(Image.fromarray(COLOUR), "JPEG", progressive=True),
    "grey.bmp": encoded(Image.fromarray(GREY), "BMP"),
    "grey.tif": encoded(Image.fromarray(GREY), "TIFF"),
    "16 bit.tif": encoded(Image.fromarray(DEEP), "TIFF"),
    "palette.tif": encoded(palette_image(), "TIFF"),
    "deflate.tif": encoded(Image.fromarray(GREY), "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_cut_anywhere_is_refused_or_whole(name: str, tmp_path: Path) -> None:
    content, path = FILES[name], tmp_path / name
    path.write_bytes(content)
    whole = read_frame(path)
    refused = []
    lengths = [*range(1, len(content), max(1, len(content) // 40)), *range(len(content) - 12, len(content))]
    for length in lengths:
        path.write_bytes(content[:length])
        try:
            pixels = read_frame(path)
        except FrameError:
            refused.append(length)
        else:
            assert_grey(pixels, whole)  # only trailing bytes that carry no pixels may be missing
    assert refused[-1] >= 0.75 * len(content)
    assert refused == lengths[: len(refused)]


def test_counting_the_pages_of_a_cut_stack_raises_frame_errors_only(tmp_path: Path) -> None:
    path = save_pages(tmp_path / "stack.tif", GREY, GREY, GREY)
    content = path.read_bytes()
    refused = 0
    for length in range(0, len(content), 23):
        path.write_bytes(content[:length])
        try:
            assert 1 <= page_count(path) <= 3
        except FrameError:
            refused += 1
    assert refused


def test_an_unloaded_image_of_a_truncated_file_is_a_frame_error(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(FILES["grey.png"][:-200])
    with Image.open(path) as image:
        assert reason(image).startswith("is damaged or truncated (")


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""
    return png_of((width, height), 8, 0, (b"IDAT", b""))


def bmp_header(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(info), 0, 0, 14 + len(info)) + info


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (20_000, 10_000), (65_000, 65_000)])
@pytest.mark.parametrize("header", [png_header, bmp_header])
def test_a_file_of_more_than_100_megapixels_is_refused_unread(
    header: Any, width: int, height: int, tmp_path: Path
) -> None:
    path = tmp_path / "frame.img"
    path.write_bytes(header(width, height))
    assert reason(path) == f"is {width}x{height} pixels, more than 100 megapixels"


def test_a_later_page_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_pages(tmp_path / "stack.tif", GREY[:4, :4], GREY)
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 100)
    assert_grey(read_frame(f"{path}#1"), GREY[:4, :4])
    assert reason(f"{path}#2").startswith("is 32x24 pixels, more than")
    assert reason(Image.fromarray(GREY)).startswith("is 32x24 pixels, more than")


@pytest.mark.parametrize("page", ["", "#1", "#7"])
def test_no_file_is_left_to_the_garbage_collector(page: str, tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png_header(10_001, 10_000))
    (tmp_path / "cut.tif").write_bytes(FILES["grey.tif"][:300])
    (tmp_path / "good.tif").write_bytes(FILES["grey.tif"])
    save_pages(tmp_path / "stack.tif", GREY, GREY)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for path in tmp_path.iterdir():
            with contextlib.suppress(FrameError):
                page_count(path)
            with contextlib.suppress(FrameError):
                read_frame(f"{path}{page}")
        gc.collect()
    assert [str(warning.message) for warning in seen if warning.category is ResourceWarning] == []


def test_a_moving_png_is_refused(tmp_path: Path) -> None:
    first, second = (np.full((8, 9), value, np.uint8) for value in (10, 200))
    Image.fromarray(first).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(second)])
    assert reason(tmp_path / "a.png").startswith("is an animation of 2 pictures")


def test_a_device_is_no_frame() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no devices among the files of this system")
    assert reason("/dev/zero") == "cannot be opened (it is a device or a pipe, not a file)"
