"""KLARF, the results file of wafer inspection: reading versions 1.1, 1.2 and 1.8.

`read_klarf` gives one model for all versions (klarf_model.py). `klarf_writing.py` writes class numbers back.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

from ..errors import KlarfError, KlarfIncomplete
from ..files import open_plain
from .klarf_flat import read_flat
from .klarf_model import Defect, KlarfFile, KlarfImage, Wafer
from .klarf_nested import read_nested
from .klarf_tokens import Source

__all__ = ["ENCODINGS", "MAX_BYTES", "Defect", "KlarfFile", "KlarfImage", "Wafer", "parse_klarf", "read_klarf"]

MAX_BYTES = 512 << 20
"""The largest file that is read."""
ENCODINGS = ("utf-8", "latin-1", "cp1252")
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_C1 = re.compile(rb"[\x80-\x9f]")
"""Control characters of Latin-1, which no text holds: where they stand, the encoding is another one."""
_FLAT = re.compile(rb"[ \t\r\n\f\v]*+(?i:FileVersion)(?![A-Za-z0-9_])")
_NESTED = re.compile(rb"[ \t\r\n\f\v]*+(?i:Record)(?![A-Za-z0-9_])")
_LAST = re.compile(rb"(?i:EndOfFile)[ \t\r\n\f\v;\x1a]*\Z")
_TAIL = 4096


def read_klarf(path: Path | str, *, encoding: str | None = None) -> KlarfFile:
    """Read a KLARF file.

    encoding: one of ENCODINGS. By default UTF-8 where the bytes are valid UTF-8, else Latin-1.
    Raises KlarfError where the file cannot be read, and KlarfIncomplete where it ends too early or changes meanwhile.
    """
    return parse_klarf(_bytes_of(Path(path)), str(path), encoding=encoding)


def parse_klarf(data: bytes, name: str, *, encoding: str | None = None) -> KlarfFile:
    """The same of a file's bytes; `name` is for messages."""
    if len(data) > MAX_BYTES:
        raise KlarfError(name, f"is {len(data):,} bytes, more than the {MAX_BYTES:,} that are read")
    source = Source(name, data, _encoding_of(data, name, encoding))
    start = len(_BOM) if data.startswith(_BOM) else 0
    flat, nested = _FLAT.match(data, start), _NESTED.match(data, start)
    if flat is None and nested is None:
        if not data.strip():
            raise KlarfIncomplete(name, "is empty: it may still be written")
        source.fail("this is no KLARF file: it begins neither with FileVersion nor with Record", start)
    if _LAST.search(data, max(start, len(data) - _TAIL)) is None:
        source.end_too_soon("without EndOfFile")
    return read_flat(source, start) if flat else read_nested(source, start)


def _encoding_of(data: bytes, name: str, encoding: str | None) -> str:
    """The encoding of the texts. Raises KlarfError where the bytes do not fit it."""
    if data[:2] in _UTF_16 or b"\0" in data[:1024]:
        raise KlarfError(name, "is UTF-16 or no text; KLARF is read as UTF-8, Latin-1 or cp1252. Save it as UTF-8")
    if encoding is not None:
        if encoding not in ENCODINGS:
            raise KlarfError(name, f"cannot be read as {encoding!r}; choose one of {', '.join(ENCODINGS)}")
        if data.startswith(_BOM) and encoding != "utf-8":
            raise KlarfError(name, f"begins with the mark of UTF-8, so it is not {encoding}; leave the encoding out")
        return _checked(data, name, encoding)
    try:
        return _checked(data, name, "utf-8")
    except KlarfError:
        if data.startswith(_BOM) or _C1.search(data):
            raise
    return "latin-1"


def _checked(data: bytes, name: str, encoding: str) -> str:
    """`encoding`, if all bytes can be read with it."""
    if not data.isascii():
        try:
            data.decode(encoding)
        except UnicodeDecodeError as exc:
            line = Source(name, data, encoding).line_of(exc.start)
            reason = f"byte {data[exc.start]:#04x} is not {encoding}. Name the file's encoding: {', '.join(ENCODINGS)}"
            raise KlarfError(name, reason, line) from None
    return encoding


def _bytes_of(path: Path) -> bytes:
    """The file's bytes, unless it changes while they are read."""
    try:
        with io.BufferedReader(open_plain(path)) as stream:
            before = os.fstat(stream.fileno())
            if before.st_size > MAX_BYTES:
                raise KlarfError(path, f"is {before.st_size:,} bytes, more than the {MAX_BYTES:,} that are read")
            data = stream.read(before.st_size)
            after = os.fstat(stream.fileno())
    except FileNotFoundError:
        raise KlarfError(path, "does not exist") from None
    except OSError as exc:
        raise KlarfError(path, f"cannot be read ({exc.strerror})") from exc
    except ValueError as exc:  # a name that no file can have
        raise KlarfError(path, f"cannot be read ({exc})") from exc
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise KlarfIncomplete(path, "changes while it is read: wait for its writer")
    return data
