"""What a KLARF file says, the same for versions 1.1, 1.2 and 1.8. All lengths are in nanometres."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .klarf_tokens import SPACE, STRING, Source, shown, word

_ITEM = STRING + rb'|[^ \t\r\n\f\v;"{},]++'
FLAT_CELL = re.compile(STRING + rb'|[^ \t\r\n\f\v;"]++|"')
# A cell of version 1.8 is a string, a word, or a word with a counted list: Images 2 { "a.jpg" "JPG" 1 "Patch", ... }
_BRACED = SPACE + rb"++[0-9]{1,9}+" + SPACE + rb"*+\{(?:[^{};\"]++|" + STRING + rb")*+\}"
NESTED_CELL = re.compile(STRING + rb'|[^ \t\r\n\f\v;"{}]++(?:' + _BRACED + rb')?+|[{}"]')
_GAP = SPACE + rb"*+"
_IMAGE = re.compile(_GAP.join([rb"(" + _ITEM + rb")"] * 4))
_ONE = _GAP + _GAP.join([rb"(?:" + _ITEM + rb")"] * 4) + _GAP
_IMAGES = re.compile(
    rb"(?i:Images)"
    + SPACE
    + rb"++([0-9]{1,9})"
    + _GAP
    + rb"\{((?:"
    + _ONE
    + rb"(?:,"
    + _ONE
    + rb")*+)?+)"
    + _GAP
    + rb"\}"
)
LENGTHS = ("XREL", "YREL", "XSIZE", "YSIZE")
INDICES = ("XINDEX", "YINDEX")


@dataclass(frozen=True, slots=True)
class KlarfImage:
    """One image of a defect.

    file: its name as the file writes it, perhaps a Windows path; None where the file gives none.
    page: the page in `file`, from 1; None if the image is the whole file. Not checked: the file may have fewer pages.
    type: the kind of image: the type's number of 1.2 as text, the label of 1.8 ("Patch").
    format: the file's format as 1.8 states it ("JPG"); None in older versions.
    """

    file: str | None
    page: int | None
    type: str | None
    format: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What the rows of one defect list have in common.

    columns: position of each column by its name in capitals. types: of 1.8, in capitals; empty before.
    images: position of the column that lists images, or None. listed: whether that list begins with its own count.
    tiff: the image file named before the list (1.1, 1.2). whole_file: a row with one image and no list means `tiff`.
    unit_nm: nanometres of one unit of length in the file.
    """

    source: Source = field(repr=False)
    wafer: str
    columns: Mapping[str, int]
    types: tuple[str, ...]
    images: int | None
    listed: bool
    tiff: str | None
    whole_file: bool
    unit_nm: float
    die_pitch_nm: tuple[float, float] | None
    sample_center_nm: tuple[float, float] | None

    @property
    def nested(self) -> bool:
        """Whether the list is one of version 1.8."""
        return bool(self.types)


