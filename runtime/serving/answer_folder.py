"""A folder of answers: Parquet files of rows, each whole or absent, and the settings by which they were given.

A run that is repeated adds what is missing. A frame is answered when a row names it and has no error. Rows with an
error are taken out when the next run begins, and their frames are tried again.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BundleError, PredictorError
from ..files import read_bounded, write_atomically
from ..jsonfields import parse_json
from ..locking import locked
from ..parquet import ROW_GROUP, check_schema, import_pyarrow

SETTINGS = "_sem_clip.json"
"""Readers of Parquet folders skip names that begin with an underscore."""
LOCK = "_sem_clip.lock"
FORMAT, VERSION = "sem-clip-answers", 1
FILE_ROWS = 5000
FILE_S = 60.0
"""A file is written when it has so many rows, or so long after its first: the most that `kill -9` costs."""
_NAME = re.compile(r"part-([0-9]{6,9})\.parquet")
_MAX_SETTINGS = 1 << 16


class AnswerFolder:
    """Rows on their way into the folder. Use `answer_folder`; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[Any] = []
        self._rows = 0
        self._since = 0.0
        self._next = 1 + max((int(match[1]) for _, match in _parts(folder)), default=0)

    def missing(self, frames: Any) -> Any:
        """The rows of an Arrow table whose `source` has no row on disk. Raises PredictorError for a damaged file."""
        import pyarrow as pa
        import pyarrow.compute as pc

        columns = [_read(path, ["source"]).column("source") for path, _ in _parts(self.folder)]
        chunks = [chunk.cast(pa.large_string()) for column in columns for chunk in column.chunks]
        there = pa.chunked_array(chunks, pa.large_string()).combine_chunks()
        return frames.filter(pc.invert(pc.is_in(frames.column("source"), value_set=there)))

    def drop_errors(self) -> int:
        """Take out the rows with an error, so that their frames are tried again; how many there were."""
        import pyarrow.compute as pc

        dropped = 0
        for path, _ in _parts(self.folder):
            if not _read(path, ["error"]).column("error").is_valid().to_numpy().any():
                continue
            table = _read(path, None)
            kept = table.filter(pc.is_null(table.column("error")))
            dropped += table.num_rows - kept.num_rows
            if kept.num_rows:
                _write(path, kept)
            else:
                path.unlink()
        return dropped

    def add(self, table: Any) -> None:
        """Take rows of `arrow_schema()`; they are on disk after `flush`, or once there are enough of them."""
        if not self._held:
            self._since = time.monotonic()
        self._held.append(table)
        self._rows += table.num_rows
        if self._rows >= FILE_ROWS or time.monotonic() - self._since > FILE_S:
            self.flush()

    def flush(self) -> None:
        """Write what is held. Raises OSError."""
        import pyarrow as pa

        if not self._rows:
            return
        _write(self.folder / f"part-{self._next:06d}.parquet", pa.concat_tables(self._held).combine_chunks())
        self._next += 1
        self._held, self._rows = [], 0


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
            answers.flush()


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
    except (OSError, ValueError) as exc:  # of pyarrow, whose own errors are ValueErrors
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
