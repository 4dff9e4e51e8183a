"""Support views: a few variations of every support frame, encoded once; teaching then reads features only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from calibration.dataset import Sample
from runtime.manifest import Encoder
from runtime.recipe import FrameOptions

from ..model import heads
from ..model.graph import SemClipGraph
from ..progress import Progress
from .support_cache import Layout, SupportCache
from .support_pixels import Support, area_average, read_supports

LOSS_CELLS_PER_PATCH = 4
"""The loss grid is this much finer than the patches, so that defects of a few pixels do not average out."""
DEFECT_SHARE = 0.25
"""A cell of the loss grid counts as defect from this covered fraction on."""
VIEWS_VERSION = 1
"""Part of the cache key. Raise it with every change to how views are drawn, encoded or given targets."""
_ENCODE_BATCH = 8


@dataclass(frozen=True, slots=True)
class SupportFeatures:
    """Frozen features of V views.

    tokens: float16 [V, m, P, D], the patches of every level. cls: float32 [V, m D], z_C of eq. 20.
    value: float32 [V, m, P], the V path's logits (eq. 15) at tau_v = 1; they are not taught.
    targets: float32 [V, rows, columns] on the loss grid, 1 for defect; all NaN if the truth is unknown.
    labels: int64 [V]. unaugmented: bool [V], true for the first view of each support. group: int64 [V].
    frame: int64 [V], the support frame that the view is of; several supports are tiles of one frame, if it is tiled.
    """

    tokens: Tensor
    cls: Tensor
    value: Tensor
    targets: Tensor
    labels: Tensor
    unaugmented: Tensor
    group: Tensor
    frame: Tensor

    def last_level(self) -> SupportFeatures:
        """Features of the last level only, as from an encoder without the others."""
        width = self.tokens.shape[3]
        return replace(self, tokens=self.tokens[:, -1:], cls=self.cls[:, -width:], value=self.value[:, -1:])

    def part(self, views: Tensor) -> SupportFeatures:
        """Features of the views for which `views` (bool [V]) is true."""
        return SupportFeatures(*(getattr(self, field.name)[views] for field in fields(self)))

    def joined(self, other: SupportFeatures) -> SupportFeatures:
        """These views, then those of `other`."""
        return SupportFeatures(*(torch.cat([getattr(part, f.name) for part in (self, other)]) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class _Views:
    """The encoder's output for the V views of one support. It does not depend on the text, so new prompts can reuse it.

    tokens: float16 [V, m, P, D] and cls: float32 [V, m D], as in SupportFeatures.
    value: float16 [V, m, P, C], the V path's patches in the text space, each of unit length: eq. 15 reads directions.
    text_cls: float32 [V, m, C], the class token of every level in the text space.
    targets: float32 [V, rows, columns], as in SupportFeatures.
    """

    tokens: Tensor
    cls: Tensor
    value: Tensor
    text_cls: Tensor
    targets: Tensor

    @staticmethod
    def layout(encoder: Encoder, views: int) -> Layout:
        """Shape and dtype of every field."""
        levels, patches = len(encoder.levels), encoder.grid[0] * encoder.grid[1]
        return {
            "tokens": ((views, levels, patches, encoder.width), torch.float16),
            "cls": ((views, levels * encoder.width), torch.float32),
            "value": ((views, levels, patches, encoder.text_dim), torch.float16),
            "text_cls": ((views, levels, encoder.text_dim), torch.float32),
            "targets": ((views, *loss_grid(encoder.grid)), torch.float32),
        }

    def value_logits(self, text_seg: Tensor, redundancy: str) -> Tensor:
        """Eq. 15 at tau_v = 1: float32 [V, m, P]."""
        one = torch.tensor(1.0)
        levels = zip(self.value.unbind(1), self.text_cls.unbind(1), strict=True)
        return torch.stack([heads.value_logit(v, c, text_seg, one, redundancy) for v, c in levels], dim=1)


def encode_supports(
    graph: SemClipGraph,
    encoder: Encoder,
    supports: Sequence[Support],
    classes: Sequence[str],
    text_seg: Tensor,
    *,
    views: int,
    seed: int,
    groups: Sequence[str] | None = None,
    cache: SupportCache | None = None,
    progress: Progress | None = None,
) -> SupportFeatures:
    """Encode `views` variations of every support, the first one unaugmented.

    The variations of a support depend on `seed` and its pixels only, and each support is encoded separately. So its
    features are the same in every draw, and `cache` can store them.
    groups: names of all groups, where these supports are to be joined with others; by default their own.
    """
    total, levels, patches = len(supports) * views, len(encoder.levels), encoder.grid[0] * encoder.grid[1]
    tokens = torch.empty((total, levels, patches, encoder.width), dtype=torch.float16)
    cls = torch.empty((total, levels * encoder.width))
    value = torch.empty((total, levels, patches))
    targets = torch.empty((total, *loss_grid(encoder.grid)))
    for number, support in enumerate(supports):
        rows = slice(number * views, (number + 1) * views)
        found = _kept_or_encoded(graph, encoder, support, views, seed, cache)
        tokens[rows], cls[rows], targets[rows] = found.tokens, found.cls, found.targets
        value[rows] = found.value_logits(text_seg, graph.redundancy)
        del found  # free it before the next one: it is larger than the rows
        if progress is not None:
            progress(rows.stop, total)
    names = sorted({support.group for support in supports}) if groups is None else list(groups)
    labels, group, frame = (
        torch.tensor(numbers).repeat_interleave(views)
        for numbers in (
            [classes.index(support.label) for support in supports],
            [names.index(support.group) for support in supports],
            [support.number for support in supports],
        )
    )
    unaugmented = torch.arange(total) % views == 0
    return SupportFeatures(tokens, cls, value, targets, labels, unaugmented, group, frame)


def _kept_or_encoded(
    graph: SemClipGraph,
    encoder: Encoder,
    support: Support,
    views: int,
    seed: int,
    cache: SupportCache | None,
) -> _Views:
    """The views of one support, from the cache or encoded and stored there."""
    if cache is None:
        return _encode(graph, support, views, seed)
    key = _cache_key(graph, encoder, support, views, seed)
    kept = cache.read(key, _Views.layout(encoder, views))
    if kept is not None:
        return _Views(**kept)
    encoded = _encode(graph, support, views, seed)
    cache.write(key, {field.name: getattr(encoded, field.name) for field in fields(encoded)})
    return encoded


def _cache_key(graph: SemClipGraph, encoder: Encoder, support: Support, views: int, seed: int) -> str:
    """SHA-256, in hexadecimal, of everything that the views of a support and their features depend on.

    File, mask, frame options and resizing count by the resulting pixels.
    """
    about = {
        "views_version": VIEWS_VERSION,
        "encoder": encoder.id,  # weights, architecture and levels
        "image_size": encoder.image_size,
        "input_size": encoder.input_size,
        "dtype": str(graph.encoder.compute_dtype),
        "views": views,
        "seed": seed,
        "has_truth": support.cover is not None,
        # NumPy and Pillow draw the views, torch and open_clip encode them; other versions may round differently.
        "tools": {name: version(name) for name in ("numpy", "pillow", "torch", "open_clip_torch")},
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(support.frame).data)
    if support.cover is not None:
        digest.update(np.ascontiguousarray(support.cover).data)
    return digest.hexdigest()


def _encode(graph: SemClipGraph, support: Support, views: int, seed: int) -> _Views:
    """Draw the views of one support and encode them, _ENCODE_BATCH at a time."""
    frames, targets = _draw_views(support, graph.encoder.grid, views, seed)
    parts: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for start in range(0, views, _ENCODE_BATCH):
            levels = graph.encode(torch.from_numpy(np.stack(frames[start : start + _ENCODE_BATCH])))
            parts.append(
                (
                    torch.stack([z[:, 1:].half() for z in levels.tokens], dim=1),
                    torch.cat([heads.unit(z[:, 0]) for z in levels.tokens], dim=-1),
                    torch.stack([heads.unit(v).half() for v in levels.value], dim=1),
                    torch.stack([c.float() for c in levels.cls], dim=1),
                )
            )
    tokens, cls, value, text_cls = (torch.cat(part) for part in zip(*parts, strict=True))
    return _Views(tokens, cls, value, text_cls, torch.from_numpy(np.stack(targets)))


def load_views(
    encoder: Encoder, supports: Sequence[Sample], options: FrameOptions, views: int, seed: int
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.float32]]]:
    """`views` variations of every support, the first one unaugmented, with their targets on the loss grid.

    Raises FrameError, DatasetError.
    """
    frames, targets = [], []
    for support in read_supports(supports, encoder, options, seed):
        drawn, truths = _draw_views(support, encoder.grid, views, seed)
        frames += drawn
        targets += truths
    return frames, targets


def _draw_views(
    support: Support, grid: tuple[int, int], views: int, seed: int
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.float32]]]:
    """`views` frames, the first one unaugmented, and their targets; random by `seed` and the frame's pixels."""
    frame, cover = support.frame, support.cover
    content = hashlib.sha256(np.ascontiguousarray(frame).data).digest()
    rng = np.random.default_rng([seed, int.from_bytes(content, "big")])
    drawn = [(frame, cover), *(vary(frame, cover, rng) for _ in range(1, views))]
    return [changed for changed, _ in drawn], [_target(changed_cover, grid) for _, changed_cover in drawn]


def loss_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns on which maps and masks are compared, for an encoder's grid."""
    return grid[0] * LOSS_CELLS_PER_PATCH, grid[1] * LOSS_CELLS_PER_PATCH


def _target(cover: NDArray[np.float32] | None, grid: tuple[int, int]) -> NDArray[np.float32]:
    """The truth on the loss grid, from the covered fraction of every pixel."""
    size = loss_grid(grid)
    if cover is None:
        return np.full(size, np.nan, np.float32)
    cells = area_average(cover, size)
    peak = float(cells.max())
    # A defect thinner than a quarter of a cell counts by its fullest cells; otherwise its frame would be clean.
    least = min(DEFECT_SHARE, peak / 2) if peak > 0 else DEFECT_SHARE
    return (cells >= least).astype(np.float32)


def vary(
    frame: NDArray[np.uint8], cover: NDArray[np.float32] | None, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Another view: flips, transpose and a mild crop for both; dose, contrast and focus for the frame only."""
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
        truth = whole  # the crop would remove the defect while the label still names it
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
