"""calibration.histogram against exact counting."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.histogram import BINS, ScoreHistogram
from calibration.metrics import auroc
from calibration.thresholds import f1_max_threshold


def filled(scores: np.ndarray, truth: np.ndarray) -> ScoreHistogram:
    histogram = ScoreHistogram()
    histogram.add(scores, truth)
    return histogram


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
    for threshold in (0.0, 0.3, 0.55, 1.0):
        called = scores >= threshold
        f1 = 2 * (truth & called).sum() / (called.sum() + truth.sum())
        assert histogram.f1_at(threshold) == pytest.approx(f1, abs=1e-3)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_histogram_refuses_scores_outside_the_unit_interval(bad: float) -> None:
    with pytest.raises(CalibrationError, match=r"\[0, 1\]"):
        ScoreHistogram().add([0.5, bad], [True, False])


def test_histogram_without_positives_has_no_metrics() -> None:
    histogram = ScoreHistogram()
    histogram.add([0.2, 0.9], [False, False])
    assert np.isnan(histogram.auroc())
    assert np.isnan(histogram.f1_max())
    assert np.isnan(histogram.f1_at(0.5))


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_of_highest_f1_is_that_of_the_exact_search(seed: int) -> None:
    """On scores in the middle of the bins, so that only the halfway point may differ, and by less than a bin."""
    rng = np.random.default_rng(seed)
    truth = rng.random(400) < 0.2
    scores = (np.floor(np.clip(rng.normal(0.4 + 0.2 * truth, 0.15), 0, 0.999) * BINS) + 0.5) / BINS
    threshold, f1 = filled(scores, truth).f1_max_threshold()
    exact, exact_f1 = f1_max_threshold(scores, truth)
    assert f1 == pytest.approx(exact_f1)
    assert threshold == pytest.approx(exact, abs=1 / BINS)
    np.testing.assert_array_equal(scores >= threshold, scores >= exact)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_passes_its_share_of_the_negatives_at_the_lowest_bin(share: float) -> None:
    rng = np.random.default_rng(0)
    scores = 0.9 * rng.random(1000)
    threshold = filled(np.append(scores, 0.99), np.append(np.zeros(1000, bool), True)).negative_quantile(share)
    assert np.mean(scores < threshold) >= share
    assert np.mean(scores < threshold - 1 / BINS) < share


@pytest.mark.parametrize(
    ("scores", "truth", "rule", "says"),
    [
        ([0.1, 0.2], [False, False], "f1", "needs a mask with at least one defect pixel"),
        ([0.5, 0.5], [False, True], "f1", "all map values are equal"),
        ([0.5, 0.5], [False, False], "quantile", "all map values are equal"),
        ([0.5, 0.6], [True, True], "quantile", "needs good frames"),
        ([1.0, 1.0, 0.1], [False, False, False], "quantile", "have the highest map value"),
    ],
)
def test_scores_that_allow_no_threshold_are_refused(
    scores: list[float], truth: list[bool], rule: str, says: str
) -> None:
    histogram = filled(np.array(scores), np.array(truth))
    with pytest.raises(CalibrationError, match=says):
        histogram.f1_max_threshold() if rule == "f1" else histogram.negative_quantile(0.9)
