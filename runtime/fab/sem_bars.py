"""Text bars: the rows at the top or bottom of a frame where a tool writes its settings and a scale bar.

The tool's metadata tell them where they can. Else they are found in the pixels. A bar is drawn: its background is one
grey value without noise, its edge runs along one row, and there is text on it. It is the same for all frames of a tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BarsError
from ..jsonfields import Fields

Grey = NDArray[np.uint8]

LEAST_FRAMES = 3
"""With fewer, nothing shows that rows are the same in all frames."""
_LEAST_ROWS, _MOST_SHARE = 8, 0.3
"""Of a bar: rows, and share of the frame's height."""
_NEAR = 12
"""Grey values around a bar's background that count as background: JPEG disturbs it near the text."""
_TEXT_ROW, _BLANK_ROW, _IMAGE_ROW = 0.25, 0.85, 0.7
"""Share of background in each row of a bar; in its outermost row; and, at most, in the row of the image next to it."""
_DRAWN = 0.75
"""Share of a bar's background that is within _FLAT of its grey value. Noise of an image spreads wider."""
_FLAT = 3
_EDGE = 0.5
"""Share of the columns that change by more than _NEAR between the image's last row and the bar's first."""
_INK = 60
"""Difference of a text's grey value from its background."""
_MOST_INK, _WORDS, _WORD_ROWS = 0.45, 4, 3
"""Most ink of a bar; and strokes side by side in a row of text, in at least so many rows."""
_EMPTY, _BETWEEN = 0.03, 0.15
"""Ink of a row without text, which borders of cells may cross; share of such rows in a bar, around its text."""
_LINE = 3
"""Rows of a line along a bar or across it, in another grey value; and of the image that may be left over beyond it."""
_LINE_ROW = 0.95
"""Share of a line's pixels that are within _FLAT of its grey value, which is the same in all frames."""
_SAME_INK = 0.2
"""Ink that two frames of a tool have in common, of all that either has: labels stay, values change."""
_FITS = 0.5
"""Share of background that a later frame must have where the bar was."""
_NAMED = 3
"""Frames that an error names."""


@dataclass(frozen=True, slots=True)
class Bars:
    """Text bars that frames of one tool have in common.

    top, bottom: their rows; 0 for none. how: "metadata" where the tool tells, else "pixels".
    seen: frames that were looked at. agree: those that show these rows by themselves; the others only do not deny them.
    height: rows of the frames; None if they have several heights.
    levels: grey value of the (top, bottom) bar's background; None if there is no bar, or none of one value.
    """

    top: int
    bottom: int
    how: str
    seen: int
    agree: int
    height: int | None = None
    levels: tuple[int | None, int | None] = (None, None)

    @property
    def sure(self) -> float:
        """Share of the frames that show the bars by themselves, in [0, 1]."""
        return self.agree / self.seen

    def summary(self) -> str:
        """In one line, for people."""
        edges = [f"{rows} rows at the {edge}" for rows, edge in ((self.top, "top"), (self.bottom, "bottom")) if rows]
        by = "by the tool's metadata" if self.how == "metadata" else "by the pixels"
        unseen = any(rows and level is None for rows, level in zip((self.top, self.bottom), self.levels, strict=True))
        doubt = "; the pixels show no background of one grey value there: look at a frame" if unseen else ""
        return f"text bars: {' and '.join(edges) or 'none'}, {by} of {self.agree} of {self.seen} frames{doubt}"

    def disagreement(self, grey: Grey, told: tuple[int, int] | None) -> str:
        """Why a frame is not like those the bars were found in; "" if it is. told: rows by its own metadata."""
        if told is not None and told != (self.top, self.bottom):
            return (
                f"its metadata say that {told[0]} rows at the top and {told[1]} at the bottom are a text bar, and the "
                f"recipe was taught on frames with {self.top} and {self.bottom}"
            )
        if self.height is not None and grey.shape[0] != self.height:
            return f"has {grey.shape[0]} rows, and the text bars of the recipe are those of frames of {self.height}"
        for edge, rows, level in (("top", self.top, self.levels[0]), ("bottom", self.bottom, self.levels[1])):
            if rows and level is not None and not _fits(_band(grey, edge, rows), level):
                return f"has no text bar in its {rows} {edge} rows, which the recipe ignores"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "top": self.top,
            "bottom": self.bottom,
            "how": self.how,
            "seen": self.seen,
            "agree": self.agree,
            "height": self.height,
            "top_level": self.levels[0],
            "bottom_level": self.levels[1],
        }

    @classmethod
    def read(cls, fields: Fields) -> Bars:
        """The inverse of `to_dict`; faults go to `fields`."""
        how = fields.text("how")
        if how not in ("metadata", "pixels"):
            fields.fault("how", f'must be "metadata" or "pixels", not "{how}"')
        seen = fields.whole("seen", 1, 10**6)
        bars = cls(
            top=fields.whole("top", 0, 10**6),
            bottom=fields.whole("bottom", 0, 10**6),
            how=how,
            seen=seen,
            agree=fields.whole("agree", 0, seen),
            height=_whole_or_none(fields, "height", 10**6),
            levels=(_whole_or_none(fields, "top_level", 255), _whole_or_none(fields, "bottom_level", 255)),
        )
        fields.finish()
        return bars


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What one frame shows. told: rows by its metadata; shown: (top, bottom) rows by its pixels."""

    name: str
    grey: Grey
    told: tuple[int, int] | None
    shown: tuple[int, int]

    @property
    def rows(self) -> tuple[int, int]:
        """What counts: the tool's own word, if there is one."""
        return self.shown if self.told is None else self.told


