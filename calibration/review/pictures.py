"""Pictures of the review page: frames, maps and outlines, as PNG, each made from what the store names and nothing else.

Frames are shown only as they were judged: a file that holds other pixels by now is an error. A few pictures are made at
a time, so that large frames need the memory of a few.
"""

from __future__ import annotations

import io
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.frames import checksum_of, decode_frame
from runtime.pixels import MAX_SIDE
from runtime.prediction import FailedFrame, Prediction
from runtime.recipe import FrameOptions
from runtime.verdict_store import Entry

from ..masks import defect_pixels, read_mask
from .outline import border
from .session import Session
from .web import Answer, Asked, Parameters, ReviewError, id_in

THUMB = 256
"""Longest side of a small picture, in pixels."""
LARGEST_MAP = 2048
"""Longest side of a map or an outline; the page stretches it over the frame. Maps are smooth, frames are not."""
_MOST_KEPT = 64 * 2**20
_RED, _YELLOW = (255, 40, 30), (255, 220, 0)
_REGION = re.compile(r"(\d{1,5}),(\d{1,5}),(\d{1,5}),(\d{1,5})")
Size = tuple[int, int]
Grey = NDArray[np.uint8]


class Pictures:
    """Handlers of /picture/{id}, /map/{id}, /outline/{id} and /mask/{id}."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._run = secrets.token_hex(8)  # tags of another run, which may have served another store, mean nothing
        self._small = _Latest(_MOST_KEPT)
        self._frames = _Latest(2 * _MOST_KEPT)

    def picture(self, asked: Asked) -> Answer:
        """The frame, whole or small, or a part of it at full resolution."""
        number, given = id_in(asked), Parameters(asked.query)
        size, region = _size(given), given.text("region")
        given.finish()
        entry = self._session.entry(number)

        def draw() -> bytes:
            grey = self.grey(entry)
            if region:
                x, y, width, height = _inside(region, grey.shape[:2])
                return png(Image.fromarray(np.ascontiguousarray(grey[y : y + height, x : x + width])))
            return png(_small(Image.fromarray(grey)) if size == "thumb" else Image.fromarray(grey))

        return self._answer(asked, ("picture", number, region or size), draw, keep=size == "thumb" and not region)

    def map(self, asked: Asked) -> Answer:
        """The map as opaque as it is high, in red."""
        return self._layer(asked, "map", lambda result, size: _see_through(_of_map(result, size), _RED))

    def outline(self, asked: Asked) -> Answer:
        """The border of the mask, in yellow."""
        return self._layer(asked, "outline", lambda result, size: _see_through(_of_border(result, size), _YELLOW))

    def mask(self, asked: Asked) -> Answer:
        """The mask of the correction, or the one of the answer: 0 and 255 in the frame's size."""
        number, given = id_in(asked), Parameters(asked.query)
        given.text("v")
        given.finish()
        entry = self._session.entry(number)
        correction = self._session.correction_of(entry)
        drawn = None if correction is None else self._session.log.mask_path(correction)
        with self._session.room:
            marked = self.result(entry).mask() if drawn is None else defect_pixels(read_mask(drawn))
            return Answer(png(Image.fromarray(marked.astype(np.uint8) * np.uint8(255))), "image/png")

    def result(self, entry: Entry) -> Prediction:
        """The whole answer to a frame. Raises ReviewError where there is none."""
        result = self._session.store.result(entry.id)
        if isinstance(result, FailedFrame):
            raise ReviewError(f"the frame was not read: {result.error.reason}", 404)
        if result is None:
            raise ReviewError("JSON lines hold no maps; write a store: sem-clip predict ... --store FILE", 404)
        return result

    def grey(self, entry: Entry) -> Grey:
        """The frame as it was judged: grey [height, width]. Raises FrameError; ReviewError if it is another by now."""
        if entry.path is None:
            raise ReviewError("the frame did not come from a file, so it cannot be shown", 404)
        kept = self._frames.get(entry.id)
        if isinstance(kept, np.ndarray):
            return kept
        result = self._session.store.result(entry.id)
        options = result.frame_options if isinstance(result, Prediction) else self._options()
        grey = np.asarray(decode_frame(entry.path, options, entry.source).pixels)
        if isinstance(result, Prediction):
            same = grey.shape == result.frame_size and result.checksum in (None, checksum_of(grey))
        else:
            same = entry.frame_size in (None, grey.shape)
        if not same:
            raise ReviewError("the frame has changed since it was judged; judge it again", 410)
        self._frames.put(entry.id, grey, grey.nbytes)
        return grey

    def _options(self) -> FrameOptions:
        recipe = self._session.recipe
        return FrameOptions() if recipe is None else recipe.frame

    def _layer(self, asked: Asked, kind: str, draw: Callable[[Prediction, Size], Image.Image]) -> Answer:
        number, given = id_in(asked), Parameters(asked.query)
        size = _size(given)
        given.finish()
        entry = self._session.entry(number)

        def drawn() -> bytes:
            result = self.result(entry)
            return png(draw(result, fitted(result.frame_size, THUMB if size == "thumb" else LARGEST_MAP)))

        return self._answer(asked, (kind, number, size), drawn, keep=size == "thumb")

    def _answer(self, asked: Asked, key: tuple[object, ...], draw: Callable[[], bytes], *, keep: bool) -> Answer:
        """The picture, made now unless it is kept here or in the browser. Answers to an id never change."""
        tag = f'"{self._run}-{"-".join(map(str, key))}"'
        if tag in asked.known:
            return Answer(b"", "image/png", 304, tag)
        content = self._small.get(key)
        if not isinstance(content, bytes):
            with self._session.room:
                content = draw()
            if keep:
                self._small.put(key, content, len(content))
        return Answer(content, "image/png", tag=tag)


