"""The file of a store of verdicts: an SQLite database of one fixed schema, made whole, opened with care.

SQLite keeps everything in one file that survives a killed writer, sorts and filters by indexes, and lets readers work
beside the writer. A Parquet file can neither be added to nor be read while it is written. The file is not trusted:
it must have the application id, the version and the exact schema of a store, or it is refused before any row is read.
While a writer works there are two more files, `-wal` and `-shm`: the store must lie on a local disk.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from .errors import StoreError
from .files import open_plain, require_files, sync_folder
from .terminal import show

APPLICATION_ID = 0x53434C56  # "SCLV"
SCHEMA = 1
"""Rises when the schema changes, so that no reader takes a file for what it is not."""
TOGETHER = 1 << 16
"""Bytes of a text or a blob in a list of answers."""
LARGEST = 1 << 28
"""Bytes of a map, or of the features of a frame."""
WAIT_S = 10.0
"""How long to wait for another process that writes at this moment."""
MAGIC = b"SQLite format 3\0"
"""How the file of a store begins."""
_HEAD, _VERSION_AT = 100, 60
_STATEMENTS = (
    "CREATE TABLE store (id TEXT NOT NULL)",
    "CREATE TABLE runs (id INTEGER PRIMARY KEY, began TEXT NOT NULL, bundle TEXT NOT NULL, encoder_id TEXT NOT NULL, "
    "recipe_sha256 TEXT NOT NULL, classes TEXT NOT NULL, operating_point TEXT NOT NULL)",
    # One row for each answer, none of them ever removed. frame: what names the frame; newest: whether no later row has
    # the same. path: bytes, because a name may be no text.
    "CREATE TABLE answers (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, frame BLOB NOT NULL, newest INTEGER NOT NULL, "
    "source TEXT NOT NULL, path BLOB, lot TEXT, wafer TEXT, defect_id TEXT, x_nm REAL, y_nm REAL, wafer_mm REAL, "
    "verdict TEXT, label TEXT, is_defect INTEGER, confidence REAL, score REAL, novelty REAL, size_nm REAL, "
    "sureness REAL NOT NULL, frame_height INTEGER, frame_width INTEGER, error TEXT)",
    # What is read of one frame at a time, apart from the others so that lists stay quick.
    "CREATE TABLE details (id INTEGER PRIMARY KEY, facts TEXT NOT NULL, probabilities BLOB NOT NULL, "
    "regions BLOB NOT NULL, patch_map BLOB, features BLOB)",
    "CREATE UNIQUE INDEX newest_of_a_frame ON answers (frame) WHERE newest = 1",
    "CREATE INDEX by_source ON answers (source, id) WHERE newest = 1",
    "CREATE INDEX by_sureness ON answers (sureness, id) WHERE newest = 1",
    "CREATE INDEX by_novelty ON answers (novelty, id) WHERE newest = 1",
)
_EXPECTED = sorted(_STATEMENTS)


def create(path: Path) -> None:
    """Make an empty store, whole or not at all; one that another process made meanwhile stays. Raises StoreError."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".sem-clip-{secrets.token_hex(8)}.part")
    with failing(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(_uri(temporary, "rwc"), uri=True, isolation_level=None)) as made:
                fill_schema(made)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return
            except OSError:  # a file system without links
                if not target.exists():
                    temporary.rename(target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def fill_schema(database: sqlite3.Connection) -> None:
    """Give an empty database the schema of a store, and an id of its own."""
    database.execute("BEGIN")
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {SCHEMA}")
    for statement in _STATEMENTS:
        database.execute(statement)
    database.execute("INSERT INTO store VALUES (?)", (secrets.token_hex(16),))
    database.execute("COMMIT")


def require_store(path: Path) -> None:
    """Raise PredictorError unless a store is at `path` and may be added to, or one can be made there."""
    if path.exists() and not path.is_file():
        raise StoreError(path, "is no file; name a file of `sem-clip predict --store`, or one that is not there yet")
    require_files([path], force=True)
    if path.exists():
        open_to_read(path).close()
        if not os.access(path, os.W_OK):
            raise StoreError(path, "may not be written to: choose another file with --store")


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot change the file; its threads must take turns. Raises StoreError."""
    _check_head(path)
    return _open(path, "ro")


def open_to_write(path: Path) -> sqlite3.Connection:
    """A connection that adds rows while others read; its threads must take turns. Raises StoreError."""
    if not path.exists():
        create(path)
    _check_head(path)
    database = _open(path, "rw")
    try:
        with failing(path):
            (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
            database.execute("PRAGMA synchronous = NORMAL")
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
    except BaseException:
        database.close()
        raise
    if mode != "wal":
        database.close()
        raise StoreError(path, "lies on a file system that SQLite cannot share; choose a file on a local disk")
    return database


def close_written(database: sqlite3.Connection) -> None:
    """Close a connection of `open_to_write`; the last one leaves a single file, unless a reader has it open."""
    with suppress(sqlite3.Error):
        database.execute("PRAGMA busy_timeout = 0")
        database.execute("PRAGMA journal_mode = DELETE")
    database.close()


@contextmanager
def failing(path: object) -> Iterator[None]:
    """Turn errors of SQLite and of the system into StoreError."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorname", "") or ""
        raise StoreError(path, _told(exc, code)) from exc
    except (OSError, ValueError, MemoryError) as exc:
        raise StoreError(path, f"cannot be used ({getattr(exc, 'strerror', None) or exc or 'no memory'})") from exc


