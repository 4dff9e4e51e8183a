"""`sem-clip calibrate`: frames and requests that it refuses, with nothing written."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from calibration_frames import Capture, calibrate, digests, labelled_frames, paint
from conftest import make_encoder, make_recipe, write_bundle


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return labelled_frames(tmp_path)


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
    """Leave the frames unchanged."""


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
def test_frames_that_do_not_fit_the_request_are_refused_and_nothing_is_written(
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
