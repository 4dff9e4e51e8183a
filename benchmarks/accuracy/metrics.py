"""Metrics of the paper (section 4.1): iAUROC, pAUROC, pixel F1-max; accuracy and macro precision, recall, F1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Exact area under the ROC curve by ranks, ties counting half; NaN without both kinds."""
    s, truth = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(positive, dtype=bool).ravel()
    _, inverse, counts = np.unique(s, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = int(truth.sum()), int((~truth).sum())
    return float((rank[truth].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


class ExactScores:
    """Scores of positives and negatives, every one of them kept: what a ScoreHistogram is checked by.

    count: how many they are. Takes 4 bytes a score, and while it counts twice that and 40 bytes a positive.
    """

    def __init__(self) -> None:
        self.count = 0
        self._positive: list[NDArray[np.float32]] = []
        self._negative: list[NDArray[np.float32]] = []

    def add(self, scores: ArrayLike, positive: ArrayLike) -> None:
        """Keep scores [n] with their truth [n], as float32."""
        s, truth = np.asarray(scores, dtype=np.float32).ravel(), np.asarray(positive, dtype=bool).ravel()
        self.count += s.size
        self._positive.append(s[truth])
        self._negative.append(s[~truth])

    def metrics(self) -> tuple[float, float]:
        """Area under the ROC curve, ties counting half, and the highest F1 over all thresholds.

        NaN without both kinds, and without positives.
        """
        none = [np.zeros(0, np.float32)]
        positive, negative = (np.concatenate(scores or none) for scores in (self._positive, self._negative))
        positive.sort()
        negative.sort()
        n, m = positive.size, negative.size
        if not n:
            return float("nan"), float("nan")
        below, upto = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
        area = float((below + upto).sum()) / 2 / (n * m) if m else float("nan")
        # The best threshold is some positive's score: lower ones before the next positive only call more negatives.
        hits = n - np.searchsorted(positive, positive, "left")
        return area, float((2 * hits / (hits + (m - below) + n)).max())


def classification(predicted: ArrayLike, actual: ArrayLike, classes: int) -> dict[str, Any]:
    """Accuracy, macro precision, recall and F1 over the classes that occur, and confusion[actual][predicted].

    A class that is never predicted has precision 0.
    """
    confusion: NDArray[np.int64] = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (np.asarray(actual), np.asarray(predicted)), 1)
    hits, called, present = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    seen = present > 0
    precision = hits / np.maximum(called, 1)
    recall = hits / np.maximum(present, 1)
    f1 = 2 * hits / np.maximum(called + present, 1)
    return {
        "accuracy": float(hits.sum() / confusion.sum()),
        "precision": float(precision[seen].mean()),
        "recall": float(recall[seen].mean()),
        "f1": float(f1[seen].mean()),
        "confusion": confusion.tolist(),
    }
