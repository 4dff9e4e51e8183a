"""runtime.locking and runtime.changing: writers wait for each other, and a dead one stands in nobody's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_recipe

from runtime.changing import changing, commit, free_name, holding
from runtime.errors import BundleError
from runtime.locking import locked
from runtime.manifest import load_bundle, replace_recipe

HOLD = """
import sys, time
from collections.abc import Iterator
from pathlib import Path
from runtime.locking import locked
file = Path(sys.argv[1])
with locked(file, file):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys
from collections.abc import Iterator
from pathlib import Path
from runtime.locking import locked
number = Path(sys.argv[1])
for _ in range(40):
    with locked(number.with_name(".lock"), number, wait_s=60):
        number.write_text(str(int(number.read_text()) + 1))
"""


def python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path/.lock."""
    process = python(HOLD, tmp_path / ".lock")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_waiting_in_vain_names_the_holder_of_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=rf"is being changed by -c .* \(process {holder.pid} on .*\): wait"),
        locked(tmp_path / ".lock", tmp_path, wait_s=0.2),
    ):
        raise AssertionError("two hold it")


def test_the_lock_of_a_killed_process_is_free_at_once(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path / ".lock", tmp_path, wait_s=5) as first:
        assert first
    assert list(tmp_path.iterdir()) == []


def test_no_change_of_many_processes_is_lost(tmp_path: Path) -> None:
    """Each removes the lock file when it is done, while the others wait for it."""
    number = tmp_path / "number"
    number.write_text("0")
    processes = [python(COUNT, number) for _ in range(4)]
    assert [process.communicate(timeout=120)[0] for process in processes] == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert number.read_text() == "160"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_a_thread_may_take_its_own_lock_again_and_another_may_not(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def other() -> None:
        try:
            with locked(tmp_path / ".lock", tmp_path, wait_s=0.1):
                pass
        except BundleError as exc:
            refused.append(exc)

    with locked(tmp_path / ".lock", tmp_path) as first, locked(tmp_path / ".lock", tmp_path) as again:
        assert (first, again) == (True, False)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    other()
    assert len(refused) == 1


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_an_impossible_lock_file_is_an_error_at_once(kind: str, tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    (tmp_path / "precious").write_text("years of work")
    {"folder": lock.mkdir, "pipe": lambda: os.mkfifo(lock), "link": lambda: lock.symlink_to("precious")}[kind]()
    with pytest.raises(BundleError, match="cannot be locked, so it is not changed"), locked(lock, tmp_path, wait_s=2):
        raise AssertionError("it was taken")
    assert (tmp_path / "precious").read_text() == "years of work"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="it needs /proc, which takes no files")
def test_a_place_that_takes_no_file_is_not_said_to_be_changed_by_others(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="cannot be locked, so it is not changed"),
        locked(Path("/proc/.x.lock"), Path("/proc/x"), wait_s=0.1),
    ):
        raise AssertionError("it was taken")


def test_a_folder_that_is_not_there_cannot_be_locked(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="cannot be locked"),
        locked(tmp_path / "absent" / ".lock", tmp_path / "absent", wait_s=1),
    ):
        raise AssertionError("it was taken")


# ---- changes ---------------------------------------------------------------------------------------------------------


def test_two_writers_take_turns(fake_bundle: Path) -> None:
    """What one makes of what it read cannot be overtaken by the other."""
    done: list[str] = []

    def apply() -> None:
        replace_recipe(fake_bundle, make_recipe(defect_threshold=0.9))
        done.append("other")

    with holding(fake_bundle):
        thread = threading.Thread(target=apply)
        thread.start()
        time.sleep(0.3)
        assert load_bundle(fake_bundle)[1].operating_point.defect_threshold == 0.5
        replace_recipe(fake_bundle, make_recipe(defect_threshold=0.6))
        done.append("first")
    thread.join()
    assert done == ["first", "other"]
    manifest, recipe = load_bundle(fake_bundle, verify_all=True)
    assert recipe.operating_point.defect_threshold == 0.9
    assert {path.name for path in fake_bundle.iterdir()} == {"manifest.json", *manifest.files()}


def test_a_writer_inside_a_writer_leaves_a_whole_bundle(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old recipe is put back, by its content's name, just before it would be removed."""
    first, second = make_recipe(defect_threshold=0.3), make_recipe(defect_threshold=0.7)
    replace_recipe(fake_bundle, first)
    unlink = Path.unlink

    def overtaken(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("recipe"):
            monkeypatch.setattr(Path, "unlink", unlink)
            replace_recipe(fake_bundle, first)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", overtaken)
    replace_recipe(fake_bundle, second)
    assert load_bundle(fake_bundle, verify_all=True)[1].to_bytes() == first.to_bytes()


def test_a_journal_can_name_nothing_outside_the_bundle(fake_bundle: Path, tmp_path: Path) -> None:
    """A bundle may come from anywhere, with what looks like a dead writer's work."""
    (tmp_path / "precious").write_text("years of work")
    (fake_bundle / "out").symlink_to(tmp_path)
    left = fake_bundle / ".sem-clip-new-00000000"
    left.mkdir()
    names = '"../precious", "out/precious", "/etc/hostname", "manifest.json", "recipe.safetensors", "a\\\\u0000", 5, ""'
    (left / ".journal").write_text(f'{{"files": [{names}, "stale.onnx"]}}')
    (fake_bundle / "stale.onnx").write_bytes(b"")
    with holding(fake_bundle):
        assert not left.exists()
    assert (tmp_path / "precious").exists()
    assert not (fake_bundle / "stale.onnx").exists()
    load_bundle(fake_bundle, verify_all=True)


def test_a_link_in_place_of_a_staging_folder_is_not_followed(fake_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_text("years of work")
    (fake_bundle / ".sem-clip-new-00000000").symlink_to(tmp_path / "precious")
    with holding(fake_bundle):
        pass
    assert (tmp_path / "precious/thesis.tex").exists()


def test_a_name_in_use_is_not_reused(tmp_path: Path) -> None:
    given = []
    for _ in range(4):
        given.append(free_name(tmp_path, "engines/a.plan", "ab" * 32))
        (tmp_path / given[-1]).parent.mkdir(exist_ok=True)
        (tmp_path / given[-1]).symlink_to("nowhere")
    digest = "ab" * 6
    assert given == [f"engines/a{tail}.plan" for tail in ("", f"-{digest}", f"-{digest}-3", f"-{digest}-4")]


def test_a_change_without_a_manifest_is_an_error_and_leaves_nothing(fake_bundle: Path) -> None:
    before = sorted(fake_bundle.rglob("*"))
    with (  # noqa: PT012
        pytest.raises(BundleError, match="the change cannot be written"),
        changing(fake_bundle) as staging,
    ):
        (staging / "new.onnx").write_bytes(b"")
        commit(fake_bundle, staging, {"new.onnx": "new.onnx"}, ["model.onnx"])
    assert sorted(fake_bundle.rglob("*")) == before
