"""What a SEM says about a frame, and how two sources of it become one. What is not known is None, never 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, TypeAlias

from .sem_units import within

Pair: TypeAlias = "tuple[float, float]"

LEAST_PIXEL_NM, MOST_PIXEL_NM = 1e-3, 1e6
"""Bounds of a pixel's side, in nm. A larger or smaller one is a mistake of units."""
_TOLERANCE = 0.01
"""Relative difference up to which two sources say the same: tools print three or four digits."""
_NUMBERS = ("pixel_size_nm", "magnification", "voltage_kv", "working_distance_mm", "bar_rows")
_SHOWN = {
    "pixel_size_nm": "the size of a pixel in nm",
    "magnification": "the magnification",
    "voltage_kv": "the voltage in kV",
    "working_distance_mm": "the working distance in mm",
    "bar_rows": "the rows of text bars (top, bottom)",
}


@dataclass(frozen=True, slots=True)
class SemMetadata:
    """What a tool wrote about a frame. None: unknown.

    pixel_size_nm: sides of a pixel (x, y) in nm; they may differ, where the stage is tilted.
    voltage_kv: accelerating voltage. detector, maker, model: as the tool writes them.
    acquired: when the frame was taken, as written, without a zone.
    bar_rows: rows of text bars at the (top, bottom) of the frame; 0 where the tool says that there are none.
    source: where each known field was read. warnings: what was there and is not used, and why.
    """

    pixel_size_nm: Pair | None = None
    magnification: float | None = None
    voltage_kv: float | None = None
    working_distance_mm: float | None = None
    detector: str | None = None
    maker: str | None = None
    model: str | None = None
    acquired: datetime | None = None
    bar_rows: tuple[int, int] | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


KNOWN_FIELDS = tuple(part.name for part in fields(SemMetadata) if part.name not in ("source", "warnings"))
NOTHING = SemMetadata()


class Reading:
    """Collects the fields that one text of a tool gives. A field that cannot be read is a warning, not an error."""

    def __init__(self, where: str, size: tuple[int, int]) -> None:
        """where: the text's place, for people. size: [height, width] of the frame."""
        self.where = where
        self.height, self.width = size
        self._values: dict[str, Any] = {}
        self._warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Say why something is not used."""
        self._warnings.append(f"{self.where}: {text}")

    def take(self, key: str, text: str | None, read: Callable[[str], Any]) -> None:
        """Set a field from a text, if the text is there and the field is not set yet."""
        if text is None or not text.strip() or key in self._values:
            return
        try:
            self._values[key] = read(text)
        except (ValueError, OverflowError) as exc:
            self.warn(f"{key} is not read: {exc}")

    def take_pixel(self, x_nm: Callable[[], float], y_nm: Callable[[], float] | None = None) -> None:
        """Set the sides of a pixel; one side counts for both. Each is called here, where its ValueError is handled."""
        try:
            x = within(x_nm(), LEAST_PIXEL_NM, MOST_PIXEL_NM, "pixel side in nm")
            y = x if y_nm is None else within(y_nm(), LEAST_PIXEL_NM, MOST_PIXEL_NM, "pixel side in nm")
            self._values.setdefault("pixel_size_nm", (x, y))
        except (ValueError, OverflowError) as exc:
            self.warn(f"pixel_size_nm is not read: {exc}")

    def set(self, key: str, value: Any) -> None:
        """Set a field that needs no reading."""
        if value is not None:
            self._values.setdefault(key, value)

    def require_width(self, columns: int) -> None:
        """Drop the pixel size if the frame has another width than the text was written for: it may be enlarged."""
        if columns != self.width and self._values.pop("pixel_size_nm", None) is not None:
            self.warn(f"the size of a pixel is for {columns} columns, and the frame has {self.width}; it is not used")

    def take_bar(self, bottom: int) -> None:
        """Set a text bar of so many rows at the bottom."""
        if 0 <= bottom <= self.height // 2:
            self._values.setdefault("bar_rows", (0, bottom))
        else:
            self.warn(f"a text bar of {bottom} rows is not possible in a frame of {self.height}")

    def result(self) -> SemMetadata:
        """What was read."""
        source = dict.fromkeys(self._values, self.where)
        return SemMetadata(**self._values, source=source, warnings=tuple(self._warnings))


def combined(first: SemMetadata, second: SemMetadata) -> SemMetadata:
    """Both together. Numbers that contradict each other are unknown, with a warning; of names, `first` counts."""
    if first is NOTHING or second is NOTHING:
        return second if first is NOTHING else first
    values: dict[str, Any] = {}
    warnings = [*first.warnings, *second.warnings]
    for key in KNOWN_FIELDS:
        mine, other = getattr(first, key), getattr(second, key)
        if mine is not None and other is not None and key in _NUMBERS and not _equal(mine, other):
            warnings.append(
                f"{_SHOWN[key]} is {_text(mine)} by {first.source[key]} and {_text(other)} by {second.source[key]}; "
                "neither is used"
            )
            continue
        values[key] = other if mine is None else mine
    source = {**second.source, **first.source}
    source = {key: where for key, where in source.items() if values.get(key) is not None}
    # One file may be found under two names, where case does not count.
    return replace(NOTHING, **values, source=source, warnings=tuple(dict.fromkeys(warnings)))


def same_size(mine: Pair, other: Pair) -> bool:
    """Whether two pixel sizes are the same, but for rounding."""
    return all(abs(a - b) <= _TOLERANCE * max(abs(a), abs(b)) for a, b in zip(mine, other, strict=True))


def _equal(mine: Any, other: Any) -> bool:
    if isinstance(mine, tuple):
        whole = all(isinstance(value, int) for value in mine)
        return bool(mine == other) if whole else same_size(mine, other)
    return same_size((mine, mine), (other, other))


def _text(value: Any) -> str:
    return " x ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value:g}"
