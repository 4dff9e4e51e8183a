"""Verdicts in one file, with all that it takes to draw a frame again: written while others read, sorted and filtered.

`VerdictWriter` adds the answers of a run, `VerdictStore` reads. Of each frame the newest answer is listed; older ones
stay in the file.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import whole_number
from .errors import FrameError, StoreError
from .prediction import FailedFrame, Prediction
from .rows import printed
from .verdict_file import LARGEST, MAGIC, TOGETHER, failing, head_of, open_to_read
from .verdict_lines import lines_database
from .verdict_records import BOUNDS, MOST_LISTED, NOT_READ, NOWHERE, ORDERS, Entry, Query, Run, Scores, Site
from .verdict_rows import (
    DETAILS,
    LISTED,
    damaged,
    entry_of,
    facts_of,
    floats_of,
    prediction_of,
    probabilities_of,
    region_dict,
    regions_of,
    run_of,
)
from .verdict_writer import VerdictWriter

__all__ = [
    "MOST_LISTED",
    "NOT_READ",
    "NOWHERE",
    "ORDERS",
    "Entry",
    "Query",
    "Run",
    "Scores",
    "Site",
    "VerdictStore",
    "VerdictWriter",
]

_COLUMNS = ", ".join(LISTED)
_NEWEST = "FROM answers WHERE newest = 1"
LINES = (".jsonl", ".ndjson", ".json")
"""Endings of JSON lines: an empty file of another name is nothing that was written whole."""
_MANY = 100_000
"""Runs, lots and names that a store may hold."""
_MOST_BYTES = 1 << 31
"""Of all features, or of all probabilities, together."""
_CHUNK = 500
_ORDER = {
    "newest": ("id DESC", "id"),
    "least sure": ("sureness, id", "error IS NOT NULL, sureness DESC, id DESC"),
    "most unlike": ("novelty DESC, id DESC", "novelty IS NULL, novelty, id"),
    "confidence": ("confidence IS NULL, confidence, id", "confidence DESC, id DESC"),
    "novelty": ("novelty IS NULL, novelty, id", "novelty DESC, id DESC"),
    "size": ("size_nm IS NULL, size_nm, id", "size_nm DESC, id DESC"),
    "source": ("source, id", "source DESC, id DESC"),
}
"""SQL of each order, and of its reverse. SQLite sorts NULL before all numbers."""


class VerdictStore:
    """Reads a store of verdicts, also while a writer adds to it. A context manager; safe to call from many threads.

    of_lines: whether it was made of JSON lines, to which nothing can be added.
    Raises StoreError for a file that is no store, or is damaged: when it is opened, and when a damaged part is read.
    """

    def __init__(self, path: str | Path) -> None:
        self._open(str(path), open_to_read(Path(path)), of_lines=False)

    @classmethod
    def from_json_lines(cls, path: str | Path) -> VerdictStore:
        """The JSON lines of `predict` as a store. They hold no maps and no features: `result` gives None.

        A relative `source` is a path from the current folder. Raises StoreError that names the first faulty line.
        """
        store = cls.__new__(cls)
        store._open(str(path), lines_database(Path(path)), of_lines=True)
        return store

    @classmethod
    def of_any(cls, path: str | Path) -> VerdictStore:
        """A store, or JSON lines: by the first bytes of the file; an empty one by its name. Raises StoreError."""
        try:
            head = head_of(path)
        except (OSError, ValueError):
            head = None  # opening it says why it cannot be read
        if head == b"" and Path(path).suffix.lower() not in LINES:
            raise StoreError(path, f"is empty: it holds no verdicts (empty JSON lines end in {' or '.join(LINES)})")
        return cls(path) if head is None or head.startswith(MAGIC) else cls.from_json_lines(path)

    def _open(self, where: str, database: sqlite3.Connection, *, of_lines: bool) -> None:
        self.where, self.of_lines = where, of_lines
        self._database = database
        self._turn = threading.RLock()
        self._runs: tuple[Run, ...] = ()

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._database.close()

    def __enter__(self) -> VerdictStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def runs(self) -> tuple[Run, ...]:
        """The runs, in the order in which they were stored."""
        with self._turn:
            known = len(self._runs)
            sql = "SELECT id, began, bundle, encoder_id, recipe_sha256, classes, operating_point FROM runs WHERE id > ?"
            rows = self._rows(f"{sql} ORDER BY id LIMIT {_MANY}", (known,), 1 << 24)
            if [row[0] for row in rows] != list(range(known + 1, known + 1 + len(rows))):
                raise StoreError(self.where, "is damaged: its runs are not numbered from 1 on")
            self._runs += tuple(run_of(self.where, row[1:]) for row in rows)
            return self._runs

    def lots(self) -> tuple[str, ...]:
        """The lots of the listed frames, by name."""
        sql = f"SELECT DISTINCT lot {_NEWEST} AND lot IS NOT NULL ORDER BY lot LIMIT {_MANY}"
        return tuple(str(lot) for (lot,) in self._rows(sql))

    def verdicts(self) -> dict[str, int]:
        """How many listed frames have each verdict, most frequent first; "not read" are frames that were not read."""
        sql = f"SELECT verdict, count(*) {_NEWEST} GROUP BY verdict ORDER BY count(*) DESC, verdict LIMIT {_MANY}"
        return {NOT_READ if name is None else str(name): number for name, number in self._rows(sql)}

    def change_counter(self) -> int:
        """A number that rises whenever answers are added."""
        ((number,),) = self._rows("SELECT coalesce(max(id), 0) FROM answers")
        return int(number)

    def count(self, query: Query) -> int:
        """How many listed frames fit a query."""
        where, values = _where(query)
        ((number,),) = self._rows(f"SELECT count(*) {where}", values)
        return int(number)

    def entries(self, query: Query, offset: int = 0, limit: int = MOST_LISTED) -> list[Entry]:
        """The frames that fit a query, from the `offset`-th on, at most `limit` of them.

        ValueError for an offset below 0, and for a limit beyond MOST_LISTED.
        """
        whole_number("offset", offset, 0, 2**62)
        whole_number("limit", limit, 0, MOST_LISTED)
        where, values = _where(query)
        order = _ORDER[query.order][query.descending]
        rows = self._rows(f"SELECT {_COLUMNS} {where} ORDER BY {order} LIMIT ? OFFSET ?", (*values, limit, offset))
        return [self._entry(row) for row in rows]

    def all_entries(self, query: Query) -> Iterator[Entry]:
        """All frames that fit a query; few are held at a time."""
        at = 0
        while found := self.entries(query, at):
            yield from found
            at += len(found)

    def entry(self, number: int) -> Entry | None:
        """The answer of an id, also one that is no longer the newest; None without one."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM answers WHERE id = ?", (_id(number),))
        return self._entry(rows[0]) if rows else None

    def result(self, number: int) -> Prediction | FailedFrame | None:
        """The answer of an id as the Predictor gave it, to the bit; None without one, and if its map is not stored."""
        entry = self.entry(number)
        if entry is None:
            return None
        if entry.error is not None:
            return FailedFrame(entry.source, FrameError(entry.source, entry.error))
        return prediction_of(self.where, entry, self.runs()[entry.run], self._detail(number))

    def regions(self, number: int) -> list[dict[str, Any]]:
        """The regions of an answer, JSON-ready as in `Prediction.to_dict`; none for an id without an answer."""
        found: list[dict[str, Any]] = self.facts(number).get("regions", [])
        return found

    def facts(self, number: int) -> dict[str, Any]:
        """What is stored of an answer besides its entry, map and features; empty without one. JSON-ready.

        Among others `reason`, `probabilities` by class, `regions`, `warnings`, `pixel_width_nm`, `pixel_height_nm`,
        `defect_threshold`, `pixel_threshold`; of JSON lines only what these hold.
        """
        entry = self.entry(number)
        if entry is None or entry.error is not None:
            return {}
        facts, probabilities, regions, _, _ = self._detail(number)
        found = facts_of(self.where, number, facts)
        sides = found.get("pixel_width_nm"), found.get("pixel_height_nm")
        if not all(side is None or (isinstance(side, int | float) and 0 < side < 1e12) for side in sides):
            raise damaged(self.where, number, "the size of its pixels cannot be right")
        sized = None if None in sides else (float(sides[0] or 0), float(sides[1] or 0))
        return {
            **found,
            "probabilities": probabilities_of(self.where, number, self.runs()[entry.run], probabilities),
            "regions": [region_dict(region) for region in regions_of(self.where, number, regions, sized)],
        }

    def ids_by_path(self) -> dict[str, tuple[int, ...]]:
        """The listed frames of each file, to find those that a correction is about."""
        found: dict[str, list[int]] = {}
        for entry in self._each(f"SELECT {_COLUMNS} {_NEWEST} AND path IS NOT NULL AND id > ? ORDER BY id"):
            if entry.path is not None:
                found.setdefault(entry.path, []).append(entry.id)
        return {path: tuple(ids) for path, ids in found.items()}

    def features(
        self, ids: Sequence[int] | None = None, encoder_id: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids [n] and features [n, F] of the listed frames, or of those ids, that one encoder judged.

        encoder_id: that of the newest run by default. Features of two encoders cannot be compared: frames of others,
        and frames without features, are left out, as the ids tell.
        """
        runs = self.runs()
        encoder = encoder_id if encoder_id is not None else (runs[-1].encoder_id if runs else "")
        chosen = [number for number, run in enumerate(runs, 1) if run.encoder_id == encoder]
        sql = "SELECT a.id, d.features FROM answers AS a JOIN details AS d USING (id)"
        which = "a.newest = 1" if ids is None else f"a.id IN ({_listed(ids)})"
        numbers, rows, size = [], [], 0
        for number, blob in self._pages(f"{sql} WHERE {which} AND a.run IN ({_listed(chosen)})", LARGEST):
            if blob is None:
                continue
            rows.append(floats_of(self.where, number, blob, "<f4"))
            numbers.append(number)
            size += rows[-1].nbytes
            if len(rows[-1]) != len(rows[0]) or not np.isfinite(rows[-1]).all():
                raise damaged(self.where, number, "its features are not those of its encoder")
            self._require_room(size)
        found = np.stack(rows).astype(np.float32) if rows else np.zeros((0, 0), np.float32)
        return np.array(numbers, np.int64), found

    def scores(self, run: int) -> Scores:
        """The numbers that the listed answers of a run were decided by. run: its index in `runs()`; IndexError."""
        classes = self.runs()[run].classes
        sql = (
            "SELECT a.id, d.probabilities, a.verdict, a.score, a.novelty FROM answers AS a JOIN details AS d USING "
            f"(id) WHERE a.newest = 1 AND a.error IS NULL AND a.run = {run + 1}"
        )
        rows: list[tuple[Any, ...]] = []
        for number, blob, verdict, score, novelty in self._pages(sql, TOGETHER):
            values = floats_of(self.where, number, blob, "<f8")
            if len(values) != len(classes) or not all(isinstance(one, float) for one in (score, novelty)):
                raise damaged(self.where, number, "its scores are not those of its run")
            rows.append((number, values, verdict, score, novelty))
            self._require_room(len(rows) * 8 * len(classes))
        ids, chances, verdicts, score, novelty = zip(*rows, strict=True) if rows else ((),) * 5
        probabilities = np.stack(chances) if rows else np.zeros((0, len(classes)))
        return Scores(np.array(ids, np.int64), verdicts, probabilities, np.array(score), np.array(novelty))

    def _require_room(self, size: int) -> None:
        if size > _MOST_BYTES:
            raise StoreError(self.where, f"holds more than {_MOST_BYTES:,} bytes of such numbers: use smaller stores")

    def _entry(self, row: Sequence[Any]) -> Entry:
        if isinstance(row[1], int) and row[1] > len(self._runs):
            self.runs()
        return entry_of(self.where, row, len(self._runs))

    def _detail(self, number: int) -> tuple[Any, ...]:
        rows = self._rows(f"SELECT {', '.join(DETAILS)} FROM details WHERE id = ?", (_id(number),), LARGEST)
        if not rows:
            raise damaged(self.where, number, "its details are missing")
        return rows[0]

    def _each(self, sql: str) -> Any:
        """All entries of a statement that goes on from an id; few are held at a time."""
        last = 0
        while rows := self._rows(f"{sql} LIMIT {MOST_LISTED}", (last,)):
            yield from map(self._entry, rows)
            last = rows[-1][0]

    def _pages(self, sql: str, largest: int) -> Any:
        """All rows of a statement on `answers AS a`, in the order of ids; few are held at a time."""
        last = 0
        while rows := self._rows(f"{sql} AND a.id > ? ORDER BY a.id LIMIT {_CHUNK}", (last,), largest):
            yield from rows
            last = rows[-1][0]

    def _rows(self, sql: str, values: Sequence[Any] = (), largest: int = TOGETHER) -> list[tuple[Any, ...]]:
        """The rows of one statement, of LARGEST bytes together. largest: bytes of a value. Raises StoreError."""
        found, size = [], 0
        with self._turn, failing(self.where), closing(self._database.cursor()) as cursor:
            self._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, largest)
            for row in cursor.execute(sql, values):
                found.append(row)
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
                if size > LARGEST:
                    raise StoreError(self.where, f"is damaged: a list of it takes more than {LARGEST:,} bytes")
        return found


def _where(query: Query) -> tuple[str, list[str | float]]:
    """The condition of a query in SQL, and its values."""
    parts = [_NEWEST]
    values: list[str | float] = []
    for column, names in (("verdict", query.verdicts), ("label", query.labels), ("lot", query.lots)):
        if not names:
            continue
        fits = f"{column} IN ({', '.join('?' * len(names))})"
        failed = " OR error IS NOT NULL" if column == "verdict" and NOT_READ in names else ""
        parts.append(f"({fits}{failed})")
        values += map(printed, names)
    for name, column, sign in BOUNDS:
        if (bound := getattr(query, name)) is not None:
            parts.append(f"{column} {sign} ?")
            values.append(float(bound))
    if query.text:
        parts.append("instr(lower(source), lower(?))")
        values.append(printed(query.text))
    if query.ids is not None:
        parts.append(f"id IN ({_listed(query.ids)})")
    if query.without:
        parts.append(f"id NOT IN ({_listed(query.without)})")
    return " AND ".join(parts), values


def _listed(ids: Sequence[int]) -> str:
    """Ids in SQL: they are whole numbers, so none needs a place of its own, of which a statement has few."""
    return ", ".join(str(_id(number)) for number in ids)


def _id(number: int) -> int:
    return whole_number("id", number, 0, 2**62)
