"""Painters of the six defect kinds, and the surface that they paint on.

Everything here is geometry and yield before imaging: no blur, no noise, no drift. A painter takes the clean surface
and gives back the yield map with the defect on it, plus a footprint field that is positive exactly where the defect
is. Halos and shadows that a defect throws on its surroundings are in the yield map but not in the footprint.

Fields are float32 [H, W]. Yields run from about 0 (black) to 1 (white); lengths are pixels. All randomness comes
from the generator that the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Field: TypeAlias = NDArray[np.float32]
Rng: TypeAlias = np.random.Generator

FAR = 1000.0
"""Signed distance (px) that stands for "no pattern edge anywhere near"."""


@dataclass(frozen=True, slots=True)
class Surface:
    """One piece of wafer as the detector's yield sees it.

    edge: signed distance to the nearest pattern edge in px, positive inside a feature, -FAR where there is none.
    texture: yield added on top: film roughness, grains, a metal level underneath.
    ground, feature: yield between the features and on them; `feature` may be the darker one.
    bloom, bloom_width: height (yield) and reach (px) of the bright band along edges.
    shadow: part of the yield that narrow spaces lose near an edge, 0..1.
    relief: yield added on edges facing one side of the detector and taken from those facing the other.
    """

    edge: Field
    texture: Field
    ground: float
    feature: float
    bloom: float
    bloom_width: float
    shadow: float
    relief: float


@dataclass(frozen=True, slots=True)
class Canvas:
    """A clean surface and where on it a defect may be centred.

    clean: `shade(surface)`.
    box: first row, first column, end row, end column for the defect's centre.
    side: the frame's shorter side in px, the yardstick for defect sizes.
    """

    surface: Surface
    clean: Field
    box: tuple[int, int, int, int]
    side: int


Painted: TypeAlias = tuple[Field, Field]
Painter: TypeAlias = Callable[[Canvas, Rng], Painted]


# ---- shared tools ----------------------------------------------------------------------------------------------------


def shade(surface: Surface) -> Field:
    """The yield map of a surface: materials, bright edges, shadowed spaces."""
    edge = surface.edge
    coverage: Field = np.clip(edge / 1.2 + 0.5, 0.0, 1.0)
    distance = np.abs(edge)
    yields = surface.ground + (surface.feature - surface.ground) * coverage + surface.texture
    # Electrons from the floor of a narrow space are caught by its walls: it looks darker close to them.
    yields *= 1.0 - surface.shadow * (1.0 - coverage) * np.exp(-distance / (5.0 * surface.bloom_width))
    # At an edge electrons leave through two faces, so it shines.
    yields += surface.bloom * np.exp(-distance / surface.bloom_width)
    yields[:, 1:-1] += surface.relief * (coverage[:, 2:] - coverage[:, :-2])
    return yields


def smooth_noise(rng: Rng, shape: tuple[int, int], period: float, octaves: int = 1) -> Field:
    """Noise of mean 0 and standard deviation 1 whose waves are about `period` px long; more octaves look fractal."""
    height, width = shape
    total = np.zeros(shape, dtype=np.float32)
    for octave in range(octaves):
        step = max(period / 2**octave, 1.0)
        coarse = rng.standard_normal((int(height / step) + 3, int(width / step) + 3), dtype=np.float32)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(fine, dtype=np.float32) * 0.55**octave
    total -= total.mean()
    scaled: Field = total / max(float(total.std()), 1e-6)
    return scaled


def turned(shape: tuple[int, int], centre: tuple[float, float], angle: float) -> tuple[Field, Field]:
    """Coordinates (along, across) in px from `centre` (row, column), the first axis turned by `angle` radians."""
    y = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def round_min(a: Field, b: Field, radius: float) -> Field:
    """Intersection of two signed distances (positive inside) with corners rounded to `radius` px."""
    corner = np.hypot(np.maximum(radius - a, 0.0), np.maximum(radius - b, 0.0))
    rounded: Field = radius - corner + np.maximum(np.minimum(a, b) - radius, 0.0)
    return rounded


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A length between two lengths, every ratio equally likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(max(high, low)))))


def _centre(canvas: Canvas, rng: Rng, wanted: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """A random place in the box, on a `wanted` pixel if there is one."""
    top, left, bottom, right = canvas.box
    for _ in range(40 if wanted is not None else 1):
        y, x = rng.uniform(top, bottom), rng.uniform(left, right)
        if wanted is None or wanted[int(y), int(x)]:
            break
    return y, x


def _blob(shape: tuple[int, int], centre: tuple[float, float], radius: float, rng: Rng, wobble: float) -> Field:
    """Signed distance-like field (px) of an ellipse whose outline wobbles by about `wobble` (0..1) of its radius."""
    along, across = turned(shape, centre, rng.uniform(0, np.pi))
    squeeze = rng.uniform(0.55, 1.0)
    reach: Field = np.hypot(along, across / np.float32(squeeze)) / np.float32(radius)
    if wobble > 0:
        bearing = np.arctan2(across, along)
        for harmonic in range(2, 8):
            size = wobble * rng.normal() / harmonic
            reach -= np.float32(size) * np.sin(harmonic * bearing + np.float32(rng.uniform(0, 2 * np.pi)))
    blob: Field = (1.0 - reach) * np.float32(radius * squeeze)
    return blob


def _facets(
    shape: tuple[int, int], centre: tuple[float, float], radius: float, rng: Rng
) -> tuple[Field, NDArray[np.intp], int]:
    """A convex polygon (signed distance), the facet that each pixel belongs to, and the number of facets."""
    sides = int(rng.integers(4, 8))
    angles = (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * 2 * np.pi / sides + rng.uniform(0, 2 * np.pi)
    along, across = turned(shape, centre, 0.0)
    walls = np.stack([radius * rng.uniform(0.6, 1.0) - along * np.cos(a) - across * np.sin(a) for a in angles])
    return walls.min(axis=0).astype(np.float32), walls.argmin(axis=0), sides


def _blend(base: Field, layer: Field | float, footprint: Field, strength: float = 1.0) -> Field:
    """Put `layer` over `base` where the footprint (px) is positive, with a one-pixel soft rim."""
    alpha = np.clip(footprint + 0.5, 0.0, 1.0) * np.float32(strength)
    blended: Field = base + alpha * (layer - base)
    return blended


def _band(distance: Field, width: float) -> Field:
    """A bright line of Gaussian profile where `distance` is zero."""
    band: Field = np.exp(-np.square(distance / np.float32(width)))
    return band


# ---- bridge ----------------------------------------------------------------------------------------------------------


def _find_gap(canvas: Canvas, rng: Rng) -> tuple[tuple[float, float], float, float]:
    """A straight way from the edge of one feature to the next: start (row, column), angle, length in px.

    Looks along the outward normals of random edge pixels. Another feature is better than another part of the same
    one, and a short way better than a long one. Where nothing is hit, a short stub is the answer.
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


