"""Reading KLARF 1.1 and 1.2: statements `Keyword values;`, lengths in micrometres.

Die pitch, sample size and class lookup hold from where they stand. Slot, sample centre and die origin belong to one
wafer; before the first WaferID they hold for all wafers, and after a wafer's own list they belong to the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import KlarfError
from .klarf_model import (
    FLAT_CELL,
    Defect,
    KlarfFile,
    Lookup,
    Table,
    Wafer,
    numbered_columns,
)
from .klarf_rows import Row, Rows, read_lookup, warn_of_twins
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

NM_PER_UM = 1000.0
NM_PER_MM = 1e6
_GAP = re.compile(rb"(?:" + SPACE + rb"|;)*+")
_KEYWORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*+")
_BODY = re.compile(rb'(?:[^;"]++|' + STRING + rb")*+")
_NUMERIC = re.compile(rb"[+-]?[0-9]")
_KNOWN = (
    b"FileVersion FileTimestamp InspectionStationID ResultTimestamp LotID SampleType SampleSize DeviceID SetupID "
    b"StepID SampleOrientationMarkType OrientationMarkLocation DiePitch DieOrigin WaferID Slot "
    b"SampleCenterLocation TiffSpec ClassLookup TiffFileName InspectionTest SampleTestPlan AreaPerTest "
    b"DefectRecordSpec DefectList SummarySpec SummaryList EndOfFile"
).split()
_INSIDE = re.compile(rb"[\r\n][ \t]*+((?i:" + b"|".join(_KNOWN) + rb"))(?![A-Za-z0-9_])")
_OF_WAFER = {"SLOT", "SAMPLECENTERLOCATION", "DIEORIGIN"}
"""Values of one wafer."""
_RUNNING = {"DIEPITCH", "SAMPLESIZE", "CLASSLOOKUP"}
"""Values of the lot that hold until they are stated again."""
_OF_LOT = {
    "FILETIMESTAMP",
    "INSPECTIONSTATIONID",
    "RESULTTIMESTAMP",
    "LOTID",
    "DEVICEID",
    "SETUPID",
    "STEPID",
    "SAMPLEORIENTATIONMARKTYPE",
    "ORIENTATIONMARKLOCATION",
}
_Span = tuple[int, int]


class _Statement(NamedTuple):
    """A keyword in capitals, where it stands, and the span of its values."""

    keyword: str
    at: int
    start: int
    end: int


@dataclass(slots=True)
class _Spec:
    """The columns of the lists that follow, by name in capitals."""

    columns: dict[str, int]
    images: int | None
    count: int | None


@dataclass(slots=True)
class _Open:
    """A wafer while it is read."""

    id: str
    at: int
    values: dict[str, _Span]
    lists: int = 0
    defects: list[Defect] = field(default_factory=list)


def read_flat(source: Source, start: int) -> KlarfFile:
    """The file's content, from its first statement at `start`. Raises KlarfError."""
    reader = _Reader(source)
    for statement in _statements(source, start):
        reader.take(statement)
    return reader.finished()


def _statements(source: Source, start: int) -> Iterator[_Statement]:
    """All statements up to EndOfFile. Rows after a `;` that ended a DefectList early continue that list."""
    data, position, previous = source.data, start, ""
    while True:
        at = _GAP.match(data, position).end()  # type: ignore[union-attr]  # it matches the empty text
        if at >= len(data):
            source.end_too_soon("without EndOfFile")
        name = _KEYWORD.match(data, at)
        if name is None and not (previous == "DEFECTLIST" and _NUMERIC.match(data, at)):
            source.fail(f"{shown(data[at : at + 20])} stands where a keyword belongs; is a `;` too much?", at)
        keyword, begin = (word(name[0]), name.end()) if name else (previous, at)
        if keyword == "ENDOFFILE":
            rest = data[begin:]
            if rest.strip(b" \t\r\n\f\v;\x1a"):
                source.fail("the file goes on after EndOfFile; two files may have been joined", begin)
            return
        end = _BODY.match(data, begin).end()  # type: ignore[union-attr]
        if end >= len(data):
            source.end_too_soon(f"inside {keyword}")
        if data[end : end + 1] != b";":
            source.fail("a text has no closing quote on its line", end)
        inside = _INSIDE.search(data, begin, end) if keyword != "DEFECTRECORDSPEC" else None
        if inside is not None:
            source.fail(f"{inside[1].decode()} begins before {keyword} has ended with `;`", inside.start(1))
        yield _Statement(keyword, at, begin, end)
        position, previous = end + 1, keyword


