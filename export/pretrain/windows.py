"""The training data of the embedded encoder: windows of generated frames, made while it trains.

A window is a square of whole patches. Small windows are cheap, and every patch has an exact label; the last phases of a
training use whole frames. Batch i depends on the seed and on i only, so that a resumed training gets the same batches.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..synthetic import CLASSES, make_frame, suitable_layouts

HELD_OUT_LAYOUTS = ("cells", "comb", "vias")
"""Never trained on: they stand for an unknown product."""
LAYOUT_SHARES = {"stack": 3.0, "motifs": 2.0, "logic": 2.0, "network": 2.0, "blocks": 1.5}
"""Relative frequency of layouts with many variants; all others have 1."""
FIRST_SEED = 2**40
"""Training frames have seeds from here to twice that. The demo and most tests use lower ones; benchmarks use any, but
other layouts."""
SIDE = 240
PATCH = 16
GRID = SIDE // PATCH
REDUCED_SHARE, LARGEST_SIDE = 0.5, 480
"""Fraction of frames made larger than SIDE, up to this size, and reduced like frames of tools."""
MIN_REDUCED_PX = 8.0
"""Defects with fewer pixels than this after the reduction are invisible; another frame replaces such a one."""
SMALL_PX, LEAST_KEPT = 80.0, 0.5
"""All frames with a defect of up to SMALL_PX are kept, and fewer the larger it is, down to the fraction LEAST_KEPT:
most missed defects are small."""
PAIRED_SHARE = 0.5
"""Fraction of good frames that are the frame before without its defect: same place, light and noise, so that the defect
is the only difference."""
TILTED_SHARE, MAX_TILT = 0.12, 1.6
"""Fraction of frames under tilt, which shortens the vertical axis by up to this factor (51 degrees)."""
ANNOTATED_SHARE = 0.1
"""Fraction of frames with words or a scale bar over them, like frames from reports. These are no defects."""
WORDS = ("A", "B", "C", "D", "a", "b", "c", "d", "e", "(a)", "(b)", "(c)", "a)", "b)", "A1", "SEM", "10 keV", "i")
LENGTHS = ("1 um", "2 um", "5 um", "10 um", "50 nm", "100 nm", "200 nm", "300 nm", "500 nm")
MIN_DEFECT_PX = 12
"""A window with fewer pixels of a defect than this counts as good."""


@dataclass(frozen=True, slots=True)
class Windows:
    """A batch. pixels: float32 [B, n, n] in [0, 255]; fraction: float32 [B, P], the defect's fraction of each patch.

    label: int64 [B], index into CLASSES. corner: int64 [B, 2], the window's first patch row and column in the frame.
    """

    pixels: Tensor
    fraction: Tensor
    label: Tensor
    corner: Tensor

    def to(self, device: torch.device) -> Windows:
        """The same on another device."""
        return Windows(*(getattr(self, field.name).to(device) for field in fields(self)))


class WindowStream(IterableDataset[Windows]):
    """Endless batches from batch number `first` on.

    patches: the window's side in patches (15: the whole frame). per_frame: windows cut from each generated frame.
    """

    def __init__(self, *, seed: int, first: int, batch: int, patches: int, per_frame: int) -> None:
        self.seed, self.first, self.batch, self.patches, self.per_frame = seed, first, batch, patches, per_frame

    def __iter__(self) -> Iterator[Windows]:
        # A worker makes every n-th batch; the loader returns them in turn, so their order stays.
        worker = torch.utils.data.get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number = self.first + start
        while True:
            yield self.make(number)
            number += step

    def make(self, number: int) -> Windows:
        """Batch `number`."""
        rng = np.random.default_rng([self.seed, self.patches, number])
        pixels, fractions, labels, corners = [], [], [], []
        before: tuple[_Shot, NDArray[np.float32]] | None = None  # the last frame with a defect, and its mask
        # Classes in turn from a random start: every batch holds all of them.
        order = rng.permutation(len(CLASSES))
        for i in range(self.batch // self.per_frame):
            label = CLASSES[order[i % len(CLASSES)]]
            if label != "good":
                whole, truth, shot = _reduced_frame(label, _draw_shot(label, rng), rng)
                before, around = (shot, truth), truth
            elif before is not None and rng.random() < PAIRED_SHARE:
                (shot, around), before = before, None
                whole, truth, _ = _reduced_frame(label, shot, rng)
            else:
                whole, truth, _ = _reduced_frame(label, _draw_shot(label, rng), rng)
                around = truth
            for _ in range(self.per_frame):
                image, mask, name, corner = _window(whole, truth, label, self.patches, rng, around)
                pixels.append(_vary(image, rng))
                fractions.append(mask.reshape(self.patches, PATCH, self.patches, PATCH).mean((1, 3)).ravel())
                labels.append(CLASSES.index(name))
                corners.append(corner)
        return Windows(
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.stack(fractions).astype(np.float32)),
            torch.tensor(labels),
            torch.tensor(corners),
        )


def window_loader(stream: WindowStream, workers: int) -> DataLoader[Windows]:
    """Batches of `stream`, made by worker processes (0: in the trainer)."""
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_leave_signals,
    )


def _leave_signals(worker: int) -> None:
    """Keep signals of the process group from a worker: the trainer saves, stops and ends its workers."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class _Shot:
    """The arguments of `make_frame` except for the class."""

    seed: int
    layout: str
    size: tuple[int, int]
    text_bar: bool


