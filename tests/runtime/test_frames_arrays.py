"""Frames from arrays and Pillow images, and frames prepared for the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder
from grey import COLOUR, DEEP, GREY, RNG
from pictures import assert_grey, luma, reason, scaled
from PIL import Image

from runtime.errors import FrameError
from runtime.frames import cut_rows, describe, prepare, read_frame
from runtime.recipe import FrameOptions


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


def test_options_out_of_range_are_refused() -> None:
    for options in ({"ignore_top": -1}, {"ignore_bottom": -58}, {"white_level": 0}, {"white_level": 65536}):
        with pytest.raises(ValueError, match="must lie in"):
            FrameOptions(**options)


def test_a_masked_array_is_read_where_no_pixel_is_masked_and_refused_elsewhere() -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(read_frame(np.ma.masked_array(values, np.zeros((8, 8), bool))), values)
    with pytest.raises(FrameError, match="is a masked array without 3 of its values; fill them"):
        read_frame(np.ma.masked_array(values, values > 60))
