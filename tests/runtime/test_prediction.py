"""runtime.prediction: what a verdict says, draws and writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_recipe
from PIL import Image
from predictions import SIZE, frame, hot_map, make_prediction

from runtime.errors import FrameError
from runtime.maps import upsample
from runtime.prediction import FailedFrame, summarize
from runtime.recipe import FrameOptions

KEYS = [
    "source",
    "verdict",
    "reason",
    "is_defect",
    "label",
    "confidence",
    "score",
    "defect_threshold",
    "frame_size",
    "ignored_rows",
    "pixel_size_nm",
    "regions",
    "raw",
    "backend",
    "timings_ms",
]
SIZES = ["width_nm", "height_nm", "equivalent_diameter_nm", "area_nm2"]
REGION_KEYS = ["x", "y", "width", "height", "area", "centroid", "peak", "below_threshold", *SIZES]


def test_the_map_has_the_size_of_the_frame_and_is_zero_in_ignored_rows() -> None:
    result = make_prediction(ignored_rows=(6, 10))
    full = result.defect_map()
    assert full.shape == SIZE
    assert full.dtype == np.float32
    assert not full[:6].any()
    assert not full[80:].any()
    np.testing.assert_array_equal(full[6:80], upsample(hot_map(), (74, 120), (64, 64), 2.0))
    assert full[6:80].min() > 0


@pytest.mark.parametrize(
    ("size", "top", "bottom"), [((180, 240), 12, 20), ((45, 60), 3, 5), ((90, 10), 6, 10), ((30, 200), 2, 3)]
)
def test_the_map_can_have_any_size(size: tuple[int, int], top: int, bottom: int) -> None:
    full = make_prediction(ignored_rows=(6, 10)).defect_map(size)
    assert full.shape == size
    assert not full[:top].any()
    assert not full[size[0] - bottom :].any()
    assert full[top : size[0] - bottom].min() > 0


def test_a_size_without_judged_rows_gives_zeros() -> None:
    full = make_prediction(ignored_rows=(89, 0)).defect_map((1, 5))
    assert full.shape == (1, 5)
    assert not full.any()


def test_the_mask_holds_what_reaches_the_threshold() -> None:
    result = make_prediction(ignored_rows=(0, 0))
    full = result.defect_map()
    assert result.mask().dtype == bool
    np.testing.assert_array_equal(result.mask(), full >= 0.5)
    np.testing.assert_array_equal(result.mask(0.8), full >= 0.8)
    value = float(full[40, 40])
    assert result.mask(value)[40, 40]
    assert not result.mask(1.01).any()


@pytest.mark.parametrize(("top", "bottom"), [(0, 0), (6, 0), (0, 10), (6, 10)])
def test_a_threshold_of_0_takes_all_rows_but_the_ignored(top: int, bottom: int) -> None:
    mask = make_prediction(ignored_rows=(top, bottom), pixel_threshold=0.0).mask()
    expected = np.ones(SIZE, bool)
    expected[:top] = False
    expected[90 - bottom :] = False
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(make_prediction(ignored_rows=(top, bottom)).mask(0), expected)


def test_regions_lie_where_the_map_is_hot() -> None:
    strong, weak = make_prediction(ignored_rows=(0, 0)).regions
    assert strong.peak > weak.peak
    assert 30 <= strong.centroid[0] < 60
    assert 22 <= strong.centroid[1] < 45
    assert (weak.x + weak.width, weak.y + weak.height) == (120, 90)
    assert strong.area + weak.area == make_prediction(ignored_rows=(0, 0)).mask().sum()


def test_a_frame_that_is_no_defect_has_no_regions() -> None:
    good = make_prediction(is_defect=False)
    assert good.mask(0.5).any()
    assert not good.mask().any()
    assert good.regions == ()
    assert good.to_dict()["regions"] == []


def test_a_defect_whose_map_stays_below_the_pixel_threshold_has_the_region_around_its_peak() -> None:
    result = make_prediction(pixel_threshold=1.0, patch_map=hot_map() * np.float32(0.5))
    (region,) = result.regions
    assert region.below_threshold
    assert not any(region.below_threshold for region in make_prediction().regions)
    full = result.defect_map()
    inside = result.mask()
    assert inside.sum() == region.area
    assert inside[np.unravel_index(full.argmax(), full.shape)]
    # Found at the encoder's size, so its edge is true to about a pixel of that.
    half = (full.max() + 0.05) / 2
    assert full[inside].min() >= half - 0.05
    assert full[:50][~inside[:50]].max() < half + 0.05
    assert result.to_dict()["regions"][0]["below_threshold"] is True


@pytest.mark.parametrize("size", [(90, 120), (11, 12), (700, 30)])
def test_the_outline_that_is_drawn_is_that_of_the_mask(size: tuple[int, int]) -> None:
    for threshold in (0.3, 1.0):
        result = make_prediction(pixel_threshold=threshold, frame_size=size, patch_map=hot_map() * np.float32(0.9))
        drawn = np.asarray(result.overlay(np.zeros(size, np.uint8)))
        yellow = (drawn == (255, 220, 0)).all(axis=2)
        assert yellow.any()
        assert not (yellow & ~result.mask()).any()
        assert len(result.regions) >= 1


@pytest.mark.parametrize("rows", [(0, 0), (6, 10)])
def test_a_defect_on_a_flat_map_is_all_that_was_judged(rows: tuple[int, int]) -> None:
    result = make_prediction(pixel_threshold=1.0, patch_map=np.full((4, 4), 0.25, np.float32), ignored_rows=rows)
    (region,) = result.regions
    assert (region.y, region.height, region.width) == (rows[0], 90 - sum(rows), 120)
    assert region.below_threshold


def test_regions_are_found_once() -> None:
    result = make_prediction()
    assert result.regions is result.regions


def test_the_summary_is_json_with_exactly_these_keys() -> None:
    result = make_prediction()
    summary = result.to_dict()
    assert list(summary) == KEYS
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert len(summary["regions"]) == len(result.regions) == 2
    for written, region in zip(summary["regions"], result.regions, strict=True):
        assert list(written) == REGION_KEYS
        box = [region.x, region.y, region.width, region.height, region.area]
        assert [written[key] for key in REGION_KEYS[:5]] == box
        assert written["centroid"] == pytest.approx(region.centroid, abs=0.005)
        assert written["peak"] == pytest.approx(region.peak, abs=1e-6)
        assert [written[key] for key in SIZES] == [None] * 4
    del summary["regions"]
    assert summary == {
        "source": "lot7/frame.png",
        "verdict": "cannot decide",
        "reason": "bridge 0.875 against good 0.125; bridge is decided from 0.900 on",
        "label": "bridge",
        "confidence": 0.875,
        "is_defect": True,
        "score": 0.7512345678,
        "defect_threshold": 0.5,
        "frame_size": [90, 120],
        "ignored_rows": [0, 10],
        "pixel_size_nm": None,
        "raw": {
            "head_class": "bridge",
            "probabilities": {"good": 0.125, "bridge": 0.875},
            "map_score": 0.712346,
            "peak": 0.987654,
            "novelty": 0.012346,
        },
        "backend": "fake",
        "timings_ms": {"prepare": 1.235, "infer": 2.0, "postprocess": 0.1},
    }


def test_a_prediction_is_frozen_and_equal_to_itself_alone() -> None:
    result = make_prediction()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.label = "good"  # type: ignore[misc]
    others = [make_prediction(), result]
    assert others.index(result) == 1
    assert len({result, result, others[0]}) == 2


@pytest.mark.parametrize("part", ["regions", "mask", "defect_map", "overlay"])
def test_a_picture_that_finds_no_memory_is_a_typed_error(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("runtime.prediction.upsample", none_left)
    result = make_prediction(is_defect=True)
    with pytest.raises(FrameError, match="needs more memory than is left"):
        getattr(result, part)(*([np.zeros(result.frame_size, np.uint8)] if part == "overlay" else []))


def test_its_text_form_is_short() -> None:
    text = repr(make_prediction())
    assert "bridge" in text
    assert "array" not in text
    assert len(text) < 400


def test_a_good_frame_is_drawn_as_it_is() -> None:
    grey = frame()
    picture = make_prediction(is_defect=False).overlay(grey)
    assert picture.mode == "RGB"
    assert picture.size == (120, 90)
    np.testing.assert_array_equal(np.asarray(picture), np.repeat(grey[:, :, None], 3, axis=2))


def test_a_defect_is_drawn_red_with_a_yellow_outline() -> None:
    grey = frame()
    result = make_prediction()
    picture = np.asarray(result.overlay(grey)).astype(int)
    mask = result.mask()
    yellow = (picture == (255, 220, 0)).all(axis=2)
    inner = mask.copy()
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    inner[[0, -1]] = inner[:, [0, -1]] = False
    inner[:, -1] = inner[:, 0] = False
    np.testing.assert_array_equal(yellow, mask & ~inner)
    assert (picture[inner][:, 0] > picture[inner][:, 2]).all()
    # the text bar was not looked at and is drawn as it is
    np.testing.assert_array_equal(picture[80:], np.repeat(grey[80:, :, None], 3, axis=2))


def test_a_frame_that_came_from_a_file_is_read_again(tmp_path: Path) -> None:
    Image.fromarray(frame()).save(tmp_path / "frame.png")
    result = make_prediction(path=str(tmp_path / "frame.png"))
    np.testing.assert_array_equal(np.asarray(result.overlay()), np.asarray(result.overlay(frame())))


def test_a_page_is_read_again_as_that_page(tmp_path: Path) -> None:
    pages = [Image.fromarray(frame()[::-1].copy()), Image.fromarray(frame())]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    result = make_prediction(path=f"{tmp_path / 'stack.tif'}#2", is_defect=False)
    np.testing.assert_array_equal(np.asarray(result.overlay())[:, :, 0], frame())


def test_an_overlay_scales_16_bit_frames_as_the_prediction_did() -> None:
    deep = frame().astype(np.uint16) * 16
    result = make_prediction(is_defect=False, frame_options=FrameOptions(white_level=4080))
    np.testing.assert_array_equal(np.asarray(result.overlay(deep))[:, :, 0], frame())


def test_an_overlay_of_an_array_needs_the_array() -> None:
    with pytest.raises(FrameError) as caught:
        make_prediction().overlay()
    assert str(caught.value) == ("lot7/frame.png: overlay() needs the frame again, because it did not come from a file")


@pytest.mark.parametrize("given", [False, True], ids=["file changed", "other frame"])
def test_an_overlay_on_a_frame_of_another_size_is_refused(given: bool, tmp_path: Path) -> None:
    Image.fromarray(frame()[:50]).save(tmp_path / "frame.png")
    result = make_prediction(path=str(tmp_path / "frame.png"))
    with pytest.raises(FrameError) as caught:
        result.overlay(frame()[:50] if given else None)
    assert caught.value.source == "lot7/frame.png"
    assert caught.value.reason == "is [50, 120] now and was [90, 120] when predicted"


def test_an_overlay_of_a_file_that_is_gone_is_a_frame_error(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="no such file"):
        make_prediction(path=str(tmp_path / "gone.png")).overlay()


def test_a_failed_frame_has_its_source_and_reason() -> None:
    failed = FailedFrame("a.png", FrameError("a.png", "is empty (0 bytes)"))
    assert failed.to_dict() == {"source": "a.png", "error": "is empty (0 bytes)"}
    assert json.dumps(failed.to_dict())
    assert not failed.ok
    assert make_prediction().ok
    with pytest.raises(dataclasses.FrozenInstanceError):
        failed.source = "b.png"  # type: ignore[misc]


@pytest.mark.parametrize(("threshold", "verdict"), [(0.0, True), (0.4, True), (0.5, True), (0.51, False), (1.0, False)])
def test_a_score_that_reaches_the_threshold_is_a_defect(threshold: float, verdict: bool) -> None:
    recipe = make_recipe(defect_threshold=threshold)
    probabilities = np.array([0.375, 0.125, 0.5], np.float32)
    patches, features = np.full((4, 4), 0.5, np.float32), recipe.support_features[2]
    (summary,) = summarize(probabilities[None], patches[None], features[None], recipe, (64, 64), 0.0)
    reason = "hole 0.500; defect score 0.500 reaches" if verdict else "defect score 0.500 is below"
    assert summary.pop("reason").startswith(f"{reason} {threshold:.3f}")
    assert summary == {
        "verdict": "hole" if verdict else "good",
        "is_defect": verdict,
        "label": "hole" if verdict else "good",
        "confidence": 0.5 if verdict else 0.375,
        "score": 0.5,
        "probabilities": {"good": 0.375, "bridge": 0.125, "hole": 0.5},
        "head_class": "hole",
        "map_score": 0.5,
        "peak": 0.5,
        "novelty": pytest.approx(0, abs=1e-6),
    }
    assert type(summary["is_defect"]) is bool


def test_temperature_moves_the_confidence_and_not_the_label() -> None:
    given = np.array([0.1, 0.3, 0.6], np.float32)
    outputs = given[None], hot_map()[None], np.ones((1, 385), np.float32)
    summaries = [summarize(*outputs, make_recipe(temperature=t), (64, 64), 0.0)[0] for t in (0.5, 1.0, 2.0)]
    assert [summary["label"] for summary in summaries] == ["hole"] * 3
    assert summaries[1]["probabilities"] == dict(zip(("good", "bridge", "hole"), given.tolist(), strict=True))
    sharp, plain, soft = (summary["confidence"] for summary in summaries)
    assert sharp == pytest.approx(0.36 / 0.46)
    assert sharp > plain > soft
    for summary in summaries:
        assert sum(summary["probabilities"].values()) == pytest.approx(1)


def test_the_likeliest_class_is_kept_in_addition_to_the_verdict() -> None:
    given, features = np.array([[0.8, 0.05, 0.15]], np.float32), np.ones((1, 385), np.float32)
    (summary,) = summarize(given, hot_map()[None], features, make_recipe(), (64, 64), 0.0)
    assert (summary["head_class"], summary["verdict"], summary["label"]) == ("good", "hole", "hole")
    assert summary["is_defect"]
    assert summary["confidence"] == pytest.approx(0.15)
    assert 0.8 < summary["peak"] <= 1


def test_the_class_share_lets_the_head_into_the_score() -> None:
    given, features = np.array([[0.8, 0.05, 0.15]], np.float32), np.ones((1, 385), np.float32)
    (summary,) = summarize(given, hot_map()[None], features, make_recipe(class_share=0.75), (64, 64), 0.0)
    assert summary["score"] == pytest.approx(0.25 * summary["map_score"] + 0.75 * 0.2, abs=1e-6)
    assert (summary["verdict"], summary["is_defect"]) == ("good", False)


@pytest.mark.parametrize("size", [(64, 64), (240, 240), (97, 131)])
def test_a_frame_is_judged_the_same_in_any_batch(size: tuple[int, int]) -> None:
    recipe, rng = make_recipe(temperature=1.3), np.random.default_rng(0)
    given = rng.dirichlet(np.ones(3), 9).astype(np.float32)
    maps, features = rng.random((9, 4, 4), np.float32), rng.normal(size=(9, 385)).astype(np.float32)
    together = summarize(given, maps, features, recipe, size, 3.0)
    alone = [summarize(given[i : i + 1], maps[i : i + 1], features[i : i + 1], recipe, size, 3.0)[0] for i in range(9)]
    assert together == alone
    assert len({summary["score"] for summary in together}) == 9
