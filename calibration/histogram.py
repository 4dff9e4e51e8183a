"""A histogram for millions of scores, such as every pixel of a data set: fixed bins, constant memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .bounds import exact_ceil
from .errors import CalibrationError
from .metrics import area_under_roc, best_f1

BINS = 65536


class ScoreHistogram:
    """Scores in [0, 1] of positives and negatives in 65,536 bins: exact to about 1e-5 for any number of scores."""

    def __init__(self) -> None:
        self.positive = np.zeros(BINS, np.int64)
        self.negative = np.zeros(BINS, np.int64)

    def add(self, scores: ArrayLike, positive: ArrayLike) -> None:
        """Count scores [n] with their truth [n]. CalibrationError if a score is outside [0, 1] or NaN."""
        s = np.asarray(scores, dtype=np.float64).ravel()
        truth = np.asarray(positive, dtype=bool).ravel()
        if not ((s >= 0) & (s <= 1)).all():
            raise CalibrationError("map values must lie in [0, 1]; some are NaN or outside")
        bins = np.minimum((s * BINS).astype(np.int64), BINS - 1)
        self.positive += np.bincount(bins[truth], minlength=BINS)
        self.negative += np.bincount(bins[~truth], minlength=BINS)

    def auroc(self) -> float:
        """Area under the ROC curve, ties counting half; NaN without both kinds."""
        below = np.cumsum(self.negative) - self.negative
        return area_under_roc(self.positive, below, self.negative, int(self.negative.sum()))

    def f1_max(self) -> float:
        """The highest F1 over all thresholds; NaN without positives."""
        return self._highest_f1()[1] if self.positive.any() else float("nan")

    def f1_at(self, threshold: float) -> float:
        """F1 of "score >= threshold", with the threshold rounded to a bin; NaN without positives."""
        lowest = min(round(threshold * BINS), BINS - 1)
        hits, called = int(self.positive[lowest:].sum()), int((self.positive + self.negative)[lowest:].sum())
        total = int(self.positive.sum())
        return 2 * hits / (called + total) if total else float("nan")

    def f1_max_threshold(self) -> tuple[float, float]:
        """The threshold t for which "score >= t" has the highest F1, and that F1.

        t lies halfway between the bins on its two sides; of equal F1 the higher t wins. Raises CalibrationError without
        positives, or if all scores are equal.
        """
        if not self.positive.any():
            raise CalibrationError("F1 of pixels needs a mask with at least one defect pixel")
        self._require_spread()
        lowest, f1 = self._highest_f1()
        below = np.flatnonzero(self.positive[:lowest] + self.negative[:lowest])
        edge = (lowest + below[-1] + 1) / 2 if below.size else lowest
        return float(edge / BINS), f1

    def negative_quantile(self, share: float) -> float:
        """The lowest bin edge t for which at least `share` of the negatives are below t.

        Raises CalibrationError without negatives, if all scores are equal, or if no t in [0, 1] satisfies the share.
        """
        if not self.negative.any():
            raise CalibrationError("a quantile of the pixels of good frames needs good frames")
        self._require_spread()
        needed = exact_ceil(share, int(self.negative.sum()))
        edge = int(np.searchsorted(np.cumsum(self.negative), needed)) + 1
        if edge == BINS:
            raise CalibrationError(
                f"more than {1 - share:.2%} of the pixels of good frames have the highest map value, so no pixel "
                f"threshold passes {share:.2%} of them; the recipe cannot tell good from defect"
            )
        return edge / BINS

    def _highest_f1(self) -> tuple[int, float]:
        """The lowest bin that is called positive where F1 is highest, and that F1; of equal ones the highest bin."""
        hits = np.cumsum(self.positive[::-1])
        index, f1 = best_f1(hits, hits + np.cumsum(self.negative[::-1]), int(self.positive.sum()))
        return BINS - 1 - index, f1

    def _require_spread(self) -> None:
        if np.count_nonzero(self.positive + self.negative) < 2:
            raise CalibrationError("all map values are equal: no pixel threshold separates anything")
