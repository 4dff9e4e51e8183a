"""The exit of the interpreter and forks: how threads end, and why a forked child refuses to work.

If a thread returns from an engine while the interpreter is torn down, it ends in the middle of C++ code. Then the
process dies of SIGABRT. So the exit starts no other batch and waits for all batches under way. A forked child has none
of its parent's threads, and its locks are in an arbitrary state. So it uses nothing that was opened before the fork.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet

from .crew import Worker
from .errors import PredictorError

PATIENCE_S = 30.0
"""How long the exit waits for the engine. An engine that hangs must not keep the process alive."""
REFUSED = "the interpreter is exiting; no new batch starts"
_PARTING_S = 0.5
"""How long the exit waits for threads outside of engines, which hand over the last answers."""


class Ending(Protocol):
    """An object whose threads must stop when the interpreter exits."""

    def abandon(self) -> None:
        """Start no further work. Waits for nothing."""

    def join(self, until: float) -> None:
        """Wait for the threads, at most until this time of the monotonic clock."""


class _State:
    """State of this process; a forked child starts with a new one."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.under_way = 0
        self.over = False
        self.watched: WeakSet[Ending] = WeakSet()


_state = _State()


def watch(ending: Ending) -> None:
    """Stop `ending` when the interpreter exits. This holds only a weak reference."""
    with _state.changed:
        _state.watched.add(ending)


def over() -> bool:
    """Whether the interpreter is exiting."""
    return _state.over


@contextmanager
def in_engine() -> Iterator[None]:
    """Wrap every call of an engine, so that the exit waits for it. PredictorError once the interpreter is exiting."""
    state = _state
    with state.changed:
        admitted = not state.over
        state.under_way += admitted
    if not admitted:
        park()
        raise PredictorError(REFUSED)
    try:
        yield
    finally:
        with state.changed:
            state.under_way -= 1
            state.changed.notify_all()


def park() -> None:
    """At the exit, stop a daemon thread of the calling program. It ends in a moment anyway, and an error would print a
    traceback on stderr. Other threads return, the main thread above all."""
    thread = threading.current_thread()
    while over() and thread.daemon and not isinstance(thread, Worker):
        time.sleep(3600)


def require_process(pid: int) -> None:
    """PredictorError in a process forked from `pid`, where what was opened before has lost its threads."""
    if os.getpid() != pid:
        raise PredictorError(
            "this Predictor was opened before a fork and its threads did not come along: open one in each process, "
            "after the fork (for a pool of processes: in its initializer)"
        )


def _end() -> None:
    with _state.changed:
        _state.over = True
        watched = list(_state.watched)
    for ending in watched:
        ending.abandon()
    with _state.changed:
        _state.changed.wait_for(lambda: _state.under_way == 0, PATIENCE_S)
    until = time.monotonic() + _PARTING_S
    for ending in watched:
        ending.join(until)


def _begin_anew() -> None:
    global _state
    _state = _State()


# After the threads that the interpreter itself waits for have ended, and before anything is torn down.
atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
