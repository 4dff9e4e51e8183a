"""One writer at a time: a lock file that the operating system releases when the process ends."""

from __future__ import annotations

import errno
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import BundleError
from .files import open_plain
from .terminal import printable

WAIT_S = 10.0
MAX_WORDS = 300


@contextmanager
def locked(file: Path, what: Path, wait_s: float | None = None) -> Iterator[bool]:
    """Hold the lock `file`, which protects `what`; yield whether this thread did not hold it before.

    The file is created if absent and removed afterwards. It names its holder, for the error of others that wait in
    vain. Threads exclude each other as processes do.

    The lock is flock's (Windows: LockFileEx's) and ends with its process, so it is never stale. On a network share it
    works between machines if the share passes locks on: NFS 4, NFS 3 without `nolock`, SMB with Linux 5.5 or later. A
    share that reports no locks is an error; a share that keeps locks local to each machine is not detected.

    Raises BundleError if another still holds it after `wait_s` seconds (default WAIT_S), or if locking fails.
    """
    file = file.parent.resolve() / file.name
    if not file.parent.is_dir():  # the library would create it
        raise BundleError(what, f"cannot be locked, so it is not changed ({file.parent} is not a folder)")
    lock = FileLock(file, is_singleton=True, on_acquired=_say_who)
    _acquire(lock, file, what, WAIT_S if wait_s is None else wait_s)
    first = lock.lock_counter == 1
    try:
        yield first
    finally:
        if first:
            with suppress(
                OSError
            ):  # fails on Windows while it is open; waiting threads check that the file still has its name
                file.unlink()
        lock.release()


class HeldLock:
    """The lock of `locked`, held from now until `release`, which any thread may call.

    Each is a lock of its own: a second one for the same file waits, even in the same thread. Raises as `locked`.
    """

    def __init__(self, file: Path, what: Path, wait_s: float | None = None) -> None:
        self._file = file.parent.resolve() / file.name
        self._lock = FileLock(self._file, thread_local=False, on_acquired=_say_who)
        _acquire(self._lock, self._file, what, WAIT_S if wait_s is None else wait_s)

    def release(self) -> None:
        """Let others have it, and remove the file. A second call does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):  # as in `locked`
                self._file.unlink()
            self._lock.release()


def _acquire(lock: FileLock, file: Path, what: Path, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while True:
        try:
            lock.acquire(timeout=max(0.0, end - time.monotonic()))
            return
        except Timeout:
            _require_place(file, what)
            raise BundleError(what, f"is being changed by {_who(file)}: wait until that is done") from None
        except OSError as exc:
            # A network share reports this for a lock file that its last holder has removed meanwhile.
            if exc.errno == errno.ESTALE and time.monotonic() < end:
                continue
            raise BundleError(what, f"cannot be locked, so it is not changed ({exc.strerror or exc})") from exc


def _require_place(file: Path, what: Path) -> None:
    """Raise BundleError where no file can be made: the library waits there as if somebody held the lock."""
    if not file.exists():
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o666))
        except OSError as exc:
            raise BundleError(what, f"cannot be locked, so it is not changed ({exc.strerror or exc})") from exc


def _say_who(handle: int) -> None:
    words = f"{Path(sys.argv[0]).name or 'python'} {' '.join(sys.argv[1:2])}".strip()
    text = f"{words} (process {os.getpid()} on {platform.node() or 'this machine'})"
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, text.encode("utf-8", "backslashreplace"))


def _who(file: Path) -> str:
    try:
        with open_plain(file) as stream:
            words = stream.read(MAX_WORDS).decode("utf-8", "backslashreplace")
    except OSError:
        words = ""
    return printable(words) or "another process"
