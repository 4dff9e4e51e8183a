"""A folder of answers: Parquet files of rows, each whole or absent, and the settings by which they were given.

A run that is repeated adds what is missing. A frame is answered when a row names it and has no error. The others are
tried again; a row with an error is taken out once its frame has a newer row on disk.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import BundleError, PredictorError
from ..files import read_bounded, write_atomically
from ..jsonfields import parse_json
from ..locking import locked
from ..parquet import ROW_GROUP, arrow_errors, check_schema, import_pyarrow

SETTINGS = "_sem_clip.json"
"""Readers of Parquet folders skip names that begin with an underscore."""
LOCK = "_sem_clip.lock"
FORMAT, VERSION = "sem-clip-answers", 1
FILE_ROWS = 5000
FILE_S = 60.0
"""A file is written when it has so many rows, or so many seconds after its first: the most that `kill -9` costs."""
_NAME = re.compile(r"part-([0-9]{6,9})\.parquet")
_MAX_SETTINGS = 1 << 16


class AnswerFolder:
    """Rows on their way into the folder. Use `answer_folder`; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[Any] = []
        self._rows = 0
        self._timer: threading.Timer | None = None
        self._writing = threading.Lock()
        self._first = self._next = 1 + max((int(match[1]) for _, match in _parts(folder)), default=0)
        self._errors = False
        self._outdated: frozenset[str] = frozenset()

    def missing(self, frames: Any) -> tuple[Any, int]:
        """The rows of an Arrow table whose `source` has no answer on disk; how many of them have an error there.

        Raises PredictorError for a damaged file.
        """
        import pyarrow.compute as pc

        found = [_read(path, ["source", "error"]) for path, _ in _parts(self.folder)]
        failed = [table.filter(pc.is_valid(table.column("error"))) for table in found]
        self._errors = any(table.num_rows for table in failed)
        there = _sources(table.filter(pc.is_null(table.column("error"))) for table in found)
        missing = frames.filter(pc.invert(pc.is_in(frames.column("source"), value_set=there)))
        again = pc.sum(pc.is_in(missing.column("source"), value_set=_sources(failed))).as_py()
        return missing, again or 0

    def without_row(self, frames: Any) -> int:
        """How many rows of an Arrow table have a `source` that got no row since the folder was opened."""
        import pyarrow.compute as pc

        new = [_read(path, ["source"]) for path, match in _parts(self.folder) if int(match[1]) >= self._first]
        return int(frames.num_rows - (pc.sum(pc.is_in(frames.column("source"), value_set=_sources(new))).as_py() or 0))

    def outdate(self, sources: Collection[str]) -> None:
        """Let rows with an error go at the end that name no frame: folders and tables that were read by now."""
        self._outdated = frozenset(sources)

    def add(self, table: Any) -> None:
        """Take rows of `arrow_schema()`; they are on disk after `flush`, once there are enough, or after FILE_S."""
        with self._writing:
            self._held.append(table)
            self._rows += table.num_rows
            if self._rows >= FILE_ROWS:
                self._write_held()
            elif self._timer is None:
                self._timer = threading.Timer(FILE_S, self._flush_in_time)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write what is held. Raises OSError."""
        with self._writing:
            self._write_held()

    def close(self) -> None:
        """`flush`, and take out the rows with an error whose frames have newer ones, now that these are on disk."""
        self.flush()
        if self._errors:
            _drop_replaced_errors(self.folder, self._outdated)

    def _flush_in_time(self) -> None:
        with suppress(OSError):  # the rows are still held; the next `flush` raises it
            self.flush()

    def _write_held(self) -> None:
        import pyarrow as pa

        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._rows:
            return
        _write(self.folder / f"part-{self._next:06d}.parquet", pa.concat_tables(self._held).combine_chunks())
        self._next += 1
        self._held, self._rows = [], 0


def _drop_replaced_errors(folder: Path, outdated: Collection[str]) -> None:
    """Take out each row with an error whose source has an answer, or a row in a later file, or is outdated."""
    import pyarrow as pa
    import pyarrow.compute as pc

    files = [(path, _read(path, ["source", "error"])) for path, _ in _parts(folder)]
    failed = _sources(table.filter(pc.is_valid(table.column("error"))) for _, table in files)
    latest = dict.fromkeys(outdated, len(files))  # the number of the file from which an error is the last word
    for number, (_, table) in enumerate(files):
        rows = table.filter(pc.is_in(table.column("source").cast(pa.large_string()), value_set=failed))
        for source, error in zip(rows.column("source").to_pylist(), rows.column("error").to_pylist(), strict=True):
            latest[source] = max(latest.get(source, 0), len(files) if error is None else number)
    for number, (path, table) in enumerate(files):
        pairs = zip(table.column("source").to_pylist(), table.column("error").to_pylist(), strict=True)
        kept = [error is None or latest[source] <= number for source, error in pairs]
        if not any(kept):
            path.unlink()
        elif not all(kept):
            _write(path, _read(path, None).filter(pa.array(kept)))


def _sources(tables: Iterable[Any]) -> Any:
    import pyarrow as pa

    chunks = [chunk.cast(pa.large_string()) for table in tables for chunk in table.column("source").chunks]
    return pa.chunked_array(chunks, pa.large_string()).combine_chunks()


@contextmanager
def answer_folder(folder: Path, settings: Mapping[str, object]) -> Iterator[AnswerFolder]:
    """The folder, locked against other runs; made where it is absent. What was added is written, also after an error.

    settings: what the answers depend on. Raises PredictorError for a folder of other settings or with other contents,
    for damaged files, and while another run writes there; OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, folder, 0.0):
        _check(folder, dict(settings))
        answers = AnswerFolder(folder)
        try:
            yield answers
        finally:
            answers.close()


