"""The door: open a bundle, ask it about frames."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from .backends import Backend, open_backend
from .batching import MicroBatcher
from .errors import FrameError, PredictorError
from .frames import FrameSource
from .host import find_gpu
from .manifest import Manifest, use_bundle
from .pipeline import Pipeline, Setup
from .prediction import FailedFrame, Prediction
from .recipe import Recipe
from .stream import stream

MAX_DELAY_MS = 3_600_000
_log = logging.getLogger("sem_clip")


class Predictor:
    """Classifies and segments frames with one bundle. Safe to call from many threads.

    bundle: the folder that `export/build_engine.py` wrote.
    backend: "tensorrt", "tensorrt-rtx", "cuda", "cpu", "fake", or a Backend of your own: what was asked for runs, or an
        error says why not. "auto": the first of these that this host can run; `backend.why` says why none before it.
    precision: of the artifact ("fp32", "fp16", "int8"); where not said, fp16 on a GPU and fp32 on a CPU.
    recipe: a recipe file or Recipe to begin with instead of the bundle's own.
    batch_size: frames per engine run; longer inputs are split. threads: cores for the engine, 0 for all.
    ignore_top, ignore_bottom: rows to ignore instead of the recipe's (text bars); a taught recipe knows its own.
    max_delay_ms, queue_size: for `submit`: how long a frame may wait for company, and how many may wait.

    Raises BundleError (all faults of the bundle at once), BackendUnavailable, RecipeError; ValueError for a size, a
    delay or rows out of range.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        backend: str | Backend = "auto",
        precision: str | None = None,
        recipe: str | Path | Recipe | None = None,
        batch_size: int = 8,
        threads: int = 0,
        ignore_top: int | None = None,
        ignore_bottom: int | None = None,
        max_delay_ms: float = 2.0,
        queue_size: int = 64,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("queue_size", queue_size, 1),
            ("threads", threads, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if not 0 <= max_delay_ms <= MAX_DELAY_MS:
            raise ValueError(f"max_delay_ms must lie in [0, {MAX_DELAY_MS}], not {max_delay_ms}")
        folder = Path(bundle)

        def open_all(manifest: Manifest, recipe: Recipe) -> tuple[Manifest, Recipe, Backend]:
            if not isinstance(backend, str):
                return manifest, recipe, backend
            return manifest, recipe, open_backend(backend, folder, manifest, precision=precision, threads=threads)

        self.manifest, bundled, opened = use_bundle(folder, open_all)
        size = min(batch_size, opened.max_batch)
        self._pipeline = Pipeline(self.manifest.encoder, self.manifest.smoothing_px, opened, size)
        self._rows = {"ignore_top": ignore_top, "ignore_bottom": ignore_bottom}
        self._max_delay_ms, self._queue_size = max_delay_ms, queue_size
        self._batcher: MicroBatcher | None = None
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._setup = self._set_up(bundled if recipe is None else recipe)
            opened.warm_up(self._setup.recipe)
        except BaseException:
            opened.close()
            raise
        _log.info("%s: backend %s: %s", folder, backend if isinstance(backend, str) else "given", opened.description)
        if opened.why:
            # Where a GPU was meant, that another backend answers is news; on an embedded CPU it is the rule.
            meant = any(a.kind == "engine" for a in self.manifest.artifacts) or find_gpu()[0] is not None
            _log.log(logging.WARNING if meant else logging.INFO, "%s: %s", folder, opened.why)

    @property
    def recipe(self) -> Recipe:
        """The recipe in use."""
        return self._setup.recipe

    @property
    def backend(self) -> Backend:
        """The engine in use; its `description` says what runs."""
        return self._pipeline.backend

    def __call__(self, frame: FrameSource) -> Prediction:
        """Judge one frame: a path, a Pillow image, or an array (see `frames.read_frame`).

        Raises FrameError, BackendError.
        """
        self._check_open()
        return self._pipeline.answer([self._pipeline.prepare(frame, self._setup)])[0]

    def predict(self, frames: Sequence[FrameSource]) -> list[Prediction]:
        """Judge a list of frames, of any length, in order. The first bad frame raises FrameError; see `stream`."""
        self._check_open()
        if not isinstance(frames, Sequence) or isinstance(frames, str):
            kind = type(frames).__name__
            raise FrameError("predict", f"takes a list of frames, not {kind}; for one frame, call predictor(frame)")
        setup, size = self._setup, self._pipeline.batch_size
        predictions: list[Prediction] = []
        for start in range(0, len(frames), size):
            jobs = [
                self._pipeline.prepare(frame, setup, start + offset)
                for offset, frame in enumerate(frames[start : start + size])
            ]
            predictions += self._pipeline.answer(jobs)
        return predictions

    def stream(
        self, frames: Iterable[FrameSource], *, decoders: int | None = None
    ) -> Iterator[Prediction | FailedFrame]:
        """Judge frames as they are drawn from an iterable of any length, in order and in bounded memory.

        Decoding, inference and post-processing overlap; at most four batches and those in the engine are held. A bad
        frame yields a FailedFrame (`.ok` is False) and the rest goes on. For frames that arrive one by one: `submit`.
        decoders: threads that decode and resize; by default one a core and 8 at most. One does some 400 PNG frames of
            480 x 480 a second.
        Raises BackendError; PredictorError when the Predictor is closed before the last frame is drawn; FrameError if
        `frames` is one frame and not an iterable of them.
        """
        self._check_open()
        if isinstance(frames, np.ndarray) and (frames.ndim == 2 or (frames.ndim == 3 and frames.shape[-1] in (1, 3))):
            raise FrameError("stream", f"takes many frames, not one of shape {list(frames.shape)}; put it in a list")
        if isinstance(frames, str | Path | Image.Image):
            raise FrameError("stream", f"takes an iterable of frames, not {type(frames).__name__}; put it in a list")

        def setup() -> Setup:
            self._check_open()
            return self._setup

        return stream(self._pipeline, frames, setup, decoders or min(8, os.cpu_count() or 1))

    def submit(self, frame: FrameSource, *, timeout_s: float | None = None) -> Future[Prediction]:
        """Judge one frame in the background; frames submitted by any threads share batches.

        The frame is decoded in the calling thread, before this returns, so an array may be reused afterwards. Waits
        while the queue is full, at most `timeout_s`. Raises FrameError, QueueFullError; the future raises BackendError.
        """
        with self._lock:
            self._check_open()  # under the lock: a batcher made after close() would never end
            if self._batcher is None:
                self._batcher = MicroBatcher(self._pipeline, self._max_delay_ms, self._queue_size)
            batcher = self._batcher
        return batcher.submit(self._pipeline.prepare(frame, self._setup), timeout_s)

    def use(self, recipe: str | Path | Recipe) -> None:
        """Judge by another recipe from the next frame on. A bad recipe raises RecipeError and changes nothing."""
        self._check_open()
        setup = self._set_up(recipe)
        self._pipeline.backend.warm_up(setup.recipe)
        self._setup = setup

    def close(self) -> None:
        """Answer what was submitted and the batches under way, then free the engine. Closing twice is allowed."""
        with self._lock:
            already, self._closed = self._closed, True
        if already:
            return
        if self._batcher is not None:
            self._batcher.close()
        self._pipeline.backend.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_up(self, recipe: str | Path | Recipe) -> Setup:
        where = "recipe" if isinstance(recipe, Recipe) else str(recipe)
        loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
        self.manifest.encoder.check(loaded, where)
        rows = {name: value for name, value in self._rows.items() if value is not None}
        return Setup(loaded, replace(loaded.frame, **rows))

    def _check_open(self) -> None:
        if self._closed:
            raise PredictorError("the Predictor is closed; open another one")
