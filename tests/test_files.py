"""runtime.files: bounded reads, hashes, and writes that are whole or absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from runtime.errors import BundleError, PredictorError
from runtime.files import read_bounded, require_folder, sha256_of, write_atomically


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
