"""Streaming: decode, inference and post-processing at the same time, in order, in bounded memory.

    the caller's iterable
        │ next()
    sem-clip-infer ── frames ──▶ sem-clip-decode: decode and resize
        │           ◀── prepared ──┘
        │           ── batches ──▶ sem-clip-engine: run the engine
        │           ◀── outputs ───┘
        │           ── outputs ──▶ sem-clip-decode: make predictions
        │ done, one batch
    the caller's loop

Three kinds of threads work at the same time:

    sem-clip-infer    one; draws frames from the iterable, forms batches and hands results over, in order
    sem-clip-decode   one per decoder; decodes and resizes frames, and turns outputs into predictions
    sem-clip-engine   as many as the backend keeps in flight; waits in the engine

The caller's own thread only takes finished batches. Leaving the loop does not wait for an iterable, a file or an engine
that hangs: its thread is abandoned, and ends as soon as it can. Leaving may happen wherever the garbage collector runs,
at any time and even in one of these threads. So it takes no lock that the same thread might hold.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np

from . import lifetime
from .backends import Outputs
from .crew import Crew, Worker
from .errors import BackendError, FrameError, PredictorError
from .frames import EncodedFrame, FrameSource, describe, plain_array
from .pipeline import Job, Pipeline, Row, Setup, Tile
from .prediction import FailedFrame, Prediction

_DECODED_TOGETHER = 8
"""Frames handed to a decoder at once: handing over costs about a twentieth of decoding a small PNG."""
_COPIED = 1 << 24
"""Bytes up to which an array is copied when it is drawn. A larger one is prepared at once, so that one copy exists at a
time instead of two batches of copies."""
_LEAVING_S = 0.6
"""How long leaving waits for all threads together. Most batches are shorter; a camera may take for ever."""


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A frame that can no longer change and is still to be prepared."""

    source: FrameSource
    name: str
    setup: Setup


_Entry: TypeAlias = "Job | FailedFrame"
_Line: TypeAlias = "Row | FailedFrame"
"""A row of a batch, or a frame in the place of one."""
_Answers: TypeAlias = "Future[list[Prediction | FailedFrame]]"


def stream(
    pipeline: Pipeline, sources: Iterable[FrameSource], setup: Callable[[], Setup], decoders: int
) -> Iterator[Prediction | FailedFrame]:
    """Predictions in the order of `sources`; at most four batches and those in the engine are held at a time.

    `decoders` threads prepare frames and turn outputs into predictions. Each frame is judged as it was when it was
    drawn. A bad frame yields a FailedFrame. An error of the engine, or of iterating `sources`, is raised after
    everything before it was yielded; that of the engine names the frames that were drawn and not answered. Leaving the
    loop early stops the threads, within a second.
    Raises PredictorError where no thread can be started, and in a process forked since.
    """
    run = _Run(pipeline, sources, setup, decoders)
    try:
        run.start()
        while (results := run.take()) is not None:
            for result in results:
                yield result
                lifetime.require_process(run.pid)
    finally:
        run.leave()


def frozen(source: FrameSource) -> FrameSource | None:
    """The same frame in an object that its owner does not change; None where it must be prepared before the next.

    Cameras refill one array, and Pillow walks the pages of a file by one image that is seeked.
    """
    if isinstance(source, str | bytes | EncodedFrame):
        return source
    if isinstance(source, os.PathLike):  # one object may lead to the next file later
        return os.fsdecode(source)
    if isinstance(source, bytearray):
        return bytes(source)
    plain = plain_array(source) if isinstance(source, np.ndarray) else None
    return plain.copy() if plain is not None and plain.nbytes <= _COPIED else None


