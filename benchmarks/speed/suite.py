"""All sections on one bundle, for `sem-clip benchmark`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import memory
from benchmarks.machine import describe_machine, load
from benchmarks.speed import SECTIONS, growth, host, latency, roofline
from benchmarks.speed.engines import Skipped, Subject, opened_engines
from benchmarks.speed.feeding import feeding
from benchmarks.speed.frames import suitable_size, write_frames
from benchmarks.speed.soak import soak
from benchmarks.speed.throughput import Run, throughput, time_split
from runtime.commands import find_frames
from runtime.errors import PredictorError
from runtime.manifest import Artifact, load_bundle
from runtime.recipe import Recipe

FORMAT = "sem-clip-benchmark"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """The amount of measurement. More engines take longer in proportion.

    batches: sizes for throughput. batch: size for the other sections. rounds: of alternating runs. latency_s: seconds
    for warm latency. children: processes for cold start and import. frames: PNG files to make. stream_frames: frames
    of the two memory probes. repeats: passes over the files in the host section. classes: numbers of classes for the
    growth section. soak_minutes: 0 for none. threads: 0 for all cores. device: the GPU of GPU backends, None for
    the first.
    """

    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    sections: tuple[str, ...] = SECTIONS
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    batch: int = 8
    rounds: int = 7
    latency_s: float = 20.0
    children: int = 5
    frames: int = 48
    stream_frames: tuple[int, int] = (50, 2000)
    repeats: int = 2
    classes: tuple[int, ...] = growth.CLASSES
    soak_minutes: float = 0.0
    threads: int = 0
    device: int | str | None = None
    quick: bool = False


QUICK: Mapping[str, Any] = {
    "batches": (1, 8),
    "rounds": 3,
    "latency_s": 3.0,
    "children": 3,
    "frames": 16,
    "stream_frames": (20, 200),
    "repeats": 1,
    "classes": (2, 64),
    "quick": True,
}
"""Changes of --quick: for a first look, not for figures to quote."""


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """The source of the PyTorch baseline. weights: None for random weights, which cost the same to run."""

    arch: str
    weights: Path | None


def measure(
    bundle: Path, work: Path, settings: Settings, frames: list[str] | None = None, torch: TorchOptions | None = None
) -> dict[str, Any]:
    """The whole report, JSON-ready. work: an empty folder for generated frames.

    frames: paths or folders of images to use instead; all of one size.
    Raises BundleError, BackendUnavailable, FrameError, and PredictorError for a torch model of another encoder.
    """
    began = time.monotonic()
    manifest, recipe = load_bundle(bundle)
    machine = describe_machine()
    with ExitStack() as stack:
        opened, skipped = stack.enter_context(
            opened_engines(bundle, manifest, settings.backends, settings.precisions, settings.threads, settings.device)
        )
        size = suitable_size(manifest.encoder, recipe.frame)
        paths = find_frames(frames) if frames else write_frames(work / "frames", settings.frames, size)
        subject = Subject(bundle, manifest, _of_whole_frames(recipe), opened, paths, settings.threads)
        others: dict[str, Run] = {}
        if torch is not None:
            others, left_out = _torch(subject, torch, settings)
            skipped = [*skipped, *left_out]
        sections = _measure_sections(subject, settings, work, others, skipped)
        engines = {str(name): backend.description for name, backend in opened.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.monotonic() - began,
        "machine": machine,
        "load_after": load(),
        "bundle": {
            "folder": bundle.name,
            "architecture": manifest.encoder.architecture,
            "weights": manifest.encoder.weights,
            "classes": len(recipe.classes),
            "tile": recipe.frame.tile,
            "artifacts": {artifact.file: artifact.sha256 for artifact in manifest.artifacts},
            "engines": engines,
        },
        "settings": asdict(settings),
        "skipped": [asdict(item) for item in skipped],
        "sections": sections,
    }


def _of_whole_frames(recipe: Recipe) -> Recipe:
    """The same recipe without tiles: a row of the engine is then a frame, as all sections count them."""
    return replace(recipe, frame=replace(recipe.frame, tile=0, overlap=0, whole=False))


def _measure_sections(
    subject: Subject, settings: Settings, work: Path, others: Mapping[str, Run], skipped: list[Skipped]
) -> dict[str, Any]:
    """The requested sections, and the soak; each one starts and ends with a line on stderr."""
    sections: dict[str, Any] = {}
    for name in settings.sections:
        print(f"{name} ...", file=sys.stderr, flush=True)
        since = time.monotonic()
        sections[name] = _SECTIONS[name](_Bench(subject, settings, work, others, sections, skipped))
        print(f"{name:<28}{time.monotonic() - since:8.1f} s", file=sys.stderr, flush=True)
    if settings.soak_minutes:
        print(f"soak, {settings.soak_minutes:g} minutes ...", file=sys.stderr, flush=True)
        sections["soak"] = soak(subject, next(iter(subject.engines)), settings.batch, settings.soak_minutes)
    return sections


@dataclass(frozen=True, slots=True)
class _Bench:
    """The inputs of a section; `done` holds the sections before it."""

    subject: Subject
    settings: Settings
    work: Path
    others: Mapping[str, Run]
    done: Mapping[str, Any]
    skipped: list[Skipped] = field(default_factory=list)


def _latency(bench: _Bench) -> dict[str, Any]:
    return {
        "warm": latency.warm_latency(bench.subject, bench.settings.latency_s),
        "cold": latency.cold_start(bench.subject, bench.settings.children),
        "import": latency.import_time(bench.settings.children),
    }


def _throughput(bench: _Bench) -> list[dict[str, Any]]:
    return throughput(bench.subject, bench.others, bench.settings.batches, bench.settings.rounds)


def _split(bench: _Bench) -> list[dict[str, Any]]:
    return time_split(bench.subject, bench.settings.batch, bench.settings.rounds)


def _host(bench: _Bench) -> dict[str, Any]:
    subject, settings = bench.subject, bench.settings
    return {
        "limit": host.host_limit(subject, settings.rounds),
        "fake": host.fake_stream(subject, (settings.batch, 2 * settings.batch), settings.rounds, 4 * settings.repeats),
        "feeding": feeding(subject, settings.batch, settings.rounds, 4 * settings.repeats),
        "end_to_end": host.end_to_end(subject, settings.batch, settings.rounds, settings.repeats),
    }


def _memory(bench: _Bench) -> dict[str, Any]:
    return {
        "engines": memory.engine_memory(bench.subject, bench.settings.batch),
        "stream": memory.stream_memory(bench.subject, bench.settings.stream_frames),
    }


def _growth(bench: _Bench) -> dict[str, Any]:
    subject, settings = bench.subject, bench.settings
    return {
        "threads": growth.over_threads(subject, settings.batch, settings.rounds),
        "frame_sizes": growth.over_frame_sizes(subject, bench.work / "sizes", settings.rounds),
        "tiles": growth.over_tiles(subject, bench.work / "tiles", settings.rounds),
        "classes": growth.over_classes(subject, settings.classes, settings.batch, settings.rounds),
    }


def _roofline(bench: _Bench) -> dict[str, Any]:
    subject = bench.subject
    flops = roofline.count_flops(subject.folder / _countable(subject).file)
    peak = roofline.measured_peak(subject.threads)
    rows = bench.done.get("throughput") or throughput(subject, {}, (bench.settings.batch,), bench.settings.rounds)
    return {"flops": flops, "peak": peak, "reached": roofline.reached(rows, flops["gflop_per_frame"], peak["gflops"])}


def _countable(subject: Subject) -> Artifact:
    """The ONNX artifact to count operations in: fp32, else any."""
    graphs = [artifact for artifact in subject.manifest.artifacts if artifact.kind == "onnx"]
    if not graphs:
        raise PredictorError(f"{subject.folder}: holds no ONNX artifact to count operations in; leave roofline out")
    return next((artifact for artifact in graphs if artifact.precision == "fp32"), graphs[0])


def _torch(subject: Subject, options: TorchOptions, settings: Settings) -> tuple[dict[str, Run], list[Skipped]]:
    try:
        from benchmarks.speed.torch_runs import torch_runs
    except ImportError as exc:
        raise PredictorError(
            f'comparing with PyTorch needs the export extra ({exc}): pip install "sem-clip[export]"'
        ) from exc
    return torch_runs(
        subject.manifest,
        subject.recipe,
        options.arch,
        options.weights,
        settings.threads,
        compiled=not settings.quick,
        bf16=any(backend.precision.endswith("bf16") for backend in subject.engines.values()),
    )


_SECTIONS: Mapping[str, Callable[[_Bench], Any]] = {
    "latency": _latency,
    "throughput": _throughput,
    "split": _split,
    "host": _host,
    "memory": _memory,
    "growth": _growth,
    "roofline": _roofline,
}
