"""The index at the end of a Parquet file, read without pyarrow.

pyarrow's own view of a column ends the process where the index is damaged: its C++ exceptions are not caught there.
So sizes are read here, before any memory is taken for them. Format: Thrift's compact protocol, and `FileMetaData` of
https://github.com/apache/parquet-format (parquet.thrift).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_BYTES = 1 << 26
_BOOLEANS, _BYTE, _WHOLE, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 11, 12
_MAX_DEPTH = 16
_BYTE_ARRAY = 6
"""Physical type of texts and bytes."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a row group. path: its name, with those of its parts. is_text: texts or bytes."""

    path: str
    is_text: bool
    values: int
    uncompressed_bytes: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group, by the file's own account."""

    rows: int
    total_bytes: int
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """What the file says of its rows."""

    rows: int
    groups: tuple[RowGroup, ...]


def read_index(file: BinaryIO) -> Index:
    """The index of an open file, which is left at its start. Raises ValueError: "is damaged (...)", or the like."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = file.read(8)
    if size < 12 or end[4:] != b"PAR1":
        raise ValueError("is no Parquet file, or one whose end is missing")
    length = int.from_bytes(end[:4], "little")
    if length > min(size - 12, MAX_BYTES):
        raise ValueError(f"states an index of {length:,} bytes: it is damaged")
    file.seek(size - 8 - length)
    content = file.read(length)
    file.seek(0)
    try:
        return _index(_Reader(content).struct())
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError("is damaged (its index cannot be read)") from exc


def _index(fields: dict[int, Any]) -> Index:
    index = Index(_size(fields[3]), tuple(_group(group) for group in fields[4]))
    if sum(group.rows for group in index.groups) != index.rows:
        raise ValueError("is damaged (its index contradicts itself)")
    return index


def _group(fields: dict[int, Any]) -> RowGroup:
    return RowGroup(_size(fields[3]), _size(fields[2]), tuple(_column(column[3]) for column in fields[1]))


def _column(fields: dict[int, Any]) -> Column:
    path = b".".join(fields[3]).decode()
    return Column(path, fields[1] == _BYTE_ARRAY, _size(fields[5]), _size(fields[6]))


def _size(value: int) -> int:
    if value < 0:
        raise ValueError(f"is damaged (its index states a size of {value:,})")
    return value


class _Reader:
    """Values of Thrift's compact protocol: structs are dictionaries by field number. Raises IndexError at the end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0
        self._depth = 0

    def struct(self) -> dict[int, Any]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("is damaged (its index nests too deeply)")
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            step, kind = kind >> 4, kind & 15
            number = number + step if step else self._whole()
            fields[number] = kind == _BOOLEANS[0] if kind in _BOOLEANS else self._value(kind)
        self._depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        if kind in _WHOLE:
            return self._whole()
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind == _STRUCT:
            return self.struct()
        if kind in _LISTS:
            return self._list()
        if kind in (_BYTE, *_BOOLEANS):
            return self._byte()
        if kind == _DOUBLE:
            return self._bytes(8)
        raise ValueError(f"is damaged (its index holds a value of kind {kind})")

    def _list(self) -> list[Any]:
        head = self._byte()
        count, kind = head >> 4, head & 15
        # Every value takes a byte at least, so a huge count meets the end of the content.
        return [self._value(kind) for _ in range(self._unsigned() if count == 15 else count)]

    def _whole(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            part = self._byte()
            value |= (part & 127) << shift
            if part < 128:
                return value
        raise ValueError("is damaged (its index holds a number of over 64 bits)")

    def _byte(self) -> int:
        value = self._content[self._place]
        self._place += 1
        return value

    def _bytes(self, length: int) -> bytes:
        start, self._place = self._place, self._place + length
        if self._place > len(self._content):
            raise IndexError
        return self._content[start : self._place]
