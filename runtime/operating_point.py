"""The operating point: the numbers, kept in the recipe, that turn an engine's answers into verdicts.

None of them is in the graph, so a change affects verdicts only: no ONNX file, no engine, no map.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .jsonfields import Fields

UNKNOWN = "unknown"
CANNOT_DECIDE = "cannot decide"
VERDICTS = (UNKNOWN, CANNOT_DECIDE)
"""Verdicts that are no class; no class may have these names."""
CHANGED_BY_HAND = "changed_by_hand"
"""In a recipe's `calibration`: names of values that were edited since, which its promises no longer cover."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0

_LOOK_ALIKE = str.maketrans("авекмнорстухѕіјһԁԛԝаαβεηικνορτυχ", "abekmhopctyxsijhdqwaabenikvoptux")
"""Cyrillic and Greek letters, and the Latin ones that they look like."""


def same_name_key(name: str) -> str:
    """Equal for names that people or a file system take for one: case, blanks, Unicode forms, look-alike letters."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return " ".join(folded.translate(_LOOK_ALIKE).split())


def is_verdict(name: str) -> bool:
    """Whether a class of this name could be taken for a verdict that is no class."""
    return same_name_key(name) in VERDICTS


def unprintable(name: str) -> bool:
    """Whether a class of this name would be invisible in a report, or garble it."""
    return not name.strip() or not name.isprintable()


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Thresholds and weights of the verdict.

    defect_threshold: a frame whose defect score reaches it is a defect, in [0, 1].
    pixel_threshold: a map value that reaches it belongs to the mask, in [0, 1].
    temperature: T of p^(1/T) / sum, in [0.01, 100]; 1 leaves probabilities as the graph gives them (Guo et al. 2017).
    confidence_thresholds: for every class, the least probability that decides it, in [0, 1]; 0 always decides.
    novelty_threshold: a frame of higher novelty is `unknown`, in [0, 2]; None: no frame is.
    review_disagreement: whether a frame is left undecided when the likeliest class contradicts the defect score.
    class_share: the weight of 1 - P(good) in the defect score, in [0, 1]; the map's score has the rest.
    """

    defect_threshold: float
    pixel_threshold: float
    temperature: float
    confidence_thresholds: Mapping[str, float]
    novelty_threshold: float | None
    review_disagreement: bool
    class_share: float = 0.0

    @classmethod
    def taught(
        cls, classes: Sequence[str], defect_threshold: float, pixel_threshold: float, class_share: float = 0.0
    ) -> OperatingPoint:
        """The operating point that teaching sets: the defect score and two thresholds; every frame is decided."""
        return cls(defect_threshold, pixel_threshold, 1.0, dict.fromkeys(classes, 0.0), None, False, class_share)

    @classmethod
    def read(cls, fields: Fields, classes: Sequence[str]) -> OperatingPoint:
        """From a JSON object; faults go to `fields`."""
        novelty = fields.number_or_none("novelty_threshold", 0, 2)
        confidence = fields.inner("confidence_thresholds")
        point = cls(
            defect_threshold=fields.number("defect_threshold", 0, 1),
            pixel_threshold=fields.number("pixel_threshold", 0, 1),
            temperature=fields.number("temperature", MIN_TEMPERATURE, MAX_TEMPERATURE),
            confidence_thresholds={name: confidence.number(name, 0, 1) for name in dict.fromkeys(classes)},
            novelty_threshold=novelty,
            review_disagreement=fields.flag("review_disagreement"),
            # Older recipes have no share: the map alone makes their score.
            class_share=fields.number("class_share", 0, 1, default=0.0),
        )
        confidence.finish("is not a class of this recipe")
        fields.finish()
        return point

    def faults(self, classes: Sequence[str]) -> list[str]:
        """All of its faults for these classes."""
        faults: list[str] = []
        OperatingPoint.read(Fields(self.to_dict(), "operating_point", faults), classes)
        return faults

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, in the order of the fields."""
        return {
            "defect_threshold": self.defect_threshold,
            "pixel_threshold": self.pixel_threshold,
            "temperature": self.temperature,
            "confidence_thresholds": dict(self.confidence_thresholds),
            "novelty_threshold": self.novelty_threshold,
            "review_disagreement": self.review_disagreement,
            "class_share": self.class_share,
        }
