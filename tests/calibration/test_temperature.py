"""calibration.temperature: a known temperature is found; calibration error by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from calibration.errors import CalibrationError
from calibration.temperature import choose_temperature, expected_calibration_error, log_loss, reliability
from runtime.verdict import temper


def planted(temperature: float, count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are calibrated after tempering by `temperature`, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet(np.full(4, 0.5), count).astype(np.float32)
    labels = np.array([rng.choice(4, p=row / row.sum()) for row in true.astype(np.float64)])
    return temper(true, 1 / temperature), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_probabilities_is_found(temperature: float) -> None:
    probabilities, labels = planted(temperature)
    choice = choose_temperature(probabilities, labels)
    assert choice.value == pytest.approx(temperature, rel=0.08)
    tempered = temper(probabilities, choice.value)
    right = tempered.argmax(axis=1) == labels
    assert expected_calibration_error(tempered.max(axis=1), right) < 0.03
    if temperature != 1.0:
        assert expected_calibration_error(probabilities.max(axis=1), right) > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_no_temperature_has_a_lower_loss(seed: int) -> None:
    probabilities, labels = planted(1.7, count=60, seed=seed)
    choice = choose_temperature(probabilities, labels)
    best = minimize_scalar(
        lambda u: log_loss(temper(probabilities, 1 / u), labels), bounds=(0.02, 50), method="bounded"
    )
    assert choice.figures["log_loss"] <= best.fun + 1e-6
    assert choice.figures["log_loss"] <= choice.figures["log_loss_at_1"]
    assert choice.figures["wrong"] == int((probabilities.argmax(axis=1) != labels).sum())


def test_a_probability_that_rounded_to_0_does_not_break_the_fit() -> None:
    probabilities, labels = planted(1.0, count=200)
    probabilities[0] = [1, 0, 0, 0]
    labels[0] = 3
    assert np.isfinite(choose_temperature(probabilities, labels).value)


def test_a_temperature_is_refused_where_every_frame_is_right() -> None:
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7]], np.float32)
    with pytest.raises(CalibrationError, match="all 2 frames are classified right"):
        choose_temperature(probabilities, np.array([0, 1]))


def test_labels_unrelated_to_the_probabilities_are_refused() -> None:
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7]], np.float32)
    with pytest.raises(CalibrationError, match="2 of 2 frames are classified wrong; check that the labels"):
        choose_temperature(probabilities, np.array([1, 0]))


def test_calibration_error_by_hand() -> None:
    """Bins of 1/15: 0.61 and 0.65 share (9/15, 10/15]; 0.95 is in (14/15, 1]; 10/15 itself belongs to the lower bin."""
    confidence = np.array([0.61, 0.65, 0.95, 10 / 15])
    right = np.array([True, False, True, True])
    bins = reliability(confidence, right)
    assert [(b.frames, b.accuracy) for b in bins] == [(3, pytest.approx(2 / 3)), (1, 1.0)]
    assert bins[0].low == pytest.approx(9 / 15)
    assert bins[0].high == pytest.approx(10 / 15)
    gaps = 3 * abs(2 / 3 - (0.61 + 0.65 + 10 / 15) / 3) + abs(1 - 0.95)
    assert expected_calibration_error(confidence, right) == pytest.approx(gaps / 4)


def test_confidences_0_and_1_fall_into_the_first_and_last_bin() -> None:
    bins = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert [(b.low, b.high) for b in bins] == [(0, pytest.approx(1 / 15)), (pytest.approx(14 / 15), 1)]
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
