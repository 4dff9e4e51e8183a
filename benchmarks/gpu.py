"""Throughput and latency of the GPU backends and of PyTorch on the same GPU: `python -m benchmarks.gpu BUNDLE`.

    python -m benchmarks.gpu bundle --arch vit_b_16_plus_240 --random-weights --out figures/

All runs alternate in one process. "engine" is `Backend.run`, called from enough threads to keep the backend busy, with
frames and answers on the host. "end to end" is `Predictor.stream` over image files. PyTorch gets the same frames and
gives the same answers, with as many batches in flight: eager, torch.compile with CUDA graphs, and each with fp16
accumulation allowed. With --arch, ONNX Runtime's CUDA provider also runs the encoder with and without the V path.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.speed.engines import EngineName, Skipped, Subject
from benchmarks.speed.frames import suitable_size, write_frames
from benchmarks.speed.latency import warm_latency
from benchmarks.speed.report import table
from benchmarks.speed.roofline import count_flops
from benchmarks.speed.throughput import prepared_frames
from benchmarks.speed.timing import alternate, per_second, ratio
from runtime.backends import GPU_BACKENDS, Backend, open_backend
from runtime.backends.cuda_device import CudaDevice
from runtime.backends.ort import cuda_provider
from runtime.cli import run as run_command
from runtime.commands import find_frames
from runtime.errors import BackendUnavailable, PredictorError
from runtime.files import require_files, write_atomically
from runtime.host import Gpu as Card
from runtime.host import find_gpu
from runtime.manifest import Manifest, load_bundle
from runtime.options import add_device_argument
from runtime.recipe import Recipe
from runtime.stream import stream
from runtime.terminal import markdown_text, require_stdout

if TYPE_CHECKING:
    from benchmarks.speed.torch_runs import Repeated

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FRAMES_A_RUN, LEAST_BATCHES = 512, 16
"""Frames, and least number of batches, of one timed run: filling the pipeline then takes a small share."""
STREAMED = 1024
PEAK_SIZE = 8192
STATE = "name,driver_version,temperature.gpu,clocks.sm,clocks.mem,power.draw,utilization.gpu,memory.used"
MEMORY_BATCH = 64
RESULT, TABLE = "gpu.json", "gpu.md"
PERCENTILES = ("p50", "p95", "p99")


class Gpu:
    """The benchmark as a command."""

    help = "Measure the GPU backends of a bundle, and PyTorch where it is installed."
    example = "python -m benchmarks.gpu bundle --arch vit_b_16_plus_240 --random-weights --out figures/"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("bundle", type=Path, help="folder written by build_engine.py")
        parser.add_argument(
            "--backend", action="append", choices=GPU_BACKENDS, help="some of them (default: all that run here)"
        )
        add_device_argument(parser)
        parser.add_argument("--batch", default=",".join(map(str, BATCHES)), help="batch sizes (default: %(default)s)")
        parser.add_argument("--rounds", type=int, default=7, help="rounds of alternating runs (default: 7)")
        parser.add_argument("--latency-seconds", type=float, default=20.0, help="for batch 1 (default: 20)")
        parser.add_argument("--frames", nargs="+", metavar="PATH", help="image files of one size (default: made)")
        parser.add_argument("--arch", help="architecture of the bundle: adds PyTorch")
        parser.add_argument("--weights", type=Path, help="the weights that the bundle was built from")
        parser.add_argument("--random-weights", action="store_true", help="PyTorch with random weights of --arch")
        parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out; it takes minutes")
        parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {RESULT} and gpu.md here")
        parser.add_argument("--force", action="store_true", help="replace an earlier result in DIR")

    def run(self, args: argparse.Namespace) -> int:
        """Measure, print the table, write both files."""
        if args.arch is not None and (args.weights is None) != args.random_weights:
            raise PredictorError("--arch needs either --weights FILE, those of the bundle, or --random-weights")
        gpu, why = find_gpu(args.device)
        if gpu is None:
            raise BackendUnavailable(f"there is no GPU to measure: {why}")
        batches = _batches(args.batch)
        if args.out is not None:
            require_files([args.out / RESULT, args.out / TABLE], force=args.force)
        else:
            require_stdout("name a folder with --out")
        with tempfile.TemporaryDirectory() as work:
            report = measure(args, gpu, batches, Path(work))
        text = markdown(report)
        if args.out is not None:  # before anything is printed about it
            write_atomically(args.out / TABLE, text.encode())
            write_atomically(args.out / RESULT, json.dumps(report, indent=1, allow_nan=False).encode())
        print(text)
        return 0


def measure(args: argparse.Namespace, gpu: Card, batches: Sequence[int], work: Path) -> dict[str, Any]:
    """The report on one GPU, JSON-ready.

    Raises BundleError; BackendUnavailable if no backend runs here, or not the named one.
    """
    manifest, recipe = load_bundle(args.bundle)
    before = gpu_state(gpu)
    with ExitStack() as stack:
        engines, skipped, memory = _opened(args, gpu, manifest, recipe, stack)
        size = suitable_size(manifest.encoder, recipe.frame)
        paths = find_frames(args.frames) if args.frames else write_frames(work / "frames", 64, size)
        subject = Subject(args.bundle, manifest, recipe, engines, paths, 0)
        others, peak, value_path = _torch(args, gpu, subject, batches, work, skipped) if args.arch else ({}, None, [])
        rows = engine_throughput(subject, others, batches, args.rounds)
        report = {
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": describe_machine(),
            "gpu": {"before": before, "after": gpu_state(gpu)},
            "bundle": {"architecture": manifest.encoder.architecture, "weights": manifest.encoder.weights},
            "engines": {str(name): backend.description for name, backend in engines.items()},
            "skipped": [asdict(item) for item in skipped],
            "device_memory_mb": memory,
            "latency": warm_latency(subject, args.latency_seconds),
            "throughput": rows,
            "end_to_end": end_to_end(subject, max(batches), args.rounds),
            "value_path": value_path,
            "peak": peak,
        }
        source = next((a.file for a in manifest.artifacts if a.kind == "onnx"), None)
        if source is not None:
            flops = count_flops(args.bundle / source)["gflop_per_frame"]
            report["roofline"] = shares(rows, flops, peak)
    return report


def engine_throughput(
    subject: Subject, others: Mapping[str, Repeated], batches: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each batch size and runner; `times_base` is its speed relative to the first of its batch size."""
    pixels = prepared_frames(subject, max(batches))
    rows = []
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ThreadPoolExecutor(backend.in_flight))
            for name, backend in subject.engines.items()
        }
        for batch in batches:
            count = _count(batch)
            frames = pixels[:batch]
            runs: dict[str, Callable[[], object]] = {
                name: partial(run, frames, subject.recipe, count) for name, run in others.items()
            }
            for name, backend in subject.engines.items():
                if batch <= backend.max_batch:
                    call = partial(backend.run, frames, subject.recipe)
                    runs[str(name)] = partial(_together, pools[name], call, count)
            if not runs:
                continue
            measured = alternate(runs, rounds)
            base = next(iter(measured))
            for runner, seconds in measured.items():
                rows.append(
                    {
                        "engine": runner,
                        "batch": batch,
                        "frames_per_second": per_second(batch * count, seconds),
                        "base": base,
                        "times_base": ratio(measured[base], seconds),
                    }
                )
    return rows


