"""Alternating timing, and the statistics of a figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

PERCENTILES = (50, 90, 95, 99)


Name = TypeVar("Name", bound=Hashable)
PAUSE_S = 0.01
"""Pause between two runs: the threads of an engine spin for a while after their work and would slow the next run."""


def alternate(runs: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, list[float]]:
    """Seconds of each run in each round, after one warm-up of each; the order rotates from round to round.

    Changes of the machine (clock, other programs) then affect all runs alike, so ratios taken pair by pair hold even
    where the times drift.
    """
    for call in runs.values():
        call()
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99 and max in milliseconds, and n, the number of samples.

    A percentile is one of the samples (nearest rank, no interpolation). So p99 of fewer than 100 samples is the
    maximum. Raises ValueError without samples.
    """
    if not seconds:
        raise ValueError("percentiles of no samples")
    ranked = sorted(seconds)
    found: dict[str, float] = {}
    for percent in PERCENTILES:
        rank = -(-percent * len(ranked) // 100)  # rounded up, counted from 1
        found[f"p{percent}"] = 1e3 * ranked[rank - 1]
    return {**found, "max": 1e3 * ranked[-1], "n": len(ranked)}


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median over the rounds of a / b. If both are seconds of the same work, b is that many times faster."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of y over x; 0 with fewer than two different x."""
    if len(set(x)) < 2:
        return 0.0
    return float(np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)[0])


def per_second(frames: int, seconds: Sequence[float]) -> float:
    """Frames per second in the median round."""
    return frames / statistics.median(seconds)
