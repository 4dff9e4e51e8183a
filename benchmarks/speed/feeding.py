"""How many frames one host can feed to engines: one process or several, one Predictor or one for each GPU.

The fake engine costs nothing, so what is measured is all that Python, decoding and post-processing leave room for.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from benchmarks.speed.engines import Subject
from benchmarks.speed.timing import alternate, per_second, ratio
from runtime import FailedFrame, Predictor
from runtime.host import usable_cores


class Feeding(NamedTuple):
    """A way to feed. predictors: in each process, each drawn from by a thread of its own. decoders: of each."""

    processes: int
    predictors: int
    decoders: int


def feeding(subject: Subject, batch: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Frames/s of `Predictor.stream` past the fake engine; every row decodes with as many threads, but for the first.

    `times_one` is the rate in relation to the first row, one decoder, pair by pair. Starting processes is not timed.
    """
    paths, many = subject.frames * repeats, max(2, min(8, usable_cores()))
    ways = (Feeding(1, 1, 1), Feeding(1, 1, many), Feeding(1, many, 1), Feeding(many, 1, 1))
    with ExitStack() as stack:
        runs = {way: _run(stack, str(subject.folder), way, batch, paths) for way in ways}
        measured = alternate(runs, rounds)
    return [
        {
            **way._asdict(),
            "batch": batch,
            "frames_per_second": per_second(len(paths), seconds),
            "times_one": ratio(measured[ways[0]], seconds),
        }
        for way, seconds in measured.items()
    ]


def _run(stack: ExitStack, bundle: str, way: Feeding, batch: int, paths: Sequence[str]) -> Callable[[], object]:
    """A call that streams all paths once, shared out to the Predictors, which are open."""
    count = max(way.processes, way.predictors)
    shares = [paths[number::count] for number in range(count)]
    if way.processes > 1:  # spawned: this process has threads, and a forked one would lack them
        spawn = multiprocessing.get_context("spawn")
        processes = stack.enter_context(ProcessPoolExecutor(count, spawn, _open, (bundle, batch)))
        return lambda: list(processes.map(partial(_stream_here, way.decoders), shares))
    opened = [stack.enter_context(Predictor(bundle, backend="fake", batch_size=batch)) for _ in range(count)]
    threads = stack.enter_context(ThreadPoolExecutor(count))
    return lambda: list(threads.map(partial(_stream, way.decoders), opened, shares))


def _stream(decoders: int, predictor: Predictor, paths: Sequence[str]) -> None:
    """Stream the paths. Raises FrameError: failed frames would make it look fast."""
    for result in predictor.stream(paths, decoders=decoders):
        if isinstance(result, FailedFrame):
            raise result.error


_opened: list[Predictor] = []
"""The Predictor of a child process."""


def _open(bundle: str, batch: int) -> None:
    _opened.append(Predictor(bundle, backend="fake", batch_size=batch))


def _stream_here(decoders: int, paths: Sequence[str]) -> None:
    _stream(decoders, _opened[0], paths)
