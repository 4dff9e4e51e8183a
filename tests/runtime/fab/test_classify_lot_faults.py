"""Bad input of `sem-clip classify-lot`: each fault is typed, the rest is answered, and the exit status says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import names_in
from lots import CODES, LotCase, Spot, contents, frame, klarf_text, make_case, write_stack

from runtime.fab.klarf import read_klarf
from runtime.fab.lot_journal import Journal
from runtime.locking import locked

pytest.importorskip("pyarrow")
Capture = pytest.CaptureFixture[str]
NAME = "lot7.klarf"


@pytest.fixture
def case(tmp_path: Path) -> LotCase:
    """30 defects."""
    return make_case(tmp_path)


def classes(path: Path) -> dict[tuple[str, int], int | None]:
    return {(defect.wafer, defect.id): defect.class_number for defect in read_klarf(path).defects}


def on_answer(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do something right after a lot's answer of this number, from 1, has been kept."""
    add, count = Journal.add, [0]

    def adding(self: Journal, record: dict[str, Any]) -> None:
        add(self, record)
        count[0] += 1
        if count[0] == number:
            act()

    monkeypatch.setattr(Journal, "add", adding)


def test_missing_images_are_named_and_the_rest_of_the_lot_is_answered(case: LotCase, capsys: Capture) -> None:
    (case.lot.parent / "stack2.tif").unlink()
    assert case.run() == 1
    lines = case.lines()
    assert {line["verdict"] for line in lines if line["wafer"] != "W2"} == {"good", "bridge", "hole"}
    assert {line["verdict"] for line in lines if line["wafer"] == "W2"} == {"not read"}
    assert {code for (wafer, _), code in classes(case.out / NAME).items() if wafer == "W2"} == {0}
    assert "not read: W2, defect 2: stack2.tif#1: is not in" in capsys.readouterr().err


def test_a_lot_without_any_image_points_at_the_folder_once(case: LotCase, capsys: Capture) -> None:
    elsewhere = case.folder / "elsewhere"
    elsewhere.mkdir()
    assert case.run("--images", elsewhere) == 1
    said = f"warning: no image of the lot is in {elsewhere}: --images is likely the wrong folder"
    assert capsys.readouterr().err.count(said) == 1
    (case.lot.parent / "stack2.tif").unlink()
    assert case.run(out=case.folder / "one missing") == 1
    assert "likely the wrong folder" not in capsys.readouterr().err


def test_a_page_out_of_range_is_named(case: LotCase) -> None:
    case.lot.write_text(case.lot.read_text().replace(" 1 1 2 1\n", " 1 1 999 1\n", 1))
    assert case.run() == 1
    (unread,) = [line for line in case.lines() if line["verdict"] == "not read"]
    assert "there is no page 999; the file holds pages 1 to" in unread["reason"]


def test_an_image_outside_of_the_folder_is_not_opened(case: LotCase) -> None:
    write_stack(case.folder / "secret.tif", [frame(1, defect=True)])
    case.lot.write_text(klarf_text([("W", "../secret.tif", [Spot(1, [(1, 1)])])]))
    assert case.run() == 1
    (line,) = case.lines()
    assert line["verdict"] == "not read"
    assert "not opened" in line["reason"]


def test_a_class_without_a_code_stops_before_anything_is_judged(case: LotCase, capsys: Capture) -> None:
    (case.folder / "codes.toml").write_text(CODES.replace("hole = 13\n", ""))
    assert case.run() == 2
    assert '"hole" has no code in [codes]' in capsys.readouterr().err
    assert not case.out.exists()


def test_two_lots_of_one_name(case: LotCase, capsys: Capture) -> None:
    other = case.folder / "other" / NAME.upper()
    other.parent.mkdir()
    other.write_text(case.lot.read_text().replace("L7", "L8"))
    assert case.run(lots=[case.lot, other]) == 2
    assert "have one name" in capsys.readouterr().err
    assert not case.out.exists()
    other = other.rename(other.with_name(NAME))
    assert case.run() == 0
    before = contents(case.out)
    assert case.run(lots=[other]) == 2
    assert "is of another lot of that name" in capsys.readouterr().err
    assert contents(case.out) == before


def test_a_lot_that_cannot_be_read_leaves_the_others_answered(case: LotCase, capsys: Capture) -> None:
    wrong, cut = case.lot.with_name("wrong.klarf"), case.lot.with_name("cut.klarf")
    wrong.write_bytes(case.lot.read_bytes().replace(b"device", b"d\x85vice"))
    cut.write_bytes(case.lot.read_bytes()[:-12])
    assert case.run(lots=[wrong, cut, case.folder / "absent.klarf", case.lot]) == 2
    err = capsys.readouterr().err
    assert f"error: {wrong}, line" in err
    assert f"error: {cut}, line" in err
    assert "absent.klarf: does not exist" in err
    assert f"{case.lot}: 30 defects" in err
    assert len(names_in(case.out)) == 5


def test_a_place_beyond_all_numbers_leaves_the_other_lots_answered(case: LotCase, capsys: Capture) -> None:
    huge = case.lot.with_name("huge.klarf")
    huge.write_text(klarf_text([("W", "stack1.tif", [Spot(1, [(1, 1)], x_um=1e308)])]))
    assert case.run(lots=[huge, case.lot]) == 2
    err = capsys.readouterr().err
    assert f"error: {huge}, line" in err
    assert "XREL is '1e+308', which is too large" in err
    assert f"{case.lot}: 30 defects" in err