def _draw_shot(label: str, rng: np.random.Generator) -> _Shot:
    """Draw layout, seed, size and text bar for a frame of this class."""
    layouts = [name for name in suitable_layouts(label) if name not in HELD_OUT_LAYOUTS]
    shares = np.array([LAYOUT_SHARES.get(name, 1.0) for name in layouts])
    side = round(rng.uniform(SIDE, LARGEST_SIDE)) if rng.random() < REDUCED_SHARE else SIDE
    tilt = rng.uniform(1.1, MAX_TILT) if rng.random() < TILTED_SHARE else 1.0
    return _Shot(
        seed=FIRST_SEED + int(rng.integers(2**40)),
        layout=str(rng.choice(layouts, p=shares / shares.sum())),
        size=(round(side * tilt), side),
        text_bar=bool(rng.random() < 0.08),
    )


def _reduced_frame(
    label: str, shot: _Shot, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32], _Shot]:
    """A frame reduced to SIDE x SIDE, the defect's fraction [0, 1] of every pixel, and the shot that was taken.

    That is `shot`, or the first with a higher seed whose defect is kept.
    """
    while True:
        frame = make_frame(label, shot.seed, size=shot.size, layout=shot.layout, text_bar=shot.text_bar)
        mask = Image.fromarray((frame.mask > 0).astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
        truth = np.asarray(mask)
        if label == "good" or _is_kept(float(truth.sum()), rng):
            image = Image.fromarray(frame.image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            if rng.random() < ANNOTATED_SHARE:
                return *_annotated(image, truth, rng), shot
            return np.asarray(image), truth, shot
        shot = replace(shot, seed=shot.seed + 1)


def _is_kept(area: float, rng: np.random.Generator) -> bool:
    """Whether to train on a defect of `area` pixels."""
    return area >= MIN_REDUCED_PX and bool(rng.random() < max(LEAST_KEPT, min(1.0, SMALL_PX / area) ** 0.5))


def _annotated(
    image: Image.Image, truth: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The frame with letters or a scale bar over it, unless they hide the defect; and the visible truth."""
    height = int(rng.integers(9, 34))
    font = ImageFont.load_default(size=height)
    written = Image.new("L", image.size)
    draw = ImageDraw.Draw(written)
    left, top = (int(x) for x in rng.integers(2, SIDE - height, size=2))
    if rng.random() < 0.5:
        draw.text((left, top), str(rng.choice(WORDS)), fill=255, font=font)
    else:
        length, thick = int(rng.integers(20, 110)), int(rng.integers(1, 7))
        draw.text((left, top), str(rng.choice(LENGTHS)), fill=255, font=font)
        draw.rectangle((left, top + int(1.3 * height), left + length, top + int(1.3 * height) + thick), fill=255)
    ink = np.asarray(written, dtype=np.float32) / np.float32(255)
    visible: NDArray[np.float32] = truth * (1 - ink)
    if truth.any() and visible.sum() < 0.7 * truth.sum():
        return np.asarray(image), truth
    colour = np.float32(rng.choice([0, 255, int(rng.integers(256))]))
    if rng.random() < 0.2:  # on a plate
        rows, columns = np.nonzero(ink)
        plate = np.s_[max(rows.min() - 4, 0) : rows.max() + 5, max(columns.min() - 4, 0) : columns.max() + 5]
        if not truth[plate].any():
            image.paste(int(255 - colour), (plate[1].start, plate[0].start, plate[1].stop, plate[0].stop))
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels + ink * (colour - pixels)
    return np.clip(pixels, 0, 255).round().astype(np.uint8), visible


def _window(
    image: NDArray[np.uint8],
    mask: NDArray[np.float32],
    label: str,
    patches: int,
    rng: np.random.Generator,
    around: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], str, tuple[int, int]]:
    """Cut a window at any pixel, rotated at random; returns it with mask, label and patch position.

    around: the window shows some of this mask, which is that of the frame or of the paired frame with the defect.
    """
    turns, flip = int(rng.integers(4)), bool(rng.random() < 0.5)
    image, mask, around = np.rot90(image, turns), np.rot90(mask, turns), np.rot90(around, turns)
    if flip:
        image, mask, around = image[:, ::-1], mask[:, ::-1], around[:, ::-1]
    side = patches * PATCH
    room = SIDE - side
    if room:
        rows, columns = np.nonzero(around)
        enough = min(MIN_DEFECT_PX, 0.9 * float(mask.sum()))
        for _ in range(20):
            top, left = rng.integers(room + 1, size=2)
            if len(rows):  # around a pixel of the defect
                i = rng.integers(len(rows))
                top = np.clip(rows[i] - rng.integers(PATCH // 2, side - PATCH // 2), 0, room)
                left = np.clip(columns[i] - rng.integers(PATCH // 2, side - PATCH // 2), 0, room)
            part = mask[top : top + side, left : left + side]
            if part.sum() >= enough:
                break
        else:
            label, part = "good", np.zeros_like(part)  # too little of the defect is visible
        image, mask = image[top : top + side, left : left + side], part
    corner = tuple(int(rng.integers(GRID - patches + 1)) for _ in range(2))
    return image, mask, label, (corner[0], corner[1])


def _vary(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Vary dose, focus and detector settings beyond the generator's: gamma, gain, offset, blur or noise."""
    x: NDArray[Any] = image.astype(np.float32)
    if rng.random() < 0.3:
        x = 255 * (x / 255) ** np.float32(np.exp(rng.normal(0, 0.3)))
    if rng.random() < 0.5:
        x = (x - 128) * np.float32(np.exp(rng.normal(0, 0.25))) + 128 + np.float32(rng.normal(0, 15))
    if rng.random() < 0.15:
        x = ndimage.gaussian_filter(x, rng.uniform(0.3, 1.0))
    if rng.random() < 0.15:
        x = x + rng.standard_normal(x.shape, dtype=np.float32) * np.float32(rng.uniform(2, 10))
    clipped: NDArray[np.float32] = np.clip(x, 0, 255).round()
    return clipped
