"""benchmarks.metrics against plain readings of the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.metrics import ScoreHistogram, auroc, classification


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


@pytest.mark.parametrize("seed", range(3))
def test_histogram_agrees_with_the_exact_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(3000) < 0.1
    scores = np.clip(rng.normal(0.4 + 0.2 * truth, 0.15), 0, 1)
    histogram = ScoreHistogram()
    histogram.add(scores[:1000], truth[:1000])
    histogram.add(scores[1000:], truth[1000:])
    best = max(2 * (truth & (scores >= t)).sum() / ((scores >= t).sum() + truth.sum()) for t in np.unique(scores))
    assert histogram.auroc() == pytest.approx(auroc(scores, truth), abs=1e-4)
    assert histogram.f1_max() == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_histogram_refuses_scores_outside_the_unit_interval(bad: float) -> None:
    with pytest.raises(ValueError, match="0, 1"):
        ScoreHistogram().add([0.5, bad], [True, False])


def test_histogram_without_positives_has_no_metrics() -> None:
    histogram = ScoreHistogram()
    histogram.add([0.2, 0.9], [False, False])
    assert np.isnan(histogram.auroc())
    assert np.isnan(histogram.f1_max())


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
