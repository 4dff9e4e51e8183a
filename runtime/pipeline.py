"""The path of a batch: prepare frames, run the engine, make predictions. Shared by every way to call the Predictor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backends import OUTPUTS, Backend, Outputs
from .errors import BackendError
from .frames import FrameSource, Prepared, checksum_of, decode_frame, describe, path_of, prepare
from .manifest import Encoder
from .prediction import Prediction, summarize
from .recipe import FrameOptions, Recipe

_FINISHED_TOGETHER = 8
"""Frames whose full maps are held at once: 2 MB at 240 x 240, which still fits a core's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a frame is judged by. Taken once per frame, so a recipe swap falls between frames, never inside one."""

    recipe: Recipe
    options: FrameOptions


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

    def prepare(self, source: FrameSource, setup: Setup, index: int | None = None) -> Job:
        """Decode and resize one frame. Raises FrameError."""
        began = time.perf_counter()
        name = describe(source, index)
        frame = decode_frame(source, setup.options, name)
        grey = np.asarray(frame.pixels)
        ready = prepare(grey, self.encoder, setup.options, name)
        path = path_of(source)
        # What an array or an image held is the caller's to know; a file may be another one when it is drawn.
        checksum = None if path is None else checksum_of(grey)
        seconds = time.perf_counter() - began
        size = (grey.shape[0], grey.shape[1])
        return Job(Prepared(ready, size, name, path, seconds, checksum, frame.warnings), setup)

    def infer(self, jobs: Sequence[Job]) -> tuple[Outputs, float]:
        """Run the engine on at most `batch_size` jobs of one setup: outputs and seconds.

        Raises BackendError, also for answers that are NaN or infinite: every threshold would let them pass.
        """
        began = time.perf_counter()
        frames = np.stack([job.frame.pixels for job in jobs])
        outputs = self.backend.run(frames, jobs[0].setup.recipe)
        for name in OUTPUTS:
            sound = np.isfinite(getattr(outputs, name).reshape(len(jobs), -1)).all(axis=1)
            if not sound.all():
                raise BackendError(
                    f"{self.backend.description}: {name} of {jobs[int(sound.argmin())].frame.source} is NaN or "
                    "infinite: the engine or the recipe is broken; try another precision, or build it again"
                )
        return outputs, time.perf_counter() - began

    def finish(self, jobs: Sequence[Job], outputs: Outputs, infer_seconds: float) -> list[Prediction]:
        """The Predictions of a batch: jobs of one setup, and a row of `outputs` for each."""
        predictions: list[Prediction] = []
        for start in range(0, len(jobs), _FINISHED_TOGETHER):
            rows = slice(start, start + _FINISHED_TOGETHER)
            part = Outputs(outputs.probabilities[rows], outputs.defect_map[rows], outputs.features[rows])
            predictions += self._finish_part(jobs[rows], part, infer_seconds)
        return predictions

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
            )
            for row, (job, summary) in enumerate(zip(jobs, summaries, strict=True))
        ]

    def answer(self, jobs: Sequence[Job]) -> list[Prediction]:
        """`infer` and `finish` for jobs of one setup, at most `batch_size`."""
        outputs, seconds = self.infer(jobs)
        return self.finish(jobs, outputs, seconds)
