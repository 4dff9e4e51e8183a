"""Frames with a defect and its mask, to be read in tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from calibration.dataset import Sample
from runtime.recipe import FrameOptions

TILED = FrameOptions(tile=64, overlap=16)
SIZE = (256, 320)
Box = tuple[int, int, int, int]


def make_sample(
    folder: Path, label: str, name: str, box: Box | None, size: tuple[int, int] = SIZE, more: Box | None = None
) -> Sample:
    """box, more: rows and columns of a defect (first, end, first, end)."""
    pixels = np.random.default_rng(len(name)).integers(0, 120, size).astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    for part in (box, more):
        if part is not None:
            mask[part[0] : part[1], part[2] : part[3]] = 255
    pixels[mask > 0] = 240
    for kind, content in (("f", pixels), ("m", mask)):
        Image.fromarray(content).save(folder / f"{kind}-{label}-{name}.png")
    return Sample(folder / f"f-{label}-{name}.png", label, name, folder / f"m-{label}-{name}.png")
