"""Reading and writing files safely: bounded reads, hashed content, writes that are whole or absent.

A file is written in its own folder under a short temporary name and renamed once it is whole. A link stays, and its
target is replaced. An existing file keeps its mode; a new one gets its mode from the umask. Pipes, devices and
descriptors (/dev/stdout, /dev/fd/3) are written to directly and never replaced.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from .errors import PredictorError, SemClipError

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be removed there, so no lock is needed
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".sem-clip-{}.part"
_LEFT_OVER = re.compile(r"\.sem-clip-[0-9a-f]{16}\.part")
_DAY_S = 24 * 3600.0
READER_WAIT_S = 10.0
"""A named pipe without a reader for this time is an error."""
_NAME_BYTES = 255
_cleaned: set[str] = set()


def read_bounded(path: Path, max_bytes: int, error: Callable[[Path, str], SemClipError]) -> bytes:
    """The file's bytes; `error` if it is missing, unreadable, no plain file, or larger than `max_bytes`."""
    try:
        with io.BufferedReader(open_plain(path)) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes:
                raise error(path, f"is {size:,} bytes, more than the {max_bytes:,} allowed here")
            return stream.read(size)  # no more, even if the file grows meanwhile
    except FileNotFoundError:
        raise error(path, "does not exist") from None
    except OSError as exc:
        raise error(path, f"cannot be read ({exc.strerror})") from exc
    except ValueError as exc:  # a name that no file can have
        raise error(path, f"cannot be read ({exc})") from exc


def open_plain(path: str | Path) -> io.FileIO:
    """Open a plain file to read. Raises OSError, also for a pipe, which might block, and a device, which has no end."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
        return io.FileIO(handle)
    except BaseException:
        os.close(handle)
        raise


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_folder(folder: Path) -> None:
    """Raise PredictorError unless `folder` exists or can be made. Call it before the work whose result goes there."""
    nearest = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not nearest.is_dir():
        raise PredictorError(f"{nearest} is a file, so nothing can be written below it: choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PredictorError(f"{nearest} may not be written to: choose another place")


def require_files(paths: Iterable[Path], *, force: bool) -> None:
    """Raise PredictorError if a file cannot be written, or exists and may not be replaced. Call it before the work.

    Pipes and devices are written to directly, never replaced, and need no `force`.
    """
    for path in paths:
        if path.is_dir():
            raise PredictorError(f"{path} is a folder; give the name of a file")
        if _is_direct(path):
            continue
        require_folder(Path(os.path.realpath(path)).parent)
        if path.exists() and not force:
            raise PredictorError(f"{path} exists; add --force to replace it, or choose another name")


def require_other_files(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise PredictorError where an output would replace what the same command reads, or another output."""
    taken = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        name = os.path.realpath(path)
        if name in taken:
            raise PredictorError(f"{path} is read or written by this command already: choose another name")
        taken.add(name)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, then rename it: readers see the old file or the new one, never a part. Raises OSError."""
    with OutputFile(path) as out:
        out.write(content)


class OutputFile:
    """A file that takes its name once it is whole: as a context manager, when the block ends without an error.

    If the block fails, an older file stays as it was. Pipes, devices and descriptors get each write at once.
    Raises OSError with the given name; PredictorError for a disk or a socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.direct = _is_direct(path)
        self._whole = 0
        with _named(path):
            if self.direct:
                self._handle = _open_direct(path)
                return
            self._target = Path(os.path.realpath(path))  # a link is written through
            self._target.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_overs(self._target.parent)
            self._handle, self._temporary = _create(self._target.parent)

    def write(self, content: bytes) -> None:
        """Append all of it."""
        rest = memoryview(content)
        with _named(self.path):
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        self._whole += len(content)

    def commit(self) -> None:
        """Flush the file to disk and give it its name."""
        if self.direct:
            self._close()
            return
        with _named(self.path):
            os.fsync(self._handle)
            if self._target.exists():
                with suppress(OSError):  # a file system without modes
                    self._temporary.chmod(stat.S_IMODE(self._target.stat().st_mode) & 0o777)
            self._rename(self._target)

    def keep(self) -> Path | None:
        """Stop, and keep the complete writes so far as FILE.partial in the same folder; None if that failed."""
        for number in range(1, 1000):
            ending = b".partial" if number == 1 else b".partial%d" % number
            name = os.fsencode(self._target.name)[: _NAME_BYTES - len(ending)] + ending
            kept = self._target.with_name(os.fsdecode(name))
            if not os.path.lexists(kept):
                break
        try:
            os.ftruncate(self._handle, self._whole)  # a full disk may have taken half a line
            self._rename(kept)
        except OSError:
            self.discard()
            return None
        return kept

    def discard(self) -> None:
        """Stop and leave nothing."""
        self._close()
        if not self.direct:
            with suppress(OSError):
                self._temporary.unlink()

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            if self._handle >= 0:
                self.discard()

    def _rename(self, to: Path) -> None:
        if os.name == "posix":  # elsewhere an open file cannot be renamed
            self._temporary.replace(to)
            self._close()
        else:
            self._close()
            self._temporary.replace(to)
        sync_folder(to.parent)

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, renamed to `path` when the block ends without an error; `path` must not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(path.parent)
    handle, scratch = _create(path.parent, folder=True)
    try:
        yield scratch
        scratch.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def _create(parent: Path, *, folder: bool = False) -> tuple[int, Path]:
    """A new file or folder under a short name, locked while it is open, with the mode that the umask gives.

    The handle is -1 for a folder on systems that cannot open folders.
    """
    while True:
        path = parent / _TEMPORARY.format(secrets.token_hex(8))
        if folder:
            path.mkdir()
            handle = os.open(path, os.O_RDONLY) if fcntl is not None else -1
        else:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is None:
            return handle, path
        with suppress(OSError):  # a share without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():  # another writer may have removed it as a leftover before it was locked
            return handle, path
        os.close(handle)


