"""How fast an opened engine is, alone and with everything around it, on frames of its input size."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .backends import Backend
from .golden import Frames, png_file
from .host import usable_cores
from .pipeline import Pipeline, Setup
from .stream import stream

PERCENTILES = (50, 95, 99)
LEAST_CALLS = 3


def measured_speed(pipeline: Pipeline, setup: Setup, frames: Frames, seconds: float) -> dict[str, Any]:
    """Latency in ms at batch 1, frames/s at the pipeline's batch size. seconds: for all four parts together.

    "end to end" is from a PNG file in memory to the Prediction. Raises BackendError.
    """
    share, backend, most, recipe = seconds / 4, pipeline.backend, pipeline.batch_size, setup.recipe
    files = [png_file(frame) for frame in frames]
    one = itertools.cycle([frames[i : i + 1] for i in range(len(frames))])
    file = itertools.cycle(files)
    batch = frames[np.arange(most) % len(frames)]
    return {
        "batch": most,
        "engine_ms": _percentiles(_timed(lambda: backend.run(next(one), recipe), share)),
        "end_to_end_ms": _percentiles(_timed(lambda: pipeline.answer([pipeline.prepare(next(file), setup)]), share)),
        "engine_frames_per_second": _throughput(lambda: backend.run(batch, recipe), most, backend, share),
        "end_to_end_frames_per_second": _streamed(pipeline, files, setup, share),
    }


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, after one that is not counted."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < LEAST_CALLS or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In ms, each one of the samples (nearest rank), and n, how many there are."""
    ranked = sorted(seconds)
    found: dict[str, float] = {f"p{p}": 1e3 * ranked[-(-p * len(ranked) // 100) - 1] for p in PERCENTILES}
    return {**found, "n": len(ranked)}


def _throughput(call: Callable[[], object], frames: int, backend: Backend, seconds: float) -> float:
    """Frames/s with as many calls at a time as keep the engine busy."""
    with ThreadPoolExecutor(backend.in_flight) as pool:

        def together() -> None:
            list(pool.map(lambda _: call(), range(backend.in_flight)))

        taken = _timed(together, seconds)
    return frames * backend.in_flight * len(taken) / sum(taken)


def _streamed(pipeline: Pipeline, files: Sequence[bytes], setup: Setup, seconds: float) -> float:
    """Frames/s of a stream of PNG files, from the second batch on."""
    end = time.perf_counter() + seconds

    def source() -> Iterator[bytes]:
        for index in itertools.count():
            if index >= (LEAST_CALLS + 1) * pipeline.batch_size and time.perf_counter() >= end:
                return
            yield files[index % len(files)]

    began, count = 0.0, 0
    answers: Iterable[object] = stream(pipeline, source(), lambda: setup, min(8, usable_cores()))
    for number, _ in enumerate(answers, 1):
        if number == pipeline.batch_size:
            began = time.perf_counter()
        count = number - pipeline.batch_size
    return count / (time.perf_counter() - began)
