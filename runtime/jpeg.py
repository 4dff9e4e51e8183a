"""JPEG streams, of files and inside TIFF: check that they are whole, then decode them by Pillow.

libjpeg only warns if the data end too early, and fills the rest with grey; Pillow does the same. So the markers are
read here. Pillow's decoder is called directly (`Image.frombytes`), because Pillow's file reader obeys switches of the
calling program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image

from . import inflate
from .errors import FrameError
from .pixels import Stored, check_pixels

SIGNATURE = b"\xff\xd8\xff"
_SOI, _EOI, _SOS, _DRI, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE0, 0xE1, 0xEE
_DATA = 0
"""Stands in for the marker of a scan's data, which have none."""
_PROGRESSIVE = 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
_OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}
_TABLES = (0xC4, 0xDB, _DRI)
"""Huffman and quantization tables, restart interval: what decoding needs in addition to frame and scans."""
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The marker that ends the data of a scan. Stuffed zeros, fill bytes and restarts belong to the data."""
_FILL = re.compile(rb"\xff+")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MOST_SEGMENTS = 10_000
_MOST_SCANS = 100
_MOST_SCANNED = 500_000_000
"""Pixels times scans. libjpeg visits all pixels again for each scan, even for a nearly empty one."""
_PAST_THE_END = (bytes(64), b"\x55" * 64)
"""Appended to the data of a scan. If the data are complete, no decoder reads either."""
_TOO_EARLY = "is damaged or truncated (its JPEG data end too early)"


class _Scan(NamedTuple):
    """header: its SOS segment; data: the place of its data among the parts; interval: of restarts, in MCUs, or 0."""

    header: bytes
    data: int
    interval: int


@dataclass(slots=True)
class _Stream:
    """The segments of one JPEG image. parts: what decoding needs, in order. inverted: four components are inks as Adobe
    stores them, 255 for none, which Pillow always assumes; in TIFF they are colour and opacity."""

    frame: bytes = b""
    orientation: int = 1
    inverted: bool = True
    parts: list[bytes] = field(default_factory=list)
    scans: list[_Scan] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        return int.from_bytes(self.frame[7:9], "big"), int.from_bytes(self.frame[5:7], "big")

    @property
    def components(self) -> dict[int, tuple[int, int]]:
        """Sampling factors (across, down) by component number."""
        entries = (self.frame[at : at + 3] for at in range(10, len(self.frame) - 2, 3))
        return {entry[0]: (entry[1] >> 4, entry[1] & 15) for entry in entries}

    def joined(self, filling: bytes = b"") -> bytes:
        """The image as one stream without metadata, with `filling` after the data of each scan and of its parts."""
        parts = list(self.parts)
        for scan in self.scans if filling else ():
            parts[scan.data] = _RESTART.sub(lambda mark: filling + mark[0], parts[scan.data]) + filling
        return b"".join([b"\xff\xd8", *parts, b"\xff\xd9"])


def decode(
    data: bytes, name: str, *, tables: bytes = b"", colour: int | None = None, most: tuple[int, int] | None = None
) -> Stored:
    """The first image of a JPEG stream; what follows it (a preview, a second view) is ignored.

    TIFF sets three options. tables: a stream of tables that this one leaves out. colour: the meaning of three
    components (Adobe's transform: 0 RGB, 1 YCbCr). most: width and height of the strip or tile.
    Raises FrameError.
    """
    stream = _parse(data, name, tables, colour)
    (width, height), count = stream.size, len(stream.scans)
    check_pixels(width, height, name)
    if most is not None and (width > most[0] or height > most[1]):
        raise FrameError(name, f"is damaged: {width}x{height} pixels of JPEG data in the place of {most[0]}x{most[1]}")
    if count > _MOST_SCANS or count * width * height > max(_MOST_SCANNED, width * height):
        raise FrameError(name, f"is a JPEG of {count} scans, which takes too long at its size; save it as PNG or TIFF")
    if not _has_all_scans(stream) or any(_lacks_restarts(stream, scan) for scan in stream.scans):
        raise FrameError(name, _TOO_EARLY)
    return Stored(_whole(stream, name), orientation=stream.orientation)


def _whole(stream: _Stream, name: str) -> Image.Image:
    """The pixels. FrameError if the data do not hold all of them."""
    if _is_plain(stream):
        image = _pixels(stream, b"")
        if _reached_its_end(image):
            return image
    first, second = _PAST_THE_END
    checksum = _checksum(_pixels(stream, first))  # not the pixels: two copies of a large frame do not fit
    image = _pixels(stream, second)
    if _checksum(image) != checksum:
        raise FrameError(name, _TOO_EARLY)
    return image


def _checksum(image: Image.Image) -> int:
    """CRC-32 of the image in grey."""
    return int(inflate.crc32(image.convert("L").tobytes()))


def _pixels(stream: _Stream, filling: bytes) -> Image.Image:
    mode = _MODES[len(stream.components)]
    raw_mode = "CMYK;I" if mode == "CMYK" and stream.inverted else mode
    return Image.frombytes(mode, stream.size, stream.joined(filling), "jpeg", raw_mode, "")


def _has_all_scans(stream: _Stream) -> bool:
    """Whether every component has its data; in a progressive image, every coefficient down to the last bit."""
    lacking = {component: set(range(64)) for component in stream.components}
    for scan in stream.scans:
        last = scan.header[-3:]
        whole = stream.frame[1] != _PROGRESSIVE
        got = set(range(64)) if whole else set(range(last[0], last[1] + 1)) if last[2] & 15 == 0 else set()
        for component in scan.header[5:-3:2]:
            lacking.get(component, set()).difference_update(got)
    return not any(lacking.values())


def _lacks_restarts(stream: _Stream, scan: _Scan) -> bool:
    """Whether a scan with restarts has fewer of them than its size requires."""
    if not scan.interval:
        return False
    (width, height), sampling = stream.size, stream.components
    across, down = (max(factors) for factors in zip(*sampling.values(), strict=True))
    listed = scan.header[5:-3:2]
    if len(listed) == 1:
        own = sampling.get(listed[0], (across, down))
        width, height = -(-width * own[0] // across), -(-height * own[1] // down)
        across = down = 1
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    restarts: int = -(-units // scan.interval) - 1
    return len(_RESTART.findall(stream.parts[scan.data])) < restarts


def _is_plain(stream: _Stream) -> bool:
    """Whether it is grey with blocks in reading order, so that a complete last block proves the others complete. Other
    streams may lack data in more places, and are decoded twice instead."""
    grey, scan = len(stream.components) == 1, stream.scans[0]
    return grey and stream.frame[1] != _PROGRESSIVE and len(stream.scans) == 1 and not scan.interval


def _reached_its_end(image: Image.Image) -> bool:
    """Whether the last block of a plain stream has data; a block without data is 128 throughout."""
    left, top = ((side - 1) // 8 * 8 for side in image.size)
    return any(image.getpixel((x, y)) != 128 for y in range(top, image.height) for x in range(left, image.width))


def _parse(data: bytes, name: str, tables: bytes, colour: int | None) -> _Stream:
    stream, header, interval = _Stream(inverted=colour is None), b"", 0
    if tables:
        stream.parts += [segment for marker, segment in _segments(tables, name) if marker in _TABLES]
    if colour is not None:
        stream.parts.append(b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([colour]))
    for marker, segment in _segments(data, name):
        if marker in _OTHER_FRAMES:
            raise FrameError(name, "is a lossless or arithmetic JPEG, which is not read; save it as PNG or TIFF")
        if marker in _FRAMES:
            if stream.frame:
                raise FrameError(name, "is damaged or truncated (its JPEG frame begins twice)")
            stream.frame = segment
        elif marker == _SOS:
            header = segment
        elif marker == _DATA:
            stream.scans.append(_Scan(header, len(stream.parts), interval))
        elif marker == _DRI:
            interval = int.from_bytes(segment[4:6], "big")
        elif marker == _APP1 and segment[4:10] == b"Exif\0\0":
            stream.orientation = exif_orientation(segment[10:])
        if marker in (_DATA, _SOS, _APP0, *_FRAMES, *_TABLES) or (marker == _APP14 and colour is None):
            stream.parts.append(segment)
    if len(stream.frame) < 13 or not stream.scans:
        raise FrameError(name, "is damaged or truncated (a JPEG without pixels)")
    if stream.frame[4] != 8:
        raise FrameError(name, f"is a JPEG of {stream.frame[4]} bits, which is not read; save it as PNG or TIFF")
    if colour == 1 and stream.frame[9] == 4:  # libjpeg would take it for YCCK
        raise FrameError(name, "holds JPEG data of YCbCr and opacity, which are not read; save it without transparency")
    if len(stream.components) not in _MODES or not all(all(pair) for pair in stream.components.values()):
        raise FrameError(name, f"is a JPEG of {stream.frame[9]} components, which is not read; save it as PNG or TIFF")
    return stream


def _segments(data: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """(marker, segment with its marker) up to the end mark; the data of a scan come with the marker _DATA."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        fill = _FILL.match(data, at)
        if fill is None or fill.end() == len(data):
            break
        at = fill.end() - 1
        marker = data[at + 1]
        if marker == _EOI:
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(data) or 0xD0 <= marker <= _SOI:
            break
        yield marker, data[at : at + 2 + length]
        at += 2 + length
        if marker == _SOS:
            found = _MARKER.search(data, at)
            end = found.start() if found else len(data)
            yield _DATA, data[at:end]
            at = end
    else:
        raise FrameError(name, f"is a JPEG of more than {_MOST_SEGMENTS:,} segments; save it as PNG or TIFF")
    raise FrameError(name, _TOO_EARLY)


def exif_orientation(exif: bytes) -> int:
    """The orientation tag of a block of EXIF data (a small TIFF file); 1 if it has none."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)  # type: ignore[arg-type]

    start = number(4, 4)
    for at in range(start + 2, min(start + 2 + 12 * number(start, 2), len(exif)), 12):
        if number(at, 2) == 274:
            value = number(at + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
