"""Micro-batching for `Predictor.submit`: calls from many threads share batches; queue and wait are bounded."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from .errors import PredictorError, QueueFullError
from .pipeline import Job, Pipeline
from .prediction import Prediction


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    job: Job
    future: Future[Prediction]
    deadline: float


class MicroBatcher:
    """One thread that gathers submitted frames and answers them in batches.

    A batch runs when it is full or when its oldest frame has waited `max_delay_ms`.
    """

    def __init__(self, pipeline: Pipeline, max_delay_ms: float, queue_size: int) -> None:
        self._pipeline = pipeline
        self._max_delay_s = max_delay_ms / 1e3
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(maxsize=queue_size)
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sem-clip-submit", daemon=True)
        self._thread.start()

    def submit(self, job: Job, timeout_s: float | None) -> Future[Prediction]:
        """Queue one prepared frame. Waits for room, at most `timeout_s`; then QueueFullError."""
        future: Future[Prediction] = Future()
        waiting = _Waiting(job, future, time.monotonic() + self._max_delay_s)
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            # The lock keeps a frame from slipping in behind the end mark, where nobody would ever answer it.
            with self._lock:
                if self._closed:
                    raise PredictorError("the Predictor is closed")
                try:
                    self._queue.put_nowait(waiting)
                    return future
                except queue.Full:
                    pass
            if give_up is not None and time.monotonic() >= give_up:
                raise QueueFullError(
                    f"{self._queue.maxsize} frames are waiting and none was taken for {timeout_s:g} s: "
                    "submit more slowly, or raise queue_size"
                )
            time.sleep(0.0005)

    def close(self) -> None:
        """Answer everything that was queued, then stop."""
        with self._lock:
            already, self._closed = self._closed, True
        if not already:
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        left: deque[_Waiting] = deque()
        ended = False
        while left or not ended:
            ended = self._gather(left, ended)
            batch = self._next_batch(left)
            if batch:
                self._answer(batch)

    def _gather(self, left: deque[_Waiting], ended: bool) -> bool:
        """Fill `left` up to a batch, waiting no longer than its oldest frame may. Returns whether the end was seen."""
        while not ended and len(left) < self._pipeline.batch_size:
            wait = max(0.0, left[0].deadline - time.monotonic()) if left else None
            try:
                item = self._queue.get(timeout=wait) if wait != 0.0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return True
            left.append(item)
        return ended

    def _next_batch(self, left: deque[_Waiting]) -> list[_Waiting]:
        """Take frames that share a setup and whose callers still want them."""
        batch: list[_Waiting] = []
        while left and len(batch) < self._pipeline.batch_size:
            if batch and left[0].job.setup is not batch[0].job.setup:
                break
            waiting = left.popleft()
            if waiting.future.set_running_or_notify_cancel():
                batch.append(waiting)
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        try:
            predictions = self._pipeline.answer([waiting.job for waiting in batch])
        except BaseException as exc:  # whatever it is, it belongs to the callers who wait, not to this thread
            for waiting in batch:
                waiting.future.set_exception(exc)
        else:
            for waiting, prediction in zip(batch, predictions, strict=True):
                waiting.future.set_result(prediction)
