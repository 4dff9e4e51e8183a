"""runtime.kept: results that are kept up to so many bytes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from runtime.kept import kept


def size_of(found: NDArray[np.uint8]) -> int:
    return found.nbytes


def maker(most: int) -> tuple[list[int], Callable[..., NDArray[np.uint8]]]:
    """Sizes that were made, and a function of a size that keeps `most` bytes."""
    made: list[int] = []

    @kept(most, size_of)
    def zeros(size: int, *, unit: int = 1) -> NDArray[np.uint8]:
        made.append(size)
        return np.zeros(size * unit, np.uint8)

    return made, zeros


def test_a_result_is_made_once() -> None:
    made, zeros = maker(100)
    assert zeros(60) is zeros(60)
    assert zeros(20, unit=2) is zeros(20, unit=2)
    assert zeros(20).size == 20
    assert made == [60, 20, 20]


def test_the_oldest_go_where_bytes_are_short() -> None:
    made, zeros = maker(100)
    for size in (40, 50, 30, 50, 30, 40):
        zeros(size)
    assert made == [40, 50, 30, 40]


def test_what_is_too_large_is_not_kept_and_drives_nothing_out() -> None:
    made, zeros = maker(100)
    for size in (90, 101, 101, 90):
        zeros(size)
    assert made == [90, 101, 101]


def test_threads_may_ask_at_the_same_time() -> None:
    _, zeros = maker(100)
    with ThreadPoolExecutor(4) as pool:
        sizes = [5 + n % 20 for n in range(2000)]
        assert [found.size for found in pool.map(zeros, sizes)] == sizes
