"""export.teaching.support_cache: entries that are damaged, bounded in size, and shared; folders."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cached_supports import (
    KEY,
    LAYOUT,
    VIEWS,
    Counted,
    encode,
    entries,
    equal,
    key_of,
    make_sample,
    tensors,
    toy,
)
from places import ROOT
from torch import Tensor

from calibration.dataset import Sample
from export.errors import ExportError
from export.teaching.support_cache import MAX_BYTES, SupportCache, open_cache


@pytest.fixture
def graph() -> Counted:
    return toy()


@pytest.fixture
def cache(tmp_path: Path) -> SupportCache:
    return SupportCache(tmp_path / "cache")


@pytest.fixture
def supports(tmp_path: Path) -> list[Sample]:
    return [make_sample(tmp_path, "a", "good", masked=False), *(make_sample(tmp_path, name) for name in "bc")]


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "one bit": lambda path, _: flip_last_byte(path),
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path, _: path.write_bytes(b""),
    "no safetensors": lambda path, _: path.write_bytes(b"\xff" * 200),
    "too large": lambda path, _: path.write_bytes(path.read_bytes() + bytes(10_000)),
    "of another support": lambda path, other: shutil.copy(other, path),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_logged_encoded_again_and_replaced(
    name: str, graph: Counted, cache: SupportCache, supports: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    cold = encode(graph, supports, cache)
    damaged, other, _ = entries(cache.folder)
    whole = damaged.read_bytes()
    DAMAGES[name](damaged, other)
    assert equal(encode(graph, supports, cache), cold)
    assert graph.frames_encoded == 4 * VIEWS
    assert damaged.read_bytes() == whole
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(damaged) in caplog.text


@pytest.mark.parametrize(
    "written",
    [
        {"a": torch.ones(3, 2)},
        {"a": torch.ones(3, 2), "b": torch.arange(4.0)},
        {"a": torch.ones(2, 3, dtype=torch.float16), "b": torch.arange(4.0)},
        {"a": torch.ones(3, 2).to(torch.float8_e4m3fn), "b": torch.arange(4.0)},
        {"a": torch.ones(0, 2, dtype=torch.float16), "b": torch.arange(4.0)},
        {**tensors(), "c": torch.ones(1)},
    ],
    ids=["missing", "type", "shape", "eight bits", "nothing in it", "more"],
)
def test_an_entry_of_another_layout_is_not_read(written: dict[str, Tensor], cache: SupportCache) -> None:
    cache.write(KEY, written)
    assert cache.read(KEY, LAYOUT) is None
    cache.write(KEY, tensors())
    found = cache.read(KEY, LAYOUT)
    assert found is not None
    assert torch.equal(found["b"], torch.arange(4.0))


def test_a_missing_entry_logs_nothing(cache: SupportCache, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.read(KEY, LAYOUT) is None
    assert caplog.records == []


def test_only_least_recently_used_entries_are_removed(cache: SupportCache) -> None:
    kept = cache.folder / "notes.txt"
    kept.write_text("not an entry")
    (cache.folder / "f.safetensors").write_bytes(bytes(5000))
    cache.write(key_of(0), tensors())
    size = entries(cache.folder)[0].stat().st_size
    cache.max_bytes = 3 * size + 1
    for number in range(1, 3):
        cache.write(key_of(number), tensors())
    for number in range(3):  # last used long ago, in this order
        os.utime(cache.folder / f"{key_of(number)}.safetensors", (1000 + number, 1000 + number))
    assert cache.read(key_of(0), LAYOUT) is not None
    cache.write(key_of(3), tensors())
    assert [cache.read(key_of(number), LAYOUT) is not None for number in range(4)] == [True, False, True, True]
    assert kept.read_text() == "not an entry"
    assert (cache.folder / "f.safetensors").stat().st_size == 5000


def test_max_bytes_holds_after_every_write(cache: SupportCache) -> None:
    cache.max_bytes = 2000
    for number in range(20):
        cache.write(key_of(number), tensors())
        assert 0 < sum(path.stat().st_size for path in entries(cache.folder)) <= 2000
    assert cache.read(key_of(19), LAYOUT) is not None


def test_an_entry_larger_than_max_bytes_is_not_kept_and_removes_nothing(cache: SupportCache) -> None:
    cache.write(key_of(0), tensors())
    cache.max_bytes = 1000
    cache.write(key_of(1), {"a": torch.ones(1000)})
    assert [path.stem for path in entries(cache.folder)] == [key_of(0)]


def test_one_entry_is_in_memory_at_a_time(graph: Counted, supports: list[Sample], tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []
    held: list[int] = []

    class Watched(SupportCache):
        def read(self, key, layout):  # type: ignore[no-untyped-def]
            held.append(sum(reference() is not None for reference in alive))
            found = super().read(key, layout)
            if found is not None:
                alive.extend(weakref.ref(tensor) for tensor in found.values())
            return found

    encode(graph, supports, SupportCache(tmp_path / "cache"))
    encode(graph, supports, Watched(tmp_path / "cache"))
    assert held == [0, 0, 0]
    assert len(alive) == 15


def test_default_folder_is_in_the_cache_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    opened = open_cache(None)
    assert opened is not None
    assert (opened.folder, opened.max_bytes) == (tmp_path / "xdg/sem-clip/supports", MAX_BYTES)
    assert opened.folder.is_dir()


def test_none_gives_no_cache() -> None:
    assert open_cache("none") is open_cache("NONE") is None
    with pytest.raises(ExportError, match="--support-cache is empty"):
        open_cache("")


def test_an_unwritable_folder_is_an_error_if_named_otherwise_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExportError, match=r"cannot be kept in .*file.*--support-cache none"):
        open_cache(str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_cache(None) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is read-only to this user")
def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(ExportError, match="Permission denied"):
        SupportCache(tmp_path / "cache")


def test_a_read_only_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(ExportError, match="Read-only file system"):
        SupportCache(tmp_path / "cache")


def test_a_user_without_a_home_folder_gets_no_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("export.teaching.support_cache.default_folder", lambda: Path("~/.cache/sem-clip/supports"))
    assert open_cache(None) is None
    assert "no home folder" in caplog.text
    assert not Path("~").exists()


def test_a_full_disk_gives_one_warning_and_teaching_continues(
    graph: Counted,
    cache: SupportCache,
    supports: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("export.teaching.support_cache.write_atomically", full)
    assert equal(encode(graph, supports, cache), encode(graph, supports, None))
    assert [record.getMessage() for record in caplog.records] == [
        f"encoded supports are no longer kept in {cache.folder}: No space left on device"
    ]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_permissions_of_entries_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        cache = SupportCache(tmp_path / "cache")
        cache.write(KEY, tensors())
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (cache.folder, *entries(cache.folder))]
    assert modes == [0o750, 0o640]


WRITER = """
import sys
from pathlib import Path
import torch
from export.teaching.support_cache import SupportCache
layout = {"a": ((1000,), torch.float32)}
cache = SupportCache(Path(sys.argv[1]), 25_000)
for number in range(150):
    key = f"{number % 9:064x}"
    found = cache.read(key, layout)
    assert found is None or torch.equal(found["a"], torch.full((1000,), float(number % 9)))
    cache.write(key, {"a": torch.full((1000,), float(number % 9))})
"""


@pytest.mark.slow
def test_two_processes_share_a_folder_and_remove_each_others_entries(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "cache")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert names
    assert all(len(name) == 64 + len(".safetensors") for name in names)