def look(name: str, grey: Grey, told: tuple[int, int] | None = None) -> Look:
    """Look at one frame [H, W] for `find_bars`. told: the rows of bars by the tool's metadata."""
    return Look(name, grey, told, (0, 0) if told is not None else bars_of(grey))


def bars_of(grey: Grey) -> tuple[int, int]:
    """Rows of text bars at the (top, bottom) of one frame [H, W], by its pixels alone; 0 for none."""
    return _rows_of(grey[::-1]), _rows_of(grey)


def find_bars(looks: Iterable[Look]) -> Bars:
    """The bars that all frames have. Raises BarsError where they disagree, or are too few to be sure."""
    seen = list(looks)
    told = [one for one in seen if one.told is not None]
    if not seen or (len(seen) < LEAST_FRAMES and len(told) < len(seen)):
        raise BarsError(
            f"text bars are found in at least {LEAST_FRAMES} frames, or by the tool's metadata, and there are "
            f"{len(seen)} frames: give the rows with --ignore-top and --ignore-bottom"
        )
    shown = [one for one in seen if one.rows != (0, 0)]
    rows = _common(shown, seen) if shown else (0, 0)
    if shown and shown[0].told is None:
        _require_same_text(shown, rows)
    levels = _level(shown, "top", rows[0]), _level(shown, "bottom", rows[1])
    _require_fit(seen, rows, levels)
    heights = {one.grey.shape[0] for one in seen}
    height = heights.pop() if len(heights) == 1 else None
    agree = sum(one.rows == rows for one in seen)
    if len(told) < len(seen):
        rows = rows[0] and rows[0] + _line(shown, "top", rows[0]), rows[1] and rows[1] + _line(shown, "bottom", rows[1])
    return Bars(*rows, "metadata" if len(told) == len(seen) else "pixels", len(seen), agree, height, levels)


def _common(shown: Sequence[Look], seen: Sequence[Look]) -> tuple[int, int]:
    """The rows that all frames with a bar have; at least half of all frames must show it."""
    found: dict[tuple[int, int], list[str]] = {}
    for one in shown:
        found.setdefault(one.rows, []).append(one.name)
    if len(found) > 1:
        kinds = "; ".join(
            f"{top} rows at the top and {bottom} at the bottom in {len(names)} ({_names(names)})"
            for (top, bottom), names in sorted(found.items(), key=lambda item: -len(item[1]))[:_NAMED]
        )
        raise BarsError(f"frames have different text bars: {kinds}: {_ADVICE}")
    if 2 * len(shown) < len(seen):
        raise BarsError(
            f"{len(shown)} of {len(seen)} frames show a text bar ({_names([one.name for one in shown])}), too few to "
            f"be sure: {_ADVICE}"
        )
    return shown[0].rows


_ADVICE = "look at them, then give the rows with --ignore-top and --ignore-bottom, or teach each kind by itself"


def _require_fit(seen: Sequence[Look], rows: tuple[int, int], levels: tuple[int | None, int | None]) -> None:
    """Raise BarsError for frames that do not have the bar."""
    without = [
        one.name
        for one in seen
        if one.rows != rows
        and (
            one.told is not None
            or any(
                count and (level is None or not _fits(_band(one.grey, edge, count), level))
                for edge, count, level in zip(("top", "bottom"), rows, levels, strict=True)
            )
        )
    ]
    if without:
        raise BarsError(
            f"{len(without)} of {len(seen)} frames do not have the text bar of the others, {rows[0]} rows at the top "
            f"and {rows[1]} at the bottom ({_names(without)}): {_ADVICE}"
        )


def _require_same_text(shown: Sequence[Look], rows: tuple[int, int]) -> None:
    """Raise BarsError if what is written differs altogether from frame to frame: then it is part of the image."""
    for edge, count in zip(("top", "bottom"), rows, strict=True):
        bands = [_band(one.grey, edge, count) for one in shown]
        first = _ink(bands[0])
        for band in bands[1:] if count else ():
            if band.shape == first.shape:
                both, either = np.count_nonzero(first & _ink(band)), np.count_nonzero(first | _ink(band))
                if both < _SAME_INK * either:
                    raise BarsError(
                        f"the {count} rows at the {edge} of frames look like a text bar, and what is on them differs "
                        f"from frame to frame ({_names([one.name for one in shown])}): {_ADVICE}"
                    )


