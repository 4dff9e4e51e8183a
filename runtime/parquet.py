"""Rows of answers as Parquet files, by one versioned Arrow schema. Needs pyarrow: pip install "sem-clip[parquet]"."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import BackendUnavailable, PredictorError, RowError
from .files import OutputFile, open_plain
from .maps import SIZES_NM
from .parquet_index import Index, read_index
from .prediction import FailedFrame, Prediction, read_result
from .rows import COLUMNS, NAMES, SCHEMA_VERSION, Row
from .terminal import printable

VERSION_KEY = "sem_clip.schema"
ROW_GROUP = 1000
"""Rows of a row group: a megabyte or two without features."""
_TOGETHER = 50
"""Rows that are turned into Arrow's form at once: as Python's numbers, features take ten times the memory."""
_READ_TOGETHER = 200
_MAX_GROUP_ROWS, _MAX_GROUP_BYTES, _MAX_BATCH_BYTES = 1 << 20, 1 << 29, 1 << 28
_BUFFER = 1 << 20
_BY_NAME = tuple(column.name for column in COLUMNS if column.kind == "numbers by name")


def import_pyarrow() -> Any:
    """The module `pyarrow`, with `pyarrow.parquet` loaded. Raises BackendUnavailable, with how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise BackendUnavailable(f'Parquet needs pyarrow ({exc}): pip install "sem-clip[parquet]"') from exc
    return pyarrow


