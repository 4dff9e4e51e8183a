"""TIFF files, their pages and the meaning of these: tifffile reads the structure, `runtime.strips` the pixels.

A page counts as a frame unless the file marks it as a reduced copy or a mask. The list of pages is walked here, once
per file: tifffile follows a loop of pages for ever, and skips a page that is cut off.
"""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import threading
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import PHOTOMETRIC, SAMPLEFORMAT, TIFF, TiffFile, TiffPage

from . import strips
from .errors import FrameError
from .fab.sem_tags import MAKERS, read_tags
from .fab.sem_values import NOTHING
from .pixels import Stored, check_bytes, check_pixels

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 100_000
_MAX_ENTRIES = 4096
_MAX_TAG_BYTES = 1 << 24
"""For tags of a page that tifffile reads at once: the places of strips and tiles, descriptions."""
_FILES_KEPT = 32
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by its type (TIFF 6.0, section 2; BigTIFF)."""
_WHOLE = {1, 3, 4, 13, 16}
_SUBFILE, _OLD_SUBFILE, _PHOTOMETRIC, _ORIENTATION, _STK = 254, 255, 262, 274, 33628
_SINGLE = {254, 255, 256, 257, 259, 262, 266, 274, 277, 278, 284, 317, 322, 323, 32997, 32998}
_STRUCTURE = {258, 273, 279, 320, 324, 325, 338, 339} | _SINGLE
"""Tags that define where the pixels are and what they mean, and those with one value. tifffile ignores a damaged one,
and never ends with a width of a million values."""
REDUCED_OR_MASK = 1 | 4
"""Bits of NewSubfileType (TIFF 6.0, section 8)."""
_GREY, _PALETTE, _COLOUR = (0, 1), 3, (2, 6)
_IMAGEJ = re.compile(r"\A(?:ImageJ|SCIFIO)=.*?^images=(\d{1,9})\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """Offsets of the pages of a file that are frames. slices: how many frames a single page holds, one after the other,
    as ImageJ stores large stacks; else 1. makers: by offset, the tags with metadata of SEM makers that a page names."""

    offsets: array[int]
    slices: int
    makers: dict[int, list[int]]

    @property
    def frames(self) -> int:
        """How many frames the file holds."""
        return len(self.offsets) * self.slices


class _Known:
    """Page lists of the stacks read last, so that a page of a stack costs no more than a file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Index] = OrderedDict()

    def get(self, key: Hashable) -> _Index | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, index: _Index) -> None:
        with self._lock:
            self._kept[key] = index
            while len(self._kept) > _FILES_KEPT:
                self._kept.popitem(last=False)


_known = _Known()


def frame_count(file: BinaryIO, name: str, key: Hashable = None) -> int:
    """How many frames a TIFF file holds. key: identity of the file on disk, which changes with it; None for no caching.

    Raises FrameError.
    """
    with _quiet():
        return _look(file, name, key)[0].frames


def decode(file: BinaryIO, number: int | None, name: str, key: Hashable = None, path: str | None = None) -> Stored:
    """The pixels of a frame, counted from 1; of the only one if `number` is None.

    path: of the file, to name its frames in errors. Raises FrameError; also errors of tifffile and the codecs
    if the data are damaged.
    """
    with _quiet():
        index, page = _look(file, name, key)
        if number is None and index.frames > 1:
            mark = name.rpartition("#")[2] if "#" in name else ""
            which = f"page={int(mark)}" if re.fullmatch("[1-9][0-9]{0,8}", mark) else "a page"
            how = f"a frame is one of them; name the file, or give EncodedFrame {which}"
            if path:
                how = f"name one of them: {path}#1 ... {path}#{index.frames}"
            raise FrameError(name, f"holds {index.frames} pages; {how}")
        if number is not None and not 1 <= number <= index.frames:
            raise FrameError(name, f"there is no page {number}; the file holds pages 1 to {index.frames}")
        place, part = divmod((number or 1) - 1, index.slices)
        page = page or _page(file, index.offsets[place])
        _check(page, name)
        stored = _meaning(page, strips.read(page, file, name, part if index.slices > 1 else None), name)
        sem = read_tags(page, file, index.makers.get(page.offset, ()))
        return stored if sem is NOTHING else replace(stored, sem=sem)


def _look(file: BinaryIO, name: str, key: Hashable) -> tuple[_Index, TiffPage | None]:
    """The file's frames; and the page, if there is only one and it was read for that."""
    known = None if key is None else _known.get(key)
    if known is not None:
        return known, None
    offsets, makers = _walk(file, name)
    page = _page(file, offsets[0]) if len(offsets) == 1 else None
    index = _Index(offsets, 1 if page is None else _slices(page, file, name), makers)
    if key is not None and index.frames > 1:
        _known.put(key, index)
    return index, page


