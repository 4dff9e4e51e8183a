"""Pixels of every kind that frames are read from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 32), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (24, 32)).astype(np.uint16)
PALETTE = [250, 250, 250, 0, 0, 0, 200, 0, 0, 0, 0, 200]
LUMA = [250, 0, 60, 23]
"""PALETTE as ITU-R 601 luma."""
INDICES = RNG.integers(0, 4, (24, 32), dtype=np.uint8)


def palette_image() -> Image.Image:
    image = Image.fromarray(INDICES)
    image.putpalette(PALETTE)
    return image


def save_pages(path: Path, *arrays: np.ndarray) -> Path:
    first, *rest = (Image.fromarray(array) for array in arrays)
    first.save(path, save_all=True, append_images=rest)
    return path
