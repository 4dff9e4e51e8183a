"""Layouts that repeat a cell: contacts, vias, islands, motifs, rings."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from .surfaces import (
    FAR,
    Field,
    Layout,
    Rng,
    log_uniform,
    round_min,
    turned,
)


def _lattice(
    rng: Rng,
    shape: tuple[int, int],
    pitch: float,
    turn: float,
    stagger: bool,
    ratio: tuple[float, float] = (0.9, 1.5),
) -> tuple[Field, Field, NDArray[np.int32]]:
    """Coordinates (px) within the cells of a lattice, and a number per cell in 0..4095.

    ratio: from which to which part of the pitch the rows are apart.
    """
    u, v = turned(shape, (rng.uniform(0, shape[0]), rng.uniform(0, shape[1])), turn)
    step_u, step_v = np.float32(pitch), np.float32(pitch * rng.uniform(*ratio))
    row = np.floor(v / step_v)
    if stagger:
        u = u + (row % 2) * (step_u / 2)
    column = np.floor(u / step_u)
    cell = (row.astype(np.int32) % 64) * 64 + column.astype(np.int32) % 64
    return u - (column + 0.5) * step_u, v - (row + 0.5) * step_v, cell


def paint_contacts(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A full array of round or oval contact holes, straight or staggered; each hole a little different."""
    pitch = max(log_uniform(rng, 14, 60) * unit, 9.0)
    u, v, cell = _lattice(
        rng, shape, pitch, float(rng.choice([0.0, rng.normal(0, 0.05), np.pi / 4])), rng.random() < 0.4
    )
    radius = pitch * rng.uniform(0.2, 0.34)
    sizes = (1 + rng.normal(0, rng.uniform(0.01, 0.05), 4096)).astype(np.float32)
    oval = np.float32(rng.choice([1.0, rng.uniform(0.7, 1.0)]))
    return radius * sizes[cell] - np.hypot(u, v / oval), 0.0, min(0.7 * radius, 0.43 * pitch - radius)


def paint_vias(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Vias on some places of a grid, round or square, over the lines of the metal level underneath."""
    pitch = max(log_uniform(rng, 14, 44) * unit, 9.0)
    u, v, cell = _lattice(rng, shape, pitch, float(rng.choice([0.0, np.pi / 2])), False)
    half = np.float32(pitch * rng.uniform(0.2, 0.31))
    edge = round_min(half - np.abs(u), half - np.abs(v), float(half) * rng.uniform(0.3, 1.0))
    present = rng.random(4096) < rng.uniform(0.25, 0.7)
    below = cast(Field, np.clip(pitch * 0.32 - np.abs(v) + 0.5, 0, 1))
    metal = below * np.float32(rng.choice([0.0, 1.0]) * rng.uniform(-0.1, 0.12))
    return np.where(present[cell], edge, np.float32(-pitch / 2)), metal, min(float(half), 0.44 * pitch - float(half))


def paint_islands(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Oblong islands in staggered rows, as active areas lie in a memory, often at a slant."""
    pitch = max(log_uniform(rng, 26, 90) * unit, 18.0)
    turn = float(rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)]))
    ratio = rng.uniform(0.28, 0.7)
    u, v, _ = _lattice(rng, shape, pitch, turn, rng.random() < 0.8, (ratio, ratio))
    half_u, half_v = pitch / 2 * rng.uniform(0.6, 0.8), pitch * ratio / 2 * rng.uniform(0.4, 0.62)
    edge = round_min(np.float32(half_u) - np.abs(u), np.float32(half_v) - np.abs(v), half_v * rng.uniform(0.3, 1.0))
    return edge, 0.0, min(half_v, pitch * ratio / 2 - half_v, pitch / 2 - half_u)


