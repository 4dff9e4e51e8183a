"""TIFF files of every kind of sample, layout and compression."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from pictures import SHAPE, luma, scaled

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
OTHER = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, SHAPE).astype(np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (*SHAPE, 3)).astype(np.uint16)
UNIT = RNG.random(SHAPE)
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


def stack(path: Path, *arrays: np.ndarray, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for array in arrays:
            writer.write(array, photometric="minisblack", metadata=None, contiguous=False, **options)
    return path
