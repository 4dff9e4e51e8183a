"""Reading KLARF: the model, by column name, of every version and style."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from klarfs import FLAT_COLUMNS, fixture, flat, flat_row, nested, nested_row, read, reason

from runtime.errors import KlarfError
from runtime.fab.klarf import KlarfFile, KlarfImage, parse_klarf, read_klarf
from runtime.fab.klarf_tokens import MAX_WARNINGS


def pages(file: KlarfFile) -> list[list[int | None]]:
    return [[image.page for image in defect.images] for defect in file.defects]


FILES: dict[str, tuple[str, list[int], list[int]]] = {
    "simple12": ("1.2", [1], [0]),
    "bad12": ("1.2", [1, 0], [0]),
    "klarf12Example": ("1.2", [2], [0, 0]),
    "klarf12DefectListExample": ("1.1", [13], [1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 7, 7, 0]),
    "simple18": ("1.8", [3, 1], [0, 0, 0, 0]),
    "wierdKlarfWithNAs": ("1.8", [3, 1], [0, 0, 0, 0]),
    "klarfWithImagelist": ("1.8", [6], [3, 0, 0, 3, 0, 0]),
}
"""Version, defects of each wafer, images of each defect."""


@pytest.mark.parametrize("name", FILES)
def test_files_of_others_are_read_completely(name: str) -> None:
    version, defects, images = FILES[name]
    file = read_klarf(fixture(f"{name}.klarf"))
    assert (file.version, file.encoding) == (version, "utf-8")
    assert [len(wafer.defects) for wafer in file.wafers] == defects
    assert [len(defect.images) for defect in file.defects] == images
    assert all(defect.x_nm is not None and defect.ysize_nm is not None for defect in file.defects)
    assert len(file.warnings) == (1 if name == "bad12" else 0)


def test_a_row_of_others_with_a_value_too_much_is_refused() -> None:
    with pytest.raises(KlarfError, match=r"line 29: a row has 18 values where its columns need 17"):
        read_klarf(fixture("bad12DefectList.klarf"))


def test_images_of_others_are_those_of_the_file_named_last() -> None:
    defects = {defect.id: defect for defect in read_klarf(fixture("klarf12DefectListExample.klarf")).defects}
    assert defects[1].images == (KlarfImage("A_1.jpg", 1, "0", None),)
    assert defects[9].images == (KlarfImage("A_5.jpg", 39, "1", None),), "its pair stands on the next line"
    assert [image.page for image in defects[12].images] == list(range(8, 15))
    assert {image.file for image in defects[12].images} == {"multi-image.tif"}
    listed = list(read_klarf(fixture("klarfWithImagelist.klarf")).defects)
    assert listed[0].images[2] == KlarfImage("a/path/anywhere", 1, "dummy", "JPG")
    not_there = list(read_klarf(fixture("wierdKlarfWithNAs.klarf")).defects)
    assert not_there[0].whole("DBGROUP") is None or not_there[1].number("DBGROUP") is None


@pytest.mark.parametrize("name", ["theirs", "ours"])
def test_an_independent_reader_agrees(name: str, tmp_path: Path) -> None:
    pytest.importorskip("klarf_reader")
    from klarf_reader.klarf import Klarf

    path = tmp_path / "a.klarf"
    if name == "theirs":
        path = fixture("simple12.klarf")
    else:
        names = "DEFECTID XREL YREL XINDEX YINDEX XSIZE YSIZE DEFECTAREA DSIZE CLASSNUMBER TEST IMAGECOUNT"
        rows = [f" {n} {n}.25 {n * 7}.5 {n % 5 - 2} {n % 3 - 1} 0.5 0.25 0.125 0.5 {n % 4} 1 0" for n in range(1, 40)]
        path.write_bytes(flat(rows, columns=names.split(), end="\n", wafers=["A", "B"]))
    theirs, mine = Klarf.load_from_file(filepath=path), read_klarf(path)
    assert theirs.lot_id.strip('"') == mine.lot
    assert theirs.device_id.strip('"') == mine.device
    for wafer, other in zip(mine.wafers, theirs.wafers, strict=True):
        assert (wafer.id, wafer.slot) == (other.id.strip('"'), str(other.slot))
        assert wafer.die_pitch_nm == (theirs.die_pitch.x * 1000, theirs.die_pitch.y * 1000)
        for one, two in zip(wafer.defects, other.defects, strict=True):
            assert (one.id, one.test, one.class_number) == (two.id, two.test_id, two.class_number)
            assert (one.number("XREL"), one.number("YREL")) == (two.x_rel, two.y_rel)
            assert (one.whole("XINDEX"), one.whole("YINDEX")) == (two.x_index, two.y_index)
            assert (one.number("XSIZE"), one.number("YSIZE")) == (two.x_size, two.y_size)
            assert (one.x_nm, one.y_nm) == pytest.approx([1000 * length for length in two.point])


ROWS = [flat_row(1, [(3, 0), (4, 1)], code=7), flat_row(2), flat_row(3, [(5, 0)])]
IMAGES = 'Images 2 { "C:\\lot\\1.tif" "TIFF" 3 "Patch", "b/2.jpg" "JPG" 1 "SEM" }'


@pytest.mark.parametrize("version", ["1 1", "1 2"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_flat_file_gives_the_model(version: str, end: str) -> None:
    file = read(flat(ROWS, version=version, end=end, wafers=["W1", "W2"]))
    assert (file.version, file.lot, file.device, file.step) == (version.replace(" ", "."), "L7", "device", "step")
    assert (file.station, file.recipe) == (("maker", "model", "id"), ("recipe", "07-01-26", "08:00:00"))
    assert (file.file_time, file.result_time) == ("07-28-26 10:00:00", "07-28-2026 09:00:00")
    assert [(wafer.id, wafer.slot) for wafer in file.wafers] == [("W1", "1"), ("W2", "2")]
    wafer = file.wafers[1]
    assert (wafer.die_pitch_nm, wafer.die_origin_nm) == ((1e6, 2e6), (0.0, 0.0))
    assert (wafer.sample_center_nm, wafer.diameter_nm) == ((5e5, -1e6), 3e8)
    assert (wafer.orientation, wafer.mark) == ("DOWN", "NOTCH")
    assert wafer.class_names == {0: "Unclassified", 7: "Hole"}
    first = wafer.defects[0]
    assert first.key == ("W2", 1, 1)
    assert (first.x_nm, first.y_nm) == (1e6 + 1500 - 5e5, -4e6 + 2000 + 1e6)
    assert (first.xsize_nm, first.ysize_nm, first.class_number) == (250.0, 500.0, 7)
    assert first.images == (KlarfImage("lot.tif", 3, "0", None), KlarfImage("lot.tif", 4, "1", None))
    assert first.cells["IMAGELIST"] == "2 3 0 4 1"
    assert list(first.cells) == FLAT_COLUMNS
    assert first.line == read(flat(ROWS, wafers=["W1"])).wafers[0].defects[0].line + 18
    assert file.warnings == ()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_nested_file_gives_the_same_model(end: str) -> None:
    file = read(nested([nested_row(1, IMAGES, code="7"), nested_row(2)], end=end, wafers=["W1", "W2"]))
    assert (file.version, file.lot, file.device, file.step) == ("1.8", "L7", "device", "step")
    assert (file.station, file.recipe) == (("maker", "model", "id"), ("recipe", "07-01-26", "08:00:00"))
    assert (file.file_time, file.result_time) == ("2026-07-28 10:00:00", "2026-07-28 09:00:00")
    wafer = file.wafers[1]
    assert (wafer.id, wafer.slot, wafer.orientation, wafer.mark) == ("W2", "2", "0", "NOTCH")
    assert (wafer.die_pitch_nm, wafer.sample_center_nm, wafer.diameter_nm) == ((1e6, 2e6), (5e5, -1e6), 3e8)
    assert wafer.class_names == {0: "Unclassified", 7: "Hole"}
    first = wafer.defects[0]
    assert first.key == ("W2", 1, 1)
    assert (first.x_nm, first.y_nm) == (1e6 + 1500 - 5e5, -4e6 + 2000 + 1e6)
    assert (first.xsize_nm, first.ysize_nm, first.class_number) == (250.0, 500.0, 7)
    assert first.images == (KlarfImage("C:\\lot\\1.tif", 3, "Patch", "TIFF"), KlarfImage("b/2.jpg", 1, "SEM", "JPG"))
    assert first.cells["IMAGEINFO"] == IMAGES
    assert (first.whole("AUTOOFFSEMCLASS"), first.whole("nothing")) == (None, None)
    assert wafer.defects[1].images == ()
    assert file.warnings == ()


STYLES: dict[str, Callable[[bytes], bytes]] = {
    "row on the keyword's line": lambda data: data.replace(b"DefectList\r\n 1", b"DefectList 1"),
    "rows without a leading blank": lambda data: data.replace(b"\r\n 1 1.5", b"\r\n1 1.5").replace(b"\r\n 2", b"\r\n2"),
    "semicolon on its own line": lambda data: data.replace(b"5 0;", b"5 0\r\n;"),
    "semicolon after each row": lambda data: data.replace(b"4 1\r\n", b"4 1;\r\n").replace(
        b"0 0\r\n 3", b"0 0 ;\r\n 3"
    ),
    "semicolons too many": lambda data: data.replace(b"5 0;", b"5 0; ;\r\n;"),
    "image list on the next line": lambda data: data.replace(b"2 3 0 4 1", b"2\r\n  3 0\r\n 4 1"),
    "an empty list before": lambda data: data.replace(b"DefectList\r\n", b"DefectList;\r\nDefectList\r\n"),
    "numbers with exponents": lambda data: data.replace(b" 1 -2 ", b" 1.0e+000 -2.0 "),
    "keywords in capitals": lambda data: data.replace(b"DefectList", b"DEFECTLIST").replace(b"DiePitch", b"DIEPITCH"),
    "keywords in small letters": lambda data: data.replace(b"TiffFileName", b"tifffilename").replace(b"XREL", b"xrel"),
    "a mark of UTF-8": lambda data: b"\xef\xbb\xbf" + data,
    "columns on two lines": lambda data: data.replace(b" XINDEX", b"\r\n XINDEX"),
    "blank lines": lambda data: data.replace(b"\r\n", b"\r\n\r\n"),
    "no last semicolon": lambda data: data.replace(b"EndOfFile;\r\n", b"EndOfFile"),
    "a control-Z at the end": lambda data: data + b"\x1a",
    "names of columns without their count's blank": lambda data: data.replace(b"IMAGELIST ;", b"IMAGELIST;"),
}


@pytest.mark.parametrize("style", STYLES)
def test_styles_of_flat_files_read_the_same(style: str) -> None:
    plain = flat(ROWS)
    styled = STYLES[style](plain)
    assert styled != plain
    one, other = read(plain), read(styled)
    for mine, same in zip(one.defects, other.defects, strict=True):
        assert (mine.key, mine.x_nm, mine.y_nm, mine.images) == (same.key, same.x_nm, same.y_nm, same.images)
        assert (mine.class_number, mine.xsize_nm) == (same.class_number, same.xsize_nm)
    assert other.warnings == ()


def test_image_lists_without_a_count_of_their_own() -> None:
    rows = [
        flat_row(1, [(1, 7), (2, 0)], counted=False),
        flat_row(2, counted=False),
        flat_row(3, [(9, 1)], counted=False),
    ]
    file = read(flat(rows))
    assert pages(file) == [[1, 2], [], [9]]
    assert [defect.cells["IMAGELIST"] for defect in file.defects] == ["1 7 2 0", "", "9 1"]
    assert "7 values" in reason(flat([" 1 1 5 0 1 9 9"], columns=["DEFECTID", "IMAGELIST", "IMAGECOUNT"]))


def test_columns_are_read_by_name_wherever_they_stand() -> None:
    columns = ["IMAGECOUNT", "IMAGELIST", "TEST", "YSIZE", "NEWCOLUMN", "DEFECTID", "CLASSNUMBER"]
    (defect,) = read(flat(['1 1 6 0 4 2.5 "x ; y" 11 3'], columns=columns)).defects
    assert (defect.id, defect.test, defect.class_number, defect.ysize_nm) == (11, 4, 3, 2500.0)
    assert (defect.x_nm, defect.xsize_nm) == (None, None)
    assert defect.images == (KlarfImage("lot.tif", 6, "0", None),)
    assert defect.cells == {
        "IMAGECOUNT": "1", "IMAGELIST": "1 6 0", "TEST": "4", "YSIZE": "2.5", "NEWCOLUMN": '"x ; y"', "DEFECTID": "11",
        "CLASSNUMBER": "3",
    }  # fmt: skip
    (bare,) = read(nested(["4;"], columns="int32 DEFECTID")).defects
    assert (bare.id, bare.test, bare.class_number, bare.images) == (4, None, None, ())


def test_one_file_a_defect() -> None:
    columns = ["DEFECTID", "TEST", "IMAGECOUNT"]
    data = flat(["1 1 1"], columns=columns, tiff="").replace(
        b"DefectList\r\n1 1 1;",
        b"TiffFileName L 07_1.jpg;\r\nDefectList\r\n1 1 1;\r\n"
        b'TiffFileName "L_07_2.jpg";\r\nDefectList\r\n2 1 1;\r\nDefectList\r\n3 1 0;\r\n',
    )
    file = read(data)
    one, two = KlarfImage("L 07_1.jpg", None, None, None), KlarfImage("L_07_2.jpg", None, None, None)
    assert [defect.images for defect in file.defects] == [(one,), (two,), ()]
    assert file.warnings == ()
    (defect,) = read(flat(["1"], columns=["DEFECTID"])).defects
    assert defect.images == (KlarfImage("lot.tif", None, None, None),), "nothing counts its images"
    second = data.replace(b"DefectList\r\n3 1 0", b"DefectList\r\n3 1 1")
    assert [len(defect.images) for defect in read(second).defects] == [1, 1, 0], "no file is named for the third"
    assert len(read(second).warnings) == 1


def test_images_that_are_counted_and_not_listed_are_said() -> None:
    file = read(flat(["1 2", "2 0", "3 1"], columns=["DEFECTID", "IMAGECOUNT"]))
    assert pages(file) == [[], [], []]
    assert [text.split(": ")[1] for text in file.warnings] == [
        "defect 1 counts images that the file does not list",
        "defect 3 counts images that the file does not list",
    ]


def test_values_belong_to_the_wafers_that_follow_them() -> None:
    text = flat(["1 1"], columns=["DEFECTID", "TEST"], wafers=["A", "B"]).decode()
    first, second = text.split('WaferID "B"')
    file = read(f'{first}DiePitch 5 6;\r\nWaferID "B"{second.replace("Slot 2;", "")}'.encode())
    assert [wafer.die_pitch_nm for wafer in file.wafers] == [(1e6, 2e6), (5e3, 6e3)]
    assert [wafer.slot for wafer in file.wafers] == ["1", None]
    file = read(f'{first}Slot 9;\r\nWaferID "B"{second.replace("Slot 2;", "")}'.encode())
    assert [wafer.slot for wafer in file.wafers] == ["1", "9"]
    shared = read(f'{first}WaferID "B"{second.replace("ClassLookup", "Unknown")}'.encode())
    assert shared.wafers[1].class_names == {0: "Unclassified", 7: "Hole"}


def test_values_that_are_stated_twice_or_only_sometimes_mean_something() -> None:
    twice = flat(ROWS).replace(b"Slot 1;", b"Slot 1;\r\nResultTimestamp 01-01-27 01:00:00;")
    assert read(twice).result_time == "07-28-2026 09:00:00"
    for data in (flat(ROWS).replace(b"Size 1 300", b"Size 2 300"), flat(ROWS).replace(b"Size 1 300", b"Size 1 3 3")):
        assert read(data).wafers[0].diameter_nm is None
    (rectangle,) = read(nested([nested_row(1)]).replace(b"{300000000, 0}", b"{300000000, 5}")).wafers
    assert rectangle.diameter_nm is None
    (unnamed,) = read(nested([nested_row(1, 'Images 1 { "" "JPG" 1 "P" }')])).defects
    assert unnamed.images == (KlarfImage(None, 1, "P", "JPG"),)


def test_a_wafer_may_have_a_class_lookup_of_its_own_and_so_may_the_file() -> None:
    data = nested([nested_row(1)], wafers=["A", "B"])
    start, end = data.index(b"    List ClassLookupList"), data.index(b"  }\n  Field FileTimestamp")
    listed, without = data[start:end], data[:start] + data[end:]
    assert [wafer.class_names for wafer in read(without).wafers] == [{}, {}]
    own = data.replace(b"Field SlotNumber 1 {2}", listed.replace(b"Hole", b"Pit"))
    assert [wafer.class_names[7] for wafer in read(own).wafers] == ["Hole", "Pit"]
    of_file = without.replace(b"  Field FileTimestamp", listed + b"  Field FileTimestamp")
    assert [wafer.class_names[7] for wafer in read(of_file).wafers] == ["Hole", "Hole"]


def test_odd_but_clear_files_come_with_warnings() -> None:
    def told(data: bytes) -> list[str]:
        return [text.partition(": ")[2] for text in read(data).warnings]

    assert told(flat([flat_row(1), flat_row(1)])) == ["a second defect has DEFECTID 1 and TEST 1"]
    assert told(nested([nested_row(1), nested_row(1)])) == ["a second defect has DEFECTID 1 and TEST 1"]
    assert told(flat(ROWS, wafers=["W", "W"])) == ["wafer 'W' begins again"]
    assert told(nested([nested_row(1)], wafers=["W", "W"])) == ["wafer 'W' begins again"]
    assert told(flat(ROWS, lookup='ClassLookup 3\n 0 "a"\n 0 "b";')) == [
        "class 0 has two names, 'a' and 'b'",
        "a class lookup counts 3 classes and holds 2",
    ]
    assert told(nested([nested_row(1)], classes=5)) == ["a class lookup counts 5 classes and holds 2"]
    assert told(flat([], wafers=[])) == told(nested([], wafers=[])) == ["the file names no wafer"]
    assert told(flat([flat_row(1)]).replace(b"DefectList", b"Other")) == ["wafer 'W1' has no DefectList"]
    many = read(flat([flat_row(1)] * (MAX_WARNINGS + 30))).warnings
    assert (len(many), many[-1]) == (MAX_WARNINGS + 1, "and 29 more warnings")


def test_names_without_quotes_and_quotes_in_names() -> None:
    file = read(flat(ROWS, lot="lot 7 a", lookup='ClassLookup 3\n 0 Not classified\n 5 "a ""b"" ; c"\n -1 {x};'))
    assert file.lot == "lot 7 a"
    assert file.wafers[0].class_names == {0: "Not classified", 5: 'a "b" ; c', -1: "{x}"}
    (defect,) = read(nested([nested_row(1, note='"a; {b} ""c"""')])).defects
    assert defect.cells["NOTE"] == '"a; {b} ""c"""'


