"""runtime.files: bounded reads, hashes, and writes that are whole or absent."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import files
from runtime.errors import BundleError, PredictorError
from runtime.files import (
    OutputFile,
    new_folder,
    read_bounded,
    require_files,
    require_folder,
    sha256_of,
    write_atomically,
)
from runtime.jsonlines import json_lines

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links, pipes and locks of POSIX systems")
LONG = "x" * 251 + ".png"
"""As long as a name may be."""


@pytest.fixture
def umask() -> Iterator[None]:
    """Whatever a test sets, the next one finds what was there."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * 11)
    assert read_bounded(path, 11, BundleError) == b"x" * 11
    with pytest.raises(BundleError, match="11 bytes, more than the 10"):
        read_bounded(path, 10, BundleError)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="absent: does not exist"):
        read_bounded(tmp_path / "absent", 10, BundleError)
    with pytest.raises(BundleError, match="cannot be read"):
        read_bounded(tmp_path, 10**9, BundleError)


def test_hash_is_that_of_the_content(tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 7)
    (tmp_path / "f").write_bytes(content)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_write_creates_folders_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["b"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes are files of POSIX systems")
def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    """The one has no end, the other would be waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(BundleError, match="a device or a pipe, not a file"):
            read_bounded(path, 10, BundleError)


def test_a_place_below_a_file_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    require_folder(tmp_path / "new" / "newer")
    assert not (tmp_path / "new").exists()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PredictorError, match="file is a file, so nothing can be written below it"):
            require_folder(place)


# What a written file is


@posix
@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002, 0o000])
def test_the_umask_alone_decides_on_the_mode_of_a_new_file(mask: int, tmp_path: Path, umask: None) -> None:
    os.umask(mask)
    write_atomically(tmp_path / "f", b"x")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~mask


@posix
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, umask: None) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    write_atomically(tmp_path / LONG, b"x")
    assert names_in(tmp_path) == [LONG]
    with pytest.raises(OSError, match="too long") as caught:
        write_atomically(tmp_path / f"{LONG}x", b"x")
    assert caught.value.filename == str(tmp_path / f"{LONG}x")
    assert names_in(tmp_path) == [LONG]


@posix
@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_stays_and_what_it_leads_to_is_written(there: bool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "f", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("elsewhere/f")
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path / "elsewhere") == ["f"]


# Places that are checked before the work


def test_a_file_that_is_there_needs_force(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    require_files([tmp_path / "new", tmp_path / "deep" / "new"], force=False)
    require_files([tmp_path / "old"], force=True)
    with pytest.raises(PredictorError, match="old exists; add --force to replace it"):
        require_files([tmp_path / "new", tmp_path / "old"], force=False)
    with pytest.raises(PredictorError, match="is a folder; give the name of a file"):
        require_files([tmp_path], force=True)
    with pytest.raises(PredictorError, match="old is a file, so nothing can be written below it"):
        require_files([tmp_path / "old" / "new"], force=True)
    assert names_in(tmp_path) == ["old"]


@posix
def test_writing_to_a_socket_is_refused(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(PredictorError, match="a disk or a socket"):
            require_files([tmp_path / "s"], force=True)


# Pipes, devices, descriptors


@posix
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_to_and_stays(linked: bool, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = fifo
    if linked:
        path = tmp_path / "link"
        path.symlink_to(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    require_files([path], force=False)
    write_atomically(path, b"content")
    reader.join(30)
    assert got == [b"content"]
    assert fifo.is_fifo()
    assert len(names_in(tmp_path)) == 1 + linked


@posix
def test_a_pipe_without_a_reader_is_an_error_after_some_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "READER_WAIT_S", 0.1)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PredictorError, match="a pipe without a reader"):
        OutputFile(tmp_path / "fifo")


@posix
def test_a_reader_that_leaves_is_named(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    def leaving() -> None:
        with json_lines(fifo) as write:
            write({"a": 1})
            os.close(reader)
            write({"a": 2})

    with pytest.raises(PredictorError, match="fifo: its reader left after 1 lines"):
        leaving()
    assert fifo.is_fifo()


@posix
def test_devices_are_written_to_and_stay(tmp_path: Path) -> None:
    before = Path("/dev/null").stat()
    write_atomically(Path("/dev/null"), b"x")
    (tmp_path / "link").symlink_to("/dev/null")
    write_atomically(tmp_path / "link", b"x")
    after = Path("/dev/null").stat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="No space left") as caught:
            write_atomically(Path("/dev/full"), b"x")
        assert caught.value.filename == "/dev/full"


@posix
@pytest.mark.parametrize("form", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_a_descriptor_is_written_to_where_it_stands(form: str, tmp_path: Path) -> None:
    """As in `--json /dev/stdout >> log`: what is there already stays."""
    if not Path(form.format(0)).parent.is_dir():
        pytest.skip("this system has no such folder")
    (tmp_path / "log").write_bytes(b"before\n")
    with (tmp_path / "log").open("ab") as log:
        path = Path(form.format(log.fileno()))
        require_files([path], force=False)
        write_atomically(path, b"one\n")
        (tmp_path / "link").symlink_to(path)
        write_atomically(tmp_path / "link", b"two\n")
    assert (tmp_path / "log").read_bytes() == b"before\none\ntwo\n"


# Ends


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> None:
        with OutputFile(tmp_path / "f") as out:
            out.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert names_in(tmp_path) == []


def interrupted(path: Path, lines: int) -> None:
    """JSON lines of which so many are written before Ctrl-C."""

    def ends_early() -> None:
        with json_lines(path) as write:
            for number in range(lines):
                write({"a": number})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ends_early()


def test_json_lines_that_end_early_are_kept_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.jsonl"
    for ending in (".partial", ".partial2"):
        interrupted(path, 2)
        kept = tmp_path / f"v.jsonl{ending}"
        assert kept.read_text() == '{"a": 0}\n{"a": 1}\n'
        assert f"the lines of 2 frames that were done are kept in {kept}" in capsys.readouterr().err
    interrupted(path, 0)
    assert names_in(tmp_path) == ["v.jsonl.partial", "v.jsonl.partial2"]


def test_the_kept_part_of_the_longest_name_has_a_name_that_fits(tmp_path: Path) -> None:
    interrupted(tmp_path / LONG, 1)
    assert names_in(tmp_path) == [f"{LONG[:247]}.partial"]


@posix
def test_a_disk_that_is_full_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: a write takes what fits, and the next one fails."""
    code = f"""
import resource, sys
from pathlib import Path
from runtime.jsonlines import json_lines
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with json_lines(Path({str(tmp_path / "v.jsonl")!r})) as write:
    for number in range(100):
        write({{"number": number, "more": "x" * 30}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "v.jsonl'" in done.stderr.splitlines()[-1], "the error names the file that was asked for"
    assert names_in(tmp_path) == ["v.jsonl.partial"]
    text = (tmp_path / "v.jsonl.partial").read_text()
    assert 900 < len(text) <= 1000
    assert text.endswith('"}\n')


KILLED = """
import os, signal, sys
from pathlib import Path
from runtime.files import OutputFile
out = OutputFile(Path(sys.argv[1]))
out.write(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""
WRITES = """
import sys
from pathlib import Path
from runtime.files import write_atomically
write_atomically(Path(sys.argv[1]), b"other")
"""


@posix
def test_what_a_killed_writer_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".sem-clip-output").write_text("not a file that is being written")
    dead = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "dead")], check=False, timeout=120)
    assert dead.returncode == -signal.SIGKILL
    assert len(names_in(tmp_path)) == 2
    with OutputFile(tmp_path / "alive") as out:  # removes what the dead one left
        assert len(names_in(tmp_path)) == 2
        out.write(b"whole")
        subprocess.run([sys.executable, "-c", WRITES, str(tmp_path / "other")], check=True, timeout=120)
    assert names_in(tmp_path) == [".sem-clip-output", "alive", "other"]
    assert (tmp_path / "alive").read_bytes() == b"whole"


KILLED_FOLDER = """
import os, signal, sys
from pathlib import Path
from runtime.files import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@posix
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, umask: None) -> None:
    os.umask(0o027)
    subprocess.run([sys.executable, "-c", KILLED_FOLDER, str(tmp_path / "dead")], check=False, timeout=120)
    assert len(names_in(tmp_path)) == 1
    with new_folder(tmp_path / "f") as folder:
        (folder / "in").write_text("in")
        subprocess.run([sys.executable, "-c", WRITES, str(tmp_path / "other")], check=True, timeout=120)
        assert not (tmp_path / "f").exists()
    assert names_in(tmp_path) == ["f", "other"]
    assert names_in(tmp_path / "f") == ["in"]
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o750

    def failing() -> None:
        with new_folder(tmp_path / "g"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert names_in(tmp_path) == ["f", "other"]
