"""From the images of one defect to one verdict.

The rule, in this order:

1. A defect class found on any image: the class of the image with the highest defect score among those that name one.
   Images that show nothing do not outvote one that does.
2. Else a reject (`unknown`, `cannot decide`) on any image: that of the image with the highest defect score among those.
3. Else, if an image could not be read: `not read`. It might have shown what the others do not.
4. Else `good`, by the image with the highest defect score. Without any image: `no image`.

Of equal scores the first image counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import FrameError
from ..operating_point import VERDICTS
from ..prediction import Prediction
from ..rows import printed
from .codes import NO_IMAGE, NOT_READ

GOOD = "good"
"""The first class of every recipe."""
NAMED = 5
"""Images that could not be read which the reason of a defect names; its list of images has all."""


def rank(verdict: str) -> int:
    """The step of the rule at which an image of this verdict decides; the lowest of a defect's images wins."""
    if verdict in VERDICTS:
        return 2
    return 4 if verdict == GOOD else 1


@dataclass(slots=True, eq=False)
class Fusion:
    """The verdict of one defect, as its images come in.

    best: the prediction that decides, and the name of its image; None as long as none was read.
    images: what each image says, JSON-ready. failed: how many could not be read. unread: the first NAMED of them.
    """

    best: tuple[str, Prediction] | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    unread: list[str] = field(default_factory=list)

    def add(self, image: str, kind: str | None, prediction: Prediction) -> None:
        """Take in an image that was judged. kind: its type, as the lot's file names it."""
        self.images.append(
            {
                "image": image,
                "type": kind,
                "verdict": prediction.verdict,
                "label": prediction.label,
                "score": prediction.score,
                "novelty": prediction.novelty,
                **({"warnings": list(prediction.warnings)} if prediction.warnings else {}),
            }
        )
        if self.best is None or _before(prediction, self.best[1]):
            self.best = image, prediction

    def fail(self, image: str, kind: str | None, error: FrameError | str) -> None:
        """Take in an image that could not be read."""
        reason = printed(error.reason if isinstance(error, FrameError) else error)  # it may quote the name of a folder
        self.images.append({"image": image, "type": kind, "error": reason})
        self.failed += 1
        if self.failed <= NAMED:
            self.unread.append(f"{image}: {reason}")

    def verdict(self) -> tuple[str, str]:
        """The verdict and its reason."""
        more = f"; and {self.failed - NAMED} more" if self.failed > NAMED else ""
        unread = f"not read: {'; '.join(self.unread)}{more}" if self.failed else ""
        if self.best is None:
            return (NOT_READ, unread) if unread else (NO_IMAGE, "the lot names no image of it to judge")
        image, best = self.best
        if best.verdict == GOOD and unread:
            return NOT_READ, f"{unread}; the other images show nothing"
        reason = best.reason if len(self.images) == 1 else f"{image}: {best.reason}"
        return best.verdict, f"{reason}; {unread}" if unread else reason


def _before(new: Prediction, best: Prediction) -> bool:
    """Whether `new` decides instead of `best`, which came first."""
    return (rank(new.verdict), -new.score) < (rank(best.verdict), -best.score)
