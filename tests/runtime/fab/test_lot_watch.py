"""`--watch`: a lot is taken once, when it is whole; a watch that is started again knows what was done."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commandline import posix
from lots import LotCase, make_case

from runtime.errors import BackendError, BundleError, KlarfError
from runtime.fab.lot_plan import Lot
from runtime.fab.lot_watch import LotWatch, wakes

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def case(tmp_path: Path) -> LotCase:
    """30 defects."""
    return make_case(tmp_path)


class Taken(list[Path]):
    """The lots that were classified. error: what classifying raises."""

    error: Exception | None = None

    def classify(self, path: Path) -> None:
        self.append(path)
        if self.error is not None:
            raise self.error


def watch(case: LotCase, taken: Taken) -> LotWatch:
    return LotWatch(case.lot.parent, taken.classify, lambda path: Lot.open(path, case.lot.parent), settle_s=5)


def test_a_lot_is_taken_once_after_it_was_still(case: LotCase) -> None:
    taken = Taken()
    watched = watch(case, taken)
    assert [watched.look(now) for now in (0, 4, 5, 9)] == [True] * 4
    assert taken == []
    assert watched.look(10) is False
    assert taken == [case.lot]
    assert watched.look(100) is False
    assert taken == [case.lot]


def test_a_lot_that_grows_starts_to_wait_again(case: LotCase) -> None:
    taken = Taken()
    watched = watch(case, taken)
    whole = case.lot.read_text()
    case.lot.write_text(whole[:200])
    watched.look(0)
    case.lot.write_text(whole)
    assert watched.look(6)
    assert watched.look(10)
    watched.look(11)
    assert taken == []
    watched.look(16)
    assert taken == [case.lot]


def test_a_lot_without_its_end_waits_and_says_so_once(case: LotCase, capsys: Capture) -> None:
    taken = Taken()
    watched = watch(case, taken)
    whole = case.lot.read_text()
    case.lot.write_text(whole[:-12])
    for now in range(0, 100, 3):
        assert watched.look(now)
    assert capsys.readouterr().err.count("waiting: ") == 1
    case.lot.write_text(whole)
    for now in range(100, 200):
        watched.look(now)
    assert taken == [case.lot]


def test_a_lot_waits_for_its_images_and_for_those_that_still_grow(case: LotCase, capsys: Capture) -> None:
    taken = Taken()
    watched = watch(case, taken)
    stack = case.lot.parent / "stack2.tif"
    content = stack.read_bytes()
    stack.unlink()
    for now in range(0, 50, 5):
        assert watched.look(now)
    err = capsys.readouterr().err
    assert err.count("waiting: ") == 1
    assert "1 of its image files are not there yet, such as stack2.tif" in err
    for size in (1000, 2000):
        stack.write_bytes(content[:size])
        assert watched.look(100 + size / 100)
    stack.write_bytes(content)
    assert watched.look(130)
    assert taken == []
    watched.look(135)
    assert taken == [case.lot]


@pytest.mark.parametrize("name", ["../stack2.tif", "link.tif", "twin.tif", "stack#3"])
def test_a_lot_does_not_wait_for_images_that_can_never_come(case: LotCase, name: str) -> None:
    folder = case.lot.parent
    (case.folder / "outside.tif").touch()
    (folder / "link.tif").symlink_to(case.folder / "outside.tif")
    for other in ("Twin.tif", "TWIN.tif", "stack#3"):
        (folder / other).touch()
    case.lot.write_text(case.lot.read_text().replace("TiffFileName stack2.tif", f"TiffFileName {name}"))
    taken = Taken()
    watched = watch(case, taken)
    for now in (0, 5, 10):
        watched.look(now)
    assert taken == [case.lot]


def test_a_lot_that_stays_incomplete_is_read_more_and_more_rarely(case: LotCase) -> None:
    opened = []

    def open_lot(path: Path) -> Lot:
        opened.append(path)
        return Lot.open(path, case.lot.parent)

    (case.lot.parent / "stack2.tif").unlink()
    watched = LotWatch(case.lot.parent, Taken().classify, open_lot, settle_s=5)
    for now in range(600):
        watched.look(now)
    assert 10 <= len(opened) <= 15


def test_a_lot_that_fails_is_left_until_it_changes(case: LotCase, capsys: Capture) -> None:
    taken = Taken()
    taken.error = KlarfError("lot7.klarf", "cannot take the codes")
    watched = watch(case, taken)
    for now in range(0, 60, 5):
        watched.look(now)
    assert taken == [case.lot]
    assert capsys.readouterr().err.count("error: lot7.klarf: cannot take the codes; it is left until it changes") == 1
    case.lot.write_text(case.lot.read_text().replace("L7", "L77"))
    for now in range(60, 120, 5):
        watched.look(now)
    assert len(taken) == 2


def test_a_lot_that_another_process_judges_is_tried_again(case: LotCase, capsys: Capture) -> None:
    taken = Taken()
    taken.error = BundleError(str(case.lot), "is locked by process 7")
    watched = watch(case, taken)
    for now in range(0, 60, 5):
        assert watched.look(now)
    assert len(taken) > 1
    assert capsys.readouterr().err.count("is locked by process 7") == 1
    taken.error = None
    tries = len(taken)
    for now in range(60, 300, 5):
        watched.look(now)
    assert len(taken) == tries + 1


def test_a_file_that_is_no_lot_is_said_once_and_others_are_not_lots(case: LotCase, capsys: Capture) -> None:
    taken = Taken()
    watched = watch(case, taken)
    case.lot.unlink()
    (case.lot.parent / "a.klarf").write_text("no lot\nEndOfFile;\n")
    (case.lot.parent / ".hidden.klarf").write_text("x")
    (case.lot.parent / "folder.kla").mkdir()
    (case.lot.parent / "notes.txt").write_text("x")
    for now in range(0, 60, 5):
        watched.look(now)
    assert taken == []
    assert capsys.readouterr().err.count("error: ") == 1


def test_a_broken_engine_ends_the_watch(case: LotCase) -> None:
    taken = Taken()
    taken.error = BackendError("failed")
    watched = watch(case, taken)
    watched.look(0)
    watched.look(5)
    with pytest.raises(BackendError):
        watched.look(10)


def test_a_lot_that_goes_and_comes_back_is_considered_again(case: LotCase) -> None:
    taken = Taken()
    watched = watch(case, taken)
    content = case.lot.read_text()
    for now in (0, 5, 10):
        watched.look(now)
    case.lot.unlink()
    assert watched.look(15) is False
    case.lot.write_text(content)
    for now in (20, 25, 30):
        watched.look(now)
    assert taken == [case.lot, case.lot]  # whose results are there: classifying it costs no engine


def test_images_that_come_do_not_wake_the_watch() -> None:
    assert wakes("created", "in/lot7.klarf", "")
    assert wakes("moved", "in/lot7.tmp", "in/LOT7.001")
    assert wakes("modified", b"in/lot7.kla", b"")
    assert not wakes("created", "in/1.tif", "")
    assert not wakes("opened", "in/lot7.klarf", "")
    assert not wakes("modified", "in", "")


def test_watching_needs_watchdog(case: LotCase, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setitem(sys.modules, "watchdog", None)
    monkeypatch.setitem(sys.modules, "watchdog.events", None)
    assert case.run("--watch", case.lot.parent, lots=[]) == 2
    assert 'pip install "sem-clip[watch]"' in capsys.readouterr().err


def test_results_do_not_go_into_the_watched_folder(case: LotCase, capsys: Capture) -> None:
    pytest.importorskip("pyarrow")
    assert case.run("--watch", case.lot.parent, lots=[], out=case.lot.parent) == 2
    assert "results in it would be taken for lots" in capsys.readouterr().err


@posix
@pytest.mark.slow
@pytest.mark.parametrize("poll", [[], ["--poll", "0.2"]], ids=["events", "polling"])
def test_the_program_watches_until_ctrl_c_and_knows_its_results_when_it_is_started_again(
    case: LotCase, poll: list[str]
) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("watchdog")
    text = case.lot.read_text()
    case.lot.unlink()
    words = case.words("--watch", case.lot.parent, "--settle", "0.2", *poll, lots=[])

    def run(summary: Path, then: str) -> str:
        """Start the program, put a lot into the folder, and stop the program when it has been answered."""
        done = subprocess.Popen(
            [sys.executable, "-m", "runtime.cli", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert done.stderr is not None
            said = done.stderr.readline()
            case.lot.with_name("lot7.klarf").write_text(text)
            case.lot.with_name(summary.name.removesuffix(".lot.json")).write_text(text)
            until = time.monotonic() + 60
            while then not in said and time.monotonic() < until:
                said += done.stderr.readline()
            done.send_signal(signal.SIGINT)
            rest = done.communicate(timeout=60)[1]
        finally:
            done.kill()
        assert done.returncode == 130, said + rest
        assert summary.is_file()
        return said + rest

    first = run(case.out / "lot7.klarf.lot.json", "lot7.klarf: 30 defects")
    assert "interrupted" in first
    assert "was judged before" in run(case.out / "lot7.klarf.lot.json", "was judged before")