def test_a_lot_that_changes_while_it_is_judged_is_not_written(
    case: LotCase, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    other = case.lot.with_name("lot8.klarf")
    other.write_text(case.lot.read_text().replace("L7", "L8"))
    on_answer(monkeypatch, 11, lambda: case.lot.write_text(case.lot.read_text().replace("L7", "L9")))
    assert case.run(lots=[case.lot, other]) == 2
    assert f"error: {case.lot}: changed while the lot was judged" in capsys.readouterr().err
    assert [name for name in names_in(case.out) if not name.startswith("lot8")] == [f"{NAME}.journal"]
    assert len(names_in(case.out)) == 6
    monkeypatch.undo()
    assert case.run() == 0  # the lot as it is now, from its beginning
    assert {line["lot"] for line in case.lines()} == {"L9"}


def test_images_that_change_while_the_lot_is_judged_count_as_not_read(
    case: LotCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = case.lot.parent / "stack1.tif"
    on_answer(monkeypatch, 30, lambda: stack.write_bytes(stack.read_bytes() + b"more"))
    assert case.run() == 1
    lines = case.lines()
    assert {line["verdict"] for line in lines if line["wafer"] == "W1"} == {"not read"}
    assert "not read" not in {line["verdict"] for line in lines if line["wafer"] != "W1"}
    touched = lines[0]
    assert "changed while the lot was judged" in touched["reason"]
    assert (touched["score"], touched["probabilities"], touched["code"]) == (None, None, None)
    assert all("error" in image for image in touched["images"])
    assert {code for (wafer, _), code in classes(case.out / NAME).items() if wafer == "W1"} == {0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--column", "MANSEMCLASS"], "never written"),
        (["--column", "FINEBINNUMBER"], "there is no column FINEBINNUMBER"),
        (["--image-types", "1,9"], "no image is of type 9; its images have 1, 2"),
        (["--encoding", "koi8-r"], "choose one of utf-8, latin-1, cp1252"),
    ],
)
def test_what_the_lot_cannot_take_is_said_before_anything_is_judged(
    case: LotCase, options: list[str], said: str, capsys: Capture
) -> None:
    assert case.run(*options) == 2
    assert said in capsys.readouterr().err
    assert not case.out.exists()


def test_a_code_that_the_lot_calls_otherwise_is_refused(case: LotCase, capsys: Capture) -> None:
    case.lot.write_text(case.lot.read_text().replace("ClassLookup 1\n", 'ClassLookup 2\n 12 "Particle"\n'))
    assert case.run() == 2
    said = "class 12 is 'Particle' in the file, and 'bridge' was asked for: call it 'Particle' in [names]"
    err = capsys.readouterr().err
    assert said in err
    assert "--no-lookup" in err
    codes = case.folder / "codes.toml"
    codes.write_text(CODES + 'bridge = "Particle"\n')
    assert case.run() == 0


def test_a_name_that_the_lot_gives_to_another_code_is_refused_with_the_remedies(case: LotCase, capsys: Capture) -> None:
    case.lot.write_text(case.lot.read_text().replace(' 0 "Unclassified"', ' -1 "Unclassified"'))
    assert case.run() == 2
    err = capsys.readouterr().err
    assert "'Unclassified' is class -1 in the file, and 0 was asked for: give 0 another name in [names]" in err
    assert "use code -1 for it, or leave the lookup as it is (--no-lookup)" in err
    assert case.run("--no-lookup") == 0


def test_two_defects_of_one_name_are_refused(case: LotCase, capsys: Capture) -> None:
    case.lot.write_text(klarf_text([("W", "stack1.tif", [Spot(1, [(1, 1)]), Spot(1, [(2, 1)])])]))
    assert case.run() == 2
    assert "wafer W, DEFECTID 1, TEST 1 is there twice" in capsys.readouterr().err


def test_the_original_is_never_replaced(case: LotCase, capsys: Capture) -> None:
    before = case.lot.read_bytes()
    assert case.run("--force", out=case.lot.parent) == 2
    assert "would be replaced by its results" in capsys.readouterr().err
    assert case.lot.read_bytes() == before


def test_a_lot_that_another_process_judges_is_left_to_it(
    case: LotCase, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.locking.WAIT_S", 0.2)
    case.out.mkdir()
    with locked(case.out / f".{NAME}.lock", case.lot):
        words = case.words()
        assert run_apart(words) == 2
    assert case.run() == 0


def run_apart(words: list[str]) -> int:
    """In a thread, which a lock takes for another holder."""
    import threading

    from runtime.cli import main

    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(main(words)))
    thread.start()
    thread.join()
    return status[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name lots, or a folder with --watch; not both"),
        (["--images", "absent"], "absent is not a folder"),
    ],
)
def test_arguments_that_cannot_work(case: LotCase, words: list[str], said: str, capsys: Capture) -> None:
    assert case.run(*words, lots=[case.lot] if words else []) == 2
    assert said in capsys.readouterr().err
