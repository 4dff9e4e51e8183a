"""calibration.thresholds against a search over every possible threshold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.thresholds import f1_max_threshold


def f1_at(threshold: float, scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """F1 of "score >= threshold", counted one by one."""
    tp = sum(1 for s, t in zip(scores, truth, strict=True) if s >= threshold and t)
    fp = sum(1 for s, t in zip(scores, truth, strict=True) if s >= threshold and not t)
    fn = sum(1 for s, t in zip(scores, truth, strict=True) if s < threshold and t)
    return 2 * tp / (2 * tp + fp + fn)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("steps", [3, 10, 10**6])
def test_no_threshold_has_a_higher_f1(seed: int, steps: int) -> None:
    """With few steps many scores are equal."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    scores = rng.integers(0, steps, count) / steps
    truth = rng.random(count) < rng.uniform(0.05, 0.95)
    truth[rng.integers(count)] = True
    threshold, f1 = f1_max_threshold(scores, truth)
    best = max(f1_at(s, scores, truth) for s in scores)
    assert f1 == pytest.approx(best)
    assert f1_at(threshold, scores, truth) == pytest.approx(best)
    called = scores[scores >= threshold]
    fewer = [f1_at(s, scores, truth) for s in called if s > called.min()]
    assert all(value < best - 1e-12 for value in fewer), "a tie must go to the highest threshold"


def test_threshold_lies_halfway_between_the_two_kinds() -> None:
    threshold, f1 = f1_max_threshold([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    assert (threshold, f1) == (pytest.approx(0.5), 1.0)


def test_order_of_the_scores_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 50) / 6, rng.random(50) < 0.4
    expected = f1_max_threshold(scores, truth)
    for _ in range(5):
        order = rng.permutation(50)
        assert f1_max_threshold(scores[order], truth[order]) == expected


def test_equal_scores_fall_on_one_side() -> None:
    threshold, f1 = f1_max_threshold([0.4, 0.4, 0.4], [True, False, False])
    assert threshold == 0.4
    assert f1 == pytest.approx(0.5)


def test_of_equal_f1_the_higher_threshold_is_taken() -> None:
    # Calling 1, or all 4, of these positive gives the same F1 of 2/3.
    threshold, f1 = f1_max_threshold([0.9, 0.5, 0.4, 0.1], [True, False, False, True])
    assert f1 == pytest.approx(2 / 3)
    assert threshold == pytest.approx(0.7)


def test_positives_alone_are_all_called() -> None:
    assert f1_max_threshold([0.3, 0.7], [True, True]) == (0.3, 1.0)


@pytest.mark.parametrize("step", range(8))
def test_neighbouring_floats_are_told_apart(step: int) -> None:
    """Halfway between two neighbours there is no float; the threshold must still call only the upper one."""
    lower = 0.5
    for _ in range(step):
        lower = float(np.nextafter(lower, 1))
    upper = float(np.nextafter(lower, 1))
    threshold, f1 = f1_max_threshold([lower, upper], [False, True])
    assert f1 == 1
    assert lower < threshold <= upper


def test_arrays_of_any_shape_are_flattened() -> None:
    scores, truth = np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([[0, 1], [0, 1]])
    assert f1_max_threshold(scores, truth) == f1_max_threshold(scores.ravel(), truth.ravel())


@pytest.mark.parametrize(
    ("scores", "positive", "says"),
    [
        ([0.1, 0.2], [False, False], "at least one defect"),
        ([], [], "at least one defect"),
        ([0.1, float("nan")], [True, False], "not finite"),
        ([float("inf"), 0.1], [True, False], "not finite"),
        ([0.1, 0.2, 0.3], [True, False], "3 scores and 2 labels"),
    ],
)
def test_scores_that_decide_nothing_are_refused(scores: list[float], positive: list[bool], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        f1_max_threshold(scores, positive)
