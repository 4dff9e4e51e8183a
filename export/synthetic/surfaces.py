"""The clean surface that defects are painted on, and the tools that layouts and defects are drawn with.

Fields are float32 [H, W]. Yields run from about 0 (black) to 1 (white); lengths are pixels. All randomness comes from
the caller's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field: TypeAlias = NDArray[np.float32]
Rng: TypeAlias = np.random.Generator

FAR = 1000.0
"""Signed distance (px) if there is no pattern edge nearby."""


@dataclass(frozen=True, slots=True)
class Surface:
    """A piece of wafer by the yield of secondary electrons.

    edge: signed distance to the nearest pattern edge in px, positive inside a feature, -FAR where there is none.
    texture: yield added on top: film roughness, grains, a metal level underneath.
    ground, feature: yield between the features and on them; `feature` may be the darker one.
    bloom, bloom_width: height (yield) and reach (px) of the bright band along edges.
    shadow: fraction of the yield that narrow spaces lose near an edge, 0..1.
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
    """A clean surface, and where a defect may be centred on it.

    clean: `shade(surface)`.
    box: first row, first column, end row, end column for the defect's centre.
    side: the field's side in px; defect sizes scale with it.
    """

    surface: Surface
    clean: Field
    box: tuple[int, int, int, int]
    side: int


Painted: TypeAlias = tuple[Field, Field]
Painter: TypeAlias = Callable[[Canvas, Rng], Painted]

Layout: TypeAlias = "tuple[Field, Field | float, float]"
"""What a layout painter returns: signed distance to the edges (px), texture (yield), half of the finest width (px)."""


def shade(surface: Surface) -> Field:
    """The yield map of a surface: materials, bright edges, shadowed spaces."""
    edge = surface.edge
    coverage: Field = np.clip(edge / 1.2 + 0.5, 0.0, 1.0)
    distance = np.abs(edge)
    yields = surface.ground + (surface.feature - surface.ground) * coverage + surface.texture
    # The walls of a narrow space catch electrons from its floor, which is darker close to them.
    yields *= 1.0 - surface.shadow * (1.0 - coverage) * np.exp(-distance / (5.0 * surface.bloom_width))
    # At an edge electrons leave through two faces, so it is bright.
    yields += surface.bloom * np.exp(-distance / surface.bloom_width)
    yields[:, 1:-1] += surface.relief * (coverage[:, 2:] - coverage[:, :-2])
    return yields


def smooth_noise(rng: Rng, shape: tuple[int, int], period: float, octaves: int = 1) -> Field:
    """Noise of mean 0 and standard deviation 1 with waves about `period` px long; more octaves are more fractal."""
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
    """A length between two others, uniform in its logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(max(high, low)))))


def random_place(canvas: Canvas, rng: Rng, wanted: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """A random place in the box, on a `wanted` pixel if there is one."""
    top, left, bottom, right = canvas.box
    for _ in range(40 if wanted is not None else 1):
        y, x = rng.uniform(top, bottom), rng.uniform(left, right)
        if wanted is None or wanted[int(y), int(x)]:
            break
    return y, x


def place_near(canvas: Canvas, centre: tuple[float, float], spread: float, rng: Rng) -> tuple[float, float]:
    """A place around `centre`, kept in the box."""
    top, left, bottom, right = canvas.box
    y, x = centre[0] + rng.normal(0, spread / 2), centre[1] + rng.normal(0, spread / 2)
    return float(np.clip(y, top, bottom)), float(np.clip(x, left, right))


def blob(shape: tuple[int, int], centre: tuple[float, float], radius: float, rng: Rng, wobble: float) -> Field:
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


def facets(
    shape: tuple[int, int], centre: tuple[float, float], radius: float, rng: Rng
) -> tuple[Field, NDArray[np.intp], int]:
    """A convex polygon (signed distance), the facet that each pixel belongs to, and the number of facets."""
    sides = int(rng.integers(4, 8))
    angles = (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * 2 * np.pi / sides + rng.uniform(0, 2 * np.pi)
    along, across = turned(shape, centre, 0.0)
    walls = np.stack([radius * rng.uniform(0.6, 1.0) - along * np.cos(a) - across * np.sin(a) for a in angles])
    return walls.min(axis=0).astype(np.float32), walls.argmin(axis=0), sides


def blend(base: Field, layer: Field | float, footprint: Field, strength: float = 1.0) -> Field:
    """Put `layer` over `base` where the footprint (px) is positive, with a one-pixel soft rim."""
    alpha = np.clip(footprint + 0.5, 0.0, 1.0) * np.float32(strength)
    blended: Field = base + alpha * (layer - base)
    return blended


def band(distance: Field, width: float) -> Field:
    """A bright line of Gaussian profile where `distance` is zero."""
    band: Field = np.exp(-np.square(distance / np.float32(width)))
    return band
