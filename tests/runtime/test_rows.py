"""Answers as flat rows: all that draws comes back to the bit, and a damaged row is refused by name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import write_frame
from places import ROOT
from predictions import frame, make_prediction

from runtime import FailedFrame, FrameError, FrameOptions, Prediction, Predictor, RowError
from runtime.manifest import load_bundle
from runtime.prediction import read_result
from runtime.rows import COLUMNS, NAMES

DRAWN = (
    *("source", "verdict", "reason", "is_defect", "label", "confidence", "score", "probabilities", "head_class"),
    *("map_score", "peak", "novelty", "frame_size", "image_size", "ignored_rows", "defect_threshold"),
    *("pixel_threshold", "smoothing_px", "backend", "timings_ms", "frame_options", "checksum", "warnings"),
    *("encoder_id", "recipe_sha256", "regions"),
)


@pytest.fixture
def predictor(fake_bundle: Path) -> Iterator[Predictor]:
    with Predictor(fake_bundle, backend="fake") as opened:
        yield opened


def assert_same(one: Prediction, other: Prediction) -> None:
    """Equal to the bit in all that draws and decides."""
    for name in DRAWN:
        assert getattr(one, name) == getattr(other, name), name
    assert one.patch_map.tobytes() == other.patch_map.tobytes()
    assert one.defect_map().tobytes() == other.defect_map().tobytes()
    assert one.mask().tobytes() == other.mask().tobytes()
    assert one.mask(0.3).tobytes() == other.mask(0.3).tobytes()
    assert one.to_dict() == other.to_dict()


def strange() -> list[Prediction]:
    """Answers at the edges: no defect, a peak below the threshold, a map of one row, no map in Fortran's order."""
    low = make_prediction(pixel_threshold=1.5)
    patches = np.full((1, 7), 0.1 + 1e-9, np.float32)
    flat = make_prediction(patch_map=patches, frame_size=(1, 999), ignored_rows=(0, 0), frame_options=FrameOptions())
    good = make_prediction(is_defect=False, verdict="good", label="good", warnings=("tag 6 — ignored", "dark"))
    turned = make_prediction(patch_map=np.asfortranarray(np.random.default_rng(3).random((3, 5), np.float32)))
    return [make_prediction(), low, flat, good, turned, make_prediction(checksum=2**32 - 1, score=math.nextafter(1, 0))]


@pytest.mark.parametrize("number", range(6))
def test_a_row_gives_the_answer_back_to_the_bit(number: int) -> None:
    answer = strange()[number]
    assert_same(Prediction.from_row(answer.to_row()), answer)


def test_a_row_draws_the_same_overlay() -> None:
    answer = make_prediction()
    again = Prediction.from_row(answer.to_row())
    assert again.overlay(frame()).tobytes() == answer.overlay(frame()).tobytes()
    with pytest.raises(FrameError, match="needs the frame again"):
        again.overlay()


def test_the_answer_to_a_file_draws_on_it_and_on_no_other(predictor: Predictor, tmp_path: Path) -> None:
    path = write_frame(tmp_path / "frame.png", 1, defect=True)
    answer = predictor(path)
    again = Prediction.from_row(answer.to_row())
    assert_same(again, answer)
    assert (again.path, again.checksum) == (None, answer.checksum)
    assert again.overlay(again.source).tobytes() == answer.overlay().tobytes()
    write_frame(path, 2)
    with pytest.raises(FrameError, match="has changed since it was judged"):
        again.overlay(path)


def test_an_answer_names_its_encoder_and_its_recipe(predictor: Predictor, fake_bundle: Path, tmp_path: Path) -> None:
    manifest, recipe = load_bundle(fake_bundle)
    row = predictor(write_frame(tmp_path / "frame.png")).to_row()
    assert (row["encoder_id"], row["recipe_sha256"]) == (manifest.encoder.id, manifest.recipe_sha256)
    assert recipe.sha256() == manifest.recipe_sha256


def test_a_row_is_flat_and_made_of_pythons_own_values() -> None:
    row = make_prediction(features=np.ones(3, np.float32)).to_row(features=True)
    assert tuple(row) == NAMES == tuple(column.name for column in COLUMNS)
    kinds = {bool, int, float, str, bytes, list, dict, type(None)}
    inner = [*row["regions"][0].values(), *row["probabilities"].values(), *row["timings_ms"].values(), *row["features"]]
    assert {type(value) for value in (*row.values(), *inner)} <= kinds
    assert row["features"] == [1.0, 1.0, 1.0]
    row["patch_map"] = None
    assert json.loads(json.dumps(row)) == row


def test_features_are_given_when_asked_for_and_come_back(predictor: Predictor) -> None:
    answer = predictor(np.full((64, 64), 9, np.uint8))
    assert answer.to_row()["features"] is None
    assert Prediction.from_row(answer.to_row()).features.shape == (0,)
    again = Prediction.from_row(answer.to_row(features=True))
    assert again.features.dtype == np.float32
    assert again.features.tobytes() == answer.features.tobytes()


def test_a_frame_that_was_not_read_is_a_row_too() -> None:
    failed = FailedFrame("a.png", FrameError("a.png", "is empty (0 bytes)"))
    row = failed.to_row(features=True)
    assert tuple(row) == NAMES
    assert {name: value for name, value in row.items() if value is not None} == failed.to_dict()
    again = read_result(row)
    assert isinstance(again, FailedFrame)
    assert (again.to_dict(), str(again.error)) == (failed.to_dict(), "a.png: is empty (0 bytes)")
    assert isinstance(read_result(make_prediction().to_row()), Prediction)
    with pytest.raises(RowError, match=r"^a.png: the row has no answer, the frame was not read: is empty"):
        Prediction.from_row(row)


