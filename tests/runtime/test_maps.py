"""runtime.maps: up-sampling, the frame score, and regions, each against a slower or an independent reading."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from runtime.maps import (
    _BLOCK,
    _DENSE,
    Region,
    _upsample_by_blocks,
    around_peak,
    find_regions,
    frame_score,
    frame_scores,
    upsample,
    upsampling_matrix,
)

EIGHT = np.ones((3, 3), int)


def interpolated(cells: list[float], size: int) -> list[float]:
    """Bilinear up-sampling with half-pixel centres, one pixel at a time; beyond the outer centres the edge goes on."""
    result = []
    for pixel in range(size):
        place = (pixel + 0.5) * len(cells) / size - 0.5
        left = math.floor(place)
        share = place - left
        at = [cells[min(max(index, 0), len(cells) - 1)] for index in (left, left + 1)]
        result.append((1 - share) * at[0] + share * at[1])
    return result


def smoothed(values: list[float], sigma: float) -> list[float]:
    """Gaussian smoothing cut off at 4 sigma, one pixel at a time; the edge pixels go on outside."""
    radius = math.ceil(4 * sigma)
    if radius == 0:
        return values
    taps = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    result = []
    for pixel in range(len(values)):
        near = [values[min(max(pixel + o, 0), len(values) - 1)] for o in range(-radius, radius + 1)]
        result.append(sum(t * v for t, v in zip(taps, near, strict=True)) / sum(taps))
    return result


CASES = [(12, 4, 0.0), (12, 4, 1.5), (13, 5, 0.7), (5, 5, 0.0), (5, 5, 2.0), (3, 7, 0.4), (1, 1, 1.0), (40, 1, 3.0)]


@pytest.mark.parametrize(("size", "cells", "sigma"), CASES)
def test_the_matrix_does_what_the_slow_reading_does(size: int, cells: int, sigma: float) -> None:
    values = np.random.default_rng(size).random(cells)
    expected = smoothed(interpolated(values.tolist(), size), sigma)
    np.testing.assert_allclose(upsampling_matrix(size, cells, sigma) @ values, expected, atol=1e-6)


@pytest.mark.parametrize(("size", "cells", "sigma"), [*CASES, (8, 4, 50.0), (240, 15, 4.0), (1024, 20, 17.3)])
def test_rows_sum_to_one_and_nothing_is_negative(size: int, cells: int, sigma: float) -> None:
    matrix = upsampling_matrix(size, cells, sigma)
    assert matrix.shape == (size, cells)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    assert matrix.min() >= 0


@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_the_matrix_is_the_same_from_both_ends(sigma: float) -> None:
    matrix = upsampling_matrix(30, 7, sigma)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


def test_without_a_change_of_size_and_smoothing_nothing_changes() -> None:
    np.testing.assert_array_equal(upsampling_matrix(6, 6, 0.0), np.eye(6, dtype=np.float32))


def test_the_matrix_is_shared_and_cannot_be_written() -> None:
    assert upsampling_matrix(9, 3, 1.0) is upsampling_matrix(9, 3, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        upsampling_matrix(9, 3, 1.0)[0, 0] = 1


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (50, 171)])
@pytest.mark.parametrize("smoothing", [0.0, 4.0])
def test_a_constant_map_stays_constant(value: float, size: tuple[int, int], smoothing: float) -> None:
    full = upsample(np.full((4, 5), value, np.float32), size, (64, 80), smoothing)
    assert full.shape == size
    assert full.dtype == np.float32
    np.testing.assert_allclose(full, value, atol=1e-5)


def test_a_map_is_upsampled_rows_first_and_columns_alike() -> None:
    patches = np.random.default_rng(3).random((3, 4)).astype(np.float32)
    columns = [smoothed(interpolated(column, 24), 2.0) for column in patches.T.tolist()]
    expected = [smoothed(interpolated(list(row), 20), 1.0) for row in zip(*columns, strict=True)]
    # 2 px of a 24 x 40 image: at 20 columns, half as wide.
    np.testing.assert_allclose(upsample(patches, (24, 20), (24, 40), 2.0), expected, atol=1e-5)


PARTS = [slice(None), slice(3, 40), slice(500, 530), slice(-20, None), slice(600, 9999)]


@pytest.mark.parametrize("smoothing", [0.0, 6.0, 40.0])
@pytest.mark.parametrize(("size", "grid"), [((700, 1100), (40, 70)), ((1030, 13), (4, 9)), ((700, 512), (1, 100))])
def test_block_by_block_the_map_is_the_same(size: tuple[int, int], grid: tuple[int, int], smoothing: float) -> None:
    """Blocks of 512 pixels: here one or more to an axis, and the last is small."""
    assert max(size[0] * grid[0], size[1] * grid[1]) <= _DENSE
    maps = np.random.default_rng(4).random((2, *grid)).astype(np.float32)
    image = 16 * grid[0], 16 * grid[1]
    for part in PARTS:
        whole = upsample(maps, size, image, smoothing, part)
        blocks = _upsample_by_blocks(maps, size, image, smoothing, part)
        assert blocks.shape == whole.shape
        assert blocks.dtype == np.float32
        np.testing.assert_allclose(blocks, whole, atol=1e-6)
    alone, both = (_upsample_by_blocks(given, size, image, smoothing, slice(None)) for given in (maps[0], maps))
    np.testing.assert_array_equal(alone, both[0])


def test_a_map_of_many_patches_is_made_block_by_block() -> None:
    """No matrix is as large as the whole frame's: only the result and a few blocks take memory."""
    size, grid = (3 * _BLOCK, 5 * _BLOCK), (300, 500)
    assert grid[1] * size[1] > _DENSE
    patches = np.random.default_rng(5).random(grid).astype(np.float32)
    tracemalloc.start()
    try:
        full = upsample(patches, size, size, 3.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - full.nbytes < 5 << 20  # the two matrices would take seven
    part = upsample(patches, size, size, 3.0, slice(100, 900))
    np.testing.assert_allclose(part, full[100:900], atol=1e-6)


def test_values_stay_within_0_and_1() -> None:
    patches = np.random.default_rng(0).integers(0, 2, (9, 9)).astype(np.float32)
    for smoothing in (0.0, 0.3, 8.0):
        full = upsample(patches, (100, 130), (144, 144), smoothing)
        assert full.min() >= 0
        assert full.max() <= 1


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_the_map_looks_the_same_at_every_size(factor: int) -> None:
    patches = np.random.default_rng(1).random((6, 6)).astype(np.float32)
    small = upsample(patches, (96, 96), (96, 96), 6.0)
    large = upsample(patches, (96 * factor, 96 * factor), (96, 96), 6.0)
    averaged = large.reshape(96, factor, 96, factor).mean(axis=(1, 3))
    np.testing.assert_allclose(averaged, small, atol=5e-3)


def test_a_hot_patch_is_found_where_it_lies() -> None:
    patches = np.zeros((4, 6), np.float32)
    patches[1, 4] = 1
    full = upsample(patches, (80, 120), (80, 120), 3.0)
    row, column = np.unravel_index(full.argmax(), full.shape)
    assert 20 <= row < 40
    assert 80 <= column < 100


@pytest.mark.parametrize(("size", "count"), [((10, 10), 1), ((1, 1), 1), ((7, 7), 1), ((30, 20), 6), ((100, 250), 250)])
def test_the_frame_score_is_the_mean_of_the_highest_percent(size: tuple[int, int], count: int) -> None:
    values = np.random.default_rng(0).random(size).astype(np.float32)
    expected = sorted(values.ravel().tolist())[-count:]
    assert frame_score(values) == pytest.approx(sum(expected) / count, abs=1e-6)


def test_the_frame_score_is_a_plain_number_and_leaves_the_map_alone() -> None:
    values = np.linspace(1, 0, 400, dtype=np.float32).reshape(20, 20)
    before = values.copy()
    assert type(frame_score(values)) is float
    np.testing.assert_array_equal(values, before)
    assert frame_score(np.zeros((5, 5), np.float32)) == 0.0
    assert frame_score(np.ones((5, 5), np.float32)) == 1.0


@pytest.mark.parametrize("size", [(1, 1), (13, 17), (240, 240)])
def test_maps_are_scored_together_as_alone(size: tuple[int, int]) -> None:
    """Also where the bound, guessed from some of the pixels, leaves too few of another map's."""
    rng = np.random.default_rng(5)
    spots = np.zeros((4, *size), np.float32)
    spots.reshape(4, -1)[1, ::31] = 1  # every pixel that the guess looks at, and no other
    spots[2] = rng.random(size)
    spots[3] = 0.5
    scores = frame_scores(spots)
    assert scores.dtype == np.float32
    assert scores.tolist() == [frame_score(spot) for spot in spots]
    count = max(1, round(0.01 * spots[0].size))
    expected = [np.sort(spot.ravel())[-count:].mean(dtype=np.float64) for spot in spots]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(60, 60), (61, 83), (1, 1)])
