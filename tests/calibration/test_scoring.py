"""calibration.scoring: scores, rates, supports left out, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_recipe
from PIL import Image

from calibration.dataset import Sample
from calibration.errors import CalibrationError
from calibration.scoring import Scored, score_frames
from runtime import Predictor
from runtime.operating_point import OperatingPoint

CLASSES = ("good", "bridge")
FOUR = Scored(
    CLASSES,
    ("good", "good", "bridge", "crack"),
    np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], np.float32),
    np.array([0.1, 0.6, 0.4, 0.9]),
    np.array([0.0, 0.1, 0.2, 0.9]),
)


def samples(folder: Path, count: int = 5) -> list[Sample]:
    for n in range(count):
        pixels = np.full((70, 64), 20, np.uint8)
        pixels[:6] = 255  # a text bar
        pixels[6, 0], pixels[30:40, 30:40] = n, 50 * n
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return [Sample(folder / f"{n}.png", "good" if n < 3 else "bridge", str(n), None) for n in range(count)]


def test_rates_by_hand() -> None:
    point = OperatingPoint(0.5, 0.5, 1.0, {"good": 0.0, "bridge": 0.65}, 0.5, False)
    summary: Any = FOUR.summary(point)
    assert FOUR.named(point).tolist() == [0, 1, 0, 1]
    assert FOUR.confidence(point).tolist() == pytest.approx([0.9, 0.6, 0.3, 0.8])
    assert FOUR.verdicts(point) == ["good", "cannot decide", "good", "unknown"]
    # A frame that is left undecided is neither overkill nor underkill.
    assert summary["overkill"] == {"value": 0.0, "count": 0, "of": 2}
    assert summary["underkill"] == {"value": 0.5, "count": 1, "of": 2}
    assert summary["purity"] == {"value": 0.5, "count": 1, "of": 2}
    assert summary["coverage"] == {"value": 0.5, "count": 2, "of": 4}
    assert summary["unknown"] == summary["cannot decide"] == {"value": 0.25, "count": 1, "of": 4}
    # The unknown class does not count: 0.9 right, 0.6 wrong, 0.7 right, each in its own bin.
    assert summary["ece"] == {"value": pytest.approx((0.1 + 0.6 + 0.3) / 3), "of": 3}


def test_a_rate_without_frames_is_none() -> None:
    good = replace(FOUR, labels=("good",) * 4)
    summary: Any = good.summary(OperatingPoint(0.5, 0.5, 1.0, dict.fromkeys(CLASSES, 1.0), None, False))
    assert summary["underkill"]["value"] is None
    assert summary["purity"] == {"value": None, "count": 0, "of": 0}


def test_frames_are_scored_at_temperature_1_and_the_recipe_stays(fake_bundle: Path, tmp_path: Path) -> None:
    recipe = make_recipe(temperature=4.0, frame=replace(make_recipe().frame, ignore_top=6))
    with Predictor(fake_bundle, backend="fake", recipe=recipe) as predictor:
        scored = score_frames(predictor, samples(tmp_path), pixels=True)
        assert predictor.recipe is recipe
    assert scored.probabilities.max(axis=1).tolist() == [np.float32(0.9)] * 5
    assert scored.head_class.tolist() == [0, 1, 2, 0, 1]
    assert scored.truth.tolist() == [0, 0, 0, 1, 1]
    # Ignored rows count as no pixels. A frame without a mask counts as all good, or not at all.
    assert scored.pixels is not None
    assert (scored.pixels.negative.sum(), scored.pixels.positive.sum()) == (3 * 64 * 64, 0)
    assert scored.good_peaks is not None
    assert len(scored.good_peaks) == 3


def test_frames_that_cannot_be_read_are_listed(fake_bundle: Path, tmp_path: Path) -> None:
    frames = samples(tmp_path)
    for frame in frames[1:3]:
        frame.path.write_bytes(b"")
    with (
        Predictor(fake_bundle, backend="fake") as predictor,
        pytest.raises(
            CalibrationError, match=r"2 of 5 frames cannot be scored(?s:.*)1\.png: is empty(?s:.*)2\.png: is"
        ),
    ):
        score_frames(predictor, frames, pixels=True)
