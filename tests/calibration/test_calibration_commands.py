"""`sem-clip calibrate` and `sem-clip operating-point`: what they print, what they write, what they leave alone."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from PIL import Image

from calibration import plots
from calibration.commands import Calibrate, EditOperatingPoint
from runtime import Predictor, Recipe
from runtime.cli import describe, run
from runtime.manifest import load_bundle

Capture = pytest.CaptureFixture[str]


def command(kind: Callable[[], Any], *arguments: object) -> int:
    """Run a command as the program does."""
    made = kind()
    parser = describe(argparse.ArgumentParser(), made)
    made.add_arguments(parser)
    return run(made, parser.parse_args([str(argument) for argument in arguments]))


def calibrate(bundle: Path, data: Path, *arguments: object) -> int:
    return command(Calibrate, bundle, data, "--backend", "fake", *arguments)


def operating_point(target: Path, *arguments: object) -> int:
    return command(EditOperatingPoint, target, *arguments)


def paint(path: Path, number: int, brightness: int) -> Path:
    """A frame that the fake backend calls class `number` modulo K and whose map is `brightness` / 255 in the middle."""
    pixels = np.full((64, 64), 10, np.uint8)
    pixels[16:48, 16:48] = brightness
    pixels[0, 0] = number
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:48, 16:48] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 good frames, 15 bridges and 15 holes; good ones are darker; each tenth frame is classified wrong."""
    folder, kinds = tmp_path / "data", (("good", 40, 0), ("bridge", 15, 100), ("hole", 15, 110))
    for label, (name, count, offset) in enumerate(kinds):
        for n in range(count):
            wrong = n % 10 == 9
            paint(folder / "images" / name / f"{n:02d}.png", 3 * n + (label + wrong) % 3, 40 + offset + 2 * n)
            if name != "good":
                mask(folder / "masks" / name / f"{n:02d}.png")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# ---- calibrate -------------------------------------------------------------------------------------------------------


def test_asked_for_nothing_it_takes_the_highest_f1_and_the_temperature(
    fake_bundle: Path, data: Path, capsys: Capture
) -> None:
    assert calibrate(fake_bundle, data) == 0
    out, err = capsys.readouterr()
    _, recipe = load_bundle(fake_bundle)
    point = recipe.operating_point
    assert 0.41 < point.defect_threshold < 0.58
    assert point.temperature != 1
    assert replace(point, defect_threshold=0.5, temperature=1.0) == make_recipe().operating_point
    assert set(recipe.calibration) == {"defect_threshold", "temperature", "data", "before", "after"}
    assert recipe.calibration["data"]["frames"] == {"good": 40, "bridge": 15, "hole": 15}
    assert "defect_threshold by f1-max" in out
    assert "temperature by highest likelihood" in out
    assert "purity 97.1 % (68/70) 97.1 % (68/70)" in " ".join(out.split())
    assert "the recipe does not say which frames taught it" in err


def test_what_is_printed_and_recorded_is_what_the_predictor_then_does(
    fake_bundle: Path, data: Path, tmp_path: Path
) -> None:
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


def test_the_rest_of_the_bundle_is_not_touched(toy_bundle: Path, toy_frames: Path, tmp_path: Path) -> None:
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


def test_a_recipe_file_is_calibrated_without_touching_the_bundle(fake_bundle: Path, data: Path, tmp_path: Path) -> None:
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


def test_a_promise_whose_ground_moved_is_void(fake_bundle: Path, data: Path, capsys: Capture) -> None:
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


# ---- what calibrate refuses ------------------------------------------------------------------------------------------


def remove_class(data: Path, name: str) -> None:
    shutil.rmtree(data / "images" / name)
    shutil.rmtree(data / "masks" / name, ignore_errors=True)


def good_alone(data: Path) -> None:
    for name in ("bridge", "hole"):
        remove_class(data, name)
    shutil.rmtree(data / "masks")


def foreign_class(data: Path) -> None:
    paint(data / "images/crack/0.png", 0, 200)


def broken_frame(data: Path) -> None:
    (data / "images/good/07.png").write_bytes(b"")


def equal_frames(data: Path) -> None:
    for path in (data / "images").rglob("*.png"):
        paint(path, 0, 50)


