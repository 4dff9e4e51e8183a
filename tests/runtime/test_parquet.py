"""Parquet files of answers: one schema, equal to the bit, whole or absent, and refused where they are another's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from commandline import names_in, posix
from parquets import answers, rewritten, write
from places import ROOT
from predictions import make_prediction

from runtime import BackendUnavailable, FailedFrame, FrameError, Prediction, PredictorError
from runtime.parquet import (
    _TOGETHER,
    ROW_GROUP,
    _Rows,
    arrow_schema,
    check_schema,
    parquet_rows,
    read_results,
    read_rows,
    table_of,
)
from runtime.rows import COLUMNS, NAMES

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Capture = pytest.CaptureFixture[str]
FAILED = FailedFrame("b.png", FrameError("b.png", "is empty (0 bytes)"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.parquet", [answer.to_row() for answer in answers(3)])


# The schema


def test_the_schema_has_a_version_and_the_columns_of_rows() -> None:
    schema = arrow_schema()
    assert schema.names == list(NAMES)
    assert schema.metadata == {b"sem_clip.schema": b"1"}
    assert all(field.nullable for field in schema)
    types = {column.name: str(schema.field(column.name).type) for column in COLUMNS}
    assert types["patch_map"] == "binary"
    assert types["frame_height"] == "int32"
    assert {types[name] for name in ("score", "confidence", "novelty")} == {"double"}
    assert types["probabilities"].startswith("map<string, double")


@pytest.mark.parametrize(
    "rows", [[], [FAILED.to_row()], [make_prediction().to_row()]], ids=["none", "failed", "answer"]
)
def test_a_table_has_the_schema_whatever_its_rows(rows: list[dict[str, Any]]) -> None:
    table = table_of(rows)
    assert table.schema.equals(arrow_schema(), check_metadata=True)
    assert table.num_rows == len(rows)
    check_schema(table.schema, "table")


# Round trips


def test_answers_come_back_to_the_bit(tmp_path: Path) -> None:
    given = [*answers(2, checksum=2**32 - 1, warnings=("tag 6 — ignored",)), FAILED, make_prediction(is_defect=False)]
    path = write(tmp_path / "rows.parquet", [result.to_row(features=True) for result in given])
    rows = list(read_rows(path))
    assert rows == [result.to_row(features=True) for result in given]
    for result, again in zip(given, read_results(path), strict=True):
        assert again.to_row(features=True) == result.to_row(features=True)
        assert again.to_dict() == result.to_dict()
        if isinstance(result, Prediction):
            assert isinstance(again, Prediction)
            assert again.defect_map().tobytes() == result.defect_map().tobytes()
            assert again.features.tobytes() == result.features.tobytes()


def test_a_row_that_pyarrow_reads_is_one(file: Path) -> None:
    given = answers(3)
    for row, answer in zip(pq.read_table(file).to_pylist(), given, strict=True):
        assert Prediction.from_row(row).to_row() == answer.to_row()


def test_a_row_that_pandas_reads_is_one(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    given = [answers(1)[0], FAILED]
    path = write(tmp_path / "rows.parquet", [result.to_row(features=True) for result in given])
    first = pq.read_table(path).to_pandas().iloc[0].to_dict()
    assert type(first["frame_height"]) is not int  # a column with a null is one of floats
    assert Prediction.from_row(first).to_row(features=True) == given[0].to_row(features=True)


def test_rows_are_written_and_read_in_row_groups(tmp_path: Path) -> None:
    row, failed = make_prediction().to_row(), FAILED.to_row()
    path = write(tmp_path / "rows.parquet", [failed if number % 3 else row for number in range(2 * ROW_GROUP + 7)])
    index = pq.ParquetFile(path).metadata
    assert [index.row_group(number).num_rows for number in range(index.num_row_groups)] == [ROW_GROUP, ROW_GROUP, 7]
    rows = read_rows(path)
    assert next(rows) == row
    assert next(rows) == failed
    assert len(list(rows)) == 2 * ROW_GROUP + 5


def test_few_columns_may_be_read(file: Path) -> None:
    assert list(read_rows(file, ["source"])) == [{"source": f"lot/{number}.png"} for number in range(3)]
    with pytest.raises(ValueError, match="there is no column sauce; choose from source, verdict"):
        next(read_rows(file, ["sauce"]))


def test_an_empty_file_of_rows_is_one(tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path / "rows.parquet", []))) == []


def test_further_columns_are_left_alone(file: Path) -> None:
    rewritten(file, lambda table: table.append_column("lot", pa.array(["7"] * 3)).select(["lot", *reversed(NAMES)]))
    assert [answer.to_row() for answer in read_results(file)] == [answer.to_row() for answer in answers(3)]


# Whole, partial or absent


def fail_after(path: Path, count: int, error: BaseException) -> None:
    with parquet_rows(path) as add:
        for answer in answers(count):
            add(answer.to_row())
        raise error


@pytest.mark.parametrize("error", [PredictorError("the engine failed"), KeyboardInterrupt()])
@pytest.mark.parametrize("count", [1, 50, 120])
def test_a_run_that_ends_early_keeps_its_rows_readable(
    count: int, error: BaseException, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text("old")
    with pytest.raises(type(error)):
        fail_after(path, count, error)
    assert path.read_text() == "old"
    kept = tmp_path / "rows.parquet.partial"
    assert names_in(tmp_path) == ["rows.parquet", kept.name]
    assert [row["source"] for row in read_rows(kept)] == [f"lot/{number}.png" for number in range(count)]
    assert capsys.readouterr().err == f"the rows of {count} frames that were done are kept in {kept}\n"


def test_ctrl_c_in_the_middle_of_a_row_group_keeps_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The interrupt comes to the thread that judges, which waits for the other one to write."""
    path = tmp_path / "rows.parquet"
    put, writing, interrupted = _Rows._put, threading.Event(), threading.Event()
    result, waits = Future.result, count(1)

    def slow(rows: _Rows) -> None:
        writing.set()
        assert interrupted.wait(10)
        put(rows)

    def interrupt(future: Future[None], timeout: float | None = None) -> None:
        if next(waits) == ROW_GROUP // _TOGETHER:
            assert writing.wait(10)
            threading.Timer(0.1, interrupted.set).start()
            raise KeyboardInterrupt
        result(future, timeout)

    monkeypatch.setattr(_Rows, "_put", slow)
    monkeypatch.setattr(Future, "result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(path, [FAILED.to_row()] * (ROW_GROUP + 1))
    assert len(list(read_rows(tmp_path / "rows.parquet.partial"))) == ROW_GROUP
    assert f"the rows of {ROW_GROUP} frames" in capsys.readouterr().err


def test_a_run_without_an_answer_leaves_nothing(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(PredictorError):
        fail_after(tmp_path / "rows.parquet", 0, PredictorError("no engine"))
    assert names_in(tmp_path) == []
    assert capsys.readouterr().err == ""


def test_a_full_disk_leaves_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    path = tmp_path / "rows.parquet"

    def full(handle: int, content: Any) -> int:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        with parquet_rows(path) as add:
            monkeypatch.setattr("runtime.files.os.write", full)
            for answer in answers(3):
                add(answer.to_row())

    with pytest.raises(OSError, match="No space left"):
        fill()
    monkeypatch.undo()
    assert names_in(tmp_path) == []
    assert capsys.readouterr().err == f"of {path} nothing is kept: its end could not be written\n"


def test_no_thread_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    write(tmp_path / "rows.parquet", [FAILED.to_row()])
    assert threading.active_count() == before


@posix
def test_rows_go_to_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write(path, [FAILED.to_row()])
    reader.join(20)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(read[0])
    assert list(read_rows(copy)) == [FAILED.to_row()]


@posix
def test_a_reader_that_leaves_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: path.open("rb").close())
    reader.start()
    with pytest.raises(PredictorError, match=r"pipe: its reader left after \d+ rows"):
        write(path, [answer.to_row(features=True) for answer in answers(ROW_GROUP)] * 3)
    reader.join(20)


# pyarrow


@pytest.fixture
def without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)


@pytest.mark.usefixtures("without_pyarrow")
def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    for call in (
        arrow_schema,
        lambda: table_of([]),
        lambda: next(read_rows("a")),
        lambda: write(tmp_path / "a.parquet", []),
    ):
        with pytest.raises(BackendUnavailable, match=r'pip install "sem-clip\[parquet\]"'):
            call()
    assert names_in(tmp_path) == []


def test_importing_the_runtime_does_not_load_pyarrow() -> None:
    code = "import sys, runtime.parquet, runtime.commands; print('pyarrow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"