# ---- copper residue --------------------------------------------------------------------------------------------------


def paint_copper_residue(canvas: Canvas, rng: Rng) -> Painted:
    """Bright metal left behind: fractal patches, stringers along edges, scattered droplets; mostly in the spaces."""
    shape, edge = canvas.clean.shape, canvas.surface.edge
    form = rng.choice(["patch", "stringer", "droplets", "splash"])
    radius = log_uniform(rng, 4.0, 0.17 * canvas.side)
    centre = _centre(canvas, rng, edge < 0)
    cloud = _blob(shape, centre, radius, rng, 0.3)
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
    painted = _blend(canvas.clean, level + grains, footprint, rng.uniform(0.7, 1.0))
    painted += rng.uniform(0.05, 0.2) * _band(footprint, 1.5) * (footprint > -3)
    return painted.astype(np.float32), footprint.astype(np.float32)


# ---- hole ------------------------------------------------------------------------------------------------------------


def _pit(canvas: Canvas, pit: Field, radius: float, rng: Rng) -> Painted:
    """A pit (signed distance, px) sunk into the surface: dark floor, bright rim, one wall brighter than the other."""
    rim = min(rng.uniform(1.0, 2.2), 0.35 * radius)
    floor = np.clip(pit / np.float32(0.8 * radius), 0.0, 1.0)
    dark = canvas.clean * rng.uniform(0.1, 0.55) + np.float32(rng.uniform(0.02, 0.06)) - 0.1 * floor
    painted = _blend(canvas.clean, np.maximum(dark, 0.02), pit)
    slope = np.gradient(np.clip(pit, -2 * rim, 2 * rim), axis=int(rng.integers(2)))
    shine = min(1.0, radius / 6.0) * (rng.uniform(0.08, 0.4) + rng.uniform(-0.12, 0.12) * slope)
    painted += (_band(pit + rim / 2, rim) * shine).astype(np.float32)
    return painted.astype(np.float32), pit + np.float32(rim)


