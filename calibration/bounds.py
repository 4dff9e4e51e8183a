"""Bounds that a finite number of frames supports: order statistics, binomial intervals, exact rounding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

CONFIDENCE = 0.95
"""The confidence of every "at most" and "at least" that calibration states."""


def exact_floor(share: float, count: int) -> int:
    """floor(share * count) in decimal arithmetic: 0.29 of 100 is 29, where floating point gives 28."""
    return int(Fraction(repr(float(share))) * count // 1)


def exact_ceil(share: float, count: int) -> int:
    """ceil(share * count) in decimal arithmetic."""
    return -int(-Fraction(repr(float(share))) * count // 1)


def beta_quantile(probability: float, a: int, b: int) -> float:
    """The quantile of Beta(a, b) for whole a, b >= 1: bisects P(Beta(a, b) <= x) = P(Bin(a + b - 1, x) >= a)."""
    n = a + b - 1
    hits = np.arange(1, n + 1)
    choose = np.cumsum(np.log(n - hits + 1) - np.log(hits))[a - 1 :]  # log of C(n, j) for j = a ... n
    j = hits[a - 1 :]
    low, high = 0.0, 1.0
    for _ in range(60):
        x = (low + high) / 2
        logs = choose + j * np.log(x) + (n - j) * np.log1p(-x)
        below = float(np.exp(logs).sum())
        low, high = (x, high) if below < probability else (low, x)
    return (low + high) / 2


def order_statistic_rate(beyond: int, count: int) -> tuple[float, float]:
    """Share of future frames beyond a threshold that `beyond` of `count` calibration frames lie beyond.

    Returns the expected share, (beyond + 1) / (count + 1), and an upper bound with 95 % confidence given this
    calibration set. The bound is a quantile of Beta(beyond + 1, count - beyond) (Vovk 2012, "Conditional validity of
    inductive conformal predictors"). Both hold for any continuous distribution, for frames exchangeable with these.
    Ties only make the true share smaller.
    """
    return (beyond + 1) / (count + 1), beta_quantile(CONFIDENCE, beyond + 1, count - beyond)


def at_least(right: int, count: int) -> float:
    """Lower end of a one-sided 95 % interval of the share right / count (Clopper and Pearson 1934)."""
    return beta_quantile(1 - CONFIDENCE, right, count - right + 1) if right else 0.0
