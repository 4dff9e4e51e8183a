"""Painters of the six defect kinds.

They draw geometry and yield before imaging: no blur, no noise, no drift. A painter takes the clean surface and returns
the yield map with the defect on it, and a footprint field that is positive exactly on the defect. Halos and shadows
that a defect casts on its surroundings are in the yield map but not in the footprint.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from .particles import paint_particle
from .scratches import paint_scratch
from .surfaces import (
    FAR,
    Canvas,
    Field,
    Painted,
    Painter,
    Rng,
    band,
    blend,
    blob,
    log_uniform,
    place_near,
    random_place,
    shade,
    smooth_noise,
    turned,
)


def _find_gap(canvas: Canvas, rng: Rng) -> tuple[tuple[float, float], float, float]:
    """A straight way from the edge of one feature to the next: start (row, column), angle, length in px.

    Searches along the outward normals of random edge pixels. It prefers another feature to another part of the same
    one, and a short way to a long one. If no feature is hit, the result is a short stub.
    """
    top, left, bottom, right = canvas.box
    edge = canvas.surface.edge
    inside = edge > 0
    labels, _ = ndimage.label(inside)
    rows, columns = np.nonzero(np.abs(edge[top:bottom, left:right] - 0.5) < 1.0)
    if rows.size == 0:  # all edges are outside the box: start from the pixel closest to one
        nearest = np.abs(edge[top:bottom, left:right]).argmin()
        rows, columns = (np.array([i]) for i in np.unravel_index(nearest, (bottom - top, right - left)))
    pick = rng.integers(rows.size, size=96)
    y, x = rows[pick] + top, columns[pick] + left
    slope_y = edge[y + 2, x] - edge[y - 2, x]
    slope_x = edge[y, x + 2] - edge[y, x - 2]
    angle = np.arctan2(-slope_y, -slope_x)
    steps = np.arange(1, max(canvas.side // 4, 12))
    way_y = np.rint(y[:, None] + np.sin(angle)[:, None] * steps).astype(int)
    way_x = np.rint(x[:, None] + np.cos(angle)[:, None] * steps).astype(int)
    within = (way_y >= 0) & (way_y < edge.shape[0]) & (way_x >= 0) & (way_x < edge.shape[1])
    way_y, way_x = np.where(within, way_y, 0), np.where(within, way_x, 0)
    space = within & ~inside[way_y, way_x]
    # Arrived: inside a feature again, after at least two pixels of space.
    arrived = within & inside[way_y, way_x] & (np.cumsum(space, axis=1) >= 2)
    length = np.where(arrived.any(axis=1), arrived.argmax(axis=1) + 1, 10**6)
    far_end = labels[way_y[np.arange(96), length % steps.size], way_x[np.arange(96), length % steps.size]]
    cost = length * np.where(far_end == labels[y, x], 4.0, 1.0)
    if length.min() >= 10**6:
        i = int(rng.integers(96))
        return (float(y[i]), float(x[i])), float(angle[i]), 0.04 * canvas.side
    close = np.flatnonzero(cost <= 1.5 * cost.min())
    i = int(rng.choice(close))
    return (float(y[i]), float(x[i])), float(angle[i]), float(length[i])


def paint_bridge(canvas: Canvas, rng: Rng) -> Painted:
    """Feature material across the space between neighbours: necks, full bars, bulges, thin hairs, several lines."""
    surface = canvas.surface
    start, angle, gap = _find_gap(canvas, rng)
    along, across = turned(surface.edge.shape, start, angle + rng.normal(0, 0.12))
    half = log_uniform(rng, 1.0, max(1.3 * gap, 4.0)) if rng.random() < 0.8 else log_uniform(rng, 2, 0.13 * canvas.side)
    half = min(half, 0.15 * canvas.side)
    reach = gap * (rng.uniform(2.0, 3.6) if rng.random() < 0.2 else 1.0) + 2.0
    # waist < 1: a neck, thinnest halfway; 1: a bar; > 1: a bulge.
    waist = float(rng.choice([rng.uniform(0.35, 0.8), 1.0, rng.uniform(1.1, 1.6)], p=[0.5, 0.25, 0.25]))
    middle = np.square(np.clip(2.0 * along / gap - 1.0, -1.0, 1.0))
    width = np.maximum(half * (waist + (1.0 - waist) * middle), 0.9)
    rough = smooth_noise(rng, surface.edge.shape, 6.0, 2) * np.float32(min(0.15 * half, 1.2))
    bar = np.minimum(width - np.abs(across) + rough, np.minimum(along + 2.0, reach - along)).astype(np.float32)
    bridged = shade(replace(surface, edge=np.maximum(surface.edge, bar)))
    # A thin bridge is lower than the line: its contrast is a part of the full one.
    strength = np.float32(rng.uniform(0.55, 1.0))
    return canvas.clean + strength * (bridged - canvas.clean), np.minimum(bar, 0.01 - surface.edge)


def paint_copper_residue(canvas: Canvas, rng: Rng) -> Painted:
    """Bright metal left behind: fractal patches, stringers along edges, scattered droplets; mostly in the spaces."""
    shape, edge = canvas.clean.shape, canvas.surface.edge
    form = rng.choice(["patch", "stringer", "droplets", "splash"])
    radius = log_uniform(rng, 4.0, 0.17 * canvas.side)
    centre = random_place(canvas, rng, edge < 0)
    cloud = blob(shape, centre, radius, rng, 0.3)
    fractal = smooth_noise(rng, shape, max(radius / 2, 3.0), 4)
    if form == "droplets":
        fine = smooth_noise(rng, shape, rng.uniform(3.0, 6.0), 2)
        footprint = np.minimum((fine - np.float32(rng.uniform(0.4, 0.9))) * 2.0, cloud + 0.3 * radius)
    elif form == "splash":
        footprint = cloud + fractal * np.float32(0.45 * radius)
    else:
        footprint = cloud + fractal * np.float32(0.28 * radius)
    if form == "stringer" and edge.max() > 0:
        footprint = np.minimum(footprint, rng.uniform(1.2, 3.0) - np.abs(edge + 1.5))
    elif form == "patch" or rng.random() < 0.6:
        footprint = np.minimum(footprint, 0.5 - edge)
    grains = smooth_noise(rng, shape, rng.uniform(2.5, 5.0), 2) * np.float32(rng.uniform(0.03, 0.1))
    level = max(canvas.surface.ground, canvas.surface.feature) + rng.uniform(0.12, 0.4)
    painted = blend(canvas.clean, level + grains, footprint, rng.uniform(0.7, 1.0))
    painted += rng.uniform(0.05, 0.2) * band(footprint, 1.5) * (footprint > -3)
    return painted.astype(np.float32), footprint.astype(np.float32)


def _pit(canvas: Canvas, pit: Field, radius: float, rng: Rng) -> Painted:
    """A pit (signed distance, px) sunk into the surface: dark floor, bright rim, one wall brighter than the other."""
    rim = min(rng.uniform(1.0, 2.2), 0.35 * radius)
    floor = np.clip(pit / np.float32(0.8 * radius), 0.0, 1.0)
    dark = canvas.clean * rng.uniform(0.1, 0.55) + np.float32(rng.uniform(0.02, 0.06)) - 0.1 * floor
    painted = blend(canvas.clean, np.maximum(dark, 0.02), pit)
    slope = np.gradient(np.clip(pit, -2 * rim, 2 * rim), axis=int(rng.integers(2)))
    shine = min(1.0, radius / 6.0) * (rng.uniform(0.08, 0.4) + rng.uniform(-0.12, 0.12) * slope)
    painted += (band(pit + rim / 2, rim) * shine).astype(np.float32)
    return painted.astype(np.float32), pit + np.float32(rim)


def paint_hole(canvas: Canvas, rng: Rng) -> Painted:
    """Voids: a round or elliptic pit, a ragged one, several pits, or a piece of the pattern that is missing."""
    shape, surface = canvas.clean.shape, canvas.surface
    forms = ["pit", "ragged", "several"] + ["missing"] * (surface.feature > surface.ground + 0.1)
    form = rng.choice(forms) if surface.edge.max() > 0 else rng.choice(forms[:3])
    radius = log_uniform(rng, 2.2, 0.13 * canvas.side)
    if form == "missing":
        footprint = blob(shape, random_place(canvas, rng, surface.edge > 0), max(radius, 3.0), rng, 0.3)
        torn = np.minimum(surface.edge, -footprint)
        footprint = np.minimum(footprint, surface.edge)
        darker = np.clip(footprint + 0.5, 0.0, 1.0) * np.float32(rng.uniform(0.0, 0.5))
        return shade(replace(surface, edge=torn)) * (1.0 - darker), footprint
    centre = random_place(canvas, rng)
    count = int(rng.integers(2, 7)) if form == "several" else 1
    pits = np.full(shape, -FAR, dtype=np.float32)
    for _ in range(count):
        place = centre if count == 1 else place_near(canvas, centre, 3.5 * radius, rng)
        size = radius * (1.0 if count == 1 else rng.uniform(0.4, 0.8))
        pits = np.maximum(pits, blob(shape, place, max(size, 1.8), rng, 0.3 if form == "ragged" else 0.03))
    return _pit(canvas, pits, max(size, 1.8), rng)


def paint_infilm(canvas: Canvas, rng: Rng) -> Painted:
    """A particle under the film: a soft dome lit from one side, with the pattern above it bulging or sinking."""
    surface, shape = canvas.surface, canvas.clean.shape
    radius = log_uniform(rng, 5.0, 0.16 * canvas.side)
    centre = random_place(canvas, rng)
    profile = blob(shape, centre, radius, rng, rng.uniform(0.0, 0.1)) / np.float32(radius)
    dome = np.clip(profile * 1.3 + 0.15, 0.0, 1.0)
    dome = dome * dome * (3.0 - 2.0 * dome)
    base = canvas.clean
    if surface.edge.max() > 0:
        base = shade(replace(surface, edge=_bulged(surface.edge, centre, dome, rng.uniform(-0.3, 0.55), radius)))
        base = blend(base, float(canvas.clean.mean()), dome - 0.5, rng.uniform(0.0, 0.35))
    light = rng.uniform(0, 2 * np.pi)
    slope_y, slope_x = np.gradient(dome)
    shading = (slope_x * np.cos(light) + slope_y * np.sin(light)) * np.float32(radius * rng.uniform(0.02, 0.11))
    swell = dome * np.float32(rng.choice([-1, 1]) * rng.uniform(0.03, 0.17))
    ring = (
        band(dome - 0.35, 0.25) * np.minimum(4 * dome, 1.0) * np.float32(rng.uniform(-0.06, 0.1)) * (rng.random() < 0.4)
    )
    return (base + shading + swell + ring).astype(np.float32), (dome - 0.18).astype(np.float32)


def _bulged(edge: Field, centre: tuple[float, float], dome: Field, bulge: float, radius: float) -> Field:
    """`edge` as seen through a dome that magnifies (bulge > 0) or shrinks (bulge < 0) what lies on it."""
    y0, x0 = (max(int(c - 2 * radius), 0) for c in centre)
    window = np.s_[y0 : int(centre[0] + 2 * radius) + 1, x0 : int(centre[1] + 2 * radius) + 1]
    pull = dome[window] * np.float32(bulge)
    places: Field = np.indices(pull.shape, dtype=np.float32)
    rows, columns = places[0], places[1]
    rows += y0 + (centre[0] - y0 - rows) * pull
    columns += x0 + (centre[1] - x0 - columns) * pull
    warped: Field = edge.copy()
    warped[window] = ndimage.map_coordinates(edge, [rows, columns], order=1, mode="nearest")
    return warped


PAINTERS: dict[str, Painter] = {
    "bridge": paint_bridge,
    "copper_residue": paint_copper_residue,
    "hole": paint_hole,
    "infilm": paint_infilm,
    "particle": paint_particle,
    "scratch": paint_scratch,
}
