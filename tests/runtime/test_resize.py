"""runtime.resize: the bicubic matrix and the resize of frames against Pillow itself."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from runtime.resize import bicubic_matrix, resize

SIZES = [
    ((96, 80), (64, 64)),
    ((64, 64), (64, 64)),
    ((480, 640), (240, 240)),
    ((40, 33), (64, 48)),
    ((1, 7), (5, 3)),
    ((101, 57), (1, 1)),
]


def resized_by_matrix(image: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    return bicubic_matrix(image.shape[0], target[0]) @ image @ bicubic_matrix(image.shape[1], target[1]).T


def random_image(size: tuple[int, int]) -> np.ndarray:
    """Fine noise and hard edges: the filter overshoots on them."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, size)
    image[: size[0] // 3] = np.where(rng.random((size[0] // 3, size[1])) < 0.5, 0, 255)
    return image.astype(np.uint8)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_matrix_is_pillows_resize_in_float_mode(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = random_image(source).astype(np.float32)
    pillow = Image.fromarray(image).resize(target[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_allclose(resized_by_matrix(image, target) / 255, np.asarray(pillow) / 255, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_a_frame_is_resized_by_the_matrices_and_rounded_once(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = random_image(source)
    found = resize(image, target)
    exact = np.clip(resized_by_matrix(image.astype(np.float64), target), 0, 255)
    assert found.dtype == np.uint8
    assert found.shape == target
    assert np.abs(found - exact).max() < 0.5001


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_a_resized_frame_is_within_one_level_of_pillows(source: tuple[int, int], target: tuple[int, int]) -> None:
    # Pillow clips after each of its two passes; so there are no hard edges here, as there are above.
    image = np.random.default_rng(1).integers(60, 190, source).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling.BICUBIC))
    assert np.abs(resize(image, target).astype(int) - pillow).max() <= 1


def test_parts_of_a_large_frame_fit_together() -> None:
    """It takes several products a pass; each part must land in its place."""
    image = np.random.default_rng(2).integers(60, 190, (2100, 1900)).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize((240, 336), Image.Resampling.BICUBIC))
    assert np.abs(resize(image, (336, 240)).astype(int) - pillow).max() <= 1


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1100, 30), (1141, 33)),
        ((700, 900), (740, 1000)),
        ((9000, 9), (40, 4)),
        ((60, 1300), (15, 1250)),
        ((3, 2), (9, 700)),
    ],
)
def test_a_long_axis_is_resized_in_parts_that_fit_together(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(60, 190, source).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling.BICUBIC))
    assert np.abs(resize(image, target).astype(int) - pillow).max() <= 1
    exact = resized_by_matrix(image.astype(np.float64), target)
    assert np.abs(resize(image, target) - np.clip(exact, 0, 255)).max() < 0.5001


@pytest.mark.parametrize("target", [62_400, 60_000, 65_535, 92_160, 240])
def test_the_memory_of_a_resize_does_not_grow_with_a_side(target: int) -> None:
    """Block windows are a whole number of pixels apart, and drift from where they should be: 12.5 for 62,400."""
    image = np.zeros((65_000, 100), np.uint8)
    image[-1] = 255
    result = resize(image, (target, 96))  # the buffers of a thread stay
    tracemalloc.start()
    try:
        again = resize(image, (target, 96))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(again, result)
    assert result[-1].min() > 200 or target == 240
    assert peak - again.nbytes < 32 << 20


def test_a_thread_keeps_buffers_of_a_bounded_size() -> None:
    found = []

    def run(size: tuple[int, int], target: tuple[int, int]) -> None:
        tracemalloc.start()
        resize(np.zeros(size, np.uint8), target)
        found.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()

    for size, target in (((65_535, 600), (448, 512)), ((3000, 3000), (2880, 2880)), ((600, 65_535), (512, 448))):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run, size, target).result()
    assert max(found) < 48 << 20


def test_a_view_is_resized_like_its_copy() -> None:
    image = random_image((60, 90))
    np.testing.assert_array_equal(resize(image[5:50, 7:], (32, 32)), resize(image[5:50, 7:].copy(), (32, 32)))
    np.testing.assert_array_equal(resize(image.T, (32, 32)), resize(image.T.copy(), (32, 32)))


@pytest.mark.parametrize(("source", "target"), [(480, 240), (64, 64), (20, 64), (1, 8)])
def test_a_flat_image_stays_flat(source: int, target: int) -> None:
    matrix = bicubic_matrix(source, target)
    assert matrix.shape == (target, source)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)


def test_the_same_size_is_the_identity() -> None:
    np.testing.assert_array_equal(bicubic_matrix(9, 9), np.eye(9))


def test_reduction_is_antialiased() -> None:
    """Every source pixel counts: a line pattern of one pixel becomes grey instead of an alias."""
    stripes = np.where(np.arange(300) % 2, 255.0, 0.0)
    reduced = bicubic_matrix(300, 100) @ stripes
    assert np.abs(reduced[2:-2] - 127.5).max() < 5


def test_nothing_is_left_of_the_frame_before() -> None:
    """A thread's buffers are used again for frames of the same size, and made anew for others."""
    frames = {size: random_image(size) for size, _ in SIZES}
    alone = {}
    for size, frame in frames.items():
        resize(np.full((3, 2), 255, np.uint8), (2, 2))
        alone[size] = resize(frame, (64, 48))
    for size in (*frames, *reversed(frames)):
        resize(np.full(size, 255, np.uint8), (64, 48))
        np.testing.assert_array_equal(resize(frames[size], (64, 48)), alone[size])


def test_threads_resize_side_by_side() -> None:
    frames = [np.random.default_rng(i).integers(0, 256, (120, 150), dtype=np.uint8) for i in range(16)]
    expected = [resize(frame, (64, 48)) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = list(pool.map(lambda frame: resize(frame, (64, 48)), frames))
            np.testing.assert_array_equal(found, expected)
