"""From numbers to a verdict: tempered probabilities, novelty, and the order in which the operating point asks.

Plain functions; `Prediction` and calibration call the same ones, so what calibration promises is what runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .operating_point import CANNOT_DECIDE, UNKNOWN, OperatingPoint

Floats = NDArray[np.float32]


def temper(probabilities: Floats, temperature: float) -> Floats:
    """p^(1/T) / sum of p^(1/T) over the last axis: float32 [..., K]. At T = 1 the very array that came in.

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

    0 is alike, 2 opposite. It says how unlike everything that was taught a frame is, in the space in which the classes
    were taught.
    """
    length = np.maximum(np.linalg.norm(features, axis=1), np.float32(1e-12))
    # Dot products, not a matrix's: rounding then depends on nothing beside it, and BLAS starts no threads of its own,
    # which would spin against the decoders and the engine.
    cosines = np.matmul(unit_supports[:, None, :], features[:, None, :, None])
    nearest = cosines.max(axis=(1, 2, 3))
    distance: Floats = np.clip(1 - nearest / length, 0, 2)
    return distance


def decide(
    point: OperatingPoint, classes: tuple[str, ...], probabilities: Floats, best: int, score: float, novelty: float
) -> tuple[str, str]:
    """The verdict on one frame and, in one sentence, why.

    probabilities: tempered [K]; best: the most probable class; score: of the map, in [0, 1]; novelty: as above.
    In this order: `unknown` above the novelty threshold; `cannot decide` below the class's confidence threshold, or
    where class and map disagree and the operating point asks for review then; else the class. A number that is NaN
    passes no threshold.
    """
    label, confidence = classes[best], float(probabilities[best])
    limit = point.novelty_threshold
    if limit is not None and not novelty <= limit:
        found, asked = _apart(novelty, limit)
        return UNKNOWN, f"novelty {found} is above {asked}: unlike every support frame"
    floor = point.confidence_thresholds[label]
    if not confidence >= floor:
        found, asked = _apart(confidence, floor)
        second = max((k for k in range(len(classes)) if k != best), key=lambda k: float(probabilities[k]))
        other = f"{classes[second]} {float(probabilities[second]):.3f}"
        return CANNOT_DECIDE, f"{label} {found} against {other}; {label} is decided from {asked} on"
    is_defect = score >= point.defect_threshold
    found, asked = _apart(score, point.defect_threshold)
    map_says = f"map score {found} {'reaches' if is_defect else 'is below'} {asked}"
    if point.review_disagreement and (label == "good") == is_defect:
        return CANNOT_DECIDE, f"class and map disagree: {label} {confidence:.3f}, but {map_says}"
    return label, f"{label} {confidence:.3f}; {map_says}"


def _apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with three decimals, or as many as it takes to tell them apart."""
    for decimals in range(3, 9):
        texts = f"{a:.{decimals}f}", f"{b:.{decimals}f}"
        if texts[0] != texts[1] or a == b:
            return texts
    return repr(a), repr(b)
