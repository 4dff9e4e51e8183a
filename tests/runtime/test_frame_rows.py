"""Rows of tables as frames, and their answers in the order of the table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from commandline import write_frame, write_stack

from runtime import EncodedFrame, FailedFrame, FrameError, Prediction, Predictor, PredictorError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
frame_rows = pytest.importorskip("runtime.serving.frame_rows")


def told(columns: dict[str, Any]) -> list[object]:
    """The entries of a table: paths and frames, and (name, reason) of those that failed."""
    entries = frame_rows.entries(columns if isinstance(columns, pa.Table) else pa.table(columns))
    return [(e.source, e.error.reason) if isinstance(e, FailedFrame) else e for e in entries]


def members(*rows: tuple[str, Path, int | None]) -> Any:
    """A table as `list_archive` makes it."""
    sources, paths, numbers = zip(*rows, strict=True)
    return pa.table(
        {"source": sources, "path": [os.fsencode(path) for path in paths], "row": pa.array(numbers, pa.int64())}
    )


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A Parquet file of 60 frames named 0 to 59, in row groups of 25."""
    path = tmp_path / "packed.parquet"
    table = pa.table(
        {"number": list(range(60)), "name": list(map(str, range(60))), "data": [b"%d" % n for n in range(60)]}
    )
    parquet.write_table(table, path, row_group_size=25)
    return path


def test_bytes_are_frames_with_the_name_beside_them() -> None:
    assert told({"path": ["s3://b/a.png", None], "bytes": [b"x", None]}) == [
        EncodedFrame("s3://b/a.png", b"x"),
        EncodedFrame("row 1", None),  # type: ignore[arg-type]
    ]
    assert told({"name": ["a"], "bytes": [b"x"], "lot": [7]}) == [EncodedFrame("a", b"x")]


@pytest.mark.parametrize("columns", [{"frame": ["a.png"]}, {"bytes": [b"x"]}])
def test_a_dataset_without_frames_is_refused(columns: dict[str, Any]) -> None:
    with pytest.raises(
        PredictorError, match=rf"the dataset has the columns {next(iter(columns))}; frames need a column"
    ):
        told(columns)


def test_paths_must_lead_to_the_same_file_on_each_machine(tmp_path: Path) -> None:
    frame = str(tmp_path / "a.png")
    relative = "is a relative path, which leads elsewhere on a worker: give the absolute path"
    assert told({"path": [frame, "b.png", None, ""]}) == [
        frame,
        ("b.png", relative),
        ("row 2", "has no path"),
        ("row 3", "has no path"),
    ]


def test_uris_are_fetched_in_order(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(3 * frame_rows.READERS)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    uri = tmp_path.as_uri()
    mixed = [f"{uri}/{names[0]}", str(tmp_path / names[1]), *(f"{uri}/{name}" for name in names[2:])]
    assert told({"path": mixed}) == [
        EncodedFrame(mixed[0], b"0.png"),
        mixed[1],
        *(EncodedFrame(f"{uri}/{name}", name.encode()) for name in names[2:]),
    ]


def test_a_page_of_a_stack_has_a_uri(tmp_path: Path, fake_bundle: Path) -> None:
    write_stack(tmp_path / "a.tif", 3)
    uri = f"{tmp_path.as_uri()}/a.tif"
    (page,) = told({"path": [f"{uri}#2"]})
    assert isinstance(page, EncodedFrame)
    assert (page.name, page.page) == (f"{uri}#2", 2)
    with Predictor(fake_bundle, backend="fake") as predictor:
        assert predictor(page).verdict == predictor(f"{tmp_path / 'a.tif'}#2").verdict


def test_what_cannot_be_fetched_is_the_answer_of_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large.png").write_bytes(b"12345")
    monkeypatch.setattr(frame_rows, "MAX_FILE_BYTES", 4)
    uri = tmp_path.as_uri()
    assert told({"path": [f"{uri}/none.png", uri, f"{uri}/large.png"]}) == [
        (f"{uri}/none.png", "no such file"),
        (uri, "is a folder, not a frame"),
        (f"{uri}/large.png", "is 5 bytes, more than the 4 allowed here"),
    ]
    for bad, told_first in (
        ("nowhere://a.png", "is in a store that cannot be read here"),
        ("file:///a%00.png", "cannot be read"),
    ):
        ((name, reason),) = told({"path": [bad]})  # type: ignore[misc]
        assert (name, reason.split(" (")[0]) == (bad, told_first)


def test_rows_of_parquet_files_and_files_come_in_the_order_of_the_table(packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    table = members(("3", packed, 3), ("24", packed, 24), ("55", packed, 55), (str(file), file, None), ("7", packed, 7))
    assert told(table) == [
        *(EncodedFrame(name, name.encode()) for name in ("3", "24", "55")),
        str(file),
        EncodedFrame("7", b"7"),
    ]


def test_all_rows_of_a_parquet_file_are_read(packed: Path) -> None:
    assert told(members(*((str(n), packed, n) for n in range(60)))) == [
        EncodedFrame(str(n), b"%d" % n) for n in range(60)
    ]


def test_a_parquet_file_that_has_changed_gives_no_other_frames(packed: Path, tmp_path: Path) -> None:
    other, gone = ("other", packed, 5), ("9", tmp_path / "gone.parquet", 0)
    first, second, third, fourth = told(members(("2", packed, 2), other, ("60", packed, 60), gone))
    assert first == EncodedFrame("2", b"2")
    assert second == ("other", f"{packed} holds another frame by now in its row 5")
    assert third == ("60", f"{packed} has fewer rows by now")
    assert isinstance(fourth, tuple)
    assert fourth[1].startswith(f"{tmp_path / 'gone.parquet'} cannot be read (")


def test_answers_keep_the_order_of_entries(tmp_path: Path, fake_bundle: Path) -> None:
    def lost(name: str) -> FailedFrame:
        return FailedFrame(name, FrameError(name, "is lost"))

    sound = [str(write_frame(tmp_path / f"{number}.png", number)) for number in range(5)]
    (tmp_path / "bad.png").write_bytes(b"")
    entries = [lost("x"), *sound[:2], lost("y"), lost("z"), str(tmp_path / "bad.png"), *sound[2:], lost("end")]
    with Predictor(fake_bundle, backend="fake", batch_size=2) as predictor:
        results = list(frame_rows.answers(predictor, entries, 1))
        assert [result.source for result in results] == [e.source if isinstance(e, FailedFrame) else e for e in entries]
        assert [isinstance(result, Prediction) for result in results] == [e in sound for e in entries]
        assert [result.source for result in frame_rows.answers(predictor, [lost("a"), lost("b")], 1)] == ["a", "b"]
        assert list(frame_rows.answers(predictor, [], 1)) == []


def test_one_content_of_a_small_parquet_file_is_held_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands there once, however many rows have it."""
    data = pa.DictionaryArray.from_arrays(pa.array([0] * 20, pa.int32()), [b"x" * 2**20])
    frames = pa.table({"path": [f"{number}" for number in range(20)], "bytes": data})
    file = tmp_path / "a.parquet"
    parquet.write_table(frames, file, compression="zstd", store_schema=False, dictionary_pagesize_limit=2**24)
    monkeypatch.setattr("runtime.parquet._MAX_GROUP_BYTES", 3 * 2**20)
    held = [len(contents) for _, _, contents in frame_rows._batches(str(file), 0, 19)]
    assert sum(held) == 20
    assert max(held) <= 3
