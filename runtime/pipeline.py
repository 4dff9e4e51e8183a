"""The path of a batch: prepare frames, run the engine, make predictions. Shared by every way to call the Predictor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, repeat
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .backends import OUTPUTS, Backend, Outputs
from .errors import BackendError, FrameError
from .fab.sem_metadata import about
from .frames import FrameSource, Prepared, checksum_of, cut_rows, decode_frame, describe, is_stored, path_of, prepare
from .lifetime import in_engine
from .manifest import Encoder
from .maps import Map
from .pixels import Pixels
from .prediction import Prediction, summarize
from .recipe import LEAST_FEATURE, MOST_FEATURE, FrameOptions, Recipe, directionless
from .windows import Tiles, cut, lay_out, stitch

_TOLERANCE = 0.01
"""Tolerance of probabilities, their sum and the map beyond [0, 1]. fp16 keeps 11 bits, so 64 of them miss by 0.001."""
_FINISHED_TOGETHER = 8
"""Frames whose full maps are held at once: 2 MB at 240 x 240, which still fits a core's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a frame is judged by. Taken once per frame, so a recipe swap falls between frames, never inside one.

    recipe_sha256: `recipe.sha256()`; empty where nobody reads it.
    side_files: whether the tools' text files beside frames are read.
    """

    recipe: Recipe
    options: FrameOptions
    recipe_sha256: str = ""
    side_files: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A prepared frame and what to judge it by. tiles: what the engine reads in place of `frame.pixels`, if any."""

    frame: Prepared
    setup: Setup
    tiles: TiledFrame | None = None

    @property
    def pixels(self) -> Pixels:
        """What the engine reads of a frame without tiles: uint8 [input height, input width]."""
        return self.frame.pixels

    @property
    def row_count(self) -> int:
        """How many rows of a batch the engine reads of the frame."""
        return 1 if self.tiles is None else len(self.tiles.of.layout)

    def rows(self) -> Sequence[Row]:
        """What the engine reads of the frame, one row of a batch each."""
        return [self] if self.tiles is None else [Tile(self, number) for number in range(self.row_count)]


