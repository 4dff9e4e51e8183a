"""Every metric that the project computes: AUROC, F1 over thresholds, and classification figures.

One definition each. AUROC counts a tie between a positive and a negative as half. F1 of a threshold t judges
"score >= t is positive". The tests compare all of them with scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.integer[Any]]


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Exact area under the ROC curve of scores [n] with their truth [n]; NaN without both kinds."""
    s, truth = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(positive, dtype=bool).ravel()
    negative = np.sort(s[~truth])
    below, upto = (np.searchsorted(negative, s[truth], side) for side in ("left", "right"))
    return area_under_roc(np.ones_like(below), below, upto - below, negative.size)


def area_under_roc(positives: Counts, below: Counts, equal: Counts, negatives: int) -> float:
    """Area under the ROC curve from counts [v], one for each of v score values; NaN without both kinds.

    positives: how many have that score. below, equal: how many negatives score less, and the same. negatives: all.
    """
    pairs = int(positives.sum()) * negatives  # a Python int: the product overflows 64 bits for large data sets
    return float((positives * (below + equal / 2)).sum() / pairs) if pairs else float("nan")


def best_f1(hits: Counts, called: Counts | NDArray[np.float64], actual: int) -> tuple[int, float]:
    """Index of the cut of highest F1 and that F1; of equal ones the first.

    hits, called: [v] true positives and items called positive at each cut; called may be weighted. actual: positives.
    """
    scores = 2 * hits / np.maximum(called + actual, 1)
    index = int(scores.argmax())
    return index, float(scores[index])


class ExactScores:
    """Scores of positives and negatives, all of them kept: the exact counterpart of `ScoreHistogram`.

    count: number of scores. Memory: 4 bytes per score; `metrics` takes 8 per score and about 60 per positive.
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
        """AUROC and the highest F1 over all thresholds; NaN without both kinds, and without positives."""
        none = [np.zeros(0, np.float32)]
        positive, negative = (np.concatenate(scores or none) for scores in (self._positive, self._negative))
        positive.sort()
        negative.sort()
        if not positive.size:
            return float("nan"), float("nan")
        below, upto = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
        area = area_under_roc(np.ones_like(below), below, upto - below, negative.size)
        # The best threshold is a positive's score: a lower one, above the next positive, only calls more negatives.
        hits = positive.size - np.searchsorted(positive, positive, "left")
        return area, best_f1(hits, hits + negative.size - below, positive.size)[1]


def classification(predicted: ArrayLike, actual: ArrayLike, classes: int) -> dict[str, Any]:
    """Accuracy, macro precision, recall and F1 over the classes that occur, and confusion[actual][predicted].

    predicted, actual: class indices [n]. A class that is never predicted has precision 0.
    """
    confusion: NDArray[np.int64] = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (np.asarray(actual), np.asarray(predicted)), 1)
    seen = confusion.sum(1) > 0
    precision, recall, f1 = per_class_rates(confusion)
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "precision": float(precision[seen].mean()),
        "recall": float(recall[seen].mean()),
        "f1": float(f1[seen].mean()),
        "confusion": confusion.tolist(),
    }


def per_class_rates(confusion: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 [K] of every class from confusion[actual][predicted]; 0 where nothing can be counted."""
    hits, called, present = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    return hits / np.maximum(called, 1), hits / np.maximum(present, 1), 2 * hits / np.maximum(called + present, 1)
