"""runtime.verdict: tempering, novelty, and the order in which the operating point asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.scoring import Scored
from runtime.operating_point import OperatingPoint
from runtime.verdict import decide, defect_scores, novelty, temper, unit_rows

CLASSES = ("good", "bridge", "hole")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def point(**changes: Any) -> OperatingPoint:
    values: dict[str, Any] = {
        "defect_threshold": 0.5,
        "pixel_threshold": 0.5,
        "temperature": 1.0,
        "confidence_thresholds": dict.fromkeys(CLASSES, 0.0),
        "novelty_threshold": None,
        "review_disagreement": False,
    }
    return OperatingPoint(**{**values, **changes})


def verdict(probabilities: list[float], score: float = 0.9, distance: float = 0.1, **changes: Any) -> tuple[str, str]:
    answer = decide(point(**changes), CLASSES, np.array(probabilities, np.float32), score, distance)
    return answer.verdict, answer.reason


# ---- tempering -------------------------------------------------------------------------------------------------------


def test_temperature_1_is_the_very_same_array() -> None:
    given = softmax(np.random.default_rng(0).normal(size=(5, 3)))
    assert temper(given, 1.0) is given


@pytest.mark.parametrize("temperature", [0.01, 0.5, 3.0, 100.0])
def test_tempering_divides_the_logits(temperature: float) -> None:
    logits = np.random.default_rng(1).normal(size=(50, 7)) * 4
    tempered = temper(softmax(logits), temperature)
    assert tempered.dtype == np.float32
    np.testing.assert_allclose(tempered, softmax(logits / temperature), atol=1e-4)
    np.testing.assert_allclose(tempered.sum(axis=1), 1, atol=1e-6)
    if temperature >= 0.5:  # below, the largest may round to 1 and the others to 0
        np.testing.assert_array_equal(tempered.argsort(axis=1), softmax(logits).argsort(axis=1))


def test_a_probability_of_0_stays_0() -> None:
    assert temper(np.array([1, 0, 0], np.float32), 5.0).tolist() == [1, 0, 0]
    assert temper(np.array([0.5, 0.5, 0], np.float32), 0.1).tolist() == [0.5, 0.5, 0]


# ---- novelty ---------------------------------------------------------------------------------------------------------


def test_novelty_is_the_distance_to_the_nearest_support() -> None:
    supports = unit_rows(np.array([[2, 0, 0], [0, 3, 0]], np.float32))
    frames = np.array([[0, 7, 0], [1, 1, 0], [0, 0, 1], [-1, -1, 0]], np.float32)
    distances = novelty(frames, supports)
    assert distances.dtype == np.float32
    assert distances.tolist() == pytest.approx([0, 1 - 0.5**0.5, 1, 1 + 0.5**0.5], abs=1e-6)


def test_nothing_is_like_nothing() -> None:
    assert novelty(np.zeros((1, 3), np.float32), unit_rows(np.eye(3, dtype=np.float32))) == [1]
    assert novelty(np.ones((1, 3), np.float32), unit_rows(np.zeros((1, 3), np.float32))) == [1]


def test_features_that_are_not_numbers_have_no_novelty() -> None:
    frames = np.array([[np.nan, 0, 0], [1, 0, 0]], np.float32)
    np.testing.assert_array_equal(novelty(frames, unit_rows(np.eye(3, dtype=np.float32))), [np.nan, 0])


# ---- the order of the questions --------------------------------------------------------------------------------------


def test_without_thresholds_every_frame_gets_its_class() -> None:
    assert verdict([0.1, 0.9, 0.0], distance=2.0) == ("bridge", "bridge 0.900; defect score 0.900 reaches 0.500")
    assert verdict([0.9, 0.1, 0.0], score=0.2) == ("good", "good 0.900; defect score 0.200 is below 0.500")


def test_the_score_decides_whether_and_the_head_which_class() -> None:
    assert verdict([0.6, 0.1, 0.3], score=0.9) == (
        "hole",
        "defect score 0.900 reaches 0.500, so a defect though good 0.600 is likeliest; of the defects hole 0.300",
    )
    assert verdict([0.1, 0.9, 0.0], score=0.2) == (
        "good",
        "defect score 0.200 is below 0.500, so good though bridge 0.900 is likeliest",
    )


def test_no_answer_contradicts_itself() -> None:
    rng = np.random.default_rng(3)
    for probabilities in rng.dirichlet([0.4, 0.4, 0.4], 500).astype(np.float32):
        score, distance = rng.random(2)
        asked = point(
            defect_threshold=float(rng.random()),
            confidence_thresholds=dict(zip(CLASSES, rng.random(3).tolist(), strict=True)),
            novelty_threshold=float(rng.random()) if rng.random() < 0.5 else None,
            review_disagreement=bool(rng.random() < 0.5),
        )
        answer = decide(asked, CLASSES, probabilities, float(score), float(distance))
        assert answer.is_defect == (score >= asked.defect_threshold)
        assert answer.is_defect == (answer.label != "good")
        assert answer.verdict in (answer.label, "unknown", "cannot decide")
        assert answer.confidence == probabilities[CLASSES.index(answer.label)]
        assert answer.label == "good" or answer.confidence == probabilities[1:].max()


def test_the_defect_score_mixes_map_and_head_by_the_share_of_the_head() -> None:
    maps, heads = np.array([0.2, 0.8], np.float32), np.array([[0.9, 0.1], [0.3, 0.7]], np.float32)
    assert defect_scores(maps, heads, 0.0) is maps
    np.testing.assert_allclose(defect_scores(maps, heads, 0.25), [0.175, 0.775], atol=1e-7)
    np.testing.assert_allclose(defect_scores(maps, heads, 1.0), [0.1, 0.7], atol=1e-7)


def test_novelty_is_checked_first() -> None:
    asked = {"novelty_threshold": 0.2, "confidence_thresholds": dict.fromkeys(CLASSES, 1.0)}
    assert verdict([0.4, 0.3, 0.3], distance=0.25, **asked) == (
        "unknown",
        "novelty 0.250 is above 0.200: unlike every support frame",
    )
    assert verdict([0.4, 0.3, 0.3], distance=0.2, **asked)[0] == "cannot decide"


def test_each_class_has_its_own_confidence_threshold() -> None:
    floors = {"good": 0.0, "bridge": 0.75, "hole": 0.25}
    assert verdict([0.2, 0.5, 0.3], confidence_thresholds=floors) == (
        "cannot decide",
        "bridge 0.500 against hole 0.300; bridge is decided from 0.750 on",
    )
    assert verdict([0.25, 0.75, 0.0], confidence_thresholds=floors)[0] == "bridge"
    assert verdict([0.3, 0.2, 0.5], confidence_thresholds=floors)[0] == "hole"


@pytest.mark.parametrize(
    ("probabilities", "score", "expected"),
    [
        ([0.9, 0.1, 0.0], 0.6, "cannot decide"),
        ([0.9, 0.1, 0.0], 0.4, "good"),
        ([0.1, 0.9, 0.0], 0.4, "cannot decide"),
        ([0.1, 0.9, 0.0], 0.5, "bridge"),
    ],
)
def test_disagreement_of_class_and_score_is_reviewed_if_asked(
    probabilities: list[float], score: float, expected: str
) -> None:
    found, reason = verdict(probabilities, score, review_disagreement=True)
    assert found == expected
    assert ("class and score disagree" in reason) == (expected == "cannot decide")
    assert verdict(probabilities, score)[0] != "cannot decide"


def test_a_temperature_that_rounds_two_classes_together_names_no_other() -> None:
    close = np.array([0.2, 0.4, np.nextafter(np.float32(0.4), np.float32(1))], np.float32)
    hot = point(temperature=100.0, review_disagreement=True)
    assert decide(hot, CLASSES, close, 0.9, 0.0).label == "hole"
    tied = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0], np.float32)
    assert decide(hot, CLASSES, tied, 0.9, 0.0).verdict == "bridge"
    scored = Scored(CLASSES, ("hole", "bridge"), np.stack([close, tied]), np.full(2, 0.9), np.zeros(2))
    assert scored.named(hot).tolist() == [2, 1]
    assert scored.verdicts(hot) == ["hole", "bridge"]


def test_two_equal_classes_are_both_named() -> None:
    reason = verdict([0.1, 0.45, 0.45], confidence_thresholds=dict.fromkeys(CLASSES, 0.5))[1]
    assert reason == "bridge 0.450 against hole 0.450; bridge is decided from 0.500 on"


def test_a_reason_shows_as_many_decimals_as_its_numbers_differ_in() -> None:
    reason = verdict([0.25, 0.75, 0.0], confidence_thresholds=dict.fromkeys(CLASSES, 0.7500004))[1]
    assert reason == "bridge 0.7500000 against good 0.250; bridge is decided from 0.7500004 on"


def test_nan_passes_no_threshold() -> None:
    nan = float("nan")
    assert verdict([0.4, 0.3, 0.3], distance=nan, novelty_threshold=2.0)[0] == "unknown"
    assert decide(point(), CLASSES, np.full(3, nan, np.float32), 0.5, 0.0).verdict == "cannot decide"
