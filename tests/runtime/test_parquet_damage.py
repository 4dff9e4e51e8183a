"""Parquet files that hold no rows, other rows, or damage: each is refused by name, and none passes for answers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from parquets import answers, rewritten, write

from runtime import Prediction, RowError
from runtime.parquet import check_schema, read_results, read_rows, table_of
from runtime.rows import NAMES

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.parquet", [answer.to_row() for answer in answers(3)])


def test_a_file_of_another_version_is_refused(file: Path) -> None:
    rewritten(file, lambda table: table.replace_schema_metadata({"sem_clip.schema": "2"}))
    with pytest.raises(
        RowError, match=r"has schema version 2, this reader takes 1: judge the frames again, or read it"
    ):
        next(read_rows(file))


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(
        RowError, match=r"its schema has no sem_clip.schema: it holds no rows of sem-clip; name a file of"
    ):
        next(read_rows(path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns(["score"]), r"score; judge the frames again"),
        (lambda table: table.append_column("score", table["score"]), r"score; judge"),
        (lambda table: table.set_column(0, "source", pa.array([1, 2, 3], pa.int64())), r"source \(int64, not string\)"),
        (
            lambda table: table.set_column(0, pa.field("source", pa.string(), nullable=False), table["source"]),
            r"source \(string not null, not string\)",
        ),
    ],
    ids=["missing", "twice", "another type", "not null"],
)
def test_columns_that_are_not_those_of_the_schema_are_named(change: Any, told: str, file: Path) -> None:
    changed = change(pq.read_table(file))
    with pytest.raises(RowError, match=rf"^a table: columns are missing or of another type: {told}"):
        check_schema(changed.schema, "a table")


def not_parquet(file: Path) -> None:
    file.write_text("source,verdict\n" * 9)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def without_its_start(file: Path) -> None:
    file.write_bytes(file.read_bytes()[200:])


def of_a_huge_index(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1")


def of_a_damaged_index(file: Path) -> None:
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[-8 - length // 2 : -8] = bytes(length // 2)
    file.write_bytes(content)


def with_a_page_of_no_values(file: Path) -> None:
    """pyarrow ends there as if the file had no rows: the count of values has no checksum."""
    content = bytearray(file.read_bytes())
    index = pq.ParquetFile(file).metadata.row_group(0).column(NAMES.index("score"))
    start = index.data_page_offset
    at = content.index(b"\x1c\x15\x06", start)  # the struct of a data page, whose first number is 3, doubled
    content[at + 2] = 0
    file.write_bytes(content)


def gone(file: Path) -> None:
    file.unlink()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (not_parquet, "is no Parquet file, or one whose end is missing"),
        (empty, "is no Parquet file"),
        (cut, "whose end is missing"),
        (without_its_start, "is damaged"),
        (of_a_huge_index, "states an index of 2,147,483,647 bytes: it is damaged"),
        (of_a_damaged_index, "is damaged"),
        (with_a_page_of_no_values, "its rows are not as many as its index says"),
        (gone, "does not exist"),
        (a_folder, "is a folder; read its files one by one"),
    ],
)
def test_a_damaged_file_is_refused(harm: Any, told: str, file: Path) -> None:
    harm(file)
    with pytest.raises(RowError, match=rf"^{file}: .*{told}"):
        list(read_rows(file))


def test_every_damaged_byte_is_found_or_harmless(file: Path) -> None:
    """Pages carry checksums, so no damaged number passes for an answer."""
    content, wanted = file.read_bytes(), [answer.to_row() for answer in answers(3)]
    refused = 0
    for place in range(0, len(content), max(1, len(content) // 150)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            assert list(read_rows(file)) == wanted
        except RowError:
            refused += 1
    assert refused > 100


def test_no_damage_of_the_index_ends_the_process(file: Path) -> None:
    """Its schema comes first. After damage there, pyarrow's own view of a column calls C++'s `terminate`."""
    content = file.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(start, start + 800):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with suppress(RowError):
            list(read_rows(file))


@pytest.mark.parametrize("limit", ["_MAX_GROUP_ROWS", "_MAX_GROUP_BYTES"])
def test_a_row_group_beyond_all_bounds_is_refused_before_it_is_read(
    limit: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"runtime.parquet.{limit}", 2)
    with pytest.raises(
        RowError, match=r"row group 0 has 3 rows and [\d,]+ bytes, more than .*: write smaller row groups"
    ):
        next(read_rows(file))


@pytest.mark.parametrize("column", ["source", "features"])
def test_a_small_file_that_unpacks_to_a_huge_table_is_refused(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text or a list is stored once and repeated by each row."""
    monkeypatch.setattr("runtime.parquet._MAX_GROUP_BYTES", 1 << 22)
    monkeypatch.setattr("runtime.parquet._MAX_BATCH_BYTES", 1 << 21)
    value = {"source": "x" * (1 << 18), "features": [0.5] * (1 << 15)}[column]
    table = table_of([answers(1)[0].to_row() | {column: value}])
    table = pa.concat_tables([table] * 300).combine_chunks()
    path = tmp_path / "bomb.parquet"
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(RowError, match=r"of its rows are [\d,]+ bytes, which no rows are|write smaller row groups"):
        next(read_rows(path))


def test_a_damaged_row_of_a_sound_file_is_told(file: Path) -> None:
    at = NAMES.index("score")
    rewritten(file, lambda table: table.set_column(at, "score", pa.array([0.5, 7.0, 0.5])))
    results = read_results(file)
    assert isinstance(next(results), Prediction)
    with pytest.raises(RowError, match=r"^lot/1.png: is no row of schema version 1: score must be a finite number"):
        next(results)
