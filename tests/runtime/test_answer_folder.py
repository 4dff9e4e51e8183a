"""The folder of answers: whole files, settings that must agree, and what a second run finds missing."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commandline import files_in
from predictions import make_prediction

from runtime import FailedFrame, FrameError, PredictorError, RowError
from runtime.parquet import read_rows
from runtime.rows import failed_row

pa = pytest.importorskip("pyarrow")
answer_folder = pytest.importorskip("runtime.serving.answer_folder")
table_of = pytest.importorskip("runtime.parquet").table_of
BY = {"encoder_id": "ab" * 32, "precision": None, "smoothing_px": 4.0}


def row(name: str) -> dict[str, Any]:
    return {**make_prediction(encoder_id="ab" * 32, recipe_sha256="cd" * 32).to_row(), "source": name}


def bad(name: str) -> dict[str, Any]:
    return failed_row(name, "is empty (0 bytes)")


def add(folder: Path, *rows: dict[str, Any]) -> None:
    with answer_folder.answer_folder(folder, BY) as answers:
        answers.add(table_of(rows))


def sources(folder: Path) -> list[str]:
    return [one["source"] for path in sorted(folder.glob("*.parquet")) for one in read_rows(path)]


def missing(folder: Path, *names: str) -> list[str]:
    with answer_folder.answer_folder(folder, BY) as answers:
        found: list[str] = answers.missing(pa.table({"source": names}))[0].column("source").to_pylist()
        return found


def test_rows_are_kept_in_numbered_files_as_they_were(tmp_path: Path) -> None:
    add(tmp_path / "new" / "out", row("a"), bad("b"))
    add(tmp_path / "new" / "out", row("c"))
    assert files_in(tmp_path / "new" / "out") == ["_sem_clip.json", "part-000001.parquet", "part-000002.parquet"]
    assert list(read_rows(tmp_path / "new" / "out" / "part-000001.parquet")) == [row("a"), bad("b")]


def test_a_folder_is_read_as_one_dataset(tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    add(tmp_path, row("a"))
    add(tmp_path, row("b"))
    assert sorted(dataset.dataset(tmp_path).to_table(columns=["source"]).column("source").to_pylist()) == ["a", "b"]


def test_a_reader_of_files_says_how_a_folder_is_read(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"is a folder; read its files one by one: .*/part-"):
        next(read_rows(tmp_path))


def test_many_rows_make_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_folder, "FILE_ROWS", 2)
    with answer_folder.answer_folder(tmp_path, BY) as answers:
        for name in "abcde":
            answers.add(table_of([row(name)]))
        assert sources(tmp_path) == list("abcd")
    assert sources(tmp_path) == list("abcde")


def test_rows_wait_no_longer_than_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_folder, "FILE_S", 0.05)
    with answer_folder.answer_folder(tmp_path, BY) as answers:
        answers.add(table_of([row("a")]))
        until = time.monotonic() + 60
        while not sources(tmp_path) and time.monotonic() < until:
            time.sleep(0.02)
        assert sources(tmp_path) == ["a"]
    assert sources(tmp_path) == ["a"]


def test_an_error_in_the_run_loses_no_answer(tmp_path: Path) -> None:
    def run() -> None:
        with answer_folder.answer_folder(tmp_path, BY) as answers:
            answers.add(table_of([row("a")]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert sources(tmp_path) == ["a"]


def test_what_has_an_answer_is_not_missing(tmp_path: Path) -> None:
    assert missing(tmp_path, "a", "b") == ["a", "b"]
    add(tmp_path, row("a"), bad("c"))
    add(tmp_path, row("x"))
    assert missing(tmp_path, "a", "b", "c", "é") == ["b", "c", "é"]


def again(folder: Path, *names: str, then: list[dict[str, Any]], outdated: tuple[str, ...] = ()) -> tuple[int, int]:
    """A second run: how many frames it tries again, and how many got no row."""
    frames = pa.table({"source": names})
    with answer_folder.answer_folder(folder, BY) as answers:
        _, tried = answers.missing(frames)
        answers.add(table_of(then))
        answers.flush()
        answers.outdate(outdated)
        return tried, answers.without_row(frames)


def test_errors_go_once_their_frames_have_newer_rows(tmp_path: Path) -> None:
    add(tmp_path, row("a"), bad("b"), row("c"))
    add(tmp_path, bad("d"))
    add(tmp_path, bad("e"))
    assert again(tmp_path, "a", "b", "d", then=[row("b"), bad("d")]) == (2, 1)
    assert files_in(tmp_path) == ["_sem_clip.json", "part-000001.parquet", "part-000003.parquet", "part-000004.parquet"]
    assert [list(read_rows(path)) for path in sorted(tmp_path.glob("*.parquet"))] == [
        [row("a"), row("c")],
        [bad("e")],
        [row("b"), bad("d")],
    ]


def test_errors_stay_where_a_run_has_other_frames_or_fails(tmp_path: Path) -> None:
    add(tmp_path, row("a"), bad("b"), bad("c"))
    assert again(tmp_path, "x", then=[row("x")]) == (0, 0)
    with suppress(ZeroDivisionError), answer_folder.answer_folder(tmp_path, BY) as answers:
        answers.missing(pa.table({"source": ["b", "c"]}))
        answers.add(table_of([row("c")]))
        print(1 / 0)
    assert sources(tmp_path) == ["a", "b", "x", "c"]


def test_errors_of_a_run_that_was_killed_go_with_the_next(tmp_path: Path) -> None:
    add(tmp_path, bad("a"))
    add(tmp_path, row("a"))  # as if killed before the error went
    assert missing(tmp_path, "a") == []
    assert list(read_rows(tmp_path / "part-000002.parquet")) == [row("a")]
    assert files_in(tmp_path) == ["_sem_clip.json", "part-000002.parquet"]


def test_errors_of_places_that_are_read_by_now_go(tmp_path: Path) -> None:
    add(tmp_path, bad("/lot"), bad("/other"))
    again(tmp_path, "/lot/a", then=[row("/lot/a")], outdated=("/lot",))
    assert sources(tmp_path) == ["/other", "/lot/a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, r"other settings \(precision was None and is int8\): choose another folder"),
        ({"encoder_id": "ef" * 32}, r"\(encoder_id was a[ab]+ and is e[ef]+\)"),
        ({"further": 1}, r"\(further was None and is 1\)"),
    ],
)
def test_answers_of_other_settings_are_not_mixed(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    add(tmp_path, row("a"))
    with pytest.raises(PredictorError, match=message), answer_folder.answer_folder(tmp_path, BY | change):
        pass
    assert sources(tmp_path) == ["a"]


def test_a_folder_with_other_contents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "frames.parquet").write_bytes(b"")
    with (
        pytest.raises(PredictorError, match=r"holds other files \(frames.parquet\): choose an empty folder"),
        answer_folder.answer_folder(tmp_path, BY),
    ):
        pass
    assert files_in(tmp_path) == ["frames.parquet"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not readable JSON"),
        (b"[]", "was not written by this command"),
        (b'{"format": "sem-clip-answers", "version": 2}', "has version 2: choose another folder, or update sem-clip"),
        (b'{"format": "sem-clip-answers", "version": 1}', "holds answers by other settings"),
        (b" " * 70000, "is 70,000 bytes, more than"),
    ],
)
def test_a_strange_record_of_settings_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "_sem_clip.json").write_bytes(content)
    with pytest.raises(PredictorError, match=message), answer_folder.answer_folder(tmp_path, BY):
        pass


def test_what_a_killed_writer_left_is_ignored_and_removed(tmp_path: Path) -> None:
    (tmp_path / ".sem-clip-0123456789abcdef.part").write_bytes(b"PAR1 half a file")
    add(tmp_path, row("a"))
    assert files_in(tmp_path) == ["_sem_clip.json", "part-000001.parquet"]


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    add(tmp_path, row("a"))
    (tmp_path / "part-000001.parquet").write_bytes(b"PAR1 half a file")
    with (
        answer_folder.answer_folder(tmp_path, BY) as answers,
        pytest.raises(PredictorError, match=r"part-000001.parquet: is damaged \(.*\): remove it and run again"),
    ):
        answers.missing(pa.table({"source": ["a"]}))


def test_a_file_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    add(tmp_path, row("a"))
    other = table_of([row("a")]).replace_schema_metadata({"sem_clip.schema": "2"})
    pa.parquet.write_table(other, tmp_path / "part-000001.parquet")
    with pytest.raises(PredictorError, match="has schema version 2, this reader takes 1"):
        missing(tmp_path, "a")


def test_two_runs_do_not_write_at_once(tmp_path: Path) -> None:
    def enter() -> None:
        with answer_folder.answer_folder(tmp_path, BY):
            pass

    with (
        answer_folder.answer_folder(tmp_path, BY),
        ThreadPoolExecutor(1) as other,
        pytest.raises(PredictorError, match="is being changed by"),
    ):
        other.submit(enter).result(60)
    assert json.loads((tmp_path / "_sem_clip.json").read_text())["settings"] == BY


def test_failed_frames_have_rows_too(tmp_path: Path) -> None:
    add(tmp_path, FailedFrame("a", FrameError("a", "is empty (0 bytes)")).to_row())
    assert list(read_rows(tmp_path / "part-000001.parquet")) == [bad("a")]
