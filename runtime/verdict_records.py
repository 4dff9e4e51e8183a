"""What a store of verdicts holds, as small frozen records: runs, places on wafers, listed frames, and queries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import real_number
from .fab.codes import NOT_READ
from .recipe import Recipe
from .rows import printed

ORDERS = ("newest", "least sure", "most unlike", "confidence", "novelty", "size", "source")
MOST_LISTED = 1000
"""Entries that one call returns at most."""
MOST_CHOSEN = 100_000
"""Ids that a query names at most."""
__all__ = ["MOST_LISTED", "NOT_READ", "NOWHERE", "ORDERS", "Entry", "Query", "Run", "Scores", "Site"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where on a wafer a frame lies; all None for `predict`.

    x_nm, y_nm: from the wafer's centre. wafer_mm: its diameter.
    """

    lot: str | None = None
    wafer: str | None = None
    defect_id: str | None = None
    x_nm: float | None = None
    y_nm: float | None = None
    wafer_mm: float | None = None


NOWHERE = Site()
"""The place of a frame that comes from no wafer."""


@dataclass(frozen=True, slots=True)
class Run:
    """One command that judged.

    when: ISO 8601, UTC, in seconds. bundle: its absolute path. operating_point: as `OperatingPoint.to_dict`.
    Of a run whose answers come from JSON lines, which do not tell, the texts and the operating point are empty.
    """

    when: str
    bundle: str
    encoder_id: str
    recipe_sha256: str
    classes: tuple[str, ...]
    operating_point: Mapping[str, Any]

    @classmethod
    def now(cls, bundle: str | Path, encoder_id: str, recipe: Recipe) -> Run:
        """A run that begins now, with a recipe on the encoder of a bundle."""
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        place = printed(str(Path(bundle).absolute()))
        return cls(when, place, encoder_id, recipe.sha256(), recipe.classes, recipe.operating_point.to_dict())


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame as a list shows it.

    id: of the answer; a frame that is judged again gets a new one. run: index of its run in `VerdictStore.runs()`.
    path: absolute, with "#page" of a stack; None if the frame did not come from a file.
    size_nm: the longest side of the largest region; None without regions, and where the size of a pixel is unknown.
    frame_size: [height, width]. error: why the frame was not read; then all that follows `site` is None.
    """

    id: int
    run: int
    source: str
    path: str | None
    site: Site
    verdict: str | None
    label: str | None
    is_defect: bool | None
    confidence: float | None
    score: float | None
    novelty: float | None
    size_nm: float | None
    frame_size: tuple[int, int] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Query:
    """Which frames to list, and in which order. Of each kind of names one must fit; no names fit all.

    verdicts: "not read" stands for frames that were not read. labels: of `label`. lots: of `site.lot`.
    A frame without a number fits no bound on it. text: a part of `source`; capitals of ASCII count as small letters.
    ids: only these; None for all. without: none of these.
    order: "newest" newest first; "least sure" rejects first, then by the smallest margin between the two likeliest
    classes; "most unlike" by falling novelty; the others rising, `source` as text. descending turns the order around;
    frames without the number that orders come last in either.
    Raises ValueError for an unknown order, and for a bound that is no number.
    """

    verdicts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    lots: tuple[str, ...] = ()
    min_confidence: float | None = None
    max_confidence: float | None = None
    min_novelty: float | None = None
    max_novelty: float | None = None
    min_size_nm: float | None = None
    max_size_nm: float | None = None
    text: str = ""
    ids: tuple[int, ...] | None = None
    without: tuple[int, ...] = ()
    order: str = "source"
    descending: bool = False

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f'order must be one of {", ".join(ORDERS)}, not "{self.order!s:.60}"')
        for name, _, _ in BOUNDS:
            if (value := getattr(self, name)) is not None:
                real_number(name, value, -math.inf, math.inf)
        for name in ("verdicts", "labels", "lots"):
            if not all(isinstance(one, str) for one in getattr(self, name)) or len(getattr(self, name)) > MOST_LISTED:
                raise ValueError(f"{name} must be at most {MOST_LISTED} texts")
        if not isinstance(self.text, str):
            raise ValueError(f"text must be a text, not {self.text!r:.60}")
        for chosen in (self.ids or (), self.without):
            if len(chosen) > MOST_CHOSEN or not all(type(one) is int and 0 < one < 2**62 for one in chosen):
                raise ValueError(f"ids must be at most {MOST_CHOSEN:,} ids of entries")


BOUNDS = (
    ("min_confidence", "confidence", ">="),
    ("max_confidence", "confidence", "<="),
    ("min_novelty", "novelty", ">="),
    ("max_novelty", "novelty", "<="),
    ("min_size_nm", "size_nm", ">="),
    ("max_size_nm", "size_nm", "<="),
)
"""Fields of a query that bound a number of the entries: name, column, comparison."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The numbers that the listed answers of one run were decided by, to decide them again by another operating point.

    ids: int64 [n]. verdicts: [n] texts. probabilities: float64 [n, K] by the run's classes, at its temperature.
    score, novelty: float64 [n].
    """

    ids: NDArray[np.int64]
    verdicts: tuple[str, ...]
    probabilities: NDArray[np.float64]
    score: NDArray[np.float64]
    novelty: NDArray[np.float64]
