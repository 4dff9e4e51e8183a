"""How far an engine's answers are from the reference, whether that is allowed, and what the likely fault is.

The export checks its files by these rules, and `sem-clip verify` checks an engine where it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends.base import Outputs

TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "fp16": 1e-2}
"""Largest absolute difference allowed on probabilities and defect map, by precision of the artifact."""
INT8_TOLERANCE = 0.2
"""Of 8-bit artifacts for which nothing was measured (`int8_tolerance`). It allows what rounding does to single frames,
and no swapped class or shifted map."""
INT8_MARGIN, INT8_LEAST, INT8_MOST = 3.0, 0.1, 0.5
"""Times the largest difference that `quantize` measured, within bounds: golden frames include saturated ones, which
differ twice as much as real ones (sem_tiny: 0.06 of the map, 0.03 on the frames of `quantize`)."""
BF16_PER_FP16 = 8.0
"""bf16 keeps three bits fewer of each number than fp16: answers may differ by eight times as much."""
FEATURES_PER_TOLERANCE = {"fp32": 10.0, "fp16": 5.0, "bf16": 1.25}
"""Features have no range: their mean absolute change as a share of their mean size, in units of the tolerance."""
INT8_FEATURES = 0.4
"""The same for 8 bits, whatever the tolerance: those of real frames change by 1 to 4 %, those of a saturated frame by
18 % (sem_tiny), because no range was measured on such frames."""
EIGHT_BITS = ("int8", "int8-bf16")
"""What is not in 8 bits may be in bf16: that adds less than the rule for 8 bits leaves room for."""
TIE = 0.1
"""Labels may differ where the reference's two best classes are closer than this share of the tolerance. In 8 bits:
closer than the tolerance, and never more than INT8_TOLERANCE apart."""
_FP16_MOST = 65504.0
_MOST_SHIFT = 2

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """Allowed: the largest difference of probabilities and map, the gap of a tie, the mean relative feature drift."""

    largest: float
    tie: float
    features: float

    @classmethod
    def of(cls, precision: str, tolerance: float) -> Limits:
        """precision: what the engine computes in. tolerance: of `tolerance_of`."""
        if precision in EIGHT_BITS:
            return cls(tolerance, min(tolerance, INT8_TOLERANCE), INT8_FEATURES)
        return cls(tolerance, TIE * tolerance, FEATURES_PER_TOLERANCE[precision] * tolerance)


@dataclass(frozen=True, slots=True)
class Difference:
    """Differences between an engine's answers and the reference on the same frames.

    probabilities, defect_map: largest absolute difference. features: mean absolute one, relative to their mean size.
    labels_equal, label_ties: numbers of frames; a tie is a label that may differ and does. faulty: indices of the
    frames beyond the limits.
    """

    frames: int
    probabilities: float
    defect_map: float
    features: float
    labels_equal: int
    label_ties: int
    faulty: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Whether every frame is within the limits."""
        return not self.faulty


def tolerance_of(
    precision: str, recorded: Mapping[str, float], reports: Iterable[tuple[str, Mapping[str, Any]]]
) -> float:
    """The largest difference that an engine may show which computes in `precision`.

    recorded: what the golden frames record, by precision of files. reports: precision and parity report of each of the
    bundle's files.
    """
    if precision in EIGHT_BITS:
        return int8_tolerance((report for of, report in reports if of == "int8"), recorded["int8"])
    if precision == "bf16":
        return BF16_PER_FP16 * recorded["fp16"]
    return recorded[precision]


def int8_tolerance(reports: Iterable[Mapping[str, Any]], unknown: float) -> float:
    """The tolerance of 8-bit engines by the parity reports of the bundle's 8-bit artifacts; `unknown` without any."""
    keys = ("max_abs_probability", "max_abs_defect_map")
    values = [report.get(key) for report in reports for key in keys]
    measured = [value for value in values if isinstance(value, float) and value >= 0]
    return min(INT8_MOST, max(INT8_LEAST, INT8_MARGIN * max(measured))) if measured else unknown


def compare(reference: Outputs, found: Outputs, limits: Limits) -> Difference:
    """The difference of two batches of one shape, frame by frame."""
    probabilities = _largest(reference.probabilities, found.probabilities)
    maps = _largest(reference.defect_map, found.defect_map)
    features = _changed(reference.features, found.features)
    equal = reference.probabilities.argmax(1) == found.probabilities.argmax(1)
    ties = ~equal & (gap(reference.probabilities) <= limits.tie)
    sound = (probabilities <= limits.largest) & (maps <= limits.largest) & (features <= limits.features)
    sound &= equal | ties
    return Difference(
        frames=len(equal),
        probabilities=float(probabilities.max()),
        defect_map=float(maps.max()),
        features=float(features.max()),
        labels_equal=int(equal.sum()),
        label_ties=int(ties.sum()),
        faulty=tuple((~sound).nonzero()[0].tolist()),
    )