def arrow_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for files that are damaged, gone or without a column: not all its errors are ValueErrors."""
    return import_pyarrow().ArrowException, OSError, ValueError, KeyError, MemoryError


def arrow_schema() -> Any:
    """The `pyarrow.Schema` of rows: the columns of `rows.COLUMNS`, all nullable, with the version as metadata.

    The row of a frame that was not read has `source` and `error` alone. Raises BackendUnavailable.
    """
    pa = import_pyarrow()
    region = [(name, pa.int32()) for name in ("x", "y", "width", "height")]
    region += [("area", pa.int64())]
    region += [(name, pa.float64()) for name in ("centroid_x", "centroid_y", "peak")]
    region += [("below_threshold", pa.bool_())]
    region += [(name, pa.float64()) for name in SIZES_NM]
    kinds = {
        "text": pa.string(),
        "flag": pa.bool_(),
        "number": pa.float64(),
        "whole": pa.int32(),
        "checksum": pa.int64(),
        "bytes": pa.binary(),
        "texts": pa.list_(pa.string()),
        "float32s": pa.list_(pa.float32()),
        "numbers by name": pa.map_(pa.string(), pa.float64()),
        "regions": pa.list_(pa.struct(region)),
    }
    return pa.schema([(column.name, kinds[column.kind]) for column in COLUMNS], {VERSION_KEY: str(SCHEMA_VERSION)})


def table_of(rows: Iterable[Row]) -> Any:
    """Rows of `to_row` as a `pyarrow.Table` of `arrow_schema()`, equal to the bit; also of no rows, or failed ones."""
    pa = import_pyarrow()
    return pa.Table.from_pylist(list(rows), schema=arrow_schema())


def check_schema(schema: Any, where: str) -> None:
    """Raise RowError unless a `pyarrow.Schema` is that of rows, of this version. Further columns are allowed.

    where: names the file or the dataset in the message.
    """
    version = (schema.metadata or {}).get(VERSION_KEY.encode())
    if version is None:
        raise RowError(
            f"{where}: its schema has no {VERSION_KEY}: it holds no rows of sem-clip; name a file of "
            "`sem-clip predict --parquet`"
        )
    if version != str(SCHEMA_VERSION).encode():
        told = version.decode(errors="backslashreplace")
        raise RowError(
            f"{where}: has schema version {told:.20}, this reader takes {SCHEMA_VERSION}: judge the frames again, or "
            "read it with the version of sem-clip that wrote it"
        )
    wanted = arrow_schema()
    wrong = [name for name in NAMES if len(schema.get_all_field_indices(name)) != 1]
    wrong += [
        f"{name} ({found.type}{'' if found.nullable else ' not null'}, not {wanted.field(name).type})"
        for name, found in ((name, schema.field(name)) for name in NAMES if name not in wrong)
        if found.type != wanted.field(name).type or not found.nullable
    ]
    if wrong:
        raise RowError(f"{where}: columns are missing or of another type: {', '.join(wrong)}; judge the frames again")


def read_rows(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file as dictionaries, in order, and at most a row group of them in memory.

    columns: those to read; all of them by default. Reading few is much faster.
    Raises RowError for another file, another schema version, damage, or row groups beyond all bounds;
    BackendUnavailable; ValueError for an unknown column.
    """
    unknown = sorted(set(columns or ()) - set(NAMES))
    if unknown:
        raise ValueError(f"there is no column {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    pa = import_pyarrow()
    where = str(path)
    with _opened(path) as file:
        try:
            index = read_index(file)
        except ValueError as exc:
            raise RowError(f"{where}: {exc}; name a whole file of `sem-clip predict --parquet`") from exc
        with _reading(where):
            parquet = pa.parquet.ParquetFile(
                file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
            )
            check_schema(parquet.schema_arrow, where)
            _check_sizes(index, where)
            together = rows_at_once(index, _READ_TOGETHER)
            batches = parquet.iter_batches(together, columns=list(columns or NAMES), use_threads=False)
        left = index.rows
        while left > 0:
            with _reading(where):
                batch = next(batches, None)
                if batch is not None and batch.nbytes > _MAX_BATCH_BYTES:
                    raise RowError(
                        f"{where}: {batch.num_rows} of its rows are {batch.nbytes:,} bytes, which no rows are"
                    )
                rows = [] if batch is None else [_row(pairs) for pairs in batch.to_pylist()]
            left -= len(rows)
            if not rows or left < 0:  # no checksum covers the sizes of pages, and pyarrow ends at one of 0
                raise RowError(f"{where}: is damaged (its rows are not as many as its index says); copy it again")
            yield from rows


def _check_sizes(index: Index, where: str) -> None:
    """Raise RowError for row groups that would unpack to what no writer of rows makes, by the file's own account."""
    for number, group in enumerate(index.groups):
        # A value that is repeated takes no room in the file, and some in memory.
        values = max((column.values for column in group.columns), default=0)
        size = max(group.total_bytes, 4 * values)
        if group.rows > _MAX_GROUP_ROWS or size > _MAX_GROUP_BYTES:
            raise RowError(
                f"{where}: row group {number} has {group.rows:,} rows and {size:,} bytes, more than "
                f"{_MAX_GROUP_ROWS:,} or {_MAX_GROUP_BYTES:,}: write smaller row groups"
            )


def rows_at_once(index: Index, most: int, columns: Collection[str] | None = None) -> int:
    """How many rows to read at once, up to `most`, if each might repeat all texts and bytes of its row group.

    columns: those that are read; all by default.
    """
    largest = 1
    for group in index.groups:
        texts = [column for column in group.columns if column.is_text]
        read = [column.uncompressed_bytes for column in texts if columns is None or column.path in columns]
        largest = max(largest, sum(read))
    return max(1, min(most, _MAX_GROUP_BYTES // largest))


def read_results(path: str | Path) -> Iterator[Prediction | FailedFrame]:
    """The answers of a file, in order, as `Predictor.stream` gave them. Errors as `read_rows`, and of each row."""
    return map(read_result, read_rows(path))


@contextmanager
def parquet_rows(path: Path) -> Iterator[Callable[[Row], None]]:
    """A function that adds one row to a Parquet file, which appears at `path` once it is whole.

    If the block fails after some rows, `path`.partial keeps them, readable, and a message on stderr names it. A killed
    process leaves nothing readable: the index of a Parquet file is its end. A pipe or a device gets each row group at
    once. Raises BackendUnavailable; PredictorError if the reader of a pipe leaves; OSError.
    """
    import_pyarrow()
    out = OutputFile(path)
    try:
        rows = _Rows(out)
    except BaseException:
        out.discard()
        raise
    try:
        yield rows.add
        rows.finish()
        out.commit()
    except BaseException:
        kept = None
        if out.direct or not rows.count or not rows.finished():
            out.discard()
        elif (kept := out.keep()) is not None:
            print(f"the rows of {rows.count} frames that were done are kept in {printable(kept)}", file=sys.stderr)
        if kept is None and rows.count and not out.direct:
            print(f"of {printable(path)} nothing is kept: its end could not be written", file=sys.stderr)
        raise
    finally:
        rows.leave()


class _Rows:
    """Writes rows in row groups.

    All writing is done in a thread of its own, since Ctrl-C strikes in the main thread alone: in the middle of a row
    group it would ruin all before it.
    """

    def __init__(self, out: OutputFile) -> None:
        self._path = out.path
        self._taken = 0
        self._pa = import_pyarrow()
        self._waiting: list[Row] = []
        self._tables: list[Any] = []
        self._sound = True
        self._finished = False
        self._out, self._sink = out, _Sink()
        self._writer = self._pa.parquet.ParquetWriter(
            self._sink, arrow_schema(), compression="zstd", write_page_checksum=True
        )
        self._aside = ThreadPoolExecutor(1, "sem-clip-parquet")

    @property
    def count(self) -> int:
        """How many rows were added."""
        return self._taken + len(self._waiting)

    def add(self, row: Row) -> None:
        """Add a row; each thousandth writes a row group."""
        self._waiting.append(row)
        if len(self._waiting) >= _TOGETHER:
            self._wait_for(self._take)

    def finish(self) -> None:
        """Write what is left, and the file's end."""
        self._wait_for(self._end)

    def finished(self) -> bool:
        """`finish`, unless it was done; whether the file is whole then."""
        with suppress(Exception):
            self.finish()
        return self._finished

    def leave(self) -> None:
        """Stop the thread."""
        self._aside.shutdown()

    def _wait_for(self, work: Callable[[], None]) -> None:
        try:
            self._aside.submit(work).result()
        except BrokenPipeError:
            raise PredictorError(f"{self._path}: its reader left after {self.count} rows") from None

    def _take(self) -> None:
        rows = self._waiting[:]
        if rows:
            self._tables.append(table_of(rows))
            self._taken += len(rows)
            del self._waiting[: len(rows)]
        if sum(table.num_rows for table in self._tables) >= ROW_GROUP:
            self._write_group()

    def _end(self) -> None:
        if self._finished or not self._sound:
            return
        self._take()
        if self._tables:
            self._write_group()
        self._writer.close()
        self._put()
        self._finished = True

    def _write_group(self) -> None:
        self._writer.write_table(self._pa.concat_tables(self._tables).combine_chunks())
        self._tables = []
        self._put()

    def _put(self) -> None:
        self._sound = False  # for ever, if it fails: a Parquet file with a gap is none
        self._out.write(self._sink.taken())
        self._sound = True


class _Sink(io.RawIOBase):
    """What Arrow writes to. It never fails, because Arrow's writer does not take an error in each of its calls."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._parts.append(bytes(content))
        return len(content)

    def taken(self) -> bytes:
        """What was written since the last call."""
        content = b"".join(self._parts)
        self._parts.clear()
        return content


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """A file to read. Raises RowError."""
    try:
        file = io.BufferedReader(open_plain(path))
    except FileNotFoundError:
        raise RowError(f"{path}: does not exist") from None
    except IsADirectoryError:
        raise RowError(f"{path}: is a folder; read its files one by one: {path}/part-*.parquet") from None
    except (OSError, ValueError) as exc:
        raise RowError(f"{path}: cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc
    with file:
        yield file


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn pyarrow's errors of damaged files into RowError."""
    try:
        yield
    except arrow_errors() as exc:
        told = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise RowError(f"{where}: is damaged ({told:.200}); copy it again, or judge the frames again") from exc


def _row(found: Mapping[str, Any]) -> Row:
    """As `to_row` gives it: pyarrow has pairs in place of a dictionary."""
    named = {name: dict(found[name]) for name in _BY_NAME if found.get(name) is not None}
    return {**found, **named}
