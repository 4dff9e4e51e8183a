"""`sem-clip predict --overlays`: names and content of the pictures, and what happens where one cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commandline import lines_of, names_in, predict, three_frames, write_frame, write_stack
from PIL import Image

from runtime import FrameError, Prediction, Predictor
from runtime import commands as commands_module

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames, the second a defect."""
    return three_frames(tmp_path / "frames")


def test_overlays_are_the_pictures_of_the_predictions(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    assert predict(fake_bundle, frames, "--overlays", tmp_path / "deep" / "overlays") == 0
    assert names_in(tmp_path / "deep" / "overlays") == ["a.png", "b.png", "c.png"]
    with Predictor(fake_bundle, backend="fake") as predictor:
        expected = np.asarray(predictor(frames / "b.png").overlay())
    with Image.open(tmp_path / "deep" / "overlays" / "b.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["a/x.png", "b/x.png"], ["a_x.png", "b_x.png"]),
        (["lot1/a/x.png", "lot2/a/x.png"], ["lot1_a_x.png", "lot2_a_x.png"]),
        (["x.png", "y/x.png"], ["x.png", "y_x.png"]),
        (["a/x.png", "b/y.png"], ["x.png", "y.png"]),
        (["x.png", "x.tif"], ["000000_x.png", "000001_x.png"]),
        (["a_b/c.png", "a/b/c.png", "x/b/c.png"], ["000000_a_b_c.png", "000001_a_b_c.png", "000002_x_b_c.png"]),
    ],
)
def test_each_frame_has_a_picture_of_its_own(
    names: list[str],
    pictures: list[str],
    fake_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for number, name in enumerate(names):
        write_frame(Path(name), number)
    assert predict(fake_bundle, *names, "--overlays", tmp_path / "overlays") == 0
    assert names_in(tmp_path / "overlays") == sorted(pictures)
    for number, picture in enumerate(pictures):
        with Image.open(tmp_path / "overlays" / picture) as image:
            assert image.getpixel((0, 0)) == (number, number, number)


def test_pages_have_pictures_of_their_own(fake_bundle: Path, tmp_path: Path) -> None:
    write_stack(tmp_path / "lot" / "stack.tif", 2)
    assert predict(fake_bundle, tmp_path / "lot", "--overlays", tmp_path / "overlays") == 0
    assert names_in(tmp_path / "overlays") == ["stack-1.png", "stack-2.png"]


def test_an_empty_overlay_folder_may_be_there_already(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "overlays").mkdir()
    assert predict(fake_bundle, frames, "--overlays", tmp_path / "overlays") == 0
    assert len(names_in(tmp_path / "overlays")) == 3


def test_a_frame_that_is_gone_loses_only_its_overlay(
    fake_bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    drawn = Prediction.overlay

    def overlay(prediction: Prediction) -> Image.Image:
        if prediction.source.endswith("b.png"):
            Path(prediction.source).unlink()
        return drawn(prediction)

    monkeypatch.setattr(Prediction, "overlay", overlay)
    out, pictures = tmp_path / "v.jsonl", tmp_path / "o"
    assert predict(fake_bundle, frames, "--json", out, "--overlays", pictures) == 1
    assert [line["raw"]["head_class"] for line in lines_of(out.read_text())] == ["good", "bridge", "hole"]
    assert names_in(pictures) == ["a.png", "c.png"]
    assert f"no overlay: {frames / 'b.png'}: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device", "x"), FrameError("b.png", "is gone")])
def test_an_overlay_that_cannot_be_written_is_the_only_loss(
    failure: Exception,
    fake_bundle: Path,
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    saved = commands_module._save_overlay

    def save(result: Prediction, path: Path) -> None:
        if path.name == "b.png":
            raise failure
        saved(result, path)

    monkeypatch.setattr(commands_module, "_save_overlay", save)
    out = tmp_path / "v.jsonl"
    assert predict(fake_bundle, frames, "--json", out, "--overlays", tmp_path / "o") == 1
    assert [line["raw"]["head_class"] for line in lines_of(out.read_text())] == ["good", "bridge", "hole"]
    assert names_in(tmp_path / "o") == ["a.png", "c.png"]
    assert "  no overlay: " in capsys.readouterr().err


def test_a_frame_of_the_longest_name_has_its_overlay(fake_bundle: Path, tmp_path: Path) -> None:
    write_frame(tmp_path / "lot" / ("x" * 251 + ".png"))
    assert predict(fake_bundle, tmp_path / "lot", "--overlays", tmp_path / "o") == 0
    assert names_in(tmp_path / "o") == ["x" * 251 + ".png"]


@pytest.mark.parametrize("place", ["frames", "frames/../frames", "."])
def test_overlays_are_not_put_among_the_frames(
    place: str, fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert predict(fake_bundle, frames, "--overlays", tmp_path / place, "--force") == 2
    assert "holds frames that are judged" in capsys.readouterr().err
    assert names_in(frames) == ["a.png", "b.png", "c.png"]
    assert predict(fake_bundle, frames, "--overlays", frames / "overlays") == 0