def test_encodings() -> None:
    data = flat(ROWS, lot='"Größe"')
    assert read(data).lot == "Größe"
    assert read(b"\xef\xbb\xbf" + data).lot == "Größe"
    assert "is not utf-8" in reason(b"\xef\xbb\xbf" + data.decode().encode("latin-1"))
    latin = data.decode().encode("latin-1")
    assert (read(latin).lot, read(latin).encoding) == ("Größe", "latin-1")
    windows = flat(ROWS, lot='"‘a’"').decode().encode("cp1252")
    assert "is not utf-8. Name the file's encoding" in reason(windows)
    assert parse_klarf(windows, "a", encoding="cp1252").lot == "‘a’"
    for wide in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert "UTF-16 or no text" in reason(data.decode().encode(wide))
    with pytest.raises(KlarfError, match="choose one of utf-8, latin-1, cp1252"):
        parse_klarf(data, "a", encoding="utf-7")
    with pytest.raises(KlarfError, match="mark of UTF-8"):
        parse_klarf(b"\xef\xbb\xbf" + data, "a", encoding="latin-1")
    with pytest.raises(KlarfError, match=r"line 7: byte 0xf6 is not utf-8"):
        parse_klarf(latin, "a", encoding="utf-8")


def random_row(columns: list[str], cells: dict[str, str], pages: list[int], counted: bool, rng: random.Random) -> str:
    """A row with blanks, tabs and, within the list of images, line ends as they come."""
    words = []
    for column in columns:
        if column == "IMAGELIST":
            listed = [*([str(len(pages))] if counted else []), *(f"{page} {rng.randrange(9)}" for page in pages)]
            words.append(rng.choice([" ", "  ", "\n "]).join(listed))
        else:
            words.append(cells[column])
    return rng.choice(["", " ", "\t"]) + rng.choice([" ", "\t", "   "]).join(word for word in words if word)


