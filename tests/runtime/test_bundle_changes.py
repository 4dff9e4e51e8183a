"""Bundles that change while they are read: recipes are replaced, writers die, readers wait."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_recipe, write_bundle
from places import TESTS

from runtime import changing
from runtime.errors import BundleError, RecipeError
from runtime.files import write_atomically
from runtime.manifest import (
    MAX_READINGS,
    Manifest,
    load_bundle,
    read_artifact,
    replace_recipe,
    use_bundle,
)


def test_a_replaced_recipe_is_the_bundles_own_and_the_rest_stays(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    old, _ = load_bundle(bundle)
    recipe = make_recipe(defect_threshold=0.9)
    replace_recipe(bundle, recipe)
    manifest, found = load_bundle(bundle, verify_all=True)
    assert found.to_bytes() == recipe.to_bytes()
    assert replace(manifest, recipe_file="", recipe_sha256="") == replace(old, recipe_file="", recipe_sha256="")
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", "model.onnx", manifest.recipe_file}
    before = manifest
    replace_recipe(bundle, recipe)
    assert load_bundle(bundle)[0] == before
    replace_recipe(bundle, make_recipe())
    assert len(list(bundle.iterdir())) == 3


@pytest.mark.parametrize("step", [0, 1, 2], ids=["new recipe", "manifest", "old recipe"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("gone", [True, False], ids=["killed", "interrupted"])
def test_a_process_that_dies_at_any_step_leaves_a_whole_bundle(
    step: int, when: str, gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, nothing is tidied up after it; the next writer does that."""

    class Died(BaseException):
        """As if the process were gone."""

    bundle, old, new = write_bundle(tmp_path / "bundle"), make_recipe(), make_recipe(defect_threshold=0.9)
    steps: list[str] = []

    def dying(act: Callable[..., object]) -> Callable[..., object]:
        def run(path: Path, *arguments: object, **options: object) -> object:
            if path.name == ".lock":
                return act(path, *arguments, **options)
            steps.append(act.__name__)
            if len(steps) == step + 1 and when == "before":
                raise Died
            done = act(path, *arguments, **options)
            if len(steps) == step + 1:
                raise Died
            return done

        return run

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        if gone and step < 2:  # the last step is itself the tidying up
            patch.setattr(changing, "_clear", lambda *_: None)
        with pytest.raises(Died):
            replace_recipe(bundle, new)
    assert steps[step] == ("rename", "replace", "unlink")[step]
    expected = old if step == 0 or (step, when) == (1, "before") else new
    _, found = load_bundle(bundle, verify_all=True)
    assert found.to_bytes() == expected.to_bytes()
    replace_recipe(bundle, make_recipe(defect_threshold=0.8))
    manifest, _ = load_bundle(bundle, verify_all=True)
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", *manifest.files()}


def test_a_recipe_of_another_encoder_or_a_faulty_bundle_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(RecipeError, match="was taught on encoder"):
        replace_recipe(bundle, make_recipe(encoder_id="ef" * 32))
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        replace_recipe(bundle, make_recipe(defect_threshold=0.9))


def test_a_recipe_that_was_replaced_meanwhile_is_not_overwritten(fake_bundle: Path) -> None:
    _, mine = load_bundle(fake_bundle)
    theirs = make_recipe(defect_threshold=0.7)
    replace_recipe(fake_bundle, theirs, instead_of=mine)
    before = {path.name: path.read_bytes() for path in fake_bundle.iterdir()}
    with pytest.raises(BundleError, match="replaced by another process meanwhile; nothing was written"):
        replace_recipe(fake_bundle, make_recipe(defect_threshold=0.8), instead_of=mine)
    assert {path.name: path.read_bytes() for path in fake_bundle.iterdir()} == before


