"""Calibrated probabilities: temperature scaling, expected calibration error, reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.operating_point import MAX_TEMPERATURE, MIN_TEMPERATURE
from runtime.verdict import temper

from .errors import CalibrationError
from .rules import Choice

BINS = 15
_TINY = 1e-38
"""Stands for a probability that float32 rounded to 0: the smallest normal float32."""


def choose_temperature(probabilities: NDArray[np.float32], truth: NDArray[np.intp]) -> Choice:
    """The temperature of maximum likelihood (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    probabilities: [n, K] at temperature 1. truth: [n] class indices. The negative log-likelihood is convex in 1/T, so
    its slope grows with 1/T, and bisection finds the zero. Raises CalibrationError without such a zero: if every frame
    is classified right (the likelihood grows without bound as T falls), or if the probabilities carry no information.
    """
    wrong = int((probabilities.argmax(axis=1) != truth).sum())
    if wrong == 0:
        raise CalibrationError(
            f"all {len(truth)} frames are classified right, so their likelihood grows without bound as the temperature "
            "falls: a temperature needs frames that the recipe gets wrong; bring more frames, or leave it out"
        )
    logits = np.log(np.maximum(probabilities.astype(np.float64), _TINY))
    of_truth = logits[np.arange(len(truth)), truth]

    def slope(inverse: float) -> float:
        scaled = inverse * (logits - logits.max(axis=1, keepdims=True))
        weights = np.exp(scaled)
        expected = (weights * logits).sum(axis=1) / weights.sum(axis=1)
        return float((expected - of_truth).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0 or slope(high) <= 0:
        raise CalibrationError(
            f"no temperature in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}] fits: {wrong} of {len(truth)} frames are "
            "classified wrong; check that the labels and the recipe belong together"
        )
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    temperature = float(2 / (low + high))
    before, after = (log_loss(temper(probabilities, t), truth) for t in (1.0, temperature))
    promise = f"log loss {before:.4f} -> {after:.4f} on these {len(truth)} frames, {wrong} of them classified wrong"
    figures = {"frames": len(truth), "wrong": wrong, "log_loss_at_1": before, "log_loss": after}
    return Choice(temperature, "highest likelihood", promise, figures)


def log_loss(probabilities: NDArray[np.float32], truth: NDArray[np.intp]) -> float:
    """Mean of -log p of the true class."""
    of_truth = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(np.maximum(of_truth, _TINY)).mean())


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Frames whose confidence lies in (low, high]: their number, mean confidence, and share classified right."""

    low: float
    high: float
    frames: int
    confidence: float
    accuracy: float


def reliability(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> list[ReliabilityBin]:
    """The reliability diagram: 15 bins of equal width, (low, high]; empty bins are left out."""
    sure = np.asarray(confidence, dtype=np.float64)
    index = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for b in np.unique(index):
        inside = index == b
        share = float(np.asarray(right)[inside].mean())
        bins.append(
            ReliabilityBin(float(b / BINS), float((b + 1) / BINS), int(inside.sum()), float(sure[inside].mean()), share)
        )
    return bins


def expected_calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Mean over frames of |accuracy - confidence| of their bin (Guo et al. 2017, eq. 3); bins as in `reliability`."""
    bins = reliability(confidence, right)
    return sum(b.frames * abs(b.accuracy - b.confidence) for b in bins) / sum(b.frames for b in bins)