@dataclass(frozen=True, slots=True, eq=False)
class Defect:
    """One row of a defect list.

    id: DEFECTID. test: TEST, or None. start, end: the row's bytes in the file, from its first cell.
    All other values are taken from the row when they are asked for, so that a large lot stays small.
    """

    id: int
    test: int | None
    start: int
    end: int
    table: Table = field(repr=False)

    @property
    def wafer(self) -> str:
        """The id of its wafer."""
        return self.table.wafer

    @property
    def key(self) -> tuple[str, int, int | None]:
        """(wafer, DEFECTID, TEST): what names a defect in its file."""
        return self.table.wafer, self.id, self.test

    @property
    def line(self) -> int:
        """The line of its row, from 1."""
        return self.table.source.line_of(self.start)

    def spans(self) -> dict[str, tuple[int, int]]:
        """First and end byte of each cell in the file, by column name in capitals; a list of images is one cell."""
        cell = NESTED_CELL if self.table.nested else FLAT_CELL
        found = [match.span() for match in cell.finditer(self.table.source.data, self.start, self.end)]
        place = self.table.images
        if place is not None and not self.table.nested:
            after = len(found) - (len(self.table.columns) - 1 - place)
            listed = (found[place][0], found[after - 1][1]) if after > place else (found[place - 1][1],) * 2
            found[place:after] = [listed]
        return {name: found[index] for name, index in self.table.columns.items()}

    @property
    def cells(self) -> dict[str, str]:
        """The text of each cell by column name in capitals, as written, with its quotes."""
        source = self.table.source
        return {
            name: source.data[start:end].decode(source.encoding, "replace")
            for name, (start, end) in self.spans().items()
        }

    def whole(self, column: str) -> int | None:
        """The whole number in a column, such as CLASSNUMBER; None for NA and where the file lacks the column.

        Raises KlarfError if the cell holds no whole number.
        """
        token = self._token(column)
        return None if token is None else self.table.source.whole(token, column.upper(), self.start)

    def number(self, column: str) -> float | None:
        """The number in a column, in the file's own unit; None for NA and where the file lacks the column.

        Raises KlarfError if the cell holds no number.
        """
        token = self._token(column)
        return None if token is None else self.table.source.number(token, column.upper(), self.start)

    @property
    def class_number(self) -> int | None:
        """CLASSNUMBER. Raises KlarfError if it is no whole number."""
        return self.whole("CLASSNUMBER")

    @property
    def x_nm(self) -> float | None:
        """From the wafer's middle: XINDEX * die pitch + XREL - sample centre; None where one of them is unknown."""
        return self._position(0, "XINDEX", "XREL")

    @property
    def y_nm(self) -> float | None:
        """The same of y."""
        return self._position(1, "YINDEX", "YREL")

    @property
    def xsize_nm(self) -> float | None:
        """XSIZE; None where the file lacks it."""
        return self._length("XSIZE")

    @property
    def ysize_nm(self) -> float | None:
        """YSIZE; None where the file lacks it."""
        return self._length("YSIZE")

    @property
    def images(self) -> tuple[KlarfImage, ...]:
        """Its images, in the file's order."""
        place = self.table.images
        source = self.table.source
        if place is None:
            whole = self.table.whole_file and ("IMAGECOUNT" not in self.table.columns or self.whole("IMAGECOUNT") == 1)
            return (KlarfImage(self.table.tiff, None, None, None),) if whole else ()
        cells = self._row()
        if self.table.nested:
            entries = image_entries(source, cells[place], self.start)
            return tuple(
                KlarfImage(source.text(path) or None, source.whole(page, "page", self.start), *map(source.text, rest))
                for path, page, *rest in entries
            )
        first, last = place + (1 if self.table.listed else 0), len(cells) - (len(self.table.columns) - 1 - place)
        return tuple(
            KlarfImage(self.table.tiff, source.whole(page, "page", self.start), source.text(kind), None)
            for page, kind in zip(cells[first:last:2], cells[first + 1 : last : 2], strict=True)
        )

    def _row(self) -> list[bytes]:
        """The tokens of its row; a list of images is one of them in 1.8, and any number of them before."""
        return split_row(self.table.source.data[self.start : self.end], nested=self.table.nested)

    def _token(self, column: str) -> bytes | None:
        """The only token of a column; None without the column."""
        name, table = column.upper(), self.table
        index = table.columns.get(name)
        if index is None:
            return None
        if index == table.images:
            start, end = self.spans()[name]
            return table.source.data[start:end]
        behind = not table.nested and table.images is not None and index > table.images
        return self._row()[index - len(table.columns) if behind else index]

    def _length(self, column: str) -> float | None:
        value = self.number(column)
        return None if value is None else value * self.table.unit_nm

    def _position(self, axis: int, index: str, within: str) -> float | None:
        die, rest = self.whole(index), self._length(within)
        pitch, center = self.table.die_pitch_nm, self.table.sample_center_nm
        if die is None or rest is None or pitch is None or center is None:
            return None
        return die * pitch[axis] + rest - center[axis]


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A list of classes in the file, and where it may be extended.

    names: name by class number. count: bytes of the stated count. stated: that count. rows: rows that are there.
    end: where a further row goes. before: what stands before it, such as a line end and blanks.
    columns: of 1.8, names in capitals and types; empty before.
    """

    names: Mapping[int, str]
    count: tuple[int, int]
    stated: int
    rows: int
    end: int
    before: bytes
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Wafer:
    """One wafer of a file. Lengths are pairs (x, y); None is unknown.

    slot: text as written. orientation: where the mark is ("DOWN", "0"). mark: what it is ("NOTCH", "FLAT").
    diameter_nm: of a round wafer. class_names: its own class lookup, or the lot's; name by class number.
    """

    id: str
    slot: str | None
    die_pitch_nm: tuple[float, float] | None
    die_origin_nm: tuple[float, float] | None
    sample_center_nm: tuple[float, float] | None
    diameter_nm: float | None
    orientation: str | None
    mark: str | None
    class_names: Mapping[int, str]
    defects: tuple[Defect, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class KlarfFile:
    """One KLARF file. Texts are as written, None where the file does not say; times keep the file's own order of parts.

    version: "1.1", "1.2" or "1.8". encoding: of its texts. station: maker, model and id of the inspection tool.
    recipe: name and time of the inspection recipe. warnings: what is odd in the file, with line numbers.
    """

    source: Source
    version: str
    lot: str | None
    device: str | None
    step: str | None
    recipe: tuple[str, ...]
    station: tuple[str, ...]
    file_time: str | None
    result_time: str | None
    wafers: tuple[Wafer, ...]
    lookups: tuple[Lookup, ...]
    warnings: tuple[str, ...]

    @property
    def encoding(self) -> str:
        """The encoding of its texts."""
        return self.source.encoding

    @property
    def defects(self) -> Iterator[Defect]:
        """The defects of all wafers, in the file's order."""
        for wafer in self.wafers:
            yield from wafer.defects


