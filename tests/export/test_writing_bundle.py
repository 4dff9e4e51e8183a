"""export.bundle: a bundle is replaced as a whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_encoder, make_recipe, write_bundle
from contents import content_of, names_in
from places import TESTS

from export.bundle import refuse_existing, writing_bundle
from export.errors import OutputExistsError
from runtime.errors import BundleError
from runtime.manifest import load_bundle


def write_new(folder: Path) -> None:
    """A bundle that differs from the one of `fake_bundle`."""
    encoder = make_encoder(architecture="new")
    write_bundle(folder, encoder=encoder, recipe=make_recipe(("good", "new"), encoder=encoder))


def test_a_finished_bundle_replaces_the_old_one(fake_bundle: Path) -> None:
    (fake_bundle / "engines").mkdir()
    (fake_bundle / "engines/mine.txt").touch()
    with writing_bundle(fake_bundle, force=True) as working:
        assert names_in(working) == []
        write_new(working)
        assert load_bundle(fake_bundle)[1].classes != ("good", "new")
    manifest, recipe = load_bundle(fake_bundle, verify_all=True)
    assert recipe.classes == ("good", "new")
    assert names_in(fake_bundle) == sorted(["manifest.json", *manifest.files(), "engines"])
    assert names_in(fake_bundle / "engines") == ["mine.txt"]
    assert names_in(fake_bundle.parent) == ["bundle"]


@pytest.mark.parametrize("before", ["absent", "empty"])
def test_a_folder_is_created_with_its_parents(tmp_path: Path, before: str) -> None:
    target = tmp_path / "a/b/bundle"
    if before == "empty":
        target.mkdir(parents=True)
    with writing_bundle(target, force=False) as working:
        write_new(working)
    load_bundle(target, verify_all=True)
    assert names_in(target) == ["manifest.json", "model.onnx", "recipe.safetensors"]
    assert names_in(target.parent) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_while_writing_keeps_the_old_bundle(fake_bundle: Path, error: type[BaseException]) -> None:
    def write_half(target: Path) -> None:
        with writing_bundle(target, force=True) as working:
            (working / "model.onnx").write_text("half")
            raise error

    before = content_of(fake_bundle)
    with pytest.raises(error):
        write_half(fake_bundle)
    assert content_of(fake_bundle) == before
    assert names_in(fake_bundle.parent) == ["bundle"]


def test_an_error_while_writing_leaves_no_new_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), writing_bundle(tmp_path / "bundle", force=False):
        raise ValueError("stop")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("step", ["rename", "replace"])
def test_a_full_disk_leaves_the_bundle_unchanged(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    before, real = content_of(fake_bundle), getattr(Path, step)

    def failing(self: Path, target: Path) -> Path:
        if target.name == "recipe.safetensors" or target.name.startswith("recipe-") or step == "replace":
            raise OSError(28, "No space left on device")
        moved: Path = real(self, target)
        return moved

    monkeypatch.setattr(Path, step, failing)
    with (
        pytest.raises(BundleError, match=r"cannot be written .No space left"),
        writing_bundle(fake_bundle, force=True) as working,
    ):
        write_new(working)
    assert content_of(fake_bundle) == before


def test_a_bundle_built_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """`refuse_existing` runs before the work; another process may have built a bundle since."""
    write_new(tmp_path / "bundle")
    with pytest.raises(OutputExistsError, match="add --force"), writing_bundle(tmp_path / "bundle", force=False):
        raise AssertionError("the block must not run")


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = [sys.argv[2], str(__import__("pathlib").Path(sys.argv[2]).parent)]
from conftest import make_encoder, make_recipe, with_scalars, write_bundle
from export import bundle
from runtime import changing

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def write(folder):
    encoder = make_encoder(architecture="new")
    write_bundle(folder, encoder=encoder, recipe=make_recipe(("good", "new"), encoder=encoder))

def at_the_manifest(self, target, real=pathlib.Path.replace):
    if moment == "after_the_manifest":
        real(self, target)
    die()

for moment in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        with bundle.writing_bundle(pathlib.Path(sys.argv[1]) / moment / "bundle", force=True) as working:
            if moment == "while_writing":
                (working / "manifest.json").write_text("{")
                die()
            write(working)
            if moment == "before_the_files":
                bundle._sync = die
            elif moment == "among_the_files":
                changing.sync_folder = lambda folder: None if folder == working else die()
            else:
                pathlib.Path.replace = at_the_manifest
    print(moment, os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
@pytest.mark.parametrize("there", [True, False], ids=["over a bundle", "new"])
@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_a_whole_bundle_or_none(tmp_path: Path, there: bool) -> None:
    old = "toy" if there else None
    survivors = {
        "while_writing": old,
        "before_the_files": old,
        "among_the_files": old,
        "before_the_manifest": old,
        "after_the_manifest": "new",
    }
    for moment in survivors:
        if there:
            write_bundle(tmp_path / moment / "bundle")
            (tmp_path / moment / "bundle/notes.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(TESTS), *survivors],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == [word for moment in survivors for word in (moment, str(int(signal.SIGKILL)))]
    for moment, architecture in survivors.items():
        target = tmp_path / moment / "bundle"
        if architecture is None:
            with pytest.raises(BundleError):
                load_bundle(target)
            refuse_existing(target, force=False)  # only files of the writer are left
        else:
            assert load_bundle(target, verify_all=True)[0].encoder.architecture == architecture, moment
        # The next process removes what the dead one left.
        with writing_bundle(target, force=True) as working:
            write_new(working)
        manifest, _ = load_bundle(target, verify_all=True)
        assert manifest.encoder.architecture == "new"
        assert names_in(target) == sorted(["manifest.json", *manifest.files(), *(["notes.txt"] if there else [])])
        assert names_in(target.parent) == ["bundle"]
