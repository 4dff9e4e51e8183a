"""Frames from files: what every format holds becomes 8-bit grey."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from grey import COLOUR, DEEP, GREY, INDICES, LUMA, palette_image, save_pages
from pictures import assert_grey, encoded, luma, png_of, reason, scaled
from PIL import Image

from runtime.frames import cut_rows, page_count, read_frame
from runtime.recipe import FrameOptions


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".PNG"])
@pytest.mark.parametrize("kind", [str, Path])
def test_grey_files_keep_their_pixels(suffix: str, kind: type, tmp_path: Path) -> None:
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(GREY).save(path)
    assert_grey(read_frame(kind(path)), GREY)


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path: Path) -> None:
    path = tmp_path / "frame.jpg"
    smooth = np.add.outer(np.arange(24) * 4, np.arange(32) * 4).astype(np.uint8)
    Image.fromarray(smooth).save(path, quality=95)
    assert_grey(read_frame(path), smooth, within=4)
    with Image.open(path) as image:
        assert_grey(read_frame(path), np.asarray(image))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_keeps_its_pixels(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "frame.tif"
    Image.fromarray(GREY).save(path, compression=compression)
    assert_grey(read_frame(path), GREY)


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "frame.tif"
    path.write_bytes(encoded(Image.fromarray(GREY), "PNG"))
    assert_grey(read_frame(path), GREY)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("white", [65535, 4095, 1])
def test_16_bit_files_are_scaled_by_the_white_level_alone(suffix: str, white: int, tmp_path: Path) -> None:
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(DEEP).save(path)
    assert_grey(read_frame(path, FrameOptions(white_level=white)), scaled(DEEP, white))


def test_a_dark_16_bit_frame_stays_dark(tmp_path: Path) -> None:
    path = tmp_path / "frame.tif"
    Image.fromarray(np.array([[100, 300]], np.uint16)).save(path)
    assert read_frame(path).tolist() == [[0, 1]]
    assert read_frame(path, FrameOptions(white_level=300)).tolist() == [[85, 255]]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bit_images_of_both_byte_orders_agree(mode: str) -> None:
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (32, 24), DEEP.astype(order).tobytes())
    assert_grey(read_frame(image), scaled(DEEP))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_a_palette_is_looked_up(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"frame{suffix}"
    palette_image().save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
    assert_grey(read_frame(path), np.array(LUMA)[INDICES])
    assert_grey(read_frame(palette_image()), np.array(LUMA)[INDICES])


def test_a_palette_with_transparency_is_looked_up_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    palette_image().save(path, transparency=b"\x00\xff\x80\x10")
    assert_grey(read_frame(path), np.array(LUMA)[INDICES])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_one_bit_files_are_black_and_white(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(GREY > 127).save(path)
    with Image.open(path) as image:
        assert image.mode == "1"
    assert_grey(read_frame(path), np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_colour_becomes_luma(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(COLOUR).save(path)
    assert_grey(read_frame(path), np.rint(luma(COLOUR)), within=1)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("saved", [False, True], ids=["image", "file"])
def test_alpha_is_ignored(mode: str, saved: bool, tmp_path: Path) -> None:
    image = Image.fromarray(GREY).convert(mode)
    image.putalpha(Image.fromarray(255 - GREY))
    if saved:
        image.save(tmp_path / "frame.png")
    assert_grey(read_frame(tmp_path / "frame.png" if saved else image), GREY)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_other_colour_models_are_read_as_pillow_converts_them(mode: str) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    assert_grey(read_frame(image), np.asarray(image.convert("L")))


def test_32_bit_whole_numbers_are_read_as_16_bit() -> None:
    assert_grey(read_frame(Image.fromarray(DEEP.astype(np.int32))), scaled(DEEP))


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_whole_numbers_out_of_range_are_refused(value: int) -> None:
    image = Image.fromarray(np.array([[0, value]], np.int32))
    assert reason(image) == "holds 32-bit values outside 0 ... 65535; save it with 8 or 16 bits"


@pytest.mark.parametrize("saved", [False, True], ids=["image", "file"])
def test_float_images_lie_between_0_and_1(saved: bool, tmp_path: Path) -> None:
    path = tmp_path / "frame.tif"
    for values, good in (([[0.0, 0.25, 1.0]], True), ([[0.0, 1.5]], False)):
        image = Image.fromarray(np.array(values, np.float32))
        image.save(path)
        source = path if saved else image
        if good:
            assert read_frame(source).tolist() == [[0, 64, 255]]
        else:
            assert reason(source) == "float frames lie in [0, 1]; this one in [0, 1.5]"


def test_pages_are_chosen_by_number(tmp_path: Path) -> None:
    pages = [GREY, GREY[::-1], GREY[:10, :12]]
    path = save_pages(tmp_path / "stack.tif", *pages)
    assert page_count(path) == 3
    for number, page in enumerate(pages, 1):
        assert_grey(read_frame(f"{path}#{number}"), page)


def test_pages_of_palettes_are_looked_up_too(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    palette_image().save(path, save_all=True, append_images=[palette_image().transpose(Image.Transpose.ROTATE_180)])
    assert_grey(read_frame(f"{path}#2"), np.array(LUMA)[INDICES[::-1, ::-1]])


def test_a_file_of_several_pages_needs_a_page(tmp_path: Path) -> None:
    path = save_pages(tmp_path / "stack.tif", GREY, GREY)
    assert reason(path) == f"holds 2 pages; name one of them: {path}#1 ... {path}#2"


@pytest.mark.parametrize("page", ["0", "3", "999999999"])
def test_a_page_that_is_not_there_is_refused(page: str, tmp_path: Path) -> None:
    path = save_pages(tmp_path / "stack.tif", GREY, GREY)
    assert reason(f"{path}#{page}") == f"there is no page {int(page)}; the file holds pages 1 to 2"


def test_page_1_of_a_single_frame_is_the_frame(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    Image.fromarray(GREY).save(path)
    assert_grey(read_frame(f"{path}#1"), GREY)
    assert page_count(path) == 1


def test_a_file_whose_name_ends_like_a_page_is_read_as_itself(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "wafer", "PNG")
    Image.fromarray(GREY[::-1]).save(tmp_path / "wafer#1", "PNG")
    assert_grey(read_frame(tmp_path / "wafer#1"), GREY[::-1])


def test_a_real_palette_frame_with_a_text_bar_is_looked_up(shared: Path) -> None:
    path = shared / "fixtures" / "zeiss-tiff" / "1908248.tif"
    with Image.open(path) as image:
        assert image.mode == "P"
        indices = np.asarray(image)
        expected = luma(np.asarray(image.convert("RGB")))
    pixels = read_frame(path)
    assert pixels.shape == (768, 1024)
    assert_grey(pixels, np.rint(expected), within=1)
    assert (pixels != indices).any()
    kept = cut_rows(pixels, FrameOptions(ignore_bottom=80), "f")
    assert kept.shape == (688, 1024)


def test_all_real_tiffs_are_read_as_they_are(shared: Path) -> None:
    paths = sorted((shared / "fixtures" / "zeiss-tiff").glob("*.tif"))
    assert paths
    for path in paths:
        with Image.open(path) as image:
            size = image.size
        assert page_count(path) == 1
        pixels = read_frame(path)
        assert pixels.shape == size[::-1]
        assert pixels.std() > 0


def test_16_bit_colour_is_not_read_with_another_white_than_its_own(tmp_path: Path) -> None:
    path, row = tmp_path / "a.png", np.array([0, 1024, 2048, 4095], ">u2").repeat(3)
    path.write_bytes(png_of((4, 1), 16, 2, (b"IDAT", zlib.compress(b"\0" + row.tobytes()))))
    assert read_frame(path).tolist() == [[0, 4, 8, 15]]
    with Image.open(path) as image:
        for source in (path, image):
            said = reason(source, FrameOptions(white_level=4095))
            assert "holds 16-bit colour, which cannot be scaled to white_level=4095" in said


def test_a_tiff_that_stores_white_as_0_is_inverted_at_every_depth(tmp_path: Path) -> None:
    ramp = np.array([[0, 100, 255]])
    plain = Image.fromarray(ramp.astype(np.uint8))
    plain.save(tmp_path / "8.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "8.tif") as image:
        assert image.tag_v2[262] == 0
        expected = np.asarray(image)
    assert read_frame(tmp_path / "8.tif").tolist() == expected.tolist()
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "16.tif", tiffinfo={262: 0})
    Image.fromarray((ramp / 255).astype(np.float32)).save(tmp_path / "float.tif", tiffinfo={262: 0})
    for name in ("16.tif", "float.tif"):
        with Image.open(tmp_path / name) as image:
            assert image.tag_v2[262] == 0
            assert "stores white as 0, which is understood up to 8 bits only" in reason(image)  # by Pillow
        assert read_frame(tmp_path / name).tolist() == [[255, 155, 0]]
