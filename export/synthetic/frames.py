"""Synthetic SEM-like wafer frames with exact defect masks, fully determined by a seed.

    frame = make_frame("bridge", seed=7)          # image, mask, label, layout
    write_dataset("demo/frames", per_class=12)    # a data folder to teach from

A frame is made in three steps. Each has its own stream of random numbers, so that it can be repeated alone:

1. site: a layout of `layouts` in its materials, as a map of the yield of secondary electrons;
2. defect: a painter of `defects`, which also gives the exact footprint;
3. imaging: charging, focus, drift of the raster, brightness, shot noise, and the text bar.

So `make_frame("good", 7, layout="lines")` is the frame `make_frame("hole", 7, layout="lines")` without the hole.
Lengths scale with the frame's shorter side: a larger frame shows about the same field with more pixels. With `field`
they scale with that instead: a larger frame shows more of the wafer, and its defect is as small as before.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from runtime.files import new_folder

from .defects import PAINTERS
from .layouts import FEATURELESS, LAYOUTS, paint_site
from .surfaces import FAR, Canvas, Field, Rng, log_uniform, shade, smooth_noise

CLASSES = ("good", "bridge", "copper_residue", "hole", "infilm", "particle", "scratch")

MIN_SIDE = 64
MIN_FOOTPRINT = 8
"""Least pixels of the mask of a defect frame."""
FIELD_NAMES = ("path", "class", "has_mask", "mask_fraction", "width", "height", "group")

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
    """The layouts on which a class can occur: a bridge needs features, the others none.

    Raises ValueError for an unknown class.
    """
    if label not in CLASSES:
        raise ValueError(f'unknown class "{label}"; allowed: {", ".join(CLASSES)}')
    return tuple(name for name in LAYOUTS if label != "bridge" or name not in FEATURELESS)


def make_frame(
    label: str,
    seed: int,
    *,
    size: tuple[int, int] = (240, 240),
    layout: str | None = None,
    text_bar: bool = False,
    site: int | None = None,
    field: int | None = None,
    defect_px: tuple[int, int] | None = None,
) -> SyntheticFrame:
    """One frame; equal arguments give equal bytes.

    label: one of CLASSES. seed: 0 or more. size: height and width in px, 64 or more each.
    layout: one of `suitable_layouts(label)`; drawn from the seed by default. text_bar: draw the detector's bar.
    site: seed of the layout only, `seed` by default. Frames with the same site, layout, size and text bar show the
        same place of a wafer.
    field: side in px that lengths refer to, 64 to the frame's shorter side, which is the default.
    defect_px: least and most of the longer side of the box around the defect; any by default.
    Raises ValueError, with the allowed values, for an unknown label or layout, a layout that cannot show the label, a
    size or field that is too small, a field that is too large, or a negative seed.
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
    if field is not None and not MIN_SIDE <= field <= min(size):
        raise ValueError(f"field {field} is not a part of {size[0]}x{size[1]}; allowed: {MIN_SIDE} to {min(size)} px")
    layout = layout or str(_stream(seed, _CHOICE).choice(allowed))
    bar_rows = max(12, round(0.075 * size[0])) if text_bar else 0

    height, width = size[0] - bar_rows, size[1]
    side = min(height, width) if field is None else field
    pad = 6 + side // 32  # room for drift and for stage errors
    shape = (height + 2 * pad, width + 2 * pad)
    surface = paint_site(layout, _stream(site, _SITE, LAYOUTS.index(layout)), shape, field)
    canvas = Canvas(surface, shade(surface), (2 * pad + 2, 2 * pad + 2, height - 2, width - 2), side)
    imaging = _stream(seed, _IMAGING)
    optics = _draw_optics(imaging, (height, width), side, pad, abs(surface.feature - surface.ground))
    yields, mask = _add_defect(canvas, label, seed, optics, defect_px)
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
    layouts: Collection[str] = LAYOUTS,
    field: int | None = None,
    defect_px: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """A data folder of `per_class` frames of every class, on some of the layouts.

    Writes `images/<class>/<id>.png`, `masks/<class>/<id>.png` (8-bit grey; all zero for good) and `groups.csv`. A
    group is one simulated site: one to three frames, of different classes, that show the same layout. mask_fraction is
    the mask's part of the frame, 0..1. `progress` is called with the frames done and the frames in all.
    The folder appears whole or not at all. Raises FileExistsError if it exists. Raises ValueError as `make_frame`, for
    less than one frame per class, and for layouts that are unknown or cannot show every class.
    """
    folder = Path(folder)
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; allowed: 1 or more")
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} exists; remove it or name another folder")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; allowed: 0 or more")
    unknown = sorted(set(layouts) - set(LAYOUTS))
    if unknown or set(layouts) <= set(FEATURELESS):
        fault = f"unknown: {', '.join(unknown)}" if unknown else "none of them has the features that a bridge needs"
        raise ValueError(f"layouts {', '.join(layouts)}: {fault}; there are: {', '.join(LAYOUTS)}")
    plan = _plan_groups(per_class, _stream(seed, _DATASET), [name for name in LAYOUTS if name in layouts])
    with new_folder(folder) as scratch:
        rows: list[tuple[str, str, int, str, int, int, str]] = []
        for done, (label, number, group, layout, site, shot) in enumerate(plan, start=1):
            frame = make_frame(
                label,
                shot,
                size=size,
                layout=layout,
                text_bar=text_bar,
                site=site,
                field=field,
                defect_px=defect_px,
            )
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