def flatten(data: Path) -> None:
    for path in (data / "images/good").iterdir():
        path.rename(data / path.name)
    shutil.rmtree(data / "images")


def nothing(data: Path) -> None:
    """The frames as they are."""


@pytest.mark.parametrize(
    ("spoil", "arguments", "says"),
    [
        (nothing, ["--defect-rule", "conformal=0.02"], "at least 49 are needed (1/a - 1); bring 9 more"),
        (nothing, ["--defect-rule", "median"], 'there is no rule "median"'),
        (nothing, ["--pixel-rule", "max-overkill=0.1"], 'there is no rule "max-overkill"; choose one of f1-max, good-'),
        (nothing, ["--report", "/"], "is a folder"),
        (good_alone, [], "holds good frames only, and --defect-rule f1-max needs defects"),
        (good_alone, ["--purity", "0.9"], "holds no frames of bridge, hole"),
        (
            flatten,
            ["--temperature"],
            "is a flat folder of frames without labels, and --temperature needs labelled ones",
        ),
        (flatten, ["--pixel-rule", "f1-max"], "--pixel-rule f1-max needs labelled ones"),
        (lambda data: remove_class(data, "hole"), ["--novelty-quantile", "0.9"], "holds no frames of hole"),
        (lambda data: remove_class(data, "hole"), ["--max-reject", "0.9"], "--max-reject needs frames of every class"),
        (foreign_class, ["--temperature"], "holds classes that the recipe does not know (crack; it knows good, bridge"),
        (broken_frame, [], "1 of 70 frames cannot be scored"),
        (equal_frames, ["--defect-rule", "good-quantile=0.9"], "all 70 scores are equal"),
        (lambda data: shutil.rmtree(data / "masks"), ["--pixel-rule", "f1-max"], "needs a mask"),
        (lambda data: shutil.rmtree(data), [], "there is no folder images/ in it"),
    ],
)
def test_frames_that_cannot_answer_are_refused_and_nothing_is_written(
    spoil: Callable[[Path], object],
    arguments: list[str],
    says: str,
    fake_bundle: Path,
    data: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    spoil(data)
    before = digests(fake_bundle)
    extra = [] if "--report" in arguments else ["--report", str(tmp_path / "report.json")]
    assert calibrate(fake_bundle, data, *arguments, *extra) == 2
    err = capsys.readouterr().err
    assert "error: " in err
    assert says in err
    assert digests(fake_bundle) == before
    assert not (tmp_path / "report.json").exists()


def test_frames_of_another_size_than_the_bundle_takes_are_refused(tmp_path: Path, data: Path, capsys: Capture) -> None:
    bundle = write_bundle(tmp_path / "fixed", encoder=make_encoder(input_size=(96, 128)))
    assert calibrate(bundle, data) == 2
    err = capsys.readouterr().err
    assert "70 of 70 frames cannot be scored" in err
    assert "was exported for frames of 96x128" in err
    assert "... and 65 more" in err


def test_a_new_temperature_asks_for_new_confidence_thresholds(tmp_path: Path, data: Path, capsys: Capture) -> None:
    floors = {"good": 0.0, "bridge": 0.6, "hole": 0.0}
    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(confidence_thresholds=floors))
    assert calibrate(bundle, data, "--temperature") == 2
    assert "choose them again with --purity or --max-reject" in capsys.readouterr().err
    assert calibrate(bundle, data, "--temperature", "--max-reject", "0.5") == 0


def test_frames_that_all_taught_the_recipe_are_refused(tmp_path: Path, data: Path, capsys: Capture) -> None:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (data / "images").rglob("*.png")]
    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(teaching={"support_sha256": hashes}))
    assert calibrate(bundle, data) == 2
    assert "all 70 frames are supports of this recipe" in capsys.readouterr().err


def test_a_class_whose_frames_are_all_supports_has_none(tmp_path: Path, data: Path, capsys: Capture) -> None:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (data / "images/hole").iterdir()]
    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(teaching={"support_sha256": hashes}))
    assert calibrate(bundle, data) == 2
    assert "holds no frames of hole (supports of the recipe left out)" in capsys.readouterr().err