def gap(probabilities: Array) -> Array:
    """Between the two likeliest classes of each row: [n]."""
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    difference: Array = first - second
    return difference


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Batches, one after the other, as one."""
    return Outputs(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.defect_map for part in parts]),
        np.concatenate([part.features for part in parts]),
    )


def rows_of(outputs: Outputs, rows: slice | Array) -> Outputs:
    """Some frames of a batch."""
    return Outputs(outputs.probabilities[rows], outputs.defect_map[rows], outputs.features[rows])


def explain(
    reference: Outputs,
    found: Outputs,
    limits: Limits,
    classes: Sequence[str],
    before: Outputs | None = None,
) -> str:
    """The fault behind answers beyond the limits, in words: a known kind of fault, or else the bare figures.

    before: the answers to the same frames by the recipe that was in use before.
    """
    difference = compare(reference, found, limits)
    comparable = before is not None and before.probabilities.shape == found.probabilities.shape
    if before is not None and comparable and compare(before, found, limits).passed:
        return "the answers are still those of the recipe before: the new one does not reach the engine"
    for known in (_of_other_frames, _of_other_classes, _saturated, _moved_map):
        said = known(reference, found, limits, classes)
        if said:
            return said
    return _figures(difference, limits)


def _figures(difference: Difference, limits: Limits) -> str:
    said = []
    if not difference.probabilities <= limits.largest:
        said.append(f"probabilities differ by up to {difference.probabilities:.1e} (allowed {limits.largest:.0e})")
    if not difference.defect_map <= limits.largest:
        said.append(f"the map differs by up to {difference.defect_map:.1e} (allowed {limits.largest:.0e})")
    if not difference.features <= limits.features:
        said.append(f"features change by {difference.features:.1%} (allowed {limits.features:.1%})")
    unlike = difference.frames - difference.labels_equal - difference.label_ties
    if unlike:
        said.append(f"{unlike} labels differ")
    return f"{len(difference.faulty)} of {difference.frames} frames: {', '.join(said)}"


def _of_other_frames(reference: Outputs, found: Outputs, limits: Limits, classes: Sequence[str]) -> str:
    """Rows of a batch are in another order, or answer to padding."""
    for row in compare(reference, found, limits).faulty:
        one = rows_of(found, slice(row, row + 1))
        for other in range(len(reference.probabilities)):
            if other != row and compare(rows_of(reference, slice(other, other + 1)), one, limits).passed:
                return f"row {row} of the batch holds the answer to another frame: rows are padded or ordered wrongly"
    return ""


def _of_other_classes(reference: Outputs, found: Outputs, limits: Limits, classes: Sequence[str]) -> str:
    """The probabilities belong to other classes, and the map is right."""
    if _largest(reference.defect_map, found.defect_map).max() > limits.largest:
        return ""
    apart = np.abs(found.probabilities[:, :, None] - reference.probabilities[:, None]).max(0)
    apart = np.where(np.isfinite(apart), apart, np.inf)
    own = np.diagonal(apart) <= limits.largest
    nearest = np.where(own, np.arange(len(own)), apart.argmin(1))
    if own.all() or len(set(nearest.tolist())) < len(own) or apart[np.arange(len(own)), nearest].max() > limits.largest:
        return ""
    return f"the classes {' and '.join(classes[k] for k in (~own).nonzero()[0].tolist())} are swapped"


def _saturated(reference: Outputs, found: Outputs, limits: Limits, classes: Sequence[str]) -> str:
    """Values lie at the ends of their range where the reference's lie in the middle."""
    if np.abs(found.features).max() >= _FP16_MOST > np.abs(reference.features).max():
        return "features reach the largest number of fp16: a layer overflows, and what follows it is lost"
    middle = (reference.defect_map > limits.largest) & (reference.defect_map < 1 - limits.largest)
    ends = (found.defect_map <= 0) | (found.defect_map >= 1)
    share = float(ends[middle].mean()) if middle.any() else 0.0
    if share > 0.1:
        return f"{share:.0%} of the map is saturated at 0 or 1: a layer overflows in low precision"
    return ""


def _moved_map(reference: Outputs, found: Outputs, limits: Limits, classes: Sequence[str]) -> str:
    """The map is right, but in another place."""
    rows, columns = reference.defect_map.shape[1:]
    for down, right in _shifts(min(_MOST_SHIFT, rows - 1), min(_MOST_SHIFT, columns - 1)):
        here = found.defect_map[:, max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)]
        there = reference.defect_map[:, max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
        if np.abs(here - there).max() <= limits.largest:
            return f"the map is shifted by {down} patches down and {right} to the right"
    turned = {
        "upside down": reference.defect_map[:, ::-1],
        "mirrored": reference.defect_map[:, :, ::-1],
        "transposed": reference.defect_map.transpose(0, 2, 1),
        "inverted": 1 - reference.defect_map,
    }
    for how, there in turned.items():
        if there.shape == found.defect_map.shape and np.abs(found.defect_map - there).max() <= limits.largest:
            return f"the map is {how}"
    return ""


def _shifts(down: int, right: int) -> Iterator[tuple[int, int]]:
    """All shifts but (0, 0), the smallest first."""
    every = [(y, x) for y in range(-down, down + 1) for x in range(-right, right + 1) if (y, x) != (0, 0)]
    yield from sorted(every, key=lambda shift: abs(shift[0]) + abs(shift[1]))


def _largest(a: Array, b: Array) -> Array:
    """Largest absolute difference of each frame; NaN counts as infinite, or it would pass every test."""
    difference = np.abs(a.astype(np.float64) - b).reshape(len(a), -1).max(axis=1)
    found: Array = np.where(np.isfinite(difference), difference, np.inf)
    return found


def _changed(a: Array, b: Array) -> Array:
    """Mean absolute difference of each frame, relative to the mean size of `a`; NaN counts as infinite."""
    size = np.abs(a.astype(np.float64)).mean(axis=1)
    difference = np.abs(a.astype(np.float64) - b).mean(axis=1) / np.maximum(size, 1e-12)
    found: Array = np.where(np.isfinite(difference), difference, np.inf)
    return found
