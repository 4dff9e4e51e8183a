"""Synthetic SEM-like wafer frames with exact defect masks, fully determined by a seed.

    frame = make_frame("bridge", seed=7)          # image, mask, label, layout
    write_dataset("demo/frames", per_class=12)    # a data folder to teach from

A frame is made in three steps, each with its own stream of random numbers, so that each can be repeated alone:

1. site: the layout and its materials, as a map of the yield of secondary electrons;
2. defect: one of the painters in `synthetic_defects`, which also gives the exact footprint;
3. imaging: charging, focus, drift of the raster, brightness, shot noise, and the text bar.

So `make_frame("good", 7, layout="lines")` is the very frame of `make_frame("hole", 7, layout="lines")` without the
hole. Lengths scale with the frame's shorter side: a larger frame shows about the same field with more pixels.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from .synthetic_defects import (
    FAR,
    PAINTERS,
    Canvas,
    Field,
    Rng,
    Surface,
    log_uniform,
    round_min,
    shade,
    smooth_noise,
    turned,
)

CLASSES = ("good", "bridge", "copper_residue", "hole", "infilm", "particle", "scratch")
LAYOUTS = ("lines", "contacts", "vias", "logic", "cells", "comb", "pads", "blank", "grain")

MIN_SIDE = 64
MIN_FOOTPRINT = 8
"""Pixels of mask that every defective frame has at least."""
FIELD_NAMES = ("path", "class", "has_mask", "mask_fraction", "width", "height", "group")

Layout: TypeAlias = "tuple[Field, Field | float, float]"
"""What a layout painter gives: signed distance to the edges (px), texture (yield), half of the finest width (px)."""

_FEATURELESS = ("blank", "grain")
_SITE, _CHOICE, _DEFECT, _IMAGING, _DATASET = range(5)


@dataclass(frozen=True, slots=True)
class SyntheticFrame:
    """One frame and the truth about it.

    image: uint8 [H, W], grey. mask: uint8 [H, W], 255 on the defect's footprint and 0 elsewhere; all zero for good.
    label: one of CLASSES. layout: one of LAYOUTS. seed: the seed it was made from.
    text_bar_rows: rows at the bottom that the text bar takes, 0 without one; the mask is zero there.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    label: str
    layout: str
    seed: int
    text_bar_rows: int


def suitable_layouts(label: str) -> tuple[str, ...]:
    """The layouts on which a class can occur: a bridge needs features, the others go everywhere.

    Raises ValueError for an unknown class.
    """
    if label not in CLASSES:
        raise ValueError(f'unknown class "{label}"; allowed: {", ".join(CLASSES)}')
    return tuple(name for name in LAYOUTS if label != "bridge" or name not in _FEATURELESS)


def make_frame(
    label: str,
    seed: int,
    *,
    size: tuple[int, int] = (240, 240),
    layout: str | None = None,
    text_bar: bool = False,
    site: int | None = None,
) -> SyntheticFrame:
    """One frame; equal arguments give equal bytes.

    label: one of CLASSES. seed: 0 or more. size: height and width in px, 64 or more each.
    layout: one of `suitable_layouts(label)`; drawn from the seed by default. text_bar: draw the detector's bar.
    site: seed of the layout alone, `seed` by default. Frames with the same site, layout, size and text bar show the
        same place of a wafer: another shot of it, with another defect.
    Raises ValueError, with what is allowed, for an unknown label or layout, a pair of them that cannot be, a size
    that is too small or a negative seed.
    """
    allowed = suitable_layouts(label)
    if layout is not None and layout not in allowed:
        known = "cannot show" if layout in LAYOUTS else "is unknown; layouts for"
        raise ValueError(f'layout "{layout}" {known} "{label}"; allowed: {", ".join(allowed)}')
    if min(size) < MIN_SIDE:
        raise ValueError(f"size {size[0]}x{size[1]} is too small; allowed: {MIN_SIDE} px or more on each side")
    site = seed if site is None else site
    if seed < 0 or site < 0:
        raise ValueError(f"seed {min(seed, site)} is negative; allowed: 0 or more")
    layout = layout or str(_stream(seed, _CHOICE).choice(allowed))
    bar_rows = max(12, round(0.075 * size[0])) if text_bar else 0

    height, width = size[0] - bar_rows, size[1]
    side = min(height, width)
    pad = 6 + side // 32  # room for drift and for stage errors
    surface = _paint_site(layout, _stream(site, _SITE, LAYOUTS.index(layout)), (height + 2 * pad, width + 2 * pad))
    canvas = Canvas(surface, shade(surface), (2 * pad + 2, 2 * pad + 2, height - 2, width - 2), side)
    imaging = _stream(seed, _IMAGING)
    optics = _draw_optics(imaging, (height, width), pad, abs(surface.feature - surface.ground))
    yields, mask = _add_defect(canvas, label, seed, optics)
    image = np.zeros(size, dtype=np.uint8)
    image[:height] = _expose(yields, optics, imaging)
    if text_bar:
        image[height:] = _draw_bar(imaging, bar_rows, width)
    full_mask = np.zeros(size, dtype=np.uint8)
    full_mask[:height][mask] = 255
    return SyntheticFrame(image, full_mask, label, layout, seed, bar_rows)


