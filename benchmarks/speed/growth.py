"""Cost over threads, frame size, tiles and number of classes. throughput.py has it over batch size."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.engines import Subject, open_engine, predict
from benchmarks.speed.frames import write_frames
from benchmarks.speed.throughput import prepared_frames
from benchmarks.speed.timing import alternate, per_second
from runtime.host import usable_cores
from runtime.operating_point import OperatingPoint
from runtime.pipeline import Pipeline, Setup
from runtime.recipe import FrameOptions, Recipe
from runtime.windows import lay_out

CLASSES = (2, 7, 16, 32, 64)
FRAME_SIZES = ((240, 240), (480, 480), (960, 1280), (1536, 2048))
TILED_FRAME = 4
"""A frame that is read in tiles is so many times as long as the encoder's input."""
_FRAMES_OF_A_SIZE = 4


def over_threads(subject: Subject, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Frames/s of each engine with 1, 2, 4 ... threads up to all cores."""
    cores = usable_cores()
    counts = sorted({min(2**power, cores) for power in range(cores.bit_length() + 1)})
    batch = min(batch, *(backend.max_batch for backend in subject.engines.values()))
    frames = prepared_frames(subject, batch)
    runs: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for name in subject.engines:
            for threads in counts:
                backend = stack.enter_context(open_engine(name, subject.folder, subject.manifest, threads))
                runs[f"{name} {threads}"] = partial(backend.run, frames, subject.recipe)
        measured = alternate(runs, rounds)
    return [
        {
            "engine": str(name),
            "threads": threads,
            "batch": batch,
            "frames_per_second": per_second(batch, measured[f"{name} {threads}"]),
            "times_one_thread": statistics.median(measured[f"{name} 1"])
            / statistics.median(measured[f"{name} {threads}"]),
        }
        for name in subject.engines
        for threads in counts
    ]


def over_frame_sizes(subject: Subject, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Cost of a PNG of each size: milliseconds to prepare it, and frames/s of whole predictions.

    Empty for a bundle with the resize in its graph: it takes one size only.
    """
    if subject.manifest.encoder.resizes_in_graph:
        return []
    setup = subject.setup
    rows_cut = setup.options.ignore_top + setup.options.ignore_bottom
    runs: dict[str, Callable[[], object]] = {}
    sizes = [size for size in FRAME_SIZES if size[0] > rows_cut]
    for height, width in sizes:
        paths = write_frames(folder / f"{height}x{width}", _FRAMES_OF_A_SIZE, (height, width))
        for name, backend in subject.engines.items():
            pipeline = subject.pipeline(backend, len(paths))
            runs[f"{height}x{width} prepare"] = partial(_prepare, pipeline, paths, setup)
            runs[f"{height}x{width} {name}"] = partial(predict, pipeline, paths, setup)
    measured = alternate(runs, rounds)
    return [
        {
            "engine": str(name),
            "frame_size": [height, width],
            "prepare_ms": 1e3 * statistics.median(measured[f"{height}x{width} prepare"]) / _FRAMES_OF_A_SIZE,
            "frames_per_second": per_second(_FRAMES_OF_A_SIZE, measured[f"{height}x{width} {name}"]),
        }
        for height, width in sizes
        for name in subject.engines
    ]


def over_tiles(subject: Subject, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Frames/s of whole predictions of one large frame: as a whole, in tiles of twice the encoder's input, and of once.

    Neighbours share an eighth of a tile. Empty for a bundle with the resize in its graph, which has no tiles.
    """
    encoder = subject.manifest.encoder
    if encoder.resizes_in_graph:
        return []
    native = encoder.image_size[0]
    side = TILED_FRAME * native
    paths = write_frames(folder, 1, (side, side))
    runs: dict[str, Callable[[], object]] = {}
    counts: dict[int, int] = {}
    for tile in (0, 2 * native, native):
        options = FrameOptions(tile=tile, overlap=tile // 8)
        layout = lay_out((side, side), encoder, options, paths[0])
        counts[tile] = 1 if layout is None else len(layout)
        for name, backend in subject.engines.items():
            pipeline = subject.pipeline(backend, backend.max_batch)
            runs[f"{tile} {name}"] = partial(predict, pipeline, paths, Setup(subject.recipe, options))
    measured = alternate(runs, rounds)
    return [
        {
            "engine": str(name),
            "frame_size": [side, side],
            "tile": tile,
            "tiles": count,
            "frames_per_second": per_second(1, measured[f"{tile} {name}"]),
            "tiles_per_second": per_second(count, measured[f"{tile} {name}"]),
        }
        for tile, count in counts.items()
        for name in subject.engines
    ]


def over_classes(subject: Subject, counts: Sequence[int], batch: int, rounds: int) -> list[dict[str, Any]]:
    """Frames/s of each engine with recipes of `counts` classes, swapped without a rebuild."""
    batch = min(batch, *(backend.max_batch for backend in subject.engines.values()))
    frames = prepared_frames(subject, batch)
    runs: dict[str, Callable[[], object]] = {}
    for count in counts:
        recipe = with_classes(subject.recipe, count)
        for name, backend in subject.engines.items():
            runs[f"{name} {count}"] = partial(backend.run, frames, recipe)
    measured = alternate(runs, rounds)
    return [
        {
            "engine": str(name),
            "classes": count,
            "batch": batch,
            "frames_per_second": per_second(batch, measured[f"{name} {count}"]),
        }
        for name in subject.engines
        for count in counts
    ]


def with_classes(recipe: Recipe, count: int) -> Recipe:
    """The recipe with `count` classes and random class tensors: realistic work, meaningless answers."""
    rng = np.random.default_rng(count)
    text = rng.standard_normal((count, recipe.tensors["text_cls"].shape[1])).astype(np.float32)
    head = rng.standard_normal((count, recipe.tensors["head_weight"].shape[1])).astype(np.float32)
    tensors = {
        **recipe.tensors,
        "text_cls": text / np.linalg.norm(text, axis=1, keepdims=True),
        "head_weight": head,
        "head_bias": np.zeros(count, np.float32),
    }
    names = ("good", *(f"class {k}" for k in range(1, count)))
    point = recipe.operating_point
    untaught = OperatingPoint.taught(names, point.defect_threshold, point.pixel_threshold)
    return replace(recipe, classes=names, tensors=tensors, operating_point=untaught)


def _prepare(pipeline: Pipeline, paths: Sequence[str], setup: Setup) -> None:
    for path in paths:
        pipeline.prepare(path, setup)
