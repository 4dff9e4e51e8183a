"""Support views: a few variations of every support frame, encoded once and cached; teaching then never sees a pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from calibration.dataset import Sample
from runtime.frames import cut_rows, prepare
from runtime.manifest import Encoder
from runtime.recipe import FrameOptions

from . import heads
from .graph import SemClipGraph

LOSS_CELLS_PER_PATCH = 4
"""The loss grid is this much finer than the patches, or defects of a few pixels would vanish in the average."""
DEFECT_SHARE = 0.25
"""A cell of the loss grid counts as defect from this covered share on."""
_ENCODE_BATCH = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SupportFeatures:
    """Frozen features of V views.

    tokens: float16 [V, m, P, D], the patches of every level. cls: float32 [V, m D], z_C of eq. 20.
    value: float32 [V, m, P], the V path's logits (eq. 15) at tau_v = 1; nothing in them is taught.
    targets: float32 [V, rows, columns] on the loss grid, 1 where defect; NaN throughout where the truth is unknown.
    labels: int64 [V]. plain: bool [V], the unchanged view of each support. group: int64 [V], views of one origin.
    """

    tokens: Tensor
    cls: Tensor
    value: Tensor
    targets: Tensor
    labels: Tensor
    plain: Tensor
    group: Tensor

    def part(self, views: Tensor) -> SupportFeatures:
        """Only the views for which `views` (bool [V]) is true."""
        return SupportFeatures(*(getattr(self, field.name)[views] for field in fields(self)))


def encode_supports(
    graph: SemClipGraph,
    encoder: Encoder,
    supports: Sequence[Sample],
    classes: Sequence[str],
    text_seg: Tensor,
    options: FrameOptions,
    *,
    views: int,
    seed: int,
    progress: Progress | None = None,
) -> SupportFeatures:
    """Encode `views` variations of every support, the first one unchanged. Raises FrameError, DatasetError."""
    frames, targets = _load_views(encoder, supports, options, views, seed)
    total = len(frames)
    patches = encoder.grid[0] * encoder.grid[1]
    tokens = torch.empty((total, len(encoder.levels), patches, encoder.width), dtype=torch.float16)
    cls = torch.empty((total, len(encoder.levels) * encoder.width))
    value = torch.empty((total, len(encoder.levels), patches))
    with torch.inference_mode():
        for start in range(0, total, _ENCODE_BATCH):
            rows = slice(start, min(start + _ENCODE_BATCH, total))
            levels = graph.encode(torch.from_numpy(np.stack(frames[rows])))
            cls[rows] = torch.cat([heads.unit(z[:, 0]) for z in levels.tokens], dim=-1)
            for j, z in enumerate(levels.tokens):
                tokens[rows, j] = z[:, 1:].half()
                value[rows, j] = heads.value_logit(
                    levels.value[j], levels.cls[j], text_seg, torch.tensor(1.0), graph.redundancy
                )
            if progress is not None:
                progress(rows.stop, total)
    labels = torch.tensor([classes.index(sample.label) for sample in supports]).repeat_interleave(views)
    plain = torch.arange(total) % views == 0
    names = sorted({sample.group for sample in supports})
    group = torch.tensor([names.index(sample.group) for sample in supports]).repeat_interleave(views)
    return SupportFeatures(tokens, cls, value, torch.from_numpy(np.stack(targets)), labels, plain, group)


def area_average(mask: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float32]:
    """The mask's covered share of each cell of a [height, width] grid, float32 in [0, 1].

    A pixel counts in the cell that its centre is in, so none is lost where the sizes do not divide.
    """
    image = Image.fromarray(np.asarray(mask, dtype=np.float32))
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BOX), dtype=np.float32)


def _load_views(
    encoder: Encoder, supports: Sequence[Sample], options: FrameOptions, views: int, seed: int
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.float32]]]:
    frames, targets = [], []
    for index, sample in enumerate(supports):
        pixels = sample.read(options)
        mask = sample.read_mask((pixels.shape[0], pixels.shape[1]))
        frame = prepare(pixels, encoder, options, str(sample.path))
        cover = None
        if mask is not None:
            cover = area_average(cut_rows(mask, options, str(sample.mask)), encoder.input_size)
        rng = np.random.default_rng([seed, index])
        for view in range(views):
            changed, changed_cover = (frame, cover) if view == 0 else vary(frame, cover, rng)
            frames.append(changed)
            targets.append(_target(changed_cover, encoder.grid))
    return frames, targets


def _target(cover: NDArray[np.float32] | None, grid: tuple[int, int]) -> NDArray[np.float32]:
    """The loss grid's truth from the covered share of every pixel."""
    size = (grid[0] * LOSS_CELLS_PER_PATCH, grid[1] * LOSS_CELLS_PER_PATCH)
    if cover is None:
        return np.full(size, np.nan, np.float32)
    cells = area_average(cover, size)
    peak = float(cells.max())
    # A defect thinner than a quarter of a cell would teach that its frame is clean; its fullest cells stand for it.
    share = min(DEFECT_SHARE, peak / 2) if peak > 0 else DEFECT_SHARE
    return (cells >= share).astype(np.float32)


def vary(
    frame: NDArray[np.uint8], cover: NDArray[np.float32] | None, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Another view: flips, transpose and a mild crop for both; dose, contrast and focus for the frame alone."""
    image = Image.fromarray(frame)
    truth = None if cover is None else Image.fromarray(cover)
    flips = [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE]
    for flip, wanted in zip(flips, rng.random(3) < 0.5, strict=True):
        if wanted and (flip is not Image.Transpose.TRANSPOSE or image.width == image.height):
            image = image.transpose(flip)
            truth = None if truth is None else truth.transpose(flip)
    box = _crop_box(image.width, image.height, rng)
    whole = truth
    if truth is not None:
        truth = truth.resize(truth.size, Image.Resampling.BOX, box=box)
    lost_defect = (
        truth is not None and whole is not None and np.any(np.asarray(whole)) and not np.any(np.asarray(truth) > 0.05)
    )
    if lost_defect:
        truth = whole  # the crop would cut the defect away while the label still names it
    else:
        image = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * image.height / 240))
    gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-16, 16)
    grey = np.asarray(image, dtype=np.float32)
    grey = np.clip(np.rint((grey - grey.mean()) * gain + grey.mean() + offset), 0, 255)
    return grey.astype(np.uint8), None if truth is None else np.array(truth, dtype=np.float32)


def _crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    share = rng.uniform(0.88, 1.0)
    left, top = rng.uniform(0, 1 - share, 2)
    return left * width, top * height, (left + share) * width, (top + share) * height