@dataclass(frozen=True, slots=True)
class _Item:
    value: object
    size: int


class _Latest:
    """The values that were used last, of `most` bytes together."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._lock = threading.Lock()
        self._items: OrderedDict[object, _Item] = OrderedDict()

    def get(self, key: object) -> object:
        """The value; None if it is not there."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key].value

    def put(self, key: object, value: object, size: int) -> None:
        """Keep it, unless it is larger than all there may be."""
        if size > self._most:
            return
        with self._lock:
            self._drop(key)
            self._items[key] = _Item(value, size)
            self._size += size
            while self._size > self._most:
                self._drop(next(iter(self._items)))

    def _drop(self, key: object) -> None:
        item = self._items.pop(key, None)
        self._size -= item.size if item is not None else 0


def png(image: Image.Image) -> bytes:
    """As PNG; packed fast rather than small, since it goes no further than this machine."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def fitted(size: Size, longest: int) -> Size:
    """[height, width] with the same sides' ratio, and no side longer than `longest`; never enlarged."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def small_picture(grey: Grey) -> bytes:
    """A frame as PNG of at most THUMB pixels a side."""
    return png(_small(Image.fromarray(grey)))


def _small(image: Image.Image) -> Image.Image:
    height, width = fitted((image.height, image.width), THUMB)
    return image.resize((width, height), Image.Resampling.BOX) if width < image.width else image


def _of_map(result: Prediction, size: Size) -> Grey:
    full = result.defect_map(size)
    opacity: Grey = np.rint(full * np.float32(255)).astype(np.uint8)
    return opacity


def _of_border(result: Prediction, size: Size) -> Grey:
    mask = result.mask()
    if size != mask.shape:  # a pixel is marked where any of its own was, so that no small region vanishes
        height, width = size
        reduced = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize((width, height), Image.Resampling.BOX)
        mask = np.asarray(reduced) > 0
    return border(mask).astype(np.uint8) * np.uint8(255)


def _see_through(opacity: Grey, colour: tuple[int, int, int]) -> Image.Image:
    """One colour, as opaque as `opacity` says: a palette of 256 opacities takes a quarter of RGBA's bytes."""
    height, width = opacity.shape
    image = Image.frombytes("P", (width, height), np.ascontiguousarray(opacity).tobytes())
    image.putpalette(colour * 256)
    image.info["transparency"] = bytes(range(256))
    return image


def _size(given: Parameters) -> str:
    return given.choice("size", ("thumb", "full"), "full")


def _inside(text: str, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A region x, y, width, height of the frame. Raises ReviewError if it is none."""
    found = _REGION.fullmatch(text)
    x, y, width, height = map(int, found.groups()) if found else (0, 0, 0, 0)
    if not (0 < width <= MAX_SIDE and height > 0 and x + width <= shape[1] and y + height <= shape[0]):
        raise ReviewError(f"region must be x,y,width,height inside the frame of {shape[1]} x {shape[0]} pixels")
    return x, y, width, height