class TiledFrame:
    """The tiles of a frame, and the engine's answers to them, which arrive in several batches.

    seconds: of the batches that held its tiles.
    """

    def __init__(self, of: Tiles) -> None:
        self.of = of
        self.seconds = 0.0
        self._answers: list[Outputs] = []

    def take(self, answers: Outputs, seconds: float) -> None:
        """The answers to the next tiles. One thread calls it, in the order of the tiles."""
        # Copies: views would keep whole batches alive.
        self._answers.append(Outputs(*(getattr(answers, name).copy() for name in OUTPUTS)))
        self.seconds += seconds

    def answers(self) -> Outputs:
        """The answers to all tiles, once all were taken."""
        return Outputs(*(np.concatenate([getattr(part, name) for part in self._answers]) for name in OUTPUTS))


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One row of a batch: tile `number` of a frame. The last one completes it."""

    job: Job
    number: int

    @property
    def _tiled(self) -> TiledFrame:
        assert self.job.tiles is not None
        return self.job.tiles

    @property
    def frame(self) -> Prepared:
        """The frame that the tile is of."""
        return self.job.frame

    @property
    def setup(self) -> Setup:
        """What the frame is judged by."""
        return self.job.setup

    @property
    def pixels(self) -> Pixels:
        """What the engine reads: uint8 [input height, input width]."""
        return self._tiled.of.pixels(self.number)

    @property
    def is_last(self) -> bool:
        """Whether no other tile of the frame follows."""
        return self.number == len(self._tiled.of.layout) - 1

    def take(self, answers: Outputs, seconds: float) -> None:
        """As `TiledFrame.take`."""
        self._tiled.take(answers, seconds)


Row: TypeAlias = "Job | Tile"


@dataclass(frozen=True, slots=True, eq=False)
class Pipeline:
    """Three steps, each free of state and safe to call from any thread."""

    encoder: Encoder
    smoothing_px: float
    backend: Backend
    batch_size: int

    def prepare(self, source: FrameSource, setup: Setup, index: int | None = None, name: str | None = None) -> Job:
        """Decode and resize one frame. name: by default that of `describe`. Raises FrameError."""
        began = time.perf_counter()
        name = name or describe(source, index)
        try:
            frame = decode_frame(source, setup.options, name, setup.side_files)
            pixel_size_nm, warnings = about(frame, setup.options)
            grey = np.asarray(frame.pixels)
            kept = cut_rows(grey, setup.options, name)
            layout = lay_out((kept.shape[0], kept.shape[1]), self.encoder, setup.options, name)
            tiles = None if layout is None else TiledFrame(cut(kept, layout, self.encoder))
            ready = prepare(grey, self.encoder, setup.options, name) if tiles is None else tiles.of.pixels(0)
        except MemoryError as exc:
            raise FrameError(name, "needs more memory than is left") from exc
        # Callers know what an array or an image held; a file may have changed before an overlay is drawn.
        checksum = checksum_of(grey) if is_stored(source) else None
        seconds = time.perf_counter() - began
        size = (grey.shape[0], grey.shape[1])
        warnings = (*frame.warnings, *warnings)
        path = path_of(source)
        return Job(Prepared(ready, size, name, path, seconds, checksum, warnings, pixel_size_nm), setup, tiles)

    def infer(self, rows: Sequence[Row]) -> tuple[Outputs, float]:
        """Run the engine on at most `batch_size` rows of one setup: outputs and seconds.

        Raises BackendError, also for invalid answers: a wrong shape, NaN, no probabilities, no map. Every threshold
        would let them pass. PredictorError when the interpreter is exiting.
        """
        began = time.perf_counter()
        recipe = rows[0].setup.recipe
        with self._memory_for(rows):
            with in_engine():
                outputs = self.backend.run(np.stack([row.pixels for row in rows]), recipe)
            fault = self._fault(outputs, [row.frame.source for row in rows], len(recipe.classes))
            if fault:
                raise BackendError(
                    f"{self.backend.description}: {fault}: the engine or the recipe is broken; try another precision, "
                    "or build it again"
                )
            sound = Outputs(*(_float32(getattr(outputs, name), name) for name in OUTPUTS))
        return sound, time.perf_counter() - began

    def _fault(self, outputs: Outputs, names: Sequence[str], classes: int) -> str:
        """The fault of the answers, with the name of the frame; "" if there is none."""
        shapes = ((len(names), classes), (len(names), *self.encoder.grid), (len(names), self.encoder.features))
        for name, shape in zip(OUTPUTS, shapes, strict=True):
            values = getattr(outputs, name, None)
            if type(values) is not np.ndarray:  # a masked array, for example, hides its content from checks
                return f"{name}: {type(values).__name__}, not an array"
            if values.dtype.kind != "f" or values.dtype.itemsize > 8 or values.shape != shape:
                return f"{name}: {values.dtype} {list(values.shape)}, not float32 {list(shape)}"
        return "" if _plausible(outputs) else self._wrong_value(outputs, names)

    def _wrong_value(self, outputs: Outputs, names: Sequence[str]) -> str:
        """The invalid value, with the name of its frame; "" if all are valid."""
        for name in OUTPUTS:
            values = getattr(outputs, name)
            sound = np.isfinite(values).reshape(len(names), -1).all(axis=1)
            if not sound.all():
                return f"{name} of {names[int(sound.argmin())]} is NaN or infinite"
            if name == "features":
                lost = directionless(values)
                if lost.any():
                    return f"{name} of {names[int(lost.argmax())]} are of a size at which float32 has no direction left"
                continue
            flat = values.reshape(len(names), -1)
            low, high = flat.min(axis=1), flat.max(axis=1)
            sound = (low >= -_TOLERANCE) & (high <= 1 + _TOLERANCE)
            if not sound.all():
                row = int(sound.argmin())
                return f"{name} of {names[row]}: {low[row]:g} to {high[row]:g}, not within [0, 1]"
        sums = outputs.probabilities.sum(axis=1)
        sound = np.abs(sums - 1) <= _TOLERANCE
        if not sound.all():
            row = int(sound.argmin())
            return f"the probabilities of {names[row]} sum to {sums[row]:g}, not to 1"
        return ""

    def hand_out(self, rows: Sequence[Row], outputs: Outputs, infer_seconds: float) -> None:
        """Give tiles their answers. One thread calls it, in the order of the batches, each before its `finish`."""
        at = 0
        for job, group in groupby(rows, key=lambda row: row.job if isinstance(row, Tile) else None):
            count = len(list(group))
            if job is not None and job.tiles is not None:
                job.tiles.take(_part(outputs, slice(at, at + count)), infer_seconds)
            at += count

    def finish(self, rows: Sequence[Row], outputs: Outputs, infer_seconds: float) -> list[Prediction]:
        """The Predictions of the frames that a batch completes, in order: of rows of one setup, with their outputs.

        Raises BackendError where memory is short.
        """
        predictions: list[Prediction] = []
        with self._memory_for(rows):
            at = 0
            for tiled, group in groupby(rows, key=lambda row: isinstance(row, Tile)):
                part = list(group)
                if tiled:
                    predictions += [self._join_tiles(row.job) for row in part if isinstance(row, Tile) and row.is_last]
                else:
                    jobs = [row for row in part if isinstance(row, Job)]
                    predictions += self._finish_whole(jobs, _part(outputs, slice(at, at + len(part))), infer_seconds)
                at += len(part)
        return predictions

    @contextmanager
    def _memory_for(self, rows: Sequence[Row]) -> Iterator[None]:
        try:
            yield
        except MemoryError as exc:
            raise BackendError(
                f"{self.backend.description}: no memory is left for a batch of {len(rows)}: use a smaller batch_size"
            ) from exc

    def _finish_whole(self, jobs: Sequence[Job], outputs: Outputs, infer_seconds: float) -> list[Prediction]:
        """Of frames without tiles."""
        predictions: list[Prediction] = []
        for start in range(0, len(jobs), _FINISHED_TOGETHER):
            rows = slice(start, start + _FINISHED_TOGETHER)
            began = time.perf_counter()
            part = _part(outputs, rows)
            summaries = self._summaries(part, jobs[0].setup.recipe)
            post_seconds = (time.perf_counter() - began) / len(summaries)
            predictions += [
                self._prediction(job, _Answer(summary, defect_map, features, self.encoder.image_size), *seconds)
                for job, summary, defect_map, features, seconds in zip(
                    jobs[rows],
                    summaries,
                    # Views would keep the whole batch alive.
                    map(np.copy, part.defect_map),
                    map(np.copy, part.features),
                    repeat((infer_seconds, post_seconds)),
                    strict=False,
                )
            ]
        return predictions

    def _join_tiles(self, job: Job) -> Prediction:
        """One answer from those of all tiles: the frame is what its most suspicious tile is.

        That is the tile of the highest defect score, the first of equals. It gives verdict, class, score and features;
        the map is stitched of all. So a frame is a defect if any of its tiles is, and thresholds are of whole frames.
        """
        assert job.tiles is not None
        began = time.perf_counter()
        layout, outputs = job.tiles.of.layout, job.tiles.answers()
        summaries: list[dict[str, Any]] = []
        for start in range(0, len(layout), _FINISHED_TOGETHER):
            part = _part(outputs, slice(start, start + _FINISHED_TOGETHER))
            summaries += self._summaries(part, job.setup.recipe)
        most = max(range(len(layout)), key=lambda number: summaries[number]["score"])
        summary = summaries[most] | {"peak": max(one["peak"] for one in summaries), "tiles": len(layout)}
        answer = _Answer(summary, stitch(outputs.defect_map, layout), outputs.features[most].copy(), layout.canvas)
        return self._prediction(job, answer, job.tiles.seconds, time.perf_counter() - began)

    def _summaries(self, outputs: Outputs, recipe: Recipe) -> list[dict[str, Any]]:
        return summarize(
            outputs.probabilities,
            outputs.defect_map,
            outputs.features,
            recipe,
            self.encoder.image_size,
            self.smoothing_px,
        )

    def _prediction(self, job: Job, answer: _Answer, infer_seconds: float, post_seconds: float) -> Prediction:
        options, point = job.setup.options, job.setup.recipe.operating_point
        return Prediction(
            **answer.summary,
            source=job.frame.source,
            patch_map=answer.patch_map,
            features=answer.features,
            frame_size=job.frame.frame_size,
            image_size=answer.image_size,
            ignored_rows=(options.ignore_top, options.ignore_bottom),
            defect_threshold=point.defect_threshold,
            pixel_threshold=point.pixel_threshold,
            smoothing_px=self.smoothing_px,
            backend=self.backend.name,
            timings_ms={
                "prepare": job.frame.seconds * 1e3,
                "infer": infer_seconds * 1e3,
                "postprocess": post_seconds * 1e3,
            },
            path=job.frame.path,
            frame_options=options,
            checksum=job.frame.checksum,
            warnings=job.frame.warnings,
            encoder_id=self.encoder.id,
            recipe_sha256=job.setup.recipe_sha256,
            pixel_size_nm=job.frame.pixel_size_nm,
        )

    def answer(self, jobs: Sequence[Job]) -> list[Prediction]:
        """`infer` and `finish` for jobs of one setup; tiles of several frames share batches."""
        rows = [row for job in jobs for row in job.rows()]
        predictions: list[Prediction] = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            outputs, seconds = self.infer(batch)
            self.hand_out(batch, outputs, seconds)
            predictions += self.finish(batch, outputs, seconds)
        return predictions


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What a frame's Prediction follows from: fields, map [rows, columns] of `image_size` pixels, features [F]."""

    summary: dict[str, Any]
    patch_map: Map
    features: Map
    image_size: tuple[int, int]