def _plan_groups(per_class: int, rng: Rng, known: Sequence[str]) -> list[tuple[str, int, str, str, int, int]]:
    """Label, number, group, layout, site seed and shot seed of every frame; the classes of a group differ."""
    plan = []
    group = 0
    for number in range(1, per_class + 1):
        waiting = [CLASSES[i] for i in rng.permutation(len(CLASSES))]
        while waiting:
            members = [waiting.pop() for _ in range(min(int(rng.integers(1, 4)), len(waiting)))]
            group += 1
            layouts = [name for name in known if all(name in suitable_layouts(label) for label in members)]
            layout, site = str(rng.choice(layouts)), int(rng.integers(2**62))
            for label in members:
                plan.append((label, number, f"site-{group:04d}", layout, site, int(rng.integers(2**62))))
    return plan


def _stream(seed: int, *purpose: int) -> Rng:
    """A random stream per purpose, so that the draws of one step never change those of another."""
    return np.random.default_rng([seed, *purpose])


# ---- defect ----------------------------------------------------------------------------------------------------------


def _add_defect(
    canvas: Canvas, label: str, seed: int, optics: _Optics, defect_px: tuple[int, int] | None
) -> tuple[Field, NDArray[np.bool_]]:
    """The yield map with the defect on it, and the defect's mask in the frame (bool [H, W])."""
    if label == "good":
        return canvas.clean, np.zeros((optics.shifts.size, optics.width), dtype=bool)
    best: tuple[float, Field, NDArray[np.bool_]] | None = None
    for attempt in range(24 if defect_px is None else 5 * 24):
        rng = _stream(seed, _DEFECT, CLASSES.index(label), attempt)
        # Some defects are long for a small range, scratches most of all.
        side = max(canvas.side // 2 ** (attempt // 24), 32)
        yields, footprint = _paint(label, replace(canvas, side=side), rng)
        mask = _scan(footprint, optics) > 0
        area = int(np.count_nonzero(mask))
        if area < MIN_FOOTPRINT or area > 0.3 * mask.size:
            continue
        if defect_px is not None and not defect_px[0] <= _longer_side(mask) <= defect_px[1]:
            continue
        contrast = float(np.abs(yields - canvas.clean)[footprint > 0].mean())
        # The defect must be visible, or its label is wrong. Rose's criterion: its contrast is some five times the noise
        # over its area; the beam's spot spreads part of it.
        spread = area / np.sqrt(area + 4 * np.pi * optics.blur[0] * optics.blur[1])
        seen = min(contrast / 0.045, contrast * spread / (8.0 * optics.noise))
        if best is None or seen > best[0]:
            best = (seen, yields, mask)
        if seen >= 1:
            break
    if best is None:
        raise RuntimeError(f"no {label} could be placed with seed {seed}; this is a fault of the generator")
    return best[1], best[2]


def _paint(label: str, canvas: Canvas, rng: Rng) -> tuple[Field, Field]:
    """The yield map with one defect, and its footprint; on a large frame it is painted in a random part of it."""
    window = 3 * canvas.side
    height, width = canvas.clean.shape
    top, left, bottom, right = canvas.box
    if window >= min(bottom - top, right - left):
        return PAINTERS[label](canvas, rng)
    y, x = int(rng.integers(top, bottom - window)), int(rng.integers(left, right - window))
    part = np.s_[y : y + window, x : x + window]
    surface = replace(canvas.surface, edge=canvas.surface.edge[part], texture=canvas.surface.texture[part])
    inner = (canvas.side, canvas.side, 2 * canvas.side, 2 * canvas.side)
    painted, shown = PAINTERS[label](Canvas(surface, canvas.clean[part], inner, canvas.side), rng)
    yields, footprint = canvas.clean.copy(), np.full((height, width), -FAR, dtype=np.float32)
    yields[part], footprint[part] = painted, shown
    return yields, footprint


def _longer_side(mask: NDArray[np.bool_]) -> int:
    """Of the box around all that is true, in px."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(max(np.ptp(rows), np.ptp(columns))) + 1


# ---- imaging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Optics:
    """How one frame is taken; drawn before the defect is painted.

    shifts: float32 [H], where each raster line starts in the canvas (px). first_row: the canvas row of the first.
    width: pixels per line. blur: standard deviation of the beam's spot in y and x (px). noise: standard deviation of
    the shot noise at a yield of 0.4.
    """

    shifts: Field
    first_row: int
    width: int
    blur: tuple[float, float]
    noise: float


def _draw_optics(rng: Rng, shape: tuple[int, int], side: int, pad: int, contrast: float) -> _Optics:
    """Draw dose, focus, stage error and raster drift for a frame of this shape, within `pad` px.

    side: of the field, in px.
    contrast: yield between the pattern's materials, 0 without a pattern.
    """
    rows = np.arange(shape[0]) / shape[0]
    room = pad - 1.5
    drift = rng.normal(0, 0.25 * room) * rows + rng.normal(0, 0.8) * np.sin(2 * np.pi * (rows * rng.uniform(0.5, 4)))
    jitter = rng.normal(0, rng.choice([0.05, 0.15, 0.4]), shape[0])
    shifts = np.clip(drift - drift.mean() + jitter + rng.uniform(-0.5, 0.5) * room, -room, room) + pad
    focus = log_uniform(rng, 0.45, 1.5) * max(side / 240, 0.8) ** 0.5
    astigmatism = float(np.exp(rng.normal(0, 0.18)))
    return _Optics(
        shifts=shifts.astype(np.float32),
        first_row=int(rng.integers(2 * pad + 1)),
        width=shape[1],
        blur=(focus * astigmatism, focus / astigmatism),
        # Operators average frames until the pattern shows.
        noise=log_uniform(rng, 0.012, 0.02 + 0.25 * contrast if contrast > 0 else 0.1),
    )


def _scan(field: Field, optics: _Optics) -> Field:
    """Read a canvas line by line as the beam does: [H, W], with each line's shift."""
    height = optics.shifts.size
    start = np.floor(optics.shifts).astype(np.intp)
    part = (optics.shifts - start).astype(np.float32)[:, None]
    lines = np.arange(optics.first_row, optics.first_row + height)[:, None]
    columns = start[:, None] + np.arange(optics.width + 1)
    values: Field = field[lines, columns]
    return values[:, :-1] + part * (values[:, 1:] - values[:, :-1])


def _expose(yields: Field, optics: _Optics, rng: Rng) -> NDArray[np.uint8]:
    """The 8-bit frame of a yield map: charging, blur, raster, brightness, shot noise, in physical order."""
    signal = _charge(yields, rng)
    signal = _scan(ndimage.gaussian_filter(signal, optics.blur, truncate=3.0), optics)
    shape = height, width = signal.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    signal = signal * (1 + y * np.float32(rng.normal(0, 0.06)) + x * np.float32(rng.normal(0, 0.06)))
    if rng.random() < 0.08:  # carbon of an earlier scan at higher magnification: a darker rectangle
        top, left = (int(rng.uniform(0.05, 0.4) * n) for n in shape)
        signal[top : top + height // 2, left : left + width // 2] *= np.float32(rng.uniform(0.85, 0.95))
    grains = rng.standard_normal(shape, dtype=np.float32)
    if rng.random() < 0.4:  # a slow detector smears the noise along the line; keep its strength
        smear = np.float32(rng.uniform(0.1, 0.35))
        grains[:, 1:] = (grains[:, 1:] + smear * grains[:, :-1]) / np.sqrt(1 + smear**2)
    # Shot noise: its variance is proportional to the signal; the amplifier adds a little everywhere.
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
