"""Rows of defect lists and class lookups of KLARF 1.1 and 1.2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .klarf_model import INDICES, LENGTHS, Defect, Lookup, split_row
from .klarf_tokens import MAX_DEFECTS, MAX_ROW_BYTES, SPACE, STRING, Source, Warnings, shown

Row = tuple[int, int | None, int, int]
"""DEFECTID, TEST, and the first and end byte of a row."""
_LINE = re.compile(rb"[^\r\n]++")
_BLANK = re.compile(SPACE + rb"*+")
_COUNT = re.compile(SPACE + rb'*+([^ \t\r\n\f\v;"]++)')
_CLASS = re.compile(_COUNT.pattern + rb"(?:" + SPACE + rb"*+(" + STRING + rb')|[ \t]++([^;"\r\n]++))')


class Checks:
    """What every row is checked for: a whole DEFECTID and TEST, and numbers where positions and sizes stand."""

    def __init__(self, source: Source, columns: Mapping[str, int], images: int | None) -> None:
        def place(name: str) -> int:
            """Index of a cell. Those after a list of images, whose length varies, are counted from the row's end."""
            index = columns[name]
            return index if images is None or index < images else index - len(columns)

        self.source = source
        self._id = place("DEFECTID")
        self._test = place("TEST") if "TEST" in columns else None
        self._lengths = [(name, place(name)) for name in LENGTHS if name in columns]
        self._indices = [(name, place(name)) for name in INDICES if name in columns]

    def row(self, cells: list[bytes], start: int, end: int) -> Row:
        """The row's names and place. Raises KlarfError with its line."""
        whole, number = self.source.whole, self.source.number
        identity = whole(cells[self._id], "DEFECTID", start)
        if identity is None:
            self.source.fail("DEFECTID is NA, so the defect has no name", start)
        for name, index in self._lengths:
            number(cells[index], name, start)
        for name, index in self._indices:
            whole(cells[index], name, start)
        test = None if self._test is None else whole(cells[self._test], "TEST", start)
        return identity, test, start, end


class Rows:
    """Reads the rows of DefectList. A row begins on a line of its own and may go on over the next lines.

    most: rows that may still come. Raises KlarfError where a row has too few or too many values.
    """

    def __init__(self, source: Source, columns: Mapping[str, int], images: int | None, most: int) -> None:
        self.source = source
        self._width = len(columns)
        self._images = images
        self._count = columns.get("IMAGECOUNT")
        self._most = most
        self._checks = Checks(source, columns, images)

    def read(self, start: int, end: int, *, listed: bool) -> list[Row]:
        """All rows between two bytes. listed: whether lists of images begin with their own count."""
        data = self.source.data
        rows: list[Row] = []
        cells: list[bytes] = []
        begin = 0
        for match in _LINE.finditer(data, start, end):
            if match.end() - (begin if cells else match.start()) > MAX_ROW_BYTES:  # before it is taken apart
                self.source.fail(f"a row is longer than {MAX_ROW_BYTES:,} bytes", match.start())
            line = match[0]
            more = split_row(line, nested=False)
            if not more:
                continue
            if not cells:
                begin = match.end() - len(line.lstrip())
            cells += more
            stop = match.start() + len(line.rstrip())
            width = self._full_width(cells, begin, listed)
            if width is None or len(cells) < width:
                continue
            if len(cells) > width:
                self.source.fail(f"a row has {len(cells)} values where its columns need {width}", begin)
            if len(rows) >= self._most:
                self.source.fail(f"more than {MAX_DEFECTS:,} defects in one file", begin)
            self._check_pages(cells, begin, listed)
            rows.append(self._checks.row(cells, begin, stop))
            cells = []
        if cells:
            self.source.fail(f"a row ends after {len(cells)} values, before its columns are filled", begin)
        return rows

    def _full_width(self, cells: list[bytes], at: int, listed: bool) -> int | None:
        """Values that the row has when it is whole; None while its count of images has not come."""
        if self._images is None:
            return self._width
        if not listed:
            assert self._count is not None
            if self._count > self._images:
                self.source.fail("IMAGELIST stands before IMAGECOUNT, so it needs a count of its own", at)
            if len(cells) <= self._count:
                return None
            return self._width - 1 + 2 * self._images_in(cells[self._count], "IMAGECOUNT", at)
        if len(cells) <= self._images:
            return None
        count = self._images_in(cells[self._images], "the count of IMAGELIST", at)
        if self._count is not None and self._count < self._images:
            stated = self.source.whole(cells[self._count], "IMAGECOUNT", at)
            if stated not in (None, count):
                self.source.fail(f"IMAGECOUNT is {stated} and IMAGELIST holds {count}", at)
        return self._width + 2 * count

    def _images_in(self, token: bytes, what: str, at: int) -> int:
        count = self.source.whole(token, what, at)
        if count is None or count < 0:
            self.source.fail(f"{what} is {shown(token)}, which is no count", at)
        return count

    def _check_pages(self, cells: list[bytes], at: int, listed: bool) -> None:
        if self._images is not None:
            first = self._images + (1 if listed else 0)
            last = len(cells) - (self._width - 1 - self._images)
            for page in cells[first:last:2]:
                if self.source.whole(page, "an image number of IMAGELIST", at) is None:
                    self.source.fail("an image number of IMAGELIST is NA", at)


def read_lookup(source: Source, warnings: Warnings, span: tuple[int, int]) -> Lookup:
    """ClassLookup: a count, then rows `number "name"`. A name without quotes goes on to the end of its line."""
    data = source.data
    count = _COUNT.match(data, *span)
    if count is None:
        source.fail("ClassLookup has no count", span[0])
    stated = source.whole(count[1], "the count of ClassLookup", span[0])
    found: list[tuple[int, str]] = []
    before, end = b"", count.end()
    while _BLANK.match(data, end, span[1]).end() < span[1]:  # type: ignore[union-attr]  # it matches the empty text
        match = _CLASS.match(data, end, span[1])
        name = match and (match[2] or match[3].strip())
        number = source.whole(match[1], "a number of ClassLookup", match.start(1)) if match else None
        if match is None or not name or number is None:
            source.fail("a row of ClassLookup is no number with a name", end + 1)
        found.append((number, source.text(name)))
        before, end = data[end : match.start(1)], match.start() + len(match[0].rstrip())
    line_end = b"\r\n" if data.find(b"\r\n", 0, end) >= 0 else b"\n"
    return Lookup(
        names=unique_names(warnings, found, span[0], stated),
        count=count.span(1),
        stated=-1 if stated is None else stated,
        rows=len(found),
        end=end,
        before=before or line_end + b" ",
        columns=(),
    )


def unique_names(warnings: Warnings, rows: list[tuple[int, str]], at: int, stated: int | None) -> dict[int, str]:
    """Names by class number; the first where a number has two. Both oddities go to `warnings`."""
    names: dict[int, str] = {}
    for number, name in rows:
        if names.setdefault(number, name) != name:
            warnings.add(f"class {number} has two names, {names[number][:60]!r} and {name[:60]!r}", at)
    if stated != len(rows):
        warnings.add(f"a class lookup counts {stated} classes and holds {len(rows)}", at)
    return names


def warn_of_twins(warnings: Warnings, defects: Iterable[Defect]) -> None:
    """A warning for each defect whose DEFECTID and TEST another one of its wafer has."""
    seen: set[tuple[int, int | None]] = set()
    for defect in defects:
        name = (defect.id, defect.test)
        if name in seen:
            warnings.add(f"a second defect has DEFECTID {defect.id} and TEST {defect.test}", defect.start)
        seen.add(name)