@pytest.mark.parametrize("counted", [True, False])
def test_random_files_are_read_as_they_were_made(counted: bool) -> None:
    rng = random.Random(5)
    for _ in range(150):
        columns = ["DEFECTID", "TEST", "XSIZE", "CLASSNUMBER", "IMAGECOUNT", "IMAGELIST", "NOTE", "OTHER"]
        rng.shuffle(columns)
        if not counted and columns.index("IMAGECOUNT") > columns.index("IMAGELIST"):
            columns.reverse()
        rows, made = [], []
        for number in range(rng.randint(1, 12)):
            found = [rng.randint(1, 40) for _ in range(rng.choice([0, 0, 1, 2, 3, 7]))]
            note = rng.choice(["NA", '""', '"a b"', '"; 1 2 {"', "x"])
            cells = {"DEFECTID": str(number), "TEST": "1", "XSIZE": "2.5e-1", "CLASSNUMBER": str(rng.randint(-1, 99)),
                     "IMAGECOUNT": str(len(found)), "NOTE": note, "OTHER": "-1.5"}  # fmt: skip
            rows.append(random_row(columns, cells, found, counted, rng))
            made.append((number, int(cells["CLASSNUMBER"]), note, 250.0, found))
        file = read(flat(rows, columns=columns, end=rng.choice(["\n", "\r\n"]), last=rng.choice([";", " ;", "\n;"])))
        read_back = [
            (d.id, d.class_number, d.cells["NOTE"], d.xsize_nm, [image.page for image in d.images])
            for d in file.defects
        ]
        assert read_back == made, columns
