"""`sem-clip teach`: the recipe that it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from commandline import errors_in, files_in, sem_clip
from conftest import make_recipe
from places import ROOT

from export import teach
from export.model.checkpoint import load_model
from export.options import METHOD_NAMES
from runtime import Predictor
from runtime.describe import method_line
from runtime.manifest import load_bundle

SCRIPT = ROOT / "export/build_engine.py"


@pytest.fixture
def never_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: object) -> None:
        raise AssertionError("teaching was reached")

    monkeypatch.setattr(teach, "teach_recipe", fit)


def test_teach_with_equal_arguments_gives_the_recipe_of_the_bundle(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "layers/metal2.safetensors"
    before = files_in(toy_bundle)
    status, _ = sem_clip(capsys, "teach", toy_bundle, "--data", toy_frames, "--shots", 2, "--out", out)
    assert status == 0
    assert out.read_bytes() == (toy_bundle / "recipe.safetensors").read_bytes()
    assert files_in(toy_bundle) == before
    with Predictor(toy_bundle, backend="cpu", threads=1) as predictor:
        predictor.use(out)
        assert predictor(next((toy_frames / "images/hole").iterdir())).label in predictor.recipe.classes


def test_teach_makes_another_recipe_for_other_classes_and_another_text_bar(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("good", "hole"):
        shutil.copytree(toy_frames / "images" / label, tmp_path / "frames/images" / label.replace("hole", "pin-hole"))
    out = tmp_path / "r.safetensors"
    arguments = ["--data", tmp_path / "frames", "--shots", 1, "--views", 1, "--ignore-bottom", 8, "--out", out]
    status, _ = sem_clip(capsys, "teach", toy_bundle, *arguments)
    assert status == 0
    with Predictor(toy_bundle, backend="cpu", recipe=out, threads=1) as predictor:
        assert predictor.recipe.classes == ("good", "pin-hole")
        assert predictor.recipe.frame.ignore_bottom == 8
        assert predictor.recipe.teaching["map_taught_by"] == "frame labels"
        result = predictor(next((toy_frames / "images/hole").iterdir()))
        assert set(result.probabilities) == {"good", "pin-hole"}


def test_teach_notes_a_bundle_that_smooths_otherwise_than_the_method(
    dual_bundle: Path,
    toy_frames: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_bundle(dual_bundle)[1]
    monkeypatch.setattr(teach, "teach_recipe", lambda *_: recipe)
    arguments = ["--data", toy_frames, "--shots", 2, "--out", tmp_path / "r.safetensors"]
    status, stderr = sem_clip(capsys, "teach", dual_bundle, *arguments, "--method", "paper")
    assert status == 0
    assert "smooths its maps by 1.6 px, --method paper by 1.06667" in stderr
    status, stderr = sem_clip(capsys, "teach", dual_bundle, *arguments, "--force")
    assert status == 0
    assert "smooths its maps" not in stderr


@pytest.mark.usefixtures("never_teaches")
def test_teach_refuses_settings_that_need_the_v_path_of_a_graph_without_it(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.safetensors"
    arguments = ["--data", toy_frames, "--shots", 2, "--method", "paper", "--out", out]
    status, stderr = sem_clip(capsys, "teach", toy_bundle, *arguments)
    assert status == 2
    (message,) = errors_in(stderr)
    assert f"{toy_bundle} has no V path, which --method paper reads: build a bundle that has it" in message
    assert not out.exists()


def test_teach_writes_no_recipe_that_the_bundle_cannot_run(
    toy_bundle: Path,
    toy_frames: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = load_bundle(toy_bundle)[0].encoder
    reads_it = make_recipe(encoder=replace(encoder, value_path=True))
    monkeypatch.setattr(teach, "teach_recipe", lambda *_: reads_it)
    out = tmp_path / "r.safetensors"
    status, stderr = sem_clip(capsys, "teach", toy_bundle, "--data", toy_frames, "--shots", 2, "--out", out)
    assert status == 2
    assert "leaves the V path out" in errors_in(stderr)[0]
    assert not out.exists()


@pytest.mark.usefixtures("never_teaches")
def test_teach_refuses_other_weights_and_names_both_hashes(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load_model("toy", random_seed=1)
    torch.save(other.clip.state_dict(), tmp_path / "other.pt")
    loaded = load_model("toy", weights=tmp_path / "other.pt")
    out = tmp_path / "r.safetensors"
    arguments = ["--data", toy_frames, "--weights", tmp_path / "other.pt", "--out", out]
    status, stderr = sem_clip(capsys, "teach", toy_bundle, *arguments)
    assert status == 2
    (message,) = errors_in(stderr)
    assert loaded.sha256[:16] in message
    assert load_bundle(toy_bundle)[0].encoder.checkpoint_sha256[:16] in message
    assert "other.pt" in message
    assert not out.exists()


@pytest.mark.usefixtures("never_teaches")
def test_teach_refuses_an_existing_recipe_without_force(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.safetensors"
    out.write_bytes(b"mine")
    status, stderr = sem_clip(capsys, "teach", toy_bundle, "--data", toy_frames, "--out", out)
    assert status == 2
    assert "add --force" in errors_in(stderr)[0]
    assert out.read_bytes() == b"mine"


@pytest.mark.usefixtures("never_teaches")
def test_teach_needs_a_bundle(toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.safetensors"
    status, stderr = sem_clip(capsys, "teach", tmp_path / "absent", "--data", toy_frames, "--out", out)
    assert status == 2
    assert "is not a bundle folder" in errors_in(stderr)[0]


@pytest.mark.usefixtures("never_teaches")
def test_teach_on_a_bundle_of_trained_weights_asks_for_them(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random ones would be another encoder, and its recipe of no use."""
    shutil.copytree(toy_bundle, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    manifest["encoder"]["trained"] = True
    (tmp_path / "bundle/manifest.json").write_text(json.dumps(manifest))
    arguments = ["--data", toy_frames, "--out", tmp_path / "r.safetensors"]
    status, stderr = sem_clip(capsys, "teach", tmp_path / "bundle", *arguments)
    assert status == 2
    assert "toy needs weights from exactly one source" in errors_in(stderr)[0]


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_inspect_recognizes_the_settings_of_every_method(name: str) -> None:
    settings = json.loads(json.dumps(asdict(teach.METHODS[name][0])))
    assert method_line({"settings": settings}).startswith(f"method {name}, head ")
