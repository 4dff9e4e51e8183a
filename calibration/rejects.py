"""Frames for people to review: confidence thresholds, the novelty threshold, and the purity/coverage curve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runtime.operating_point import VERDICTS, OperatingPoint

from .bounds import CONFIDENCE, at_least, exact_ceil, exact_floor, order_statistic_rate
from .errors import CalibrationError
from .rules import Choice
from .scoring import Scored


def choose_novelty_threshold(novelty: NDArray[np.float64], share: float) -> Choice:
    """The novelty threshold that keeps `share` of the frames known; all frames are of taught classes.

    Raises CalibrationError if there are no frames or their novelty is all the same.
    """
    if not novelty.size:
        raise CalibrationError("a novelty threshold needs frames of the taught classes and there are none")
    ordered = np.sort(novelty)
    if ordered[0] == ordered[-1]:
        raise CalibrationError(
            f"the novelty of all {novelty.size} frames is {ordered[0]:g}: no threshold separates any"
        )
    known = exact_ceil(share, novelty.size)
    beyond = novelty.size - known
    # Only novelty above the threshold is unknown. Halfway to the next value, rounding changes no verdict.
    higher = ordered[ordered > ordered[known - 1]]
    value = float(ordered[known - 1] + higher[0]) / 2 if higher.size else float(ordered[-1])
    expected, at_most = order_statistic_rate(beyond, novelty.size)
    promise = (
        f"at most {beyond} of these {novelty.size} frames of taught classes would be unknown; of future frames of "
        f"taught classes at most {expected:.2%} on average, and given this set at most {at_most:.2%} with "
        f"{CONFIDENCE:.0%} confidence"
    )
    figures = {"frames": novelty.size, "beyond": beyond, "expected_rate": expected, "rate_at_95_percent": at_most}
    return Choice(value, f"novelty-quantile={share:g}", promise, figures)


def choose_for_purity(scored: Scored, point: OperatingPoint, target: float) -> Choice:
    """For every class the lowest confidence threshold at which `target` of its decided frames are right.

    Frames that `point` leaves undecided for other reasons do not count. A class that no frame was named gets threshold
    1, because nothing shows how often it would be right; the promise lists it. Raises CalibrationError where no
    threshold reaches the target.
    """
    kept = _decided_otherwise(scored, point)
    confidence = scored.confidence(point).astype(np.float64)
    named = scored.named(point)
    right = named == scored.truth
    thresholds: dict[str, float] = {}
    faults, unseen = [], []
    decided = correct = 0
    for k, name in enumerate(scored.classes):
        mine = np.flatnonzero(kept & (named == k))
        if not mine.size:
            thresholds[name] = 1.0
            unseen.append(name)
            continue
        cut = _purity_cut(confidence[mine], right[mine], target)
        if isinstance(cut, str):
            faults.append(f"{name}: {cut}")
            continue
        thresholds[name] = cut.threshold
        decided, correct = decided + cut.decided, correct + cut.right
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise CalibrationError(
            f"no confidence threshold reaches a purity of {target:g} for some classes; lower the target, teach with "
            f"more shots, or bring more frames:{listed}"
        )
    if not decided:
        raise CalibrationError(
            f"purity={target:g} has no frame to choose by: novelty or disagreement rejects all {len(scored.labels)} "
            "frames; raise the novelty threshold, or turn off the review of disagreement"
        )
    promise = (
        f"{correct} of the {decided} frames decided here are right; on frames that did not choose the thresholds, that "
        f"would show a purity of at least {at_least(correct, decided):.1%} with {CONFIDENCE:.0%} confidence"
    )
    if unseen:
        promise += f"; no frame was named {', '.join(unseen)}, so the threshold of that class is 1"
    figures = {"frames": len(scored.labels), "decided": decided, "right": correct}
    return Choice(thresholds, f"purity={target:g}", promise, figures)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A confidence threshold of one class, the frames it decides, and how many of those are right."""

    threshold: float
    decided: int
    right: int


def _purity_cut(confidence: NDArray[np.float64], right: NDArray[np.bool_], target: float) -> _Cut | str:
    """The lowest threshold with `target` of the decided frames right, or the best purity in words if none has that.

    confidence, right: [n] of the frames named one class, n >= 1. The threshold lies halfway between two confidences.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order])
    purity = hits / np.arange(1, order.size + 1)
    cuts = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    reached = cuts[purity[cuts] >= target]
    if not reached.size:
        best = cuts[np.argmax(purity[cuts])]
        return f"at best {purity[best]:.1%}, of the {best + 1} most confident of {order.size} frames named so"
    last = int(reached[-1])
    threshold = 0.0 if last + 1 == order.size else float(sure[last] + sure[last + 1]) / 2
    return _Cut(threshold, last + 1, int(hits[last]))


def choose_for_max_reject(scored: Scored, point: OperatingPoint, share: float) -> Choice:
    """Confidence thresholds that leave at most `share` of all frames undecided, for whatever reason.

    The rejects allowed are divided among the predicted classes by their number of frames; each class rejects its least
    confident frames. Raises CalibrationError if other reasons alone reject more.
    """
    kept = _decided_otherwise(scored, point)
    total, already = kept.size, int((~kept).sum())
    budget = exact_floor(share, total) - already
    if budget < 0:
        raise CalibrationError(
            f"max-reject={share:g} allows {exact_floor(share, total)} rejects of {total} frames, and novelty or "
            f"disagreement rejects {already} already: raise the novelty threshold or allow more rejects"
        )
    confidence = scored.confidence(point).astype(np.float64)
    named = scored.named(point)
    thresholds: dict[str, float] = {}
    rejected = 0
    for k, name in enumerate(scored.classes):
        sure = np.sort(confidence[kept & (named == k)])
        # The most confident frame stays: no threshold in [0, 1] is certain to reject it.
        allowed = min(budget * sure.size // int(kept.sum()), sure.size - 1) if sure.size else 0
        lower = sure[sure < sure[allowed]] if allowed else sure[:0]  # equal ones stay together
        thresholds[name] = float(sure[lower.size - 1] + sure[lower.size]) / 2 if lower.size else 0.0
        rejected += lower.size
    promise = (
        f"{already + rejected} of these {total} frames are rejected, {rejected} of them for low confidence; future "
        "frames that are harder are rejected more often"
    )
    figures = {"frames": total, "rejected": already + rejected, "for_low_confidence": rejected}
    return Choice(thresholds, f"max-reject={share:g}", promise, figures)


@dataclass(frozen=True, slots=True)
class PurityCoverage:
    """Purity over coverage as one confidence threshold for all classes falls: [n] each, by growing coverage."""

    coverage: NDArray[np.float64]
    purity: NDArray[np.float64]
    confidence: NDArray[np.float64]


def purity_coverage(scored: Scored, point: OperatingPoint) -> PurityCoverage:
    """The curve over all frames, named as at `point`; frames of equal confidence are one point."""
    confidence = scored.confidence(point).astype(np.float64)
    order = np.argsort(-confidence, kind="stable")
    sure = confidence[order]
    ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    purity = np.cumsum((scored.named(point) == scored.truth)[order]) / np.arange(1, order.size + 1)
    return PurityCoverage((ends + 1) / order.size, purity[ends], sure[ends])


def _decided_otherwise(scored: Scored, point: OperatingPoint) -> NDArray[np.bool_]:
    """Frames that would be decided without confidence thresholds."""
    free = replace(point, confidence_thresholds=dict.fromkeys(scored.classes, 0.0))
    return ~np.isin(np.array(scored.verdicts(free)), VERDICTS)