def test_maps_are_upsampled_together_as_alone(size: tuple[int, int]) -> None:
    patches = np.random.default_rng(2).random((2, 3, 7, 5)).astype(np.float32)
    full = upsample(patches, size, (56, 40), 2.0)
    assert full.shape == (2, 3, *size)
    for row in range(2):
        for column in range(3):
            np.testing.assert_array_equal(full[row, column], upsample(patches[row, column], size, (56, 40), 2.0))


# Regions


def expected_regions(mask: np.ndarray, values: np.ndarray) -> list[Region]:
    """Regions by scipy and loops, strongest first."""
    labels, count = ndimage.label(mask, EIGHT)
    regions = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(labels == number)
        regions.append(
            Region(
                x=int(columns.min()),
                y=int(rows.min()),
                width=int(columns.max() - columns.min() + 1),
                height=int(rows.max() - rows.min() + 1),
                area=rows.size,
                centroid=(float(columns.mean()), float(rows.mean())),
                peak=float(values[rows, columns].max()),
            )
        )
    return sorted(regions, key=lambda region: (-region.peak, region.y, region.x))


def drawn(*lines: str) -> np.ndarray:
    return np.array([[mark == "#" for mark in line] for line in lines])


def assert_same(mask: np.ndarray, values: np.ndarray) -> tuple[Region, ...]:
    found = find_regions(mask, values)
    expected = expected_regions(mask, values)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("x", "y", "width", "height", "area", "peak"):
            assert getattr(mine, name) == getattr(theirs, name), name
        assert mine.centroid == pytest.approx(theirs.centroid)
    return found


