"""Threshold rules by name, as users type them, and the choice that a rule makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import CalibrationError

F1_MAX = "f1-max"
MAX_OVERKILL = "max-overkill"
MAX_UNDERKILL = "max-underkill"
GOOD_QUANTILE = "good-quantile"
CONFORMAL = "conformal"
DEFECT_RULES = (F1_MAX, MAX_OVERKILL, MAX_UNDERKILL, GOOD_QUANTILE, CONFORMAL)
PIXEL_RULES = (F1_MAX, GOOD_QUANTILE, CONFORMAL)
NEEDS_DEFECTS = (F1_MAX, MAX_UNDERKILL)
"""Rules that good frames alone cannot answer."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and its share: "conformal=0.05" is Rule("conformal", 0.05). f1-max has no share."""

    name: str
    share: float | None = None

    @classmethod
    def parse(cls, text: str, known: tuple[str, ...]) -> Rule:
        """Parse a rule as typed. Raises CalibrationError for an unknown rule or a share out of range."""
        name, given, value = text.partition("=")
        if name not in known:
            raise CalibrationError(f'there is no rule "{name}"; choose one of {", ".join(known)}')
        if name == F1_MAX:
            if given:
                raise CalibrationError(f"{F1_MAX} takes no share")
            return cls(name)
        try:
            share = float(value)
        except ValueError:
            raise CalibrationError(f"{name} needs a share, such as {name}={_EXAMPLE[name]}") from None
        # A share that would call every frame a defect, or none, is no operating point.
        lowest_allowed = name in (MAX_OVERKILL, MAX_UNDERKILL)
        highest_allowed = name == GOOD_QUANTILE
        inside = (share >= 0 if lowest_allowed else share > 0) and (share <= 1 if highest_allowed else share < 1)
        if not inside:
            interval = f"{'[' if lowest_allowed else '('}0, 1{']' if highest_allowed else ')'}"
            raise CalibrationError(f"{name} takes a share in {interval}, not {value}")
        return cls(name, share)

    def __str__(self) -> str:
        return self.name if self.share is None else f"{self.name}={self.share:g}"


_EXAMPLE = {MAX_OVERKILL: "0.02", MAX_UNDERKILL: "0.01", GOOD_QUANTILE: "0.99", CONFORMAL: "0.05"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of the operating point, the rule that chose it, its promise in words, and the figures behind that."""

    value: Any
    rule: str
    promise: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the value, which the operating point holds."""
        return {"rule": self.rule, "promise": self.promise, **self.figures}
