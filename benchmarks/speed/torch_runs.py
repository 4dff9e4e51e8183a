"""PyTorch for comparison: the same graph, eager and through torch.compile. Needs the `export` extra."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed.engines import Skipped
from benchmarks.speed.throughput import Run
from export.bundle import describe_encoder
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from runtime.errors import PredictorError
from runtime.manifest import Manifest
from runtime.recipe import TENSORS, Recipe

Repeated: TypeAlias = "Callable[[NDArray[np.uint8], Recipe, int], object]"
"""Runs a batch with a recipe a number of times; returns the last answers."""
Graph: TypeAlias = "Callable[..., tuple[torch.Tensor, ...]]"
DEVICE = "cuda"
IN_FLIGHT = 3
"""Batches queued on the GPU before waiting for the first of them, as with the engines."""


def torch_runs(
    manifest: Manifest,
    recipe: Recipe,
    arch: str,
    weights: Path | None,
    threads: int,
    *,
    compiled: bool,
    bf16: bool = False,
) -> tuple[dict[str, Run], list[Skipped]]:
    """Runners of the bundle's graph in fp32 and, with `bf16`, in it, and the reason for each that is left out.

    weights: the file that the bundle was built from; None for random weights, which cost the same to run. Raises
    CheckpointError for an unreadable file, PredictorError for weights of another encoder.
    """
    graph = _graph(manifest, arch, weights)
    if threads:
        torch.set_num_threads(threads)
    dtypes = {"fp32": None, **({"bf16": torch.bfloat16} if bf16 else {})}
    runs: dict[str, Run] = {f"torch eager/{name}": _Runner(graph, dtype) for name, dtype in dtypes.items()}
    if not compiled:
        return runs, [Skipped(f"torch compile/{name}", "left out by --quick") for name in dtypes]
    # Completely or not at all, for each batch size: dynamo would silently fall back to eager mode.
    torch._dynamo.config.recompile_limit = 64
    skipped = []
    for name, dtype in dtypes.items():
        runner = _Runner(torch.compile(graph, dynamic=False, fullgraph=True), dtype)
        try:
            runner(np.zeros((1, *manifest.encoder.input_size), np.uint8), recipe)
            runs[f"torch compile/{name}"] = runner
        except Exception as exc:  # no compiler, no headers, an unsupported system: inductor raises any exception
            why = f"does not work here: {str(exc).strip().splitlines()[0][:200]}"
            skipped.append(Skipped(f"torch compile/{name}", why))
    return runs, skipped


def half_graph(manifest: Manifest, arch: str, weights: Path | None, frames: NDArray[np.uint8]) -> SemClipGraph:
    """The bundle's graph in fp16.

    frames: real frames, uint8 [n, height, width]. They show which attention layers need fp32, as at export. Raises
    CheckpointError, PredictorError as `torch_runs` does.
    """
    return _graph(manifest, arch, weights).half_precision(torch.from_numpy(frames[:8]))


def gpu_torch_runs(
    graph: SemClipGraph, recipe: Recipe, frames: NDArray[np.uint8], *, compiled: bool
) -> tuple[dict[str, Repeated], list[Skipped]]:
    """Runners of a graph of `half_graph` on the GPU, each with sums in fp32 and with sums in fp16 allowed.

    PyTorch has the same advantages as the engines: page-locked memory, several batches in flight, resident recipe
    tensors and, compiled, CUDA graphs.
    """
    if not torch.cuda.is_available():
        return {}, [Skipped("torch", f"torch {torch.__version__} finds no GPU")]
    half = deepcopy(graph).to(DEVICE)
    runs: dict[str, Repeated] = {
        "torch eager/fp16": _GpuRunner(half, fp16_sums=False),
        "torch eager/fp16, sums in fp16": _GpuRunner(half, fp16_sums=True),
    }
    if not compiled:
        return runs, [Skipped("torch compile/fp16", "left out by --no-compile")]
    torch._dynamo.config.recompile_limit = 64
    # A captured graph keeps the accumulation of its capture: one copy for each.
    whole = {
        f"torch compile/fp16{note}": _GpuRunner(
            torch.compile(deepcopy(half), mode="reduce-overhead", dynamic=False, fullgraph=True), fp16_sums=fp16_sums
        )
        for note, fp16_sums in (("", False), (", sums in fp16", True))
    }
    try:
        for runner in whole.values():
            runner(frames[:1], recipe, 1)
    except Exception as exc:  # inductor raises any exception
        return runs, [Skipped("torch compile/fp16", f"does not work here: {str(exc).strip().splitlines()[0][:200]}")]
    return {**runs, **whole}, []


def gpu_matrix_peaks(size: int, repeats: int = 20) -> dict[str, float]:
    """TFLOP/s of the best of `repeats` fp16 products of size x size, with sums in fp32 and in fp16."""
    peaks = {}
    square = torch.randn((size, size), device=DEVICE, dtype=torch.float16)
    for name, allowed in (("fp32_sums", False), ("fp16_sums", True)):
        torch.backends.cuda.matmul.allow_fp16_accumulation = allowed
        best = float("inf")
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            torch.mm(square, square)
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3)
        peaks[name] = 2e-12 * size**3 / best
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    return peaks


def _graph(manifest: Manifest, arch: str, weights: Path | None) -> SemClipGraph:
    """The bundle's graph in torch. Raises CheckpointError, and PredictorError for another encoder."""
    model = load_model(arch, weights=weights, random_seed=None if weights else 0)
    encoder = manifest.encoder
    graph = SemClipGraph(
        model.encoder(),
        input_size=encoder.input_size if encoder.resizes_in_graph else None,
        value_path=encoder.value_path,
    )
    described = describe_encoder(model, graph)
    same = described.id == encoder.id
    shape = ("image_size", "patch_size", "layers", "heads", "width", "text_dim", "levels")
    if (weights and not same) or any(getattr(described, key) != getattr(encoder, key) for key in shape):
        raise PredictorError(
            f"--arch {arch} with {weights or 'random weights'} is not the encoder of this bundle "
            f"({encoder.architecture}, {encoder.weights}): name the architecture and weights that it was built from"
        )
    return graph


