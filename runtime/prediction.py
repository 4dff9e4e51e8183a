"""What the Predictor answers: one small frozen record a frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import FrameError
from .frames import FrameSource, checksum_of, decode_frame
from .maps import Map, Region, find_regions, frame_scores, upsample
from .recipe import FrameOptions, Recipe
from .verdict import decide, novelty, temper

_PAINTED = 1 << 22
"""Pixels of an overlay that are painted at once."""
_HEAT = 0.6 * 255
"""How much of the red covers the frame where the map is 1."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The verdict on one frame. `label` and `is_defect` are two answers: the head's class, and the map's score.

    source: the frame's path, or its place in the call.
    verdict: the label, or "unknown" (unlike anything taught), or "cannot decide"; as the recipe's operating point asks.
    reason: why, in one sentence with the numbers that decided.
    label, confidence: the most probable class and its probability.
    probabilities: by class name, `good` first; they sum to 1 (eq. 23, at the operating point's temperature).
    novelty: 1 - the highest cosine between `features` and those of the support frames, in [0, 2].
    score: mean of the highest 1 % of the map, in [0, 1]. peak: the map's maximum. is_defect: score >= threshold.
    patch_map: float32 [rows, columns] in [0, 1], the map as it left the engine (eq. 17, scaled).
    features: float32 [F], what the classification head read.
    frame_size: [height, width] of the frame, ignored rows included; ignored_rows: (top, bottom).
    defect_threshold, pixel_threshold: as used here. encoder: name of the backend and artifact that ran.
    timings_ms: prepare (decode and resize), infer (the batch this frame was in), postprocess.
    checksum: of the grey pixels that were read from `path`; None if they came from elsewhere.
    warnings: what was understood about the frame and may not have been meant; a hardly used range, an orientation tag.
    """

    ok = True

    source: str
    verdict: str
    reason: str
    label: str
    confidence: float
    probabilities: Mapping[str, float]
    novelty: float
    is_defect: bool
    score: float
    peak: float
    patch_map: Map = field(repr=False)
    features: Map = field(repr=False)
    frame_size: tuple[int, int]
    image_size: tuple[int, int] = field(repr=False)
    ignored_rows: tuple[int, int]
    defect_threshold: float
    pixel_threshold: float
    smoothing_px: float = field(repr=False)
    backend: str
    timings_ms: Mapping[str, float] = field(repr=False)
    path: str | None = field(default=None, repr=False)
    frame_options: FrameOptions = field(default_factory=FrameOptions, repr=False)
    checksum: int | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = field(default=(), repr=False)

    @property
    def judged_rows(self) -> slice:
        """The rows of the frame that are not ignored."""
        top, bottom = self.ignored_rows
        return slice(top, self.frame_size[0] - bottom)

    def defect_map(self, size: tuple[int, int] | None = None) -> Map:
        """The map, up-sampled and smoothed: float32 [height, width] in [0, 1], 0 in the ignored rows.

        size: [height, width] of the whole frame in the result; the frame's own by default.
        """
        height, width = size or self.frame_size
        scale = height / self.frame_size[0]
        top, bottom = (round(rows * scale) for rows in self.ignored_rows)
        full = np.zeros((height, width), np.float32)
        kept = (height - top - bottom, width)
        if min(kept) > 0:
            full[top : height - bottom] = upsample(self.patch_map, kept, self.image_size, self.smoothing_px)
        return full

    def mask(self, threshold: float | None = None) -> NDArray[np.bool_]:
        """Pixels whose map value reaches `threshold` (the recipe's by default): bool [height, width] of the frame."""
        limit = self.pixel_threshold if threshold is None else threshold
        mask = self.defect_map() >= limit
        # A threshold of 0 would otherwise call the rows that nobody looked at defective.
        top, bottom = self.ignored_rows
        mask[:top] = False
        mask[mask.shape[0] - bottom :] = False
        return mask

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Connected parts of `mask()`, strongest first, if the frame is a defect; none if it is not."""
        return find_regions(self.mask(), self.defect_map()) if self.is_defect else ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; no arrays."""
        return {
            "source": self.source,
            "verdict": self.verdict,
            "reason": self.reason,
            "label": self.label,
            "confidence": round(self.confidence, 6),
            "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
            "novelty": round(self.novelty, 6),
            "score": round(self.score, 6),
            "peak": round(self.peak, 6),
            "is_defect": self.is_defect,
            "defect_threshold": self.defect_threshold,
            "frame_size": list(self.frame_size),
            "ignored_rows": list(self.ignored_rows),
            "regions": [
                {
                    "x": region.x,
                    "y": region.y,
                    "width": region.width,
                    "height": region.height,
                    "area": region.area,
                    "centroid": [round(value, 2) for value in region.centroid],
                    "peak": round(region.peak, 6),
                }
                for region in self.regions
            ],
            "backend": self.backend,
            "timings_ms": {name: round(value, 3) for name, value in self.timings_ms.items()},
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }

    def overlay(self, frame: FrameSource | None = None) -> Image.Image:
        """The frame with the map in red and the outline of each region in yellow: a Pillow RGB image.

        frame: the frame, where it did not come from a file; a file is read again. Raises FrameError; also if the file
        holds other pixels than those that were judged.
        """
        if frame is None and self.path is None:
            raise FrameError(self.source, "overlay() needs the frame again, because it did not come from a file")
        again = frame is None
        source: FrameSource = self.path if again else frame  # type: ignore[assignment]
        grey = np.asarray(decode_frame(source, self.frame_options, self.source).pixels)
        if grey.shape != self.frame_size:
            raise FrameError(self.source, f"is {list(grey.shape)} now and was {list(self.frame_size)} when predicted")
        if again and self.checksum is not None and checksum_of(grey) != self.checksum:
            raise FrameError(self.source, "has changed since it was judged; predict it again")
        picture = Image.fromarray(grey).convert("RGB")
        if self.is_defect:
            self._paint(picture)
        return picture

    def _paint(self, picture: Image.Image) -> None:
        """The map and the outlines onto `picture`, in blocks of rows: beside a large frame is no room for more."""
        rows, width = self.judged_rows, picture.width
        size = (rows.stop - rows.start, width)
        step = max(1, _PAINTED // width)
        for start in range(0, size[0], step):
            stop = min(size[0], start + step)
            around = slice(max(0, start - 1), stop + 1)  # a row more on either side, for the outlines
            values = upsample(self.patch_map, size, self.image_size, self.smoothing_px, around)
            inner = slice(start - around.start, stop - around.start)
            edge = _outline(values >= self.pixel_threshold)[inner]
            heat = (values[inner] * np.float32(_HEAT)).astype(np.uint8)
            box = (0, rows.start + start, width, rows.start + stop)
            picture.paste((255, 40, 30), box, Image.fromarray(heat))
            picture.paste((255, 220, 0), box, Image.fromarray(edge.view(np.uint8) * np.uint8(255)))


@dataclass(frozen=True)
class FailedFrame:
    """Stands in a stream for a frame that could not be used; the stream goes on."""

    ok = False

    source: str
    error: FrameError

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: source and error."""
        return {"source": self.source, "error": self.error.reason}


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask pixels with a neighbour outside the mask."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def summarize(
    probabilities: Map, patch_maps: Map, features: Map, recipe: Recipe, image_size: tuple[int, int], smoothing_px: float
) -> list[dict[str, Any]]:
    """The fields of each Prediction that follow from the engine's outputs: [n, K], [n, rows, columns], [n, F].

    Many frames in few calls of numpy: each of these hands the GIL over, which with several threads costs more than
    what it computes.
    """
    point, classes = recipe.operating_point, recipe.classes
    best = probabilities.argmax(axis=1).tolist()
    tempered = temper(probabilities, point.temperature)
    full = upsample(patch_maps, image_size, image_size, smoothing_px)
    scores, peaks = frame_scores(full).tolist(), full.max(axis=(1, 2)).tolist()
    distances = novelty(features, recipe.unit_supports).tolist()
    summaries = []
    for k, row, values, score, peak, distance in zip(
        best, tempered, tempered.tolist(), scores, peaks, distances, strict=True
    ):
        verdict, reason = decide(point, classes, row, k, score, distance)
        summaries.append(
            {
                "verdict": verdict,
                "reason": reason,
                "label": classes[k],
                "confidence": values[k],
                "probabilities": dict(zip(classes, values, strict=True)),
                "novelty": distance,
                "score": score,
                "peak": peak,
                "is_defect": score >= point.defect_threshold,
            }
        )
    return summaries
