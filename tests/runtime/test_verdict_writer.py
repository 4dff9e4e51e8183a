"""runtime.verdict_writer: what was stored is not lost, whatever happens to the writer; readers see it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import posix
from places import ROOT
from stores import answer, make_run, write_store

from runtime import PredictorError
from runtime.errors import StoreError
from runtime.packages import child_environment
from runtime.verdict_store import Query, VerdictStore, VerdictWriter
from runtime.verdict_writer import COMMIT_FRAMES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.db"


def until(true: Callable[[], bool]) -> None:
    """Wait for what a thread or a process does in its own time."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def count(path: Path) -> int:
    with VerdictStore(path) as store:
        return store.count(Query())


def test_answers_appear_while_the_writer_waits_for_more(path: Path) -> None:
    with VerdictWriter(path, make_run()) as writer:
        for number in range(3):
            writer.add(answer(f"/{number}.png"))
        until(lambda: count(path) == 3)
        writer.add(answer("/3.png"))
        writer.flush()
        assert count(path) == 4


def test_two_readers_see_a_growing_store(path: Path) -> None:
    with VerdictWriter(path, make_run()) as writer, VerdictStore(path) as one, VerdictStore(path) as other:
        for number in range(0, 900, 300):
            for within in range(300):
                writer.add(answer(f"/{number + within:04}.png"))
            writer.flush()
            assert one.count(Query()) == other.count(Query()) == number + 300
            assert isinstance(one.result(number + 1), type(answer("/a.png")))


def test_two_writers_add_to_one_store(path: Path) -> None:
    with VerdictWriter(path, make_run()) as one, VerdictWriter(path, make_run(bundle="/other")) as other:
        assert one.id == other.id
        for number in range(2 * COMMIT_FRAMES):
            (one if number % 2 else other).add(answer(f"/{number}.png"))
    with VerdictStore(path) as store:
        assert store.count(Query()) == 2 * COMMIT_FRAMES
        assert sorted(run.bundle for run in store.runs()) == ["/bundles/metal2", "/other"]


def test_a_closed_store_is_one_file(path: Path) -> None:
    write_store(path, [answer("/a.png")])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_store_that_a_reader_has_open_takes_more(path: Path) -> None:
    write_store(path, [answer("/a.png")])
    with VerdictStore(path) as store:
        for name in ("/b.png", "/c.png"):
            write_store(path, [answer(name)])
        assert store.count(Query()) == 3


_KILLED = """
import os, sys
sys.path.append({tests!r})
from pathlib import Path
from stores import answer, make_run
from runtime.verdict_store import VerdictWriter
writer = VerdictWriter(Path({path!r}), make_run())
for number in range({stored}):
    writer.add(answer(f"/{{number}}.png"))
writer.flush()
print("stored", flush=True)
for number in range({stored}, 100_000):
    writer.add(answer(f"/{{number}}.png"))
"""


@posix
def test_a_killed_writer_leaves_all_that_it_had_stored(path: Path) -> None:
    code = _KILLED.format(tests=str(ROOT / "tests"), path=str(path), stored=250)
    with subprocess.Popen(
        [sys.executable, "-c", code], env=child_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stored\n"
        until(lambda: count(path) > 250)  # in the middle of the next ones
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with VerdictStore(path) as store:
        found = store.count(Query())
        assert found > 250
        names = {entry.source for entry in store.entries(Query(ids=tuple(range(1, 251))))}
        assert names == {f"/{number}.png" for number in range(250)}
        assert store.result(found) is not None
    write_store(path, [answer("/new.png")])
    assert count(path) == found + 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_closed_writer_takes_nothing(path: Path) -> None:
    writer = VerdictWriter(path, make_run())
    writer.close()
    writer.close()
    with pytest.raises(PredictorError, match="the writer is closed"):
        writer.add(answer("/a.png"))


def add_without_a_table(path: Path, then: type[Exception] | None = None) -> None:
    """Add an answer to a store whose table another program removes meanwhile."""
    with VerdictWriter(path, make_run()) as writer:
        with sqlite3.connect(path) as other:
            other.execute("DROP TABLE details")
        other.close()
        writer.add(answer("/b.png"))
        if then is not None:
            raise then("interrupted")
        writer.flush()


def test_what_cannot_be_stored_is_an_error_of_the_block(path: Path) -> None:
    write_store(path, [answer("/a.png")])
    with pytest.raises(StoreError, match=r"in use|damaged|no store"):
        add_without_a_table(path)


def test_a_failure_behind_another_error_is_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(path, [answer("/a.png")])
    with pytest.raises(KeyError):
        add_without_a_table(path, KeyError)
    assert capsys.readouterr().err.startswith("the last answers are not stored: ")


def test_a_class_called_not_read_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match='"Not  Read", which here means failed frames'):
        VerdictWriter(path, make_run(classes=("good", "Not  Read")))
    assert not path.exists()


def test_a_large_answer_is_stored_before_two_hundred_are_there(path: Path) -> None:
    import numpy as np

    large = np.zeros((2048, 2048), np.float32)
    with VerdictWriter(path, make_run()) as writer:
        for number in range(5):
            writer.add(answer(f"/{number}.png", (0.9, 0.05, 0.05), patch_map=large, is_defect=False))
            assert writer._bytes <= 1 << 26
    assert count(path) == 5


@posix
def test_opening_a_store_again_takes_no_lock_from_a_reader_of_this_process(path: Path) -> None:
    """Closing a file drops the locks of its process; a writer elsewhere would take the log away under the reader."""
    code = (
        f"import sys\nsys.path.append({str(ROOT / 'tests')!r})\nfrom stores import answer, make_run\n"
        "from runtime.verdict_store import VerdictWriter\n"
        f"with VerdictWriter({str(path)!r}, make_run()) as writer:\n"
        "    writer.add(answer(sys.argv[1]))\n    writer.flush()\n"
        "    print('there', flush=True)\n    sys.stdin.readline()\n"
    )
    store = None
    for number in range(3):
        words = [sys.executable, "-c", code, f"/{number}.png"]
        with subprocess.Popen(
            words, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            store = store or VerdictStore(path)
            assert store.count(Query()) == number + 1
            VerdictStore.of_any(path).close()
            VerdictWriter(path, make_run()).close()
            process.communicate("\n")
        assert len(store.entries(Query())) == number + 1
    assert store is not None
    store.close()
