"""KLARF files that cannot be read: each fault is named with its line, and none takes memory or time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from klarfs import NESTED_COLUMNS, flat, flat_row, nested, nested_row, read, reason

from runtime.errors import KlarfError, KlarfIncomplete
from runtime.fab import klarf, klarf_tokens
from runtime.fab.klarf import read_klarf
from runtime.fab.klarf_tokens import MAX_ROW_BYTES, MAX_TEXT_BYTES

ROWS = [flat_row(1, [(3, 0), (4, 1)], code=7), flat_row(2), flat_row(3, [(5, 0)])]
IMAGES = 'Images 2 { "a.tif" "TIFF" 3 "Patch", "b/2.jpg" "JPG" 1 "SEM" }'
FAULTS: dict[str, tuple[bytes, str]] = {
    "no KLARF": (b"<xml/> EndOfFile", "no KLARF file"),
    "version": (flat(ROWS, version="1 0"), "line 1: KLARF version '1.0' is not read"),
    "later version": (nested([nested_row(1)]).replace(b'"1.8"', b'"2.0"'), 'Record FileRecord "1.8"'),
    "joined": (flat(ROWS) + flat(ROWS), "goes on after EndOfFile"),
    "joined nested": (nested([nested_row(1)]) * 2, "goes on after EndOfFile"),
    "two lots": (flat(ROWS).replace(b"Slot 1;", b"LotID other;"), "a second lot begins"),
    "two lots nested": (nested([nested_row(1)], wafers=['W"\n{}\nRecord LotRecord "b']), "a second lot begins"),
    "open quote": (flat(ROWS, lot='"L7'), "line 7: a text has no closing quote on its line"),
    "missing semicolon": (flat(ROWS).replace(b'"L7";', b'"L7"'), "line 8: SampleSize begins before LOTID has ended"),
    "rows without an end": (flat(ROWS, last=""), "SummarySpec begins before DEFECTLIST has ended with `;`"),
    "comment": (flat(ROWS).replace(b"Slot 1;", b"# Slot 1;"), "stands where a keyword belongs"),
    "value too much": (flat([flat_row(1) + " 5"]), "a row has 13 values where its columns need 12"),
    "value too few": (flat([" 1 2 3"]), "a row ends after 3 values"),
    "two counts": (flat([" 1 1.5 2 1 -2 0.25 0.5 0 1 9 2 1 7 0"]), "IMAGECOUNT is 2 and IMAGELIST holds 1"),
    "count": (flat(ROWS).replace(b"Spec 12", b"Spec 13"), "counts '13' columns and names 12"),
    "twin columns": (flat(["1 2"], columns=["DEFECTID", "defectid"]), "two columns of one name"),
    "no id": (flat(["1"], columns=["TEST"]), "no column DEFECTID"),
    "id is text": (flat(["x 1"], columns=["DEFECTID", "TEST"]), "DEFECTID is 'x', which is no number"),
    "id is NA": (flat(["NA 1"], columns=["DEFECTID", "TEST"]), "DEFECTID is NA"),
    "id is no whole number": (flat(["1.5 1"], columns=["DEFECTID", "TEST"]), "no whole number"),
    "id is not exact": (flat(["1e17 1"], columns=["DEFECTID", "TEST"]), "no whole number"),
    "huge number": (flat(["1 1e999"], columns=["DEFECTID", "XREL"]), "XREL is '1e999', which is too large"),
    "number of an overflow": (flat(["1 -1e101"], columns=["DEFECTID", "XREL"]), "XREL is '-1e101', which is too large"),
    "pitch of an overflow": (flat(ROWS).replace(b"DiePitch 1.0000000000e+003", b"DiePitch 1e306"), "DIEPITCH is"),
    "underscore": (flat(["1_0 1"], columns=["DEFECTID", "TEST"]), "which is no number"),
    "not a number": (flat(["1 nan"], columns=["DEFECTID", "XREL"]), "XREL is 'nan'"),
    "page": (flat([flat_row(1, [(1, 0)]).replace("1 1 1 0", "1 1 NA 0")]), "image number of IMAGELIST is NA"),
    "negative count": (flat([flat_row(1).replace("0 0", "-1 -1")]), "which is no count"),
    "list before wafer": (flat(ROWS, wafers=[]).replace(b"EndOf", b"DefectList 1;\r\nEndOf"), "before any WaferID"),
    "list before columns": (flat(ROWS).replace(b"DefectRecordSpec", b"Other"), "before any DefectRecordSpec"),
    "lookup": (flat(ROWS, lookup="ClassLookup 1\n 5;"), "a row of ClassLookup"),
    "lookup number": (flat(ROWS, lookup='ClassLookup 1\n x "a";'), "a number of ClassLookup is 'x'"),
    "empty lookup": (flat(ROWS, lookup="ClassLookup;"), "ClassLookup has no count"),
    "pitch": (flat(ROWS).replace(b"DiePitch 1.0000000000e+003", b"DiePitch"), "DIEPITCH should be two numbers"),
    "nested pitch": (nested([nested_row(1)]).replace(b"{1000000, 2", b"{2"), "DIEPITCH should be two numbers"),
    "row count": (nested([nested_row(1)]).replace(b"Data 1\n", b"Data 2\n", 1), "counts 2 rows and holds 1"),
    "column count": (nested([nested_row(1)]).replace(b"Columns 14", b"Columns 15"), "15 columns of `type NAME`"),
    "nested value too much": (nested([nested_row(1, "N N")]), "a row has 15 values where its columns need 14"),
    "no semicolon": (nested([nested_row(1).replace(";", "")]), "stands where a row that ends with `;`"),
    "image list": (nested([nested_row(1, 'Images 1 { "a" "b" 1 }')]), "a list of images is"),
    "images": (nested([nested_row(1, 'Images 2 { "a" "b" 1 "c" }')]), "a list of 2 images holds 1"),
    "image page": (nested([nested_row(1, 'Images 1 { "a" "b" x "c" }')]), "the page of an image is 'x'"),
    "two image lists": (nested(["1 N N;"], columns="int32 DEFECTID, ImageList A, ImageList B"), "two columns of type"),
    "keyword": (nested([nested_row(1)]).replace(b"Field StepID", b"Felt StepID"), "where Record, Field or List"),
    "field": (nested([nested_row(1)]).replace(b'1 {"step"}', b'1 {"step"'), "stands where a field"),
    "brace": (nested([nested_row(1)]).replace(b"\nEndOfFile", b"\n}\nEndOfFile"), "closing brace has no opening one"),
    "depth": (b'Record FileRecord "1.8" {' + b"Record A {" * 99 + b"}" * 100 + b"EndOfFile;", "deeper than 32"),
    "list outside": (b'Record FileRecord "1.8" { List DefectList { Columns 1 { int32 DEFECTID } Data 0 {} } }EndOfFile',
                     "outside of any WaferRecord"),
    "wafer in wafer": (nested([nested_row(1)], wafers=['W1"\n{ Record WaferRecord "W2']), "stands in another"),
    "class lookup columns": (nested([nested_row(1)]).replace(b"g CLASSNAME", b"g CLASSNAMED"), "needs columns"),
    "class number": (nested([nested_row(1)], lookup='NA "a" "";', classes=1), "CLASSNUMBER of a class is NA"),
    "long row": (nested([nested_row(1, note=f'"{"x" * MAX_ROW_BYTES}"')]), "a row is longer than"),
    "long row, flat": (flat(["1 " + "x" * MAX_ROW_BYTES], columns=["DEFECTID", "A"]), "a row is longer than"),
    "long text": (flat(ROWS, lot="x" * MAX_TEXT_BYTES), "LOTID is longer than"),
    "long wafer": (nested([nested_row(1)], wafers=["W" * (MAX_TEXT_BYTES + 1)]), "the name of a record is longer than"),
    "long field": (nested([nested_row(1)]).replace(b"{1000000", b"{" + b" " * MAX_TEXT_BYTES + b"1"), "DIEPITCH is"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_their_place(fault: str) -> None:
    data, expected = FAULTS[fault]
    assert expected in reason(data)


@pytest.mark.parametrize("whole", [flat(ROWS), nested([nested_row(1, IMAGES)])], ids=["flat", "nested"])
def test_a_file_that_ends_too_early_is_incomplete(whole: bytes) -> None:
    last = whole.rindex(b"EndOfFile")
    for length in [*range(30, last, 97), last, last + 8]:
        text = reason(whole[:length], KlarfIncomplete)
        assert "cut off, or still being written" in text
    assert "is empty" in reason(b"", KlarfIncomplete)


def test_a_file_that_changes_while_it_is_read_is_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.klarf"
    path.write_bytes(flat(ROWS))
    opened = klarf.open_plain

    def growing(path: Any) -> Any:
        stream = opened(path)
        real = os.fstat(stream.fileno())

        def later(handle: int) -> os.stat_result:
            monkeypatch.undo()
            Path(path).write_bytes(flat(ROWS * 2))
            return real

        monkeypatch.setattr(klarf.os, "fstat", later)
        return stream

    monkeypatch.setattr(klarf, "open_plain", growing)
    with pytest.raises(KlarfIncomplete, match="changes while it is read"):
        read_klarf(path)
    assert len(list(read_klarf(path).defects)) == 6


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KlarfError, match="does not exist"):
        read_klarf(tmp_path / "no.klarf")
    with pytest.raises(KlarfError, match="cannot be read"):
        read_klarf(tmp_path)
    with pytest.raises(KlarfError, match="cannot be read"):
        read_klarf(f"{tmp_path}/a\0b")
    (tmp_path / "a.klarf").write_bytes(flat(ROWS))
    monkeypatch.setattr(klarf, "MAX_BYTES", 100)
    with pytest.raises(KlarfError, match="more than the 100 that are read"):
        read_klarf(tmp_path / "a.klarf")


def test_counts_of_the_file_take_no_memory() -> None:
    """A count is compared with what is there, and nothing is made for it."""
    assert "ends after" in reason(flat([flat_row(1).replace("0 0", "999999999 999999999")]))
    assert "999999999 rows" in reason(nested([nested_row(1)]).replace(b"Data 1\n", b"Data 999999999\n", 1))
    assert "999999999 images" in reason(nested([nested_row(1, "Images 999999999 {}")]))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [1, 2, 7, 1 << 16])
def test_lines_are_counted_in_blocks(end: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(klarf_tokens, "_BLOCK", block)
    data = flat(ROWS, end=end)
    lines = data.decode().split(end)
    for defect, row in zip(read(data).defects, ROWS, strict=True):
        assert lines[defect.line - 1].strip(" ;") == row.strip()


def test_too_many_defects_and_wafers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.fab import klarf_flat, klarf_nested

    for module in (klarf_flat, klarf_nested):
        monkeypatch.setattr(module, "MAX_DEFECTS", 2)
        monkeypatch.setattr(module, "MAX_WAFERS", 2)
    assert "defects in one file" in reason(flat(ROWS))
    assert "defects in one file" in reason(nested([nested_row(n) for n in range(3)]))
    assert "wafers in one file" in reason(
        flat(["1"], columns=["DEFECTID"], wafers="abc").replace(b"List\r\n1", b"List")
    )
    more = b'ClassLookup 1\r\n 1 "a";\r\n' * 2
    assert "class lookups in one file" in reason(
        flat(["1"], columns=["DEFECTID"]).replace(b"EndOfFile", more + b"EndOfFile")
    )
    assert "one of over 2" in reason(nested([], wafers="abc", columns=NESTED_COLUMNS))
