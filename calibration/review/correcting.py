"""Corrections from the review page: a class for a frame, with a mask where one was drawn or accepted, and undo."""

from __future__ import annotations

import base64
import binascii
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import FrameError
from runtime.frames import decode_frame
from runtime.operating_point import same_name_key
from runtime.recipe import MAX_CLASSES, FrameOptions
from runtime.verdict_store import Entry

from ..class_names import class_fault, folder_fault
from ..dataset import GOOD
from .listing import correction_json
from .pictures import Pictures
from .session import Session
from .web import Answer, Asked, ReviewError, json_answer, only, text_in

MOST_MASK = 16 * 2**20
"""Bytes of a mask's PNG file."""
MOST_BODY = MOST_MASK * 4 // 3 + 4096
OF_OUTLINE = "outline"
_PNG = b"\x89PNG\r\n\x1a\n"
Mask = NDArray[np.bool_]


class Correcting:
    """Handlers of POST /api/corrections and /api/corrections/undo."""

    def __init__(self, session: Session, pictures: Pictures) -> None:
        self._session, self._pictures = session, pictures
        self._turn = threading.Lock()

    def correct(self, asked: Asked) -> Answer:
        """Write one correction; it is on the disk when this is answered."""
        only(asked.body, "id", "new", "mask")
        number = asked.body.get("id")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**62:
            raise ReviewError("id must be the number of a frame")
        entry = self._session.entry(number)
        if entry.path is None:
            raise ReviewError("the frame did not come from a file, so it can teach nothing", 409)
        if entry.error is not None or entry.verdict is None:
            raise ReviewError(f"the frame was not read ({entry.error}), so it can teach nothing", 409)
        new = self._class(text_in(asked.body, "new"))
        mask = self._mask(entry, new, asked.body.get("mask"))
        checksum = self._session.store.facts(entry.id).get("checksum")
        with self._turn:
            written = self._session.log.add(
                entry.path, entry.verdict, new, self._session.who, checksum=checksum, mask=mask, site=entry.site
            )
        return json_answer({"corrected": correction_json(written)})

    def undo(self, asked: Asked) -> Answer:
        """Take the newest correction of the log back; the one before it holds again, if there was one."""
        only(asked.body)
        with self._turn:
            undone = self._session.log.newest()
            if undone is None:
                raise ReviewError("there is nothing to undo", 409)
            stands = self._session.log.undo(self._session.who)
        ids = self._session.ids_of(undone.frame)
        return json_answer({"id": ids[0] if ids else None, "corrected": correction_json(stands)})

    def _class(self, name: str) -> str:
        """A class that there is, or a sound name for a new one."""
        classes = self._session.classes()
        if name in classes:
            return name
        if fault := class_fault(name) or folder_fault(name):
            raise ReviewError(fault)
        twin = next((known for known in classes if same_name_key(known) == same_name_key(name)), None)
        if twin is not None:
            raise ReviewError(f'there is the class "{twin}" already, which people would take for the same')
        if len(classes) >= MAX_CLASSES:
            raise ReviewError(f"there are {MAX_CLASSES} classes, and a recipe has no more")
        return name

    def _mask(self, entry: Entry, new: str, given: Any) -> Mask | None:
        if given is None:
            return None
        if new == GOOD:
            raise ReviewError("a good frame has no defect to mark: leave the mask out")
        if entry.frame_size is None:
            raise ReviewError("the store does not know the frame's size", 409)
        with self._session.room:
            result = self._pictures.result(entry) if given == OF_OUTLINE else None
            marked = drawn_mask(given, entry.frame_size) if result is None else result.mask()
        if not marked.any():
            raise ReviewError("the mask marks nothing: draw where the defect is, or leave the mask out")
        return marked


def drawn_mask(given: Any, size: tuple[int, int]) -> Mask:
    """A mask as base64 of a PNG of 0 and 255, of the frame's `size`: bool [height, width]. Raises ReviewError."""
    if not isinstance(given, str):
        raise ReviewError(f'mask must be null, "{OF_OUTLINE}", or a PNG file in base64')
    try:
        content = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise ReviewError("mask is no base64") from None
    if len(content) > MOST_MASK:
        raise ReviewError(f"mask is larger than {MOST_MASK // 2**20} MB", 413)
    height, width = size
    # Its head first: a picture of another size, however large, is not inflated.
    if not content.startswith(_PNG) or content[16:24] != width.to_bytes(4, "big") + height.to_bytes(4, "big"):
        raise ReviewError(f"mask must be a PNG file of {width} x {height} pixels, as the frame")
    try:
        pixels = np.asarray(decode_frame(content, FrameOptions(), "mask").pixels)
    except FrameError as exc:
        raise ReviewError(f"mask {exc.reason}") from None
    if not np.isin(pixels, (0, 255)).all():
        raise ReviewError("mask must hold 0 and 255 alone")
    found: Mask = pixels == 255
    return found
