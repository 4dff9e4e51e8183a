"""runtime.frames: what is read, how its pixels are understood, and what is refused."""

from __future__ import annotations

import contextlib
import gc
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder
from pictures import assert_grey, encoded, luma, png_of, reason, scaled
from PIL import Image

from runtime import pixels as pixels_module
from runtime.errors import FrameError
from runtime.frames import cut_rows, describe, page_count, prepare, read_frame
from runtime.recipe import FrameOptions

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 32), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (24, 32)).astype(np.uint16)
PALETTE = [250, 250, 250, 0, 0, 0, 200, 0, 0, 0, 0, 200]
LUMA = [250, 0, 60, 23]
"""PALETTE as ITU-R 601 luma."""
INDICES = RNG.integers(0, 4, (24, 32), dtype=np.uint8)


def palette_image() -> Image.Image:
    image = Image.fromarray(INDICES)
    image.putpalette(PALETTE)
    return image


def save_pages(path: Path, *arrays: np.ndarray) -> Path:
    first, *rest = (Image.fromarray(array) for array in arrays)
    first.save(path, save_all=True, append_images=rest)
    return path


# Files


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


# Arrays


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("white", [65535, 4095])
def test_16_bit_arrays_of_both_byte_orders_agree(dtype: str, white: int) -> None:
    assert_grey(read_frame(DEEP.astype(dtype), FrameOptions(white_level=white)), scaled(DEEP, white))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_float_arrays_are_scaled_from_0_to_1(dtype: Any) -> None:
    assert read_frame(np.array([[0, 0.25, 0.5, 1]], dtype)).tolist() == [[0, 64, 128, 255]]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY),
        (GREY[:, :, None], GREY),
        (DEEP[:, :, None], scaled(DEEP)),
        (np.repeat(GREY[:, :, None], 3, axis=2), GREY),
        (np.repeat(DEEP[:, :, None], 3, axis=2), scaled(DEEP)),
        (COLOUR.astype(np.float64) / 255, np.rint(luma(COLOUR))),
        (COLOUR.astype(np.uint16) * 257, np.rint(luma(COLOUR))),
        (COLOUR, np.rint(luma(COLOUR))),
        (GREY[:1, :1], GREY[:1, :1]),
    ],
    ids=["HW", "HW1", "HW1 deep", "HW3 grey", "HW3 deep", "HW3 float", "HW3 16 bit", "HW3", "one pixel"],
)
def test_arrays_of_one_and_three_channels_are_read(array: np.ndarray, expected: np.ndarray) -> None:
    assert_grey(read_frame(array), expected, within=1 if array.ndim == 3 and array.shape[2] == 3 else 0)


@pytest.mark.parametrize("white", [255, 1000])
def test_8_bit_frames_do_not_know_a_white_level(white: int) -> None:
    assert_grey(read_frame(GREY, FrameOptions(white_level=white)), GREY)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int16, np.int32, np.int64, np.uint32, complex, object, "U3", "V2"])
def test_arrays_of_other_types_are_refused(dtype: Any) -> None:
    array = np.zeros((4, 4), dtype)
    assert reason(array) == f"has type {array.dtype}; expected uint8, uint16 or float in [0, 1]"


@pytest.mark.parametrize(
    "shape", [(), (5,), (4, 4, 2), (4, 4, 4), (3, 4, 5), (1, 4, 4, 3), (0, 4), (4, 0), (0, 0, 3), (4, 4, 0)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    assert reason(np.zeros(shape, dtype)).startswith("has shape [")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3)])
def test_float_arrays_that_are_not_finite_are_refused(value: float, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape)
    array.flat[-1] = value
    assert reason(array) == "holds NaN or infinite values"


@pytest.mark.parametrize(("low", "high"), [(-0.001, 1.0), (0.0, 1.001), (0.0, 255.0)])
def test_float_arrays_outside_0_and_1_are_refused_with_their_range(low: float, high: float) -> None:
    assert reason(np.array([[low, high]])) == f"float frames lie in [0, 1]; this one in [{low:g}, {high:g}]"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize("shape", [(10_001, 10_000), (10_001, 10_000, 1), (10_001, 10_000, 3)])
def test_an_array_of_more_than_100_megapixels_is_refused_untouched(dtype: type, shape: tuple[int, ...]) -> None:
    assert reason(np.broadcast_to(np.zeros((), dtype), shape)) == "is 10000x10001 pixels, more than 100 megapixels"


@pytest.mark.parametrize("source", [None, 5, [[0]]], ids=lambda v: type(v).__name__)
def test_anything_else_is_refused_with_its_type(source: object) -> None:
    name = type(source).__name__
    assert reason(source) == f"a frame is a path, bytes, a file object, a Pillow image or a numpy array, not {name}"


@pytest.mark.parametrize("array", [GREY, GREY[:, :, None], DEEP, COLOUR, GREY / np.float32(255)], ids=range(5))
def test_a_frame_is_a_copy(array: np.ndarray) -> None:
    mine = array.copy()
    pixels = read_frame(mine)
    before = pixels.copy()
    mine[...] = 0
    np.testing.assert_array_equal(pixels, before)
    assert not np.shares_memory(pixels, mine)
    pixels[...] = 7  # and the caller may write to it
    assert not mine.any()


def test_a_pillow_image_is_copied_too() -> None:
    image = Image.fromarray(GREY.copy())
    pixels = read_frame(image)
    image.paste(0, (0, 0, 32, 24))
    assert_grey(pixels, GREY)


