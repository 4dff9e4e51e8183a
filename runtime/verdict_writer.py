"""Adding answers to a store of verdicts, while others read it."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from pathlib import Path
from types import TracebackType

from .errors import PredictorError, StoreError
from .operating_point import same_name_key
from .prediction import FailedFrame, Prediction
from .terminal import message
from .verdict_file import close_written, failing, open_to_write
from .verdict_records import NOT_READ, NOWHERE, Run, Site
from .verdict_rows import ANSWERS, DETAILS, Record, record_of, run_values

COMMIT_S, COMMIT_FRAMES, COMMIT_BYTES = 1.0, 200, 1 << 25
"""Answers are on disk after that time, after so many, and after so many bytes: what a killed process may lose."""


class VerdictWriter:
    """Adds the answers of one run to a store, which is made if it is not there. A context manager.

    Answers are kept when they are on disk: by a thread of its own, every second, and every 200 frames. A process that
    is killed loses those since then, and nothing else; a machine that loses power may lose more, and leaves the file
    sound. Several writers may add to one file. The run is stored with its first answer.

    id: of the store, made with it.
    Raises StoreError for a file that is no store or cannot be written, and for a class that is called "not read".
    """

    def __init__(self, path: str | Path, run: Run) -> None:
        taken = [name for name in run.classes if same_name_key(name) == NOT_READ]
        if taken:
            raise StoreError(
                path, f'the recipe has a class "{taken[0]}", which here means failed frames: teach it by another name'
            )
        self.path = Path(path)
        self._run = run
        self._run_id = 0
        self._pid = os.getpid()
        self._waiting: list[Record] = []
        self._bytes = 0
        self._failure: BaseException | None = None
        self._ended = False
        self._flushing = False
        self._changed = threading.Condition()
        self._database = open_to_write(self.path)
        self._thread = threading.Thread(target=self._work, name="sem-clip-store", daemon=True)
        try:
            self.id = self._read_id()
            self._thread.start()
        except BaseException:
            self._database.close()
            raise

    def add(self, result: Prediction | FailedFrame, site: Site = NOWHERE, path: str | None = None) -> None:
        """Add one answer; waits while more are on their way to the disk than one commit takes.

        path: of the frame, for a frame that was not read; of a Prediction, its own by default. It is made absolute.
        Raises StoreError if this or an earlier answer cannot be stored; PredictorError once closed.
        """
        named = path or (result.path if isinstance(result, Prediction) else None)
        absolute = None if named is None else os.path.abspath(named)  # noqa: PTH100  100,000 frames
        record = record_of(result, site, absolute, self._run.classes)
        with self._changed:
            self._changed.wait_for(lambda: not self._full() or self._failure or self._ended)
            self._require_sound()
            self._waiting.append(record)
            self._bytes += _size(record)
            if self._full():
                self._changed.notify_all()

    def flush(self) -> None:
        """Return when all answers so far are stored. Raises as `add`."""
        with self._changed:
            self._require_sound()
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._flushing or self._failure or self._ended)
            self._require_sound()

    def close(self) -> None:
        """Store what is left, and close the file. Closing twice is allowed. Raises StoreError."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            already, self._ended = self._ended, True
            self._changed.notify_all()
        self._thread.join()
        if not already:
            close_written(self._database)
            if self._failure is not None:
                raise self._failure

    def __enter__(self) -> VerdictWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StoreError as exc:
            if error is None:
                raise
            if exc is not error:
                print(f"the last answers are not stored: {message(exc)}", file=sys.stderr)

    def _full(self) -> bool:
        return len(self._waiting) >= COMMIT_FRAMES or self._bytes >= COMMIT_BYTES

    def _read_id(self) -> str:
        with failing(self.path):
            found = self._database.execute("SELECT id FROM store").fetchall()
        if len(found) != 1 or not isinstance(found[0][0], str):
            raise StoreError(self.path, "is damaged: it has no id")
        return str(found[0][0])

    def _require_sound(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise PredictorError(f"{self.path}: the writer is closed; open another one")

    def _work(self) -> None:
        """The thread: Ctrl-C strikes in the main thread alone, and would tear a commit there."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._flushing or self._full(), COMMIT_S)
                records, ended = self._waiting[:], self._ended
            try:
                if records:
                    self._store(records)
            except BaseException as exc:
                with self._changed:
                    self._failure = exc
                    self._changed.notify_all()
                return
            with self._changed:
                del self._waiting[: len(records)]
                self._bytes -= sum(map(_size, records))
                self._flushing &= bool(self._waiting)
                done = ended and not self._waiting
                self._changed.notify_all()
            if done:
                return

    def _store(self, records: list[Record]) -> None:
        """One transaction. Raises StoreError."""
        with failing(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                run = self._run_id or insert_run(self._database, self._run)
                for record in records:
                    insert(self._database, run, record)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
            self._run_id = run


def _size(record: Record) -> int:
    """Bytes of the large ones of a record."""
    return sum(len(record[name] or b"") for name in ("regions", "patch_map", "features"))


def insert_run(database: sqlite3.Connection, run: Run) -> int:
    """Add a run; returns its id, from 1."""
    values = run_values(run)
    columns = "began, bundle, encoder_id, recipe_sha256, classes, operating_point"
    return database.execute(f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?)", values).lastrowid or 0


def insert(database: sqlite3.Connection, run: int, record: Record) -> None:
    """Add an answer of a run, as the newest one of its frame."""
    database.execute("UPDATE answers SET newest = 0 WHERE newest = 1 AND frame = ?", (record["frame"],))
    number = database.execute(_ANSWER, (run, *(record[name] for name in ANSWERS))).lastrowid
    database.execute(_DETAIL, (number, *(record[name] for name in DETAILS)))


_ANSWER = f"INSERT INTO answers (run, newest, {', '.join(ANSWERS)}) VALUES (?, 1, {', '.join('?' * len(ANSWERS))})"
_DETAIL = f"INSERT INTO details (id, {', '.join(DETAILS)}) VALUES (?, {', '.join('?' * len(DETAILS))})"
