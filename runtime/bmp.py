"""BMP files: Pillow reads the head, and what it promises is checked before the pixels are unpacked."""

from __future__ import annotations

import io
from typing import Any

from PIL import BmpImagePlugin, Image

from .errors import FrameError
from .pixels import Stored, check_pixels

SIGNATURE = b"BM"


def decode(data: bytes, name: str) -> Stored:
    """The pixels of a BMP file. Raises FrameError, and what Pillow raises on damaged heads."""
    with BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as head:
        (width, height), mode, palette = head.size, head.mode, head.palette
        codec, _, offset, given = head.tile[0]
    arguments: tuple[Any, ...] = tuple(given)  # type: ignore[arg-type]  # Pillow's: mode, stride, order of the rows
    check_pixels(width, height, name)
    if codec != "raw":
        raise FrameError(name, "is a run-length coded BMP, which is not read; save it as PNG or TIFF")
    stride = arguments[1]
    if offset + stride * height > len(data):
        raise FrameError(name, f"is damaged or truncated (its pixels end after {len(data) - offset} bytes)")
    stored = data[offset : offset + stride * height]
    image = Image.frombytes(mode, (width, height), stored, codec, *arguments)
    if palette is not None:
        image.palette = palette
        image = image.convert("RGB")
    return Stored(image)
