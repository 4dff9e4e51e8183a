"""`sem-clip predict --engine ray`: an archive judged by many workers, into a folder of Parquet files.

Workers answer; this process alone writes. So each answer is written once, whatever dies on the way, and a run that is
repeated adds what is missing.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..backends import GPU_BACKENDS
from ..commands import Tally
from ..errors import FrameError, PredictorError, SemClipError
from ..host import usable_cores
from ..parquet import import_pyarrow, table_of
from ..prediction import FailedFrame
from ..rows import printed
from ..terminal import progress_bar
from .answer_folder import AnswerFolder, answer_folder
from .archive import list_archive
from .ray_data import WorkerOptions, judged, require_choice, worker_options
from .ray_session import ray_session, require_ray
from .server_options import require_no_server
from .stores import is_uri

MOST_ROWS, LEAST_ROWS = 512, 16
"""Frames of a block: few enough that little is judged again when a worker dies, and enough to keep its engine busy."""
_BLOCKS_PER_WORKER = 4
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of a URI that has become a path, where two slashes are one."""
_RAYS_WORDS = "\nFailed to apply UDF"
"""Ray appends advice on its own options to an error's text."""


def run_ray(args: argparse.Namespace) -> int:
    """Judge, and write; 1 if some frames were not read."""
    _check(args)
    options, manifest, recipe = worker_options(
        args.bundle,
        recipe=args.recipe,
        backend=args.backend,
        precision=args.precision,
        batch_size=args.batch_size,
        threads=args.threads or 1,
        white_level=args.white_level,
        pixel_size_nm=args.pixel_size,
        side_files=not args.no_side_files,
    )
    unread: list[FrameError] = []
    frames = list_archive(args.paths, unread)
    settings = {
        "encoder_id": manifest.encoder.id,
        "recipe_sha256": recipe.sha256(),
        "smoothing_px": manifest.smoothing_px,
        "backend": options.backend,
        "precision": options.precision,
        "white_level": options.white_level,
        "pixel_size_nm": None if args.pixel_size is None else list(args.pixel_size),
        "side_files": options.side_files,
        "features": args.features,
    }
    tally = Tally(recipe.classes, "rows")
    with answer_folder(args.parquet, settings) as answers:
        missing, retried = answers.missing(frames)
        _say_what_is_there(args, frames.num_rows - missing.num_rows, retried)
        if unread:
            _take(answers, tally, table_of(FailedFrame(error.source, error).to_row() for error in unread))
        if missing.num_rows:
            _judge(args, options, missing, answers, tally)
        answers.outdate(_places(args.paths, frames) - {error.source for error in unread})
    for line in tally.lines():
        print(line, file=sys.stderr)
    return 1 if tally.failures.count else 0


def _check(args: argparse.Namespace) -> None:
    """Raise PredictorError for options that this engine does not have."""
    if args.parquet is None:
        raise PredictorError("--engine ray writes a folder of Parquet files: name it with --parquet DIR")
    if _URI.match(str(args.parquet)):
        raise PredictorError(
            f"{args.parquet} is a URI, and --parquet writes a folder of this machine: name one, and copy it when done"
        )
    others = (("--json", args.json), ("--store", args.store), ("--overlays", args.overlays), ("--force", args.force))
    for option, value in others:
        if value:
            raise PredictorError(
                f"{option} is not for --engine ray, which writes and continues the folder of --parquet"
            )
    if args.backend == "triton":
        raise PredictorError(
            "--backend triton is not for --engine ray, whose workers compute themselves: leave one out"
        )
    require_no_server(args)
    if args.device is not None:
        raise PredictorError("--device is not for --engine ray, which gives each worker a GPU of its own: leave it out")
    if args.parquet.exists() and not args.parquet.is_dir():
        raise PredictorError(f"{args.parquet} is a file; --engine ray writes a folder: choose another name")
    import_pyarrow()
    require_ray()


def _places(paths: Sequence[str], frames: Any) -> set[str]:
    """What the frames were found in, and is none itself: URIs, folders and Parquet files. Each could have an error."""
    found = {os.fsdecode(path) for path in frames.column("path").unique().to_pylist()}
    places = {*filter(is_uri, paths), *found}
    for path in {os.path.dirname(path) for path in found}:  # noqa: PTH120  a Path for each frame costs more
        places.update((path, *map(str, Path(path).parents)))
    return {printed(place) for place in places}.difference(frames.column("source").to_pylist())


