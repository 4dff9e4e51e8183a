"""Writing class numbers into a KLARF file: the bytes that were read, except the cells that were asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import KlarfError
from ..files import require_files, write_atomically
from .klarf_model import INDICES, LENGTHS, Defect, KlarfFile, Lookup, Table

Key = tuple[str, int, int | None]
"""(wafer, DEFECTID, TEST) of a defect."""
DEFAULT_COLUMN = "CLASSNUMBER"
_FIXED = {*INDICES, *LENGTHS, "DEFECTID", "TEST", "X", "Y", "DEFECTAREA", "DSIZE", "IMAGECOUNT", "IMAGELIST"}
"""Columns that say what a defect is, not which class it has."""
_MANUAL = re.compile(r"MAN(?!IFEST)|.*(MANUAL|_MAN(_|$))")
_HIGHEST = 2**31 - 1
"""Class numbers are 32-bit whole numbers."""
_LEAVE = "leave the lookup as it is (--no-lookup)"
_Edit = tuple[int, int, bytes]


def with_classes(
    file: KlarfFile,
    classes: Mapping[Key, Mapping[str, int]],
    lookup: Mapping[int, str] | None = None,
    *,
    manual: bool = False,
) -> bytes:
    """The file's bytes with new class numbers in some cells; every other byte is as it was.

    classes: {(wafer, DEFECTID, TEST): {column: number}}. Cells that hold the number already stay as they are written.
    lookup: names by class number. Numbers that a class lookup of the file lacks are added to it.
    manual: whether people chose the numbers, which may then go into the columns of manual classes.
    Raises KlarfError where a defect or column is not there or not clear, a column belongs to people or names the
    defect, a number does not fit, or the lookup has another name or number.
    """
    edits = [edit for number in _found(file, classes, manual=manual) for edit in number]
    if lookup:
        if not file.lookups:
            raise KlarfError(file.source.name, "has no class lookup that could be extended; leave the names out")
        edits += [edit for one in file.lookups for edit in _extended(file, one, lookup)]
    return _edited(file.source.data, edits)


def is_manual(column: str) -> bool:
    """Whether people write their classes into this column."""
    return bool(_MANUAL.match(column.upper()))


def write_klarf(file: KlarfFile, content: bytes, path: Path | str, *, force: bool = False) -> None:
    """Write `content` under a temporary name, then rename it to `path`.

    Raises KlarfError for the file that was read itself, PredictorError where `path` exists without `force` or cannot
    be written, and OSError where the disk fails.
    """
    path = Path(path)
    if path.exists() and Path(file.source.name).exists() and path.samefile(file.source.name):
        raise KlarfError(path, "is the original, which stays as it is; write to another file")
    require_files([path], force=force)
    write_atomically(path, content)


def _found(file: KlarfFile, classes: Mapping[Key, Mapping[str, int]], *, manual: bool) -> Iterable[list[_Edit]]:
    """The edits of each defect that `classes` names; all of them must be there, once."""
    seen: dict[Key, Defect] = {}
    for defect in file.defects:
        key = defect.key
        if key in classes:
            if key in seen:
                reason = (
                    f"two defects are {_named(key)}; the other is on line {seen[key].line}. Nothing tells them apart"
                )
                raise KlarfError(file.source.name, reason, defect.line)
            seen[key] = defect
    missing = [key for key in classes if key not in seen]
    if missing:
        more = f", and {len(missing) - 1:,} more asked for" if missing[1:] else ""
        raise KlarfError(file.source.name, f"has no {_named(missing[0])}{more}")
    checked: set[tuple[int, str]] = set()
    for key, defect in seen.items():
        yield list(_edits(file, defect, classes[key], checked, manual=manual))


def _edits(
    file: KlarfFile, defect: Defect, wanted: Mapping[str, int], checked: set[tuple[int, str]], *, manual: bool
) -> Iterable[_Edit]:
    """The edits of one defect. checked: ids of tables, and columns, that were found to be fit to write."""
    source = file.source
    spans = defect.spans() if wanted else {}
    if len({name.upper() for name in wanted}) < len(wanted):
        raise KlarfError(source.name, f"a column is asked for twice for {_named(defect.key)}")
    for name, number in wanted.items():
        column = name.upper()
        if (id(defect.table), column) not in checked:
            _check_column(file, defect.table, column, defect.start, manual=manual)
            checked.add((id(defect.table), column))
        new = _digits(file, number, column)
        start, end = spans[column]
        old = source.data[start:end]
        if source.number(old, column, start) != number:
            yield start, end, new


def _check_column(file: KlarfFile, table: Table, column: str, at: int, *, manual: bool) -> None:
    """Raise KlarfError unless the column is there and may be written."""
    source = file.source
    if is_manual(column) and not manual:
        raise KlarfError(source.name, f"{column} holds what people decided, and is never written")
    if column in _FIXED:
        raise KlarfError(source.name, f"{column} is part of what the defect is, and is never written")
    if column not in table.columns:
        there = ", ".join(name for name in table.columns if name not in _FIXED and (manual or not is_manual(name)))
        source.fail(f"there is no column {column} to write; choose among {there[:2000]}", at)
    if table.nested and not table.types[table.columns[column]].startswith(("INT", "FLOAT", "DOUBLE")):
        source.fail(f"{column} is of type {table.types[table.columns[column]]}, which takes no class number", at)


def _digits(file: KlarfFile, number: int, what: str) -> bytes:
    if isinstance(number, bool) or not isinstance(number, int) or not -_HIGHEST - 1 <= number <= _HIGHEST:
        raise KlarfError(file.source.name, f"{number!r} is no class number for {what}: it is a 32-bit whole number")
    return b"%d" % number


def _extended(file: KlarfFile, one: Lookup, lookup: Mapping[int, str]) -> Iterable[_Edit]:
    """The edits that add to a class lookup the numbers it lacks, in ascending order, and raise its count."""
    source, at = file.source, one.count[0]
    new = {}
    numbers = {name.casefold(): number for number, name in one.names.items()}
    for number, name in sorted(lookup.items()):
        _digits(file, number, f"{name!r}")
        if number in one.names:
            if one.names[number].casefold() != name.casefold():
                here = one.names[number]
                remedy = f"call it {here!r} in [names] of the codes, or {_LEAVE}"
                source.fail(f"class {number} is {here!r} in the file, and {name!r} was asked for: {remedy}", at)
        elif name.casefold() in numbers:
            there = numbers[name.casefold()]
            remedy = f"give {number} another name in [names] of the codes, use code {there} for it, or {_LEAVE}"
            source.fail(f"{name!r} is class {there} in the file, and {number} was asked for: {remedy}", at)
        else:
            numbers[name.casefold()] = number
            new[number] = _quoted(file, name)
    if not new:
        return
    if one.stated != one.rows:
        source.fail(f"the class lookup counts {one.stated} classes and holds {one.rows}; it is not extended", at)
    rows = [_lookup_row(file, one, number, name) for number, name in new.items()]
    yield (*one.count, b"%d" % (one.rows + len(rows)))
    yield one.end, one.end, b"".join(one.before + row for row in rows)


def _lookup_row(file: KlarfFile, one: Lookup, number: int, name: bytes) -> bytes:
    """A row of a class lookup in the style of its version."""
    if not one.columns:
        return b"%d %s" % (number, name)
    cells = []
    for column, kind in one.columns:
        if column == "CLASSNUMBER":
            cells.append(b"%d" % number)
        elif column == "CLASSNAME":
            cells.append(name)
        elif kind == "STRING":
            cells.append(b'""')
        else:
            file.source.fail(f"a new class would need a value in column {column}; leave the names out", one.count[0])
    return b" ".join(cells) + b";"


def _quoted(file: KlarfFile, name: str) -> bytes:
    """A class name as a string in the file's encoding."""
    if not name or '"' in name or not name.isprintable():
        raise KlarfError(
            file.source.name, f"{name!r} is no class name for a file: it is empty, or holds quotes or breaks"
        )
    ascii_only = file.source.data.isascii()
    try:
        return b'"' + name.encode("ascii" if ascii_only else file.encoding) + b'"'
    except UnicodeEncodeError:
        encoding = "ASCII" if ascii_only else file.encoding
        raise KlarfError(file.source.name, f"is {encoding}, which has no way to write {name!r}") from None


def _edited(data: bytes, edits: Iterable[_Edit]) -> bytes:
    """`data` with some spans replaced."""
    parts: list[bytes | memoryview] = []
    position = 0
    view = memoryview(data)
    for start, end, new in sorted(edits):
        parts += [view[position:start], new]
        position = end
    return b"".join([*parts, view[position:]])


def _named(key: Key) -> str:
    wafer, identity, test = key
    return f"defect {identity} of wafer {wafer!r}{'' if test is None else f', test {test}'}"
