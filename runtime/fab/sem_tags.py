"""What the tags of a TIFF page say about the SEM, and the text that old FEI tools append to the file.

tifffile has read the page's table of tags already; the texts themselves are read here, each to a limit. A file without
such tags costs a few look-ups in a table, and one short read at its end.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, BinaryIO

from tifffile import TiffPage, TiffTag

from .sem_makers import read_fei, read_tescan, read_xml, read_zeiss, sections_of, text_of
from .sem_units import LENGTHS_NM, name, within
from .sem_values import NOTHING, Reading, SemMetadata, combined

MOST_BYTES = 1 << 20
"""Of one text. Real ones hold 4 to 66 kB; Tescan's follows a thumbnail."""
_ZEISS, _FEI, _FEI_XML, _TESCAN, _SIS = 34118, (34680, 34682), 34683, 50431, (33560, 33471)
MAKERS = (_ZEISS, *_FEI, _FEI_XML, _TESCAN, *_SIS)
"""Tags that are read, in this order."""
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_INCH, _CENTIMETRE = 2, 3
_UNIT_NM = {_INCH: 2.54e7, _CENTIMETRE: 1e7}
_TEXTS = {1, 2, 6, 7}
"""Types of tags whose values are bytes (TIFF 6.0, section 2)."""
_FINEST_PRINT_NM = 2000.0
"""Resolution per inch or centimetre counts only below this: no screen, scanner or printer has 12,700 dots per inch."""
_TAIL, _LAST = 1 << 16, 64
_USER = b"[User]"
_KEY_VALUE = re.compile(rb"[A-Za-z]\w*=[^\r\n\0]*[\r\n\0 ]*\Z")
_IMAGEJ_UNIT = re.compile(r"^unit=(.{1,20})$", re.MULTILINE)
_ESCAPED = re.compile(r"\\u([0-9A-Fa-f]{4})")


def read_tags(page: TiffPage, file: BinaryIO, named: Collection[int] = ()) -> SemMetadata:
    """What is known of a page's tool. Never raises: what cannot be read is a warning.

    named: those of MAKERS in the page's table. tifffile leaves out a tag whose type or place is damaged.
    """
    found = NOTHING
    for code in MAKERS if named else ():
        tag = page.tags.get(code)
        if tag is not None:
            found = combined(found, _guarded(tag, page, file))
        elif code in named:
            reading = _reading(f"TIFF tag {code}", page)
            reading.warn("is damaged, and not read")
            found = combined(found, reading.result())
    if found is not NOTHING:
        return found
    found = _appended(page, file)
    return found if found is not NOTHING else _resolution(page)


def _guarded(tag: TiffTag, page: TiffPage, file: BinaryIO) -> SemMetadata:
    reading = _reading(f"TIFF tag {tag.code}", page)
    try:
        found = _read(tag, page, file, reading)
        if found.source or found.warnings:
            return found
        reading.warn("is not read: it names nothing that is known")
    except Exception as exc:  # damaged beyond what was foreseen; the frame itself is fine
        reading.warn(f"is not read ({type(exc).__name__}: {exc})")
    return reading.result()


def _read(tag: TiffTag, page: TiffPage, file: BinaryIO, reading: Reading) -> SemMetadata:
    if tag.code in _SIS:
        _read_sis(tag, page, reading)
        return reading.result()
    if int(tag.dtype) not in _TEXTS or not 0 < tag.count <= MOST_BYTES:
        reading.warn(f"is not read: it is no text of at most {MOST_BYTES:,} bytes")
        return reading.result()
    file.seek(tag.valueoffset)
    return _read_text(tag.code, file.read(tag.count), reading, page)


def _reading(where: str, page: TiffPage) -> Reading:
    return Reading(where, (page.imagelength, page.imagewidth))