def _walk(file: BinaryIO, name: str) -> tuple[array[int], dict[int, list[int]]]:
    """Offsets of the pages that are frames, and `_Index.makers`. Every page's tags are checked before tifffile reads
    them."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:1] == b"I" else ">", head[2:4] in (b"+\0", b"\0+")
    if (big and head[4:8] != struct.pack(order + "HH", 8, 0)) or len(head) < (16 if big else 8):
        raise FrameError(name, "is damaged or truncated (a wrong TIFF header)")
    count_of, entry_of, link_of = (
        struct.Struct(order + f) for f in (("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I"))
    )
    link = link_of.unpack_from(head, 8 if big else 4)[0]
    frames, seen, makers = array("Q"), set[int](), dict[int, list[int]]()
    while link:
        if link in seen or len(seen) >= MAX_PAGES:
            what = "its pages form a loop" if link in seen else f"more than {MAX_PAGES:,} pages"
            raise FrameError(name, f"is damaged ({what})")
        seen.add(link)
        file.seek(min(link, size))
        counted = file.read(count_of.size)
        entries = count_of.unpack(counted)[0] if len(counted) == count_of.size else 0
        table = file.read(entries * entry_of.size + link_of.size) if entries <= _MAX_ENTRIES else b""
        if not entries or len(table) < entries * entry_of.size + link_of.size:
            raise FrameError(name, f"is damaged or truncated (its page {len(seen)} lies past the end)")
        entries_of = list(entry_of.iter_unpack(table[: -link_of.size]))
        if _is_frame(_first_values(entries_of, order, size, name), name):
            frames.append(link)
            if named := [code for code, *_ in entries_of if code in MAKERS]:
                makers[link] = named
        link = link_of.unpack_from(table, entries * entry_of.size)[0]
    if not frames:
        raise FrameError(name, "holds no frame: all of its pages are marked as reduced copies or masks")
    return frames, makers


def _first_values(entries: list[tuple[int, int, int, bytes]], order: str, size: int, name: str) -> dict[int, int]:
    """The first value, or its place, of each tag that is used. FrameError if one is not sound."""
    endian: Literal["little", "big"] = "little" if order == "<" else "big"
    single: dict[int, int] = {}
    loaded = 0
    for code, kind, count, value in entries:
        if code not in _STRUCTURE and code not in TIFF.TAG_LOAD:
            continue
        length = count * _SIZES.get(kind, 0)
        loaded += length
        outside = length > len(value) and int.from_bytes(value, endian) + length > size
        wrong = code in _STRUCTURE and (kind not in _WHOLE or not count or (count > 1 and code in _SINGLE))
        if wrong or code in single or outside or loaded > _MAX_TAG_BYTES:
            raise FrameError(name, f"is damaged or truncated (its tag {code} is wrong, too large or there twice)")
        single[code] = int.from_bytes(value[: _SIZES.get(kind, 0)], endian)
    return single


def _is_frame(tags: dict[int, int], name: str) -> bool:
    """Whether a page is meant as a frame."""
    if _STK in tags:
        raise FrameError(name, "is a MetaMorph stack, which is not read; save its planes as pages")
    if tags.get(_SUBFILE, 0) & REDUCED_OR_MASK or tags.get(_OLD_SUBFILE) == 2:
        return False
    return tags.get(_PHOTOMETRIC) != PHOTOMETRIC.MASK


def _page(file: BinaryIO, offset: int) -> TiffPage:
    """The page whose tags begin at `offset`."""
    file.seek(0)
    # Special layouts that tifffile would otherwise search the whole file for.
    opened = TiffFile(file, name="frame", is_lsm=False, is_ndpi=False, is_scanimage=False)
    page = opened.pages.first
    if page.offset != offset:
        opened.filehandle.seek(offset)
        page = TiffPage(opened, index=1)
    return page


def _slices(page: TiffPage, file: BinaryIO, name: str) -> int:
    """How many frames lie one after the other in the data of the only page. Raises FrameError if some are missing."""
    promised = _promised(page)
    if promised < 2 or not strips.in_one_piece(page):
        return 1  # a description of another file, which was copied with the pixels
    there = (file.seek(0, 2) - page.dataoffsets[0]) // page.nbytes
    if there < promised:
        raise FrameError(
            name,
            f"is truncated: its description promises {promised} images and it holds {there}; if it was cut out of a "
            "stack, save it without that description",
        )
    return promised


def _promised(page: TiffPage) -> int:
    """The number of images that ImageJ's or tifffile's description names."""
    found = _IMAGEJ.match(page.description)
    if found:
        return int(found[1])
    if page.description.startswith("{") and '"truncated": true' in page.description:
        shape = json.loads(page.description)["shape"]
        return int(math.prod(shape) // math.prod(page.shape))
    return 1


def _check(page: TiffPage, name: str) -> None:
    """Refuse what cannot be a grey frame, by name, before the pixels are read."""
    check_pixels(page.imagewidth, page.imagelength, name)
    if page.imagedepth != 1:
        raise FrameError(name, f"holds a volume of {page.imagedepth} slices in one page; save them as pages")
    if _PHOTOMETRIC not in page.tags:
        raise FrameError(
            name, "does not define whether 0 is black (it has no PhotometricInterpretation); save it again"
        )
    if page.photometric not in (*_GREY, _PALETTE, *_COLOUR) or (page.photometric == 6 and page.compression != 7):
        raise FrameError(name, f"holds {_name_of(page.photometric)} pixels, which are not read; save it as grey or RGB")
    if page.dtype is None or page.dtype.kind not in "buif":
        bits = page.bitspersample if isinstance(page.bitspersample, int) else "differing"
        kind = _name_of(SAMPLEFORMAT(page.sampleformat) if 0 < page.sampleformat < 7 else page.sampleformat)
        raise FrameError(name, f"holds {kind} samples of {bits} bits, which are not read; save it with 8 or 16 bits")
    colours = 3 if page.photometric in _COLOUR else 1
    extra = page.samplesperpixel - colours
    if extra < 0 or extra > 1 or (extra and page.photometric == _PALETTE):
        raise FrameError(name, f"holds {page.samplesperpixel} channels in one page; save the one that is meant")
    if extra and colours == 1 and page.extrasamples[:1] not in ((1,), (2,)):
        raise FrameError(name, "holds 2 channels in one page; save the one that is meant")
    check_bytes(math.prod(page.shaped) * page.dtype.itemsize, name)


def _name_of(value: object) -> str:
    name = getattr(value, "name", None)
    return str(name) if name else f"unknown ({value})"


def _meaning(page: TiffPage, values: NDArray[Any], name: str) -> Stored:
    """`values` [H, W, samples] with their meaning."""
    colours = 3 if page.photometric in _COLOUR else 1
    if values.shape[2] > colours and page.extrasamples[:1] == (1,):
        alpha = values[:, :, colours]
        opaque = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
        if alpha.min() < opaque:  # the pixels are multiplied by it, so the original ones are lost
            raise FrameError(name, "holds premultiplied alpha; save it without transparency")
    kept = values[:, :, :3] if colours == 3 else values[:, :, 0]
    bits = page.bitspersample
    tag = page.tags.valueof(_ORIENTATION)
    orientation = tag if isinstance(tag, int) and 1 <= tag <= 8 else 1
    if page.photometric == _PALETTE:
        return Stored(np.take(_grey_palette(page, name), kept), orientation=orientation)
    white = None if bits in (8, 16, 32, 64) or kept.dtype.kind == "f" else (1 << bits) - 1
    inverted, wide_colour = page.photometric == PHOTOMETRIC.MINISWHITE, colours == 3 and kept.dtype == np.uint16
    return Stored(kept, white, inverted, orientation, wide_colour and white is None)


def _grey_palette(page: TiffPage, name: str) -> NDArray[np.uint8]:
    """The luma of each palette entry."""
    entries = page.colormap
    if entries is None or entries.shape[1] < 1 << page.bitspersample or page.sampleformat != 1:
        raise FrameError(name, "is damaged or truncated (its palette is missing or too short)")
    grey: NDArray[np.uint8] = np.asarray(Image.fromarray(palette_colours(entries)[None]).convert("L"))[0]
    return grey


def palette_colours(entries: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The colours [n, 3] of a palette as TIFF has it, [3, n]; some writers fill 8 of the 16 bits."""
    eight = entries >> 8 if entries.max() > 255 else entries
    return np.ascontiguousarray(eight.T.astype(np.uint8))


class _Quiet(logging.Filter):
    """Drops tifffile's log records while a thread reads a frame here: the FrameError has the reason."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.here, "reading", False)


_filter = _Quiet()
logging.getLogger("tifffile").addFilter(_filter)


@contextmanager
def _quiet() -> Iterator[None]:
    _filter.here.reading = True
    try:
        yield
    finally:
        _filter.here.reading = False
