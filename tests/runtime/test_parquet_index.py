"""The index of a Parquet file says what pyarrow says of it, and damage is told."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from parquets import answers, write

from runtime.parquet_index import read_index

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = write(tmp_path / "rows.parquet", [answer.to_row(features=True) for answer in answers(7)])
    pq.write_table(pq.read_table(path), path, row_group_size=3)
    return path


def test_it_says_what_pyarrow_says(file: Path) -> None:
    wanted = pq.ParquetFile(file).metadata
    with file.open("rb") as opened:
        index = read_index(opened)
        assert opened.tell() == 0
    assert (index.rows, [group.rows for group in index.groups]) == (7, [3, 3, 1])
    for number, group in enumerate(index.groups):
        other = wanted.row_group(number)
        assert group.total_bytes == other.total_byte_size
        columns = [other.column(place) for place in range(other.num_columns)]
        assert [
            (column.path, column.values, column.uncompressed_bytes, column.is_text) for column in group.columns
        ] == [
            (one.path_in_schema, one.num_values, one.total_uncompressed_size, one.physical_type == "BYTE_ARRAY")
            for one in columns
        ]


def test_an_index_cut_anywhere_is_refused(file: Path) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    start = len(content) - 8 - length
    for kept in range(0, length, 97):
        end = kept.to_bytes(4, "little") + b"PAR1"
        with pytest.raises(ValueError, match=r"is damaged \("):
            read_index(io.BytesIO(content[: start + kept] + end))


def test_no_damage_ends_in_another_error(file: Path) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    random = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.integers(len(content) - 8 - length, len(content) - 8, 20):
            damaged[place] = random.integers(256)
        try:
            read_index(io.BytesIO(damaged))
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (b"\x1c" * 100, "nests too deeply"),
        (b"\x16" + b"\xff" * 12, "a number of over 64 bits"),
        (b"\x1b\x00", "a value of kind 11"),
        (b"\x19\xf6\xff\xff\xff\xff\x0f", "cannot be read"),
    ],
    ids=["depth", "number", "kind", "count"],
)
def test_hostile_values_are_refused(index: bytes, told: str) -> None:
    content = b"PAR1" + index + len(index).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(ValueError, match=told):
        read_index(io.BytesIO(content))
