"""Particles on top of a surface: single ones, clusters, and debris on films without a pattern."""

from __future__ import annotations

import numpy as np

from .surfaces import (
    FAR,
    Canvas,
    Field,
    Painted,
    Rng,
    band,
    blend,
    blob,
    facets,
    log_uniform,
    place_near,
    random_place,
    smooth_noise,
    turned,
)


def paint_particle(canvas: Canvas, rng: Rng) -> Painted:
    """Debris lying on top: spheres, faceted crystals, flakes, clusters; bright, sharp, with a shadow or a halo.

    Films without a pattern give no scale; on them also large particles cut by the frame, rods, and many alike.
    """
    shape = canvas.clean.shape
    form = rng.choice(["sphere", "facets", "flake", "cluster"])
    if canvas.surface.edge.max() <= 0 and rng.random() < 0.55:
        return _paint_debris(canvas, rng)
    centre = random_place(canvas, rng)
    radius = log_uniform(rng, 2.0 if form == "sphere" else 3.0, 0.15 * canvas.side)
    light = (float(np.cos(a := rng.uniform(0, 2 * np.pi))), float(np.sin(a)))
    level = rng.uniform(0.5, 0.85)
    if form == "facets":
        footprint, facet, sides = facets(shape, centre, radius, rng)
        layer = (level + rng.uniform(-0.2, 0.15, sides).astype(np.float32))[facet]
        layer = np.where(footprint > 0.55 * radius * rng.uniform(0.5, 1.4), np.float32(level), layer)
    elif form == "flake":
        footprint = blob(shape, centre, radius, rng, 0.45)
        layer = level + smooth_noise(rng, shape, max(radius / 2, 2.5), 3) * np.float32(rng.uniform(0.04, 0.12))
    else:
        count = int(rng.integers(3, 9)) if form == "cluster" else 1
        size = radius if count == 1 else max(radius * 0.4, 1.6)
        footprint = np.full(shape, -FAR, dtype=np.float32)
        layer = np.full(shape, level, dtype=np.float32)
        for i in range(count):
            ball = size * (1.0 if count == 1 else rng.uniform(0.6, 1.3))
            place = centre if i == 0 else place_near(canvas, centre, 2.2 * size, rng)
            along, across = turned(shape, place, 0.0)
            reach = np.hypot(along, across)
            lit = level + 0.25 * np.square(reach / ball) + 0.12 * (along * light[0] + across * light[1]) / ball
            layer = np.where(reach < ball, lit - 0.12, layer)
            footprint = np.maximum(footprint, np.float32(ball) - reach)
    layer = layer + rng.uniform(0.1, 0.3) * band(footprint, 1.4)
    base = _cast(canvas, footprint, light, rng)
    return blend(base, layer, footprint).astype(np.float32), footprint.astype(np.float32)


def _paint_debris(canvas: Canvas, rng: Rng) -> Painted:
    """Particles at an unknown magnification: one large one, or up to twenty of one kind.

    Balls, rods, crystals or lumps, each in front of those before it, lit from one side, with a bright rim.
    """
    shape, side = canvas.clean.shape, canvas.side
    form = rng.choice(["ball", "rod", "facets", "lump"])
    count = int(log_uniform(rng, 1, 20))
    size = log_uniform(rng, 0.03, 0.45 / count**0.5) * side
    spread = 0.0 if rng.random() < 0.4 else rng.uniform(0, 0.4)  # alike, as grown or milled ones, or of every size
    clumped = rng.random() < 0.5
    level, dome, lean = rng.uniform(0.4, 0.85), rng.uniform(-0.1, 0.3), rng.uniform(0, 0.15)
    light = (float(np.cos(a := rng.uniform(0, 2 * np.pi))), float(np.sin(a)))
    rim, rim_width = rng.uniform(0.0, 0.3), rng.uniform(1.0, 0.04 * size + 1.5)
    grain = smooth_noise(rng, shape, log_uniform(rng, 2.0, size), 3) * np.float32(rng.uniform(0, 0.06))
    footprint, layer = np.full(shape, -FAR, dtype=np.float32), np.full(shape, level, dtype=np.float32)
    centre = random_place(canvas, rng)
    for i in range(count):
        radius = size * float(np.exp(rng.normal(0, spread)))
        place = centre
        if i > 0:
            place = place_near(canvas, centre, 1.5 * size * count**0.5, rng) if clumped else random_place(canvas, rng)
        if form == "facets":
            outline, facet, sides = facets(shape, place, radius, rng)
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
                outline = blob(shape, place, radius, rng, 0.3)
            depth = np.clip(outline / max(float(outline.max()), 1.0), 0.0, 1.0)
            slope_y, slope_x = np.gradient(depth)
            facing = (slope_x * np.float32(light[0]) + slope_y * np.float32(light[1])) * np.float32(radius)
            lit = level + np.float32(dome) * np.square(1 - depth) + np.float32(lean) * np.clip(facing, -1.5, 1.5)
        lit = lit + np.float32(rim) * band(outline, rim_width)
        layer = np.where(outline > 0, lit, layer)
        footprint = np.maximum(footprint, outline)
    base = _cast(canvas, footprint, light, rng)
    return blend(base, layer + grain, footprint).astype(np.float32), footprint.astype(np.float32)


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