class _Reader:
    """Takes statements in order and keeps what the model needs."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.warnings = Warnings(source)
        self.version = ""
        self.lot: dict[str, _Span] = {}
        self.next: dict[str, _Span] = {}
        self.wafer: _Open | None = None
        self.wafers: list[Wafer] = []
        self.ids: set[str] = set()
        self.lookups: dict[_Span, Lookup] = {}
        self.spec: _Spec | None = None
        self.tiff: str | None = None
        self.tiff_is_new = False
        self.defects = 0

    def take(self, statement: _Statement) -> None:
        """One statement; unknown ones are passed over."""
        keyword, _, start, end = statement
        if keyword == "DEFECTLIST":
            self._take_list(statement)
            return
        if keyword not in _OF_WAFER | _OF_LOT | _RUNNING | {
            "FILEVERSION",
            "WAFERID",
            "TIFFFILENAME",
            "DEFECTRECORDSPEC",
        }:
            return
        most = MAX_ROW_BYTES if keyword in ("CLASSLOOKUP", "DEFECTRECORDSPEC") else MAX_TEXT_BYTES
        if end - start > most:
            self.source.fail(f"{keyword} is longer than {most:,} bytes", statement.at)
        if keyword == "FILEVERSION":
            self._take_version(statement)
        elif keyword == "WAFERID":
            self._take_wafer(statement)
        elif keyword == "TIFFFILENAME":
            self.tiff, self.tiff_is_new = self._text((start, end)) or None, True
        elif keyword == "DEFECTRECORDSPEC":
            self.spec = self._spec(statement)
        elif keyword in _OF_LOT:
            self._take_of_lot(keyword, (start, end))
        elif self.wafer is None or keyword in _RUNNING:
            self.lot[keyword] = (start, end)
            if keyword == "CLASSLOOKUP":
                if len(self.lookups) >= MAX_WAFERS:
                    self.source.fail(f"more than {MAX_WAFERS:,} class lookups in one file", start)
                self.lookups[start, end] = read_lookup(self.source, self.warnings, (start, end))
        else:
            (self.next if self.wafer.lists else self.wafer.values)[keyword] = (start, end)

    def finished(self) -> KlarfFile:
        """The model, after the last statement."""
        self._close_wafer()
        if not self.wafers:
            self.warnings.add("the file names no wafer", 0)
        return KlarfFile(
            source=self.source,
            version=self.version,
            lot=self._lot_text("LOTID"),
            device=self._lot_text("DEVICEID"),
            step=self._lot_text("STEPID"),
            recipe=self._lot_texts("SETUPID"),
            station=self._lot_texts("INSPECTIONSTATIONID"),
            file_time=" ".join(self._lot_texts("FILETIMESTAMP")) or None,
            result_time=" ".join(self._lot_texts("RESULTTIMESTAMP")) or None,
            wafers=tuple(self.wafers),
            lookups=tuple(self.lookups.values()),
            warnings=self.warnings.listed(),
        )

    def _take_version(self, statement: _Statement) -> None:
        version = ".".join(self._texts((statement.start, statement.end)))
        if version not in ("1.1", "1.2") or self.version not in ("", version):
            self.source.fail(f"KLARF version {version[:20]!r} is not read; 1.1, 1.2 and 1.8 are", statement.at)
        self.version = version

    def _take_of_lot(self, keyword: str, span: _Span) -> None:
        if keyword == "LOTID" and keyword in self.lot and self._text(span) != self._text(self.lot[keyword]):
            self.source.fail("a second lot begins; give each lot a file of its own", span[0])
        self.lot.setdefault(keyword, span)

    def _take_wafer(self, statement: _Statement) -> None:
        self._close_wafer()
        if len(self.wafers) >= MAX_WAFERS:
            self.source.fail(f"more than {MAX_WAFERS:,} wafers in one file", statement.at)
        name = self._text((statement.start, statement.end))
        if name in self.ids:
            self.warnings.add(f"wafer {name[:60]!r} begins again", statement.at)
        self.ids.add(name)
        self.wafer, self.next = _Open(name, statement.at, self.next), {}

    def _close_wafer(self) -> None:
        """Make the model of the wafer that was read last."""
        wafer = self.wafer
        if wafer is None:
            return
        if not wafer.lists:
            self.warnings.add(f"wafer {wafer.id[:60]!r} has no DefectList", wafer.at)
        warn_of_twins(self.warnings, wafer.defects)
        slot = self._value("SLOT")
        self.wafers.append(
            Wafer(
                id=wafer.id,
                slot=self._text(slot) if slot else None,
                die_pitch_nm=self._pair("DIEPITCH"),
                die_origin_nm=self._pair("DIEORIGIN"),
                sample_center_nm=self._pair("SAMPLECENTERLOCATION"),
                diameter_nm=self._diameter(),
                orientation=self._lot_text("ORIENTATIONMARKLOCATION"),
                mark=self._lot_text("SAMPLEORIENTATIONMARKTYPE"),
                class_names=self._names(),
                defects=tuple(wafer.defects),
            )
        )

    def _take_list(self, statement: _Statement) -> None:
        """One DefectList: the style of its image lists is the one that fits all of its rows."""
        if self.wafer is None:
            self.source.fail("a DefectList stands before any WaferID", statement.at)
        if self.spec is None:
            self.source.fail("a DefectList stands before any DefectRecordSpec", statement.at)
        if not self.wafer.lists:
            self.wafer.values |= {name: span for name, span in self.lot.items() if name in _RUNNING}
        self.wafer.lists += 1
        spec, listed = self.spec, self.spec.images is not None
        rows = Rows(self.source, spec.columns, spec.images, MAX_DEFECTS - self.defects)
        span = (statement.start, statement.end)
        try:
            found = rows.read(*span, listed=listed)
        except KlarfError:
            if not listed or spec.count is None:
                raise
            with suppress(KlarfError):  # one writer leaves the list's own count out
                found, listed = rows.read(*span, listed=False), False
            if listed:  # that does not fit either, and the first error says more
                raise
        self._keep(found, listed)

    def _keep(self, found: list[Row], listed: bool) -> None:
        """Make defects of the rows of one list."""
        assert self.wafer is not None
        assert self.spec is not None
        self.defects += len(found)
        single = self.tiff_is_new and self.tiff is not None and len(found) == 1 and self.spec.images is None
        table = Table(
            source=self.source,
            wafer=self.wafer.id,
            columns=self.spec.columns,
            types=(),
            images=self.spec.images,
            listed=listed,
            tiff=self.tiff,
            whole_file=single,
            unit_nm=NM_PER_UM,
            die_pitch_nm=self._pair("DIEPITCH"),
            sample_center_nm=self._pair("SAMPLECENTERLOCATION"),
        )
        defects = [Defect(*row, table) for row in found]
        if self.spec.images is None and self.spec.count is not None and not single:
            for defect in defects:
                if defect.whole("IMAGECOUNT"):
                    self.warnings.add(f"defect {defect.id} counts images that the file does not list", defect.start)
        self.wafer.defects += defects
        self.tiff_is_new = self.tiff_is_new and not defects

    def _spec(self, statement: _Statement) -> _Spec:
        count, *names = self.source.data[statement.start : statement.end].split() or [b""]
        if self.source.whole(count, "the count of columns", statement.at) != len(names):
            self.source.fail(f"DefectRecordSpec counts {shown(count)} columns and names {len(names)}", statement.at)
        columns = numbered_columns(self.source, names, statement.at)
        return _Spec(columns, columns.get("IMAGELIST"), columns.get("IMAGECOUNT"))

    def _names(self) -> Mapping[int, str]:
        """The class names that hold for the wafer."""
        span = self._value("CLASSLOOKUP")
        return self.lookups[span].names if span else {}

    def _value(self, keyword: str) -> _Span | None:
        values = self.wafer.values if self.wafer else {}
        return values.get(keyword, self.lot.get(keyword))

    def _pair(self, keyword: str) -> tuple[float, float] | None:
        """Two lengths in nanometres."""
        span = self._value(keyword)
        if span is None:
            return None
        numbers = [self.source.number(token, keyword, span[0]) for token in self.source.data[slice(*span)].split()]
        if len(numbers) != 2:
            self.source.fail(f"{keyword} should be two numbers", span[0])
        x, y = numbers
        return None if x is None or y is None else (x * NM_PER_UM, y * NM_PER_UM)

    def _diameter(self) -> float | None:
        """Of SampleSize 1 300, where 1 stands for a round wafer and 300 for its millimetres."""
        span = self._value("SAMPLESIZE")
        tokens = self.source.data[slice(*span)].split() if span else []
        if span is None or len(tokens) != 2 or tokens[0] != b"1":
            return None
        size = self.source.number(tokens[1], "SAMPLESIZE", span[0])
        return None if size is None else size * NM_PER_MM

    def _texts(self, span: _Span) -> tuple[str, ...]:
        return tuple(self.source.text(match[0]) for match in FLAT_CELL.finditer(self.source.data, *span))

    def _text(self, span: _Span) -> str:
        """One text: a string, or all words as they stand, since names without quotes may hold blanks."""
        whole = self.source.data[slice(*span)].strip()
        match = re.fullmatch(STRING, whole)
        return self.source.text(whole) if match else whole.decode(self.source.encoding, "replace")

    def _lot_text(self, keyword: str) -> str | None:
        return self._text(self.lot[keyword]) if keyword in self.lot else None

    def _lot_texts(self, keyword: str) -> tuple[str, ...]:
        return self._texts(self.lot[keyword]) if keyword in self.lot else ()