def _told(error: sqlite3.Error, code: str) -> str:
    """What SQLite says, and what to do."""
    said = show(error)[:200]
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"is in use by another process for more than {WAIT_S:.0f} s: wait until that is done"
    if code.startswith("SQLITE_FULL"):
        return "cannot be written, for the disk is full"
    if code.startswith("SQLITE_TOOBIG") or isinstance(error, sqlite3.DataError):
        return f"holds a value larger than any that a store writes ({said}): it is damaged"
    if code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_IOERR")):
        return (
            f"cannot be opened ({said}): it must lie on a local disk, and while a writer works, or after one was "
            "killed, its folder must be writable"
        )
    return f"is damaged, or no store of verdicts ({said})"


def head_of(path: str | Path) -> bytes | None:
    """The first bytes of a file; None for a store that this process has open.

    On POSIX, closing any handle to a file drops the locks that SQLite holds on it. A writer elsewhere would then take
    the log away under a reader, which from then on sees old answers, or a damaged file. Raises OSError, ValueError.
    """
    found = Path(path).stat()
    with _listing:
        if any(one.file == (found.st_dev, found.st_ino) for one in _open_here):
            return None
    with open_plain(path) as file:
        return file.read(_HEAD) or b""


class _Listed(sqlite3.Connection):
    """A connection that `head_of` knows of until it is closed. file: device and inode."""

    file: tuple[int, int] | None = None

    def enlist(self, path: Path) -> None:
        found = Path(path).stat()
        with _listing:
            self.file = found.st_dev, found.st_ino
            _open_here.add(self)

    def close(self) -> None:
        super().close()
        self.file = None


_open_here: WeakSet[_Listed] = WeakSet()
_listing = threading.Lock()


def _check_head(path: Path) -> None:
    """Raise StoreError unless the file begins as a store: before SQLite reads any of it."""
    try:
        head = head_of(path)
    except FileNotFoundError:
        raise StoreError(path, "does not exist; `sem-clip predict --store FILE` writes one") from None
    except (OSError, ValueError) as exc:
        raise StoreError(path, f"cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc
    if head is None:
        return
    if len(head) < _HEAD or not head.startswith(MAGIC):
        raise StoreError(path, "is no store of verdicts: name a file of `sem-clip predict --store`")
    version, _, application = struct.unpack_from(">III", head, _VERSION_AT)
    if application != APPLICATION_ID:
        raise StoreError(path, "is a database of another program: name a file of `sem-clip predict --store`")
    if version != SCHEMA:
        raise StoreError(
            path,
            f"has schema version {version}, this program takes {SCHEMA}: judge the frames again into a new file, or "
            "use the version of sem-clip that wrote it",
        )


def _open(path: Path, mode: str) -> sqlite3.Connection:
    with failing(path):
        database = sqlite3.connect(
            _uri(path, mode),
            uri=True,
            isolation_level=None,
            timeout=WAIT_S,
            check_same_thread=False,
            factory=_Listed,
        )
    try:
        with failing(path):
            database.enlist(path)
            _harden(database)
            if mode == "ro":
                database.execute("PRAGMA query_only = ON")
            found = database.execute("SELECT sql FROM sqlite_master ORDER BY sql LIMIT 100").fetchall()
    except BaseException:
        database.close()
        raise
    if [sql for (sql,) in found] != _EXPECTED:
        database.close()
        raise StoreError(path, "does not have the tables of a store of verdicts: it is damaged, or was changed by hand")
    return database


def _harden(database: sqlite3.Connection) -> None:
    """A database may come from anywhere: nothing in it may run, and no value may be larger than any of ours."""
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA cell_size_check = ON")
    database.execute("PRAGMA mmap_size = 0")
    for limit, most in (
        (sqlite3.SQLITE_LIMIT_LENGTH, TOGETHER),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 4_000_000),
        (sqlite3.SQLITE_LIMIT_COLUMN, 100),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        database.setlimit(limit, most)


def _uri(path: Path, mode: str) -> str:
    return f"{Path(path).absolute().as_uri()}?mode={mode}"
