"""Latency of one frame: warm, from a cold process, and the time of `import runtime`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.speed.child import run_child
from benchmarks.speed.engines import Subject, predict
from benchmarks.speed.timing import alternate, percentiles_ms

BLOCK = 10
"""Consecutive calls on one engine; the first one meets the caches of another engine and does not count."""
FEWEST, MOST = 2, 100
"""Blocks of each engine."""


def warm_latency(subject: Subject, seconds: float) -> list[dict[str, Any]]:
    """Percentiles at batch 1; engines alternate, block by block, for about `seconds`.

    engine: `Backend.run` on a prepared frame. predict: from the PNG file to the Prediction.
    """
    setup, path = subject.setup, subject.frames[0]
    samples: dict[str, list[float]] = {}
    blocks: dict[str, Callable[[], object]] = {}
    for name, backend in subject.engines.items():
        pipeline = subject.pipeline(backend, 1)
        frames = pipeline.prepare(path, setup).frame.pixels[None]
        for key, call in (
            (f"{name} engine", partial(backend.run, frames, subject.recipe)),
            (f"{name} predict", partial(predict, pipeline, [path], setup)),
        ):
            samples[key] = []
            blocks[key] = partial(_block, call, samples[key])
    began = time.perf_counter()
    for block in blocks.values():
        block()
    rounds = int(np.clip(seconds / (time.perf_counter() - began), FEWEST, MOST))
    for found in samples.values():
        found.clear()
    alternate(blocks, rounds)
    return [
        {
            "engine": str(name),
            "run_ms": percentiles_ms(samples[f"{name} engine"]),
            "predict_ms": percentiles_ms(samples[f"{name} predict"]),
        }
        for name in subject.engines
    ]


def cold_start(subject: Subject, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds from the start of a process to its first Prediction, by step; medians over `repeats` children.

    The files are in the page cache, as on a tool that restarts its program.
    """
    rows = []
    for name in subject.engines:
        children = [
            run_child(
                "benchmarks.speed.coldstart:first_prediction",
                {
                    "bundle": str(subject.folder),
                    "backend": name.backend,
                    "precision": name.precision,
                    "device": name.device,
                    "threads": subject.threads,
                    "frame": subject.frames[0],
                    "spawned": time.time(),
                },
            )
            for _ in range(repeats)
        ]
        steps = {step: statistics.median(child[step] for child in children) for step in children[0]}
        rows.append({"engine": str(name), "repeats": repeats, **steps})
    return rows


def import_time(repeats: int) -> dict[str, Any]:
    """Milliseconds of `import runtime` in a fresh process: median and range."""
    found = [run_child("benchmarks.speed.coldstart:import_runtime", {})["import_ms"] for _ in range(repeats)]
    return {"median_ms": statistics.median(found), "min_ms": min(found), "max_ms": max(found), "repeats": repeats}


def _block(call: Callable[[], object], samples: list[float]) -> None:
    call()
    for _ in range(BLOCK - 1):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
