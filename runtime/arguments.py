"""Checks of the arguments of calls. Options of commands are checked by `options`."""

from __future__ import annotations

import math
import operator
from numbers import Real

MAX_THREADS = 1024


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """The value of an argument of a call. ValueError, with the name, if it is no whole number or out of range."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r:.60}") from None
    if most is not None and not least <= number <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], not {number}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def real_number(name: str, value: object, least: float, most: float) -> float:
    """As `whole_number`, of numbers with a fraction; NaN is out of every range."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, not {value!r:.60}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf  # a whole number beyond all floats
    if not least <= number <= most:
        raise ValueError(f"{name} must lie in [{least:g}, {most:g}], not {number:g}")
    return number