SHAPES = {
    "empty": (drawn("....", "...."), 0),
    "full": (drawn("####", "####"), 1),
    "one pixel": (drawn("#"), 1),
    "corner pixel": (drawn("....", "...#"), 1),
    "corners": (drawn("#..#", "....", "#..#"), 4),
    "falling diagonal": (drawn("#...", ".#..", "..#.", "...#"), 1),
    "rising diagonal": (drawn("...#", "..#.", ".#..", "#..."), 1),
    "a gap of one": (drawn("#.#", "#.#"), 2),
    "a gap of one, slanted": (drawn("##...", "...##"), 2),
    "touching at a corner": (drawn("##..", "..##"), 1),
    "row ends do not meet": (drawn("...#", "#...", "...."), 2),
    "snake": (drawn("#####", "....#", "#####", "#....", "#####"), 1),
    "comb, joined last": (drawn("#.#.#", "#.#.#", "#####"), 1),
    "comb, joined first": (drawn("#####", "#.#.#", "#.#.#"), 1),
    "spiral": (drawn("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######"), 1),
    "ring with a dot": (drawn("#####", "#...#", "#.#.#", "#...#", "#####"), 2),
    "joined after the fact": (drawn("#...#...#", ".#.#.#.#.", "..#...#..", "........."), 1),
    "chessboard": (np.indices((6, 6)).sum(axis=0) % 2 == 0, 1),
    "stripes": (np.indices((6, 6))[0] % 2 == 0, 3),
    "one row": (drawn("#.##.###"), 3),
    "one column": (drawn("#", ".", "#", "#"), 2),
}


@pytest.mark.parametrize(("mask", "count"), list(SHAPES.values()), ids=list(SHAPES))
def test_regions_are_those_of_scipy(mask: np.ndarray, count: int) -> None:
    values = np.random.default_rng(0).random(mask.shape).astype(np.float32)
    assert len(assert_same(mask, values)) == count


@pytest.mark.parametrize("density", [0.02, 0.2, 0.4, 0.6, 0.9])
def test_regions_of_random_masks_are_those_of_scipy(density: float) -> None:
    rng = np.random.default_rng(int(density * 100))
    for _ in range(25):
        shape = tuple(rng.integers(1, 24, 2))
        assert_same(rng.random(shape) < density, rng.random(shape).astype(np.float32))


def test_a_large_noisy_mask_is_labelled_as_scipy_does() -> None:
    rng = np.random.default_rng(5)
    mask = rng.random((200, 300)) < 0.3
    found = find_regions(mask, rng.random(mask.shape).astype(np.float32))
    assert len(found) == ndimage.label(mask, EIGHT)[1]
    assert sum(region.area for region in found) == mask.sum()


def test_a_long_snake_is_one_region() -> None:
    mask = np.zeros((401, 50), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    (region,) = find_regions(mask, mask.astype(np.float32))
    assert region.area == mask.sum()
    assert (region.x, region.y, region.width, region.height) == (0, 0, 50, 401)


def test_regions_that_are_equally_strong_come_in_reading_order() -> None:
    mask = drawn("..#.#", ".....", "#...#")
    found = find_regions(mask, mask.astype(np.float32))
    assert [(region.y, region.x) for region in found] == [(0, 2), (0, 4), (2, 0), (2, 4)]


def test_the_peak_is_taken_inside_the_mask_alone() -> None:
    mask = drawn("##..", "....")
    values = np.array([[0.1, 0.2, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9]], np.float32)
    (region,) = find_regions(mask, values)
    assert region == Region(x=0, y=0, width=2, height=1, area=2, centroid=(0.5, 0.0), peak=float(np.float32(0.2)))


def test_a_peak_below_its_background_has_a_region_too() -> None:
    assert around_peak(np.full((1, 1), 0.1, np.float32), background=0.9).tolist() == [[True]]
    assert around_peak(np.array([[0.1, 0.3]], np.float32), background=0.9).tolist() == [[False, True]]


def test_numbers_of_a_region_are_plain() -> None:
    (region,) = find_regions(drawn("#"), np.ones((1, 1), np.float32))
    whole = (region.x, region.y, region.width, region.height, region.area)
    assert {type(value) for value in whole} == {int}
    assert {type(value) for value in (*region.centroid, region.peak)} == {float}