def write_dataset(
    folder: str | Path,
    *,
    per_class: int,
    size: tuple[int, int] = (480, 480),
    seed: int = 0,
    text_bar: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """A data folder of `per_class` frames of every class.

    Writes `images/<class>/<id>.png`, `masks/<class>/<id>.png` (8-bit grey; all zero for good) and `groups.csv`. A
    group is one simulated site: one to three frames, of different classes, that show the same layout. mask_fraction is
    the mask's part of the frame, 0..1. `progress` is called with the frames done and the frames in all.
    The folder appears whole or not at all. Raises FileExistsError if it is there, ValueError as `make_frame` does or
    for less than one frame per class.
    """
    folder = Path(folder)
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; allowed: 1 or more")
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} exists; remove it or name another folder")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; allowed: 0 or more")
    plan = _plan_groups(per_class, _stream(seed, _DATASET))
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        rows: list[tuple[str, str, int, str, int, int, str]] = []
        for done, (label, number, group, layout, site, shot) in enumerate(plan, start=1):
            frame = make_frame(label, shot, size=size, layout=layout, text_bar=text_bar, site=site)
            name = f"{label}/{number:04d}.png"
            for kind, pixels in (("images", frame.image), ("masks", frame.mask)):
                (scratch / kind / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(scratch / kind / name)
            fraction = f"{np.count_nonzero(frame.mask) / frame.mask.size:.6f}"
            rows.append((f"images/{name}", label, 1, fraction, size[1], size[0], group))
            if progress is not None:
                progress(done, len(plan))
        with (scratch / "groups.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(FIELD_NAMES)
            writer.writerows(sorted(rows))
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _plan_groups(per_class: int, rng: Rng) -> list[tuple[str, int, str, str, int, int]]:
    """Label, number, group, layout, site seed and shot seed of every frame; the classes of a group differ."""
    plan = []
    group = 0
    for number in range(1, per_class + 1):
        waiting = [CLASSES[i] for i in rng.permutation(len(CLASSES))]
        while waiting:
            members = [waiting.pop() for _ in range(min(int(rng.integers(1, 4)), len(waiting)))]
            group += 1
            layouts = [name for name in LAYOUTS if all(name in suitable_layouts(label) for label in members)]
            layout, site = str(rng.choice(layouts)), int(rng.integers(2**62))
            for label in members:
                plan.append((label, number, f"site-{group:04d}", layout, site, int(rng.integers(2**62))))
    return plan


def _stream(seed: int, *purpose: int) -> Rng:
    """A generator for one purpose: what one step draws never shifts what another one gets."""
    return np.random.default_rng([seed, *purpose])


# ---- site: layouts and materials -------------------------------------------------------------------------------------


def _paint_site(layout: str, rng: Rng, shape: tuple[int, int]) -> Surface:
    """A layout with rough edges, in materials of random yield."""
    unit = min(shape) / 260
    edge, texture, finest = _LAYOUT_PAINTERS[layout](rng, shape, unit)
    if layout not in _FEATURELESS:
        # Line-edge roughness: long waves (resist) and short ones (etch); edges move independently of each other.
        # Five sigma stay inside the finest line or space, or else good frames would have bridges and cuts.
        rough = np.float32(min(rng.uniform(0.15, 0.75) * unit, finest / 5))
        edge = edge + smooth_noise(rng, shape, rng.uniform(6, 16) * unit, 3) * rough
    film = smooth_noise(rng, shape, log_uniform(rng, 3, 30), 3) * np.float32(rng.uniform(0.0, 0.025))
    step = log_uniform(rng, 0.1, 0.38)
    low = rng.uniform(0.15, 0.3)
    darker = rng.random() < (0.75 if layout == "contacts" else 0.3)
    ground, feature = (low + step, low) if darker else (low, low + step)
    if layout in _FEATURELESS:
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
    rng: Rng, shape: tuple[int, int], pitch: float, turn: float, stagger: bool
) -> tuple[Field, Field, NDArray[np.int32]]:
    """Coordinates (px) within the cells of a lattice, and a number per cell in 0..4095."""
    u, v = turned(shape, (rng.uniform(0, shape[0]), rng.uniform(0, shape[1])), turn)
    step_u, step_v = np.float32(pitch), np.float32(pitch * rng.uniform(0.9, 1.5))
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
    metal = np.clip(pitch * 0.32 - np.abs(v) + 0.5, 0, 1) * np.float32(rng.choice([0.0, 1.0]) * rng.uniform(-0.1, 0.12))
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


_LAYOUT_PAINTERS: dict[str, Callable[[Rng, tuple[int, int], float], Layout]] = {
    "lines": _lines,
    "contacts": _contacts,
    "vias": _vias,
    "logic": _logic,
    "cells": _cells,
    "comb": _comb,
    "pads": _pads,
    "blank": _blank,
    "grain": _grain,
}


# ---- defect ----------------------------------------------------------------------------------------------------------


def _add_defect(canvas: Canvas, label: str, seed: int, optics: _Optics) -> tuple[Field, NDArray[np.bool_]]:
    """The yield map with the defect on it, and the defect's mask in the frame (bool [H, W])."""
    if label == "good":
        return canvas.clean, np.zeros((optics.shifts.size, optics.width), dtype=bool)
    best: tuple[float, Field, NDArray[np.bool_]] | None = None
    for attempt in range(24):
        rng = _stream(seed, _DEFECT, CLASSES.index(label), attempt)
        yields, footprint = PAINTERS[label](canvas, rng)
        mask = _scan(footprint, optics) > 0
        area = int(np.count_nonzero(mask))
        if area < MIN_FOOTPRINT or area > 0.3 * mask.size:
            continue
        contrast = float(np.abs(yields - canvas.clean)[footprint > 0].mean())
        # A label that nobody could confirm in the frame is a wrong label. Rose's criterion: a feature is seen when
        # its contrast is some five times the noise over its area; what the beam's spot spreads counts as lost.
        spread = area / np.sqrt(area + 4 * np.pi * optics.blur[0] * optics.blur[1])
        seen = min(contrast / 0.045, contrast * spread / (8.0 * optics.noise))
        if best is None or seen > best[0]:
            best = (seen, yields, mask)
        if seen >= 1:
            break
    if best is None:
        raise RuntimeError(f"no {label} could be placed with seed {seed}; this is a fault of the generator")
    return best[1], best[2]


# ---- imaging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Optics:
    """How one frame is taken: what has to be known before the defect is painted.

    shifts: float32 [H], where each raster line starts in the canvas (px). first_row: the canvas row of the first.
    width: pixels per line. blur: standard deviation of the beam's spot in y and x (px). noise: standard deviation of
    the shot noise at a yield of 0.4.
    """

    shifts: Field
    first_row: int
    width: int
    blur: tuple[float, float]
    noise: float


def _draw_optics(rng: Rng, shape: tuple[int, int], pad: int, contrast: float) -> _Optics:
    """Draw dose, focus, stage error and raster drift for a frame of this shape, within `pad` px.

    contrast: yield between the pattern's materials, 0 without a pattern.
    """
    rows = np.arange(shape[0]) / shape[0]
    room = pad - 1.5
    drift = rng.normal(0, 0.25 * room) * rows + rng.normal(0, 0.8) * np.sin(2 * np.pi * (rows * rng.uniform(0.5, 4)))
    jitter = rng.normal(0, rng.choice([0.05, 0.15, 0.4]), shape[0])
    shifts = np.clip(drift - drift.mean() + jitter + rng.uniform(-0.5, 0.5) * room, -room, room) + pad
    focus = log_uniform(rng, 0.45, 1.5) * max(min(shape) / 240, 0.8) ** 0.5
    astigmatism = float(np.exp(rng.normal(0, 0.18)))
    return _Optics(
        shifts=shifts.astype(np.float32),
        first_row=int(rng.integers(2 * pad + 1)),
        width=shape[1],
        blur=(focus * astigmatism, focus / astigmatism),
        # Whoever takes the frame averages until the pattern shows.
        noise=log_uniform(rng, 0.012, 0.02 + 0.25 * contrast if contrast > 0 else 0.1),
    )


def _scan(field: Field, optics: _Optics) -> Field:
    """Read a canvas line by line as the beam does: [H, W] of it, with each line's shift."""
    height = optics.shifts.size
    start = np.floor(optics.shifts).astype(np.intp)
    part = (optics.shifts - start).astype(np.float32)[:, None]
    lines = np.arange(optics.first_row, optics.first_row + height)[:, None]
    columns = start[:, None] + np.arange(optics.width + 1)
    values: Field = field[lines, columns]
    return values[:, :-1] + part * (values[:, 1:] - values[:, :-1])


def _expose(yields: Field, optics: _Optics, rng: Rng) -> NDArray[np.uint8]:
    """The 8-bit frame of a yield map: charging, blur, raster, brightness, shot noise, in the order of the physics."""
    signal = _charge(yields, rng)
    signal = _scan(ndimage.gaussian_filter(signal, optics.blur, truncate=3.0), optics)
    shape = height, width = signal.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    signal = signal * (1 + y * np.float32(rng.normal(0, 0.06)) + x * np.float32(rng.normal(0, 0.06)))
    if rng.random() < 0.08:  # carbon left by an earlier, closer look: a darker rectangle
        top, left = (int(rng.uniform(0.05, 0.4) * n) for n in shape)
        signal[top : top + height // 2, left : left + width // 2] *= np.float32(rng.uniform(0.85, 0.95))
    grains = rng.standard_normal(shape, dtype=np.float32)
    if rng.random() < 0.4:  # a slow detector smears the noise along the line; keep its strength
        smear = np.float32(rng.uniform(0.1, 0.35))
        grains[:, 1:] = (grains[:, 1:] + smear * grains[:, :-1]) / np.sqrt(1 + smear**2)
    # Counting electrons: the variance goes with the signal; the amplifier adds a little everywhere.
    signal += optics.noise * np.sqrt(np.clip(signal, 0.0, 2.0) / 0.4 + 0.08) * grains
    signal += rng.normal(0, rng.choice([0.0, 0.004, 0.012]), (height, 1)).astype(np.float32)
    signal = rng.uniform(0.75, 1.25) * signal + rng.uniform(-0.04, 0.18)
    grey: NDArray[np.uint8] = np.clip(signal * 255 + 0.5, 0, 255).astype(np.uint8)
    return grey


def _charge(yields: Field, rng: Rng) -> Field:
    """Charging: slow bright and dark shading, and a dark wake behind bright features along the scan."""
    shape = yields.shape
    signal: Field = yields + smooth_noise(rng, shape, 0.6 * min(shape), 2) * np.float32(abs(rng.normal(0, 0.018)))
    strength = rng.uniform(0.1, 0.5)
    if rng.random() < 0.35:
        length = max(int(rng.uniform(0.06, 0.25) * shape[1]), 5)
        bright = np.maximum(yields - 0.45, 0.0)
        wake = ndimage.uniform_filter1d(bright, length, axis=1, origin=(length - 1) // 2, mode="constant")
        signal -= np.float32(strength) * wake
    return signal


# ---- text bar --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=height)


def _draw_bar(rng: Rng, rows: int, width: int) -> NDArray[np.uint8]:
    """The detector's text bar, uint8 [rows, width]: voltage, magnification and a scale bar, as many as fit."""
    ink = int(rng.integers(190, 256))
    bar = Image.new("L", (width, rows), int(rng.integers(0, 40)))
    draw = ImageDraw.Draw(bar)
    font = _font(max(int(rows * 0.55), 7))
    magnification = int(rng.choice([20, 50, 80, 100, 150]))  # thousands
    field = 127_000 / magnification  # nm across a screen 127 mm wide
    scale = max(nm for nm in (50, 100, 200, 300, 500, 1000) if nm <= 0.22 * field)
    length = int(width * scale / field)
    middle, end, thick = rows // 2, width - rows // 3, max(rows // 12, 1)
    start = end - length
    draw.line([(start, middle), (end, middle)], fill=ink, width=thick)
    for tick in (start, end):
        draw.line([(tick, middle - rows // 5), (tick, middle + rows // 5)], fill=ink, width=thick)
    x = start - rows // 3 - int(draw.textlength(f"{scale} nm", font=font))
    draw.text((x, middle), f"{scale} nm", fill=ink, font=font, anchor="lm")
    words = [f"{rng.choice([0.5, 0.8, 1.0, 2.0, 5.0]):.2f} kV", f"x {magnification:.1f}k", "SE"]
    left = rows // 3
    for word in words:
        span = int(draw.textlength(word, font=font))
        if left + span + 4 > x:
            break
        draw.text((left, middle), word, fill=ink, font=font, anchor="lm")
        left += span + rows
    return np.asarray(bar, dtype=np.uint8)
