"""The host's side of a stream: whether decoding, resizing and post-processing can feed the engine."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.speed.engines import Subject
from benchmarks.speed.timing import alternate, per_second, ratio
from runtime.backends import Backend, FakeBackend
from runtime.frames import decode_frame, prepare, read_frame
from runtime.host import usable_cores
from runtime.pipeline import Pipeline
from runtime.prediction import FailedFrame
from runtime.stream import stream


def host_limit(subject: Subject, rounds: int) -> dict[str, Any]:
    """The lower bound: milliseconds of one core per frame, by step, and the frames/s that one core can reach.

    Pillow's own decoding is measured for comparison. The figures are CPU time in the best round: a busy machine can
    only raise them.
    """
    encoder, options = subject.manifest.encoder, subject.recipe.frame
    pipeline, setup = subject.pipeline(FakeBackend(encoder, max_batch=len(subject.frames)), 1), subject.setup
    grey = [decode_frame(path, options, path).pixels for path in subject.frames]
    first = read_frame(subject.frames[0], options)
    jobs = [pipeline.prepare(path, setup) for path in subject.frames]
    outputs, _ = pipeline.infer(jobs)
    bytes_mean = statistics.mean(Path(path).stat().st_size for path in subject.frames)
    steps: dict[str, Callable[[], object]] = {
        # A stream releases its frames; keeping all of them would allocate new pages for each.
        "pillow_decode": lambda: deque(map(_pillow_decode, subject.frames), maxlen=0),
        "decode": lambda: deque((decode_frame(path, options, path) for path in subject.frames), maxlen=0),
        "resize": lambda: [prepare(pixels, encoder, options, "frame") for pixels in grey],
        "postprocess": lambda: pipeline.finish(jobs, outputs, 0.0),
    }
    ms = {}
    for name, call in steps.items():
        call()
        times = []
        for _ in range(rounds):
            began = time.thread_time()
            call()
            times.append(time.thread_time() - began)
        ms[name] = 1e3 * min(times) / len(subject.frames)
    return {
        "frame_size": list(first.shape),
        "png_bytes": bytes_mean,
        "cpu_ms_per_frame": ms,
        "frames_per_second_per_core": 1e3 / (ms["decode"] + ms["resize"] + ms["postprocess"]),
    }


def fake_stream(subject: Subject, batches: Sequence[int], rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Frames per second of `stream` over the PNG files with the fake engine, by batch size and decoders."""
    cores = usable_cores()
    paths = subject.frames * repeats
    cpu: dict[tuple[int, int], list[float]] = {}
    runs: dict[tuple[int, int], Callable[[], object]] = {}
    for batch in batches:
        pipeline = subject.pipeline(FakeBackend(subject.manifest.encoder, max_batch=batch), batch)
        for decoders in sorted({1, 2, cores}):
            seconds = cpu[batch, decoders] = []
            runs[batch, decoders] = partial(_stream, pipeline, subject, paths, decoders, seconds)
    measured = alternate(runs, rounds)
    return [
        {
            "batch": batch,
            "decoders": decoders,
            "frames_per_second": per_second(len(paths), measured[batch, decoders]),
            "best_frames_per_second": len(paths) / min(measured[batch, decoders]),
            "cpu_ms_per_frame": 1e3 * statistics.median(seconds) / len(paths),
            "cores": cores,
        }
        for (batch, decoders), seconds in cpu.items()
    ]


def end_to_end(subject: Subject, batch: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """`stream` over the PNG files, alternating with the engine alone on the same frames, prepared before."""
    paths, setup = subject.frames * repeats, subject.setup
    rows = []
    for name, backend in subject.engines.items():
        pipeline = subject.pipeline(backend, batch)
        pixels = [pipeline.prepare(path, setup).frame.pixels for path in subject.frames] * repeats
        measured = alternate(
            {
                "engine": partial(_engine_alone, backend, subject, pixels, pipeline.batch_size),
                "stream": partial(_stream, pipeline, subject, paths, min(8, usable_cores()), []),
            },
            rounds,
        )
        rows.append(
            {
                "engine": str(name),
                "batch": pipeline.batch_size,
                "engine_frames_per_second": per_second(len(paths), measured["engine"]),
                "stream_frames_per_second": per_second(len(paths), measured["stream"]),
                "stream_over_engine": ratio(measured["engine"], measured["stream"]),
                "rounds": rounds,
            }
        )
    return rows


def _engine_alone(backend: Backend, subject: Subject, pixels: list[Any], size: int) -> None:
    for start in range(0, len(pixels), size):
        backend.run(np.stack(pixels[start : start + size]), subject.recipe)


def _stream(pipeline: Pipeline, subject: Subject, paths: list[str], decoders: int, cpu_seconds: list[float]) -> None:
    """Run a whole stream, and append its CPU seconds. Raises FrameError: failed frames would make it look fast."""
    began = time.process_time()
    setup = subject.setup
    for result in stream(pipeline, paths, lambda: setup, decoders):
        if isinstance(result, FailedFrame):
            raise result.error
    cpu_seconds.append(time.process_time() - began)


def _pillow_decode(path: str) -> None:
    with Image.open(path) as image:
        image.load()
