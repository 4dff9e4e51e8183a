"""`sem-clip classify-lot` from file to file: codes, side files, summary, and what each depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import names_in, write_frame
from conftest import make_recipe
from lots import CODES, LotCase, Spot, changed_lines, contents, frame, klarf_text, make_case, write_stack

from runtime import Predictor
from runtime.cli import main
from runtime.fab.klarf import read_klarf
from runtime.fab.lot_parquet import lot_schema

pytest.importorskip("pyarrow")
Capture = pytest.CaptureFixture[str]
NAME = "lot7.klarf"


@pytest.fixture
def case(tmp_path: Path) -> LotCase:
    """30 defects."""
    return make_case(tmp_path)


def test_codes_go_into_the_lots_file_and_nothing_else_changes(case: LotCase) -> None:
    assert case.run() == 0
    before, after = case.lot.read_text().splitlines(), (case.out / NAME).read_text().splitlines()
    lookup = [' 0 "Unclassified"', ' 12 "bridge"', ' 13 "hole";']
    start = before.index("ClassLookup 1")
    assert after[start : start + 4] == ["ClassLookup 3", *lookup]
    rest = zip(before[start + 2 :], after[start + 4 :], strict=True)
    for old, new in rest:
        if old != new:
            cells, others = new.split(), old.split()
            assert others[7] == "0"
            assert cells[7] in ("12", "13")
            assert cells[:7] + cells[8:] == others[:7] + others[8:]
    assert before[:start] == after[:start]
    found = {(defect.wafer, defect.id): defect.class_number for defect in read_klarf(case.out / NAME).defects}
    assert found == {(line["wafer"], line["defect_id"]): line["code"] for line in case.lines()}
    assert sorted(set(found.values())) == [0, 12, 13]


def test_every_defect_has_a_line_with_its_names_its_verdict_and_its_images(case: LotCase) -> None:
    assert case.run() == 0
    lines = case.lines()
    assert [(line["lot"], line["wafer"], line["slot"]) for line in lines[::10]] == [
        ("L7", "W1", "1"),
        ("L7", "W2", "2"),
        ("L7", "W3", "3"),
    ]
    assert [line["defect_id"] for line in lines[:3]] == [1, 4, 7]
    assert [line["verdict"] for line in lines[:3]] == ["good", "bridge", "hole"]
    assert [image["image"] for image in lines[0]["images"]] == ["stack1.tif#1", "stack1.tif#2"]
    assert [image["type"] for image in lines[0]["images"]] == ["1", "2"]
    with Predictor(case.bundle, backend="fake") as predictor:
        for line in lines:
            answer = predictor(str(case.lot.parent / line["image"]))
            assert (line["verdict"], line["score"], line["novelty"]) == (answer.verdict, answer.score, answer.novelty)
            assert line["probabilities"] == answer.probabilities
            assert line["recipe_sha256"] == predictor.recipe.sha256()
            assert line["x_nm"] is not None


def test_the_parquet_file_says_the_same(case: LotCase) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert case.run() == 0
    table = parquet.read_table(case.out / f"{NAME}.parquet")
    assert table.schema.equals(lot_schema())
    assert table.schema.metadata[b"sem_clip.lot_schema"] == b"1"
    lines = case.lines()
    for row, line in zip(table.to_pylist(), lines, strict=True):
        assert row.keys() == line.keys()
        assert dict(row["probabilities"]) == line["probabilities"]
        for name in line.keys() - {"images", "probabilities"}:
            assert row[name] == line[name], name
        for image, other in zip(row["images"], line["images"], strict=True):
            assert {key: value for key, value in image.items() if value is not None} == other


def test_few_defects_of_many_images_are_not_held_together(case: LotCase) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    spots = [Spot(number, [(1, 1)] * 1500) for number in range(1, 7)]
    case.lot.write_text(klarf_text([("W", "absent.tif", spots)]))
    assert case.run() == 1
    assert parquet.ParquetFile(case.out / f"{NAME}.parquet").num_row_groups == 3


def test_other_columns_take_the_codes_when_they_are_named(case: LotCase) -> None:
    assert case.run("--column", "AUTOOFFSEMCLASS", "--no-lookup") == 0
    for old, new in changed_lines(case.lot, case.out / NAME):
        cells, others = new.split(), old.split()
        assert cells[10] in ("12", "13")
        assert cells[:10] + cells[11:] == others[:10] + others[11:]
    assert "AUTOOFFSEMCLASS" in json.loads((case.out / f"{NAME}.lot.json").read_text())["settings"]["columns"]


def test_images_of_chosen_types_alone_are_judged(case: LotCase) -> None:
    assert case.run("--image-types", "2") == 0
    lines = case.lines()
    with_second = [line for line in lines if line["images"]]
    assert len(with_second) == 3
    assert all([image["type"] for image in line["images"]] == ["2"] for line in with_second)
    others = [line for line in lines if not line["images"]]
    assert {line["verdict"] for line in others} == {"no image"}
    assert others[0]["reason"] == "none of its 1 images is of the types chosen"
    assert others[0]["code"] is None


def test_a_defect_without_images_keeps_its_code_and_is_no_failure(case: LotCase) -> None:
    spots = [Spot(1, [(1, 1)]), Spot(2, [])]
    write_stack(case.lot.parent / "one.tif", [frame(1, defect=True)])
    case.lot.write_text(klarf_text([("W", "one.tif", spots)]).replace("1.5 0 1 0 0 0 0", "1.5 77 1 0 0 0 0"))
    assert case.run("--no-lookup") == 0
    assert [(old.split()[7], new.split()[7]) for old, new in changed_lines(case.lot, case.out / NAME)] == [("0", "12")]
    assert case.lines()[1]["verdict"] == "no image"


def test_rejects_have_codes_of_their_own(tmp_path: Path) -> None:
    floors = {"good": 0.0, "bridge": 0.95, "hole": 0.0}
    case = make_case(tmp_path, recipe=make_recipe(confidence_thresholds=floors))
    assert case.run() == 0
    assert {line["code"] for line in case.lines() if line["label"] == "bridge"} == {99}
    assert "cannot decide" in (case.out / NAME).read_text()


def test_a_file_without_class_lookup_takes_codes_without_names(case: LotCase, capsys: Capture) -> None:
    text = case.lot.read_text().replace('ClassLookup 1\n 0 "Unclassified";\n', "")
    case.lot.write_text(text)
    assert case.run() == 0
    assert "has no class lookup, so the codes are written without their names" in capsys.readouterr().err
    assert changed_lines(case.lot, case.out / NAME)


def test_the_summary_says_what_was_done_and_stdout_stays_empty(case: LotCase, capsys: Capture) -> None:
    assert case.run() == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{case.lot}: 30 defects\n  good" in err
    summary = json.loads((case.out / f"{NAME}.lot.json").read_text())
    assert summary["verdicts"] == {"good": 12, "bridge": 9, "hole": 9}
    assert summary["status"] == 0
    assert summary["manual"] == {"classified": 13, "agreed": 13}
    assert names_in(case.out) == sorted([NAME, *(f"{NAME}.{end}" for end in ("html", "jsonl", "lot.json", "parquet"))])
    assert summary["files"].keys() == {*names_in(case.out)} - {f"{NAME}.lot.json"}


def test_a_lot_is_judged_once_until_force_or_other_settings(case: LotCase, capsys: Capture) -> None:
    assert case.run() == 0
    first = contents(case.out)
    capsys.readouterr()
    assert case.run() == 0
    assert "was judged before, with the same settings" in capsys.readouterr().err
    (case.folder / "codes.toml").write_text(CODES.replace("12", "22"))
    assert case.run() == 2
    assert "or add --force to replace it" in capsys.readouterr().err
    assert contents(case.out) == first
    assert case.run("--force") == 0
    assert {line["code"] for line in case.lines()} == {0, 22, 13}


def test_options_may_stand_before_and_among_the_lots(case: LotCase, capsys: Capture) -> None:
    other = case.lot.with_name("lot8.001")
    other.write_text(case.lot.read_text().replace("L7", "L8"))
    words = case.words(case.lot, "--settle", "3", other, lots=[])
    assert main(words) == 0
    assert len(names_in(case.out)) == 10
    with pytest.raises(SystemExit):
        main([*words, "--nonsense"])
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err


def test_several_lots_share_an_output_folder(case: LotCase) -> None:
    other = case.lot.with_name("lot8.001")
    other.write_text(case.lot.read_text().replace("L7", "L8"))
    assert case.run(lots=[case.lot, other]) == 0
    assert read_klarf(case.out / "lot8.001").lot == "L8"
    assert len(names_in(case.out)) == 10


def test_without_parquet_pyarrow_is_not_needed(case: LotCase, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert case.run() == 2
    assert 'pip install "sem-clip[parquet]"' in capsys.readouterr().err
    assert not case.out.exists()
    assert case.run("--no-parquet") == 0
    assert f"{NAME}.parquet" not in names_in(case.out)


def test_a_defect_that_was_not_read_takes_its_code_if_there_is_one(case: LotCase) -> None:
    (case.folder / "codes.toml").write_text(CODES.replace("[names]", '"not read" = 97\n[names]'))
    (case.lot.parent / "stack2.tif").unlink()
    assert case.run() == 1
    assert {line["code"] for line in case.lines() if line["wafer"] == "W2"} == {97}
    assert {d.class_number for d in read_klarf(case.out / NAME).defects if d.wafer == "W2"} == {97}


LOT_18 = """Record FileRecord "1.8"
{
  Record LotRecord "L18"
  {
    Record WaferRecord "W1"
    {
      Field SlotNumber 1 {3}
      List DefectList
      {
        Columns 6 { int32 DEFECTID, int32 TEST, int32 CLASSNUMBER, int32 AUTOOFFSEMCLASS, int32 MANSEMCLASS,
          ImageList IMAGEINFO }
        Data 3
        {
          7 1 0 NA 12 Images 2 { "D:\\lots\\l18\\7.png" "PNG" 1 "Patch", "D:\\lots\\l18\\7-sem.png" "PNG" 1 "SEM" };
          8 1 0 0 NA N;
          9 1 0 0 0 Images 1 { "D:\\lots\\l18\\9-sem.png" "PNG" 1 "SEM" };
        }
      }
    }
    List ClassLookupList
    {
      Columns 3 { int32 CLASSNUMBER, string CLASSNAME, string CLASSCODE }
      Data 1
      {
        0 "Unclassified" "";
      }
    }
  }
}
EndOfFile;
"""


def test_klarf_1_8_with_one_file_an_image_and_paths_of_the_tool(case: LotCase) -> None:
    for name, number, defect in (("7.png", 0, False), ("7-sem.png", 1, True), ("9-sem.png", 2, True)):
        write_frame(case.lot.parent / name, number, defect=defect)
    case.lot.write_text(LOT_18)
    assert case.run("--column", "AUTOOFFSEMCLASS", "--column", "CLASSNUMBER") == 0
    first, second, third = case.lines()
    assert (first["verdict"], first["code"], first["manual"]) == ("bridge", 12, 12)
    assert [image["type"] for image in first["images"]] == ["Patch", "SEM"]
    assert (second["verdict"], third["verdict"], third["slot"]) == ("no image", "hole", "3")
    text = (case.out / NAME).read_text()
    assert "7 1 12 12 12 Images 2" in text
    assert "8 1 0 0 NA N;" in text
    assert "9 1 13 13 0 Images 1" in text
    assert '12 "bridge" "";' in text
    assert case.run("--image-types", "Patch", out=case.folder / "patches") == 0


def test_regions_have_sizes_where_the_pixel_is_known(case: LotCase) -> None:
    assert case.run("--pixel-size", "2x4") == 0
    for line in case.lines():
        assert (line["pixel_width_nm"], line["pixel_height_nm"]) == (2, 4)
        assert (line["area_nm2"] is None) == (line["verdict"] == "good")
        if line["area_nm2"]:
            assert line["width_nm"] % 2 == 0
            assert line["height_nm"] % 4 == 0
            assert 0 < line["area_nm2"] <= line["width_nm"] * line["height_nm"]
    assert case.run() == 2  # other options are other settings
