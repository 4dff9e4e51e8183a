"""Files beside a frame: `.txt` of Hitachi and JEOL, `.hdr` of Tescan."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import FrameError
from ..files import open_plain
from .sem_makers import read_hitachi, read_jeol, read_tescan, sections_of, text_of
from .sem_values import NOTHING, Reading, SemMetadata, combined

MOST_BYTES = 1 << 18
"""Real ones hold 1 to 20 kB."""
_HITACHI = "SemImageFile"


def side_files(path: str) -> Iterator[str]:
    """Names under which a tool puts its text beside a frame; `b.tif` has b.txt, b.hdr and b-tif.hdr.

    The suffix is tried in the case of the frame's own, as Windows keeps it, and in lower case.
    """
    stem, dot_suffix = os.path.splitext(path)  # noqa: PTH122  a lot may have 100,000 frames
    suffix = dot_suffix[1:]
    cases = [str.lower]
    if suffix.isupper():
        cases.append(str.upper)
    elif suffix[:1].isupper():
        cases.append(str.title)
    for case in cases:
        yield f"{stem}.{case('txt')}"
        yield f"{stem}.{case('hdr')}"
        if suffix:
            yield f"{stem}-{suffix}.{case('hdr')}"


def read_sides(path: str, size: tuple[int, int]) -> SemMetadata:
    """What files beside the frame `path` of `size` [height, width] say. Never raises: what cannot be read is a warning.

    A file that is no tool's text is left alone, without a word: many things are called .txt.
    """
    found = NOTHING
    for side in side_files(path):
        if os.access(side, os.F_OK):  # most frames have none, and this is the cheapest way to know
            found = combined(found, _read(side, size))
    return found


def _read(side: str, size: tuple[int, int]) -> SemMetadata:
    reading = Reading(Path(side).name, size)
    try:
        with open_plain(side) as file:
            data = file.read(MOST_BYTES + 1) or b""
    except (OSError, FrameError) as exc:
        reading.warn(f"cannot be read ({getattr(exc, 'strerror', None) or exc})")
        return reading.result()
    try:
        if not _read_text(text_of(data[:MOST_BYTES]), reading):
            return NOTHING
    except ValueError as exc:
        reading.warn(f"is not read ({exc})")
    if len(data) > MOST_BYTES:
        reading.warn(f"is longer than {MOST_BYTES:,} bytes; the rest is not read")
    return reading.result()


def _read_text(text: str, reading: Reading) -> bool:
    """Read the text of a tool; False if it is none."""
    if f"[{_HITACHI}]" in text:
        read_hitachi(sections_of(text).get(_HITACHI, {}), reading)
    elif "[MAIN]" in text and "PixelSizeX=" in text:
        read_tescan(sections_of(text), reading)
    elif "$CM_" in text or "$$SM_" in text:
        read_jeol(text, reading)
    else:
        return False
    return True
