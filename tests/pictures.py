"""Image files made by hand, and checks of their pixels, for tests of frame readers."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import FrameError
from runtime.frames import read_frame
from runtime.recipe import FrameOptions

SHAPE = (37, 50)


def encoded(picture: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The content of a file that Pillow wrote."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, form, **options)
    return file.getvalue()


def scaled(values: Any, white: float = 65535) -> np.ndarray:
    """Values scaled to 8 bits, by the definition."""
    return np.clip(np.rint(np.asarray(values, np.float64) * 255 / white), 0, 255)


def luma(colour: Any) -> np.ndarray:
    """ITU-R 601, not rounded."""
    return np.asarray(colour, np.float64) @ [0.299, 0.587, 0.114]


def assert_grey(pixels: np.ndarray, expected: np.ndarray, within: float = 0) -> None:
    """Check type and shape of a frame, and that no pixel is further off than `within`."""
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(float) - expected).max() <= within


def reason(source: Any, options: FrameOptions | None = None) -> str:
    """Why read_frame refuses `source`."""
    with pytest.raises(FrameError) as caught:
        read_frame(source, options, "the frame")
    assert caught.value.source == "the frame"
    assert str(caught.value) == f"the frame: {caught.value.reason}"
    return caught.value.reason


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(size: tuple[int, int], depth: int, kind: int, *rest: tuple[bytes, bytes], interlaced: int = 0) -> bytes:
    """A PNG file by hand. size: width, height; kind: its colour type; rest: the chunks between the first and last."""
    head = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, interlaced)
    chunks = [(b"IHDR", head), *rest, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks)


def made(
    *pages: tuple[dict[int, tuple[int, list[int] | bytes]], list[bytes]], order: str = "<", link: int = 0
) -> bytes:
    """A TIFF file by hand. pages: ({tag: (type, values)}, strips); link: the offset of a next page in the last one."""
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    at_link = 4
    for tags, strips in pages:
        offsets = []
        for strip in strips:
            offsets.append(len(out))
            out += strip
        tags = {273: (4, offsets), 279: (4, [len(strip) for strip in strips]), **tags}
        table = b""
        for tag, (kind, values) in sorted(tags.items()):
            size = {2: "B", 3: "H", 4: "I"}[kind]
            data = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{size}", *values)
            if len(data) > 4:
                where, data = len(out), data
                out += data
                data = struct.pack(order + "I", where)
            table += struct.pack(order + "HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
        struct.pack_into(order + "I", out, at_link, len(out))
        out += struct.pack(order + "H", len(tags)) + table
        at_link = len(out)
        out += struct.pack(order + "I", link)
    return bytes(out)


def tags_of(shape: tuple[int, ...] = SHAPE, bits: int = 8, **more: int) -> dict[int, Any]:
    """The tags of a TIFF page that is not compressed; `more` as t<number>=value."""
    samples = shape[2] if len(shape) == 3 else 1
    tags = {256: [shape[1]], 257: [shape[0]], 258: [bits] * samples, 259: [1], 262: [2 if samples > 1 else 1]}
    tags |= {277: [samples], 278: [shape[0]]}
    tags |= {int(name[1:]): [value] for name, value in more.items()}
    return {tag: (4 if tag in (256, 257, 278) else 3, value) for tag, value in tags.items()}