def end_to_end(subject: Subject, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Frames/s of `stream` over files: decoding, resizing, copies, compute and post-processing."""
    paths = list(_cycled(subject.frames, STREAMED))
    runs: dict[str, Callable[[], object]] = {}
    for name, backend in subject.engines.items():
        pipeline = subject.pipeline(backend, min(batch, 64))
        decoders = int(describe_machine()["cores"])
        runs[str(name)] = partial(_drain, partial(stream, pipeline, paths, lambda: subject.setup, decoders))
    measured = alternate(runs, max(3, rounds // 2))
    return [
        {"engine": name, "frames": len(paths), "frames_per_second": per_second(len(paths), seconds)}
        for name, seconds in measured.items()
    ]


def shares(
    rows: Sequence[Mapping[str, Any]], gflop_per_frame: float, peak: Mapping[str, float] | None
) -> dict[str, Any]:
    """The best rate of each runner as TFLOP/s, and its share of each measured peak."""
    best: dict[str, float] = {}
    for row in rows:
        best[row["engine"]] = max(best.get(row["engine"], 0.0), row["frames_per_second"])
    found = {}
    for name, rate in best.items():
        tflops = rate * gflop_per_frame / 1e3
        found[name] = {"tflops": tflops, **{f"share_of_{key}": tflops / value for key, value in (peak or {}).items()}}
    return {"gflop_per_frame": gflop_per_frame, "engines": found}


def gpu_state(gpu: Card | None) -> dict[str, str] | None:
    """Name, driver, temperature, clocks and power of a GPU, from nvidia-smi; None without nvidia-smi."""
    if gpu is None or not gpu.bus or shutil.which("nvidia-smi") is None:
        return None
    # By its bus: nvidia-smi numbers all GPUs, CUDA those of CUDA_VISIBLE_DEVICES in an order of its own.
    query = ["nvidia-smi", f"--query-gpu={STATE}", "--format=csv,noheader", f"--id={gpu.bus}"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(STATE.split(","), (value.strip() for value in said.strip().split(",")), strict=False))


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    parts = [
        [*_head(report)],
        ["Latency at batch 1, ms", _latency(report["latency"])],
        [
            "Engine alone, frames/s",
            table(
                ("engine", "batch", "frames/s", "times the first"),
                [
                    (row["engine"], row["batch"], f"{row['frames_per_second']:.0f}", f"{row['times_base']:.2f}")
                    for row in report["throughput"]
                ],
            ),
        ],
        [
            "End to end from image files, frames/s",
            table(
                ("engine", "frames", "frames/s"),
                [(row["engine"], row["frames"], f"{row['frames_per_second']:.0f}") for row in report["end_to_end"]],
            ),
        ],
    ]
    if report["device_memory_mb"]:
        used = [f"- {name}: {found:.0f} MB" for name, found in report["device_memory_mb"].items()]
        parts.append([f"Device memory after batches of {MEMORY_BATCH}, without CUDA's own context", *used])
    if report["value_path"]:
        cost = [f"- batch {row['batch']}: {row['times_vanilla']:.3f}" for row in report["value_path"]]
        parts.append(["The V path, ONNX Runtime on CUDA: time of the encoder with it / without it", *cost])
    if "roofline" in report:
        parts.append(_roofline(report["roofline"], report["peak"]))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(report: Mapping[str, Any]) -> list[str]:
    """The bundle, the GPU and its state, versions, engines, and what was left out."""
    state = report["gpu"]["before"] or {}
    after = report["gpu"]["after"] or {}
    warmed = f", {state.get('temperature.gpu')} to {after.get('temperature.gpu')} C, SM clock {after.get('clocks.sm')}"
    gpu = f"{state.get('name', 'a GPU that nvidia-smi does not show')}, driver {state.get('driver_version')}"
    versions = ", ".join(f"{name} {version}" for name, version in report["machine"]["versions"].items())
    bundle = report["bundle"]
    return [
        f"{markdown_text(bundle['architecture'])} ({markdown_text(bundle['weights'])}) on {gpu}"
        f"{warmed if state else ''}; {report['taken']}; {versions}",
        *(f"- {name}: {markdown_text(text)}" for name, text in report["engines"].items()),
        *(f"- left out: {item['name']}: {markdown_text(item['reason'])}" for item in report["skipped"]),
    ]


def _latency(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ("engine", "run p50", "p95", "p99", "predict p50", "p95", "p99"),
        [
            (row["engine"], *(f"{row[kind][p]:.2f}" for kind in ("run_ms", "predict_ms") for p in PERCENTILES))
            for row in rows
        ],
    )


def _roofline(found: Mapping[str, Any], peak: Mapping[str, float] | None) -> list[str]:
    """Lines on the work per frame, the peaks, and each engine's share of them."""
    lines = [f"{found['gflop_per_frame']:.1f} GFLOP per frame"]
    peaks = (peak or {}).items()
    lines += [f"- measured peak, {name.replace('_', ' ')}: {value:.0f} TFLOP/s" for name, value in peaks]
    for name, engine in found["engines"].items():
        kept = [f"{100 * v:.0f} % of {k[9:].replace('_', ' ')}" for k, v in engine.items() if k != "tflops"]
        lines.append(f"- {name}: " + ", ".join([f"{engine['tflops']:.1f} TFLOP/s", *kept]))
    return lines


def _opened(
    args: argparse.Namespace, gpu: Card, manifest: Manifest, recipe: Recipe, stack: ExitStack
) -> tuple[dict[EngineName, Backend], list[Skipped], dict[str, float]]:
    """The engines, warm; those left out; and the device memory of each in MB, without CUDA's context."""
    engines: dict[EngineName, Backend] = {}
    skipped, memory = [], {}
    frames = np.zeros((MEMORY_BATCH, *manifest.encoder.input_size), np.uint8)
    for name in args.backend or GPU_BACKENDS:
        before = _free_mb(gpu)
        try:
            backend = stack.enter_context(open_backend(name, args.bundle, manifest, precision="fp16", device=gpu.index))
            backend.warm_up(recipe)
            with ThreadPoolExecutor(backend.in_flight) as pool:
                _together(pool, partial(backend.run, frames[: backend.max_batch], recipe), 2 * backend.in_flight)
            engines[EngineName(name, "fp16")] = backend
            memory[str(EngineName(name, "fp16"))] = before - _free_mb(gpu)
        except BackendUnavailable as exc:
            if args.backend:
                raise
            skipped.append(Skipped(name, str(exc)))
    if not engines:
        raise BackendUnavailable("no GPU backend runs here: " + "; ".join(item.reason for item in skipped))
    return engines, skipped, memory


def _count(batch: int) -> int:
    """Number of batches in one timed run."""
    return max(LEAST_BATCHES, FRAMES_A_RUN // batch)


def _free_mb(gpu: Card) -> float:
    device = CudaDevice(gpu.index)
    with device.current():
        return device.memory()[0] / 1e6


def _torch(
    args: argparse.Namespace, gpu: Card, subject: Subject, batches: Sequence[int], work: Path, skipped: list[Skipped]
) -> tuple[dict[str, Repeated], dict[str, float] | None, list[dict[str, Any]]]:
    """PyTorch's runners on the GPU, the peaks measured with it, and the V path's cost on the CUDA provider."""
    import torch

    from benchmarks.speed.torch_runs import gpu_matrix_peaks, gpu_torch_runs, half_graph
    from benchmarks.speed.trunk import export_trunks, value_path_cost

    if torch.cuda.is_available():
        torch.cuda.set_device(gpu.index)  # of this thread, which alone calls torch
    frames = prepared_frames(subject, max(batches))
    half = half_graph(subject.manifest, args.arch, args.weights, frames)
    rows = []
    cuda = next((backend for name, backend in subject.engines.items() if name.backend == "cuda"), None)
    if cuda is not None:
        rows = value_path_cost(
            export_trunks(half, work),
            cuda_provider("fp16", gpu.index),
            frames,
            batches,
            count=_count,
            rounds=args.rounds,
            in_flight=cuda.in_flight,
        )
    runs, left_out = gpu_torch_runs(half, subject.recipe, frames, compiled=not args.no_compile)
    skipped += left_out
    return runs, gpu_matrix_peaks(PEAK_SIZE) if runs else None, rows


def _together(pool: ThreadPoolExecutor, call: Callable[[], object], count: int) -> None:
    for future in [pool.submit(call) for _ in range(count)]:
        future.result()


def _drain(answers: Callable[[], Iterator[object]]) -> None:
    for _ in answers():
        pass


def _cycled(paths: Sequence[str], count: int) -> Iterator[str]:
    for index in range(count):
        yield paths[index % len(paths)]


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise PredictorError(f'"{text}" is not a list of batch sizes, such as 1,8,64')
    return found


if __name__ == "__main__":
    from runtime.cli import describe

    command = Gpu()
    parser = describe(argparse.ArgumentParser(), command)
    command.add_arguments(parser)
    sys.exit(run_command(command, parser.parse_args()))
