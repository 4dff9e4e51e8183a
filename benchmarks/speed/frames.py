"""PNG frames for measurements: lines, shading and shot noise, so that decoding costs as much as for real frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from runtime.manifest import Encoder
from runtime.recipe import FrameOptions

SIZE = (480, 480)


def suitable_size(encoder: Encoder, options: FrameOptions) -> tuple[int, int]:
    """[height, width] of frames that this encoder takes: 480 x 480, or the one size of its export."""
    if not encoder.resizes_in_graph:
        return SIZE
    height, width = encoder.input_size
    return height + options.ignore_top + options.ignore_bottom, width


def write_frames(folder: Path, count: int, size: tuple[int, int], seed: int = 0) -> list[str]:
    """Write `count` grey 8-bit PNG files of `size` [height, width]; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    paths = []
    for index in range(count):
        pitch, tilt, phase = rng.uniform(24, 60), rng.uniform(-0.1, 0.1), rng.uniform(0, 1)
        lines = ((x + tilt * y) / pitch + phase) % 1 < 0.5
        signal = 90 + 60 * lines + 20 * np.sin(2 * np.pi * (y / height + phase))
        noisy = signal + rng.normal(0, 0.6, size) * np.sqrt(signal)
        path = folder / f"{height}x{width}-{index:04d}.png"
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path)
        paths.append(str(path))
    return paths