def paint_hole(canvas: Canvas, rng: Rng) -> Painted:
    """Voids: a round or elliptic pit, a ragged one, several pits, or a piece of the pattern that is missing."""
    shape, surface = canvas.clean.shape, canvas.surface
    forms = ["pit", "ragged", "several"] + ["missing"] * (surface.feature > surface.ground + 0.1)
    form = rng.choice(forms) if surface.edge.max() > 0 else rng.choice(forms[:3])
    radius = log_uniform(rng, 2.2, 0.13 * canvas.side)
    if form == "missing":
        footprint = _blob(shape, _centre(canvas, rng, surface.edge > 0), max(radius, 3.0), rng, 0.3)
        torn = np.minimum(surface.edge, -footprint)
        footprint = np.minimum(footprint, surface.edge)
        darker = np.clip(footprint + 0.5, 0.0, 1.0) * np.float32(rng.uniform(0.0, 0.5))
        return shade(replace(surface, edge=torn)) * (1.0 - darker), footprint
    centre = _centre(canvas, rng)
    count = int(rng.integers(2, 7)) if form == "several" else 1
    pits = np.full(shape, -FAR, dtype=np.float32)
    for _ in range(count):
        place = centre if count == 1 else _near(canvas, centre, 3.5 * radius, rng)
        size = radius * (1.0 if count == 1 else rng.uniform(0.4, 0.8))
        pits = np.maximum(pits, _blob(shape, place, max(size, 1.8), rng, 0.3 if form == "ragged" else 0.03))
    return _pit(canvas, pits, max(size, 1.8), rng)


def _near(canvas: Canvas, centre: tuple[float, float], spread: float, rng: Rng) -> tuple[float, float]:
    """A place around `centre`, kept in the box."""
    top, left, bottom, right = canvas.box
    y, x = centre[0] + rng.normal(0, spread / 2), centre[1] + rng.normal(0, spread / 2)
    return float(np.clip(y, top, bottom)), float(np.clip(x, left, right))


# ---- infilm ----------------------------------------------------------------------------------------------------------