class _Run:
    """The state that the threads of one stream share, and the work of the drawing thread."""

    def __init__(
        self, pipeline: Pipeline, sources: Iterable[FrameSource], setup: Callable[[], Setup], decoders: int
    ) -> None:
        self.pid = os.getpid()
        self._pipeline = pipeline
        self._sources = sources
        self._setup = setup
        # More decoders than frames that are decoded ahead would have nothing to do.
        self._decoders = min(decoders, 2 * pipeline.batch_size)
        self._left = False
        self._failure: Exception | None = None
        self._done: queue.SimpleQueue[_Answers | _End] = queue.SimpleQueue()
        # One token for each batch that the caller has room for: SimpleQueue has no bound, and a Queue has a lock.
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._room.put(None)
        # Frames that are drawn and not in a batch yet: in groups, in order, and how many.
        self._ahead: deque[Future[list[_Entry | Exception]]] = deque()
        self._drawn_ahead = 0
        # Rows of the latest frame that may have tiles. Unknown at first: as many as are decoded ahead in all.
        self._rows_each = 2 * pipeline.batch_size
        self._running: deque[tuple[list[_Line], Future[tuple[Outputs, float]] | None]] = deque()
        self._decoding = Crew(self._decoders, "sem-clip-decode")
        self._engine = Crew(pipeline.backend.in_flight, "sem-clip-engine")
        self._drawing = Worker(self._work, "sem-clip-infer")

    # ---- the caller's thread -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Raises PredictorError where a thread cannot be started."""
        lifetime.watch(self)
        self._decoding.start()
        self._engine.start()
        self._drawing.start()

    def take(self) -> list[Prediction | FailedFrame] | None:
        """What the next batch completes; None at the end. Raises what ended the stream."""
        lifetime.require_process(self.pid)
        item: _Answers | _End | None = None
        while item is None:
            with suppress(queue.Empty):
                item = self._done.get(timeout=1)  # without one, Windows would not let Ctrl-C through
        self._room.put(None)
        try:
            if not isinstance(item, _End):
                return item.result()
            if item.error is not None:
                raise item.error
        except CancelledError:
            raise PredictorError(lifetime.REFUSED) from None
        finally:
            lifetime.park()
        return None

    def leave(self) -> None:
        """Stop the threads and wait for those that end soon. May run in any thread."""
        if self._left:
            return  # at the exit, of which nothing is left to ask when this is collected after all else
        self.abandon()
        if os.getpid() == self.pid:
            self.join(time.monotonic() + _LEAVING_S)

    def abandon(self) -> None:
        """As `lifetime.Ending`."""
        self._left = True
        self._decoding.cancel()
        self._engine.cancel()
        self._room.put(None)  # wakes the drawing thread, which may wait for room
        if self._drawing.ident is None:  # it did not start, and would have ended the others
            self._end_crews()

    def join(self, until: float) -> None:
        """As `lifetime.Ending`."""
        threads = [t for t in (self._drawing, *self._decoding.threads, *self._engine.threads) if t.ident is not None]
        if threading.current_thread() in threads:
            return  # the garbage collector ran here; this thread would wait for itself
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    # ---- the drawing thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Form batches, run them, hand them over in order."""
        try:
            for entries in _batches(self._prepared(), self._pipeline.batch_size):
                rows = _rows(entries)
                self._running.append((entries, self._engine.submit(self._pipeline.infer, rows) if rows else None))
                self._hand_over(self._pipeline.backend.in_flight - 1)
            self._hand_over(0)
            end = _End(self._failure)
        except BackendError as exc:
            end = _End(_naming(exc, [entry for entries, _ in self._running for entry in entries]))
        except BaseException as exc:
            end = _End(exc)
        self._end_crews()
        # The end of an abandoned stream is never taken, and an error in it would keep the caller's source alive.
        self._done.put(_End() if self._left else end)
        del end

    def _hand_over(self, until: int) -> None:
        """Hand batches over, the oldest first, until so many are left in the engine."""
        while len(self._running) > until and not self._left:
            entries, answer = self._running[0]
            outputs, seconds = (None, 0.0) if answer is None else answer.result()
            if outputs is not None:
                self._pipeline.hand_out(_rows(entries), outputs, seconds)
            self._running.popleft()
            finished = self._decoding.submit(_finish, self._pipeline, entries, outputs, seconds)
            self._room.get()
            self._done.put(finished)

    def _prepared(self) -> Iterator[_Line]:
        """Rows of prepared frames in order, with two batches decoded ahead; of large frames one per decoder.

        What ends them early is kept for the very end.
        """
        source = _Source(self._sources, self._setup, self._pipeline)
        try:
            while not self._left:
                self._draw_ahead(source)
                if not self._ahead:
                    break
                for entry in self._ahead.popleft().result():
                    if isinstance(entry, Exception):
                        self._failure = entry
                        return
                    self._drawn_ahead -= 1
                    if not isinstance(entry, Job) or not entry.setup.options.tile:
                        yield entry
                        continue
                    rows = entry.rows()
                    self._rows_each = len(rows)
                    self._draw_ahead(source)  # the next frame is decoded while this one is in the engine
                    yield from rows
            self._failure = source.failure
        finally:
            self._ahead.clear()

    def _draw_ahead(self, source: _Source) -> None:
        """Hand frames to the decoders until two batches are there, the source ends or the caller leaves."""
        most = 2 * self._pipeline.batch_size
        # As many at once as leave every decoder something to do.
        together = max(1, min(_DECODED_TOGETHER, self._pipeline.batch_size // self._decoders))
        if source.tiled and self._rows_each > 1:  # such a frame is large: hold no more of them than batches need
            most, together = max(self._decoders, most // self._rows_each), 1
        while not source.ended and not self._left and self._drawn_ahead + together <= most:
            drawn = source.draw(together, self._wanted)
            if drawn:
                self._ahead.append(self._decoding.submit(_prepare_all, self._pipeline, drawn))
                self._drawn_ahead += len(drawn)

    def _wanted(self) -> bool:
        return not self._left

    def _end_crews(self) -> None:
        self._decoding.end()
        self._engine.end()


class _Source:
    """The caller's iterable; each frame is taken as it is at that moment.

    failure: what iterating raised; what was drawn before it is answered first.
    tiled: whether the latest recipe reads frames in tiles.
    """

    def __init__(self, sources: Iterable[FrameSource], setup: Callable[[], Setup], pipeline: Pipeline) -> None:
        self._setup = setup
        self._pipeline = pipeline
        self._index = 0
        self.tiled = False
        self.ended = False
        self.failure: Exception | None = None
        try:
            self._iterator = iter(sources)
            self.tiled = setup().options.tile > 0
        except Exception as exc:
            self.ended, self.failure = True, exc

    def draw(self, count: int, wanted: Callable[[], bool]) -> list[_Drawn | _Entry | Exception]:
        """The next frames, `count` at most; fewer at the end, and when they are wanted no more."""
        drawn: list[_Drawn | _Entry | Exception] = []
        while not self.ended and len(drawn) < count and wanted():
            try:
                source = next(self._iterator)
                setup = self._setup()
                self.tiled = setup.options.tile > 0
            except StopIteration:
                self.ended = True
            except Exception as exc:  # the caller's iterator failed: answer the earlier frames, then raise
                self.ended, self.failure = True, exc
            else:
                drawn.append(self._hold(source, setup))
                self._index += 1
        return drawn

    def _hold(self, source: FrameSource, setup: Setup) -> _Drawn | _Entry | Exception:
        unchanging = None
        try:
            name = describe(source, self._index)
            unchanging = frozen(source)
        except MemoryError:
            name = f"frame[{self._index}]"  # which may find room where no copy does
        except Exception as exc:  # an array or image of a kind of its own
            return exc
        if unchanging is None:
            return _prepare(self._pipeline, _Drawn(source, name, setup))
        return _Drawn(unchanging, name, setup)


def _naming(error: BackendError, entries: list[_Line]) -> BackendError:
    """The same error with the frames that it left without an answer."""
    names = [entry.source if isinstance(entry, FailedFrame) else entry.frame.source for entry in entries]
    names = [name for name, _ in groupby(names)]  # a name for all tiles of a frame
    which = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} frames)"
    named = BackendError(f"{error}; without an answer: {which} and all after it", names)
    named.__cause__ = error
    return named


def _rows(entries: list[_Line]) -> list[Row]:
    """What the engine reads of a batch."""
    return [entry for entry in entries if not isinstance(entry, FailedFrame)]


def _batches(prepared: Iterable[_Line], size: int) -> Iterator[list[_Line]]:
    """Consecutive rows that share a setup, `size` at most."""
    entries: list[_Line] = []
    setup: Setup | None = None
    for entry in prepared:
        swapped = not isinstance(entry, FailedFrame) and setup is not None and entry.setup is not setup
        if entries and (swapped or len(entries) >= size):
            yield entries
            entries, setup = [], None
        entries.append(entry)
        if not isinstance(entry, FailedFrame):
            setup = entry.setup
    if entries:
        yield entries


def _prepare_all(pipeline: Pipeline, drawn: list[_Drawn | _Entry | Exception]) -> list[_Entry | Exception]:
    """What became of each frame, up to the first error that is not the frame's."""
    entries: list[_Entry | Exception] = []
    for frame in drawn:
        entries.append(_prepare(pipeline, frame) if isinstance(frame, _Drawn) else frame)
        if isinstance(entries[-1], Exception):
            break
    return entries


def _prepare(pipeline: Pipeline, frame: _Drawn) -> _Entry | Exception:
    try:
        return pipeline.prepare(frame.source, frame.setup, name=frame.name)
    except FrameError as exc:
        return FailedFrame(exc.source, exc)
    except Exception as exc:  # unforeseen: the frames before it are answered, then it is raised
        return exc


def _finish(
    pipeline: Pipeline, entries: list[_Line], outputs: Outputs | None, seconds: float
) -> list[Prediction | FailedFrame]:
    """Predictions in the place of frames, of tiled ones in that of the last tile."""
    rows = _rows(entries)
    assert outputs is not None or not rows
    predictions = iter(() if outputs is None else pipeline.finish(rows, outputs, seconds))
    complete = (entry for entry in entries if not isinstance(entry, Tile) or entry.is_last)
    return [entry if isinstance(entry, FailedFrame) else next(predictions) for entry in complete]
