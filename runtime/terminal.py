"""Safe text for people: names and manifests cannot send control characters to a terminal.

A file may be called `\\x1b[2J`, which clears a screen. A manifest's note may hold a newline, and then looks like a line
of this program. `plain_streams` escapes control characters in all output, tracebacks and warnings too. `printable`
keeps quoted text on one line. The project prints no colours.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO, TypeVar, cast

from .errors import PredictorError

MOST_SHOWN = 1000
"""How many characters of a file's value are shown; a manifest may hold numbers of thousands of digits."""
_Item = TypeVar("_Item")
_CURSOR_UP = "\x1b[A"
_MARKDOWN = re.compile(r"[\\`*<>\[\]|&~$]|\b_|_\b")


def printable(text: object) -> str:
    """The text on one line: newlines, control, bidirectional and other invisible characters as escapes (`\\x1b`)."""
    line = str(text)
    return line if line.isprintable() else "".join(map(_escaped, line))


def message(text: object) -> str:
    """Several lines of text: this project breaks its messages before two spaces; any other break is a name's."""
    return "\n  ".join(printable(part) for part in str(text).split("\n  "))


def show(value: object) -> str:
    """A value out of a JSON file as one line, MOST_SHOWN characters at most."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # a whole number of too many digits, lists in lists in lists
        return "unknown"
    return printable(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ...")


@dataclass(slots=True)
class Reasons:
    """How many there were, and the text of the first few: an error object would keep its frame's pixels alive."""

    most: int
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, reason: object) -> None:
        """Take in one; the first `most` are kept in words, each on one line."""
        self.count += 1
        if self.count <= self.most:
            self.first.append(printable(reason))

    def lines(self, what: str, more: str) -> list[str]:
        """what: to print before each. more: what to print about the others."""
        left = self.count - len(self.first)
        return [*(f"{what}{reason}" for reason in self.first), *([f"and {left} more{more}"] if left else [])]


def markdown_text(text: object) -> str:
    """The text for a cell of a Markdown table, or a line: its characters are no markup."""
    return _MARKDOWN.sub(lambda found: "\\" + found[0], printable(text))


def require_stdout(instead: str) -> None:
    """Raise PredictorError without a stdout (>&-, pythonw), where results would be lost. instead: what to do."""
    if sys.stdout is None:
        raise PredictorError(f"there is no stdout to write to: {instead}")


def progress_bar(items: Iterable[_Item], total: int) -> Iterable[_Item]:
    """The items, with a bar on stderr where that is a terminal."""
    from tqdm import tqdm  # only commands need it; the Predictor does not

    bar: Iterable[_Item] = tqdm(items, total=total, unit="frame", file=sys.stderr, disable=None)
    return bar


@contextmanager
def plain_streams() -> Iterator[None]:
    """In the block, stdout and stderr take every character and escape control characters.

    Without a stderr (2>&-, pythonw), or with one that cannot be written, messages are lost and work continues; they
    never go to stdout, where results are. Without a stdout, `print` does nothing.
    """
    before = sys.stdout, sys.stderr
    if not isinstance(sys.stdout, _Plain | None):
        sys.stdout = cast(TextIO, _Plain(sys.stdout, needed=True))
    if not isinstance(sys.stderr, _Plain):
        sys.stderr = cast(TextIO, _Plain(sys.stderr, needed=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Plain:
    """A text stream in front of another one, or of none. needed: whether a failed write is an error."""

    def __init__(self, stream: TextIO | None, *, needed: bool) -> None:
        self._stream = stream
        self._needed = needed

    def write(self, text: str) -> int:
        if self._stream is None:
            return len(text)
        # A progress bar writes a carriage return first; bars below each other only move the cursor.
        bar, rest = text[:1] == "\r", text.removeprefix("\r")
        if not (rest.isascii() and rest.isprintable()) and rest.strip("\n").replace(_CURSOR_UP, ""):
            rest = "\n".join("\t".join(map(printable, line.split("\t"))) for line in rest.split("\n"))
            encoding = self._stream.encoding or "utf-8"
            rest = rest.encode(encoding, "backslashreplace").decode(encoding)
        with self._failing():
            self._stream.write("\r" + rest if bar else rest)
        return len(text)

    def flush(self) -> None:
        with self._failing():
            if self._stream is not None:
                self._stream.flush()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """A reader that left, a full disk, a closed stream: an error on stdout; stderr then stays silent."""
        try:
            yield
        except (OSError, ValueError) as exc:
            if not self._needed:
                self._stream = None
                return
            if isinstance(exc, OSError):
                exc.filename = "stdout"
            raise

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