def _part(outputs: Outputs, rows: slice) -> Outputs:
    """Views of some rows."""
    return Outputs(outputs.probabilities[rows], outputs.defect_map[rows], outputs.features[rows])


def _plausible(outputs: Outputs) -> bool:
    """Whether all values are valid, for the whole batch in few calls of numpy. NaN is not valid."""
    probabilities, defect_map, features = (getattr(outputs, name) for name in OUTPUTS)
    largest = np.maximum(features.max(axis=1), -features.min(axis=1)).tolist()
    return bool(
        all(value == 0 or LEAST_FEATURE <= value <= MOST_FEATURE for value in largest)
        and -_TOLERANCE <= defect_map.min() <= defect_map.max() <= 1 + _TOLERANCE
        and -_TOLERANCE <= probabilities.min() <= probabilities.max() <= 1 + _TOLERANCE
        and np.abs(probabilities.sum(axis=1) - 1).max() <= _TOLERANCE
    )


def _float32(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """As float32, and clipped to [0, 1] where rounding went beyond it, except for features.

    So a score of 0 reaches a threshold of 0, no logarithm is NaN, and calibration reads the very numbers of verdicts.
    """
    found: NDArray[np.float32] = values.astype(np.float32, copy=False)
    if name != "features" and (found.min() < 0 or found.max() > 1):
        return np.clip(found, 0, 1)
    return found
