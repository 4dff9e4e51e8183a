"""export.teaching.text_bars: the rows that `--ignore auto` fixes in a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import errors_in, sem_clip
from conftest import make_recipe
from PIL import Image
from sem_files import FEI, grey, tiff, with_bar

from calibration.dataset import load_dataset
from export import teach
from export.teaching import text_bars
from export.teaching.text_bars import MOST_FRAMES, find_text_bars
from runtime.errors import BarsError
from runtime.recipe import FrameOptions, Recipe


def data_folder(folder: Path, rows: tuple[int, ...]) -> Path:
    """Frames of two classes, each with a bar of so many rows."""
    for number, count in enumerate(rows):
        frame = grey(120, 200, seed=number)
        place = folder / "images" / ("good" if number % 2 == 0 else "hole")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(with_bar(frame, count) if count else frame).save(place / f"{number}.png")
    return folder


def test_the_bars_of_a_set_are_found(tmp_path: Path) -> None:
    bars = find_text_bars(load_dataset(data_folder(tmp_path, (20,) * 6)), FrameOptions())
    assert (bars.top, bars.bottom, bars.seen, bars.how) == (0, 20, 6, "pixels")


def test_a_large_set_is_looked_at_in_samples_of_all_classes(tmp_path: Path) -> None:
    dataset = load_dataset(data_folder(tmp_path, (0,) * (MOST_FRAMES + 6)))
    bars = find_text_bars(dataset, FrameOptions())
    assert bars.seen == (MOST_FRAMES + 6) / 2


def test_fewer_large_frames_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_bars, "MOST_PIXELS", 10 * 120 * 200)
    bars = find_text_bars(load_dataset(data_folder(tmp_path, (0,) * 20)), FrameOptions())
    assert bars.seen == 10


def test_metadata_beside_and_in_the_frames_count(tmp_path: Path) -> None:
    for label in ("good", "hole"):
        (tmp_path / "images" / label).mkdir(parents=True)
        (tmp_path / "images" / label / "a.tif").write_bytes(tiff((34682, FEI)))
    bars = find_text_bars(load_dataset(tmp_path), FrameOptions())
    assert (bars.bottom, bars.how, bars.seen) == (16, "metadata", 2)


def test_an_error_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BarsError, match=f"{tmp_path}: frames have different text bars"):
        find_text_bars(load_dataset(data_folder(tmp_path, (20, 20, 20, 30))), FrameOptions())


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[FrameOptions]:
    """The options that teaching was called with; nothing is taught."""
    seen: list[FrameOptions] = []

    def fit(model: object, graph: object, request: teach.TeachRequest, *_: object) -> Recipe:
        seen.append(request.options)
        raise BarsError("far enough")

    monkeypatch.setattr(teach, "teach_recipe", fit)
    return seen


def test_teach_fixes_the_rows_and_says_so(
    toy_bundle: Path, tmp_path: Path, taught: list[FrameOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_folder(tmp_path / "data", (20,) * 6)
    arguments = ["teach", toy_bundle, "--data", data, "--shots", 2, "--out", tmp_path / "r.safetensors"]
    _, stderr = sem_clip(capsys, *arguments, "--ignore", "auto", "--pixel-size", "2.5")
    assert "text bars: 20 rows at the bottom, by the pixels of 6 of 6 frames" in stderr
    (options,) = taught
    assert (options.ignore_top, options.ignore_bottom, options.pixel_size_nm) == (0, 20, (2.5, 2.5))
    assert options.bars is not None
    assert options.bars.bottom == 20
    assert Recipe.from_bytes(make_recipe(frame=options).to_bytes()).frame == options
    _, stderr = sem_clip(capsys, *arguments)
    assert "text bars" not in stderr
    assert taught[1] == FrameOptions()


def test_auto_and_rows_exclude_each_other(
    toy_bundle: Path, tmp_path: Path, taught: list[FrameOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_folder(tmp_path / "data", (20,) * 6)
    arguments = ["teach", toy_bundle, "--data", data, "--out", tmp_path / "r.safetensors", "--ignore", "auto"]
    status, stderr = sem_clip(capsys, *arguments, "--ignore-bottom", 20)
    assert (status, taught) == (2, [])
    assert "leave out --ignore-top and --ignore-bottom" in errors_in(stderr)[0]


def test_frames_that_disagree_end_teaching_with_advice(
    toy_bundle: Path, tmp_path: Path, taught: list[FrameOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_folder(tmp_path / "data", (20, 20, 20, 0))
    arguments = ["teach", toy_bundle, "--data", data, "--out", tmp_path / "r.safetensors", "--ignore", "auto"]
    status, stderr = sem_clip(capsys, *arguments)
    assert (status, taught) == (2, [])
    assert "1 of 4 frames do not have the text bar of the others" in errors_in(stderr)[0]
