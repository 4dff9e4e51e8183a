"""Checks of the arguments of calls. Options of commands are checked by `options`."""

from __future__ import annotations

import math
import operator
import re
from numbers import Real

MAX_THREADS = 1024
MAX_DEVICE = 9999


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


def gpu_device(value: object) -> int | str | None:
    """The value of `device`: None, an index from 0, or (the beginning of) the UUID that nvidia-smi -L prints.

    Text of digits is an index. UUIDs come back in lower case after "GPU-" or "MIG-". ValueError for anything else.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        return whole_number("device", value, 0, MAX_DEVICE)
    if re.fullmatch(r"[0-9]{1,4}", value):
        return int(value)
    found = re.fullmatch(r"(GPU|MIG)-([0-9a-f][0-9a-f-]{0,63})", value, re.IGNORECASE)
    if found is None:
        raise ValueError(
            f'device must be the index of a GPU, such as 1, or its UUID, such as "GPU-8932f937", not "{value:.60}"; '
            "nvidia-smi -L lists them"
        )
    return f"{found[1].upper()}-{found[2].lower()}"
