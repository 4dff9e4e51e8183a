"""The numbers behind the verdicts of a store, to judge them again at another operating point without an engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.operating_point import OperatingPoint
from runtime.verdict import decide, temper
from runtime.verdict_store import Query

from .session import Kept, Session, point_of


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """n frames of known scores.

    classes: K names. ids, verdicts: [n] as in the store. probabilities: float32 [n, K] at temperature 1. score,
    novelty: [n]. left_out: frames without them: not read, judged by other classes, or from JSON lines.
    """

    classes: tuple[str, ...]
    ids: list[int]
    verdicts: list[str]
    probabilities: NDArray[np.float32]
    score: list[float]
    novelty: list[float]
    left_out: int

    def at(self, point: OperatingPoint) -> list[str]:
        """The verdicts [n] at another operating point, by the rules that judged."""
        rows = zip(self.probabilities, self.score, self.novelty, strict=True)
        return [decide(point, self.classes, row, score, novelty).verdict for row, score, novelty in rows]


class ScoreBook:
    """The scores of a session's store, read once for each of its states."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept = Kept(self._read, lambda: (session.store.change_counter(), session.taught()))

    def scores(self) -> Scores:
        """Those of the present answers, of the classes of the recipe, or else of the newest run."""
        found: Scores = self._kept.get()
        return found

    def _read(self) -> Scores:
        store, classes = self._session.store, self._session.taught()
        found = Scores(classes, [], [], np.zeros((0, len(classes)), np.float32), [], [], 0)
        parts = [found.probabilities]
        for number, run in enumerate(store.runs()):
            point = point_of(run)
            if point is None or {*run.classes} != {*classes}:
                continue
            of_run = store.scores(number)
            columns = [run.classes.index(name) for name in classes]
            tempered = of_run.probabilities[:, columns].astype(np.float32)
            parts.append(temper(tempered, 1 / point.temperature) if len(tempered) else tempered)
            found.ids.extend(of_run.ids.tolist())
            found.verdicts.extend(of_run.verdicts)
            found.score.extend(of_run.score.tolist())
            found.novelty.extend(of_run.novelty.tolist())
        left_out = store.count(Query()) - len(found.ids)
        return Scores(
            classes, found.ids, found.verdicts, np.concatenate(parts), found.score, found.novelty, max(0, left_out)
        )