class _Runner:
    """Calls the graph on numpy frames like `Backend.run`, without splitting the batch.

    dtype: what autocast computes products in; None for fp32.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype | None) -> None:
        self.graph = graph
        self.dtype = dtype

    def __call__(self, frames: NDArray[np.uint8], recipe: Recipe) -> object:
        with torch.inference_mode(), torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            tensors = [torch.tensor(recipe.tensors[name]) for name in TENSORS]
            return [part.float().numpy() for part in self.graph(torch.from_numpy(frames), *tensors)]


class _GpuRunner:
    """Answers batch after batch on the GPU, with IN_FLIGHT queued. One stream suffices: copies are a small part."""

    def __init__(self, graph: Graph, *, fp16_sums: bool) -> None:
        self.graph = graph
        self.fp16_sums = fp16_sums
        self.resident: tuple[Recipe, list[torch.Tensor]] | None = None
        self.staged: dict[tuple[int, torch.Size], torch.Tensor] = {}

    def __call__(self, frames: NDArray[np.uint8], recipe: Recipe, count: int) -> list[NDArray[np.float32]]:
        if self.resident is None or self.resident[0] is not recipe:
            self.resident = recipe, [torch.tensor(recipe.tensors[name], device=DEVICE) for name in TENSORS]
        torch.backends.cuda.matmul.allow_fp16_accumulation = self.fp16_sums
        pixels = torch.from_numpy(frames)
        waiting: deque[tuple[torch.cuda.Event, list[torch.Tensor]]] = deque()
        answers: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for index in range(count):
                if len(waiting) == IN_FLIGHT:
                    answers = _collect(*waiting.popleft())
                waiting.append(self._queue(index % IN_FLIGHT, pixels, self.resident[1]))
        while waiting:
            answers = _collect(*waiting.popleft())
        return answers

    def _queue(
        self, slot: int, pixels: torch.Tensor, recipe: Sequence[torch.Tensor]
    ) -> tuple[torch.cuda.Event, list[torch.Tensor]]:
        """Queue one batch: an event, and the tensors that hold its answers after that event."""
        staged = self._staged(slot, pixels).copy_(pixels)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        parts = self.graph(staged.to(DEVICE, non_blocking=True), *recipe)
        # A graph overwrites its outputs when it runs again; the copies are queued before that.
        answers = [self._staged(slot, part).copy_(part, non_blocking=True) for part in parts]
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return done, answers

    def _staged(self, slot: int, like: torch.Tensor) -> torch.Tensor:
        """Page-locked memory of this slot for a tensor of this shape."""
        key = (slot, like.shape)
        if key not in self.staged:
            self.staged[key] = _page_locked(like.shape, like.dtype)
        return self.staged[key]


def _page_locked(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def _collect(done: torch.cuda.Event, answers: Sequence[torch.Tensor]) -> list[NDArray[np.float32]]:
    done.synchronize()
    return [part.numpy().copy() for part in answers]
