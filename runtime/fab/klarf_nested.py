"""Reading KLARF 1.8: nested records, fields and lists, lengths in nanometres.

    Record FileRecord "1.8" { Record LotRecord "lot" { Field Name n {v, v} Record WaferRecord "id" { List DefectList
    { Columns n { type NAME, ... } Data m { row; row; } } } List ClassLookupList { ... } } } EndOfFile;

The order of records, fields and lists is free: a lot's fields may follow its wafers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .klarf_model import Defect, KlarfFile, Lookup, Table, Wafer, image_entries, numbered_columns, split_row
from .klarf_rows import Checks, Row, unique_names, warn_of_twins
from .klarf_tokens import (
    MAX_DEFECTS,
    MAX_ROW_BYTES,
    MAX_TEXT_BYTES,
    MAX_WAFERS,
    SPACE,
    STRING,
    Source,
    Warnings,
    shown,
    word,
)

MAX_DEPTH = 32
_NAME = rb"([A-Za-z_][A-Za-z0-9_]*+)"
_GAP = SPACE + rb"*+"
_NEXT = re.compile(_GAP + rb"(?:(\})|" + _NAME + rb")")
_RECORD = re.compile(_GAP + _NAME + _GAP + rb"(" + STRING + rb")?+" + _GAP + rb"\{")
_VALUES = rb'\{((?:[^{};"]++|' + STRING + rb")*+)\}"
_FIELD = re.compile(_GAP + _NAME + _GAP + rb"([0-9]{1,9})" + _GAP + _VALUES + _GAP + rb";?+")
_LIST = re.compile(_GAP + _NAME + _GAP + rb"\{")
_COLUMNS = re.compile(_GAP + rb"(?i:Columns)" + _GAP + rb"([0-9]{1,9})" + _GAP + rb'\{([^{};"]*+)\}')
_DATA = re.compile(_GAP + rb"(?i:Data)" + _GAP + rb"([0-9]{1,9})" + _GAP + rb"\{")
_BRACED = rb'\{(?:[^{};"]++|' + STRING + rb")*+\}"
_ROW = re.compile(_GAP + rb'((?:[^;"{}]++|' + STRING + rb"|" + _BRACED + rb")++);")
_END = re.compile(_GAP + rb"\}")
_REST = re.compile(rb'(?:[^{}"]++|' + STRING + rb"|" + _BRACED + rb")*+\}")
_VALUE = re.compile(STRING + rb'|[^ \t\r\n\f\v;"{},]++')


_KEPT = {
    "DEVICEID",
    "STEPID",
    "RECIPEID",
    "INSPECTIONSTATIONID",
    "FILETIMESTAMP",
    "RESULTTIMESTAMP",
    "DIEPITCH",
    "DIEORIGIN",
    "SAMPLECENTERLOCATION",
    "SAMPLESIZE",
    "SLOTNUMBER",
    "ORIENTATIONMARKLOCATION",
    "SAMPLEORIENTATIONMARKTYPE",
}
"""The fields that are read; the others are passed over."""


class _List(NamedTuple):
    """A list before its rows.

    columns: (name, type) in capitals. stated: the count of rows. place: its bytes. start: the rows' first byte.
    """

    columns: list[tuple[str, str]]
    stated: int
    place: tuple[int, int]
    start: int


@dataclass(slots=True, eq=False)
class _Record:
    """A record while it is read. fields: name in capitals to the values' tokens."""

    kind: str
    id: str | None
    at: int
    fields: dict[str, tuple[int, int]] = field(default_factory=dict)
    lists: list[tuple[dict[str, int], tuple[str, ...], int | None, list[Row]]] = field(default_factory=list)
    lookup: Lookup | None = None


def read_nested(source: Source, start: int) -> KlarfFile:
    """The file's content, from its first record at `start`. Raises KlarfError."""
    reader = _Reader(source)
    reader.walk(start)
    return reader.finished()


