"""Writing class numbers into KLARF files: only the cells that were asked for change."""

from __future__ import annotations

from pathlib import Path

import pytest
from klarfs import FIXTURES, fixture, flat, flat_row, nested, nested_row, read

from runtime.errors import KlarfError, PredictorError
from runtime.fab.klarf import KlarfFile, parse_klarf, read_klarf
from runtime.fab.klarf_writing import with_classes, write_klarf

ROWS = [flat_row(1, [(3, 0), (4, 1)], code=7), flat_row(2), flat_row(3, [(5, 0)], code=-1)]
IMAGES = 'Images 1 { "C:\\lot\\1.tif" "TIFF" 3 "Patch" }'
FLAT = flat(ROWS, wafers=["W1", "W2"])
NESTED = nested([nested_row(1, IMAGES, code="7"), nested_row(2), nested_row(3, code="NA")], wafers=["W1", "W2"])
READABLE = ["simple12", "bad12", "klarf12Example", "klarf12DefectListExample", "simple18", "wierdKlarfWithNAs",
            "klarfWithImagelist"]  # fmt: skip


def changes(before: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
    """The lines that differ, by pairs; both files must have the same number of lines."""
    one, two = before.split(b"\n"), after.split(b"\n")
    assert len(one) == len(two)
    return [(a, b) for a, b in zip(one, two, strict=True) if a != b]


def refused(file: KlarfFile, *arguments: object) -> str:
    with pytest.raises(KlarfError) as caught:
        with_classes(file, *arguments)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("name", READABLE)
def test_files_of_others_are_written_back_to_the_byte(name: str, tmp_path: Path) -> None:
    path = fixture(f"{name}.klarf")
    file, before = read_klarf(path), path.read_bytes()
    assert with_classes(file, {}) == before
    assert with_classes(file, {defect.key: {} for defect in file.defects}, {}) == before
    write_klarf(file, with_classes(file, {}), tmp_path / "out.klarf")
    assert (tmp_path / "out.klarf").read_bytes() == before == path.read_bytes()


@pytest.mark.parametrize("name", READABLE)
def test_in_files_of_others_only_the_cells_of_classes_change(name: str) -> None:
    """The expected file is made by a second way: the row's cells are put together again, one by one."""
    path = fixture(f"{name}.klarf")
    file, before = read_klarf(path), path.read_bytes()
    expected = before
    for defect in reversed(list(file.defects)):
        start, end = defect.spans()["CLASSNUMBER"]
        expected = expected[:start] + b"4711" + expected[end:]
    after = with_classes(file, {defect.key: {"CLASSNUMBER": 4711} for defect in file.defects})
    assert after == expected
    again = parse_klarf(after, "again")
    for old, new in zip(file.defects, again.defects, strict=True):
        assert new.cells == old.cells | {"CLASSNUMBER": "4711"}
        assert new.images == old.images


def test_a_flat_file_changes_in_these_cells_alone() -> None:
    file = read(FLAT)
    after = with_classes(file, {("W2", 1, 1): {"CLASSNUMBER": 12}, ("W1", 3, 1): {"classnumber": 7}})
    assert changes(FLAT, after) == [
        (b" 3 3.5 2.0 1 -2 0.25 0.5 -1 1 9 1 1 5 0;\r", b" 3 3.5 2.0 1 -2 0.25 0.5 7 1 9 1 1 5 0;\r"),
        (b" 1 1.5 2.0 1 -2 0.25 0.5 7 1 9 2 2 3 0 4 1\r", b" 1 1.5 2.0 1 -2 0.25 0.5 12 1 9 2 2 3 0 4 1\r"),
    ]


def test_a_nested_file_changes_in_these_cells_alone() -> None:
    file = read(NESTED)
    wanted = {"CLASSNUMBER": 7, "AUTOOFFSEMCLASS": 7}
    after = with_classes(file, {("W2", 3, 1): wanted, ("W1", 1, 1): wanted})
    assert changes(NESTED, after) == [
        (b'          1 1500 2000 1 -2 250 500 7 1 9 NA 0.5 "" ' + IMAGES.encode() + b";",
         b'          1 1500 2000 1 -2 250 500 7 1 9 7 0.5 "" ' + IMAGES.encode() + b";"),
        (b'          3 3500 2000 1 -2 250 500 NA 1 9 NA 0.5 "" N;',
         b'          3 3500 2000 1 -2 250 500 7 1 9 7 0.5 "" N;'),
    ]  # fmt: skip


def test_columns_after_a_list_of_images_and_rows_in_pieces() -> None:
    columns = ["DEFECTID", "IMAGECOUNT", "IMAGELIST", "CLASSNUMBER"]
    data = flat([" 1 2 2\n  3 0\n 4 1 0", " 2 0 0 0"], columns=columns)
    after = with_classes(read(data), {("W1", 1, None): {"CLASSNUMBER": 5}, ("W1", 2, None): {"CLASSNUMBER": 6}})
    assert changes(data, after) == [(b" 4 1 0\r", b" 4 1 5\r"), (b" 2 0 0 0;\r", b" 2 0 0 6;\r")]


def test_a_cell_that_holds_the_number_already_stays_as_written() -> None:
    data = flat(["1 7.0e+000"], columns=["DEFECTID", "CLASSNUMBER"])
    assert with_classes(read(data), {("W1", 1, None): {"CLASSNUMBER": 7}}) == data
    assert with_classes(read(data), {("W1", 1, None): {"CLASSNUMBER": 8}}) == data.replace(b"7.0e+000", b"8")


def test_the_mark_of_utf_8_and_names_in_latin_1_stay() -> None:
    for data in (b"\xef\xbb\xbf" + FLAT, FLAT.replace(b"L7", b"Gr\xf6\xdfe")):
        after = with_classes(read(data), {("W1", 2, 1): {"CLASSNUMBER": 7}})
        assert after == data.replace(b"0.5 0 1 9 0 0", b"0.5 7 1 9 0 0", 1)


def test_a_lookup_gets_the_numbers_that_it_lacks() -> None:
    lookup = {12: "Scratch", 7: "hole", 9: "Größe"}
    after = with_classes(read(FLAT.replace(b"L7", "ä".encode())), {}, lookup)
    added = '\r\n 7 "Hole"\r\n 9 "Größe"\r\n 12 "Scratch";'.encode()
    assert after == FLAT.replace(b"L7", "ä".encode()).replace(b"Lookup 2", b"Lookup 4").replace(
        b'\r\n 7 "Hole";', added
    )
    after = with_classes(read(NESTED), {}, {12: "Scratch", 7: "Hole"})
    expected = NESTED.replace(b"Data 2\n", b"Data 3\n").replace(
        b'7 "Hole" "";', b'7 "Hole" "";\n        12 "Scratch" "";'
    )
    assert after == expected
    assert read(after).wafers[0].class_names == {0: "Unclassified", 7: "Hole", 12: "Scratch"}
    assert with_classes(read(NESTED), {}, {7: "Hole"}) == NESTED


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_empty_lookup_gets_its_first_number(end: str) -> None:
    for data in (flat(ROWS, lookup="ClassLookup 0;", end=end), nested([nested_row(1)], lookup="", classes=0, end=end)):
        after = with_classes(read(data), {}, {5: "Scratch"})
        file = read(after)
        assert file.wafers[0].class_names == {5: "Scratch"}
        assert file.warnings == ()
        row = next(line for line in after.decode().split(end) if "Scratch" in line)
        assert row.strip(" ;").startswith('5 "Scratch"'), "it has a line of its own"
        assert after.count(b"\r\n") == (after.count(b"\n") if end == "\r\n" else 0)


def test_cells_and_names_in_one_go() -> None:
    wanted = {"AUTOOFFSEMCLASS": 8, "CLASSNUMBER": 9}  # not in the file's order
    for key in (("W2", 1, 1), ("W1", 2, 1)):
        both = with_classes(read(NESTED), {key: wanted}, {9: "Scratch"})
        assert both == with_classes(read(with_classes(read(NESTED), {}, {9: "Scratch"})), {key: wanted})
        flat_one = with_classes(read(FLAT), {key: {"CLASSNUMBER": 9}}, {9: "Scratch"})
        assert flat_one == with_classes(read(with_classes(read(FLAT), {}, {9: "Scratch"})), {key: {"CLASSNUMBER": 9}})


def test_lookups_on_one_line_stay_on_one_line() -> None:
    data = flat(ROWS, lookup='ClassLookup 2 0 "Unclassified" 7 "Hole";')
    assert b'ClassLookup 3 0 "Unclassified" 7 "Hole" 8 "a b";' in with_classes(read(data), {}, {8: "a b"})


def test_names_and_numbers_that_disagree_are_refused() -> None:
    for file in (read(FLAT), read(NESTED)):
        assert "class 7 is 'Hole' in the file, and 'Bridge' was asked for" in refused(file, {}, {7: "Bridge"})
        assert "'hole' is class 7 in the file, and 8 was asked for" in refused(file, {}, {8: "hole"})
        assert "'A' is class 8 in the file, and 9 was asked for" in refused(file, {}, {8: "a", 9: "A"})
        for name in ("", 'a"b', "a\nb"):
            assert "no class name for a file" in refused(file, {}, {8: name})
        assert "is ASCII, which has no way to write 'Größe'" in refused(file, {}, {8: "Größe"})
        assert "no class number" in refused(file, {}, {2**31: "a"})
    latin = read(FLAT.replace(b"L7", b"Gr\xf6\xdfe"))
    assert "is latin-1, which has no way to write '欠陥'" in refused(latin, {}, {8: "欠陥"})
    assert "it is not extended" in refused(read(flat(ROWS, lookup='ClassLookup 3\n 0 "a";')), {}, {8: "b"})
    assert "has no class lookup" in refused(read(flat(ROWS, lookup="")), {}, {8: "b"})
    more = NESTED.replace(b"string CLASSCODE", b"int32 COLOUR").replace(b'"";', b"1;")
    assert "would need a value in column COLOUR" in refused(read(more), {}, {8: "b"})


@pytest.mark.parametrize(
    "column", ["MANSEMCLASS", "manoptclass", "MAN_SEM", "MANUALCLASS", "SEM_MANUAL", "CLASS_MAN", "MAN"]
)
def test_a_class_that_people_gave_is_never_written(column: str) -> None:
    for data in (
        flat(["1 2"], columns=["DEFECTID", column]),
        nested(["1 2;"], columns=f"int32 DEFECTID, int32 {column}"),
    ):
        assert "what people decided" in refused(read(data), {("W1", 1, None): {column: 3}})


@pytest.mark.parametrize("column", ["DEFECTID", "test", "XREL", "YINDEX", "XSIZE", "IMAGECOUNT", "IMAGELIST"])
def test_what_a_defect_is_is_never_written(column: str) -> None:
    assert "part of what the defect is" in refused(read(FLAT), {("W1", 1, 1): {column: 3}})


def test_what_is_not_there_is_refused() -> None:
    file = read(FLAT)
    message = refused(file, {("W1", 1, 1): {"AUTOOFFSEMCLASS": 3}})
    assert "there is no column AUTOOFFSEMCLASS to write; choose among CLASSNUMBER" in message
    assert "MANSEMCLASS" not in message
    assert "has no defect 9 of wafer 'W1', test 1, and 1 more" in refused(file, {("W1", 9, 1): {}, ("W3", 1, 1): {}})
    assert "no class number for CLASSNUMBER" in refused(file, {("W1", 1, 1): {"CLASSNUMBER": 2**31}})
    assert "no class number for CLASSNUMBER" in refused(file, {("W1", 1, 1): {"CLASSNUMBER": True}})
    assert "no class number for CLASSNUMBER" in refused(file, {("W1", 1, 1): {"CLASSNUMBER": 1.0}})
    assert "asked for twice" in refused(file, {("W1", 1, 1): {"CLASSNUMBER": 1, "classnumber": 2}})
    twins = read(flat([flat_row(1), flat_row(1)]))
    assert "two defects are defect 1 of wafer 'W1', test 1" in refused(twins, {("W1", 1, 1): {"CLASSNUMBER": 1}})
    words = read(flat(["1 x", '2 "5"'], columns=["DEFECTID", "BIN"]))
    assert "BIN is 'x', which is no number" in refused(words, {("W1", 1, None): {"BIN": 1}})
    assert "which is no number" in refused(words, {("W1", 2, None): {"BIN": 1}})
    assert "is of type STRING" in refused(read(NESTED), {("W1", 1, 1): {"NOTE": 1}})
    assert "is of type IMAGELIST" in refused(read(NESTED), {("W1", 1, 1): {"IMAGEINFO": 1}})


def test_the_original_is_never_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "a.klarf", tmp_path / "b.klarf"
    path.write_bytes(FLAT)
    file = read_klarf(path)
    (tmp_path / "link").symlink_to(path)
    for target in (path, tmp_path / "link"):
        with pytest.raises(KlarfError, match="is the original"):
            write_klarf(file, b"new", target, force=True)
    write_klarf(file, b"new", other)
    with pytest.raises(PredictorError, match="exists"):
        write_klarf(file, b"newer", other)
    write_klarf(file, b"newer", other, force=True)
    assert (path.read_bytes(), other.read_bytes()) == (FLAT, b"newer")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.klarf", "b.klarf", "link"]


def test_the_list_of_files_of_others_is_complete() -> None:
    if FIXTURES.is_dir():
        assert {path.stem for path in FIXTURES.glob("*.klarf")} == {*READABLE, "bad12DefectList"}
