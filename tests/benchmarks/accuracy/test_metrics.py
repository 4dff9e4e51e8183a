"""benchmarks.accuracy.metrics against plain readings of the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.metrics import ExactScores, auroc, classification


def _slow_auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[truth] for n in scores[~truth]]
    return float(np.mean(pairs))


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 12, 60) / 12, rng.random(60) < 0.4
    assert auroc(scores, truth) == pytest.approx(_slow_auroc(scores, truth))


def test_auroc_needs_both_kinds() -> None:
    assert np.isnan(auroc([0.1, 0.2], [True, True]))


@pytest.mark.parametrize("seed", range(5))
def test_exact_scores_are_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = (rng.integers(0, 20, 90) / 32).astype(np.float32), rng.random(90) < 0.4
    kept = ExactScores()
    kept.add(scores[:50].reshape(5, 10), truth[:50].reshape(5, 10))
    kept.add(scores[50:], truth[50:])
    called = [scores >= t for t in np.unique(scores)]
    best = max(2 * (truth & c).sum() / (c.sum() + truth.sum()) for c in called)
    assert kept.metrics() == pytest.approx((_slow_auroc(scores, truth), best))


def test_exact_scores_without_one_kind() -> None:
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


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    result = classification(predicted=[0, 0], actual=[0, 1], classes=2)
    assert result["precision"] == pytest.approx(0.25)
    assert result["recall"] == pytest.approx(0.5)
