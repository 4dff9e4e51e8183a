"""runtime.fab.sem_metadata: what the metadata of frames mean for their answers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import lines_of, sem_clip
from conftest import make_recipe, write_bundle
from predictions import make_prediction
from sem_files import FEI, HITACHI, ZEISS, grey, tiff

from runtime import EncodedFrame, Prediction, Predictor
from runtime.errors import RowError
from runtime.fab.sem_bars import Bars
from runtime.fab.sem_metadata import read_sem_metadata
from runtime.recipe import FrameOptions, Recipe

SIZES = ["width_nm", "height_nm", "equivalent_diameter_nm", "area_nm2"]
BARS = Bars(0, 16, "pixels", 9, 9, 96, (None, 0))


def opened(bundle: Path, **options: Any) -> Predictor:
    return Predictor(bundle, backend="fake", **options)


def test_the_answer_has_the_size_of_a_pixel_by_the_file_or_as_stated(fake_bundle: Path) -> None:
    zeiss, plain = tiff((34118, ZEISS)), tiff()
    with opened(fake_bundle) as predictor:
        assert predictor(zeiss).pixel_size_nm == (7.344, 7.344)
        assert predictor(EncodedFrame("a.tif", zeiss)).pixel_size_nm == (7.344, 7.344)
        assert predictor(plain).pixel_size_nm is None
        assert predictor(grey()).pixel_size_nm is None
        assert [answer.pixel_size_nm for answer in predictor.stream([zeiss, plain])] == [(7.344, 7.344), None]
    with opened(fake_bundle, pixel_size_nm=2) as predictor:
        assert predictor(plain).pixel_size_nm == (2, 2)
        assert predictor(plain).warnings == ()
        answer = predictor(zeiss)
        assert answer.pixel_size_nm == (7.344, 7.344)
        assert "7.344 x 7.344 nm by TIFF tag 34118, which counts, and 2 x 2 nm were stated" in answer.warnings[-1]
    with opened(fake_bundle, pixel_size_nm=(7.34, 7.34)) as predictor:
        assert predictor(zeiss).warnings == ()


@pytest.mark.parametrize("size", [0, -1, 1e9, float("nan"), "7", (1, 2, 3), (1, 0)])
def test_a_size_that_no_pixel_has_is_refused(fake_bundle: Path, size: Any) -> None:
    with pytest.raises(ValueError, match="pixel_size_nm"):
        opened(fake_bundle, pixel_size_nm=size)


def test_side_files_are_read_unless_they_are_not_wanted(fake_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff())
    (tmp_path / "a.txt").write_text(HITACHI)
    with opened(fake_bundle) as predictor:
        assert predictor(tmp_path / "a.tif").pixel_size_nm == (9.921875, 9.921875)
    with opened(fake_bundle, side_files=False) as predictor:
        assert predictor(tmp_path / "a.tif").pixel_size_nm is None


def test_warnings_of_metadata_are_the_answers_own(fake_bundle: Path) -> None:
    with opened(fake_bundle) as predictor:
        answer = predictor(tiff((34118, ZEISS.replace("7.344 nm", "7,344 nm"))))
    assert answer.pixel_size_nm is None
    assert answer.warnings[0].startswith("TIFF tag 34118: pixel_size_nm is not read: ")
    assert answer.to_dict()["warnings"] == list(answer.warnings)


def test_the_recipe_keeps_the_size_of_a_pixel_and_the_bars(tmp_path: Path) -> None:
    frame = FrameOptions(ignore_bottom=16, pixel_size_nm=(3.0, 4.0), bars=BARS)
    recipe = Recipe.from_bytes(make_recipe(frame=frame).to_bytes())
    assert recipe.frame == frame
    assert pickle.loads(pickle.dumps(recipe)).frame == frame
    bundle = write_bundle(tmp_path / "bundle", recipe=recipe)
    with opened(bundle) as predictor:
        assert predictor(tiff()).pixel_size_nm == (3, 4)
    plain = make_recipe()
    assert b"pixel_size_nm" not in plain.to_bytes()
    assert b"bars" not in plain.to_bytes()


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"pixel_size_nm": [1]}, "pixel_size_nm must be 2 finite numbers"),
        ({"pixel_size_nm": [0, 1]}, "pixel_size_nm must lie in"),
        ({"bars": 3}, "bars must be an object"),
        ({"bars": {}}, "bars.top is missing"),
        ({"bars": BARS.to_dict() | {"how": "guessed"}}, "bars.how must be"),
        ({"bars": BARS.to_dict() | {"bottom_level": 3.5}}, "bottom_level must be a whole number"),
        ({"bars": BARS.to_dict() | {"agree": 10}}, "agree must lie in"),
        ({"bars": BARS.to_dict() | {"more": 1}}, "more is not known"),
    ],
)
def test_a_recipe_with_another_entry_is_refused(entry: dict[str, Any], fault: str) -> None:
    from safetensors.numpy import load, save

    from runtime.errors import RecipeError
    from runtime.recipe import METADATA_KEY

    content = make_recipe().to_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA_KEY])
    header["frame"] |= entry
    with pytest.raises(RecipeError, match=fault):
        Recipe.from_bytes(save(load(content), {METADATA_KEY: json.dumps(header)}))


def test_bars_of_the_metadata_that_are_not_ignored_are_a_warning(fake_bundle: Path) -> None:
    fei = tiff((34682, FEI))
    with opened(fake_bundle) as predictor:
        (warning,) = predictor(fei).warnings
        assert "0 rows at the top and 16 at the bottom, and 0 and 0 are ignored" in warning
    with opened(fake_bundle, ignore_bottom=20) as predictor:
        assert predictor(fei).warnings == ()


def test_a_frame_that_denies_the_bars_of_the_recipe_gets_a_warning(tmp_path: Path) -> None:
    recipe = make_recipe(frame=FrameOptions(ignore_bottom=16, bars=BARS))
    bundle = write_bundle(tmp_path / "bundle", recipe=recipe)
    bar = grey()
    bar[-16:] = 0
    with opened(bundle) as predictor:
        assert predictor(bar).warnings == ()
        assert predictor(tiff((34682, FEI), frame=bar)).warnings == ()
        assert "has no text bar in its 16 bottom rows" in predictor(grey()).warnings[0]
        assert "has 80 rows" in predictor(bar[16:]).warnings[0]
        other = tiff((34682, FEI.replace("=80", "=86").replace("=16", "=10")), frame=bar)
        assert "0 rows at the top and 10 at the bottom" in predictor(other).warnings[0]
    with opened(bundle, ignore_bottom=4) as predictor:  # rows of one's own are one's own
        assert predictor(grey()).warnings == ()


def test_regions_have_sizes_in_nm_where_the_size_of_a_pixel_is_known() -> None:
    result = make_prediction(pixel_size_nm=(2.0, 5.0))
    for region in result.regions:
        assert region.width_nm == region.width * 2.0
        assert region.height_nm == region.height * 5.0
        assert region.area_nm2 == region.area * 10.0
        assert region.equivalent_diameter_nm is not None
        assert np.pi * region.equivalent_diameter_nm**2 / 4 == pytest.approx(region.area_nm2)
    summary = result.to_dict()
    assert summary["pixel_size_nm"] == [2.0, 5.0]
    assert summary["regions"][0]["area_nm2"] == float(f"{result.regions[0].area_nm2:.6g}")
    again = Prediction.from_row(result.to_row())
    assert again.pixel_size_nm == (2.0, 5.0)
    assert again.regions == result.regions


def test_without_the_size_of_a_pixel_no_size_is_known() -> None:
    row = make_prediction().to_row()
    assert (row["pixel_width_nm"], row["pixel_height_nm"]) == (None, None)
    assert {row["regions"][0][name] for name in SIZES} == {None}
    again = Prediction.from_row(row)
    assert again.pixel_size_nm is None
    assert again.regions[0].area_nm2 is None


@pytest.mark.parametrize("changes", [{"pixel_width_nm": 3.0}, {"pixel_width_nm": 0.0, "pixel_height_nm": 0.0}])
def test_a_row_with_half_a_pixel_or_none_of_a_size_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(RowError, match="pixel_"):
        Prediction.from_row(make_prediction().to_row() | changes)


def test_predict_takes_the_size_of_a_pixel(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/a.tif").write_bytes(tiff())
    (tmp_path / "frames/b.tif").write_bytes(tiff((34118, ZEISS)))
    (tmp_path / "frames/c.tif").write_bytes(tiff())
    (tmp_path / "frames/c.txt").write_text(HITACHI)
    base = ["predict", fake_bundle, tmp_path / "frames", "--backend", "fake", "--force", "--json", tmp_path / "v.jsonl"]

    def sizes(*options: str) -> list[Any]:
        assert sem_clip(capsys, *base, *options)[0] == 0
        return [line["pixel_size_nm"] for line in lines_of((tmp_path / "v.jsonl").read_text())]

    assert sizes() == [None, [7.344, 7.344], [9.921875, 9.921875]]
    assert sizes("--pixel-size", "3x4", "--no-side-files") == [[3, 4], [7.344, 7.344], [3, 4]]
    for wrong in ("0", "3x", "x3", "3x4x5", "nm", "nan"):
        with pytest.raises(SystemExit):
            sem_clip(capsys, *base, "--pixel-size", wrong)
    assert "must lie in 0.001 to 1e+06 nm, not 0" in capsys.readouterr().err


def test_answers_of_the_real_zeiss_frames_have_sizes(fake_bundle: Path, shared: Path) -> None:
    path = shared / "fixtures/zeiss-tiff/1908248.tif"
    with opened(fake_bundle, ignore_bottom=58) as predictor:
        answer = predictor(path)
        assert answer.pixel_size_nm == (7.344, 7.344)
        assert predictor(EncodedFrame("x", path.read_bytes())).pixel_size_nm == (7.344, 7.344)
        assert read_sem_metadata(path).pixel_size_nm == answer.pixel_size_nm
