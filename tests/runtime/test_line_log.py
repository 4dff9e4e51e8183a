"""runtime.line_log: lines that are on disk stay, whatever happens to their writer."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime import line_log
from runtime.errors import BundleError
from runtime.line_log import LineLog, now, read_lines, user_name

HEAD = {"format": "test-lines", "version": 1}
WRITE = """
import sys
from itertools import count
from pathlib import Path
from runtime.errors import BundleError
from runtime.line_log import LineLog
with LineLog(Path(sys.argv[1]), {"format": "test-lines", "version": 1}, BundleError) as log:
    for number in count():
        log.add({"number": number, "text": "x" * 500})
        print(number, flush=True)
"""


def opened(path: Path) -> LineLog:
    return LineLog(path, HEAD, BundleError)


def read(path: Path) -> list[dict[str, object]]:
    return read_lines(path, HEAD, BundleError)


def test_entries_come_back_in_order_and_lines_are_only_added(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/log.jsonl"
    with opened(path) as log:
        assert log.entries == []
        log.add({"name": "é <b>\n"})
    first = path.read_bytes()
    assert first.splitlines()[0] == json.dumps(HEAD).encode()
    with opened(path) as log:
        assert log.entries == [{"name": "é <b>\n"}]
        log.add({"n": 2})
    assert path.read_bytes() == first + b'{"n": 2}\n'
    assert read(path) == [{"name": "é <b>\n"}, {"n": 2}]
    assert [name.name for name in path.parent.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_line_that_was_cut_off_is_ignored_by_readers_and_cut_away_by_the_next_writer(
    cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    with opened(path) as log:
        log.add({"n": 1})
        log.add({"n": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    assert read(path) == [{"n": 1}]
    assert f"{path}: the last line is cut off, or being written" in caplog.text
    with opened(path) as log:
        assert log.entries == [{"n": 1}]
        assert log.cut == len('{"n": 2}\n') - cut
        log.add({"n": 3})
    assert "cut off by a kill" in caplog.text
    assert read(path) == [{"n": 1}, {"n": 3}]


@pytest.mark.parametrize("left", [0, 10])
def test_a_first_line_that_was_cut_off_begins_anew(left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(json.dumps(HEAD).encode()[:left])
    assert read(path) == []
    assert ("cut off" if left else f"{path}: is empty") in caplog.text
    with opened(path) as log:
        log.add({"n": 1})
    assert read(path) == [{"n": 1}]


def test_a_killed_writer_loses_nothing_that_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        reported = [int(writer.stdout.readline()) for _ in range(30)]
        writer.kill()
        reported += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    with opened(path) as log:  # its lock is free, too
        numbers = [entry["number"] for entry in log.entries]
    assert numbers[: len(reported)] == reported
    assert len(numbers) - len(reported) in (0, 1)


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_log, "WAIT_S", 0.1)
    path = tmp_path / "log.jsonl"
    with opened(path) as log:
        log.add({"n": 1})
        assert read(path) == [{"n": 1}]
        with pytest.raises(BundleError, match="is being changed by"):
            opened(path)
    opened(path).close()


def test_another_thread_may_close_it(tmp_path: Path) -> None:
    log = opened(tmp_path / "log.jsonl")
    thread = threading.Thread(target=log.close)
    thread.start()
    thread.join()
    opened(tmp_path / "log.jsonl").close()
    with pytest.raises(BundleError, match="is closed"):
        log.add({})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"no log", "is no file of the format test-lines"),
        (b"no log\n", "does not begin as a file of this program"),
        (b'{"format": "other", "version": 1}\n', "is no file of the format test-lines"),
        (b'{"format": "test-lines", "version": 2}\n', "has format version 2, this reader knows 1: update"),
        (b'{"format": "test-lines", "version": 1}\n{"n": 1}\nnonsense\n', "line 3 cannot be read"),
        (b'{"format": "test-lines", "version": 1}\n\n', "line 2 cannot be read"),
        (b'{"format": "test-lines", "version": 1}\n[1]\n', "line 2 cannot be read (it is no object)"),
        (b'{"format": "test-lines", "version": 1}\n{"n": 1, "n": 2}\n', 'line 2 cannot be read ("n" appears twice)'),
        (b'{"format": "test-lines", "version": 1}\n{"n": "' + b"x" * 70_000 + b'"}\n', "longer than 65,536 bytes"),
        (b'{"format": "test-lines", "version": 1}\n' + b"[" * 60_000 + b"\n", "line 2 cannot be read"),
    ],
)
def test_a_file_of_another_kind_or_with_a_damaged_line_is_refused_and_left_alone(
    content: bytes, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    for use in (read, opened):
        with pytest.raises(BundleError, match=re.escape(fault)):
            use(path)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        read(tmp_path / "absent.jsonl")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    write = os.write

    def half(handle: int, content: bytes) -> int:
        if len(content) > 4:
            return write(handle, bytes(content[:4]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(path) as log:
        log.add({"n": 1})
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(BundleError, match="cannot be written"):
                log.add({"n": 2})
        assert path.read_bytes() == before
        log.add({"n": 3})
    assert read(path) == [{"n": 1}, {"n": 3}]


def test_what_a_failed_line_left_does_not_stay_behind_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "log.jsonl"
    with opened(path) as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            patch.setattr(os, "ftruncate", lambda file, size: os.fstat(file).st_size == size or fail())
            with pytest.raises(BundleError, match="Input/output error"):
                log.add({"text": "x" * 100})
        log.add({"text": "y"})
        assert read(path) == [{"text": "y"}]


def test_a_line_that_readers_would_refuse_is_not_written(tmp_path: Path) -> None:
    with opened(tmp_path / "log.jsonl") as log, pytest.raises(BundleError, match="takes lines of 65,536 bytes"):
        log.add({"n": "x" * 70_000})
    assert read(tmp_path / "log.jsonl") == []


def test_who_writes_and_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "eve\n")
    assert user_name() == "eve\\n"

    def fail() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr("getpass.getuser", fail)
    assert user_name() == "unknown"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", now())
