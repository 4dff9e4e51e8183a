"""runtime.verdict_file: no store, or a damaged one: an error with a remedy, and nothing in it runs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import posix
from stores import answer, failed, make_run, write_store

from runtime import verdict_store
from runtime.errors import StoreError
from runtime.verdict_file import create, require_store
from runtime.verdict_store import Query, VerdictStore, VerdictWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_store(tmp_path / "verdicts.db", [answer("/a.png"), answer("/b.png"), failed("/c.png")])


def change(path: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement, values)
    database.commit()
    database.close()


def read_all(path: Path) -> None:
    """All that a reader reads."""
    with VerdictStore(path) as store:
        for read in (store.runs, store.lots, store.verdicts, store.change_counter, store.ids_by_path, store.features):
            read()
        for entry in store.entries(Query()):
            store.result(entry.id)
            store.facts(entry.id)
        for run in range(len(store.runs())):
            store.scores(run)


def test_a_sound_store_is_read(path: Path) -> None:
    read_all(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no store of verdicts"),
        (b'{"source": "a.png"}\n', "is no store of verdicts"),
        (b"SQLite format 3\0", "is no store of verdicts"),
        (b"SQLite format 3\0" + b"\0" * 200, "is a database of another program"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "a.sqlite"
    file.write_bytes(content)
    for opened in (VerdictStore, lambda path: VerdictWriter(path, make_run()), require_store):
        with pytest.raises(StoreError, match=said):
            opened(file)
    assert file.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.sqlite"
    change(file, "CREATE TABLE answers (id)")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        VerdictWriter(file, make_run())
    assert file.read_bytes() == before


def test_runs_with_gaps_are_refused_rather_than_read_again_and_again(path: Path) -> None:
    change(path, "UPDATE runs SET id = 5")
    with VerdictStore(path) as store, pytest.raises(StoreError, match="its runs are not numbered from 1 on"):
        store.runs()


def test_a_list_is_bounded_in_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(path, "UPDATE answers SET source = printf('%.30000c', 'a')")
    monkeypatch.setattr(verdict_store, "LARGEST", 80_000)
    with VerdictStore(path) as store:
        assert store.count(Query()) == 3
        with pytest.raises(StoreError, match="a list of it takes more than 80,000 bytes"):
            store.entries(Query())


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist; `sem-clip predict --store FILE` writes one"):
        VerdictStore(tmp_path / "absent.sqlite")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="cannot be read"):
        VerdictStore(tmp_path)
    with pytest.raises(StoreError, match="is no file"):
        require_store(tmp_path)


@posix
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="a device or a pipe"):
        VerdictStore(tmp_path / "pipe")
    with pytest.raises(StoreError, match="is no file"):
        require_store(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["a b.sqlite", "50%.sqlite", "a?mode=rwc.sqlite", "a#1.sqlite", "ü.sqlite"])
def test_odd_names_of_stores(tmp_path: Path, name: str) -> None:
    read_all(write_store(tmp_path / name, [answer("/a.png")]))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_another_version_says_what_to_do(path: Path) -> None:
    change(path, "PRAGMA user_version = 2")
    with pytest.raises(StoreError, match="has schema version 2, this program takes 1: judge the frames again"):
        VerdictStore(path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (a)",
        "CREATE VIEW more AS SELECT * FROM answers",
        "CREATE TRIGGER more AFTER INSERT ON answers BEGIN DELETE FROM answers; END",
        "CREATE INDEX more ON answers (score)",
        "DROP INDEX by_source",
        "DROP TABLE store",
        "ALTER TABLE answers ADD COLUMN more TEXT",
        "ALTER TABLE runs RENAME COLUMN began TO started",
    ],
)
def test_another_schema_is_refused(path: Path, statement: str) -> None:
    change(path, statement)
    for opened in (VerdictStore, lambda file: VerdictWriter(file, make_run())):
        with pytest.raises(StoreError, match="does not have the tables"):
            opened(path)


def test_a_view_in_the_place_of_a_table_is_refused(path: Path) -> None:
    change(path, "DROP TABLE details", "CREATE VIEW details AS SELECT 1 AS id")
    with pytest.raises(StoreError, match="does not have the tables"):
        VerdictStore(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE answers SET confidence = 'much'",
        "UPDATE answers SET confidence = 1.5",
        "UPDATE answers SET confidence = NULL WHERE error IS NULL",
        "UPDATE answers SET novelty = 9e999",
        "UPDATE answers SET score = x'00'",
        "UPDATE answers SET verdict = x'00'",
        "UPDATE answers SET verdict = 'good' WHERE error IS NOT NULL",
        "UPDATE answers SET label = NULL",
        "UPDATE answers SET label = 'of no class'",
        "UPDATE answers SET is_defect = 7",
        "UPDATE answers SET is_defect = 0",
        "UPDATE answers SET run = 9",
        "UPDATE answers SET run = 0",
        "UPDATE answers SET run = 'x'",
        "UPDATE answers SET source = x'ff'",
        "UPDATE answers SET path = 'text'",
        "UPDATE answers SET path = x'6100'",
        "UPDATE answers SET lot = x'00'",
        "UPDATE answers SET x_nm = 9e999",
        "UPDATE answers SET frame_width = 0",
        "UPDATE answers SET frame_height = 9223372036854775807",
        "UPDATE answers SET frame_width = 3000000000",
        "UPDATE answers SET error = x'00'",
        "UPDATE answers SET source = CAST(zeroblob(100000) AS TEXT)",
        "UPDATE answers SET lot = CAST(zeroblob(100000) AS TEXT)",
        "UPDATE runs SET classes = 'no JSON'",
        "UPDATE runs SET classes = '[1]'",
        "UPDATE runs SET classes = '[\"good\"]'",
        "UPDATE runs SET operating_point = '[]'",
        "UPDATE runs SET operating_point = '{\"a\": 1e999}'",
        "UPDATE runs SET bundle = x'00'",
        "UPDATE details SET facts = '{'",
        "UPDATE details SET facts = '[]'",
        "UPDATE details SET facts = '{}'",
        "UPDATE details SET facts = x'7b7d'",
        'UPDATE details SET facts = \'{"path": "/etc/passwd"}\'',
        'UPDATE details SET facts = replace(facts, \'"tiles": 1\', \'"tiles": 1, "source": "other"\')',
        "UPDATE details SET facts = replace(facts, '\"map_rows\": 4', '\"map_rows\": 40000')",
        'UPDATE details SET facts = replace(facts, \'"pixel_width_nm": 2.0\', \'"pixel_width_nm": "2"\')',
        "UPDATE details SET probabilities = x'00'",
        "UPDATE details SET probabilities = zeroblob(8)",
        "UPDATE details SET probabilities = 'text'",
        "UPDATE details SET regions = x'0001'",
        "UPDATE details SET patch_map = zeroblob(60)",
        "UPDATE details SET patch_map = 'text'",
        "UPDATE details SET features = x'00'",
        "UPDATE details SET features = x'0000c07f0000c07f0000c07f0000c07f0000c07f0000c07f0000c07f0000c07f'",
        "UPDATE details SET features = zeroblob(4) WHERE id = 2",
        "DELETE FROM details",
    ],
)
def test_a_damaged_value_is_an_error_when_it_is_read(path: Path, statement: str) -> None:
    change(path, statement)
    with pytest.raises(StoreError, match=r"damaged|cannot be right|larger than any"):
        read_all(path)


@pytest.mark.parametrize("value", [np.nan, -1.0, 0.0, 1e300])
def test_regions_of_no_number_or_no_size_are_an_error(path: Path, value: float) -> None:
    blob = np.full(9, value).tobytes()
    change(path, "UPDATE details SET regions = ?", values=(blob,))
    with pytest.raises(StoreError, match="damaged"):
        read_all(path)


def test_a_store_with_flipped_bytes_is_read_or_refused(path: Path) -> None:
    sound = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(150):
        broken = np.frombuffer(sound, np.uint8).copy()
        places = rng.integers(0, len(sound), 20)
        broken[places] = rng.integers(0, 256, 20)
        path.write_bytes(broken.tobytes())
        try:
            read_all(path)
        except StoreError:
            refused += 1
    assert refused > 10


def test_a_store_that_is_cut_off_is_refused(path: Path) -> None:
    sound = path.read_bytes()
    for length in range(200, len(sound), 4096):
        path.write_bytes(sound[:length])
        with pytest.raises(StoreError):
            read_all(path)


def test_nothing_is_made_where_a_store_is_only_read(path: Path) -> None:
    before = path.read_bytes()
    read_all(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_store_that_another_process_made_meanwhile_stays(path: Path) -> None:
    before = path.read_bytes()
    create(path)
    assert path.read_bytes() == before


def test_a_reader_cannot_write(path: Path) -> None:
    with VerdictStore(path) as store, pytest.raises(StoreError):
        store._rows("DELETE FROM answers")
    read_all(path)


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: path.mkdir()], ids=["file", "folder"])
def test_where_no_store_can_be_made(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "there")
    target = tmp_path / "there" / "a.sqlite" if (tmp_path / "there").is_file() else tmp_path / "there"
    with pytest.raises(Exception, match=r"is a file, so nothing|is no file"):
        require_store(target)
