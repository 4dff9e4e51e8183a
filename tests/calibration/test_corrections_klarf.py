"""Corrections as manual classes of a lot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from calibration_frames import command
from lots import changed_lines, write_lot

from calibration.corrections import CorrectionLog
from calibration.corrections_command import Corrections
from runtime.fab.klarf import read_klarf
from runtime.fab.lot_plan import manual_class

CODES = """
[codes]
good = 11
bridge = 12
hole = 13
none = 0
unknown = 98
"cannot decide" = 99
"""
Capture = pytest.CaptureFixture[str]


class Case:
    """A lot, codes, and corrections of it."""

    def __init__(self, folder: Path) -> None:
        self.lot, self.codes, self.log = write_lot(folder, 12), folder / "codes.toml", folder / "c.jsonl"
        self.out = folder / "out.klarf"
        self.codes.write_text(CODES, encoding="utf-8")

    def correct(self, new: str, wafer: str | None = "W1", defect: str | None = "1", lot: str | None = "L7") -> None:
        with CorrectionLog(self.log) as log:
            site = SimpleNamespace(lot=lot, wafer=wafer, defect_id=defect)
            log.add(f"/lot/{wafer}-{defect}-{new}.png", "good", new, site=site)

    def run(self, *more: object) -> int:
        return command(Corrections, self.log, "--klarf", self.lot, "--codes", self.codes, "--out", self.out, *more)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def unclassified(case: Case) -> list[tuple[str, str]]:
    """Wafer and DEFECTID of defects without a manual class."""
    defects = read_klarf(case.lot).defects
    return [(defect.wafer, str(defect.id)) for defect in defects if manual_class(defect) is None]


def test_corrections_become_manual_classes_and_nothing_else_changes(case: Case, capsys: Capture) -> None:
    (wafer, one), (other, two), *_ = unclassified(case)
    case.correct("hole", wafer, one)
    case.correct("good", other, two)
    case.correct("bridge", "W1", "1", lot="another lot")
    assert case.run() == 0
    assert "2 defects in MANSEMCLASS" in capsys.readouterr().out
    found = {(d.wafer, str(d.id)): manual_class(d) for d in read_klarf(case.out).defects}
    before = {(d.wafer, str(d.id)): manual_class(d) for d in read_klarf(case.lot).defects}
    assert found == before | {(wafer, one): 13, (other, two): 11}
    assert dict(read_klarf(case.out).wafers[0].class_names) == {0: "Unclassified", 11: "good", 13: "hole"}
    assert case.run() == 2  # the file is there
    assert case.run("--force", "--no-lookup") == 0
    assert len(changed_lines(case.lot, case.out)) == 2


def test_an_option_of_a_data_folder_is_not_passed_over(case: Case, capsys: Capture) -> None:
    assert case.run("--white-level", 4095) == 2
    assert "--white-level is for a data folder alone" in capsys.readouterr().err


def test_another_persons_class_is_replaced_only_if_that_is_asked_for(case: Case, capsys: Capture) -> None:
    defect = next(d for d in read_klarf(case.lot).defects if manual_class(d) == 12)
    case.correct("hole", defect.wafer, str(defect.id))
    assert case.run() == 2
    assert "has class 12 in MANSEMCLASS, and the correction is 13: --replace-classes" in capsys.readouterr().err
    assert not case.out.exists()
    assert case.run("--replace-classes") == 0
    found = {(d.wafer, d.id): manual_class(d) for d in read_klarf(case.out).defects}
    assert found[defect.wafer, defect.id] == 13


def test_the_class_number_may_take_the_code_instead(case: Case) -> None:
    case.correct("hole", *unclassified(case)[0])
    assert case.run("--column", "CLASSNUMBER") == 0
    assert [d.class_number for d in read_klarf(case.out).defects].count(13) == 1


def test_all_faults_are_named_and_nothing_is_written(case: Case, capsys: Capture) -> None:
    case.correct("scratch", "W1", "1")
    case.correct("hole", "W9", "1")
    case.correct("hole", "W1", None)
    case.correct("none", *unclassified(case)[0])
    assert case.run() == 2
    stderr = capsys.readouterr().err
    for part in (
        '"scratch" has no code',
        "defect 1 of wafer W9 is not in the file",
        "does not say which defect it is",
        'the code of "none" is 0',
    ):
        assert part in stderr
    assert not case.out.exists()


def test_two_corrections_of_one_defect_must_agree(case: Case, capsys: Capture) -> None:
    wafer, defect = unclassified(case)[0]
    case.correct("hole", wafer, defect)
    case.correct("bridge", wafer, defect)
    assert case.run() == 2
    assert "is hole by" in capsys.readouterr().err


def test_a_lot_without_corrections_is_refused(case: Case, capsys: Capture) -> None:
    case.correct("hole", lot=None)
    assert case.run() == 2
    assert "no correction is of lot L7" in capsys.readouterr().err


def test_the_corrections_are_never_replaced(case: Case, capsys: Capture) -> None:
    case.correct("hole")
    before = case.log.read_bytes()
    case.out = case.log
    assert case.run("--force") == 2
    assert "is read or written by this command already" in capsys.readouterr().err
    assert case.log.read_bytes() == before
