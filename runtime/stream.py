"""Streaming: decode, inference and post-processing at the same time, in order, in bounded memory."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from .backends import Outputs
from .errors import BackendError, FrameError
from .frames import FrameSource
from .pipeline import Job, Pipeline, Setup
from .prediction import FailedFrame, Prediction

_DECODED_TOGETHER = 8
"""Frames handed to a decoder at once: handing over costs about a twentieth of decoding a small PNG."""


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    error: BaseException | None = None


_Answers: TypeAlias = "Future[list[Prediction | FailedFrame]]"


def stream(
    pipeline: Pipeline, sources: Iterable[FrameSource], setup: Callable[[], Setup], decoders: int
) -> Iterator[Prediction | FailedFrame]:
    """Predictions in the order of `sources`; at most four batches and those in the engine are held at a time.

    `decoders` threads prepare frames and turn outputs into predictions, one thread forms batches, as many threads as
    the backend wants run the engine; the consumer's own thread is left to the consumer. A bad frame yields a
    FailedFrame. An error of the engine, or of iterating `sources`, is raised after everything before it was yielded;
    that of the engine names the frames that were drawn and not answered. Leaving the loop early stops the threads.
    """
    done: queue.Queue[_Answers | _End] = queue.Queue(maxsize=1)
    stop = threading.Event()
    pool = ThreadPoolExecutor(decoders, thread_name_prefix="sem-clip-decode")
    worker = threading.Thread(
        target=_run, args=(pipeline, sources, setup, pool, decoders, done, stop), name="sem-clip-infer", daemon=True
    )
    worker.start()
    try:
        while True:
            item = done.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield from item.result()
    finally:
        stop.set()
        _drain(done)
        worker.join()
        pool.shutdown(cancel_futures=True)


def _run(
    pipeline: Pipeline,
    sources: Iterable[FrameSource],
    setup: Callable[[], Setup],
    pool: ThreadPoolExecutor,
    decoders: int,
    done: queue.Queue[_Answers | _End],
    stop: threading.Event,
) -> None:
    """Form batches, run them, hand them over in order."""
    at_once = pipeline.backend.in_flight
    running: deque[tuple[list[Job | FailedFrame], Future[tuple[Outputs, float]] | None]] = deque()

    def hand_over(until: int) -> None:
        while len(running) > until:
            entries, answer = running[0]
            outputs, seconds = (None, 0.0) if answer is None else answer.result()
            running.popleft()
            _put(done, pool.submit(_finish, pipeline, entries, outputs, seconds), stop)

    end = _End()
    with ThreadPoolExecutor(at_once, thread_name_prefix="sem-clip-engine") as engine:
        try:
            try:
                for entries in _batches(_prepared(pipeline, sources, setup, pool, decoders, stop), pipeline.batch_size):
                    if stop.is_set():
                        return
                    jobs = [entry for entry in entries if isinstance(entry, Job)]
                    running.append((entries, engine.submit(pipeline.infer, jobs) if jobs else None))
                    hand_over(at_once - 1)
            except BackendError:
                raise
            except Exception as exc:
                end = _End(exc)
            hand_over(0)
        except BackendError as exc:
            end = _End(_naming(exc, [entry for entries, _ in running for entry in entries]))
        except BaseException as exc:
            end = _End(exc)
    _put(done, end, stop)


def _naming(error: BackendError, entries: list[Job | FailedFrame]) -> BackendError:
    """The same error with the frames that it left without an answer."""
    names = [entry.frame.source if isinstance(entry, Job) else entry.source for entry in entries]
    which = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} frames)"
    named = BackendError(f"{error}; without an answer: {which} and all after it", names)
    named.__cause__ = error
    return named


def _batches(prepared: Iterable[Job | FailedFrame], size: int) -> Iterator[list[Job | FailedFrame]]:
    """Consecutive frames that share a setup, `size` at most."""
    entries: list[Job | FailedFrame] = []
    setup: Setup | None = None
    try:
        for entry in prepared:
            swapped = isinstance(entry, Job) and setup is not None and entry.setup is not setup
            if entries and (swapped or len(entries) >= size):
                yield entries
                entries, setup = [], None
            entries.append(entry)
            if isinstance(entry, Job):
                setup = entry.setup
    except Exception:
        if entries:
            yield entries
        raise
    if entries:
        yield entries


def _prepared(
    pipeline: Pipeline,
    sources: Iterable[FrameSource],
    setup: Callable[[], Setup],
    pool: ThreadPoolExecutor,
    decoders: int,
    stop: threading.Event,
) -> Iterator[Job | FailedFrame]:
    """Prepared frames in order, with two batches decoded ahead."""
    ahead: deque[Future[list[Job | FailedFrame | Exception]]] = deque()
    failure: Exception | None = None
    exhausted = False
    iterator = iter(sources)
    index = waiting = 0
    # As many at once as leave every decoder something to do.
    together = max(1, min(_DECODED_TOGETHER, pipeline.batch_size // decoders))
    while not stop.is_set():
        while not exhausted and waiting + together <= 2 * pipeline.batch_size:
            drawn: list[tuple[FrameSource, Setup, int]] = []
            while not exhausted and len(drawn) < together:
                try:
                    drawn.append((next(iterator), setup(), index))
                    index += 1
                except StopIteration:
                    exhausted = True
                except Exception as exc:  # the caller's own iterator broke: answer what came before, then say so
                    exhausted, failure = True, exc
            if drawn:
                ahead.append(pool.submit(_prepare_or_fail, pipeline, drawn))
                waiting += len(drawn)
        if not ahead:
            break
        for entry in ahead.popleft().result():
            if isinstance(entry, Exception):
                raise entry
            waiting -= 1
            yield entry
    if failure is not None:
        raise failure


def _prepare_or_fail(
    pipeline: Pipeline, drawn: list[tuple[FrameSource, Setup, int]]
) -> list[Job | FailedFrame | Exception]:
    """What became of each frame, up to the first error that is not the frame's."""
    entries: list[Job | FailedFrame | Exception] = []
    for source, setup, index in drawn:
        try:
            entries.append(pipeline.prepare(source, setup, index))
        except FrameError as exc:
            entries.append(FailedFrame(exc.source, exc))
        except Exception as exc:  # unforeseen: the frames before it are answered, then it is raised
            entries.append(exc)
            break
    return entries


def _finish(
    pipeline: Pipeline, entries: list[Job | FailedFrame], outputs: Outputs | None, seconds: float
) -> list[Prediction | FailedFrame]:
    """Predictions in the place of jobs; the rows of `outputs` are those of the jobs alone."""
    jobs = [entry for entry in entries if isinstance(entry, Job)]
    assert outputs is not None or not jobs
    predictions = iter(() if outputs is None else pipeline.finish(jobs, outputs, seconds))
    return [entry if isinstance(entry, FailedFrame) else next(predictions) for entry in entries]


def _put(done: queue.Queue[_Answers | _End], item: _Answers | _End, stop: threading.Event) -> None:
    """Hand over, unless nobody takes any more."""
    while not stop.is_set():
        try:
            done.put(item, timeout=0.1)
            return
        except queue.Full:
            continue


def _drain(done: queue.Queue[_Answers | _End]) -> None:
    while True:
        try:
            done.get_nowait()
        except queue.Empty:
            return
