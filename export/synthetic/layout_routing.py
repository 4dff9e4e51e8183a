"""Layouts of rectangles: routing, memory-like cells, test structures, split fields."""

from __future__ import annotations

import numpy as np

from .surfaces import (
    Field,
    Layout,
    Rng,
    log_uniform,
    round_min,
)


def paint_rectangles(shape: tuple[int, int], rectangles: list[tuple[float, ...]], unit: float) -> Field:
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
    edge = paint_rectangles(shape, [tuple(pitch * place for place in box) for box in rectangles], unit)
    return edge, 0.0, pitch * min(width, 1 - 1.15 * width, 0.4) / 2


def paint_logic(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Random logic: one level of Manhattan routing, along rows or columns."""
    pitch = max(log_uniform(rng, 12, 40) * unit, 7.0)
    if rng.random() < 0.5:
        return _wires(rng, shape, pitch, unit)
    edge, texture, finest = _wires(rng, shape[::-1], pitch, unit)
    return edge.T.copy(), texture, finest


def paint_cells(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """A memory-like array: one small piece of routing, mirrored and repeated."""
    pitch = round(max(log_uniform(rng, 12, 26) * unit, 7.0))
    tile, texture, finest = _wires(rng, (pitch * int(rng.integers(2, 5)), pitch * int(rng.integers(3, 8))), pitch, unit)
    row = np.concatenate([tile, tile[:, ::-1]], axis=1)
    block = np.concatenate([row, row[::-1]], axis=0)
    repeats = [length // size + 2 for length, size in zip(shape, block.shape, strict=True)]
    top, left = (int(rng.integers(size)) for size in block.shape)
    return np.tile(block, repeats)[top : top + shape[0], left : left + shape[1]].copy(), texture, finest


def paint_comb(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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
    edge = paint_rectangles((height, width), rectangles, unit)
    return (edge.T.copy() if turned_round else edge), 0.0, min(half, pitch / 2 - half, gap / 2)


def paint_serpentine(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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
    edge = paint_rectangles((height, width), rectangles, unit)
    return (edge.T.copy() if turned_round else edge), 0.0, min(half, pitch / 2 - half)


def paint_network(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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
    return paint_rectangles(shape, shifted, unit), 0.0, pitch * min(half, 0.5 - half)


def paint_blocks(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
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
    return paint_rectangles(shape, kept, unit), 0.0, min(street, line or least) / 2


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
