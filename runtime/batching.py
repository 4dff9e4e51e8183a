"""Micro-batching for `Predictor.submit`: calls from many threads share batches; queue and wait are bounded."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

from . import lifetime
from .crew import Worker
from .errors import PredictorError, QueueFullError
from .pipeline import Job, Pipeline
from .prediction import Prediction

_log = logging.getLogger("sem_clip")


class _Answer(Future[Prediction]):
    """A future that raises, instead of waiting for ever, in a process forked before the answer came."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def result(self, timeout: float | None = None) -> Prediction:
        """As `Future.result`."""
        if not self.done():
            lifetime.require_process(self._pid)
        try:
            return super().result(timeout)
        except CancelledError:
            lifetime.park()
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `Future.exception`."""
        if not self.done():
            lifetime.require_process(self._pid)
        return super().exception(timeout)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    job: Job
    future: Future[Prediction]
    deadline: float


class MicroBatcher:
    """One thread that gathers submitted frames, answers them in batches, and runs the callbacks of the answers.

    A batch runs when it is full or when its oldest frame has waited `max_delay_ms`. Callbacks run on this thread and
    must not wait for it: they may submit, even to a full queue, and close everything.

    free: called by the thread at the very end, when everything submitted is answered.
    Raises PredictorError where the thread cannot be started.
    """

    def __init__(self, pipeline: Pipeline, max_delay_ms: float, queue_size: int, free: Callable[[], None]) -> None:
        self._pid = os.getpid()
        self._pipeline = pipeline
        self._max_delay_s = max_delay_ms / 1e3
        self._queue_size = queue_size
        self._free = free
        self._queued: deque[_Waiting] = deque()
        self._ending = False
        self._fault: BaseException | None = None
        # The garbage collector may enter the lock again when it ends what a dropped Predictor leaves.
        lock = threading.RLock()
        self._filled, self._room = threading.Condition(lock), threading.Condition(lock)
        self._thread = Worker(self._work, "sem-clip-submit")
        self._thread.start()
        lifetime.watch(self)

    def submit(self, job: Job, timeout_s: float | None) -> Future[Prediction]:
        """Queue one prepared frame. Waits for room, at most `timeout_s`; then QueueFullError."""
        future = _Answer()
        mine = threading.current_thread() is self._thread
        with self._room:
            # A callback runs on the thread that makes room: it may exceed the queue by two batches instead of waiting.
            room = self._queue_size + (2 * self._pipeline.batch_size if mine else 0)
            patience = 0.0 if mine else timeout_s
            if not self._room.wait_for(lambda: self._ending or len(self._queued) < room, patience):
                waited = "a callback cannot wait for room" if mine else f"none was taken for {timeout_s:g} s"
                raise QueueFullError(
                    f"{len(self._queued)} frames are waiting and {waited}: submit more slowly, or raise queue_size"
                )
            ending = self._ending
            if not ending:  # a frame queued after the end would never be answered
                self._queued.append(_Waiting(job, future, time.monotonic() + self._max_delay_s))
                self._filled.notify()
        if ending:
            lifetime.park()
            raise PredictorError("the Predictor is closed")
        return future

    def close(self) -> None:
        """Answer everything that was queued, then stop; a callback does not wait for that. Raises what `free` did."""
        self.abandon()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            fault, self._fault = self._fault, None
            if fault is not None:
                raise fault

    def abandon(self) -> None:
        """`close` without waiting. Nothing in a forked child, where the lock may never be free again."""
        if self._ending or os.getpid() != self._pid:
            return
        with self._filled:
            self._ending = True
            self._filled.notify_all()
            self._room.notify_all()

    def join(self, until: float) -> None:
        """Wait for the thread, at most until this time of the monotonic clock."""
        self._thread.join(max(0.0, until - time.monotonic()))

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        left: deque[_Waiting] = deque()
        try:
            while self._gather(left) and not lifetime.over():
                batch = self._next_batch(left)
                if batch:
                    self._answer(batch)
        finally:
            # Frames are left only when the interpreter exits, or after an unforeseen error.
            self.abandon()
            for waiting in (*left, *self._queued):
                waiting.future.cancel()
            try:
                if not lifetime.over():
                    with lifetime.in_engine():
                        self._free()
            except BaseException as exc:
                self._fault = exc

    def _gather(self, left: deque[_Waiting]) -> bool:
        """Fill `left` up to a batch, waiting no longer than its oldest frame may. False at the end of everything."""
        rows = sum(waiting.job.row_count for waiting in left)
        with self._filled:
            while rows < self._pipeline.batch_size:
                if self._queued:
                    left.append(self._queued.popleft())
                    rows += left[-1].job.row_count
                    self._room.notify()
                    continue
                wait = max(0.0, left[0].deadline - time.monotonic()) if left else None
                if self._ending or wait == 0.0:
                    break
                self._filled.wait(wait)
        return bool(left) or not self._ending

    def _next_batch(self, left: deque[_Waiting]) -> list[_Waiting]:
        """Take frames that share a setup and whose callers still want them, until they fill a batch."""
        batch: list[_Waiting] = []
        rows = 0
        while left and rows < self._pipeline.batch_size:
            if batch and left[0].job.setup is not batch[0].job.setup:
                break
            waiting = left.popleft()
            if waiting.future.set_running_or_notify_cancel():
                batch.append(waiting)
                rows += waiting.job.row_count
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        try:
            predictions = self._pipeline.answer([waiting.job for waiting in batch])
        except BaseException as exc:  # any error belongs to the waiting callers, not to this thread
            for waiting in batch:
                _settle(waiting.future.set_exception, exc)
        else:
            for waiting, prediction in zip(batch, predictions, strict=True):
                _settle(waiting.future.set_result, prediction)


def _settle(settle: Callable[..., None], answer: object) -> None:
    """Settle a future. `Future` reports errors of callbacks itself, but not sys.exit and the like."""
    try:
        settle(answer)
    except BaseException:
        _log.exception("a callback of submit raised an exit, which is ignored here")