def test_a_name_that_is_no_utf8_is_written_as_in_the_json_lines() -> None:
    name = b"lot/\xff\xe9.png".decode("utf-8", "surrogateescape")
    row = make_prediction(source=name).to_row()
    assert row["source"] == r"lot/\udcff\udce9.png"
    assert json.dumps(name) == f'"{row["source"]}"'
    assert make_prediction(source="\u6ce2/\u00e9").to_row()["source"] == "\u6ce2/\u00e9"
    assert FailedFrame(name, FrameError(name, "x")).to_row()["source"] == row["source"]


def test_what_tables_make_of_a_row_is_read() -> None:
    """pyarrow has pairs for a mapping; pandas arrays, floats for whole numbers and NaN for null; DuckDB bytearrays."""
    answer = make_prediction(warnings=("dark",), checksum=7)
    row = answer.to_row(features=True)
    row["probabilities"] = list(row["probabilities"].items())
    row["timings_ms"] = tuple(row["timings_ms"].items())
    row["regions"] = np.array(row["regions"], object)
    row["warnings"] = np.array(row["warnings"], object)
    row["features"] = np.array(row["features"], np.float32)
    row["patch_map"] = bytearray(row["patch_map"])
    row["is_defect"] = np.bool_(row["is_defect"])
    row |= {"frame_height": 90.0, "map_rows": np.int64(4), "checksum": 7.0, "score": np.float64(row["score"])}
    row |= {"error": float("nan"), "lot": "a column of the caller's"}
    assert_same(Prediction.from_row(row), answer)


BAD: dict[str, tuple[str, Any, str]] = {
    "missing": ("verdict", ..., "verdict is missing"),
    "null": ("patch_map", None, "patch_map is empty"),
    "text": ("verdict", 7, "verdict must be str, not int"),
    "flag": ("is_defect", "yes", "is_defect must be bool, not str"),
    "bytes": ("patch_map", "00", "patch_map must be bytes, not str"),
    "short map": ("patch_map", b"1234", "patch_map must hold 4 x 4 float32"),
    "map of NaN": ("patch_map", np.full(16, np.nan, "<f4").tobytes(), r"patch_map must lie in \[0, 1\]"),
    "map of 2": ("patch_map", np.full(16, 2, "<f4").tobytes(), r"patch_map must lie in \[0, 1\]"),
    "number": ("score", 1.5, r"score must be a finite number in \[0, 1\], not 1.5"),
    "infinite": ("defect_threshold", math.inf, "defect_threshold must be a finite number"),
    "beyond all floats": ("defect_threshold", 10**400, "defect_threshold must be a finite number"),
    "a flag as number": ("score", True, "score must be a finite number"),
    "fraction": ("frame_height", 90.5, "frame_height must be a whole number"),
    "side": ("frame_width", 10**6, r"frame_width must be a whole number in \[1, 65535\], not 1000000"),
    "grid": ("map_rows", 70000, r"map_rows must be a whole number in \[1, 65536\]"),
    "smoothing": ("smoothing_px", 9.0, "smoothing_px must fit an image of"),
    "ignored": ("ignored_top", 80, "must leave a row of the frame"),
    "white": ("white_level", 0, "white_level must be a whole number in"),
    "label": ("label", "hole", "label must be one of the probabilities"),
    "no regions": ("regions", [], "a defect must have regions"),
    "region": ("regions", [{"x": 1}], "regions must have x, y"),
    "region of texts": ("regions", ["x"], "regions must have x, y"),
    "regions": ("regions", "none", "regions must be a list"),
    "mapping": ("probabilities", [("good", 0.5, 1)], "probabilities must map texts to numbers"),
    "twice": ("probabilities", [("bridge", 0.5), ("bridge", 0.5)], "each text once"),
    "probability": ("probabilities", {"bridge": 2.0}, r"probabilities must be a finite number in \[0, 1\]"),
    "none": ("probabilities", {"bridge": None}, "probabilities must be a finite number"),
    "warnings": ("warnings", [7], "warnings must hold texts"),
    "features": ("features", [math.inf], "features must hold finite numbers"),
    "checksum": ("checksum", -1, "checksum must be a whole number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_row_is_refused_by_column(name: str) -> None:
    column, value, told = BAD[name]
    row = make_prediction().to_row(features=True)
    if value is ...:
        del row[column]
    else:
        row[column] = value
    with pytest.raises(RowError, match=rf"^lot7/frame.png: is no row of schema version 1: .*{told}"):
        Prediction.from_row(row)


def test_a_frame_of_too_many_pixels_is_refused_before_a_map_is_drawn() -> None:
    row = {**make_prediction().to_row(), "frame_width": 65535, "frame_height": 65535}
    with pytest.raises(RowError, match="must not have more than 100,000,000 pixels"):
        Prediction.from_row(row)


def test_a_defect_is_what_has_regions() -> None:
    with pytest.raises(RowError, match="a defect must have regions, and nothing else may"):
        Prediction.from_row({**make_prediction().to_row(), "is_defect": False})


def test_all_faults_of_a_row_are_told() -> None:
    with pytest.raises(RowError) as caught:
        Prediction.from_row({"source": "a.png", "verdict": 1})
    assert str(caught.value).count(" is missing") == len(COLUMNS) - 2 - 5  # two are there, five may be absent
    assert "verdict must be str" in str(caught.value)


@pytest.mark.parametrize("row", [None, [], "row", {"error": None}, {"source": None, "error": "x"}, {"source": 7}])
def test_what_is_no_row_is_refused(row: Any) -> None:
    with pytest.raises(RowError, match=r"a row is a mapping|source"):
        read_result(row)


def test_the_docs_list_these_columns_in_this_order() -> None:
    page = (ROOT / "docs" / "archives.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == NAMES