def test_a_reader_survives_a_recipe_that_is_replaced_under_it(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, readings = Manifest.from_json, []

    def replaced_just_then(content: bytes, where: str = "") -> Manifest:
        readings.append(content)
        if len(readings) == 1:
            manifest = parse(content)
            monkeypatch.setattr(Manifest, "from_json", parse)
            replace_recipe(fake_bundle, make_recipe(defect_threshold=0.7))
            monkeypatch.setattr(Manifest, "from_json", replaced_just_then)
            return manifest
        return parse(content)

    monkeypatch.setattr(Manifest, "from_json", replaced_just_then)
    assert load_bundle(fake_bundle)[1].operating_point.defect_threshold == 0.7
    assert len(readings) == 2


def swap_artifact(bundle: Path, content: bytes) -> None:
    """Another process replaces the artifact, and the manifest with it."""
    document = json.loads((bundle / "manifest.json").read_text())
    (artifact,) = document["artifacts"]
    old = bundle / artifact["file"]
    artifact |= {"file": f"{hashlib.sha256(content).hexdigest()[:8]}.onnx", "bytes": len(content)}
    artifact["sha256"] = hashlib.sha256(content).hexdigest()
    (bundle / artifact["file"]).write_bytes(content)
    write_atomically(bundle / "manifest.json", json.dumps(document).encode())
    old.unlink()


def test_a_bundle_replaced_while_opening_opens_in_its_new_state(fake_bundle: Path) -> None:
    """From the manifest to the last artifact: all of the old one or all of the new one, and no error."""
    calls: list[Manifest] = []

    def open_artifact(manifest: Manifest, _: object) -> bytes:
        calls.append(manifest)
        if len(calls) < 4:
            swap_artifact(fake_bundle, b"content %d" % len(calls))
        return read_artifact(fake_bundle, manifest.artifacts[0])

    assert use_bundle(fake_bundle, open_artifact) == b"content 3"
    assert len(calls) == 4


def test_an_artifact_that_is_wrong_and_stays_so_is_an_error_at_once(fake_bundle: Path) -> None:
    calls: list[Manifest] = []

    def open_artifact(manifest: Manifest, _: object) -> bytes:
        calls.append(manifest)
        return read_artifact(fake_bundle, replace(manifest.artifacts[0], sha256="0" * 64))

    with pytest.raises(BundleError, match="does not have the SHA-256"):
        use_bundle(fake_bundle, open_artifact)
    assert len(calls) == 1


def test_a_bundle_replaced_without_end_is_an_error_after_some_time(fake_bundle: Path) -> None:
    calls: list[Manifest] = []

    def open_artifact(manifest: Manifest, _: object) -> bytes:
        calls.append(manifest)
        swap_artifact(fake_bundle, b"content %d" % len(calls))
        return read_artifact(fake_bundle, manifest.artifacts[0])

    with pytest.raises(BundleError, match="is missing"):
        use_bundle(fake_bundle, open_artifact)
    assert len(calls) == MAX_READINGS


WRITE = """
import sys, time
sys.path[:0] = [sys.argv[2], str(__import__("pathlib").Path(sys.argv[2]).parent)]
from pathlib import Path
from conftest import make_recipe
from runtime.manifest import replace_recipe
end = time.monotonic() + 5
while time.monotonic() < end:
    for threshold in (0.25, 0.75):
        replace_recipe(Path(sys.argv[1]), make_recipe(defect_threshold=threshold, novelty_threshold=threshold))
"""


@pytest.mark.slow
def test_a_reader_sees_the_old_or_the_new_bundle_while_others_write(fake_bundle: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(fake_bundle), str(TESTS)]
    writers = [subprocess.Popen(command) for _ in range(2)]
    read = set()
    while any(writer.poll() is None for writer in writers):
        _, recipe = load_bundle(fake_bundle, verify_all=True)
        point = recipe.operating_point
        read.add((point.defect_threshold, point.novelty_threshold))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read <= {(0.5, None), (0.25, 0.25), (0.75, 0.75)}
    assert {path.name for path in fake_bundle.iterdir()} == {"manifest.json", *load_bundle(fake_bundle)[0].files()}
