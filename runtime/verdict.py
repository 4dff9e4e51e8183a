"""From numbers to one verdict: the defect score decides whether, the head which class; the operating point may abstain.

`Prediction` and calibration call the same functions, so calibration promises what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .operating_point import CANNOT_DECIDE, UNKNOWN, OperatingPoint

Floats = NDArray[np.float32]


def temper(probabilities: Floats, temperature: float) -> Floats:
    """p^(1/T) / sum of p^(1/T) over the last axis: float32 [..., K]. At T = 1, the same array.

    The same as dividing the logits of a softmax by T (Guo et al. 2017); the order of the classes stays.
    """
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):  # the logarithm of a probability that rounded to 0 is -inf, and stays 0 below
        logits = np.log(probabilities.astype(np.float64)) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    tempered: Floats = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return tempered


def unit_rows(rows: Floats) -> Floats:
    """Rows [n, F] divided by their length; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, np.float32(1e-12)), dtype=np.float32)


def novelty(features: Floats, unit_supports: Floats) -> Floats:
    """1 - the highest cosine between features [n, F] and the supports' [S, F] (rows of unit length): float32 [n].

    0 is alike, 2 opposite. It measures how far a frame is from all support frames, in the space in which the classes
    were taught.
    """
    length = np.maximum(np.linalg.norm(features, axis=1), np.float32(1e-12))
    # Dot products instead of one MatMul: rounding then does not depend on the batch, and BLAS starts no threads, which
    # would compete with the decoders and the engine.
    cosines = np.matmul(unit_supports[:, None, :], features[:, None, :, None])
    nearest = cosines.max(axis=(1, 2, 3))
    distance: Floats = np.clip(1 - nearest / length, 0, 2)
    return distance


def defect_scores(map_scores: Floats, probabilities: Floats, class_share: float) -> Floats:
    """(1 - w) * map score + w * (1 - P(good)), w the operating point's `class_share`: float32 [n] in [0, 1].

    map_scores: [n]. probabilities: [n, K] as the graph gives them (eq. 23), so that no temperature moves the score.
    """
    if class_share == 0:
        return map_scores
    weight = np.float32(class_share)
    scores: Floats = (1 - weight) * map_scores + weight * (1 - probabilities[:, 0])
    return scores


@dataclass(frozen=True, slots=True)
class Decision:
    """One frame, one answer.

    verdict: `label`, or "unknown", or "cannot decide". reason: why, in one sentence with the numbers that decided.
    is_defect: whether the defect score reaches its threshold. label: "good" where it does not, else the likeliest
    defect class. confidence: the probability of `label`. probabilities: of all classes, [K]; both tempered.
    """

    verdict: str
    reason: str
    is_defect: bool
    label: str
    confidence: float
    probabilities: Sequence[float]


def named_class(probabilities: Floats, is_defect: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The class of each frame: 0 (good) or, for a defect, the likeliest defect class: [n].

    probabilities: [n, K], not tempered: a high temperature rounds away the last digits, which may decide.
    is_defect: [n].
    """
    return np.where(is_defect, 1 + probabilities[:, 1:].argmax(axis=1), 0)


def decide(
    point: OperatingPoint, classes: tuple[str, ...], probabilities: Floats, score: float, novelty: float
) -> Decision:
    """The verdict on one frame.

    probabilities: [K], not tempered; score: the defect score, in [0, 1]; novelty: as above. A frame whose score reaches
    the defect threshold is a defect and takes the likeliest defect class; any other is good. Then, in this order:
    `unknown` above the novelty threshold; `cannot decide` below the class's confidence threshold, or where the
    likeliest of all classes contradicts the score and the operating point asks for review then. A number that is NaN
    passes no threshold.
    """
    is_defect = bool(score >= point.defect_threshold)
    plain: list[float] = probabilities.tolist()  # for one frame, faster than numpy
    best = plain.index(max(plain))
    k = plain.index(max(plain[1:]), 1) if is_defect else 0  # as `named_class`
    tempered: list[float] = plain if point.temperature == 1 else temper(probabilities, point.temperature).tolist()
    label, confidence = classes[k], tempered[k]

    def answer(verdict: str, reason: str) -> Decision:
        return Decision(verdict, reason, is_defect, label, confidence, tempered)

    limit = point.novelty_threshold
    if limit is not None and not novelty <= limit:
        found, asked = _apart(novelty, limit)
        return answer(UNKNOWN, f"novelty {found} is above {asked}: unlike every support frame")
    floor = point.confidence_thresholds[label]
    if not confidence >= floor:
        found, asked = _apart(confidence, floor)
        other = max((i for i in range(len(classes)) if i != k), key=lambda i: plain[i])
        against = f"{classes[other]} {tempered[other]:.3f}"
        return answer(CANNOT_DECIDE, f"{label} {found} against {against}; {label} is decided from {asked} on")
    found, asked = _apart(score, point.defect_threshold)
    compared = f"defect score {found} {'reaches' if is_defect else 'is below'} {asked}"
    if (best > 0) == is_defect:
        return answer(label, f"{label} {confidence:.3f}; {compared}")
    contrary = f"{classes[best]} {tempered[best]:.3f}"
    if point.review_disagreement:
        return answer(CANNOT_DECIDE, f"class and score disagree: {contrary}, but {compared}")
    if is_defect:
        return answer(
            label, f"{compared}, so a defect though {contrary} is likeliest; of the defects {label} {confidence:.3f}"
        )
    return answer(label, f"{compared}, so good though {contrary} is likeliest")


def _apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with three decimals, or as many as show that they differ."""
    for decimals in range(3, 9):
        texts = f"{a:.{decimals}f}", f"{b:.{decimals}f}"
        if texts[0] != texts[1] or a == b:
            return texts
    return repr(a), repr(b)