def paint_infilm(canvas: Canvas, rng: Rng) -> Painted:
    """A particle under the film: a soft dome lit from one side, with the pattern above it bulging or sinking."""
    surface, shape = canvas.surface, canvas.clean.shape
    radius = log_uniform(rng, 5.0, 0.16 * canvas.side)
    centre = _centre(canvas, rng)
    profile = _blob(shape, centre, radius, rng, rng.uniform(0.0, 0.1)) / np.float32(radius)
    dome = np.clip(profile * 1.3 + 0.15, 0.0, 1.0)
    dome = dome * dome * (3.0 - 2.0 * dome)
    base = canvas.clean
    if surface.edge.max() > 0:
        base = shade(replace(surface, edge=_bulged(surface.edge, centre, dome, rng.uniform(-0.3, 0.55), radius)))
        base = _blend(base, float(canvas.clean.mean()), dome - 0.5, rng.uniform(0.0, 0.35))
    light = rng.uniform(0, 2 * np.pi)
    slope_y, slope_x = np.gradient(dome)
    shading = (slope_x * np.cos(light) + slope_y * np.sin(light)) * np.float32(radius * rng.uniform(0.02, 0.11))
    swell = dome * np.float32(rng.choice([-1, 1]) * rng.uniform(0.03, 0.17))
    ring = (
        _band(dome - 0.35, 0.25)
        * np.minimum(4 * dome, 1.0)
        * np.float32(rng.uniform(-0.06, 0.1))
        * (rng.random() < 0.4)
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


# ---- particle --------------------------------------------------------------------------------------------------------


def paint_particle(canvas: Canvas, rng: Rng) -> Painted:
    """Debris lying on top: spheres, faceted crystals, flakes, clusters; bright, sharp, with a shadow or a halo.

    On a film without pattern, which gives no scale, also large ones that the frame cuts, rods, and many alike.
    """
    shape = canvas.clean.shape
    form = rng.choice(["sphere", "facets", "flake", "cluster"])
    if canvas.surface.edge.max() <= 0 and rng.random() < 0.55:
        return _paint_debris(canvas, rng)
    centre = _centre(canvas, rng)
    radius = log_uniform(rng, 2.0 if form == "sphere" else 3.0, 0.15 * canvas.side)
    light = (float(np.cos(a := rng.uniform(0, 2 * np.pi))), float(np.sin(a)))
    level = rng.uniform(0.5, 0.85)
    if form == "facets":
        footprint, facet, sides = _facets(shape, centre, radius, rng)
        layer = (level + rng.uniform(-0.2, 0.15, sides).astype(np.float32))[facet]
        layer = np.where(footprint > 0.55 * radius * rng.uniform(0.5, 1.4), np.float32(level), layer)
    elif form == "flake":
        footprint = _blob(shape, centre, radius, rng, 0.45)
        layer = level + smooth_noise(rng, shape, max(radius / 2, 2.5), 3) * np.float32(rng.uniform(0.04, 0.12))
    else:
        count = int(rng.integers(3, 9)) if form == "cluster" else 1
        size = radius if count == 1 else max(radius * 0.4, 1.6)
        footprint = np.full(shape, -FAR, dtype=np.float32)
        layer = np.full(shape, level, dtype=np.float32)
        for i in range(count):
            ball = size * (1.0 if count == 1 else rng.uniform(0.6, 1.3))
            place = centre if i == 0 else _near(canvas, centre, 2.2 * size, rng)
            along, across = turned(shape, place, 0.0)
            reach = np.hypot(along, across)
            lit = level + 0.25 * np.square(reach / ball) + 0.12 * (along * light[0] + across * light[1]) / ball
            layer = np.where(reach < ball, lit - 0.12, layer)
            footprint = np.maximum(footprint, np.float32(ball) - reach)
    layer = layer + rng.uniform(0.1, 0.3) * _band(footprint, 1.4)
    base = _cast(canvas, footprint, light, rng)
    return _blend(base, layer, footprint).astype(np.float32), footprint.astype(np.float32)


def _paint_debris(canvas: Canvas, rng: Rng) -> Painted:
    """Particles at a magnification that nothing else in the frame tells: one large one, or up to twenty of one kind.

    Balls, rods, crystals or lumps, each in front of those before it, lit from one side, with a bright rim.
    """
    shape, side = canvas.clean.shape, canvas.side
    form = rng.choice(["ball", "rod", "facets", "lump"])
    count = int(log_uniform(rng, 1, 20))
    size = log_uniform(rng, 0.03, 0.45 / count**0.5) * side
    spread = 0.0 if rng.random() < 0.4 else rng.uniform(0, 0.4)  # alike, as grown or milled ones are, or of every size
    clumped = rng.random() < 0.5
    level, dome, lean = rng.uniform(0.4, 0.85), rng.uniform(-0.1, 0.3), rng.uniform(0, 0.15)
    light = (float(np.cos(a := rng.uniform(0, 2 * np.pi))), float(np.sin(a)))
    rim, rim_width = rng.uniform(0.0, 0.3), rng.uniform(1.0, 0.04 * size + 1.5)
    grain = smooth_noise(rng, shape, log_uniform(rng, 2.0, size), 3) * np.float32(rng.uniform(0, 0.06))
    footprint, layer = np.full(shape, -FAR, dtype=np.float32), np.full(shape, level, dtype=np.float32)
    centre = _centre(canvas, rng)
    for i in range(count):
        radius = size * float(np.exp(rng.normal(0, spread)))
        place = centre
        if i > 0:
            place = _near(canvas, centre, 1.5 * size * count**0.5, rng) if clumped else _centre(canvas, rng)
        if form == "facets":
            outline, facet, sides = _facets(shape, place, radius, rng)
            lit = (level + rng.uniform(-0.2, 0.15, sides).astype(np.float32))[facet]
            lit = np.where(outline > radius * rng.uniform(0.1, 0.7), np.float32(level), lit)
        else:
            if form == "rod":
                along, across = turned(shape, place, rng.uniform(0, np.pi))
                half = radius * rng.uniform(1.2, 5.0)
                across = across - along * along * np.float32(rng.normal(0, 0.15) / half)
                outline = np.float32(0.5 * radius) - np.hypot(np.maximum(np.abs(along) - half, 0), across)
            elif form == "ball":
                outline = np.float32(radius) - np.hypot(*turned(shape, place, 0.0))
            else:
                outline = _blob(shape, place, radius, rng, 0.3)
            depth = np.clip(outline / max(float(outline.max()), 1.0), 0.0, 1.0)
            slope_y, slope_x = np.gradient(depth)
            facing = (slope_x * np.float32(light[0]) + slope_y * np.float32(light[1])) * np.float32(radius)
            lit = level + np.float32(dome) * np.square(1 - depth) + np.float32(lean) * np.clip(facing, -1.5, 1.5)
        lit = lit + np.float32(rim) * _band(outline, rim_width)
        layer = np.where(outline > 0, lit, layer)
        footprint = np.maximum(footprint, outline)
    base = _cast(canvas, footprint, light, rng)
    return _blend(base, layer + grain, footprint).astype(np.float32), footprint.astype(np.float32)


def _cast(canvas: Canvas, footprint: Field, light: tuple[float, float], rng: Rng) -> Field:
    """The surroundings of a particle: a shadow on the far side of the light, and a charging halo all round."""
    distance = np.maximum(-footprint, 0.0)
    reach = np.float32(rng.uniform(1.5, 5.0) * max(canvas.side / 240, 1.0))
    fade = np.exp(-distance / reach)
    slope_y, slope_x = np.gradient(np.maximum(footprint, -12 * reach))
    facing = slope_x * np.float32(light[0]) + slope_y * np.float32(light[1])  # > 0 on the side away from the light
    shadow = rng.uniform(0.1, 0.7) * np.clip(facing, 0.0, 1.0) * fade
    halo = rng.uniform(-0.3, 0.15) * fade * (rng.random() < 0.6)
    surroundings: Field = (canvas.clean * (1.0 - shadow) * (1.0 + halo)).astype(np.float32)
    return surroundings


# ---- scratch ---------------------------------------------------------------------------------------------------------


def paint_scratch(canvas: Canvas, rng: Rng) -> Painted:
    """A polishing mark: a chain of fish-scale dents, a long thin groove, or several grooves side by side."""
    shape, side = canvas.clean.shape, canvas.side
    along, across = turned(shape, _centre(canvas, rng), rng.uniform(0, 2 * np.pi))
    half_length = side * rng.uniform(0.1, 0.75)
    bend = rng.normal(0, 0.08) / half_length
    wander = np.sin(along * np.float32(6.0 / side * rng.uniform(0.5, 2)) + rng.uniform(0, 6)) * rng.uniform(0, 0.012)
    across = across - along * along * np.float32(bend) - wander.astype(np.float32) * side
    if rng.random() < 0.42:
        return _fish_scales(canvas, along, across, half_length, rng)
    return _grooves(canvas, along, across, half_length, rng)


def _grooves(canvas: Canvas, along: Field, across: Field, half_length: float, rng: Rng) -> Painted:
    """One to five parallel grooves: dark (or, where metal is smeared, bright) floor and one shining shoulder."""
    count = int(rng.choice([1, 1, 1, 2, 3, 4, 5]))
    spacing = rng.uniform(4.0, 0.05 * canvas.side + 5.0)
    tone = rng.uniform(0.12, 0.45) * rng.choice([-1, -1, 1])
    shoulder, lit, blunt = rng.uniform(0.05, 0.3), int(rng.choice([-1, 1])), rng.uniform(0.1, 0.5)
    painted, footprint = canvas.clean.copy(), np.full(canvas.clean.shape, -FAR, dtype=np.float32)
    for i in range(count):
        half = log_uniform(rng, 0.5, 0.007 * canvas.side + 0.9) * (1.0 if i == 0 else rng.uniform(0.5, 1.0))
        reach = half_length * (1.0 if i == 0 else rng.uniform(0.3, 1.0))
        place = along - np.float32(0.0 if i == 0 else rng.normal(0, 0.2) * half_length)
        offset = across - np.float32(spacing * (i - (count - 1) / 2) + rng.normal(0, 0.5))
        # Pressure comes and goes along the way, and fades at both ends.
        pressure = 0.75 + 0.25 * np.sin(place * np.float32(rng.uniform(3, 14) / reach) + rng.uniform(0, 6))
        taper = np.clip((reach - np.abs(place)) / (blunt * reach), 0.0, 1.0)
        groove = np.where(taper > 0, (0.6 + half * taper * pressure) - np.abs(offset), -FAR).astype(np.float32)
        profile = np.clip(groove + 0.4, 0.0, 1.0)
        painted += np.float32(tone) * pressure * profile
        painted += shoulder * _band(offset - lit * (half + 0.6), 1.1) * np.minimum(taper * 3, 1.0)
        footprint = np.maximum(footprint, groove)
    return np.maximum(painted, 0.02).astype(np.float32), footprint


def _fish_scales(canvas: Canvas, along: Field, across: Field, half_length: float, rng: Rng) -> Painted:
    """Chatter marks: crescents one behind the other, each a dark arc with a bright lip and a shallow dent."""
    step = log_uniform(rng, 6.0, 0.07 * canvas.side + 6.0)
    index = np.rint(along / np.float32(step))
    count = int(half_length / step) + 1
    table = rng.uniform(0.55, 1.1, 2 * count + 3).astype(np.float32)
    table[rng.random(table.size) < 0.12] = 0.0  # the tool skips now and then
    size = table[np.clip(index + count + 1, 0, table.size - 1).astype(int)] * (np.abs(index) <= count)
    place = along - index * np.float32(step)
    wide = np.float32(step * rng.uniform(0.5, 1.1))
    # Each arc is a parabola that opens towards the direction of travel and thins out at its tips.
    sideways = np.square(across / np.maximum(wide * size, 1e-3))
    arc = np.abs(place + (sideways - 0.5) * np.float32(step * 0.42))
    thick = np.float32(max(0.11 * step * rng.uniform(0.7, 1.4), 0.9))
    crescent = np.where((size > 0) & (sideways < 1), thick * np.sqrt(np.maximum(1.1 - sideways, 0.0)) - arc, -FAR)
    lip = _band(place + (sideways - 0.5) * np.float32(step * 0.42) - 1.6 * thick, 0.8 * float(thick))
    lip = lip * (sideways < 1) * (size > 0)
    dent = np.clip(1.0 - sideways, 0.0, 1.0) * (size > 0)
    tone = rng.uniform(0.15, 0.4)
    painted = canvas.clean - np.float32(tone) * np.clip(crescent + 0.4, 0.0, 1.0)
    painted += np.float32(rng.uniform(0.08, 0.3)) * lip + np.float32(rng.uniform(-0.08, 0.03)) * dent
    footprint = np.maximum(crescent, np.where((size > 0) & (lip > 0.6), 0.5, -FAR))
    return np.maximum(painted, 0.02).astype(np.float32), footprint.astype(np.float32)


PAINTERS: dict[str, Painter] = {
    "bridge": paint_bridge,
    "copper_residue": paint_copper_residue,
    "hole": paint_hole,
    "infilm": paint_infilm,
    "particle": paint_particle,
    "scratch": paint_scratch,
}
