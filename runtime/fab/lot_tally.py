"""What a lot adds up to: counts for its report and summary, taken in defect by defect."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..operating_point import VERDICTS
from ..terminal import Reasons
from .codes import NO_IMAGE, NOT_READ
from .drift import Collector

SHOWN = 20
"""How many unread images and warnings a report names; the side file names all."""
MANUAL_COLUMNS = ("MANSEMCLASS", "MANOPTCLASS", "MAN_SEM")
"""Columns in which people write classes, in the order in which the first one with a class is taken."""
UNCLASSIFIED = (None, 0, -1)
"""Manual class numbers that mean that nobody has classified the defect."""


@dataclass(frozen=True, slots=True)
class WaferFacts:
    """A wafer of the lot. diameter_nm: None where the file does not tell."""

    id: str
    slot: str | None
    diameter_nm: float | None


@dataclass(slots=True, eq=False)
class Places:
    """Where the defects of one wafer with one verdict lie, from the wafer's middle."""

    x_nm: array[float] = field(default_factory=lambda: array("d"))
    y_nm: array[float] = field(default_factory=lambda: array("d"))


class Tally:
    """Counts of one lot. A defect takes 16 bytes for its place and 16 for drift, so that a large lot stays small."""

    def __init__(self, wafers: Sequence[WaferFacts], classes: Sequence[str]) -> None:
        self.wafers = tuple(wafers)
        self.classes = tuple(classes)
        self.verdicts: Counter[str] = Counter()
        self.by_wafer: list[Counter[str]] = [Counter() for _ in wafers]
        self.places: list[dict[str, Places]] = [defaultdict(Places) for _ in wafers]
        self.manual: Counter[tuple[int, str]] = Counter()
        self.agreed = 0
        self.unread = Reasons(SHOWN)
        self.warnings = Reasons(SHOWN)
        self.frames = Collector()

    def add(self, wafer: int, record: Mapping[str, Any], manual: int | None) -> None:
        """Take in one defect. wafer: its index. record: its line of the side file. manual: its manual class."""
        verdict = record["verdict"]
        self.verdicts[verdict] += 1
        self.by_wafer[wafer][verdict] += 1
        if record["x_nm"] is not None and record["y_nm"] is not None:
            places = self.places[wafer][verdict]
            places.x_nm.append(record["x_nm"])
            places.y_nm.append(record["y_nm"])
        if manual not in UNCLASSIFIED and verdict not in (NO_IMAGE, NOT_READ):
            assert manual is not None
            self.manual[manual, verdict] += 1
            self.agreed += manual == record["code"]
        self._add_images(record)

    def _add_images(self, record: Mapping[str, Any]) -> None:
        name = f"{record['wafer']}, defect {record['defect_id']}"
        tested = False
        for image in record["images"]:
            if "error" in image:
                self.unread.add(f"{name}: {image['image']}: {image['error']}")
                continue
            for text in image.get("warnings", ()):
                self.warnings.add(f"{name}: {image['image']}: {text}")
            if not tested:  # images of one defect are alike, so only the first of them counts as a sample
                self.frames.add(image["label"], image["score"], image["novelty"], image["verdict"])
                tested = True

    @property
    def defects(self) -> int:
        """All defects of the lot."""
        return self.verdicts.total()

    @property
    def judged(self) -> int:
        """Defects with a verdict of the recipe: a class, or a reject."""
        return self.defects - self.verdicts[NOT_READ] - self.verdicts[NO_IMAGE]

    @property
    def rejected(self) -> int:
        """Judged defects that were left undecided."""
        return sum(self.verdicts[name] for name in VERDICTS)

    def pareto(self) -> list[tuple[str, int]]:
        """Verdicts of judged defects by falling count; of equal ones in the order of the recipe."""
        names = (*self.classes, *VERDICTS)
        return sorted(((name, self.verdicts[name]) for name in names), key=lambda pair: -pair[1])

    def lines(self) -> list[str]:
        """The counts for people."""
        names = [*self.classes, *VERDICTS, *(name for name in (NOT_READ, NO_IMAGE) if self.verdicts[name])]
        width = max(map(len, names))
        return [f"{self.defects} defects", *(f"  {name:<{width}}  {self.verdicts[name]:6}" for name in names)]
