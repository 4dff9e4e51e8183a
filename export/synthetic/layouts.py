"""Layouts of one wafer site: what is printed there, and in which materials.

A layout painter draws geometry alone: where the edges of the pattern run and what lies underneath. `paint_site` gives
it rough edges and materials, and the result is the clean surface that a defect is painted on.

Shapes are [H, W] in px; a `unit` is the shorter side / 260, so that patterns scale with the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from .defects import FAR, Field, Rng, Surface, log_uniform, round_min, smooth_noise, turned

LAYOUTS = (
    "lines",
    "contacts",
    "vias",
    "logic",
    "cells",
    "comb",
    "pads",
    "blank",
    "grain",
    "serpentine",
    "mesh",
    "islands",
    "rough",
    "motifs",
    "stack",
    "network",
    "blocks",
    "rings",
    "waves",
)
FEATURELESS = ("blank", "grain", "rough")
"""Layouts without any pattern edge."""

Layout: TypeAlias = "tuple[Field, Field | float, float]"
"""What a layout painter gives: signed distance to the edges (px), texture (yield), half of the finest width (px)."""


def paint_site(layout: str, rng: Rng, shape: tuple[int, int]) -> Surface:
    """A layout with rough edges, in materials of random yield."""
    unit = min(shape) / 260
    edge, texture, finest = _PAINTERS[layout](rng, shape, unit)
    if layout not in FEATURELESS:
        # Line-edge roughness: long waves (resist) and short ones (etch); edges move independently of each other.
        # Five sigma stay inside the finest line or space, or else good frames would have bridges and cuts.
        rough = np.float32(min(rng.uniform(0.15, 0.75) * unit, finest / 5))
        edge = edge + smooth_noise(rng, shape, rng.uniform(6, 16) * unit, 3) * rough
    film = smooth_noise(rng, shape, log_uniform(rng, 3, 30), 3) * np.float32(rng.uniform(0.0, 0.025))
    step = log_uniform(rng, 0.1, 0.38)
    low = rng.uniform(0.15, 0.3)
    darker = rng.random() < (0.75 if layout == "contacts" else 0.3)
    ground, feature = (low + step, low) if darker else (low, low + step)
    if layout in FEATURELESS:
        ground = feature = rng.uniform(0.25, 0.55)
    return Surface(
        edge=edge.astype(np.float32),
        texture=(film + texture).astype(np.float32),
        ground=ground,
        feature=feature,
        bloom=log_uniform(rng, 0.04, 0.32),
        bloom_width=rng.uniform(0.9, 2.4) * max(unit, 0.8),
        shadow=rng.uniform(0.0, 0.5),
        relief=rng.normal(0, 0.06),
    )


def _lines(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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


def _contacts(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A full array of round or oval contact holes, straight or staggered; each hole a little different."""
    pitch = max(log_uniform(rng, 14, 60) * unit, 9.0)
    u, v, cell = _lattice(
        rng, shape, pitch, float(rng.choice([0.0, rng.normal(0, 0.05), np.pi / 4])), rng.random() < 0.4
    )
    radius = pitch * rng.uniform(0.2, 0.34)
    sizes = (1 + rng.normal(0, rng.uniform(0.01, 0.05), 4096)).astype(np.float32)
    oval = np.float32(rng.choice([1.0, rng.uniform(0.7, 1.0)]))
    return radius * sizes[cell] - np.hypot(u, v / oval), 0.0, min(0.7 * radius, 0.43 * pitch - radius)


