"""Frames per second over batch sizes, for engines and PyTorch in one run, and the time of each step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.engines import Subject
from benchmarks.speed.timing import alternate, per_second, ratio
from runtime.errors import PredictorError
from runtime.frames import Prepared, decode_frame, prepare, read_frame
from runtime.pipeline import Job, Pipeline
from runtime.recipe import Recipe

Run: TypeAlias = "Callable[[NDArray[np.uint8], Recipe], object]"
"""Runs one batch, uint8 [batch, height, width], with a recipe."""
STEPS = ("decode", "resize", "copy_in", "compute", "copy_out", "postprocess")


def throughput(
    subject: Subject, others: Mapping[str, Run], batches: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each batch size and runner; `times_base` is its speed relative to the first row of its batch size.

    others: runners that are not engines (PyTorch). They come first, so the first of them is the base. An engine runs
    `in_flight` batches at a time. One whose `max_batch` is smaller than the batch has no row there. Raises
    PredictorError if there are no rows.
    """
    pixels = prepared_frames(subject, max(batches))
    rows = []
    flights = {str(name): backend.in_flight for name, backend in subject.engines.items()}
    with ThreadPoolExecutor(max(flights.values(), default=1)) as pool:
        for batch in batches:
            rows += _rows(subject, others, pixels[:batch], rounds, partial(_together, pool), flights)
    if not rows:
        least = max(backend.max_batch for backend in subject.engines.values())
        raise PredictorError(f"no engine takes a batch of {min(batches)}; the largest here is {least}")
    return rows


def _rows(
    subject: Subject,
    others: Mapping[str, Run],
    frames: NDArray[np.uint8],
    rounds: int,
    together: Callable[[Callable[[], object], int], object],
    flights: Mapping[str, int],
) -> list[dict[str, Any]]:
    """The rows of one batch size."""
    batch = len(frames)
    runs: dict[str, Callable[[], object]] = {name: partial(run, frames, subject.recipe) for name, run in others.items()}
    for engine, backend in subject.engines.items():
        if batch <= backend.max_batch:
            runs[str(engine)] = partial(together, partial(backend.run, frames, subject.recipe), backend.in_flight)
    if not runs:
        return []
    measured = {
        name: [taken / flights.get(name, 1) for taken in seconds] for name, seconds in alternate(runs, rounds).items()
    }
    base = next(iter(measured))
    return [
        {
            "engine": name,
            "batch": batch,
            "frames_per_second": per_second(batch, seconds),
            "best_frames_per_second": batch / min(seconds),
            "base": base,
            "times_base": ratio(measured[base], seconds),
            "rounds": rounds,
        }
        for name, seconds in measured.items()
    ]


def _together(pool: Executor, call: Callable[[], object], count: int) -> None:
    """Several calls at a time; waits for all."""
    for future in [pool.submit(call) for _ in range(count)]:
        future.result()


def time_split(subject: Subject, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds per frame of each step of `Predictor.predict`, called in sequence.

    decode: file to grey pixels. resize: to the graph's input. copy_in: frames to one batch. compute: `Backend.run`
    (on a GPU with its transfers). copy_out: rows out of the batch. postprocess: map, score and Prediction.
    overhead: the share of the total that is not `compute`.
    """
    rows = []
    for name, backend in subject.engines.items():
        pipeline = subject.pipeline(backend, batch)
        paths = [subject.frames[i % len(subject.frames)] for i in range(pipeline.batch_size)]
        _steps(pipeline, subject, paths)
        found = [_steps(pipeline, subject, paths) for _ in range(rounds)]
        ms = {step: 1e3 * statistics.median(turn[step] for turn in found) / len(paths) for step in STEPS}
        overhead = 1 - ms["compute"] / sum(ms.values())
        rows.append({"engine": str(name), "batch": len(paths), "ms": ms, "overhead": overhead})
    return rows


def _steps(pipeline: Pipeline, subject: Subject, paths: Sequence[str]) -> dict[str, float]:
    """Seconds of each of STEPS for one batch."""
    setup, encoder = subject.setup, pipeline.encoder
    at = [time.perf_counter()]
    grey = [decode_frame(path, setup.options, path).pixels for path in paths]
    at.append(time.perf_counter())
    ready = [prepare(pixels, encoder, setup.options, "frame") for pixels in grey]
    at.append(time.perf_counter())
    frames = np.stack(ready)
    at.append(time.perf_counter())
    outputs = pipeline.backend.run(frames, setup.recipe)
    at.append(time.perf_counter())
    for row in range(len(paths)):
        outputs.defect_map[row].copy(), outputs.features[row].copy()
    at.append(time.perf_counter())
    jobs = [Job(Prepared(pixels, (1, 1), path, path), setup) for pixels, path in zip(ready, paths, strict=True)]
    at.append(time.perf_counter())
    pipeline.finish(jobs, outputs, 0.0)
    at.append(time.perf_counter())
    decode, resize, copy_in, compute, copy_out, _, finish = (b - a for a, b in pairwise(at))
    # `finish` copies the rows too.
    return dict(zip(STEPS, (decode, resize, copy_in, compute, copy_out, max(finish - copy_out, 0.0)), strict=True))


def prepared_frames(subject: Subject, count: int) -> NDArray[np.uint8]:
    """The frames as the graph takes them, uint8 [count, height, width], repeated if there are fewer."""
    encoder, options = subject.manifest.encoder, subject.recipe.frame
    used = subject.frames[:count]
    ready = [prepare(read_frame(path, options), encoder, options, path) for path in used]
    return np.stack([ready[i % len(ready)] for i in range(count)])
