"""What the Predictor returns: one small frozen record per frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .arguments import real_number, whole_number
from .errors import FrameError
from .frames import FrameSource, checksum_of, decode_frame, is_stored
from .maps import SIZES_NM, Map, Region, around_peak, find_regions, frame_scores, stretch, upsample
from .pixels import row_blocks
from .recipe import FrameOptions, Recipe
from .rows import Row, answer_fields, answer_row, error_in, failed_row
from .verdict import decide, defect_scores, novelty

_PAINTED = 1 << 22
"""Pixels of an overlay that are painted at once."""
_HEAT = 0.6 * 255
"""How much of the red covers the frame where the map is 1."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """One frame, one answer: act on `verdict`. `is_defect`, `label` and `regions` follow it and never contradict it.

    The answer:
    source: the frame's path, or its place in the call.
    verdict: a class, or "unknown" (out of distribution), or "cannot decide"; by the recipe's operating point.
    reason: why, in one sentence with the numbers that decided.
    is_defect: score >= defect_threshold. If the verdict is a class: whether it is a defect class.
    label, confidence: the class that the verdict names, or that it would name if it did not abstain, and its
        probability. "good" where `is_defect` is false, else the likeliest defect class.
    score: the defect score in [0, 1], of map_score and 1 - P(good) by the operating point's class_share.
    regions: where the defect is, at least one if `is_defect`, none otherwise.

    The parts of the answer, which are none by themselves:
    probabilities: by class name, `good` first; they sum to 1 (eq. 23, at the operating point's temperature).
    head_class: the likeliest of all classes, the paper's arg max (eq. 23); it may contradict the verdict.
    map_score: mean of the highest 1 % of the map, in [0, 1].
    peak: the map's maximum; with tiles, the highest of their maps before they are stitched, which the stitched map may
        stay below.
    novelty: 1 - the highest cosine between `features` and those of the support frames, in [0, 2].
    patch_map: float32 [rows, columns] in [0, 1], the map as it left the engine (eq. 17, scaled).
    features: float32 [F], what the classification head read.
    frame_size: [height, width] of the frame, ignored rows included; ignored_rows: (top, bottom).
    defect_threshold, pixel_threshold: as used here. backend: name of the engine that ran.
    timings_ms: prepare (decode and resize), infer (the batches this frame was in), postprocess.
    checksum: of the grey pixels that were read from `path` or from an `EncodedFrame`; None if they came from elsewhere.
    warnings: what may not have been meant about the frame: a hardly used range, an orientation tag.
    pixel_size_nm: sides (x, y) of a pixel of the frame in nm, by its tool or as stated; None if unknown.
    encoder_id: of the bundle's encoder. recipe_sha256: of the recipe that judged (`Recipe.sha256`).
    tiles: how many windows the engine read, 1 without tiles. With tiles, the tile of the highest defect score gives the
        verdict and all numbers but `peak`; the map is stitched of all.
    """

    ok = True

    source: str
    verdict: str
    reason: str
    is_defect: bool
    label: str
    confidence: float
    score: float
    probabilities: Mapping[str, float]
    head_class: str
    map_score: float = field(repr=False)
    peak: float = field(repr=False)
    novelty: float
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
    encoder_id: str = field(default="", repr=False)
    recipe_sha256: str = field(default="", repr=False)
    pixel_size_nm: tuple[float, float] | None = field(default=None, repr=False)
    tiles: int = field(default=1, repr=False)

    @property
    def judged_rows(self) -> slice:
        """The rows of the frame that are not ignored."""
        top, bottom = self.ignored_rows
        return slice(top, self.frame_size[0] - bottom)

    def defect_map(self, size: tuple[int, int] | None = None) -> Map:
        """The map, up-sampled and smoothed: float32 [height, width] in [0, 1], 0 in the ignored rows.

        size: [height, width] of the whole frame in the result; the frame's own by default. ValueError if it is none.
        """
        if size is not None and not (isinstance(size, Sequence) and len(size) == 2):
            raise ValueError(f"size must be (height, width), not {size!r:.60}")
        height, width = self.frame_size if size is None else (whole_number("size", side, 0) for side in size)
        scale = height / self.frame_size[0]
        top, bottom = (round(rows * scale) for rows in self.ignored_rows)
        with self._memory():
            full = np.zeros((height, width), np.float32)
            kept = (height - top - bottom, width)
            if min(kept) > 0:
                full[top : height - bottom] = upsample(self.patch_map, kept, self.image_size, self.smoothing_px)
        return full

    @contextmanager
    def _memory(self) -> Iterator[None]:
        try:
            yield
        except MemoryError as exc:
            raise FrameError(self.source, "needs more memory than is left") from exc

    def mask(self, threshold: float | None = None) -> NDArray[np.bool_]:
        """Where the defect is: bool [height, width] of the frame.

        Without a threshold, the pixels of `regions`: none if the frame is no defect. With one, the pixels whose map
        value reaches it, for every verdict. ValueError if it is no number.
        """
        if threshold is not None:
            threshold = real_number("threshold", threshold, -math.inf, math.inf)
        full = self.defect_map()
        with self._memory():
            return self._outlined(full)[0] if threshold is None else self._reaching(threshold, full)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Connected parts of `mask()`, strongest first: at least one if the frame is a defect, none if it is not.

        If no pixel of a defect reaches the pixel threshold, the only region surrounds the map's maximum: the connected
        part that is nearer to the maximum than to the map's median. Its `below_threshold` is true.
        """
        if not self.is_defect:
            return ()
        full = self.defect_map()
        with self._memory():
            mask, below = self._outlined(full)
            found = find_regions(mask, full)
        return tuple(replace(region, below_threshold=below).sized(self.pixel_size_nm) for region in found)

    def _outlined(self, full: Map) -> tuple[NDArray[np.bool_], bool]:
        """The pixels of `regions`, and whether they surround the peak because none reaches the threshold."""
        if not self.is_defect:
            return np.zeros(full.shape, np.bool_), False
        mask = self._reaching(self.pixel_threshold, full)
        below = not mask.any()
        if below:
            judged = mask[self.judged_rows]
            judged[:] = stretch(self._around_peak(), judged.shape)
        return mask, below

    def _around_peak(self) -> NDArray[np.bool_]:
        """The peak's own region among the judged rows; of the encoder's size at most, as the peak is no finer."""
        height, width = self.judged_rows.stop - self.judged_rows.start, self.frame_size[1]
        size = min(height, self.image_size[0]), min(width, self.image_size[1])
        small = upsample(self.patch_map, size, self.image_size, self.smoothing_px)
        return around_peak(small, float(np.median(self.patch_map)))

    def _reaching(self, threshold: float, full: Map) -> NDArray[np.bool_]:
        mask = full >= threshold
        # Otherwise a threshold of 0 would call the ignored rows defective.
        top, bottom = self.ignored_rows
        mask[:top] = False
        mask[mask.shape[0] - bottom :] = False
        return mask

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary, no arrays: act on `verdict`; what is under `raw` is what it was made of."""
        return {
            "source": self.source,
            "verdict": self.verdict,
            "reason": self.reason,
            "is_defect": self.is_defect,
            "label": self.label,
            "confidence": round(self.confidence, 6),
            "score": self.score,  # to the last digit, by which it may reach the threshold or not
            "defect_threshold": self.defect_threshold,
            "frame_size": list(self.frame_size),
            "ignored_rows": list(self.ignored_rows),
            "pixel_size_nm": None if self.pixel_size_nm is None else list(self.pixel_size_nm),
            "regions": [
                {
                    "x": region.x,
                    "y": region.y,
                    "width": region.width,
                    "height": region.height,
                    "area": region.area,
                    "centroid": [round(value, 2) for value in region.centroid],
                    "peak": round(region.peak, 6),
                    "below_threshold": region.below_threshold,
                    **{name: _shown(getattr(region, name)) for name in SIZES_NM},
                }
                for region in self.regions
            ],
            "raw": {
                "head_class": self.head_class,
                "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
                "map_score": round(self.map_score, 6),
                "peak": round(self.peak, 6),
                "novelty": round(self.novelty, 6),
            },
            "backend": self.backend,
            "timings_ms": {name: round(value, 3) for name, value in self.timings_ms.items()},
            **({"tiles": self.tiles} if self.tiles > 1 else {}),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }

    def to_row(self, *, features: bool = False) -> Row:
        """One flat row of plain Python values, by the columns of `rows.COLUMNS`: all that it takes to draw.

        features: whether to fill that column, the largest by far; None otherwise.
        """
        return answer_row(self, features=features)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prediction:
        """The inverse of `to_row`, equal to the bit: also from a row of a Parquet file that pyarrow or pandas has read.

        `regions` are those of the row. `path` is None, so `overlay` needs the frame or its name. `features` are empty
        if the row has none. Raises RowError with all faults, and for a row without an answer (`read_result`).
        """
        fields, regions = answer_fields(row)
        prediction = cls(**fields)
        vars(prediction)["regions"] = regions
        return prediction

    def overlay(self, frame: FrameSource | None = None) -> Image.Image:
        """The frame with the map in red and the outline of each region in yellow: a Pillow RGB image.

        frame: the frame, where it did not come from a file; a file is read again. Raises FrameError; also if the file,
        named here or not, holds other pixels than those that were judged.
        """
        if frame is None and self.path is None:
            raise FrameError(self.source, "overlay() needs the frame again, because it did not come from a file")
        source: FrameSource = self.path if frame is None else frame  # type: ignore[assignment]
        with self._memory():
            return self._drawn(source)

    def _drawn(self, source: FrameSource) -> Image.Image:
        grey = np.asarray(decode_frame(source, self.frame_options, self.source).pixels)
        if grey.shape != self.frame_size:
            raise FrameError(self.source, f"is {list(grey.shape)} now and was {list(self.frame_size)} when predicted")
        if is_stored(source) and self.checksum is not None and checksum_of(grey) != self.checksum:
            raise FrameError(self.source, "has changed since it was judged; predict it again")
        picture = Image.fromarray(grey).convert("RGB")
        if self.is_defect:
            self._paint(picture)
        return picture

    def _paint(self, picture: Image.Image) -> None:
        """The map and the outlines onto `picture`, in blocks of rows, to save memory with large frames."""
        rows, width = self.judged_rows, picture.width
        size = (rows.stop - rows.start, width)
        blocks = list(row_blocks(*size, _PAINTED))
        maps = (upsample(self.patch_map, size, self.image_size, self.smoothing_px, block) for block in blocks)
        # The full map is a mean of patches, so none of its values is above theirs.
        could = self.patch_map.max() >= self.pixel_threshold - 1e-6
        peak = None if could and any((part >= self.pixel_threshold).any() for part in maps) else self._around_peak()
        for start, stop in ((block.start, block.stop) for block in blocks):
            around = slice(max(0, start - 1), stop + 1)  # a row more on either side, for the outlines
            values = upsample(self.patch_map, size, self.image_size, self.smoothing_px, around)
            mask = values >= self.pixel_threshold if peak is None else stretch(peak, size, around)
            inner = slice(start - around.start, stop - around.start)
            edge = _outline(mask)[inner]
            heat = (values[inner] * np.float32(_HEAT)).astype(np.uint8)
            box = (0, rows.start + start, width, rows.start + stop)
            picture.paste((255, 40, 30), box, Image.fromarray(heat))
            picture.paste((255, 220, 0), box, Image.fromarray(edge.view(np.uint8) * np.uint8(255)))


@dataclass(frozen=True)
class FailedFrame:
    """Takes the place of a frame that could not be used in a stream, which continues."""

    ok = False

    source: str
    error: FrameError

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: source and error."""
        return {"source": self.source, "error": self.error.reason}

    def to_row(self, *, features: bool = False) -> Row:
        """As `Prediction.to_row`: source and error, all else None."""
        return failed_row(self.source, self.error.reason)


def read_result(row: Mapping[str, Any]) -> Prediction | FailedFrame:
    """What `to_row` made a row of. Raises RowError with all faults of the row."""
    source, error = error_in(row)
    return Prediction.from_row(row) if error is None else FailedFrame(source, FrameError(source, error))


def _shown(size: float | None) -> float | None:
    """Six digits of a size, which is never as sure as that."""
    return None if size is None else float(f"{size:.6g}")


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask pixels with a neighbour outside the mask."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def summarize(
    probabilities: Map, patch_maps: Map, features: Map, recipe: Recipe, image_size: tuple[int, int], smoothing_px: float
) -> list[dict[str, Any]]:
    """The fields of each Prediction that follow from the engine's outputs: [n, K], [n, rows, columns], [n, F].

    Many frames in few calls of numpy: each call hands over the GIL, which with several threads costs more than the
    computation.
    """
    point, classes = recipe.operating_point, recipe.classes
    best = probabilities.argmax(axis=1).tolist()
    full = upsample(patch_maps, image_size, image_size, smoothing_px)
    map_scores, peaks = frame_scores(full), full.max(axis=(1, 2)).tolist()
    scores = defect_scores(map_scores, probabilities, point.class_share).tolist()
    distances = novelty(features, recipe.unit_supports).tolist()
    summaries = []
    for k, row, score, map_score, peak, distance in zip(
        best, probabilities, scores, map_scores.tolist(), peaks, distances, strict=True
    ):
        answer = decide(point, classes, row, score, distance)
        summaries.append(
            {
                "verdict": answer.verdict,
                "reason": answer.reason,
                "is_defect": answer.is_defect,
                "label": answer.label,
                "confidence": answer.confidence,
                "score": score,
                "probabilities": dict(zip(classes, answer.probabilities, strict=True)),
                "head_class": classes[k],
                "map_score": map_score,
                "peak": peak,
                "novelty": distance,
            }
        )
    return summaries
