"""Layouts of straight or waving lines and large areas: line/space, meshes, waves, pads."""

from __future__ import annotations

import numpy as np

from .surfaces import (
    Layout,
    Rng,
    log_uniform,
    round_min,
    turned,
)


def paint_lines(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Line/space of any pitch, duty and angle; often two widths in turn; some lines are cut."""
    pitch = max(log_uniform(rng, 9, 64) * unit, 6.0)
    turn = rng.choice(
        [0.0, np.pi / 2, rng.normal(0, 0.05), np.pi / 4, rng.uniform(0, np.pi)], p=[0.3, 0.3, 0.2, 0.1, 0.1]
    )
    across, along = turned(shape, (rng.uniform(0, shape[0]), rng.uniform(0, shape[1])), float(turn))
    index = np.floor(across / np.float32(pitch))
    centre_distance = np.abs(across - (index + np.float32(0.5)) * np.float32(pitch))
    count = int(4 * max(shape) / pitch) + 8
    number = index.astype(np.int32) + count // 2  # counts from 0 within the frame
    widths = np.full(count, rng.uniform(0.3, 0.68) * pitch, dtype=np.float32)
    if rng.random() < 0.3:
        widths[::2] *= np.float32(rng.uniform(0.55, 0.95))
    edge = widths[number] / 2 - centre_distance
    if rng.random() < 0.45:
        places = rng.uniform(-1, 1, count).astype(np.float32) * np.float32(max(shape) * rng.choice([0.9, 2.5]))
        if rng.random() < 0.3:  # a common cut: the end of an array
            places[:] = rng.uniform(-0.3, 0.3) * max(shape)
        gap = rng.uniform(0.5, 1.6) * pitch
        edge = round_min(edge, np.abs(along - places[number]) - np.float32(gap / 2), 0.3 * pitch)
    return edge, 0.0, float(min(widths.min(), pitch - widths.max())) / 2


def paint_mesh(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Rails joined by rungs, as in a power grid: in every space or in some, in line, staggered or anywhere."""
    pitch = max(log_uniform(rng, 12, 50) * unit, 8.0)
    u, v = turned(
        shape,
        (rng.uniform(0, shape[0]), rng.uniform(0, shape[1])),
        float(rng.choice([0.0, np.pi / 2, rng.normal(0, 0.05)])),
    )
    half = pitch * rng.uniform(0.18, 0.3)
    period = pitch * log_uniform(rng, 1.2, 6)
    rung = min(half * rng.uniform(0.7, 1.3), 0.3 * period)
    space = np.floor(v / np.float32(pitch))
    row = space.astype(np.int32) % 256
    shifts = {"in line": np.zeros(256), "staggered": np.arange(256) % 2 / 2, "anywhere": rng.random(256)}
    shift = shifts[str(rng.choice(list(shifts)))].astype(np.float32) * np.float32(period)
    present = rng.random(256) < rng.choice([1.0, rng.uniform(0.4, 0.9)])
    from_middle = np.abs(v - (space + np.float32(0.5)) * np.float32(pitch))
    from_rung = np.abs((u + shift[row]) % np.float32(period) - np.float32(period / 2))
    # Rails run along the rows' bounds, so that a row is the space between two of them.
    rails = from_middle - np.float32(pitch / 2 - half)
    rungs = np.where(present[row], np.float32(rung) - from_rung, np.float32(-pitch))
    return np.maximum(rails, rungs), 0.0, min(half, pitch / 2 - half, rung, period / 2 - rung)


def paint_waves(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Line/space that waves or zigzags, all lines in step."""
    pitch = max(log_uniform(rng, 10, 50) * unit, 7.0)
    turn = float(rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)]))
    along, across = turned(shape, (rng.uniform(0, shape[0]), rng.uniform(0, shape[1])), turn)
    steepest, bent = rng.uniform(0.15, 0.9), rng.uniform(0.3, 0.98)  # bent: towards 0 a sine, towards 1 a zigzag
    wave = 2 * np.pi / (log_uniform(rng, 40, 240) * unit)
    phase = along * np.float32(wave)
    rise = np.float32(bent) * np.sin(phase)
    slope = np.float32(steepest) * np.cos(phase) / np.sqrt(1 - rise * rise)
    across = across - np.arcsin(rise) * np.float32(steepest / (bent * wave))
    half = pitch * rng.uniform(0.2, 0.3)
    from_middle = np.abs(across % np.float32(pitch) - np.float32(pitch / 2))
    # The distance to a line that leans is shorter than the way across.
    edge = (np.float32(half) - from_middle) / np.sqrt(1 + slope * slope)
    return edge, 0.0, min(half, pitch / 2 - half) / float(np.hypot(1, steepest))


def paint_pads(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Large shapes that meet at a crossing of two streets: corners, single edges, wide areas."""
    centre = (rng.uniform(0.3, 0.7) * shape[0], rng.uniform(0.3, 0.7) * shape[1])
    u, v = turned(shape, centre, float(rng.choice([0.0, rng.uniform(0, np.pi)], p=[0.7, 0.3])))
    streets = [log_uniform(rng, 6, 50) * unit / 2 for _ in range(2)]
    edge = round_min(np.abs(u) - np.float32(streets[0]), np.abs(v) - np.float32(streets[1]), rng.uniform(2, 14) * unit)
    present = np.ones(4, dtype=bool)
    present[rng.permutation(4)[: int(rng.integers(3))]] = False
    quadrant = (u > 0).astype(np.int8) * 2 + (v > 0)
    return np.where(present[quadrant], edge, np.minimum(edge, np.float32(-2 * min(streets)))), 0.0, min(streets)
