"""TIFF: every way to store pixels is read as it was written or refused by name, and pages are what the file says."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from runtime import tiff as tiff_module
from runtime.errors import FrameError
from runtime.frames import page_count, read_frame
from runtime.recipe import FrameOptions

RNG = np.random.default_rng(7)
SHAPE = (37, 50)
GREY = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
OTHER = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, SHAPE).astype(np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (*SHAPE, 3)).astype(np.uint16)
UNIT = RNG.random(SHAPE)


def scaled(values: Any, white: float) -> np.ndarray:
    """Read off the definition."""
    return np.clip(np.rint(np.asarray(values, np.float64) * 255 / white), 0, 255)


def luma(colour: Any) -> np.ndarray:
    return np.asarray(colour, np.float64) @ [0.299, 0.587, 0.114]


KINDS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "bit": (GREY > 127, np.where(GREY > 127, 255, 0)),
    "u8": (GREY, GREY),
    "u16": (DEEP, scaled(DEEP, 65535)),
    "u32": (DEEP.astype(np.uint32), scaled(DEEP, 65535)),
    "f16": (UNIT.astype(np.float16), scaled(UNIT.astype(np.float16), 1)),
    "f32": (UNIT.astype(np.float32), scaled(UNIT.astype(np.float32), 1)),
    "f64": (UNIT, scaled(UNIT, 1)),
    "rgb8": (COLOUR, luma(COLOUR)),
    "rgb16": (DEEP_COLOUR, luma(DEEP_COLOUR) / 257),
}
"""What is written, and the grey that it means."""
LAYOUTS: dict[str, dict[str, Any]] = {"whole": {}, "strips": {"rowsperstrip": 5}, "tiles": {"tile": (16, 32)}}
COMPRESSIONS = (None, "lzw", "adobe_deflate", "deflate", "packbits", "zstd", "lzma")


def assert_grey(pixels: np.ndarray, expected: np.ndarray, within: float = 1) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(float) - expected).max() <= within


def reason(source: Any, options: FrameOptions | None = None) -> str:
    with pytest.raises(FrameError) as caught:
        read_frame(source, options, "the frame")
    return caught.value.reason


def predictors(kind: str, compression: str | None) -> tuple[int, ...]:
    if compression in (None, "packbits") or kind == "bit":
        return (1,)
    return (1, 3) if kind.startswith("f") else (1, 2)


def written(kind: str, compression: str | None) -> Iterator[tuple[str, bytes]]:
    """The same pixels in every layout, byte order and size of offsets."""
    values = KINDS[kind][0]
    planes = ("contig", "separate") if values.ndim == 3 else (None,)
    every = product("<>", (False, True), LAYOUTS, planes, predictors(kind, compression))
    for order, big, layout, plane, predictor in every:
        stored = np.moveaxis(values, 2, 0) if plane == "separate" else values
        file = io.BytesIO()
        with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as writer:
            writer.write(
                stored,
                photometric="rgb" if values.ndim == 3 else "minisblack",
                planarconfig=plane,
                compression=compression,
                predictor=predictor,
                metadata=None,
                **LAYOUTS[layout],
            )
        yield f"{kind} {compression} {order} big={big} {layout} {plane} predictor {predictor}", file.getvalue()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_read_as_they_were_written(kind: str, compression: str | None) -> None:
    """Some 2,000 files in all. Where Pillow's libtiff reads one to the same values, it is a second witness."""
    expected = KINDS[kind][1]
    read = witnessed = 0
    for what, content in written(kind, compression):
        try:
            assert_grey(read_frame(content), expected)
        except (FrameError, AssertionError) as exc:
            raise AssertionError(f"{what}: {exc}") from exc
        read += 1
        try:
            with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
                witnessed += np.array_equal(np.asarray(image), KINDS[kind][0])
        except Exception:  # noqa: S112
            continue  # Pillow does not read it
    assert read >= 12
    if kind in ("u8", "rgb8"):
        assert witnessed >= read / 2
