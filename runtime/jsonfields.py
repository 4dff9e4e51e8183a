"""Strict reading of JSON objects: every fault is collected, nothing is guessed, unknown keys are faults."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

_MISSING = object()


def parse_json(text: str | bytes, faults: list[str]) -> Any:
    """The document. A name that stands twice in one object goes to `faults`: which is meant would be a guess.

    Raises ValueError, RecursionError.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            faults.extend(f'"{name}" appears twice' for name in sorted({n for n in names if names.count(n) > 1}))
        return found

    return json.loads(text, object_pairs_hook=unique)


class Fields:
    """One JSON object being read. Wrong entries go to `faults`; a placeholder is returned so that reading goes on."""

    def __init__(self, value: object, where: str, faults: list[str]) -> None:
        self.where = where
        self.faults = faults
        self._values: Mapping[str, Any] = {}
        self._read: set[str] = set()
        if isinstance(value, Mapping):
            self._values = value
        else:
            faults.append(f"{where} must be an object, not {_kind(value)}")
            # One fault says it all; the fields that are then missing would only bury it.
            self.faults = []

    def fault(self, key: str, message: str) -> None:
        """Record that `key` is wrong."""
        self.faults.append(f"{self.where}.{key} {message}")

    def _take(self, key: str, default: object) -> object:
        self._read.add(key)
        value = self._values.get(key, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                self.fault(key, "is missing")
            return default
        return value

    def text(self, key: str, default: object = _MISSING) -> str:
        """A string, not empty."""
        value = self._take(key, default)
        if value is not _MISSING and not isinstance(value, str):
            self.fault(key, f"must be a string, not {_kind(value)}")
        elif value == "":
            self.fault(key, "must not be empty")
        return value if isinstance(value, str) else ""

    def number(self, key: str, low: float = -math.inf, high: float = math.inf, default: object = _MISSING) -> float:
        """A finite number in [low, high]."""
        value = self._take(key, default)
        if value is _MISSING:
            return low if math.isfinite(low) else 0.0
        if not _is_finite(value):
            self.fault(key, f"must be a finite number, not {_kind(value)}")
        elif not low <= value <= high:
            self.fault(key, f"must lie in [{low:g}, {high:g}], not {value:g}")
        else:
            return float(value)
        return low if math.isfinite(low) else 0.0

    def number_or_none(self, key: str, low: float, high: float) -> float | None:
        """A finite number in [low, high], or null."""
        if key in self._values and self._values[key] is None:
            self._read.add(key)
            return None
        return self.number(key, low, high)

    def whole(self, key: str, low: int, high: int, default: object = _MISSING) -> int:
        """A whole number in [low, high]."""
        value = self._take(key, default)
        if value is _MISSING:
            return low
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(key, f"must be a whole number, not {_kind(value)}")
        elif not low <= value <= high:
            self.fault(key, f"must lie in [{low}, {high}], not {value}")
        else:
            return value
        return low

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` finite numbers."""
        items = self.items(key)
        good = [float(v) for v in items if _is_finite(v)]
        if key in self._values and (len(good) != len(items) or len(good) != length):
            self.fault(key, f"must be {length} finite numbers")
        return tuple(good) if len(good) == length else (0.0,) * length

    def pair(self, key: str, low: int, high: int) -> tuple[int, int]:
        """Two whole numbers [height, width], each in [low, high]."""
        items = self.items(key)
        good = [v for v in items if isinstance(v, int) and not isinstance(v, bool) and low <= v <= high]
        if key in self._values and (len(good) != 2 or len(items) != 2):
            self.fault(key, f"must be two whole numbers in [{low}, {high}]")
        return (good[0], good[1]) if len(good) == 2 else (low, low)

    def wholes(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A list, not empty, of whole numbers in [low, high]."""
        items = self.items(key)
        good = [v for v in items if isinstance(v, int) and not isinstance(v, bool) and low <= v <= high]
        if key in self._values and (not items or len(good) != len(items)):
            self.fault(key, f"must be whole numbers in [{low}, {high}]")
        return tuple(good)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._take(key, _MISSING)
        if value is not _MISSING and not isinstance(value, bool):
            self.fault(key, f"must be true or false, not {_kind(value)}")
        return value is True

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        items = self.items(key)
        if not all(isinstance(v, str) for v in items):
            self.fault(key, "must be a list of strings")
            return ()
        return tuple(items)

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        value = self._take(key, _MISSING)
        if value is not _MISSING and not isinstance(value, list):
            self.fault(key, f"must be a list, not {_kind(value)}")
        return value if isinstance(value, list) else []

    def mapping(self, key: str) -> dict[str, Any]:
        """An object whose content is not checked (reports, provenance)."""
        value = self._take(key, _MISSING)
        if value is not _MISSING and not isinstance(value, dict):
            self.fault(key, f"must be an object, not {_kind(value)}")
        if not isinstance(value, dict):
            return {}
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            self.fault(key, "holds a number that is not finite, which JSON has not")
        return value

    def inner(self, key: str) -> Fields:
        """An object to be read in its turn."""
        value = self._take(key, _MISSING)
        where = f"{self.where}.{key}"
        # A missing object is one fault; those of its fields would only repeat it.
        return Fields({}, where, []) if value is _MISSING else Fields(value, where, self.faults)

    def finish(self, message: str = "is not known to this version") -> None:
        """Record every key that nobody asked for."""
        unknown = sorted(set(self._values) - self._read)
        self.faults.extend(f"{self.where}.{key} {message}" for key in unknown)


def _is_finite(value: object) -> TypeGuard[float]:
    # JSON has whole numbers of any length; math.isfinite would overflow on those that no float can hold.
    limit = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -limit <= value <= limit


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f'the string "{value[:40]}"'
    return f"{type(value).__name__} {str(value)[:40]}"
