"""calibration.metrics against scikit-learn, ties included, and by hand where scikit-learn has no such metric."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from calibration.histogram import BINS, ScoreHistogram
from calibration.metrics import ExactScores, auroc, classification
from calibration.thresholds import f1_max_threshold

Case = tuple[NDArray[np.float32], NDArray[np.bool_]]
EQUAL = 1e-12
"""Relative tolerance for sums in another order."""


@pytest.fixture(params=[(seed, steps) for seed in range(5) for steps in (2, 12, 10**6)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """90 scores in [0, 1) with their truth; with few steps most scores are tied. Each score is the middle of a bin."""
    seed, steps = request.param
    rng = np.random.default_rng(seed)
    scores = (np.floor(rng.integers(0, steps, 90) / steps * BINS) + 0.5) / BINS
    return scores.astype(np.float32), rng.random(90) < 0.4


def highest_f1(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """The highest F1 on scikit-learn's precision-recall curve."""
    precision, recall, _ = sklearn.precision_recall_curve(truth, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, EQUAL)).max())


def test_auroc_equals_scikit_learns(case: Case) -> None:
    scores, truth = case
    assert auroc(scores, truth) == pytest.approx(sklearn.roc_auc_score(truth, scores), rel=EQUAL)


def test_exact_scores_equal_scikit_learns(case: Case) -> None:
    scores, truth = case
    kept = ExactScores()
    kept.add(scores[:50].reshape(5, 10), truth[:50].reshape(5, 10))
    kept.add(scores[50:], truth[50:])
    expected = sklearn.roc_auc_score(truth, scores), highest_f1(scores, truth)
    assert kept.metrics() == pytest.approx(expected, rel=EQUAL)


def test_histogram_equals_scikit_learns_where_every_score_is_the_middle_of_a_bin(case: Case) -> None:
    scores, truth = case
    histogram = ScoreHistogram()
    histogram.add(scores, truth)
    assert histogram.auroc() == pytest.approx(sklearn.roc_auc_score(truth, scores), rel=EQUAL)
    assert histogram.f1_max() == pytest.approx(highest_f1(scores, truth), rel=EQUAL)
    called = scores >= 0.25
    assert histogram.f1_at(0.25) == pytest.approx(sklearn.f1_score(truth, called), rel=EQUAL)


def test_the_threshold_of_highest_f1_reaches_scikit_learns_highest_f1(case: Case) -> None:
    scores, truth = case
    threshold, f1 = f1_max_threshold(scores, truth)
    assert f1 == pytest.approx(highest_f1(scores, truth), rel=EQUAL)
    assert f1 == pytest.approx(sklearn.f1_score(truth, scores >= threshold), rel=EQUAL)


@pytest.mark.parametrize("seed", range(5))
def test_classification_equals_scikit_learns_over_the_classes_that_occur(seed: int) -> None:
    rng = np.random.default_rng(seed)
    actual, predicted = rng.choice([0, 1, 3], 40), rng.integers(0, 5, 40)  # class 2 and 4 never occur
    found = classification(predicted, actual, 5)
    expected = sklearn.precision_recall_fscore_support(
        actual, predicted, labels=[0, 1, 3], average="macro", zero_division=0.0
    )
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(expected[:3], rel=EQUAL)
    assert found["accuracy"] == sklearn.accuracy_score(actual, predicted)
    assert found["confusion"] == sklearn.confusion_matrix(actual, predicted, labels=range(5)).tolist()


def test_auroc_without_both_kinds_is_not_a_number() -> None:
    assert np.isnan(auroc([0.1, 0.2], [True, True]))
    assert np.isnan(auroc([0.1, 0.2], [False, False]))


def test_exact_scores_without_one_kind_are_not_a_number() -> None:
    assert np.isnan(ExactScores().metrics()).all()
    good, defects = ExactScores(), ExactScores()
    good.add([0.2, 0.3], [False, False])
    defects.add([0.2, 0.3], [True, True])
    assert np.isnan(good.metrics()).all()
    assert np.isnan(defects.metrics()[0])
    assert defects.metrics()[1] == 1.0


def test_classification_by_hand() -> None:
    result = classification(predicted=[0, 0, 1, 1, 1], actual=[0, 1, 1, 1, 0], classes=3)
    assert result["confusion"] == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["precision"] == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 2 does not occur
    assert result["recall"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_class_that_is_never_predicted_has_precision_0() -> None:
    result = classification(predicted=[0, 0], actual=[0, 1], classes=2)
    assert result["precision"] == pytest.approx(0.25)
    assert result["recall"] == pytest.approx(0.5)