def _remove_left_overs(folder: Path) -> None:
    """Remove leftovers of killed writers from a folder, once per folder and process."""
    key = str(folder)
    if key in _cleaned:
        return
    _cleaned.add(key)
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if _LEFT_OVER.fullmatch(entry.name)]
    for path in found:
        with suppress(OSError):  # another writer was faster, or it may not be removed
            if _is_being_written(path):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_being_written(path: Path) -> bool:
    if fcntl is None:
        return path.is_dir() and time.time() - path.stat().st_mtime < _DAY_S
    mode = os.O_RDONLY if path.is_dir() else os.O_RDWR  # some shares lock only files that are open for writing
    handle = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a share without locks: a day is longer than any run
        return time.time() - os.fstat(handle).st_mtime < _DAY_S
    finally:
        os.close(handle)
    return False


def _is_direct(path: Path) -> bool:
    """Whether `path` is written to directly. Raises PredictorError for a disk or a socket."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise PredictorError(f"{path} is a disk or a socket, which is not written to: choose another place")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _descriptor(path: Path) -> int | None:
    """N where `path` is, or links to, descriptor N of this process (/dev/stdout, /dev/fd/N, /proc/self/fd/N)."""
    folders = {"/dev/fd", os.path.realpath("/proc/self/fd")}
    for _ in range(40):  # as many links as a system follows
        folder = os.path.realpath(path.parent)
        if folder in folders and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def _open_direct(path: Path) -> int:
    number = _descriptor(path)
    if number is not None:
        return os.dup(number)
    if not path.is_fifo():
        return os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))
    until = time.monotonic() + READER_WAIT_S
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise PredictorError(f"{path} is a pipe without a reader; start its reader first") from None
            time.sleep(0.05)
        else:
            os.set_blocking(handle, True)
            return handle


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Make an OSError name the requested file instead of the temporary one."""
    try:
        yield
    except OSError as exc:
        if exc.errno is not None:
            exc.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk, so that successive writes survive a power cut in that order."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
