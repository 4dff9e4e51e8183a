"""calibration.rejects: the target is reached on the calibration set, measured on the verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.rejects import choose_for_max_reject, choose_for_purity, choose_novelty_threshold, purity_coverage
from calibration.scoring import Scored
from runtime.operating_point import VERDICTS, OperatingPoint
from runtime.verdict import temper

CLASSES = ("good", "bridge", "hole")
TAUGHT = OperatingPoint.taught(CLASSES, 0.5, 0.5)


def scored(count: int = 300, seed: int = 0, levels: int | None = None) -> Scored:
    """Frames with calibrated probabilities; with few levels many confidences are equal."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.3, 0.3, 0.3], count)
    if levels:
        probabilities = np.round(probabilities * levels + 0.1) / (levels + 0.3)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = tuple(CLASSES[rng.choice(3, p=row)] for row in probabilities)
    score = np.clip(rng.normal([0.3 if label == "good" else 0.7 for label in labels], 0.2), 0, 1)
    return Scored(CLASSES, labels, probabilities.astype(np.float32), score, rng.random(count))


def decided(frames: Scored, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
    """Whether each frame is decided, and whether its class is right."""
    verdicts = np.array(frames.verdicts(point))
    kept = ~np.isin(verdicts, VERDICTS)
    return kept, kept & (verdicts == np.array(frames.labels))


POINTS = {
    "plain": TAUGHT,
    "tempered": replace(TAUGHT, temperature=2.5),
    "novelty": replace(TAUGHT, novelty_threshold=0.9),
    "review": replace(TAUGHT, review_disagreement=True),
}


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
@pytest.mark.parametrize("target", [0.8, 0.9])
def test_each_class_gets_the_lowest_threshold_that_reaches_the_purity(
    target: float, point: OperatingPoint, levels: int | None
) -> None:
    frames = scored(levels=levels)
    choice = choose_for_purity(frames, point, target)
    chosen = replace(point, confidence_thresholds=choice.value)
    kept, right = decided(frames, chosen)
    assert (choice.figures["decided"], choice.figures["right"]) == (kept.sum(), right.sum())
    otherwise, _ = decided(frames, point)
    for k, name in enumerate(CLASSES):
        mine = frames.named(point) == k
        assert right[mine].sum() >= target * kept[mine].sum() > 0
        confidence = frames.confidence(point).astype(float)
        for lower in confidence[mine & otherwise & ~kept]:
            more, hits = decided(frames, replace(chosen, confidence_thresholds={**choice.value, name: float(lower)}))
            assert hits[mine].sum() < target * more[mine].sum()


def test_a_purity_that_all_frames_reach_rejects_none() -> None:
    frames = scored()
    assert choose_for_purity(frames, TAUGHT, 0.3).value == dict.fromkeys(CLASSES, 0.0)


def test_an_unreachable_purity_is_refused_and_names_each_class() -> None:
    frames = scored()
    wrong = tuple("good" if k == 2 else label for k, label in zip(frames.named(TAUGHT), frames.labels, strict=True))
    with pytest.raises(CalibrationError, match=r"reaches a purity of 0\.9 .*\n  - hole: at best 0\.0%"):
        choose_for_purity(replace(frames, labels=wrong), TAUGHT, 0.9)


def test_a_class_that_no_frame_was_named_gets_threshold_1_and_is_listed() -> None:
    frames = scored()
    unlike = frames.probabilities.copy()
    unlike[:, 2] = 0
    choice = choose_for_purity(replace(frames, probabilities=unlike / unlike.sum(axis=1, keepdims=True)), TAUGHT, 0.5)
    assert choice.value["hole"] == 1.0
    assert "no frame was named hole" in choice.promise


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
@pytest.mark.parametrize("share", [0.45, 0.6, 1.0])
def test_max_reject_uses_its_budget_and_no_more(share: float, point: OperatingPoint, levels: int | None) -> None:
    frames = scored(levels=levels)
    choice = choose_for_max_reject(frames, point, share)
    kept, right = decided(frames, replace(point, confidence_thresholds=choice.value))
    rejected = int((~kept).sum())
    assert rejected == choice.figures["rejected"] <= share * 300
    if levels is None:  # floor for each of three classes, and one frame of each stays
        assert rejected >= share * 300 - 3 - 3 * (share == 1)
    before, right_before = decided(frames, point)
    assert right.sum() / kept.sum() >= right_before.sum() / before.sum() - 0.02
    assert set(choice.value) == set(CLASSES)


def test_rejects_for_other_reasons_count() -> None:
    point = replace(TAUGHT, novelty_threshold=0.5)
    with pytest.raises(
        CalibrationError, match=r"max-reject=0\.1 allows 30 rejects of 300 frames, and novelty .* already"
    ):
        choose_for_max_reject(scored(), point, 0.1)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_a_novelty_quantile_keeps_its_share_known(share: float) -> None:
    novelty = np.random.default_rng(0).random(200)
    choice = choose_novelty_threshold(novelty, share)
    assert np.mean(novelty <= choice.value) == share
    assert choice.figures["beyond"] == round(200 * (1 - share))


@pytest.mark.parametrize(
    ("novelty", "says"), [([], "there are none"), ([0.2, 0.2], "the novelty of all 2 frames is 0.2")]
)
def test_constant_novelty_is_refused(novelty: list[float], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        choose_novelty_threshold(np.array(novelty), 0.9)


def test_the_curve_is_purity_over_coverage_of_one_falling_threshold() -> None:
    frames = scored(60, levels=5)
    point = replace(TAUGHT, temperature=2.0)
    curve = purity_coverage(frames, point)
    tempered, defect = temper(frames.probabilities, 2.0).astype(float), frames.score >= 0.5
    confidence = np.where(defect, tempered[:, 1:].max(axis=1), tempered[:, 0])
    right = np.where(defect, 1 + tempered[:, 1:].argmax(axis=1), 0) == frames.truth
    assert len(curve.confidence) == len(np.unique(confidence))
    for coverage, purity, threshold in zip(curve.coverage, curve.purity, curve.confidence, strict=True):
        kept = confidence >= threshold
        assert (coverage, purity) == (pytest.approx(kept.mean()), pytest.approx(right[kept].mean()))
    assert curve.coverage[-1] == 1


def test_purity_without_a_decided_frame_is_refused() -> None:
    point = replace(TAUGHT, novelty_threshold=0.0)
    with pytest.raises(CalibrationError, match="novelty or disagreement rejects all 300"):
        choose_for_purity(scored(), point, 0.9)