def _vias(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Vias on some places of a grid, round or square, over the lines of the metal level underneath."""
    pitch = max(log_uniform(rng, 14, 44) * unit, 9.0)
    u, v, cell = _lattice(rng, shape, pitch, float(rng.choice([0.0, np.pi / 2])), False)
    half = np.float32(pitch * rng.uniform(0.2, 0.31))
    edge = round_min(half - np.abs(u), half - np.abs(v), float(half) * rng.uniform(0.3, 1.0))
    present = rng.random(4096) < rng.uniform(0.25, 0.7)
    below = cast(Field, np.clip(pitch * 0.32 - np.abs(v) + 0.5, 0, 1))
    metal = below * np.float32(rng.choice([0.0, 1.0]) * rng.uniform(-0.1, 0.12))
    return np.where(present[cell], edge, np.float32(-pitch / 2)), metal, min(float(half), 0.44 * pitch - float(half))


def _paint_rectangles(shape: tuple[int, int], rectangles: list[tuple[float, ...]], unit: float) -> Field:
    """Signed distance to the union of rectangles (top, left, bottom, right in px)."""
    edge = np.full(shape, -16 * unit - 8, dtype=np.float32)
    margin = int(12 * unit) + 6
    for top, left, bottom, right in rectangles:
        y0, x0 = max(int(top) - margin, 0), max(int(left) - margin, 0)
        window = edge[y0 : max(int(bottom) + margin, 0), x0 : max(int(right) + margin, 0)]
        if window.size == 0:
            continue
        y = np.arange(y0, y0 + window.shape[0], dtype=np.float32)[:, None]
        x = np.arange(x0, x0 + window.shape[1], dtype=np.float32)[None, :]
        distance = round_min(np.minimum(y - top, bottom - y), np.minimum(x - left, right - x), 2.0 * unit)
        np.maximum(window, distance, out=window)
    return edge


def _wires(rng: Rng, shape: tuple[int, int], pitch: float, unit: float) -> Layout:
    """Manhattan routing on tracks: pieces of wire with gaps, some wide rails, jogs from track to track.

    Wires start at 0.7 and end at 0.3 of a grid step, jogs sit at 0.5: so no sliver is left between any two of them,
    nor where the picture is mirrored at a whole step.
    """
    rectangles: list[tuple[float, ...]] = []
    width = rng.uniform(0.4, 0.6)
    for track in range(-1, int(shape[0] / pitch) + 2):
        start = -int(rng.integers(1, 7))
        half = width / 2 * (1.3 if rng.random() < 0.08 else 1.0)
        while start * pitch < shape[1]:
            end = start + int(rng.integers(2, 14))
            rectangles.append((track - half, start - 0.3, track + half, end + 0.3))
            if rng.random() < 0.35:
                at = int(rng.integers(start, end)) + 0.5
                rectangles.append((track - half, at - width / 2, track + 1 + width / 2, at + width / 2))
            start = end + int(rng.choice([1, 1, 2, 3]))
    edge = _paint_rectangles(shape, [tuple(pitch * place for place in box) for box in rectangles], unit)
    return edge, 0.0, pitch * min(width, 1 - 1.15 * width, 0.4) / 2


def _logic(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Random logic: one level of Manhattan routing, along rows or columns."""
    pitch = max(log_uniform(rng, 12, 40) * unit, 7.0)
    if rng.random() < 0.5:
        return _wires(rng, shape, pitch, unit)
    edge, texture, finest = _wires(rng, shape[::-1], pitch, unit)
    return edge.T.copy(), texture, finest


def _cells(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A memory-like array: one small piece of routing, mirrored and repeated."""
    pitch = round(max(log_uniform(rng, 12, 26) * unit, 7.0))
    tile, texture, finest = _wires(rng, (pitch * int(rng.integers(2, 5)), pitch * int(rng.integers(3, 8))), pitch, unit)
    row = np.concatenate([tile, tile[:, ::-1]], axis=1)
    block = np.concatenate([row, row[::-1]], axis=0)
    repeats = [length // size + 2 for length, size in zip(shape, block.shape, strict=True)]
    top, left = (int(rng.integers(size)) for size in block.shape)
    return np.tile(block, repeats)[top : top + shape[0], left : left + shape[1]].copy(), texture, finest


def _comb(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A test structure: two combs with interleaved fingers, their rails at opposite ends."""
    pitch = max(log_uniform(rng, 10, 36) * unit, 7.0)
    half = pitch * rng.uniform(0.2, 0.32)
    turned_round = rng.random() < 0.5
    height, width = shape[::-1] if turned_round else shape
    top, bottom = rng.uniform(-0.3, 0.35) * height, rng.uniform(0.65, 1.3) * height
    rail, gap = rng.uniform(0.6, 2.5) * pitch, rng.uniform(0.5, 1.5) * pitch
    rectangles: list[tuple[float, ...]] = [
        (top - rail, -99.0, top, width + 99.0),
        (bottom, -99.0, bottom + rail, width + 99.0),
    ]
    for finger in range(int(width / pitch) + 2):
        x = finger * pitch
        ends = (top - half, bottom - gap) if finger % 2 else (top + gap, bottom + half)
        rectangles.append((ends[0], x - half, ends[1], x + half))
    edge = _paint_rectangles((height, width), rectangles, unit)
    return (edge.T.copy() if turned_round else edge), 0.0, min(half, pitch / 2 - half, gap / 2)


def _pads(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Large shapes that meet at a crossing of two streets: corners, single edges, wide areas."""
    centre = (rng.uniform(0.3, 0.7) * shape[0], rng.uniform(0.3, 0.7) * shape[1])
    u, v = turned(shape, centre, float(rng.choice([0.0, rng.uniform(0, np.pi)], p=[0.7, 0.3])))
    streets = [log_uniform(rng, 6, 50) * unit / 2 for _ in range(2)]
    edge = round_min(np.abs(u) - np.float32(streets[0]), np.abs(v) - np.float32(streets[1]), rng.uniform(2, 14) * unit)
    present = np.ones(4, dtype=bool)
    present[rng.permutation(4)[: int(rng.integers(3))]] = False
    quadrant = (u > 0).astype(np.int8) * 2 + (v > 0)
    return np.where(present[quadrant], edge, np.minimum(edge, np.float32(-2 * min(streets)))), 0.0, min(streets)


def _serpentine(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A test structure: one line that runs to and fro, turning at alternate ends."""
    pitch = max(log_uniform(rng, 10, 40) * unit, 7.0)
    half = pitch * rng.uniform(0.2, 0.32)
    turned_round = rng.random() < 0.5
    height, width = shape[::-1] if turned_round else shape
    top, bottom = rng.uniform(-0.4, 0.4) * height, rng.uniform(0.6, 1.4) * height
    start = -rng.uniform(0, 1) * pitch
    rectangles: list[tuple[float, ...]] = []
    for run in range(int(width / pitch) + 3):
        x, end = start + run * pitch, bottom if run % 2 else top
        rectangles.append((top - half, x - half, bottom + half, x + half))
        rectangles.append((end - half, x - half, end + half, x + pitch + half))
    edge = _paint_rectangles((height, width), rectangles, unit)
    return (edge.T.copy() if turned_round else edge), 0.0, min(half, pitch / 2 - half)


def _mesh(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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


def _islands(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Oblong islands in staggered rows, as active areas lie in a memory, often at a slant."""
    pitch = max(log_uniform(rng, 26, 90) * unit, 18.0)
    turn = float(rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)]))
    ratio = rng.uniform(0.28, 0.7)
    u, v, _ = _lattice(rng, shape, pitch, turn, rng.random() < 0.8, (ratio, ratio))
    half_u, half_v = pitch / 2 * rng.uniform(0.6, 0.8), pitch * ratio / 2 * rng.uniform(0.4, 0.62)
    edge = round_min(np.float32(half_u) - np.abs(u), np.float32(half_v) - np.abs(v), half_v * rng.uniform(0.3, 1.0))
    return edge, 0.0, min(half_v, pitch * ratio / 2 - half_v, pitch / 2 - half_u)


def _motifs(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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


def _stack(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Two levels, each of any layout in STACKED: one on top, the other showing through from below, a little blurred."""
    top, below = (str(name) for name in rng.choice(STACKED, 2))
    edge, texture, finest = _PAINTERS[top](rng, shape, unit)
    buried = np.asarray(_PAINTERS[below](rng, shape, unit)[0])
    ramp = rng.uniform(1.0, 4.0) * max(unit, 0.8)
    depth = log_uniform(rng, 0.02, 0.09) * rng.choice([-1, 1])
    shown = np.clip(buried / np.float32(ramp) + 0.5, 0, 1) * np.float32(depth)
    return edge, texture + shown, finest


def _network(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Bars along some edges of a grid, anywhere or repeated: every corner, branch and end that routing can have."""
    pitch = max(log_uniform(rng, 12, 40) * unit, 7.0)
    size = np.array([int(side / pitch) + 4 for side in shape])
    block = size if rng.random() < 0.5 else rng.integers(1, 7, 2)
    half = rng.uniform(0.2, 0.3)
    start = rng.uniform(-1.5, -0.5, 2)
    shares = rng.permutation([rng.uniform(0.3, 0.95), rng.uniform(0.0, 0.6)])
    rectangles: list[tuple[float, ...]] = []
    for axis, share in enumerate(shares):
        present = rng.random(block) < share
        present[0, 0] = True  # or else a small block could be empty
        present = np.tile(present, -(-size // block))
        for number, line in enumerate(present if axis else present.T):
            # Bars that follow each other are one: a run of present edges begins and ends where neighbours differ.
            runs = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
            for first, last in runs.tolist():
                box = (number - half, first - half, number + half, last + half)
                rectangles.append(box if axis else (box[1], box[0], box[3], box[2]))
    shifted = [tuple(pitch * (place + start[i % 2]) for i, place in enumerate(box)) for box in rectangles]
    return _paint_rectangles(shape, shifted, unit), 0.0, pitch * min(half, 0.5 - half)


def _blocks(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Rectangles of many sizes with streets of one width between them: a field that is split again and again.

    Or each rectangle is a grating, of lines along its one side or the other.
    """
    street = log_uniform(rng, 5, 16) * unit
    line = street * rng.uniform(0.8, 2.0) if rng.random() < 0.4 else None
    least = street * rng.uniform(1.0, 2.5) if line is None else 2 * line + street * rng.uniform(1.0, 4.0)
    stops = rng.uniform(0.02, 0.3)
    present = rng.choice([1.0, rng.uniform(0.7, 0.95)])
    margin = 40 * unit
    waiting = [(-rng.uniform(0, 1) * margin, -rng.uniform(0, 1) * margin, shape[0] + margin, shape[1] + margin)]
    rectangles: list[tuple[float, ...]] = []
    while waiting:
        top, left, bottom, right = waiting.pop()
        upright = bottom - top > right - left
        length = bottom - top if upright else right - left
        if length < 2 * least + street or (length < 0.4 * min(shape) and rng.random() < stops):
            rectangles.append((top, left, bottom, right))
            continue
        at = rng.uniform(least, length - street - least)
        if upright:
            waiting += [(top, left, top + at, right), (top + at + street, left, bottom, right)]
        else:
            waiting += [(top, left, bottom, left + at), (top, left + at + street, bottom, right)]
    kept = [box for box in rectangles if rng.random() < present] or rectangles
    if line is not None:
        kept = [part for box in kept for part in _grating(box, line, street, upright=rng.random() < 0.5)]
    return _paint_rectangles(shape, kept, unit), 0.0, min(street, line or least) / 2


def _grating(box: tuple[float, ...], line: float, space: float, *, upright: bool) -> list[tuple[float, ...]]:
    """As many lines of this width or a little more as a rectangle (top, left, bottom, right) holds."""
    top, left, bottom, right = box
    length = right - left if upright else bottom - top
    count = int((length + space) / (line + space))
    pitch = (length + space) / count
    spans = [(i * pitch, (i + 1) * pitch - space) for i in range(count)]
    if upright:
        return [(top, left + start, bottom, left + end) for start, end in spans]
    return [(top + start, left, top + end, right) for start, end in spans]


def _rings(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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


def _waves(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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


def _blank(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A film without pattern, smooth to rough."""
    rough = smooth_noise(rng, shape, log_uniform(rng, 2.5, 14) * max(unit, 1), 3) * np.float32(rng.uniform(0, 0.05))
    return np.full(shape, -FAR, dtype=np.float32), rough, FAR


def _grain(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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


def _rough(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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


_PAINTERS: dict[str, Callable[[Rng, tuple[int, int], float], Layout]] = {
    "lines": _lines,
    "contacts": _contacts,
    "vias": _vias,
    "logic": _logic,
    "cells": _cells,
    "comb": _comb,
    "pads": _pads,
    "blank": _blank,
    "grain": _grain,
    "serpentine": _serpentine,
    "mesh": _mesh,
    "islands": _islands,
    "rough": _rough,
    "motifs": _motifs,
    "stack": _stack,
    "network": _network,
    "blocks": _blocks,
    "rings": _rings,
    "waves": _waves,
}
STACKED = (
    "lines",
    "contacts",
    "logic",
    "pads",
    "serpentine",
    "mesh",
    "islands",
    "motifs",
    "network",
    "blocks",
    "rings",
    "waves",
)
"""Layouts that lie above or below one another in a stack; none that training leaves out, `pretrain_frames.py`."""
