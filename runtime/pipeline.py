"""The path of a batch: prepare frames, run the engine, make predictions. Shared by every way to call the Predictor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import OUTPUTS, Backend, Outputs
from .errors import BackendError, FrameError
from .fab.sem_metadata import about
from .frames import FrameSource, Prepared, checksum_of, decode_frame, describe, is_stored, path_of, prepare
from .lifetime import in_engine
from .manifest import Encoder
from .prediction import Prediction, summarize
from .recipe import LEAST_FEATURE, MOST_FEATURE, FrameOptions, Recipe, directionless

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
    """A prepared frame and what to judge it by."""

    frame: Prepared
    setup: Setup


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
            ready = prepare(grey, self.encoder, setup.options, name)
        except MemoryError as exc:
            raise FrameError(name, "needs more memory than is left") from exc
        # Callers know what an array or an image held; a file may have changed before an overlay is drawn.
        checksum = checksum_of(grey) if is_stored(source) else None
        seconds = time.perf_counter() - began
        size = (grey.shape[0], grey.shape[1])
        warnings = (*frame.warnings, *warnings)
        return Job(Prepared(ready, size, name, path_of(source), seconds, checksum, warnings, pixel_size_nm), setup)

    def infer(self, jobs: Sequence[Job]) -> tuple[Outputs, float]:
        """Run the engine on at most `batch_size` jobs of one setup: outputs and seconds.

        Raises BackendError, also for invalid answers: a wrong shape, NaN, no probabilities, no map. Every threshold
        would let them pass. PredictorError when the interpreter is exiting.
        """
        began = time.perf_counter()
        recipe = jobs[0].setup.recipe
        with self._memory_for(jobs):
            with in_engine():
                outputs = self.backend.run(np.stack([job.frame.pixels for job in jobs]), recipe)
            fault = self._fault(outputs, [job.frame.source for job in jobs], len(recipe.classes))
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

    def finish(self, jobs: Sequence[Job], outputs: Outputs, infer_seconds: float) -> list[Prediction]:
        """The Predictions of a batch: jobs of one setup, and a row of `outputs` for each.

        Raises BackendError where memory is short.
        """
        predictions: list[Prediction] = []
        with self._memory_for(jobs):
            for start in range(0, len(jobs), _FINISHED_TOGETHER):
                rows = slice(start, start + _FINISHED_TOGETHER)
                part = Outputs(outputs.probabilities[rows], outputs.defect_map[rows], outputs.features[rows])
                predictions += self._finish_part(jobs[rows], part, infer_seconds)
        return predictions

    @contextmanager
    def _memory_for(self, jobs: Sequence[Job]) -> Iterator[None]:
        try:
            yield
        except MemoryError as exc:
            raise BackendError(
                f"{self.backend.description}: no memory is left for a batch of {len(jobs)}: use a smaller batch_size"
            ) from exc

    def _finish_part(self, jobs: Sequence[Job], outputs: Outputs, infer_seconds: float) -> list[Prediction]:
        began = time.perf_counter()
        recipe, options = jobs[0].setup.recipe, jobs[0].setup.options
        image_size, point = self.encoder.image_size, recipe.operating_point
        summaries = summarize(
            outputs.probabilities, outputs.defect_map, outputs.features, recipe, image_size, self.smoothing_px
        )
        post_ms = (time.perf_counter() - began) / len(jobs) * 1e3
        return [
            Prediction(
                **summary,
                source=job.frame.source,
                # Views would keep the whole batch alive.
                patch_map=outputs.defect_map[row].copy(),
                features=outputs.features[row].copy(),
                frame_size=job.frame.frame_size,
                image_size=image_size,
                ignored_rows=(options.ignore_top, options.ignore_bottom),
                defect_threshold=point.defect_threshold,
                pixel_threshold=point.pixel_threshold,
                smoothing_px=self.smoothing_px,
                backend=self.backend.name,
                timings_ms={
                    "prepare": job.frame.seconds * 1e3,
                    "infer": infer_seconds * 1e3,
                    "postprocess": post_ms,
                },
                path=job.frame.path,
                frame_options=options,
                checksum=job.frame.checksum,
                warnings=job.frame.warnings,
                encoder_id=self.encoder.id,
                recipe_sha256=jobs[0].setup.recipe_sha256,
                pixel_size_nm=job.frame.pixel_size_nm,
            )
            for row, (job, summary) in enumerate(zip(jobs, summaries, strict=True))
        ]

    def answer(self, jobs: Sequence[Job]) -> list[Prediction]:
        """`infer` and `finish` for jobs of one setup, at most `batch_size`."""
        outputs, seconds = self.infer(jobs)
        return self.finish(jobs, outputs, seconds)


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
