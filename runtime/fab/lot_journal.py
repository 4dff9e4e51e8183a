"""What has been judged of a lot so far, in a file: a killed run is taken up where it stopped.

The file's first line states what the answers depend on; each further line is one defect, in the lot's order. Lines that
do not follow that order, or are torn, end it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..files import open_plain

MAX_LINE = 1 << 28
"""Bytes of a line: a defect with its images and what was said of each."""
Key = tuple[str, int, int | None]
"""Wafer, DEFECTID and TEST of a defect."""


class Journal:
    """The answers of one lot on disk. header: what they depend on, JSON-ready.

    resumed: how many defects were answered before, by a run with the same header. other: whether the file held the
    answers of another header, which are gone.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], keys: Iterable[Key]) -> None:
        self.path = path
        self.other = False
        first = _line(header)
        self.resumed, end = 0, 0
        if path.exists():
            self.resumed, end = _answered(path, first, keys)
            self.other = not end
        if not end:
            path.write_bytes(first)
        self._file = path.open("r+b" if end else "ab")
        if end:
            self._file.truncate(end)
        self._file.seek(0, 2)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append the answer of one defect, at once."""
        self._file.write(_line(record))
        self._file.flush()

    def records(self) -> Iterator[dict[str, Any]]:
        """All answers, in order."""
        self._file.flush()
        with self.path.open("rb") as file:
            file.readline(MAX_LINE)
            while line := file.readline(MAX_LINE):
                record: dict[str, Any] = json.loads(line)
                yield record

    def remove(self) -> None:
        """The answers are no longer needed."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def same_header(path: Path, header: Mapping[str, Any]) -> bool:
    """Whether a journal with this header is there."""
    if not path.is_file():
        return False
    with io.BufferedReader(open_plain(path)) as file:
        return file.readline(MAX_LINE) == _line(header)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _answered(path: Path, first: bytes, keys: Iterable[Key]) -> tuple[int, int]:
    """How many of these defects the file answers, and where that ends; 0, 0 for a file of another header."""
    count, end = 0, 0
    with io.BufferedReader(open_plain(path)) as file:
        if file.readline(MAX_LINE) != first:
            return 0, 0
        end = len(first)
        for key in keys:
            line = file.readline(MAX_LINE)
            if not line.endswith(b"\n") or _key(line) != key:
                break
            count, end = count + 1, end + len(line)
    return count, end


def _key(line: bytes) -> Key | None:
    try:
        record = json.loads(line)
        return record["wafer"], record["defect_id"], record["test"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