def paint_motifs(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """An array of one small shape of three bars or fewer: a cross, L, T, U, H, Z or pair; turned or left out by place.

    Bars lie in a square of half side 1 around the middle of their cell.
    """
    pitch = max(log_uniform(rng, 26, 90) * unit, 18.0)
    turn = float(rng.choice([0.0, rng.normal(0, 0.05), np.pi / 4], p=[0.6, 0.25, 0.15]))
    ratio = rng.uniform(0.9, 1.4)
    u, v, cell = _lattice(rng, shape, pitch, turn, rng.random() < 0.4, (ratio, ratio))
    half = pitch / 2 * min(ratio, 1.0) * rng.uniform(0.6, 0.78)
    thick = rng.uniform(0.34, 0.56)  # of a bar, of the half side
    low, high = (-1.0, thick - 1), (1 - thick, 1.0)
    middle, whole = (-thick / 2, thick / 2), (-1.0, 1.0)
    motif = [  # bars from which u to which u, from which v to which v
        [(whole, middle), (middle, whole)],
        [(whole, high), (low, whole)],
        [(whole, low), (middle, whole)],
        [(whole, high), (low, whole), (high, whole)],
        [(low, whole), (high, whole), (whole, middle)],
        [((-1.0, thick / 2), low), (middle, whole), ((-thick / 2, 1.0), high)],
        [(low, whole), (high, whole)],
    ][int(rng.integers(7))]
    # Square cells can be turned by a quarter; the others are mirrored alone.
    turns = rng.random(4096) < (0.5 if rng.random() < 0.4 and ratio < 1.1 else 0.0)
    mirrors = np.where(rng.random((2, 4096)) < (0.5 if rng.random() < 0.5 else 0.0), -1, 1).astype(np.float32)
    u, v = (u * mirrors[0, cell]) / np.float32(half), (v * mirrors[1, cell]) / np.float32(half)
    u, v = np.where(turns[cell], v, u), np.where(turns[cell], u, v)
    edge = np.full(shape, -FAR, dtype=np.float32)
    corner = thick * rng.uniform(0.1, 0.5)
    for (left, right), (top, bottom) in motif:
        bar = round_min(np.minimum(u - left, right - u), np.minimum(v - top, bottom - v), corner)
        np.maximum(edge, bar * np.float32(half), out=edge)
    present = rng.random(4096) < rng.choice([1.0, rng.uniform(0.5, 0.95)])
    space = min(pitch * min(ratio, 1.0) - 2 * half, (2 - 2 * thick) * half, (2 - 3 * thick) * half)
    finest = min(thick * half, space) / 2
    return np.where(present[cell], edge, np.float32(-pitch / 2)), 0.0, finest


def paint_rings(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """An array of rings, as channel holes have a liner; or round, square or cut-off rings around one place (a mark)."""
    if rng.random() < 0.6:
        pitch = max(log_uniform(rng, 24, 80) * unit, 16.0)
        turn = float(rng.choice([0.0, rng.normal(0, 0.05), np.pi / 4]))
        u, v, cell = _lattice(rng, shape, pitch, turn, rng.random() < 0.6, (0.87, 1.3))
        outer = pitch * rng.uniform(0.3, 0.38)
        half = outer * rng.uniform(0.18, 0.32)
        sizes = (1 + rng.normal(0, rng.uniform(0.005, 0.03), 4096)).astype(np.float32)
        reach = np.hypot(u, v) - np.float32(outer - half) * sizes[cell]
        return half - np.abs(reach), 0.0, min(half, outer - 2 * half, 0.43 * pitch - outer)
    pitch = max(log_uniform(rng, 12, 60) * unit, 8.0)
    centre = (rng.uniform(0.1, 0.9) * shape[0], rng.uniform(0.1, 0.9) * shape[1])
    u, v = turned(shape, centre, float(rng.choice([0.0, rng.normal(0, 0.05), np.pi / 4])))
    square = np.maximum(np.abs(u), np.abs(v))
    cut = (np.abs(u) + np.abs(v)) / np.float32(np.sqrt(2))
    reach = [np.hypot(u, v), square, np.maximum(square, cut)][int(rng.integers(3))]
    half = pitch * rng.uniform(0.2, 0.3)
    edge = half - np.abs(reach % np.float32(pitch) - np.float32(pitch / 2))
    # What is nearest to the centre would be as small as a defect; it is one plate.
    return np.maximum(edge, np.float32(pitch / 2 + half) - reach), 0.0, min(half, pitch / 2 - half)
