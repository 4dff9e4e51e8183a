"""The entry point: open a bundle, and judge frames."""

from __future__ import annotations

import io
import logging
import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from .arguments import MAX_THREADS, gpu_device, real_number, whole_number
from .backends import Backend, open_backend
from .batching import MicroBatcher
from .errors import BackendError, FrameError, PredictorError, RecipeError
from .frames import EncodedFrame, FrameSource
from .golden import Golden, load_golden
from .host import find_gpu
from .inflate import LIBRARY
from .lifetime import in_engine, require_process
from .manifest import Manifest, use_bundle
from .pipeline import Job, Pipeline, Setup
from .prediction import FailedFrame, Prediction
from .qualification import Subject, check_opening
from .recipe import Recipe
from .stream import stream

MAX_DELAY_MS = 3_600_000
_ONE_FRAME = (str, bytes, bytearray, memoryview, os.PathLike, EncodedFrame, io.IOBase, Image.Image)
"""Types of single frames. Some of them can be iterated, and are still one frame."""
_log = logging.getLogger("sem_clip")


class Predictor:
    """Classifies and segments frames with one bundle. Safe to call from many threads, of one process.

    It cannot be pickled or copied, and refuses to work in a process forked after it was opened: open one in each
    process, for a pool of processes in its initializer. Errors and results pass between processes.

    bundle: the folder that `export/build_engine.py` wrote.
    backend: "tensorrt", "tensorrt-rtx", "cuda", "cpu", "openvino", "fake", or a Backend of your own. A named backend
        runs or raises. "auto": the first that this host can run; `backend.why` has why those before were skipped.
    precision: "fp32", "fp16", "int8", with "openvino" also "bf16", "int8-bf16"; default fp16 on a GPU, fp32 on a CPU.
    device: the GPU of a GPU backend: its index from 0, as CUDA numbers those of CUDA_VISIBLE_DEVICES, or (the
        beginning of) its UUID, "GPU-8932f937". By default the first. "auto" then takes no CPU.
    recipe: a recipe file or Recipe to start with instead of the bundle's own.
    batch_size: frames per engine run; longer inputs are split. threads: cores for the engine, 0 for all.
    ignore_top, ignore_bottom: rows to ignore instead of the recipe's (text bars); a taught recipe knows its own.
    white_level: the value of 16-bit frames that is white, instead of the recipe's (4095 where a tool stores 12 bits).
    pixel_size_nm: sides (x, y) of a pixel in nm, or one for both, for frames whose files do not tell.
    side_files: read the texts of tools beside each frame that is a path (.txt, .hdr), for the size of its pixels. False
        saves three look-ups per frame.
    max_delay_ms, queue_size: for `submit`: how long a frame may wait for a batch to fill, and how many may wait.
    check: run one batch of the bundle's golden frames first, by its own recipe, and refuse a backend that disagrees
        with the export. `sem-clip verify` checks far more.

    Raises BundleError (all faults of the bundle at once; with `check` also for golden frames that are missing or
    damaged), BackendUnavailable, RecipeError; BackendError for a backend that `check` refuses; ValueError for a size,
    a delay, a device or rows out of range.
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
        device: int | str | None = None,
        ignore_top: int | None = None,
        ignore_bottom: int | None = None,
        white_level: int | None = None,
        pixel_size_nm: float | tuple[float, float] | None = None,
        side_files: bool = True,
        max_delay_ms: float = 2.0,
        queue_size: int = 64,
        check: bool = False,
    ) -> None:
        self._pid = os.getpid()
        self._queue_size = whole_number("queue_size", queue_size, 1)
        self._max_delay_ms = real_number("max_delay_ms", max_delay_ms, 0, MAX_DELAY_MS)
        batch_size = whole_number("batch_size", batch_size, 1)
        threads = whole_number("threads", threads, 0, MAX_THREADS)
        if not isinstance(bundle, str | os.PathLike):
            raise ValueError(f"bundle must be the path of a folder, not {bundle!r:.60}")
        if not isinstance(backend, str | Backend):
            raise ValueError(f"backend must be a name or a Backend, not {backend!r:.60}")
        if gpu_device(device) is not None and isinstance(backend, Backend):
            raise ValueError("device chooses the GPU of a named backend; open your own Backend on the GPU it is for")
        self._frame: dict[str, Any] = {
            "ignore_top": ignore_top,
            "ignore_bottom": ignore_bottom,
            "white_level": white_level,
            "pixel_size_nm": pixel_size_nm,
        }
        self._side_files = side_files
        self._batcher: MicroBatcher | None = None
        self._lock = threading.RLock()  # a signal may close it in the middle of `submit`
        self._closed = False
        folder = Path(bundle)
        opened = _open(folder, backend, precision, threads, device, check=check)
        self.manifest = opened.manifest
        try:
            self._pipeline = _pipeline(opened, batch_size)
            self._setup = self._set_up(opened.recipe if recipe is None else recipe)
            with in_engine():
                opened.backend.warm_up(self._setup.recipe)
            if opened.golden is not None:
                self._check(opened.recipe, opened.golden)
        except BaseException:
            opened.backend.close()
            raise
        _log_what_runs(folder, opened, backend if isinstance(backend, str) else "given")

    @property
    def recipe(self) -> Recipe:
        """The recipe in use."""
        return self._setup.recipe

    @property
    def backend(self) -> Backend:
        """The engine in use; its `description` names engine, version and artifact."""
        return self._pipeline.backend

    def __call__(self, frame: FrameSource) -> Prediction:
        """Judge one frame: a path, the content of a file (with its name: `EncodedFrame`), a file object, a Pillow
        image, or an array (see `frames.read_frame`).

        Raises FrameError, BackendError.
        """
        self._check_open()
        return self._pipeline.answer([self._pipeline.prepare(frame, self._setup)])[0]

    def predict(self, frames: Sequence[FrameSource]) -> list[Prediction]:
        """Judge a list of frames, of any length, in order. The first bad frame raises FrameError; see `stream`."""
        self._check_open()
        if not isinstance(frames, Sequence) or isinstance(frames, _ONE_FRAME):
            kind = type(frames).__name__
            raise FrameError("predict", f"takes a list of frames, not {kind}; for one frame, call predictor(frame)")
        setup = self._setup
        predictions: list[Prediction] = []
        jobs: list[Job] = []
        rows = 0
        for index, frame in enumerate(frames):
            jobs.append(self._pipeline.prepare(frame, setup, index))
            rows += jobs[-1].row_count
            if rows >= self._pipeline.batch_size:
                predictions += self._pipeline.answer(jobs)
                jobs, rows = [], 0
        return predictions + (self._pipeline.answer(jobs) if jobs else [])

    def stream(
        self, frames: Iterable[FrameSource], *, decoders: int | None = None
    ) -> Iterator[Prediction | FailedFrame]:
        """Judge frames as they are drawn from an iterable of any length, in order and in bounded memory.

        Decoding, inference and post-processing overlap; at most four batches and those in the engine are held. A bad
        frame yields a FailedFrame (`.ok` is False) and the stream continues. For frames that arrive singly: `submit`.
        Each frame is judged as it was when it was drawn: an array may be refilled, or a Pillow image moved to its next
        page, as soon as the next frame is requested. Many threads decode files; the drawing thread decodes images.
        Leaving the loop returns within a second, even if `frames` or the engine hangs.
        decoders: threads that decode and resize; by default one per core and 8 at most. One thread prepares some 400
            PNG frames of 480 x 480 per second.
        Raises BackendError; PredictorError when the Predictor is closed before the last frame is drawn; FrameError if
        `frames` is one frame and not an iterable of them.
        """
        self._check_open()
        if decoders is None:
            decoders = min(8, os.cpu_count() or 1)
        decoders = whole_number("decoders", decoders, 1)
        if isinstance(frames, np.ndarray) and (frames.ndim == 2 or (frames.ndim == 3 and frames.shape[-1] in (1, 3))):
            raise FrameError("stream", f"takes many frames, not one of shape {list(frames.shape)}; put it in a list")
        iterates = hasattr(type(frames), "__iter__") or hasattr(type(frames), "__getitem__")
        iterates &= np.ndim(frames) > 0 if isinstance(frames, np.ndarray | np.generic) else True
        if isinstance(frames, _ONE_FRAME) or not iterates:
            raise FrameError("stream", f"takes an iterable of frames, not {type(frames).__name__}; put it in a list")

        def setup() -> Setup:
            self._check_open()
            return self._setup

        return stream(self._pipeline, frames, setup, decoders)

    def submit(self, frame: FrameSource, *, timeout_s: float | None = None) -> Future[Prediction]:
        """Judge one frame in the background; frames submitted by any threads share batches.

        The frame is decoded in the calling thread, before this returns, so an array may be reused afterwards. Waits
        while the queue is full, at most `timeout_s`. Callbacks of the future run on the thread that answers: they may
        submit, swap the recipe and close, and must not wait for another answer. When the interpreter exits, the current
        batch is answered and waiting frames are cancelled: call `close` to get all answers.
        Raises FrameError, QueueFullError; the future raises BackendError.
        """
        if timeout_s is not None:
            timeout_s = min(real_number("timeout_s", timeout_s, 0, math.inf), threading.TIMEOUT_MAX)
        self._check_open()
        with self._lock:
            self._check_open()  # under the lock: a batcher made after close() would never end
            if self._batcher is None:
                free = self._pipeline.backend.close
                self._batcher = MicroBatcher(self._pipeline, self._max_delay_ms, self._queue_size, free)
                # Without close(), submitted frames are answered, then the thread ends and the engine is freed.
                weakref.finalize(self, self._batcher.abandon).atexit = False
            batcher = self._batcher
        return batcher.submit(self._pipeline.prepare(frame, self._setup), timeout_s)

    def use(self, recipe: str | Path | Recipe) -> None:
        """Judge by another recipe from the next frame on.

        A bad recipe raises RecipeError, and one that the engine does not run BackendUnavailable; then nothing changes.
        """
        self._check_open()
        setup = self._set_up(recipe)
        with in_engine():
            self._pipeline.backend.warm_up(setup.recipe)
        self._setup = setup

    def close(self) -> None:
        """Answer submitted frames and running batches, then free the engine. Closing twice is allowed.

        In a callback of `submit` it returns at once, and the rest happens when the callback has ended. In a forked
        child it does nothing: the engine belongs to the parent.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            already, self._closed = self._closed, True
        if self._batcher is not None:
            self._batcher.close()
        elif not already:
            self._pipeline.backend.close()

    def __reduce__(self) -> NoReturn:
        raise PredictorError(
            "a Predictor cannot be pickled or copied, for its engine and threads are of this process: open one in each "
            "process (for a pool of processes: in its initializer)"
        )

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_up(self, recipe: str | Path | Recipe) -> Setup:
        if not isinstance(recipe, Recipe | str | os.PathLike):
            raise RecipeError("recipe", f"must be a Recipe or the path of one, not {recipe!r:.60}")
        where = "recipe" if isinstance(recipe, Recipe) else str(recipe)
        loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
        self.manifest.encoder.check(loaded, where)
        given: dict[str, Any] = {name: value for name, value in self._frame.items() if value is not None}
        return Setup(loaded, replace(loaded.frame, **given), loaded.sha256(), self._side_files)

    def _check(self, recipe: Recipe, golden: Golden) -> None:
        """Raise BackendError if the backend's answers to golden frames are not those of the export."""
        pipeline = self._pipeline
        subject = Subject.of(self.manifest, recipe, golden, pipeline.backend, (pipeline.batch_size,))
        fault = check_opening(subject)
        if fault:
            raise BackendError(
                f"{pipeline.backend.description}: does not give the export's answers to the golden frames: {fault}; "
                "run `sem-clip verify` for details; try another backend or precision, or build it again"
            )

    def _check_open(self) -> None:
        require_process(self._pid)
        if self._closed:
            raise PredictorError("the Predictor is closed; open another one")


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """A bundle and its engine. recipe: the bundle's own. golden: None where it is not checked."""

    manifest: Manifest
    recipe: Recipe
    golden: Golden | None
    backend: Backend


