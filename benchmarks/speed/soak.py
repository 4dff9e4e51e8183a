"""Soak: stream for minutes without a pause, and record speed and memory of a child process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.machine import peak_memory_mb
from benchmarks.speed.child import run_child
from benchmarks.speed.engines import EngineName, Subject
from benchmarks.speed.timing import slope
from runtime.host import resident_memory_mb

WINDOWS_PER_RUN = 10
LONGEST_WINDOW_S = 60.0


def soak(subject: Subject, name: EngineName, batch: int, minutes: float) -> dict[str, Any]:
    """Frames/s and resident MB in windows of at most a minute, and their drift.

    drift_percent_per_minute: slope of the speed relative to its mean. last_over_first: speed of the last window divided
    by that of the first. growth_mb_per_minute: slope of the memory from the second window on (the first fills caches).
    """
    arguments = {
        "bundle": str(subject.folder),
        "backend": name.backend,
        "precision": name.precision,
        "device": name.device,
        "threads": subject.threads,
        "frames": subject.frames,
        "batch": batch,
        "seconds": 60 * minutes,
    }
    windows = run_child("benchmarks.speed.soak:soak_probe", arguments)["windows"]
    return {"engine": str(name), "batch": batch, "minutes": minutes, **drift(windows), "windows": windows}


def drift(windows: list[dict[str, float]]) -> dict[str, float]:
    """The summary of `soak` from its windows: minute, frames_per_second, resident_mb."""
    minutes = [window["minute"] for window in windows]
    speed = [window["frames_per_second"] for window in windows]
    memory = [window["resident_mb"] for window in windows]
    settled = slice(1, None) if len(windows) > 2 else slice(None)
    return {
        "frames_per_second": sum(speed) / len(speed),
        "drift_percent_per_minute": 100 * slope(minutes, speed) * len(speed) / sum(speed),
        "last_over_first": speed[-1] / speed[0],
        "growth_mb_per_minute": slope(minutes[settled], memory[settled]),
        "growth_mb": memory[-1] - memory[settled][0],
    }


def soak_probe(
    bundle: str,
    backend: str,
    precision: str | None,
    device: int | str | None,
    threads: int,
    frames: list[str],
    batch: int,
    seconds: float,
) -> dict[str, Any]:
    """In a child: stream `frames` repeatedly for `seconds`; minute, frames/s and resident MB of each window."""
    from runtime import FailedFrame, Predictor

    window = min(LONGEST_WINDOW_S, seconds / WINDOWS_PER_RUN)
    windows = []
    with Predictor(
        bundle, backend=backend, precision=precision, device=device, batch_size=batch, threads=threads
    ) as predictor:
        predictor.predict(frames[:batch])
        began = opened = time.monotonic()

        def paths() -> Iterator[str]:
            while time.monotonic() - began < seconds:
                yield from frames

        count = 0
        for result in predictor.stream(paths()):
            if isinstance(result, FailedFrame):
                raise result.error
            count += 1
            now = time.monotonic()
            if now - opened >= window:
                windows.append(
                    {
                        "minute": (now - began) / 60,
                        "frames_per_second": count / (now - opened),
                        "resident_mb": resident_memory_mb() or peak_memory_mb(),
                    }
                )
                opened, count = now, 0
    return {"windows": windows}
