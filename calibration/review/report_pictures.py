"""Pictures inside a report: frames with their map and outlines, small, as data URIs."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageDraw

from runtime.errors import FrameError
from runtime.frames import read_frame
from runtime.prediction import Prediction
from runtime.verdict_store import Entry, VerdictStore

LONGEST = 360
"""Pixels of a picture's longer side: two hundred of them make some 6 MB."""
_QUALITY = 82
_YELLOW = (255, 220, 0)


def data_uri(store: VerdictStore, entry: Entry) -> str:
    """The frame as a small JPEG picture, as a data URI. Raises FrameError where it cannot be drawn."""
    if entry.error is not None:
        raise FrameError(entry.source, entry.error)
    if entry.path is None:
        raise FrameError(entry.source, "did not come from a file, so it cannot be drawn again")
    result = store.result(entry.id)
    picture = result.overlay() if isinstance(result, Prediction) else _with_boxes(store, entry, entry.path)
    picture.thumbnail((LONGEST, LONGEST))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _with_boxes(store: VerdictStore, entry: Entry, path: str) -> Image.Image:
    """Without the map: the frame as it is now, with the boxes of its regions."""
    grey = read_frame(path, name=entry.source)
    if grey.shape != entry.frame_size:
        raise FrameError(entry.source, f"is {list(grey.shape)} now and was {list(entry.frame_size or ())} when judged")
    picture = Image.fromarray(grey).convert("RGB")
    draw = ImageDraw.Draw(picture)
    width = max(1, max(picture.size) // 300)
    for region in store.regions(entry.id):
        x, y = region["x"], region["y"]
        draw.rectangle((x, y, x + region["width"] - 1, y + region["height"] - 1), outline=_YELLOW, width=width)
    return picture
