"""The JSON lines of `predict` as a store of verdicts, in a database of their own that ends with the program."""

from __future__ import annotations

import io
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from .errors import StoreError
from .files import open_plain
from .jsonfields import Fields, listed, parse_json
from .pixels import MAX_SIDE
from .rows import Row
from .verdict_file import LARGEST, failing, fill_schema
from .verdict_records import NOWHERE, Run
from .verdict_rows import Record, answer_record, failed_record
from .verdict_writer import insert, insert_run

MAX_LINE = 1 << 24
"""Bytes of a line: a frame with thousands of regions takes a megabyte."""


def lines_database(path: Path) -> sqlite3.Connection:
    """A database as of `verdict_file.open_to_read`, filled from JSON lines. SQLite keeps it in a temporary file.

    Raises StoreError that names the line for one that is none of `predict`, and for a file that cannot be read.
    """
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        with failing(path):
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
            fill_schema(database)
            database.execute("BEGIN")
            _fill(database, path)
            database.execute("COMMIT")
            database.execute("PRAGMA query_only = ON")
    except BaseException:
        database.close()
        raise
    return database


def _fill(database: sqlite3.Connection, path: Path) -> None:
    """Each list of classes is a run; frames that were not read, whose lines name no classes, count to the last one."""
    runs: dict[tuple[str, ...], int] = {}
    latest: tuple[str, ...] = ()
    with io.BufferedReader(open_plain(path)) as file:
        began = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for where, line in _lines(path, file):
            record, classes = _record(path, where, line)
            latest = latest if classes is None else classes
            if latest not in runs:
                runs[latest] = insert_run(database, Run(began, "", "", "", latest, {}))
            insert(database, runs[latest], record)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Each line with its place. Raises StoreError."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        where = f"line {number}"
        if len(line) > MAX_LINE:
            raise StoreError(path, f"{where} is longer than {MAX_LINE:,} bytes: it is no line of `sem-clip predict`")
        if not line.endswith(b"\n"):
            raise StoreError(path, f"{where}, the last one, is cut off: remove it, or judge that frame again")
        yield where, line


def _record(path: Path, where: str, line: bytes) -> tuple[Record, tuple[str, ...] | None]:
    """The columns of a line, and its classes; None for a frame that was not read. Raises StoreError."""
    faults: list[str] = []
    try:
        document = parse_json(line, faults)
    except (ValueError, RecursionError) as exc:
        raise StoreError(path, f"{where} is no JSON ({exc!s:.200})") from exc
    if isinstance(document, dict) and "defect_id" in document:
        raise StoreError(
            path, "is the side file of a lot, which does not tell where its images are: `sem-clip classify-lot --store`"
        )
    fields = Fields(document, "the line", faults)
    source = fields.text("source")
    if fields.has("error"):
        record, classes = failed_record(source, fields.text("error"), NOWHERE, _absolute(source)), None
    else:
        sized = isinstance(document, dict) and document.get("pixel_size_nm") is not None
        row = _row(source, fields, sized=sized)
        classes = tuple(row["probabilities"])
        if row["label"] not in classes or len(classes) < 2:
            faults.append("raw.probabilities must be of at least two classes, the label among them")
        record = {} if faults else answer_record(row, NOWHERE, _absolute(source), features=None)
    if faults:
        raise StoreError(path, f"{where} is no line of `sem-clip predict --json`: {'; '.join(listed(faults))}")
    return record, classes


def _absolute(source: str) -> str | None:
    return os.path.abspath(source) if "\0" not in source else None  # noqa: PTH100  a Path for each line costs more


def _row(source: str, fields: Fields, *, sized: bool) -> Row:
    """A line of an answer as the row of `Prediction.to_row`, without what lines do not hold; faults go to `fields`.

    sized: whether the line gives the size of a pixel.
    """
    raw = fields.inner("raw")
    by_name = raw.inner("probabilities")
    names = list(raw.mapping("probabilities"))
    height, width = fields.pair("frame_size", 1, MAX_SIDE)
    top, bottom = fields.pair("ignored_rows", 0, MAX_SIDE)
    sides = fields.numbers("pixel_size_nm", 2) if sized else (None, None)
    return {
        "source": source,
        **{name: fields.text(name) for name in ("verdict", "reason", "label")},
        "is_defect": fields.flag("is_defect"),
        **{name: fields.number(name, 0, 1) for name in ("confidence", "score")},
        "defect_threshold": fields.number("defect_threshold"),
        "head_class": raw.text("head_class"),
        "probabilities": {name: by_name.number(name, 0, 1) for name in names},
        **{name: raw.number(name, 0, 1) for name in ("map_score", "peak")},
        "novelty": raw.number("novelty", 0, 2),
        "regions": [_region(fields, index, one) for index, one in enumerate(fields.items("regions"))],
        "frame_height": height,
        "frame_width": width,
        "ignored_top": top,
        "ignored_bottom": bottom,
        "pixel_width_nm": sides[0],
        "pixel_height_nm": sides[1],
        "backend": fields.text("backend"),
        "warnings": list(fields.texts("warnings")) if fields.has("warnings") else [],
    }


def _region(fields: Fields, index: int, value: Any) -> Row:
    """One entry of `regions`."""
    region = Fields(value, f"regions[{index}]", fields.faults)
    centre = region.numbers("centroid", 2)
    return {
        **{name: region.whole(name, 0, MAX_SIDE) for name in ("x", "y")},
        **{name: region.whole(name, 1, MAX_SIDE * MAX_SIDE) for name in ("width", "height", "area")},
        "centroid_x": centre[0],
        "centroid_y": centre[1],
        "peak": region.number("peak", 0, 1),
        "below_threshold": region.flag("below_threshold"),
    }
