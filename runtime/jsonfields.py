"""Strict reading of JSON objects: every fault is collected, nothing is guessed, unknown keys are faults.

All limits that a reader of untrusted text needs are here: depth, number of values, digits, lengths, faults listed.
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

MAX_DEPTH = 32
MAX_VALUES = 500_000
MAX_DIGITS = 1000
MAX_TEXT = 4096
MAX_ITEMS = 100_000
MAX_WHOLE = 2**63 - 1
MAX_FAULTS = 100
"""Faults listed for one file; further ones are only counted."""
_MISSING = object()
_SHORT = reprlib.Repr()
_SHORT.maxlong = 100


def parse_json(text: str | bytes, faults: list[str]) -> Any:
    """The document. A name that appears twice in one object is ambiguous and goes to `faults`.

    Raises ValueError or RecursionError: also for content beyond the limits above, and for halves of surrogate pairs,
    which no file or terminal takes.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and len(faults) <= MAX_FAULTS:
            twice = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            faults.extend(f'"{_shown(name)}" appears twice' for name in twice[: MAX_FAULTS + 1])
        return found

    document = json.loads(text, object_pairs_hook=unique, parse_int=_whole)
    _check_values(document)
    return document


def listed(faults: Sequence[str]) -> list[str]:
    """The first MAX_FAULTS faults, and how many more there are."""
    more = len(faults) - MAX_FAULTS
    return list(faults) if more <= 0 else [*faults[:MAX_FAULTS], f"and {more:,} more"]


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _check_values(document: object) -> None:
    """Raise ValueError where the document is too deep or too large, or holds half a surrogate pair."""
    values, count = [document], 0
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in values:
            if isinstance(value, dict):
                for name in value:
                    _check_text(name)
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, str):
                _check_text(value)
        count += len(inner)
        if count > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values")
        if not inner:
            return
        values = inner
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half a surrogate pair") from None


class Fields:
    """One JSON object being read. Wrong entries go to `faults` and give a placeholder, so that reading continues."""

    def __init__(self, value: object, where: str, faults: list[str]) -> None:
        self.where = where
        self.faults = faults
        self._values: Mapping[str, Any] = {}
        self._read: set[str] = set()
        if isinstance(value, Mapping):
            self._values = value
        else:
            faults.append(f"{where} must be an object, not {_kind(value)}")
            # One fault is enough: reports of missing fields would only bury it.
            self.faults = []

    def fault(self, key: str, message: str) -> None:
        """Record that `key` is wrong."""
        self.faults.append(f"{self.where}.{_shown(key)} {message}")

    def _take(self, key: str, default: object) -> object:
        self._read.add(key)
        value = self._values.get(key, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                self.fault(key, "is missing")
            return default
        return value

    def has(self, key: str) -> bool:
        """Whether an entry that may be left out is there."""
        return key in self._values

    def text(self, key: str, default: object = _MISSING) -> str:
        """A string, not empty, of at most MAX_TEXT characters."""
        value = self._take(key, default)
        if value is not _MISSING and not isinstance(value, str):
            self.fault(key, f"must be a string, not {_kind(value)}")
        elif value == "":
            self.fault(key, "must not be empty")
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            self.fault(key, f"must not be longer than {MAX_TEXT:,} characters, not {len(value):,}")
            return ""
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
            self.fault(key, f"must lie in [{low}, {high}], not {reprlib.repr(value)}")
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

    def texts(self, key: str, most: int = MAX_ITEMS) -> tuple[str, ...]:
        """A list of at most `most` strings, of at most MAX_TEXT characters each."""
        items = self.items(key, most)
        if not all(isinstance(v, str) for v in items):
            self.fault(key, "must be a list of strings")
            return ()
        if any(len(v) > MAX_TEXT for v in items):
            self.fault(key, f"must not hold texts of more than {MAX_TEXT:,} characters")
            return ()
        return tuple(items)

    def items(self, key: str, most: int = MAX_ITEMS) -> list[Any]:
        """A list of at most `most` of anything."""
        value = self._take(key, _MISSING)
        if value is not _MISSING and not isinstance(value, list):
            self.fault(key, f"must be a list, not {_kind(value)}")
        if isinstance(value, list) and len(value) > most:
            self.fault(key, f"must hold at most {most:,} entries, not {len(value):,}")
            return []
        return value if isinstance(value, list) else []

    def mapping(self, key: str) -> dict[str, Any]:
        """An object whose content is not checked (reports, provenance)."""
        value = self._take(key, _MISSING)
        if value is not _MISSING and not isinstance(value, dict):
            self.fault(key, f"must be an object, not {_kind(value)}")
        if not isinstance(value, dict):
            return {}
        odd = _odd_number(value)
        if odd:
            self.fault(key, f"holds a number that is {odd}")
            return {}
        return value

    def inner(self, key: str) -> Fields:
        """An object, to be read in the same way."""
        value = self._take(key, _MISSING)
        where = f"{self.where}.{key}"
        # A missing object is one fault; those of its fields would only repeat it.
        return Fields({}, where, []) if value is _MISSING else Fields(value, where, self.faults)

    def finish(self, message: str = "is not known to this version") -> None:
        """Record every key that was not read."""
        unknown = sorted(set(self._values) - self._read)
        self.faults.extend(f"{self.where}.{_shown(key)} {message}" for key in unknown)


def _is_finite(value: object) -> TypeGuard[float]:
    # JSON has whole numbers of any length; math.isfinite would overflow on those that no float can hold.
    limit = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -limit <= value <= limit


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f'the string "{value[:40]}"'
    try:
        text = _SHORT.repr(value)[:40]
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "of too many digits"
    return f"{type(value).__name__} {text}"


def _shown(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:80]}..."


def _odd_number(value: object) -> str:
    """Why a number somewhere in a value of `parse_json` is invalid; "" if none is."""
    values = [value]
    while values:
        one = values.pop()
        if isinstance(one, dict):
            values.extend(one.values())
        elif isinstance(one, list | tuple):
            values.extend(one)
        elif isinstance(one, float) and not math.isfinite(one):
            return "not finite, which JSON does not allow"
        elif isinstance(one, int) and abs(one) > MAX_WHOLE:
            return "larger than 64 bits hold"
    return ""
