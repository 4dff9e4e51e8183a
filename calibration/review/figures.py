"""Counts and rates of the review page: Pareto, confusion, purity and coverage, now and at a moved operating point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runtime.operating_point import VERDICTS, OperatingPoint
from runtime.recipe import MAX_CLASSES
from runtime.verdict_store import NOT_READ

from .scores import ScoreBook
from .session import Session
from .web import Answer, Asked, Parameters, ReviewError, json_answer

MOST_NAMES = 4 * MAX_CLASSES
"""Rows of the confusion: all classes of several recipes. The store of another program's making may have any number."""
MOST_CHANGED = 200
"""Frames that are named where an operating point is moved; all are counted."""


class Figures:
    """Handlers of /api/summary and /api/operating-point."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._book = ScoreBook(session)

    def summary(self, _: Asked) -> Answer:
        """What the store holds, against what was corrected."""
        session = self._session
        counts = {name: count for name, count in session.store.verdicts().items() if name != NOT_READ}
        corrected = session.corrected()
        verdicts = {number: session.entry(number).verdict or "" for number in corrected}
        truth = {number: correction.new for number, correction in corrected.items()}
        added = Counter(truth.values())
        names = list(dict.fromkeys([*session.classes(), *VERDICTS, *counts]))[:MOST_NAMES]
        point = session.point()
        order = sorted(names, key=lambda name: (-counts.get(name, 0), names.index(name)))
        return json_answer(
            {
                "pareto": [
                    {"class": name, "count": counts.get(name, 0), "corrected": added[name]}
                    for name in order
                    if counts.get(name) or added[name]
                ],
                "confusion": {"classes": names, "rows": confusion(names, verdicts, truth)},
                "purity": purity(verdicts, truth),
                "coverage": coverage(counts),
                "operating_point": None if point is None else point.to_dict(),
            }
        )

    def moved(self, asked: Asked) -> Answer:
        """What another operating point would change. Nothing is stored.

        defect_threshold; novelty_threshold, or "none"; reject: the confidence from which each class is decided. What is
        left out stays as it is.
        """
        present = self._session.point()
        if present is None:
            raise ReviewError("the store does not know its operating point: start with --bundle DIR", 409)
        point = _moved(present, Parameters(asked.query))
        scores = self._book.scores()
        if not scores.ids:
            raise ReviewError("no frame has the scores of these classes: JSON lines do not hold them", 409)
        before, after = scores.verdicts, scores.at(point)
        changed = [number for number, old, new in zip(scores.ids, before, after, strict=True) if old != new]
        truth = {number: correction.new for number, correction in self._session.corrected().items()}

        def rates(verdicts: Sequence[str]) -> dict[str, Any]:
            known = {number: verdict for number, verdict in zip(scores.ids, verdicts, strict=True) if number in truth}
            counts = Counter(verdicts)
            return {"verdicts": counts, "purity": purity(known, truth), "coverage": coverage(counts)}

        return json_answer(
            {
                **rates(after),
                "before": rates(before),
                "changed": changed[:MOST_CHANGED],
                "changed_total": len(changed),
                "left_out": scores.left_out,
                "operating_point": point.to_dict(),
            }
        )


def _moved(point: OperatingPoint, given: Parameters) -> OperatingPoint:
    defect, reject = given.number("defect_threshold", 0, 1), given.number("reject", 0, 1)
    unlimited = given.text("novelty_threshold") == "none"
    novelty = None if unlimited else given.number("novelty_threshold", 0, 2)
    given.finish()
    floors = point.confidence_thresholds
    return replace(
        point,
        defect_threshold=point.defect_threshold if defect is None else defect,
        novelty_threshold=point.novelty_threshold if novelty is None and not unlimited else novelty,
        confidence_thresholds=floors if reject is None else dict.fromkeys(floors, reject),
    )


def confusion(names: Sequence[str], verdicts: Mapping[int, str], truth: Mapping[int, str]) -> list[list[int]]:
    """rows[i][j]: frames of the verdict names[i] that were corrected to names[j]."""
    counts = Counter((verdicts[number], truth[number]) for number in truth if number in verdicts)
    return [[counts[row, column] for column in names] for row in names]


def purity(verdicts: Mapping[int, str], truth: Mapping[int, str]) -> dict[str, Any]:
    """Of the corrected frames that were decided, the share whose class is right."""
    decided = [number for number in truth if verdicts.get(number, "") not in ("", *VERDICTS)]
    return rate(sum(verdicts[number] == truth[number] for number in decided), len(decided))


def coverage(counts: Mapping[str, int]) -> dict[str, Any]:
    """Of all frames with a verdict, the share that was decided."""
    total = sum(counts.values())
    return rate(total - sum(counts.get(name, 0) for name in VERDICTS), total)


def rate(count: int, of: int) -> dict[str, Any]:
    """A share with its counts; null where nothing counts."""
    return {"value": count / of if of else None, "count": count, "of": of}
