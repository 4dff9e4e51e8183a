"""Tokens of KLARF files: strings, numbers and places in the bytes of a file.

All reading works on bytes and their offsets, so that a change of some cells leaves every other byte as it was.
A string is `"..."` on one line; `""` inside one stands for a quote. A backslash is a plain character, as Windows paths
need it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import KlarfError, KlarfIncomplete

STRING = rb'"(?:[^"\r\n]|"")*+"'
SPACE = rb"[ \t\r\n\f\v]"
MAX_ROW_BYTES = 1 << 20
"""The longest row of a list, and the longest statement that is taken apart."""
MAX_TEXT_BYTES = 4096
"""The longest name of a lot, a wafer or an image file, or value of a field: results repeat them for each defect."""
MAX_DEFECTS = 2_000_000
MAX_WAFERS = 10_000
MAX_WARNINGS = 100
_BLOCK = 1 << 16
SHOWN = 60
"""Characters of the file's text that a message repeats."""
_NUMBER = re.compile(rb"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,5})?")
_WHOLE = re.compile(rb"[+-]?[0-9]{1,18}")
_EXACT = 2.0**53
"""Whole numbers up to here are exact as float64."""
_LARGEST = 1e100
"""Of any number, so that lengths and positions, which are products of these, are finite too."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The bytes of one KLARF file, its name for messages, and the encoding of its texts."""

    name: str
    data: bytes = field(repr=False)
    encoding: str
    _lines: list[int] = field(default_factory=list, repr=False)

    def line_of(self, offset: int) -> int:
        """The line, from 1, of a byte. CRLF, LF and CR each end a line."""
        if not self._lines:  # the lines of each block's first byte, so that a report of many defects stays fast
            line = 1
            for start in range(0, len(self.data) + 1, _BLOCK):
                self._lines.append(line)
                line += self._ends(start, start + _BLOCK)
        block = offset // _BLOCK
        return self._lines[block] + self._ends(block * _BLOCK, offset)

    def _ends(self, start: int, end: int) -> int:
        """Line ends between two bytes; a CRLF that began before `start` was counted with its CR."""
        feeds, returns = self.data.count(b"\n", start, end), self.data.count(b"\r", start, end)
        return feeds + returns - self.data.count(b"\r\n", max(0, start - 1), end)

    def fail(self, reason: str, offset: int) -> NoReturn:
        """Raise KlarfError with the line of `offset`."""
        raise KlarfError(self.name, reason, self.line_of(offset))

    def end_too_soon(self, inside: str) -> NoReturn:
        """Raise KlarfIncomplete: the file ends inside a part, or without its EndOfFile."""
        reason = f"ends {inside}: it is cut off, or still being written. Wait for its writer, or copy it again"
        raise KlarfIncomplete(self.name, reason, self.line_of(len(self.data)))

    def text(self, token: bytes) -> str:
        """What a token says: a string without its quotes, or a word as it stands."""
        if token[:1] == b'"':
            token = token[1:-1].replace(b'""', b'"')
        return token.decode(self.encoding, "replace")

    def number(self, token: bytes, what: str, offset: int) -> float | None:
        """A number up to _LARGEST, None for NA. Raises KlarfError with the line of `offset`."""
        if _NUMBER.fullmatch(token):
            value = float(token)
            if abs(value) > _LARGEST:
                self.fail(f"{what} is {shown(token)}, which is too large", offset)
            return value
        if token == b"NA":
            return None
        self.fail(f"{what} is {shown(token)}, which is no number", offset)

    def whole(self, token: bytes, what: str, offset: int) -> int | None:
        """A whole number, also written as 1.0e+001; None for NA. Raises KlarfError with the line of `offset`."""
        if _WHOLE.fullmatch(token):
            return int(token)
        value = self.number(token, what, offset)
        if value is None:
            return None
        if value != int(value) or abs(value) > _EXACT:
            self.fail(f"{what} is {shown(token)}, which is no whole number", offset)
        return int(value)


@dataclass(slots=True)
class Warnings:
    """What a reader found odd and could live with: the first MAX_WARNINGS, and how many more there were."""

    source: Source
    texts: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, text: str, offset: int) -> None:
        """One warning, with the line of `offset`."""
        if len(self.texts) < MAX_WARNINGS:
            self.texts.append(f"line {self.source.line_of(offset)}: {text}")
        else:
            self.more += 1

    def listed(self) -> tuple[str, ...]:
        """All texts, and a last one that counts those left out."""
        return (*self.texts, f"and {self.more:,} more warnings") if self.more else tuple(self.texts)


def shown(token: bytes) -> str:
    """A token for a message: printable, and not too long."""
    text = repr(token[: SHOWN + 1].decode("latin-1"))
    return text if len(token) <= SHOWN else f"{text[:SHOWN]}...'"


def word(token: bytes) -> str:
    """A name of the format's own, such as a keyword or a column, in capitals: files differ in case."""
    return token.decode("ascii", "replace").upper()
