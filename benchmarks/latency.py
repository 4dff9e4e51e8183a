"""How long one frame takes: warm, from a cold process, and what `import runtime` costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.child import run_child
from benchmarks.engines import Subject, predict
from benchmarks.timing import alternate, percentiles_ms

FEWEST, MOST = 10, 1000


def warm_latency(subject: Subject, seconds: float) -> list[dict[str, Any]]:
    """Percentiles at batch 1, engines alternating frame by frame for about `seconds`.

    engine: `Backend.run` on a prepared frame. predict: from the PNG file to the Prediction.
    """
    setup = subject.setup
    runs: dict[str, Callable[[], object]] = {}
    for name, backend in subject.engines.items():
        pipeline = subject.pipeline(backend, 1)
        path = subject.frames[0]
        frames = pipeline.prepare(path, setup).frame.pixels[None]
        runs[f"{name} engine"] = partial(backend.run, frames, subject.recipe)
        runs[f"{name} predict"] = partial(predict, pipeline, [path], setup)
    measured = alternate(runs, _rounds(runs, seconds))
    return [
        {
            "engine": str(name),
            "run_ms": percentiles_ms(measured[f"{name} engine"]),
            "predict_ms": percentiles_ms(measured[f"{name} predict"]),
        }
        for name in subject.engines
    ]


def cold_start(subject: Subject, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds from starting a process to its first Prediction, step by step; medians over `repeats` children.

    The files are in the system's page cache, as on a tool that restarts a program.
    """
    rows = []
    for name in subject.engines:
        children = [
            run_child(
                "benchmarks.coldstart:first_prediction",
                {
                    "bundle": str(subject.folder),
                    "backend": name.backend,
                    "precision": name.precision,
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
    """Milliseconds that `import runtime` takes in a fresh process: median and range."""
    found = [run_child("benchmarks.coldstart:import_runtime", {})["import_ms"] for _ in range(repeats)]
    return {"median_ms": statistics.median(found), "min_ms": min(found), "max_ms": max(found), "repeats": repeats}


def _rounds(runs: dict[str, Callable[[], object]], seconds: float) -> int:
    """How often all runs fit into `seconds`."""
    for call in runs.values():
        call()
    began = time.perf_counter()
    for call in runs.values():
        call()
    return int(np.clip(seconds / (time.perf_counter() - began), FEWEST, MOST))
