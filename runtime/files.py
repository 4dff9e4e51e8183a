"""Reading and writing files safely: bounded reads, hashed content, writes that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tempfile
from pathlib import Path

from .errors import BundleError, PredictorError


def read_bounded(path: Path, max_bytes: int, error: type[BundleError]) -> bytes:
    """The file's bytes; `error` if it is missing, unreadable, no plain file, or larger than `max_bytes`."""
    try:
        with io.BufferedReader(open_plain(path)) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes:
                raise error(path, f"is {size:,} bytes, more than the {max_bytes:,} allowed here")
            return stream.read(size)  # and no more, if it grows meanwhile
    except FileNotFoundError:
        raise error(path, "does not exist") from None
    except OSError as exc:
        raise error(path, f"cannot be read ({exc.strerror})") from exc
    except ValueError as exc:  # a name that no file can have
        raise error(path, f"cannot be read ({exc})") from exc


def open_plain(path: str | Path) -> io.FileIO:
    """Open a file to read, and nothing else: a pipe would be waited for, a device has no end. Raises OSError."""
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


def require_folder(folder: Path) -> None:
    """Raise PredictorError unless `folder` is one or can be made: before the work whose result goes there."""
    nearest = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not nearest.is_dir():
        raise PredictorError(f"{nearest} is a file, so nothing can be written below it: choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PredictorError(f"{nearest} may not be written to: choose another place")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, then rename: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk, so that writes one after the other survive a power cut in that order."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
