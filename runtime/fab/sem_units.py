"""Quantities, dates and texts as SEM tools write them, read strictly: a number without a known unit is no quantity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

LENGTHS_NM: Mapping[str, float] = {
    **{"fm": 1e-6, "pm": 1e-3, "nm": 1.0, "mm": 1e6, "cm": 1e7, "m": 1e9},
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns"), 1e3),
}
"""Nanometres in a unit. The micro sign and the Greek letter are two characters."""
VOLTS_KV: Mapping[str, float] = {"V": 1e-3, "Volt": 1e-3, "kV": 1.0}
"""Kilovolts in a unit."""
MOST_TEXT = 120
"""Characters of a name, such as a detector's."""
_NUMBER = r"[-+]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,4})?"
_QUANTITY = re.compile(rf"({_NUMBER})\s*([^\W\d_]*)")
_MAGNIFICATION = re.compile(rf"[xX\u00d7]?\s*({_NUMBER})\s*([kKM]?)\s*[xX\u00d7]?")
_DATE = re.compile(r"(\d{1,4})([-/. ])(\d{1,2}|[A-Za-z]{3})\2(\d{1,4})")
_TIME = re.compile(r"(\d{1,2}):(\d{2}):(\d{2})(?:\.\d{1,9})?\s*([AaPp][Mm])?")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def quantity(text: str, units: Mapping[str, float], assumed: str | None = None) -> float:
    """A number with its unit, in the unit that `units` leads to. assumed: the unit of a number without one.

    Raises ValueError.
    """
    found = _QUANTITY.fullmatch(text.strip())
    unit = (found[2] or assumed) if found else None
    if found is None or unit is None or unit not in units:
        raise ValueError(f'"{_short(text)}" is no number with a unit of {", ".join(units)}')
    return float(found[1]) * units[unit]


def magnification(text: str) -> float:
    """A magnification, such as "50.00 K X", "x1.5k" or "5000". Raises ValueError."""
    found = _MAGNIFICATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f'"{_short(text)}" is no magnification')
    return float(found[1]) * {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6}[found[2]]


def whole(text: str, low: int = 0, high: int = 10**6) -> int:
    """A whole number in [low, high]. Raises ValueError."""
    stripped = text.strip()
    if not re.fullmatch(r"\d{1,9}(?:\.0{1,9})?", stripped) or not low <= int(float(stripped)) <= high:
        raise ValueError(f'"{_short(text)}" is no whole number of {low} to {high}')
    return int(float(stripped))


def within(value: float, low: float, high: float, what: str) -> float:
    """`value`, if it is plausible. Raises ValueError; also for NaN."""
    if not low <= value <= high:
        raise ValueError(f"a {what} of {value:g} is not within {low:g} to {high:g}")
    return value


def name(text: str) -> str:
    """A name on one line. Raises ValueError for one that is empty, too long or not printable."""
    found = " ".join(text.split())
    if not found or len(found) > MOST_TEXT or not found.isprintable():
        raise ValueError(f'"{_short(text)}" is no name of 1 to {MOST_TEXT} characters')
    return found


def moment(date: str, time: str) -> datetime:
    """A date and a time as they are written, without a zone. Raises ValueError.

    Read are year-month-day, day.month.year, 18 Jul 2019, and slashes if one order alone is possible or the time is
    of the kind that goes with month/day/year (AM, PM).
    """
    clock = _TIME.fullmatch(time.strip())
    found = _DATE.fullmatch(date.strip())
    if clock is None or found is None:
        raise ValueError(f'"{_short(f"{date} {time}")}" is no date and time')
    hour, half = int(clock[1]), (clock[4] or "").lower()
    if half:
        if not 1 <= hour <= 12:
            raise ValueError(f'"{_short(time)}" is no time')
        hour = hour % 12 + (12 if half == "pm" else 0)
    first, mark, second, third = found.groups()
    if second.isalpha():
        if second.lower() not in _MONTHS:
            raise ValueError(f'"{_short(date)}" is no date')
        year, month, day = int(third), _MONTHS.index(second.lower()) + 1, int(first)
    elif len(first) == 4:
        year, month, day = int(first), int(second), int(third)
    else:
        year, (month, day) = int(third), _month_and_day(int(first), int(second), mark, american=bool(half))
    if year < 1950:
        raise ValueError(f'"{_short(date)}" has no year of four digits')
    # Without a zone, as the tool writes it.
    return datetime(year, month, day, hour, int(clock[2]), int(clock[3]))


def iso_moment(text: str) -> datetime:
    """A moment in ISO 8601, as it is written: the zone is dropped. Raises ValueError."""
    return datetime.fromisoformat(text.strip()).replace(tzinfo=None)


def _month_and_day(first: int, second: int, mark: str, *, american: bool) -> tuple[int, int]:
    if mark == "/" and (american or second > 12):
        return first, second
    if mark == "." or first > 12 or first == second:
        return second, first
    raise ValueError(f"{first}{mark}{second} may be a month and a day, or a day and a month")


def _short(text: str) -> str:
    shown = text.strip()
    return f"{shown[:40]}..." if len(shown) > 40 else shown
