"""The commands that change a recipe, two at a time: one after the other, or one of them refused; never one lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import make_recipe, write_bundle

from runtime import Recipe, locking
from runtime.changing import holding
from runtime.cli import main
from runtime.locking import locked
from runtime.manifest import load_bundle

COMMAND = [sys.executable, "-c", "import sys; from runtime.cli import main; sys.exit(main())", "operating-point"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    make_recipe().save(tmp_path / "layer.safetensors")
    return tmp_path / "layer.safetensors"


def edited(target: Path, file: Path, **changes: object) -> Path:
    """An operating point, as JSON, that differs from that of `target`."""
    recipe = load_bundle(target)[1] if target.is_dir() else Recipe.load(target)
    file.write_text(json.dumps(recipe.operating_point.to_dict() | changes))
    return file


@pytest.mark.parametrize("kind", ["bundle", "recipe"])
@pytest.mark.slow
def test_of_two_at_once_the_second_starts_where_the_first_ended(
    kind: str, fake_bundle: Path, recipe_file: Path, tmp_path: Path
) -> None:
    target = fake_bundle if kind == "bundle" else recipe_file
    for round_ in range(3):
        files = [
            edited(target, tmp_path / f"{n}.json", defect_threshold=(round_ * 2 + n + 1) / 10, pixel_threshold=0.5)
            for n in range(2)
        ]
        processes = [
            subprocess.Popen([*COMMAND, target, "--apply", file], stdout=subprocess.PIPE, text=True) for file in files
        ]
        said = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        starts = [text.split("defect_threshold: ")[1].split(" -> ")[0] for text in said]
        assert starts[0] != starts[1]
    assert {path.name for path in tmp_path.iterdir()} == {"0.json", "1.json", "bundle", "layer.safetensors"}


@pytest.mark.parametrize("kind", ["bundle", "recipe"])
def test_a_second_writer_is_refused_while_the_first_works(
    kind: str, fake_bundle: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    target = fake_bundle if kind == "bundle" else recipe_file
    file = edited(target, tmp_path / "point.json", defect_threshold=0.9)
    monkeypatch.setattr(locking, "WAIT_S", 0.2)
    lock = fake_bundle / ".lock" if kind == "bundle" else tmp_path / ".layer.safetensors.lock"
    codes: list[int] = []
    with locked(lock, target):
        thread = threading.Thread(
            target=lambda: codes.append(main(["operating-point", str(target), "--apply", str(file)]))
        )
        thread.start()
        thread.join()
    assert codes == [2]
    assert "is being changed by" in capsys.readouterr().err
    assert main(["operating-point", str(target), "--apply", str(file)]) == 0


def test_a_file_that_is_a_bundles_own_recipe_is_changed_with_the_bundle(tmp_path: Path, capsys: Capture) -> None:
    """Written in its place, it would no longer be what the manifest names, and the bundle would be lost."""
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "recipes").mkdir()
    (bundle / "recipe.safetensors").rename(bundle / "recipes/v1.safetensors")
    (bundle / "recipe.safetensors").symlink_to("recipes/v1.safetensors")
    for number, name in enumerate(("recipes/v1.safetensors", "recipe.safetensors")):
        target = bundle / name if number == 0 else bundle / load_bundle(bundle)[0].recipe_file
        file = edited(target, tmp_path / "point.json", defect_threshold=0.6 + number / 10)
        assert main(["operating-point", str(target), "--apply", str(file)]) == 0
        assert load_bundle(bundle, verify_all=True)[1].operating_point.defect_threshold == 0.6 + number / 10
    assert (bundle / "recipes/v1.safetensors").exists()
    capsys.readouterr()


def test_a_command_removes_what_a_killed_one_left(fake_bundle: Path, tmp_path: Path) -> None:
    left = fake_bundle / ".sem-clip-new-12345678"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    (left / ".journal").write_text('{"files": ["recipe-0123456789ab.safetensors"]}')
    (fake_bundle / "recipe-0123456789ab.safetensors").write_bytes(b"written, and never named")
    file = edited(fake_bundle, tmp_path / "point.json", defect_threshold=0.9)
    assert main(["operating-point", str(fake_bundle), "--apply", str(file)]) == 0
    manifest, _ = load_bundle(fake_bundle)
    assert {path.name for path in fake_bundle.iterdir()} == {"manifest.json", *manifest.files()}


def test_readers_never_wait(fake_bundle: Path, capsys: Capture) -> None:
    codes: list[int] = []
    with holding(fake_bundle):
        thread = threading.Thread(target=lambda: codes.append(main(["operating-point", str(fake_bundle)])))
        thread.start()
        thread.join(timeout=60)
    assert codes == [0]
    assert json.loads(capsys.readouterr().out)["defect_threshold"] == 0.5
