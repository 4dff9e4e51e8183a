"""`sem-clip calibrate`: its output, its files, and what it leaves unchanged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibration_frames import Capture, calibrate, command, digests, labelled_frames
from conftest import make_recipe
from PIL import Image

from calibration import plots
from calibration.commands import Calibrate
from runtime import Predictor, Recipe
from runtime.commands import Inspect
from runtime.fab.drift import Collector, find_drift, read_reference
from runtime.manifest import load_bundle


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return labelled_frames(tmp_path)


def test_without_rules_f1_max_and_the_temperature_are_chosen(fake_bundle: Path, data: Path, capsys: Capture) -> None:
    assert calibrate(fake_bundle, data) == 0
    out, err = capsys.readouterr()
    _, recipe = load_bundle(fake_bundle)
    point = recipe.operating_point
    assert 0.41 < point.defect_threshold < 0.58
    assert point.temperature != 1
    assert replace(point, defect_threshold=0.5, temperature=1.0) == make_recipe().operating_point
    assert set(recipe.calibration) == {"defect_threshold", "temperature", "reference", "data", "before", "after"}
    assert recipe.calibration["data"]["frames"] == {"good": 40, "bridge": 15, "hole": 15}
    assert "defect_threshold by f1-max" in out
    assert "temperature by highest likelihood" in out
    assert "purity 97.1 % (68/70) 97.1 % (68/70)" in " ".join(out.split())
    assert "the recipe does not record which frames taught it" in err


def test_recorded_rates_equal_those_of_the_predictor_afterwards(fake_bundle: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["--defect-rule", "conformal=0.05", "--pixel-rule", "f1-max", "--max-reject", "0.2", "--temperature"]
    report = tmp_path / "new" / "report.json"
    assert calibrate(fake_bundle, data, *arguments, "--novelty-quantile", "0.97", "--report", report) == 0
    document = json.loads(report.read_text())
    with Predictor(fake_bundle, backend="fake") as predictor:
        point = predictor.recipe.operating_point
        paths = sorted((data / "images").rglob("*.png"))
        results = predictor.predict(paths)
    assert document["operating_point"]["after"] == point.to_dict()
    assert document["calibration"] == predictor.recipe.calibration
    labels = [path.parent.name for path in paths]
    good = [result for result, label in zip(results, labels, strict=True) if label == "good"]
    decided = [(r, label) for r, label in zip(results, labels, strict=True) if r.verdict in recipe_classes(predictor)]
    after = document["calibration"]["after"]
    overkill = sum(r.verdict not in ("good", "unknown", "cannot decide") for r in good)
    assert after["overkill"] == {"value": overkill / 40, "count": overkill, "of": 40}
    assert overkill <= sum(r.is_defect for r in good) == 1  # what the rule promised
    assert after["coverage"]["count"] == len(decided)
    assert after["purity"]["count"] == sum(r.verdict == label for r, label in decided)
    assert after["unknown"]["count"] == sum(r.verdict == "unknown" for r in results)
    assert after["cannot decide"]["count"] == sum(r.verdict == "cannot decide" for r in results)
    assert len(decided) >= 0.8 * 70
    assert document["purity_coverage"]["coverage"][-1] == 1
    assert sum(b["frames"] for b in document["reliability"]["after"]) == 70


def recipe_classes(predictor: Predictor) -> tuple[str, ...]:
    return predictor.recipe.classes


def test_calibrate_changes_nothing_but_the_operating_point(toy_bundle: Path, toy_frames: Path, tmp_path: Path) -> None:
    """A real engine, and supports among the frames."""
    bundle = tmp_path / "bundle"
    shutil.copytree(toy_bundle, bundle)
    before, old = digests(bundle), load_bundle(bundle)[1]
    report = tmp_path / "report.json"
    assert command(Calibrate, bundle, toy_frames, "--defect-rule", "max-overkill=0.5", "--report", report) == 0
    after, (manifest, new) = digests(bundle), load_bundle(bundle, verify_all=True)
    for name in ("model.onnx", "model.fp16.onnx"):
        assert after[name] == before[name]
    kept = {"model.onnx", "model.fp16.onnx", "golden.safetensors"}
    assert set(after) == {*kept, "manifest.json", manifest.recipe_file}
    assert new.operating_point.defect_threshold != old.operating_point.defect_threshold
    for name, tensor in old.tensors.items():
        assert new.tensors[name].tobytes() == tensor.tobytes()
    assert new.support_features.tobytes() == old.support_features.tobytes()
    assert new.teaching == old.teaching
    calibration = json.loads(report.read_text())["calibration"]
    assert calibration["data"]["supports_left_out"] == 14
    assert sum(calibration["data"]["frames"].values()) == 14


def test_calibrating_a_recipe_file_leaves_the_bundle_unchanged(fake_bundle: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "layer.safetensors"
    make_recipe(defect_threshold=0.9).save(file)
    before = digests(fake_bundle)
    assert calibrate(fake_bundle, data, "--recipe", file, "--defect-rule", "f1-max") == 0
    assert digests(fake_bundle) == before
    assert Recipe.load(file).operating_point.defect_threshold < 0.58


def test_a_flat_folder_of_good_frames_is_enough_for_a_promise(fake_bundle: Path, data: Path, capsys: Capture) -> None:
    good = data / "images" / "good"
    assert calibrate(fake_bundle, good, "--defect-rule", "conformal=0.05", "--pixel-rule", "good-quantile=0.9") == 0
    out, err = capsys.readouterr()
    assert "no labels: all 40 frames are taken to be good" in err
    assert "at most 4.88% on average" in out  # 2 of 41
    assert "underkill no such frames no such frames" in " ".join(out.split())


def test_earlier_choices_stay_recorded(fake_bundle: Path, data: Path) -> None:
    assert calibrate(fake_bundle, data, "--defect-rule", "conformal=0.05") == 0
    assert calibrate(fake_bundle, data, "--novelty-quantile", "1") == 0
    calibration = load_bundle(fake_bundle)[1].calibration
    assert calibration["defect_threshold"]["rule"] == "conformal=0.05"
    assert calibration["novelty_threshold"]["rule"] == "novelty-quantile=1"


def test_a_promise_is_void_once_a_number_it_depends_on_changes(fake_bundle: Path, data: Path, capsys: Capture) -> None:
    assert calibrate(fake_bundle, data, "--max-reject", "0.5") == 0
    first = load_bundle(fake_bundle)[1].calibration["confidence_thresholds"]
    assert calibrate(fake_bundle, data, "--pixel-rule", "good-quantile=0.99") == 0
    assert load_bundle(fake_bundle)[1].calibration["confidence_thresholds"] == first
    assert calibrate(fake_bundle, data, "--novelty-quantile", "0.8") == 0
    record = load_bundle(fake_bundle)[1].calibration
    assert record["confidence_thresholds"] == {
        "rule": "max-reject=0.5",
        "data": "data",
        "promise": "void: chosen before novelty_threshold changed",
    }
    assert "void" not in record["novelty_threshold"]["promise"]
    assert calibrate(fake_bundle, data, "--max-reject", "0.5") == 0
    assert "void" not in load_bundle(fake_bundle)[1].calibration["confidence_thresholds"]["promise"]


def test_pictures_are_written(fake_bundle: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert calibrate(fake_bundle, data, "--plots", tmp_path / "plots") == 0
    for name in ("purity_coverage.png", "reliability.png"):
        with Image.open(tmp_path / "plots" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    assert calibrate(fake_bundle, data, "--plots", tmp_path / "plots") == 2


def test_without_matplotlib_pictures_are_refused_before_any_work(
    fake_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    before = digests(fake_bundle)
    assert calibrate(fake_bundle, data, "--plots", tmp_path / "plots") == 2
    assert 'pip install "sem-clip[plots]"' in capsys.readouterr().err
    with pytest.raises(plots.PlotsUnavailable):
        plots.require_matplotlib()
    assert digests(fake_bundle) == before


def test_the_recipe_keeps_what_lots_are_compared_with(fake_bundle: Path, data: Path, capsys: Capture) -> None:
    assert calibrate(fake_bundle, data, "--defect-rule", "f1-max", "--max-reject", "0.2") == 0
    frames = Collector()
    with Predictor(fake_bundle, backend="fake") as predictor:
        for result in predictor.predict(sorted((data / "images").rglob("*.png"))):
            frames.add(result.label, result.score, result.novelty, result.verdict)
        reference = read_reference(predictor.recipe)
    assert isinstance(reference, dict)
    assert {name: group.frames for name, group in reference.items()} == {
        name: group.frames for name, group in frames.groups().items()
    }
    assert sum(group.rejected for group in reference.values()) > 0
    drift = find_drift(frames.groups(), reference)
    assert drift.changes
    assert all(change.p > 0.5 for change in drift.changes)
    capsys.readouterr()
    assert command(Inspect, fake_bundle) == 0
    assert "drift of lots: tested against 70 calibration frames" in capsys.readouterr().out
