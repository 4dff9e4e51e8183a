"""`sem-clip operating-point`: printing, editing and applying an operating point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from calibration_frames import Capture, calibrate, digests, labelled_frames, operating_point
from conftest import make_recipe

from runtime import Recipe
from runtime.manifest import load_bundle


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return labelled_frames(tmp_path)


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_an_operating_point_is_printed_written_edited_and_applied(
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


def test_a_change_by_hand_is_recorded_until_the_next_calibration(fake_bundle: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "point.json"
    assert operating_point(fake_bundle, "--write", file) == 0
    edited(file, defect_threshold=0.75, pixel_threshold=0.2)
    assert operating_point(fake_bundle, "--apply", file) == 0
    assert calibrate(fake_bundle, data, "--defect-rule", "f1-max") == 0
    assert load_bundle(fake_bundle)[1].calibration["changed_by_hand"] == ["pixel_threshold"]


def test_a_recipe_file_is_edited_like_a_bundle(tmp_path: Path) -> None:
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
def test_a_file_without_an_operating_point_is_refused(
    content: bytes | None, says: str, fake_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    if content is not None:
        (tmp_path / "point.json").write_bytes(content)
    assert operating_point(fake_bundle, "--apply", tmp_path / "point.json") == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("target", "says"), [("absent", "does not exist"), ("folder", "it has no manifest.json")])
def test_a_target_that_is_neither_recipe_nor_bundle_is_refused(
    target: str, says: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "folder").mkdir()
    assert operating_point(tmp_path / target) == 2
    assert says in capsys.readouterr().err