def _check(folder: Path, settings: dict[str, object]) -> None:
    """Raise PredictorError unless the folder is empty or holds answers by these settings; record them."""
    document = {"format": FORMAT, "version": VERSION, "settings": settings}
    file = folder / SETTINGS
    if not file.exists():
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in (LOCK, SETTINGS))
        strangers = [name for name in strangers if not name.startswith(".sem-clip-")]  # of a run that was killed
        if strangers:
            raise PredictorError(f"{folder} holds other files ({strangers[0]}): choose an empty folder or a new one")
        write_atomically(file, (json.dumps(document, indent=2) + "\n").encode())
        return
    try:
        found = parse_json(read_bounded(file, _MAX_SETTINGS, BundleError), [])
    except (ValueError, RecursionError) as exc:
        raise PredictorError(f"{file} is not readable JSON ({exc}): choose another folder") from exc
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise PredictorError(f"{file} was not written by this command: choose another folder")
    if found.get("version") != VERSION:
        raise PredictorError(
            f"{file} has version {found.get('version')!r:.20}: choose another folder, or update sem-clip"
        )
    before = found.get("settings")
    before = before if isinstance(before, dict) else {}
    other = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
    if other:
        changes = "; ".join(f"{n} was {_short(before.get(n))} and is {_short(settings.get(n))}" for n in other)
        raise PredictorError(f"{folder} holds answers by other settings ({changes}): choose another folder for these")


def _short(value: object) -> str:
    return f"{value}"[:16]


def _parts(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    found = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [(path, match) for path, match in found if match is not None]


def _read(path: Path, columns: Sequence[str] | None) -> Any:
    """Columns of a file of answers, by default all. Raises RowError for another schema, PredictorError for damage."""
    parquet = import_pyarrow().parquet
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as opened:
            check_schema(opened.schema_arrow, str(path))
            return opened.read(columns=None if columns is None else list(columns))
    except arrow_errors() as exc:
        raise PredictorError(
            f"{path}: is damaged ({_line(exc)}): remove it and run again, which judges its frames again"
        ) from exc


def _write(path: Path, table: Any) -> None:
    """The file, whole or not at all, in row groups that readers of one machine hold easily."""
    parquet, content = import_pyarrow().parquet, io.BytesIO()
    parquet.write_table(table, content, row_group_size=ROW_GROUP, compression="zstd", write_page_checksum=True)
    write_atomically(path, content.getvalue())


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
