"""Defect and pixel thresholds from scored frames, by a rule. Each choice states its promise for future frames."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bounds import CONFIDENCE, exact_ceil, exact_floor, order_statistic_rate
from .errors import CalibrationError
from .histogram import ScoreHistogram
from .metrics import best_f1
from .rules import CONFORMAL, F1_MAX, GOOD_QUANTILE, MAX_OVERKILL, MAX_UNDERKILL, NEEDS_DEFECTS, Choice, Rule

Scores = NDArray[np.float64]


def choose_defect_threshold(rule: Rule, scores: ArrayLike, defect: ArrayLike) -> Choice:
    """The defect threshold t ("score >= t" is a defect) by `rule`.

    scores: [n] frame scores in [0, 1]. defect: [n] bool, the truth; rules on good frames need no defects. Raises
    CalibrationError if scores are NaN or all equal, if the frames that the rule needs are missing, or if they are too
    few for its promise.
    """
    s, truth = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(defect, dtype=bool).ravel()
    _require_usable(s, "scores")
    good, bad = np.sort(s[~truth]), np.sort(s[truth])
    if rule.name in NEEDS_DEFECTS and not bad.size:
        raise CalibrationError(
            f"{rule} needs labelled defect frames and there are none; {CONFORMAL}=0.05 and {GOOD_QUANTILE}=0.99 "
            "need good frames only"
        )
    if rule.name != MAX_UNDERKILL and not good.size:
        raise CalibrationError(f"{rule} needs good frames and there are none")
    if rule.name == F1_MAX:
        value, f1 = f1_max_threshold(s, truth)
        promise = f"F1 {f1:.3f} on these {s.size} frames, on which it was chosen; no promise for future frames"
        return Choice(value, str(rule), promise, {"f1": f1, "good_frames": good.size, "defect_frames": bad.size})
    if rule.name == MAX_UNDERKILL:
        assert rule.share is not None
        missed = exact_floor(rule.share, bad.size)
        value = _just_below(bad[missed], s)
        return Choice(value, str(rule), *_promise("defect frames", "missed", missed, bad.size))
    called = _allowed_beyond(rule, good.size, "good frames")
    # conformal takes the tightest cut, its quantile. The other rules leave room for rounding. Every frame here gets
    # the same verdict from both.
    cut = _just_above(good[good.size - called - 1], good[:0] if rule.name == CONFORMAL else s)
    if cut > 1:
        raise CalibrationError(f"{rule}: good frames reach the highest score, 1: no threshold passes enough of them")
    return Choice(cut, str(rule), *_promise("good frames", "called defective", called, good.size))


def choose_pixel_threshold(
    rule: Rule, pixels: ScoreHistogram, good_pixels: ScoreHistogram, good_peaks: ArrayLike
) -> Choice:
    """The pixel threshold t ("map value >= t" is in the mask) by `rule`.

    pixels: map values with their truth, of frames with masks and of good frames. good_pixels: of good frames alone,
    because the map also rises around a defect. good_peaks: the highest map value of every good frame.

    f1-max needs masks. good-quantile keeps a share of the pixels of good frames below t. conformal bounds the share of
    good frames with any pixel at or above t, since the pixels of one frame are not independent. Raises
    CalibrationError.
    """
    if rule.name == F1_MAX:
        value, f1 = pixels.f1_max_threshold()
        count = int(pixels.positive.sum() + pixels.negative.sum())
        return Choice(
            value, str(rule), f"F1 {f1:.3f} on these {count:,} pixels; no promise for future frames", {"f1": f1}
        )
    assert rule.share is not None
    if rule.name == GOOD_QUANTILE:
        value = good_pixels.negative_quantile(rule.share)
        count = int(good_pixels.negative.sum())
        promise = (
            f"{rule.share:.2%} of the {count:,} pixels of good frames here stay out of the mask; no promise for future "
            "frames"
        )
        return Choice(value, str(rule), promise, {"good_pixels": count})
    peaks = np.sort(np.asarray(good_peaks, dtype=np.float64).ravel())
    if not peaks.size:
        raise CalibrationError(f"{rule} needs good frames and there are none")
    _require_usable(peaks, "map peaks of the good frames")
    marked = _allowed_beyond(rule, peaks.size, "good frames")
    # Maps are float32: the next float64 would round back onto the peak itself.
    cut = float(np.nextafter(np.float32(peaks[peaks.size - marked - 1]), np.float32(2)))
    if cut > 1:
        raise CalibrationError(f"{rule}: maps of good frames reach the highest value, 1: no threshold passes enough")
    return Choice(cut, str(rule), *_promise("good frames", "at or above it anywhere", marked, peaks.size))


def f1_max_threshold(scores: ArrayLike, positive: ArrayLike, good_weight: float = 1.0) -> tuple[float, float]:
    """The threshold t for which "score >= t" has the highest F1, and that F1.

    scores: [n] finite. positive: [n] bool, true for defects. good_weight: weight of a good item relative to a defect,
    for items that were not drawn in their natural proportion. t lies halfway between the lowest score called positive
    and the highest one called negative. Of equal F1 the higher threshold wins (less overkill). Raises CalibrationError
    without a positive, without a score, or if a score is not finite.
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
    hits, called = np.cumsum(truth), np.cumsum(np.where(truth, 1.0, good_weight))
    # Equal scores fall on the same side: only the last of each run is a possible cut.
    cuts = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    best, f1 = best_f1(hits[cuts], called[cuts], int(truth.sum()))
    return _just_below(s[cuts[best]], s), f1