def _ink(band: Grey) -> NDArray[np.bool_]:
    ink: NDArray[np.bool_] = np.abs(band.astype(np.int16) - _background(band)) > _INK
    return ink


def _line(shown: Sequence[Look], edge: str, rows: int) -> int:
    """Rows of a line between bar and image, which is there in all frames."""
    most: int = min(_LINE, *(one.grey.shape[0] - rows for one in shown))
    for line in range(most):
        outer = [one.grey[rows + line] if edge == "top" else one.grey[-1 - rows - line] for one in shown]
        level = _background(outer[0])
        if not all(float((np.abs(row.astype(np.int16) - level) <= _FLAT).mean()) >= _LINE_ROW for row in outer):
            return line
    return most


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _level(shown: Sequence[Look], edge: str, rows: int) -> int | None:
    """The grey value of the bar's background, if it is one in all frames."""
    if not rows:
        return None
    levels = [_background(_band(one.grey, edge, rows)) for one in shown]
    level = int(np.median(levels))
    return level if all(_fits(_band(one.grey, edge, rows), level) for one in shown) else None


def _band(grey: Grey, edge: str, rows: int) -> Grey:
    return grey[:rows] if edge == "top" else grey[max(0, grey.shape[0] - rows) :]


def _fits(band: Grey, level: int) -> bool:
    return _share(band, level) >= _FITS


def _background(band: Grey) -> int:
    return int(np.bincount(band.ravel(), minlength=256).argmax())


def _share(values: Grey, level: int) -> float:
    """Share of the values that are background of this level."""
    low, high = max(0, level - _NEAR), min(255, level + _NEAR)
    return float(((values >= low) & (values <= high)).mean())


def _rows_of(grey: Grey) -> int:
    """Rows of the bar at the bottom of a frame [H, W]; 0 for none."""
    height = grey.shape[0]
    most = int(height * _MOST_SHARE)
    if most < _LEAST_ROWS:
        return 0
    rows = grey[::-1][: most + 2]
    counts = np.array([np.bincount(row, minlength=256) for row in rows])
    # Some tools draw the bar into the image, and leave a few of its rows below.
    for first in range(max(_LINE, height // 128) + 1):
        if found := _rows_from(rows, counts, first, most):
            return found
    return 0


def _rows_from(rows: Grey, counts: NDArray[np.int64], first: int, most: int) -> int:
    """Rows, counted from the edge inwards, up to the end of the bar that begins with row `first`; 0 for none.

    counts: of each grey value in each row.
    """
    level = int(counts[first].argmax())
    shares = counts[:, max(0, level - _NEAR) : level + _NEAR + 1].sum(axis=1) / rows.shape[1]
    if shares[first] < _BLANK_ROW:
        return 0
    blank: list[int] = []
    others = 0  # rows in another grey value: a few are a line between cells of the bar, more are the image
    for index in range(first, most):
        others = 0 if shares[index] >= _TEXT_ROW else others + 1
        if others > _LINE:
            break
        if shares[index] >= _BLANK_ROW:
            blank.append(index)
    for last in reversed(blank):  # dark rows of the image may look like more of a dark bar
        if last + 1 - first < _LEAST_ROWS:
            break
        image_next = shares[last + 1] <= _IMAGE_ROW
        if image_next and _is_edge(rows[last], rows[last + 1]) and _is_drawn(rows[first : last + 1], level):
            return last + 1
    return 0


def _is_edge(last: Grey, above: Grey) -> bool:
    """Whether the image, or a line, begins right above the `last` row of the bar, in most columns at once."""
    return float((np.abs(last.astype(np.int16) - above) > _NEAR).mean()) >= _EDGE


def _is_drawn(bar: Grey, level: int) -> bool:
    """Whether rows are a background of one value with lines of text on it, and nothing between these."""
    away = np.abs(bar.astype(np.int16) - level)
    ink = away > _INK
    if float(ink.mean()) > _MOST_INK or float((away <= _FLAT).mean()) < _DRAWN * float((away <= _NEAR).mean()):
        return False
    if float((ink.mean(axis=1) <= _EMPTY).mean()) < _BETWEEN:
        return False
    strokes = np.count_nonzero(ink[:, 1:] & ~ink[:, :-1], axis=1)
    return int(np.count_nonzero(strokes >= _WORDS)) >= _WORD_ROWS


def _whole_or_none(fields: Fields, key: str, most: int) -> int | None:
    value = fields.number_or_none(key, 0, most)
    if value is not None and not float(value).is_integer():
        fields.fault(key, f"must be a whole number or null, not {value:g}")
    return None if value is None else int(value)
