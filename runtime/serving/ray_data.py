"""Frames of a Ray dataset judged by a pool of workers, each with a Predictor of its own.

Ray imports this module in each worker. It hands blocks of rows to workers, and a block of a worker that died to
another. Answers are rows of `parquet.arrow_schema()`.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..arguments import MAX_THREADS, whole_number
from ..backends import GPU_BACKENDS, NAMES
from ..errors import BackendError, BackendUnavailable, BundleError, PredictorError
from ..manifest import Manifest, load_bundle
from ..parquet import table_of
from ..prediction import FailedFrame, Prediction
from ..predictor import Predictor
from ..recipe import Recipe
from ..rows import Row
from .frame_rows import answers, entries
from .ray_session import import_ray

ROWS_TOGETHER = 256
"""Answers that a worker holds before it hands them to Ray."""
MOST_RESTARTS = 10
"""So often is each worker started again, here or on another machine: a frame that kills it must not do so for ever."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What each worker opens. Small, and passed to workers as it is.

    bundle: an absolute path that leads to the bundle on every machine. digest: of what its manifest says.
    recipe: the bytes of a recipe to judge by; None for the bundle's own. The others are as in `Predictor`.
    """

    bundle: str
    digest: str
    recipe: bytes | None
    backend: str
    precision: str | None
    batch_size: int
    threads: int
    white_level: int | None
    pixel_size_nm: float | tuple[float, float] | None
    side_files: bool


def worker_options(
    bundle: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    backend: str = "auto",
    precision: str | None = None,
    batch_size: int = 8,
    threads: int = 1,
    white_level: int | None = None,
    pixel_size_nm: float | tuple[float, float] | None = None,
    side_files: bool = True,
) -> tuple[WorkerOptions, Manifest, Recipe]:
    """Check the bundle and the recipe here, before any worker does. The recipe is the one to judge by.

    Raises BundleError, RecipeError, BackendUnavailable for an unknown backend, ValueError for a size out of range.
    """
    batch_size = whole_number("batch_size", batch_size, 1)
    threads = whole_number("threads", threads, 1, MAX_THREADS)
    if backend not in NAMES:
        raise BackendUnavailable(f'there is no backend "{backend}" in this version; choose one of {", ".join(NAMES)}')
    folder = Path(bundle).absolute()
    manifest, own = load_bundle(folder)
    used = own if recipe is None else recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    manifest.encoder.check(used, "recipe" if isinstance(recipe, Recipe) else str(recipe or folder))
    content = None if recipe is None else used.to_bytes()
    options = WorkerOptions(
        bundle=str(folder),
        digest=digest_of(manifest),
        recipe=content,
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        white_level=white_level,
        pixel_size_nm=pixel_size_nm,
        side_files=side_files,
    )
    return options, manifest, used


def digest_of(manifest: Manifest) -> str:
    """Hex SHA-256 of what a manifest says, and so of every file that it names by hash."""
    return hashlib.sha256(manifest.to_json().encode()).hexdigest()


def judge(
    dataset: Any,
    bundle: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    workers: int = 1,
    backend: str = "auto",
    precision: str | None = None,
    batch_size: int = 8,
    threads: int = 1,
    white_level: int | None = None,
    pixel_size_nm: float | tuple[float, float] | None = None,
    side_files: bool = True,
    features: bool = False,
) -> Any:
    """A ray.data.Dataset with a row of `parquet.arrow_schema()` for each frame of another dataset.

    dataset: with a column `path`, or with `bytes` and a name in `path` or `name`, as
        `ray.data.read_binary_files(include_paths=True)` makes them. Without bytes, a path is absolute and leads to the
        frame on every machine, or is a URI that pyarrow.fs knows. A frame that cannot be read is a row with `error`.
    bundle: read from this path on every machine; each worker checks it by the hash of the bundle found here.
    workers: Predictors, each in a process with `threads` CPUs, and with a GPU where the backend is one of GPU_BACKENDS.
    backend: "auto" is for machines without GPUs alone: Ray hides GPUs from workers that ask for none.
    The others are as in `Predictor`. features: whether the column `features` is filled.

    A block of the dataset is the unit of work. What a dead worker had not handed over is judged again, elsewhere.
    Blocks come in the order in which they are done; `source` names each row.
    Raises BundleError, RecipeError, BackendUnavailable (also for "auto" where Ray has GPUs), ValueError; PredictorError
    where workers would take all CPUs of the cluster, since the tasks that read the dataset would wait for ever. While
    the dataset is consumed, Ray raises the error of a worker that cannot open the bundle: a BundleError or
    BackendUnavailable that names its machine.
    """
    options, _, _ = worker_options(
        bundle,
        recipe=recipe,
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        white_level=white_level,
        pixel_size_nm=pixel_size_nm,
        side_files=side_files,
    )
    ray = import_ray()
    if ray.is_initialized():
        require_choice(ray, options)
        _require_spare_cpu(ray, whole_number("workers", workers, 1), options.threads)
    return judged(dataset, options, workers=workers, features=features)


def require_choice(ray: Any, options: WorkerOptions) -> None:
    """Raise BackendUnavailable for "auto" where Ray has GPUs: it hides them from workers that ask for none, so "auto"
    would compute on processors, and not say so."""
    if options.backend == "auto" and ray.cluster_resources().get("GPU", 0):
        raise BackendUnavailable(
            'backend "auto" cannot choose where Ray has GPUs, since Ray hides them from workers that ask for none: '
            f"name one of {', '.join(GPU_BACKENDS)}, for a GPU each, or cpu"
        )


def _require_spare_cpu(ray: Any, workers: int, threads: int) -> None:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if workers * threads >= cpus:
        raise PredictorError(
            f"{workers} workers of {threads} threads take {workers * threads} CPUs, and the cluster has {cpus}: the "
            "tasks that read the dataset would wait for ever; leave them one CPU, by fewer workers or threads"
        )


def judged(dataset: Any, options: WorkerOptions, *, workers: int, features: bool) -> Any:
    """`judge`, by checked options."""
    workers = whole_number("workers", workers, 1)
    ray = import_ray()
    return dataset.map_batches(
        Judge,
        fn_constructor_kwargs={"options": options, "features": features},
        compute=ray.data.ActorPoolStrategy(size=workers),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=options.threads,
        num_gpus=1 if options.backend in GPU_BACKENDS else 0,
        max_restarts=MOST_RESTARTS,
        # Without a bound of its own: until Ray knows that a machine is lost, each call of its workers counts as a try.
        max_task_retries=-1,
    )


class Judge:
    """One worker. What keeps it from working is raised by its first block: Ray keeps the text alone of an error that a
    worker raises as it starts."""

    def __init__(self, options: WorkerOptions, features: bool) -> None:
        self._options, self._features = options, features
        self._predictor: Predictor | None = None
        self._failure: PredictorError | None = None
        try:
            self._predictor = _opened(options)
        except PredictorError as exc:
            self._failure = _on_this_machine(exc)

    def __call__(self, block: Any) -> Iterator[Any]:
        """Answers to a block of frames, in its order, in tables of ROWS_TOGETHER rows."""
        if self._predictor is None:
            raise self._failure or PredictorError("the worker did not open its bundle")
        results = answers(self._predictor, entries(block), self._options.threads)
        try:
            while together := list(islice(results, ROWS_TOGETHER)):
                yield table_of(self._row(result) for result in together)
        except BackendError as exc:
            raise _on_this_machine(exc) from exc

    def _row(self, result: Prediction | FailedFrame) -> Row:
        return result.to_row(features=self._features) if isinstance(result, Prediction) else result.to_row()


def _opened(options: WorkerOptions) -> Predictor:
    predictor = Predictor(
        options.bundle,
        backend=options.backend,
        precision=options.precision,
        recipe=None if options.recipe is None else Recipe.from_bytes(options.recipe, "the recipe of this run"),
        batch_size=options.batch_size,
        threads=options.threads,
        white_level=options.white_level,
        pixel_size_nm=options.pixel_size_nm,
        side_files=options.side_files,
    )
    # Of the manifest that was opened: each artifact's hash was checked against it as the engine read the file.
    if digest_of(predictor.manifest) != options.digest:
        predictor.close()
        raise BundleError(
            options.bundle, "is another bundle than the one that this run began with: copy that one here, and run again"
        )
    return predictor


def _on_this_machine(error: PredictorError) -> PredictorError:
    """The same error, with the machine it comes from."""
    place = f"a worker on {platform.node() or 'a machine without a name'}"
    if isinstance(error, BundleError):
        return type(error)(f"{place}: {error.where}", error.faults)
    return type(error)(f"{place}: {error}")