def _allowed_beyond(rule: Rule, count: int, what: str) -> int:
    """Number of `count` frames that may lie beyond the threshold. CalibrationError if conformal needs more frames.

    Conformal: the ceil((n + 1)(1 - a))-th smallest score of n is the split-conformal quantile (Papadopoulos et al.
    2002; Vovk, Gammerman, Shafer 2005), so floor((n + 1) a) - 1 frames lie beyond it.
    """
    assert rule.share is not None
    if rule.name == MAX_OVERKILL:
        return exact_floor(rule.share, count)
    if rule.name == GOOD_QUANTILE:
        return count - exact_ceil(rule.share, count)
    beyond = exact_floor(rule.share, count + 1) - 1
    if beyond < 0:
        needed = math.ceil(1 / Fraction(repr(rule.share))) - 1
        raise CalibrationError(
            f"{rule} promises a rate that {count} {what} cannot support: at least {needed} are needed (1/a - 1); bring "
            f"{needed - count} more, or choose a share of at least {math.ceil(1000 / (count + 1)) / 1000:g}"
        )
    return beyond


def _promise(what: str, done: str, beyond: int, count: int) -> tuple[str, dict[str, float | int]]:
    expected, at_most = order_statistic_rate(beyond, count)
    promise = (
        f"of the {count} {what} here at most {beyond} {'is' if beyond == 1 else 'are'} {done}; of future {what}, "
        f"drawn like these, at most {expected:.2%} on average over calibration sets, and given this set at most "
        f"{at_most:.2%} with {CONFIDENCE:.0%} confidence"
    )
    return promise, {"frames": count, "beyond": beyond, "expected_rate": expected, "rate_at_95_percent": at_most}


def _just_above(value: float, scores: Scores) -> float:
    """Halfway to the next higher score, so that rounding changes no verdict; without one, the next float."""
    higher = scores[scores > value]
    following = math.nextafter(value, math.inf)
    middle = float(value + higher.min()) / 2 if higher.size else following
    return max(middle, following)


def _just_below(value: float, scores: Scores) -> float:
    """Halfway to the next lower score; the value itself without a lower score, or without a float between."""
    lower = scores[scores < value]
    if not lower.size:
        return float(value)
    middle = float(value + lower.max()) / 2
    return middle if middle > lower.max() else float(value)


def _require_usable(scores: Scores, what: str) -> None:
    if not scores.size:
        raise CalibrationError(f"there are no {what}")
    if not np.isfinite(scores).all():
        count = int((~np.isfinite(scores)).sum())
        raise CalibrationError(
            f"{count} of {scores.size} {what} are NaN or infinite: the engine or the recipe is broken"
        )
    if scores.min() == scores.max():
        raise CalibrationError(f"all {scores.size} {what} are equal ({scores[0]:g}): no threshold separates anything")