def _read_text(code: int, data: bytes, reading: Reading, page: TiffPage) -> SemMetadata:
    if code == _ZEISS:
        # Latin-1 alone: in UTF-8, the micro sign would be two bytes.
        read_zeiss(data.decode("latin-1"), reading)
        return reading.result()
    if code == _TESCAN:
        data = data[data.rfind(b"\xff\xd9") + 2 :] if b"\xff\xd9" in data else data  # the end of its thumbnail
        read_tescan(sections_of(data.decode("latin-1")), reading)
        return reading.result()
    return _read_fei_text(text_of(data), reading, page)


def _read_fei_text(text: str, reading: Reading, page: TiffPage) -> SemMetadata:
    """Sections, XML, or XML after the sections."""
    start = text.find("<?xml")
    start = text.find("<") if start < 0 and text.lstrip("\0 \r\n").startswith("<") else start
    plain, xml = (text, "") if start < 0 else (text[:start], text[start:])
    found = NOTHING
    if plain.strip("\0 \r\n"):
        read_fei(sections_of(plain), reading)
        found = reading.result()
    if xml:
        of_xml = _reading(f"{reading.where} (XML)", page)
        read_xml(xml, of_xml)
        found = combined(found, of_xml.result())
    return found


def _appended(page: TiffPage, file: BinaryIO) -> SemMetadata:
    """The text after the data, as FEI tools wrote it before they had a tag."""
    size = page.parent.filehandle.size  # no seek to the end, which would empty the buffer
    file.seek(max(0, size - _LAST))
    if not _KEY_VALUE.search(file.read(_LAST)):
        return NOTHING
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    start = tail.rfind(_USER)
    if start < 0:
        return NOTHING
    return _read_fei_text(text_of(tail[start:]), _reading("text at the end of the file", page), page)


def _read_sis(tag: TiffTag, page: TiffPage, reading: Reading) -> None:
    """Olympus SIS: tifffile knows its structure, of which no description is public."""
    if tag.count > MOST_BYTES:
        return reading.warn(f"is not read: it holds more than {MOST_BYTES:,} bytes")
    values: Any = page.tags.valueof(tag.code)
    if not isinstance(values, dict) or not {"pixelsizex", "pixelsizey"} <= values.keys():
        return reading.warn("is not read: it names no size of a pixel")
    reading.take_pixel(lambda: float(values["pixelsizex"]) * 1e9, lambda: float(values["pixelsizey"]) * 1e9)
    enlarged = str(values.get("magnification", ""))
    reading.take("magnification", enlarged, lambda text: within(float(text), 1e-3, 1e9, "magnification"))
    reading.take("detector", str(values.get("cameraname", "")), name)
    reading.set("acquired", values.get("datetime"))
    reading.set("maker", "Olympus SIS")
    return None


def _resolution(page: TiffPage) -> SemMetadata:
    """Pixels per unit, where the unit is one of microscopy: by ImageJ's description, or far finer than any print."""
    tags = page.tags
    x, y, unit = (tags.valueof(code) for code in (_X_RESOLUTION, _Y_RESOLUTION, _UNIT))
    if x is None or y is None:
        return NOTHING
    imagej = page.description.startswith("ImageJ=")
    named = _IMAGEJ_UNIT.search(page.description) if imagej else None
    unit_nm = LENGTHS_NM.get(_unescaped(named[1].strip())) if named else _UNIT_NM.get(int(unit or _INCH))
    if unit_nm is None:
        return NOTHING
    reading = _reading("ImageJ's description" if named else "TIFF resolution", page)
    try:
        sides = [unit_nm * below / above for above, below in (x, y)]
    except (TypeError, ValueError, ZeroDivisionError):
        return NOTHING
    if (unit_nm >= 1e7 and max(sides) > _FINEST_PRINT_NM) or sides == [unit_nm, unit_nm]:
        return NOTHING  # one pixel per unit is what programs write that know nothing
    reading.take_pixel(lambda: sides[0], lambda: sides[1])
    return reading.result()


def _unescaped(unit: str) -> str:
    """ImageJ writes the micro sign as an escape of six characters."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), unit)