class _Reader:
    """Walks through the records, keeps those of the file, the lot and its wafers, and passes over the rest."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.warnings = Warnings(source)
        self.open: list[_Record] = []
        self.file: _Record | None = None
        self.lot: _Record | None = None
        self.wafers: list[_Record] = []
        self.ids: set[str] = set()
        self.lookups: list[Lookup] = []
        self.defects = 0

    def walk(self, position: int) -> None:
        """All statements from `position` to EndOfFile."""
        while True:
            found = self._match(_NEXT, position, "a record, a field, a list or a closing brace belongs")
            position = found.end()
            if found[1]:
                if not self.open:
                    self.source.fail("a closing brace has no opening one", found.start(1))
                self.open.pop()
                continue
            keyword = word(found[2])
            if keyword == "ENDOFFILE" and not self.open:
                if self.source.data[position:].strip(b" \t\r\n\f\v;\x1a"):
                    self.source.fail("the file goes on after EndOfFile; two files may have been joined", position)
                return
            if keyword == "RECORD":
                position = self._record(position)
            elif keyword == "FIELD":
                position = self._field(position)
            elif keyword == "LIST":
                position = self._list(position)
            else:
                self.source.fail(f"{shown(found[2])} stands where Record, Field or List belongs", found.start(2))

    def finished(self) -> KlarfFile:
        """The model, after EndOfFile."""
        if self.file is None:
            self.source.fail("there is no FileRecord", 0)
        if not self.wafers:
            self.warnings.add("the file names no wafer", self.file.at)
        lot, nothing = self.lot, _Record("", None, 0)
        return KlarfFile(
            source=self.source,
            version="1.8",
            lot=lot.id if lot else None,
            device=self._text(lot or nothing, "DEVICEID"),
            step=self._text(lot or nothing, "STEPID"),
            recipe=self._texts(lot or nothing, "RECIPEID"),
            station=self._texts(lot or nothing, "INSPECTIONSTATIONID"),
            file_time=" ".join(self._texts(self.file, "FILETIMESTAMP")) or None,
            result_time=" ".join(self._texts(lot or nothing, "RESULTTIMESTAMP")) or None,
            wafers=tuple(self._wafer(record, lot or nothing) for record in self.wafers),
            lookups=tuple(self.lookups),
            warnings=self.warnings.listed(),
        )

    def _match(self, pattern: re.Pattern[bytes], position: int, expected: str) -> re.Match[bytes]:
        """The match at `position`; KlarfError, with what is expected there, if there is none."""
        found = pattern.match(self.source.data, position)
        if found is None:
            rest = self.source.data[position : position + 200].strip()[:20]
            self.source.fail(f"{shown(rest)} stands where {expected}", position)
        return found

    def _record(self, position: int) -> int:
        found = self._match(_RECORD, position, "the name of a record and its opening brace belong")
        kind, identity = word(found[1]), self.source.text(found[2]) if found[2] else None
        record = _Record(kind, identity, found.start(1))
        if len(found[2] or b"") > MAX_TEXT_BYTES:
            self.source.fail(f"the name of a record is longer than {MAX_TEXT_BYTES:,} bytes", record.at)
        if len(self.open) >= MAX_DEPTH:
            self.source.fail(f"records are nested deeper than {MAX_DEPTH}", record.at)
        if kind == "FILERECORD":
            if self.open or self.file or identity != "1.8":
                self.source.fail('a file is one Record FileRecord "1.8"', record.at)
            self.file = record
        elif kind == "LOTRECORD":
            if self.lot is not None:
                self.source.fail("a second lot begins; give each lot a file of its own", record.at)
            self.lot = record
        elif kind == "WAFERRECORD":
            if identity is None or self._of("WAFERRECORD") is not None or len(self.wafers) >= MAX_WAFERS:
                self.source.fail(f"a wafer has no id, stands in another, or is one of over {MAX_WAFERS:,}", record.at)
            if identity in self.ids:
                self.warnings.add(f"wafer {identity[:60]!r} begins again", record.at)
            self.ids.add(identity)
            self.wafers.append(record)
        self.open.append(record)
        return found.end()

    def _of(self, *kinds: str) -> _Record | None:
        """The innermost open record of one of these kinds."""
        return next((record for record in reversed(self.open) if record.kind in kinds), None)

    def _field(self, position: int) -> int:
        found = self._match(_FIELD, position, "a field, `Name n {value, ...}`, belongs")
        record = self.open[-1] if self.open else None
        name = word(found[1])
        if name in _KEPT and record is not None and record in (self.file, self.lot, *self.wafers[-1:]):
            record.fields[name] = found.span(3)
        return found.end()

    def _list(self, position: int) -> int:
        """One list: its rows are read if it is a list of defects or classes, and passed over otherwise."""
        name = self._match(_LIST, position, "the name of a list and its opening brace belong")
        kind = word(name[1])
        columns = self._match(_COLUMNS, name.end(), "Columns n { type NAME, ... } belongs")
        data = self._match(_DATA, columns.end(), "Data n { belongs")
        parts = [part.split() for part in columns[2].split(b",")] if columns[2].strip() else []
        if any(len(part) != 2 for part in parts) or len(parts) != int(columns[1]):
            self.source.fail(f"{int(columns[1])} columns of `type NAME` belong here", columns.start(2))
        listed = _List([(word(b), word(a)) for a, b in parts], int(data[1]), data.span(1), data.end())
        if kind == "DEFECTLIST":
            end = self._defects(listed)
        elif kind == "CLASSLOOKUPLIST":
            end = self._classes(listed)
        else:
            end = self._match(_REST, listed.start, "rows and a closing brace belong").end()
        return self._match(_END, end, "the closing brace of the list belongs").end()

    def _row(self, position: int) -> re.Match[bytes] | None:
        """The next row of a list, without its `;` as group 1; None before the closing brace."""
        if _END.match(self.source.data, position):
            return None
        row = self._match(_ROW, position, "a row that ends with `;`, or a closing brace, belongs")
        if row.end() - row.start() > MAX_ROW_BYTES:
            self.source.fail(f"a row is longer than {MAX_ROW_BYTES:,} bytes", row.start(1))
        return row

    def _cells(self, row: bytes, width: int, at: int) -> list[bytes]:
        """The cells of a row. Raises KlarfError if they are not one for each column."""
        cells = split_row(row, nested=True)
        if len(cells) != width:
            self.source.fail(f"a row has {len(cells)} values where its columns need {width}", at)
        return cells

    def _defects(self, listed: _List) -> int:
        """The rows of a DefectList. Returns the byte after its closing brace."""
        wafer, source = self._of("WAFERRECORD"), self.source
        if wafer is None:
            source.fail("a DefectList stands outside of any WaferRecord", listed.start)
        columns = numbered_columns(source, [name.encode() for name, _ in listed.columns], listed.start)
        places = [index for index, (_, kind) in enumerate(listed.columns) if kind == "IMAGELIST"]
        if len(places) > 1:
            source.fail("a DefectList has two columns of type ImageList", listed.start)
        images = places[0] if places else None
        checks, rows, position = Checks(source, columns, None), [], listed.start
        while (row := self._row(position)) is not None:
            start, position = row.start(1), row.end()
            text = row[1].rstrip()
            cells = self._cells(text, len(columns), start)
            if images is not None:
                image_entries(source, cells[images], start)
            rows.append(checks.row(cells, start, start + len(text)))
            self.defects += 1
            if self.defects > MAX_DEFECTS:
                source.fail(f"more than {MAX_DEFECTS:,} defects in one file", start)
        if len(rows) != listed.stated:
            source.fail(f"a DefectList counts {listed.stated} rows and holds {len(rows)}", listed.place[0])
        wafer.lists.append((columns, tuple(kind for _, kind in listed.columns), images, rows))
        return self._match(_END, position, "the closing brace of the rows belongs").end()

    def _classes(self, listed: _List) -> int:
        """The rows of a ClassLookupList, which belongs to the open wafer, or to the lot."""
        source, names = self.source, [name for name, _ in listed.columns]
        record = self._of("WAFERRECORD", "LOTRECORD", "FILERECORD")
        if record is None or not {"CLASSNUMBER", "CLASSNAME"} <= set(names):
            source.fail("a ClassLookupList needs columns CLASSNUMBER and CLASSNAME inside a record", listed.start)
        number_at, name_at = names.index("CLASSNUMBER"), names.index("CLASSNAME")
        found: list[tuple[int, str]] = []
        before, position = b"", listed.start
        while (row := self._row(position)) is not None:
            before, position = source.data[position : row.start(1)], row.end()
            cells = self._cells(row[1], len(names), row.start(1))
            number = source.whole(cells[number_at], "CLASSNUMBER", row.start(1))
            if number is None:
                source.fail("CLASSNUMBER of a class is NA", row.start(1))
            found.append((number, source.text(cells[name_at])))
        end = self._match(_END, position, "the closing brace of the rows belongs").end()
        if not found:
            before = source.data[listed.start : end - 1]
        record.lookup = Lookup(
            names=unique_names(self.warnings, found, listed.start, listed.stated),
            count=listed.place,
            stated=listed.stated,
            rows=len(found),
            end=position,
            before=before or b" ",
            columns=tuple(listed.columns),
        )
        if len(self.lookups) >= MAX_WAFERS:
            source.fail(f"more than {MAX_WAFERS:,} class lookups in one file", listed.start)
        self.lookups.append(record.lookup)
        return end

    def _wafer(self, record: _Record, lot: _Record) -> Wafer:
        pitch, center = (self._pair(record, lot, name) for name in ("DIEPITCH", "SAMPLECENTERLOCATION"))
        defects: list[Defect] = []
        for columns, types, images, rows in record.lists:
            table = Table(
                source=self.source,
                wafer=record.id or "",
                columns=columns,
                types=types,
                images=images,
                listed=True,
                tiff=None,
                whole_file=False,
                unit_nm=1.0,
                die_pitch_nm=pitch,
                sample_center_nm=center,
            )
            defects += [Defect(*row, table) for row in rows]
        if not record.lists:
            self.warnings.add(f"wafer {(record.id or '')[:60]!r} has no DefectList", record.at)
        warn_of_twins(self.warnings, defects)
        return Wafer(
            id=record.id or "",
            slot=self._text(record, "SLOTNUMBER"),
            die_pitch_nm=pitch,
            die_origin_nm=self._pair(record, lot, "DIEORIGIN"),
            sample_center_nm=center,
            diameter_nm=self._diameter(record, lot),
            orientation=self._text(lot, "ORIENTATIONMARKLOCATION"),
            mark=self._text(lot, "SAMPLEORIENTATIONMARKTYPE"),
            class_names=self._names(record, lot),
            defects=tuple(defects),
        )

    def _names(self, record: _Record, lot: _Record) -> Mapping[int, str]:
        for holder in (record, lot, self.file):
            if holder is not None and holder.lookup is not None:
                return holder.lookup.names
        return {}

    def _pair(self, record: _Record, lot: _Record, name: str) -> tuple[float, float] | None:
        """A pair of lengths in nanometres, of the wafer or of the lot."""
        holder = record if name in record.fields else lot
        if name not in holder.fields:
            return None
        at = holder.fields[name][0]
        numbers = [self.source.number(token, name, at) for token in self._tokens(holder, name)]
        if len(numbers) != 2:
            self.source.fail(f"{name} should be two numbers", at)
        x, y = numbers
        return None if x is None or y is None else (x, y)

    def _diameter(self, record: _Record, lot: _Record) -> float | None:
        """Of SampleSize {300000000, 0}: a second size would be that of a rectangle."""
        size = self._pair(record, lot, "SAMPLESIZE")
        return size[0] if size is not None and size[1] == 0 else None

    def _tokens(self, record: _Record, name: str) -> list[bytes]:
        start, end = record.fields.get(name, (0, 0))
        if end - start > MAX_TEXT_BYTES:
            self.source.fail(f"{name} is longer than {MAX_TEXT_BYTES:,} bytes", start)
        return _VALUE.findall(self.source.data, start, end)

    def _texts(self, record: _Record, name: str) -> tuple[str, ...]:
        return tuple(self.source.text(token) for token in self._tokens(record, name))

    def _text(self, record: _Record, name: str) -> str | None:
        """The field's only value."""
        texts = self._texts(record, name)
        return texts[0] if len(texts) == 1 else None
