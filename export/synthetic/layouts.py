"""Layouts of one wafer site: what is printed there, and in which materials.

A layout painter draws geometry only: the edges of the pattern, and what lies underneath. `paint_site` adds rough edges
and materials; the result is the clean surface that a defect is painted on.

Shapes are [H, W] in px; a `unit` is the field's side / 260, so that patterns scale with the field.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .layout_arrays import paint_contacts, paint_islands, paint_motifs, paint_rings, paint_vias
from .layout_films import paint_blank, paint_grain, paint_rough
from .layout_lines import paint_lines, paint_mesh, paint_pads, paint_waves
from .layout_routing import paint_blocks, paint_cells, paint_comb, paint_logic, paint_network, paint_serpentine
from .surfaces import (
    Layout,
    Rng,
    Surface,
    log_uniform,
    smooth_noise,
)

FEATURELESS = ("blank", "grain", "rough")
"""Layouts without any pattern edge."""
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
"""Layouts of the two levels of a stack; none that training leaves out (`pretrain.windows`)."""


def paint_site(layout: str, rng: Rng, shape: tuple[int, int], field: int | None = None) -> Surface:
    """A layout with rough edges, in materials of random yield.

    field: side in px that the pattern's lengths refer to; the shorter side of `shape` by default.
    """
    unit = (field or min(shape)) / 260
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


def _stack(rng: Rng, shape: tuple[int, int], unit: float) -> Layout:
    """Two levels, each of any layout in STACKED: one on top, the other showing through from below, a little blurred."""
    top, below = (str(name) for name in rng.choice(STACKED, 2))
    edge, texture, finest = _PAINTERS[top](rng, shape, unit)
    buried = np.asarray(_PAINTERS[below](rng, shape, unit)[0])
    ramp = rng.uniform(1.0, 4.0) * max(unit, 0.8)
    depth = log_uniform(rng, 0.02, 0.09) * rng.choice([-1, 1])
    shown = np.clip(buried / np.float32(ramp) + 0.5, 0, 1) * np.float32(depth)
    return edge, texture + shown, finest


_PAINTERS: dict[str, Callable[[Rng, tuple[int, int], float], Layout]] = {
    "lines": paint_lines,
    "contacts": paint_contacts,
    "vias": paint_vias,
    "logic": paint_logic,
    "cells": paint_cells,
    "comb": paint_comb,
    "pads": paint_pads,
    "blank": paint_blank,
    "grain": paint_grain,
    "serpentine": paint_serpentine,
    "mesh": paint_mesh,
    "islands": paint_islands,
    "rough": paint_rough,
    "motifs": paint_motifs,
    "stack": _stack,
    "network": paint_network,
    "blocks": paint_blocks,
    "rings": paint_rings,
    "waves": paint_waves,
}
LAYOUTS = tuple(_PAINTERS)
"""Their order is part of the seeds of frames: append new ones."""