@pytest.mark.parametrize("array", [GREY, DEEP, COLOUR, GREY / 255], ids=["8 bit", "16 bit", "colour", "float"])
@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::-1], np.s_[::3, ::2]], ids=["up", "left", "every third"])
def test_views_are_read_as_their_copies(array: np.ndarray, view: Any) -> None:
    np.testing.assert_array_equal(read_frame(array[view]), read_frame(np.ascontiguousarray(array[view])))
    np.testing.assert_array_equal(read_frame(np.asfortranarray(array)), read_frame(array))


def test_a_memory_mapped_frame_is_called_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "frame.raw"
    path.write_bytes(GREY.tobytes())
    mapped = np.memmap(path, np.uint8, "r", shape=GREY.shape)
    assert_grey(read_frame(mapped), GREY)
    assert describe(mapped) == str(path)


def test_a_frame_is_called_by_its_path_or_its_place(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    Image.fromarray(GREY).save(path)
    assert describe(path) == describe(str(path)) == str(path)
    assert describe(GREY) == "frame"
    assert describe(GREY, 3) == "frame[3]"
    assert describe(Image.fromarray(GREY), 0) == "frame[0]"
    with Image.open(path) as image:
        assert describe(image, 3) == str(path)


# Preparing


def test_a_frame_of_the_input_size_is_left_alone() -> None:
    pixels = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    prepared = prepare(pixels, make_encoder(), FrameOptions(), "f")
    assert_grey(prepared, pixels)


@pytest.mark.parametrize("shape", [(24, 32), (200, 64), (64, 65), (1, 1), (300, 500)])
def test_a_frame_of_another_size_is_squashed_as_pillow_does(shape: tuple[int, int]) -> None:
    pixels = RNG.integers(60, 190, shape, dtype=np.uint8)  # no overshoot, which Pillow clips twice
    encoder = make_encoder(image_size=(48, 80), input_size=(48, 80))
    prepared = prepare(pixels, encoder, FrameOptions(), "f")
    assert_grey(prepared, np.asarray(Image.fromarray(pixels).resize((80, 48), Image.Resampling.BICUBIC)), within=1)


def test_with_the_resize_in_the_graph_the_size_must_be_exact() -> None:
    encoder = make_encoder(input_size=(96, 128))
    good = RNG.integers(0, 256, (96, 128), dtype=np.uint8)
    assert_grey(prepare(good, encoder, FrameOptions(), "f"), good)
    taller = np.concatenate([good, good[:10]])
    assert_grey(prepare(taller, encoder, FrameOptions(ignore_bottom=10), "f"), good)
    for wrong in (taller, good.T, good[:64, :64]):
        with pytest.raises(FrameError) as caught:
            prepare(wrong, encoder, FrameOptions(), "lot7.png")
        height, width = wrong.shape
        assert str(caught.value).startswith(f"lot7.png: is {height}x{width} (height x width, ignored rows cut)")
        assert "exported for frames of 96x128" in str(caught.value)


@pytest.mark.parametrize(("top", "bottom"), [(0, 0), (5, 0), (0, 7), (5, 7), (23, 0), (0, 23)])
def test_ignored_rows_never_reach_the_encoder(top: int, bottom: int) -> None:
    options = FrameOptions(ignore_top=top, ignore_bottom=bottom)
    np.testing.assert_array_equal(cut_rows(GREY, options, "f"), GREY[top : 24 - bottom])
    painted = GREY.copy()
    painted[:top] = 255
    painted[24 - bottom :] = 255
    prepared = prepare(GREY, make_encoder(), options, "f")
    assert prepared.shape == (64, 64)
    np.testing.assert_array_equal(prepared, prepare(painted, make_encoder(), options, "f"))


@pytest.mark.parametrize(("top", "bottom"), [(24, 0), (0, 24), (12, 12), (1000, 1000)])
def test_a_frame_whose_rows_would_all_be_ignored_is_refused(top: int, bottom: int) -> None:
    with pytest.raises(FrameError) as caught:
        prepare(GREY, make_encoder(), FrameOptions(ignore_top=top, ignore_bottom=bottom), "bar.png")
    assert str(caught.value) == (
        f"bar.png: has 24 rows and all of them would be ignored (ignore_top={top}, ignore_bottom={bottom})"
    )


def test_a_prepared_frame_can_go_to_an_engine_as_it_is() -> None:
    wide = RNG.integers(0, 256, (64, 128), dtype=np.uint8)[:, ::2]
    for pixels in (wide, GREY):
        prepared = prepare(pixels, make_encoder(), FrameOptions(), "f")
        assert prepared.flags.c_contiguous


# Real files


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


def test_a_moving_png_is_refused(tmp_path: Path) -> None:
    first, second = (np.full((8, 9), value, np.uint8) for value in (10, 200))
    Image.fromarray(first).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(second)])
    assert reason(tmp_path / "a.png").startswith("is an animation of 2 pictures")


def test_a_device_is_no_frame() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no devices among the files of this system")
    assert reason("/dev/zero") == "cannot be opened (it is a device or a pipe, not a file)"


def test_options_out_of_range_are_refused() -> None:
    for options in ({"ignore_top": -1}, {"ignore_bottom": -58}, {"white_level": 0}, {"white_level": 65536}):
        with pytest.raises(ValueError, match="must lie in"):
            FrameOptions(**options)


def test_a_masked_array_is_read_where_no_pixel_is_masked_and_refused_elsewhere() -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(read_frame(np.ma.masked_array(values, np.zeros((8, 8), bool))), values)
    with pytest.raises(FrameError, match="is a masked array without 3 of its values; fill them"):
        read_frame(np.ma.masked_array(values, values > 60))
