"""Rows of a table that stand for frames, and their answers, in the order of the table.

A row has a path, or the content of a file and its name. Content that lies in an object store or in a Parquet file is
read ahead by a few threads; what cannot be read becomes the answer of that row.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeAlias

from ..errors import FrameError, PredictorError
from ..frames import MAX_FILE_BYTES, EncodedFrame
from ..parquet import arrow_errors, rows_at_once
from ..parquet_index import Index, read_index
from ..prediction import FailedFrame, Prediction
from ..predictor import Predictor
from .stores import Stored, is_uri

READERS = 8
"""Threads that fetch frames over the network, and how many frames they hold."""
PARQUET_ROWS = 16
"""Frames of a Parquet file that are held at a time, at most."""
NAMES, CONTENTS = ("path", "name", "source"), ("bytes", "data", "content")
"""Columns of a Parquet file of frames: the first of each that is there counts."""
OTHERS = "holds another frame by now in its row"
_BUFFER = 1 << 20
Entry: TypeAlias = "str | EncodedFrame | FailedFrame"


def answers(predictor: Predictor, entries: Iterable[Entry], threads: int) -> Iterator[Prediction | FailedFrame]:
    """One answer per entry, in order."""
    failed: deque[tuple[int, FailedFrame]] = deque()

    def sound() -> Iterator[str | EncodedFrame]:
        for number, entry in enumerate(entries):
            if isinstance(entry, FailedFrame):
                failed.append((number, entry))
            else:
                yield entry

    number = 0
    for result in predictor.stream(sound(), decoders=threads):
        while failed and failed[0][0] == number:
            yield failed.popleft()[1]
            number += 1
        yield result
        number += 1
    yield from (entry for _, entry in failed)


def entries(table: Any) -> Iterator[Entry]:
    """The frames of a pyarrow table. Columns: `path`; `bytes` with `path` or `name`; or `path`, `source` and `row`, the
    number of a row of the Parquet file `path`, null for a frame that is a file.

    Raises PredictorError where there are no such columns.
    """
    names = table.column_names
    if "bytes" in names and ("path" in names or "name" in names):
        name = table.column("path" if "path" in names else "name")
        return _contents(name, table.column("bytes"))
    if "path" not in names:
        raise PredictorError(
            f"the dataset has the columns {', '.join(names)}; frames need a column path, or bytes and one of path and "
            "name"
        )
    if "row" in names:
        return _members(table)
    return _files(table.column("path").to_pylist())


def failed(name: str, reason: str) -> FailedFrame:
    """The answer of a frame that cannot be read."""
    return FailedFrame(name, FrameError(name, reason))


def _contents(names: Any, contents: Any) -> Iterator[Entry]:
    for number, (name, data) in enumerate(zip(names, contents, strict=True)):
        known = name.as_py() or f"row {number}"
        yield EncodedFrame(str(known), data.as_py())


def _files(names: Iterable[Any]) -> Iterator[Entry]:
    """Paths as they are; URIs as their content."""
    paths = enumerate(names)
    for remote, group in groupby(paths, lambda pair: isinstance(pair[1], str) and is_uri(pair[1])):
        if remote:
            yield from _fetched(path for _, path in group)
        else:
            yield from (_local(path, number) for number, path in group)


def _local(path: Any, number: int) -> Entry:
    if not isinstance(path, str) or not path:
        return failed(f"row {number}", "has no path")
    if not os.path.isabs(path):  # noqa: PTH117  a Path for each frame costs more than the check
        return failed(path, "is a relative path, which leads elsewhere on a worker: give the absolute path")
    return path


def _fetched(uris: Iterable[str]) -> Iterator[Entry]:
    with ThreadPoolExecutor(READERS, "sem-clip-fetch") as pool:
        ahead: deque[Future[Entry]] = deque()
        for uri in uris:
            ahead.append(pool.submit(_fetch, uri))
            if len(ahead) == READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _fetch(uri: str) -> Entry:
    try:
        stored = Stored.of(uri)
        filesystem, path = stored.open()
        info = filesystem.get_file_info(path)
        if info.type.name == "NotFound":
            return failed(uri, "no such file")
        if not info.is_file:
            return failed(uri, "is a folder, not a frame")
        if info.size is not None and info.size > MAX_FILE_BYTES:
            return failed(uri, f"is {info.size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed here")
        with filesystem.open_input_stream(path) as stream:
            return EncodedFrame(uri, stream.read(MAX_FILE_BYTES), stored.page)
    except FrameError as exc:
        return FailedFrame(exc.source, exc)
    except arrow_errors() as exc:  # also for names that no store takes
        return failed(uri, f"cannot be read ({exc})")


def _members(table: Any) -> Iterator[Entry]:
    rows = zip(*(table.column(name).to_pylist() for name in ("source", "path", "row")), strict=True)
    for file, group in groupby(rows, lambda row: None if row[2] is None else row[1]):
        if file is None:
            yield from _files(os.fsdecode(path) for _, path, _ in group)
        else:
            yield from _of_parquet(os.fsdecode(file), [(source, row) for source, _, row in group])


def _of_parquet(file: str, wanted: Sequence[tuple[str, int]]) -> Iterator[Entry]:
    """Frames of a Parquet file. wanted: their names and rows, in the order of rows."""
    left = deque(wanted)
    try:
        for first, names, contents in _batches(file, wanted[0][1], wanted[-1][1]):
            while left and left[0][1] < first + len(names):
                source, row = left[0]
                if row < first:
                    raise FrameError(file, "is damaged (its index contradicts itself)")
                name, data = names[row - first].as_py(), contents[row - first].as_py()
                left.popleft()  # not before: what cannot be read must be answered below
                yield EncodedFrame(source, data) if name == source else failed(source, f"{file} {OTHERS} {row}")
        reason = f"{file} has fewer rows by now"
    except FrameError as exc:
        reason = exc.reason
    except arrow_errors() as exc:
        reason = f"{file} cannot be read ({exc})"
    yield from (failed(source, reason) for source, _ in left)


def _batches(file: str, first: int, last: int) -> Iterator[tuple[int, Any, Any]]:
    """Number of the first row, names and contents of batches that hold the rows `first` to `last`."""
    with parquet_file(file) as (opened, index):
        name, content = frame_columns(opened, file)
        together = rows_at_once(index, PARQUET_ROWS, (name, content))
        begin = 0
        for number, group in enumerate(index.groups):
            at, begin = begin, begin + group.rows
            if begin <= first or at > last:
                continue
            for batch in opened.iter_batches(together, row_groups=[number], columns=[name, content]):
                if at > last:
                    break
                if at + batch.num_rows > first:
                    yield at, batch.column(name), batch.column(content)
                at += batch.num_rows


@contextmanager
def parquet_file(file: str) -> Iterator[tuple[Any, Index]]:
    """A Parquet file opened by a path or a URI, to read in pieces, and its index.

    Raises FrameError, and errors of pyarrow.
    """
    from pyarrow import fs, parquet

    filesystem, path = Stored.of(file).open() if is_uri(file) else (fs.LocalFileSystem(), file)
    with filesystem.open_input_file(path) as stream:
        try:
            index = read_index(stream)
        except ValueError as exc:
            raise FrameError(file, str(exc)) from exc
        with parquet.ParquetFile(stream, buffer_size=_BUFFER) as opened:
            yield opened, index


def frame_columns(opened: Any, file: str) -> tuple[str, str]:
    """The columns with names and contents of a file of frames. Raises FrameError if it has none of the right types."""
    from pyarrow import types

    schema = opened.schema_arrow
    names = [name for name in NAMES if name in schema.names and _is(types, schema.field(name).type, "string")]
    contents = [name for name in CONTENTS if name in schema.names and _is(types, schema.field(name).type, "binary")]
    if not names or not contents:
        raise FrameError(
            file,
            f"has the columns {', '.join(schema.names)[:200]}; a file of frames has a text column "
            f"({' or '.join(NAMES)}) and a binary column ({' or '.join(CONTENTS)})",
        )
    return names[0], contents[0]


def _is(types: Any, kind: Any, wanted: str) -> bool:
    return bool(getattr(types, f"is_{wanted}")(kind) or getattr(types, f"is_large_{wanted}")(kind))
