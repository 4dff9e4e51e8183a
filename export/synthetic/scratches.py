"""Scratches of polishing: grooves, and chains of fish-scale dents."""

from __future__ import annotations

import numpy as np

from .surfaces import (
    FAR,
    Canvas,
    Field,
    Painted,
    Rng,
    band,
    log_uniform,
    random_place,
    turned,
)


def paint_scratch(canvas: Canvas, rng: Rng) -> Painted:
    """A polishing mark: a chain of fish-scale dents, a long thin groove, or several grooves side by side."""
    shape, side = canvas.clean.shape, canvas.side
    along, across = turned(shape, random_place(canvas, rng), rng.uniform(0, 2 * np.pi))
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
        # Pressure varies along the way, and fades at both ends.
        pressure = 0.75 + 0.25 * np.sin(place * np.float32(rng.uniform(3, 14) / reach) + rng.uniform(0, 6))
        taper = np.clip((reach - np.abs(place)) / (blunt * reach), 0.0, 1.0)
        groove = np.where(taper > 0, (0.6 + half * taper * pressure) - np.abs(offset), -FAR).astype(np.float32)
        profile = np.clip(groove + 0.4, 0.0, 1.0)
        painted += np.float32(tone) * pressure * profile
        painted += shoulder * band(offset - lit * (half + 0.6), 1.1) * np.minimum(taper * 3, 1.0)
        footprint = np.maximum(footprint, groove)
    return np.maximum(painted, 0.02).astype(np.float32), footprint


def _fish_scales(canvas: Canvas, along: Field, across: Field, half_length: float, rng: Rng) -> Painted:
    """Chatter marks: crescents one behind the other, each a dark arc with a bright lip and a shallow dent."""
    step = log_uniform(rng, 6.0, 0.07 * canvas.side + 6.0)
    index = np.rint(along / np.float32(step))
    count = int(half_length / step) + 1
    table = rng.uniform(0.55, 1.1, 2 * count + 3).astype(np.float32)
    table[rng.random(table.size) < 0.12] = 0.0  # the tool skips sometimes
    size = table[np.clip(index + count + 1, 0, table.size - 1).astype(int)] * (np.abs(index) <= count)
    place = along - index * np.float32(step)
    wide = np.float32(step * rng.uniform(0.5, 1.1))
    # Each arc is a parabola that opens towards the direction of travel and thins out at its tips.
    sideways = np.square(across / np.maximum(wide * size, 1e-3))
    arc = np.abs(place + (sideways - 0.5) * np.float32(step * 0.42))
    thick = np.float32(max(0.11 * step * rng.uniform(0.7, 1.4), 0.9))
    crescent = np.where((size > 0) & (sideways < 1), thick * np.sqrt(np.maximum(1.1 - sideways, 0.0)) - arc, -FAR)
    lip = band(place + (sideways - 0.5) * np.float32(step * 0.42) - 1.6 * thick, 0.8 * float(thick))
    lip = lip * (sideways < 1) * (size > 0)
    dent = np.clip(1.0 - sideways, 0.0, 1.0) * (size > 0)
    tone = rng.uniform(0.15, 0.4)
    painted = canvas.clean - np.float32(tone) * np.clip(crescent + 0.4, 0.0, 1.0)
    painted += np.float32(rng.uniform(0.08, 0.3)) * lip + np.float32(rng.uniform(-0.08, 0.03)) * dent
    footprint = np.maximum(crescent, np.where((size > 0) & (lip > 0.6), 0.5, -FAR))
    return np.maximum(painted, 0.02).astype(np.float32), footprint.astype(np.float32)
