"""Films without any pattern edge: smooth, crystalline, unpolished."""

from __future__ import annotations

import numpy as np

from .surfaces import (
    FAR,
    Layout,
    Rng,
    log_uniform,
    smooth_noise,
)


def paint_blank(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A film without pattern, smooth to rough."""
    rough = smooth_noise(rng, shape, log_uniform(rng, 2.5, 14) * max(unit, 1), 3) * np.float32(rng.uniform(0, 0.05))
    return np.full(shape, -FAR, dtype=np.float32), rough, FAR


def paint_grain(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A poly-crystalline film: grains of different yield, with dark or bright boundaries (a Voronoi diagram)."""
    step = max(int(log_uniform(rng, 7, 42) * unit), 5)
    cells = (shape[0] // step + 3, shape[1] // step + 3)
    seeds_y, seeds_x = rng.uniform(0, 1, (2, *cells)).astype(np.float32) * step
    tones = rng.normal(0, rng.uniform(0.02, 0.08), cells).astype(np.float32)
    y = (np.arange(shape[0], dtype=np.float32) % step)[:, None]
    x = (np.arange(shape[1], dtype=np.float32) % step)[None, :]
    y = y + smooth_noise(rng, shape, step / 2, 2) * np.float32(step * 0.06)
    x = x + smooth_noise(rng, shape, step / 2, 2) * np.float32(step * 0.06)
    nearest, second = np.full((2, *shape), FAR**2, dtype=np.float32)
    tone = np.zeros(shape, dtype=np.float32)
    for row, column in np.ndindex(3, 3):  # a grain's seed is in the pixel's cell or in one of the eight around it
        part = np.s_[row : row + cells[0] - 2, column : column + cells[1] - 2]
        there_y, there_x, there_tone = (
            table[part].repeat(step, 0).repeat(step, 1)[: shape[0], : shape[1]] for table in (seeds_y, seeds_x, tones)
        )
        distance = np.hypot(there_y + (row - 1) * step - y, there_x + (column - 1) * step - x)
        tone = np.where(distance < nearest, there_tone, tone)
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    boundary = np.exp(-(second - nearest) / np.float32(rng.uniform(0.8, 2.5))) * np.float32(rng.normal(0, 0.1))
    return np.full(shape, -FAR, dtype=np.float32), tone + boundary, FAR


def paint_rough(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """An unpolished or porous film: hills, wrinkles or pores, lit from one side and bright where they are steep."""
    height = smooth_noise(rng, shape, log_uniform(rng, 5, 60) * unit, 4)
    kind = rng.choice(["hills", "wrinkles", "pores"])
    if kind == "wrinkles":
        height = -np.abs(height)
    elif kind == "pores":
        height = np.minimum(height, np.float32(rng.uniform(-0.6, 0.3)))
    slope_y, slope_x = np.gradient(height)
    steep = np.hypot(slope_y, slope_x)
    light = rng.uniform(0, 2 * np.pi)
    lit = slope_y * np.float32(np.sin(light)) + slope_x * np.float32(np.cos(light))
    # Electrons leave a slope more easily, the side that faces the detector most of all; hollows keep them.
    texture = lit * np.float32(rng.uniform(0, 1)) + steep * np.float32(rng.uniform(0, 0.7))
    texture = texture / max(float(steep.mean()), 1e-6) + height * np.float32(rng.uniform(0, 1.2))
    texture = (texture - texture.mean()) * np.float32(log_uniform(rng, 0.008, 0.06))
    return np.full(shape, -FAR, dtype=np.float32), np.clip(texture, -0.25, 0.35), FAR
