"""Append-only files of JSON lines that survive a kill: a head line, then one line for each entry.

An entry counts once its line is whole. A line without its end was cut off by a kill: readers leave it out, and the next
writer cuts it away and says so. Any other line that cannot be read is an error, since nothing is skipped. Lines are
never changed or removed.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import BundleError, SemClipError
from .files import read_bounded, sync_folder
from .jsonfields import parse_json
from .locking import HeldLock
from .terminal import printable

MAX_BYTES = 256 * 2**20
MAX_LINE = 64 * 2**10
"""Bytes of a line, its end included."""
MAX_NAME = 128
"""Characters of the name of a person who writes."""
WAIT_S = 2.0
"""So long does a writer wait for another one to end."""
Error = Callable[[Path, str], SemClipError]
_log = logging.getLogger("sem_clip")


class LineLog:
    """A file of lines, open to append, and locked against other writers until `close`.

    head: {"format": name, "version": whole number}, the first line. error: makes the error to raise, of the file and
    what is wrong with it. entries: those that were in the file when it was opened. cut: bytes of a line that a kill had
    cut off, and that are gone now.

    The file is made if it is absent, with its folder. Safe to use from several threads. Raises `error` where another
    process writes to the file, where it is not of this format, and for a line that cannot be read.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], error: Error) -> None:
        self.path = path
        self._error = error
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = HeldLock(path.with_name(f".{path.name}.lock"), path, WAIT_S)
        except BundleError as exc:
            raise error(path, exc.faults[0]) from exc
        except OSError as exc:
            raise error(path, f"cannot be written ({exc.strerror})") from exc
        try:
            self._open(head)
        except BaseException:
            self._held.release()
            raise

    def _open(self, head: Mapping[str, Any]) -> None:
        self.entries: list[dict[str, Any]] = []
        self._end = self.cut = 0
        if os.path.lexists(self.path):
            self.entries, self._end, size = _read(self.path, head, self._error)
            self.cut = size - self._end
        try:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as exc:
            raise self._error(self.path, f"cannot be written ({exc.strerror})") from exc
        try:
            if self.cut:
                _log.warning("%s: a line that was cut off by a kill is gone (%d bytes)", self.path, self.cut)
                os.ftruncate(self._handle, self._end)
            if not self._end:
                self._append(_line(head))
                sync_folder(self.path.parent)
        except OSError as exc:
            os.close(self._handle)
            raise self._error(self.path, f"cannot be written ({exc.strerror})") from exc

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry; it is on disk when this returns, or the file is as it was.

        Raises `error` for a full disk, for an entry that is too long, and after `close`.
        """
        line = _line(entry)
        if len(line) > MAX_LINE:
            raise self._error(self.path, f"takes lines of {MAX_LINE:,} bytes at most, not {len(line):,}")
        with self._lock:
            if self._handle < 0:
                raise self._error(self.path, "is closed")
            if self._end + len(line) > MAX_BYTES:
                raise self._error(self.path, f"is full: it may hold {MAX_BYTES:,} bytes. Begin another file")
            try:
                self._append(line)
            except OSError as exc:
                raise self._error(self.path, f"cannot be written ({exc.strerror})") from exc

    def _append(self, line: bytes) -> None:
        """Write a line at the end, to the disk. Raises OSError, after what was written of it is gone."""
        try:
            os.ftruncate(self._handle, self._end)  # what a line left that could be neither written nor taken back
            os.lseek(self._handle, self._end, os.SEEK_SET)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError:
            os.ftruncate(self._handle, self._end)
            raise
        self._end += len(line)

    def close(self) -> None:
        """Let others write. A second call does nothing."""
        with self._lock:
            handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
            self._held.release()

    def __enter__(self) -> LineLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def user_name() -> str:
    """The user of this process, for lines that say who wrote them; "unknown" on a system that does not know."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        name = ""
    return printable(name)[:MAX_NAME] if name.strip() else "unknown"


def now() -> str:
    """This moment, as ISO 8601 in UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_lines(path: Path, head: Mapping[str, Any], error: Error) -> list[dict[str, Any]]:
    """The entries of a file of lines, without a last one that is cut off, which is said. Takes no lock.

    Raises `error` where it is missing, not of this format, or holds a line that cannot be read.
    """
    entries, end, size = _read(path, head, error)
    if not size:
        _log.warning("%s: is empty", path)
    elif size > end:
        _log.warning("%s: the last line is cut off, or being written: it is left out (%d bytes)", path, size - end)
    return entries


def _read(path: Path, head: Mapping[str, Any], error: Error) -> tuple[list[dict[str, Any]], int, int]:
    """The entries, where the last whole line ends, and the size of the file."""
    content = read_bounded(path, MAX_BYTES, error)
    end = content.rfind(b"\n") + 1
    if not end:  # empty, or killed while its first line was written
        if not _line(head).startswith(content):
            raise error(path, f"is no file of the format {head['format']}")
        return [], 0, len(content)
    first, *lines = content[: end - 1].split(b"\n")
    found = _parsed(path, 1, first, error)
    if found.get("format") != head["format"]:
        raise error(path, f"is no file of the format {head['format']}")
    version = found.get("version")
    if version != head["version"]:
        raise error(path, f"has format version {version!r:.20}, this reader knows {head['version']}: update sem-clip")
    return [_parsed(path, number, line, error) for number, line in enumerate(lines, 2)], end, len(content)


def _parsed(path: Path, number: int, line: bytes, error: Error) -> dict[str, Any]:
    faults: list[str] = []
    try:
        if len(line) >= MAX_LINE:
            raise ValueError(f"it is longer than {MAX_LINE:,} bytes")
        entry = parse_json(line, faults)
    except (ValueError, RecursionError) as exc:
        if number == 1:
            raise error(path, "does not begin as a file of this program does") from exc
        raise error(path, f"line {number} cannot be read ({exc}): copy the file again, or mend that line") from exc
    if faults or not isinstance(entry, dict):
        raise error(path, f"line {number} cannot be read ({'; '.join(faults[:3]) or 'it is no object'})")
    return entry


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False).encode() + b"\n"