# ---- operating-point -------------------------------------------------------------------------------------------------


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_the_operating_point_is_printed_written_edited_and_put_back(
    fake_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "point.json"
    assert operating_point(fake_bundle) == 0
    printed = capsys.readouterr().out
    assert operating_point(fake_bundle, "--write", file) == 0
    assert file.read_text() == printed
    assert operating_point(fake_bundle, "--write", file) == 2
    before = digests(fake_bundle)
    assert operating_point(fake_bundle, "--apply", file) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert digests(fake_bundle) == before
    edited(file, defect_threshold=0.75, novelty_threshold=0.2)
    assert operating_point(fake_bundle, "--apply", file) == 0
    assert "defect_threshold: 0.5 -> 0.75\nnovelty_threshold: null -> 0.2\n" in capsys.readouterr().out
    manifest, recipe = load_bundle(fake_bundle, verify_all=True)
    assert (recipe.operating_point.defect_threshold, recipe.operating_point.novelty_threshold) == (0.75, 0.2)
    assert recipe.calibration == {"changed_by_hand": ["defect_threshold", "novelty_threshold"]}
    assert set(digests(fake_bundle)) == {"manifest.json", "model.onnx", manifest.recipe_file}
    assert digests(fake_bundle)["model.onnx"] == before["model.onnx"]


def test_what_was_changed_by_hand_is_recorded_until_it_is_calibrated_again(
    fake_bundle: Path, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "point.json"
    assert operating_point(fake_bundle, "--write", file) == 0
    edited(file, defect_threshold=0.75, pixel_threshold=0.2)
    assert operating_point(fake_bundle, "--apply", file) == 0
    assert calibrate(fake_bundle, data, "--defect-rule", "f1-max") == 0
    assert load_bundle(fake_bundle)[1].calibration["changed_by_hand"] == ["pixel_threshold"]


def test_a_recipe_file_is_edited_likewise(tmp_path: Path) -> None:
    file, point = tmp_path / "layer.safetensors", tmp_path / "point.json"
    make_recipe(("good", "Brücke")).save(file)
    assert operating_point(file, "--write", point) == 0
    assert "Brücke" in point.read_text(encoding="utf-8")
    edited(point, review_disagreement=True)
    assert operating_point(file, "--apply", point) == 0
    assert Recipe.load(file).operating_point.review_disagreement


def test_all_faults_of_an_edited_file_are_listed_and_nothing_changes(
    fake_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "point.json"
    file.write_text(
        '{"defect_threshold": 2, "defect_threshold": 3, "colour": "red", "temperature": 0, "novelty_threshold": null,'
        ' "confidence_thresholds": {"good": 0, "bridge": "high", "crack": 0}, "review_disagreement": "no"}'
    )
    before = digests(fake_bundle)
    assert operating_point(fake_bundle, "--apply", file) == 2
    err = capsys.readouterr().err
    for fault in (
        f"{file}: 9 faults:",
        '"defect_threshold" appears twice',
        "operating_point.confidence_thresholds.bridge must be a finite number",
        "operating_point.confidence_thresholds.hole is missing",
        "operating_point.confidence_thresholds.crack is not a class of this recipe",
        "operating_point.defect_threshold must lie in [0, 1], not 3",
        "operating_point.pixel_threshold is missing",
        "operating_point.temperature must lie in [0.01, 100], not 0",
        "operating_point.review_disagreement must be true or false",
        "operating_point.colour is not known to this version",
    ):
        assert fault in err
    assert digests(fake_bundle) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not readable JSON"),
        (b"\xff\xfe", "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"[]", "operating_point must be an object"),
        (b"{}" + b" " * 2**20, "more than the 1,048,576 allowed"),
        (None, "does not exist"),
    ],
)
def test_files_that_are_no_operating_point_are_refused(
    content: bytes | None, says: str, fake_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    if content is not None:
        (tmp_path / "point.json").write_bytes(content)
    assert operating_point(fake_bundle, "--apply", tmp_path / "point.json") == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("target", ["absent", "folder"])
def test_targets_that_are_neither_recipe_nor_bundle_are_refused(target: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "folder").mkdir()
    assert operating_point(tmp_path / target) == 2
    assert "does not exist" in capsys.readouterr().err
