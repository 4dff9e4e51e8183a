"""Threads that work off calls. All threads of the runtime are daemons: none keeps a process alive.

Threads of `concurrent.futures` are not daemons, and the interpreter waits for them when it exits. A read from a dead
network share, which never returns, would block the exit for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeAlias, TypeVar

from .errors import PredictorError

P = ParamSpec("P")
T = TypeVar("T")
_Call: TypeAlias = "tuple[Future[Any], Callable[[], Any]]"


class Worker(threading.Thread):
    """A thread of this runtime."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(target=work, name=name, daemon=True)

    def start(self) -> None:
        """Raises PredictorError if the system can start no other thread."""
        try:
            super().start()
        except (RuntimeError, MemoryError) as exc:
            raise PredictorError(
                f"no thread can be started ({exc}): memory or the number of threads of this user is used up; use "
                "fewer decoders, or raise the limit"
            ) from exc


class Crew:
    """`size` threads that work off calls in the order they came."""

    def __init__(self, size: int, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._cancelled = False
        self.threads = [Worker(self._work_off, f"{name}_{number}") for number in range(size)]

    def start(self) -> None:
        """Raises PredictorError as `Worker.start`; `end` ends the threads that did start."""
        for thread in self.threads:
            thread.start()

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call; never waits."""
        future: Future[T] = Future()
        self._calls.put((future, partial(work, *args, **kwargs)))
        return future

    def cancel(self) -> None:
        """Cancel every call that has not begun, and those to come. Waits for nothing."""
        self._cancelled = True

    def end(self) -> None:
        """Let the threads end once everything queued before is done. Waits for nothing."""
        for _ in self.threads:
            self._calls.put(None)

    def _work_off(self) -> None:
        while (call := self._calls.get()) is not None:
            self._answer(*call)
            call = None  # free it before waiting for the next

    def _answer(self, future: Future[Any], work: Callable[[], Any]) -> None:
        if self._cancelled:
            future.cancel()
            return
        try:
            result = work()
        except BaseException as exc:  # any error belongs to the caller that waits
            future.set_exception(exc)
        else:
            future.set_result(result)
