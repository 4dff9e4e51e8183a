"""Thresholds from scored frames or pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from runtime.errors import SemClipError


class CalibrationError(SemClipError):
    """An operating point cannot be chosen from these scores."""


def f1_max_threshold(scores: ArrayLike, positive: ArrayLike) -> tuple[float, float]:
    """The threshold t for which "score >= t" has the highest F1, and that F1.

    scores: [n] finite. positive: [n] bool, true for defects. t lies halfway between the lowest score called positive
    and the highest one called negative; ties of F1 go to the higher threshold (less overkill).
    Raises CalibrationError if there is no positive, no score, or a score is not finite.
    """
    s = np.asarray(scores, dtype=np.float64).ravel()
    truth = np.asarray(positive, dtype=bool).ravel()
    if s.size != truth.size:
        raise CalibrationError(f"{s.size} scores and {truth.size} labels")
    if not np.isfinite(s).all():
        raise CalibrationError("some scores are not finite")
    if not truth.any():
        raise CalibrationError("F1 needs at least one defect among the scored items")
    order = np.argsort(-s, kind="stable")
    s, truth = s[order], truth[order]
    hits = np.cumsum(truth)
    f1 = 2 * hits / (np.arange(1, s.size + 1) + truth.sum())
    # Equal scores fall on one side together: only the last of each run is a possible cut.
    cuts = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    best = cuts[np.argmax(f1[cuts])]
    threshold = s[best]
    if best + 1 < s.size:
        middle = (s[best] + s[best + 1]) / 2
        # Between neighbouring floats there is no middle: it rounds to one of the two.
        threshold = middle if middle > s[best + 1] else s[best]
    return float(threshold), float(f1[best])