def split_row(row: bytes, *, nested: bool) -> list[bytes]:
    """The tokens of a row. Strings and braces are rare in 1.1 and 1.2, and splitting at blanks is many times faster."""
    if b'"' in row or b"{" in row:
        tokens: list[bytes] = (NESTED_CELL if nested else FLAT_CELL).findall(row)
        return tokens
    return row.split()


def image_entries(source: Source, cell: bytes, offset: int) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """(path, page, label, format) of each image in a cell of 1.8.

    The cell is `N`, `NA`, or `Images n { path format page label, ... }`.
    Raises KlarfError, with the line of `offset`, where it is neither.
    """
    if cell in (b"N", b"NA"):
        return []
    match = _IMAGES.fullmatch(cell)
    if match is None:
        expected = 'it should be N, or Images n { "path" "format" page "label", ... }'
        source.fail(f"a list of images is {shown(cell)}; {expected}", offset)
    entries = [(path, page, label, kind) for path, kind, page, label in _IMAGE.findall(match[2])]
    if len(entries) != int(match[1]):
        source.fail(f"a list of {int(match[1])} images holds {len(entries)}", offset)
    for _, page, _, _ in entries:
        source.whole(page, "the page of an image", offset)
    return entries


def numbered_columns(source: Source, names: list[bytes], offset: int) -> dict[str, int]:
    """Columns of a defect list by their name in capitals. Raises KlarfError without DEFECTID, and for twins."""
    columns = {word(name): index for index, name in enumerate(names)}
    if len(columns) < len(names):
        source.fail("a defect list has two columns of one name", offset)
    if "DEFECTID" not in columns:
        source.fail("a defect list has no column DEFECTID, so its defects have no names", offset)
    return columns