def _say_what_is_there(args: argparse.Namespace, answered: int, retried: int) -> None:
    if answered or retried:
        again = f"; {retried} that were not read are tried again" if retried else ""
        print(f"{args.parquet} holds the answers of {answered} of these frames{again}", file=sys.stderr)


def _judge(args: argparse.Namespace, options: WorkerOptions, missing: Any, answers: AnswerFolder, tally: Tally) -> None:
    """Judge the frames of a table. Raises the errors of workers, and PredictorError where Ray fails."""
    local = (args.workers or max(1, usable_cores() // options.threads)) * options.threads
    with ray_session(args.address, local) as ray:
        require_choice(ray, options)
        workers = args.workers or _workers(ray, options, args.address)
        _require_room(ray, options)
        rows = _rows_of_a_block(missing.num_rows, workers, options.batch_size)
        blocks = [missing.slice(start, rows).combine_chunks() for start in range(0, missing.num_rows, rows)]
        workers = min(workers, len(blocks))
        print(
            f"Ray {ray.__version__}; workers: {workers}; backend: {options.backend}; threads: {options.threads}",
            file=sys.stderr,
        )
        dataset = judged(ray.data.from_arrow(blocks), options, workers=workers, features=args.features)
        given = sum(1 for _ in progress_bar(_rows(ray, dataset, answers, tally), missing.num_rows))
        answers.flush()
    lost = answers.without_row(missing)
    if lost:
        raise PredictorError(f"{lost} frames got no answer: run the same command again, which judges them alone")
    if given > missing.num_rows:
        raise PredictorError(f"Ray gave {given} answers to {missing.num_rows} frames: judge them into another folder")


def _rows_of_a_block(frames: int, workers: int, batch: int) -> int:
    """Some blocks for each worker, of whole batches: so that frames meet in an engine as they do in `stream`."""
    rows = min(MOST_ROWS, max(LEAST_ROWS, -(-frames // (workers * _BLOCKS_PER_WORKER))))
    return -(-rows // batch) * batch


def _rows(ray: Any, dataset: Any, answers: AnswerFolder, tally: Tally) -> Iterator[None]:
    """Once for each answer, after it was taken."""
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            _take(answers, tally, table)
            yield from (None for _ in range(table.num_rows))
    except ray.exceptions.RayError as exc:
        error = _error_of(ray, exc)
        if error is None:
            raise
        raise error from exc


def _take(answers: AnswerFolder, tally: Tally, table: Any) -> None:
    """Keep and count answers."""
    answers.add(table)
    for verdict in table.column("verdict").value_counts().to_pylist():
        if verdict["values"] is not None:
            tally.verdicts[verdict["values"]] += verdict["counts"]
    for source, error, warnings in zip(
        *(table.column(name).to_pylist() for name in ("source", "error", "warnings")), strict=True
    ):
        if error is not None:
            tally.failures.add(f"{source}: {error}")
        for text in warnings or ():
            tally.warnings.add(f"{source}: {text}")


def _workers(ray: Any, options: WorkerOptions, address: str | None) -> int:
    """As many as there is room for."""
    there = ray.cluster_resources()
    room = (usable_cores() if address is None else int(there.get("CPU", 0))) // options.threads
    if options.backend in GPU_BACKENDS:
        room = min(room, int(there.get("GPU", 0)))
    return max(1, room)


def _require_room(ray: Any, options: WorkerOptions) -> None:
    """Raise PredictorError where no machine has room for one worker: Ray would wait for one."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if max((node.get("CPU", 0) for node in alive), default=0) < options.threads:
        raise PredictorError(f"no machine of the cluster has {options.threads} CPUs for a worker: lower --threads")
    if options.backend in GPU_BACKENDS and not any(node.get("GPU", 0) for node in alive):
        raise PredictorError(f"no machine of the cluster has a GPU for the backend {options.backend}")


def _error_of(ray: Any, error: Any) -> SemClipError | None:
    """This project's error inside one of Ray's, without Ray's words; None for a bug in a worker."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SemClipError):
        own: SemClipError = copy.copy(cause)
        own.args = (str(cause).partition(_RAYS_WORDS)[0],)
        return own
    if isinstance(error, ray.exceptions.RayTaskError):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = " ... ".join(dict.fromkeys((*lines[:1], *lines[-1:])))
    return PredictorError(
        f"Ray gave up ({type(error).__name__}: {told}). Workers that die again and again at the same frames end a run. "
        "Answers so far are kept: run the same command again to continue, with fewer --workers if memory was short"
    )
