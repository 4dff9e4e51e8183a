"""`sem-clip classify-lot --store`: every image of a lot, with its place on the wafer, once, also after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
from lots import LotCase, make_case

from runtime.fab.lot_journal import Journal
from runtime.verdict_store import Query, Site, VerdictStore

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def case(tmp_path: Path) -> LotCase:
    return make_case(tmp_path, 30)


def images(case: LotCase) -> list[tuple[str, str, str]]:
    """Wafer, defect and image of each judged image, by the side file."""
    return sorted(
        (line["wafer"], str(line["defect_id"]), image["image"]) for line in case.lines() for image in line["images"]
    )


def stored(file: Path) -> list[tuple[str, str, str]]:
    with VerdictStore(file) as store:
        return sorted(
            (entry.site.wafer or "", entry.site.defect_id or "", Path(entry.source).name)
            for entry in store.entries(Query())
        )


def test_every_image_is_stored_with_its_place(case: LotCase) -> None:
    file = case.folder / "v.sqlite"
    assert case.run("--no-parquet", "--store", file) == 0
    assert stored(file) == images(case)
    with VerdictStore(file) as store:
        assert store.lots() == ("L7",)
        by_defect = {(line["wafer"], str(line["defect_id"])): line for line in case.lines()}
        for entry in store.entries(Query()):
            line = by_defect[entry.site.wafer or "", entry.site.defect_id or ""]
            assert entry.site == Site("L7", line["wafer"], str(line["defect_id"]), line["x_nm"], line["y_nm"], 300.0)
            assert entry.path is not None
            assert Path(entry.path.partition("#")[0]).is_file()
            assert store.result(entry.id) is not None


def test_images_that_are_missing_are_stored_as_failed(case: LotCase) -> None:
    (case.lot.parent / "stack2.tif").unlink()
    assert case.run("--no-parquet", "--store", case.folder / "v.sqlite") == 1
    with VerdictStore(case.folder / "v.sqlite") as store:
        missing = store.entries(Query(verdicts=("not read",)))
        assert {entry.site.wafer for entry in missing} == {"W2"}
        assert len(missing) == sum("error" in image for line in case.lines() for image in line["images"])


def test_a_run_that_was_cut_off_leaves_no_gap(case: LotCase, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    add, calls, file = Journal.add, [0], case.folder / "v.sqlite"

    def stopping(self: Journal, record: dict[str, object]) -> None:
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stopping)
        assert case.run("--no-parquet", "--store", file, "--batch-size", 4) == 130
    assert len(stored(file)) >= 12
    assert case.run("--no-parquet", "--store", file, "--batch-size", 4) == 0
    assert "11 defects were judged by a run that was cut off" in capsys.readouterr().err
    assert stored(file) == images(case)


def test_a_run_that_is_taken_up_with_another_store_begins_anew(
    case: LotCase, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def stopping(self: Journal, record: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stopping)
        assert case.run("--no-parquet", "--store", case.folder / "one.sqlite") == 130
    assert case.run("--no-parquet", "--store", case.folder / "two.sqlite") == 0
    assert "it begins anew" in capsys.readouterr().err
    assert stored(case.folder / "two.sqlite") == images(case)


def test_a_lot_that_was_judged_without_the_store_is_not_taken_for_stored(case: LotCase, capsys: Capture) -> None:
    file = case.folder / "v.sqlite"
    assert case.run("--no-parquet") == 0
    assert case.run("--no-parquet", "--store", file) == 2
    assert "of other settings" in capsys.readouterr().err
    assert case.run("--no-parquet", "--store", file, "--force") == 0
    assert stored(file) == images(case)
    for words in (["--store", file], []):  # judged, and stored
        assert case.run("--no-parquet", *words) == 0
        assert "was judged before" in capsys.readouterr().err
    assert stored(file) == images(case)


def test_a_file_that_is_no_store_is_refused_before_a_lot_is_read(case: LotCase, capsys: Capture) -> None:
    (case.folder / "v.sqlite").write_text("mine")
    assert case.run("--no-parquet", "--store", case.folder / "v.sqlite") == 2
    assert "is no store of verdicts" in capsys.readouterr().err
    assert not case.out.exists()
