"""Frames that the fake backend answers with their number, for tests of streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from conftest import make_recipe

from runtime import FailedFrame, Prediction

TWO = make_recipe(("good", "scratch"))
BATCHES_IN_FLIGHT = 5
"""At most: one with the consumer, one handed over, one that was run and waits, and two that are decoded ahead."""


def frame(number: int, size: int = 64) -> np.ndarray:
    """A frame that the fake backend calls class `number` modulo K, with `number` as its first feature."""
    return np.full((size, size), number, np.uint8)


def number_of(result: Prediction | FailedFrame) -> int:
    """Which frame() a result answers."""
    assert isinstance(result, Prediction)
    return int(result.features[0])


class Source:
    """Frames without end, counted as they are drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            self.drawn += 1
            yield frame(self.drawn % 256)


def taken(results: Iterator[Prediction | FailedFrame], into: list[int]) -> None:
    """Take everything, so that what came before an error is known."""
    for result in results:
        into.append(number_of(result))