def _open(
    folder: Path,
    backend: str | Backend,
    precision: str | None,
    threads: int,
    device: int | str | None,
    *,
    check: bool,
) -> _Opened:
    """Raises BundleError, BackendError, BackendUnavailable."""

    def open_all(manifest: Manifest, recipe: Recipe) -> _Opened:
        golden = load_golden(folder, manifest, recipe) if check else None
        if not isinstance(backend, str):
            backend.check_encoder(manifest.encoder)
            return _Opened(manifest, recipe, golden, backend)
        with in_engine():
            opened = open_backend(backend, folder, manifest, precision=precision, threads=threads, device=device)
        return _Opened(manifest, recipe, golden, opened)

    return use_bundle(folder, open_all)


def _pipeline(opened: _Opened, batch_size: int) -> Pipeline:
    """With batches of `batch_size` or of the backend's most. ValueError if a backend of the caller's has no sizes."""
    most = whole_number("max_batch of the backend", opened.backend.max_batch, 1)
    whole_number("in_flight of the backend", opened.backend.in_flight, 1)
    manifest = opened.manifest
    return Pipeline(manifest.encoder, manifest.smoothing_px, opened.backend, min(batch_size, most))


def _log_what_runs(folder: Path, opened: _Opened, asked: str) -> None:
    """Log the backend, and why a faster one was skipped."""
    backend = opened.backend
    _log.info("%s: backend %s: %s", folder, asked, backend.description)
    _log.debug("PNG and deflated TIFF frames are inflated by %s", LIBRARY)
    if backend.why:
        # A skipped backend is news on a host that was meant to use a GPU; on an embedded CPU it is the rule.
        meant = any(a.kind == "engine" for a in opened.manifest.artifacts) or find_gpu()[0] is not None
        _log.log(logging.WARNING if meant else logging.INFO, "%s: %s", folder, backend.why)
