"""PyTorch beside the engines: the same graph, eager and through torch.compile. Needs the `export` extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.engines import Skipped
from benchmarks.throughput import Run
from export.bundle import describe_encoder
from export.checkpoint import load_model
from export.graph import SemClipGraph
from runtime.errors import PredictorError
from runtime.manifest import Manifest
from runtime.recipe import TENSORS, Recipe


def torch_runs(
    manifest: Manifest, recipe: Recipe, arch: str, weights: Path | None, threads: int, *, compiled: bool
) -> tuple[dict[str, Run], list[Skipped]]:
    """Runners of the bundle's graph in fp32, and why torch.compile was left out if it was.

    weights: the file that the bundle was built from; None for random weights, which cost the same to run. Raises
    CheckpointError if they cannot be read, PredictorError if they are not the bundle's encoder.
    """
    graph = _graph(manifest, arch, weights)
    if threads:
        torch.set_num_threads(threads)
    runs: dict[str, Run] = {"torch eager/fp32": _Runner(graph)}
    if not compiled:
        return runs, [Skipped("torch compile/fp32", "left out by --quick")]
    # Whole or not at all, for each batch size: dynamo's habit is to go on in eager mode without a word.
    torch._dynamo.config.recompile_limit = 64
    runner = _Runner(torch.compile(graph, dynamic=False, fullgraph=True))
    try:
        runner(np.zeros((1, *manifest.encoder.input_size), np.uint8), recipe)
    except Exception as exc:  # no compiler, no headers, an unsupported system: inductor raises what it likes
        return runs, [Skipped("torch compile/fp32", f"does not work here: {str(exc).strip().splitlines()[0][:200]}")]
    return {**runs, "torch compile/fp32": runner}, []


def gpu_torch_runs(
    manifest: Manifest, recipe: Recipe, arch: str, weights: Path | None, frames: NDArray[np.uint8], *, compiled: bool
) -> tuple[dict[str, Run], list[Skipped]]:
    """The same in fp16 on the GPU, each with sums in fp32 and with sums in fp16 allowed.

    frames: real ones, uint8 [n, height, width]; they show which attention layers need fp32, as at export. The recipe's
    tensors stay on the GPU, as with the engines. Raises CheckpointError, PredictorError.
    """
    if not torch.cuda.is_available():
        return {}, [Skipped("torch", f"torch {torch.__version__} finds no GPU")]
    half = _graph(manifest, arch, weights).half_precision(torch.from_numpy(frames[:8])).cuda()
    variants: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {"torch eager/fp16": half}
    skipped = []
    if compiled:
        torch._dynamo.config.recompile_limit = 64
        whole = torch.compile(half, dynamic=False, fullgraph=True)
        try:
            _GpuRunner(whole, fp16_sums=False)(frames[:1], recipe)
            variants["torch compile/fp16"] = whole
        except Exception as exc:  # inductor raises what it likes
            skipped.append(
                Skipped("torch compile/fp16", f"does not work here: {str(exc).strip().splitlines()[0][:200]}")
            )
    else:
        skipped.append(Skipped("torch compile/fp16", "left out by --no-compile"))
    runs: dict[str, Run] = {name: _GpuRunner(call, fp16_sums=False) for name, call in variants.items()}
    runs |= {f"{name}, sums in fp16": _GpuRunner(call, fp16_sums=True) for name, call in variants.items()}
    return runs, skipped


def gpu_matrix_peaks(size: int, repeats: int = 20) -> dict[str, float]:
    """TFLOP/s of the best of `repeats` fp16 products of size x size, with sums in fp32 and in fp16."""
    peaks = {}
    square = torch.randn((size, size), device="cuda", dtype=torch.float16)
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
    """The bundle's graph in torch. Raises CheckpointError, PredictorError if it is not the bundle's."""
    model = load_model(arch, weights=weights, random_seed=None if weights else 0)
    encoder = manifest.encoder
    graph = SemClipGraph(model.encoder(), input_size=encoder.input_size if encoder.resizes_in_graph else None)
    described = describe_encoder(model, graph)
    same = described.id == encoder.id
    shape = ("image_size", "patch_size", "layers", "heads", "width", "text_dim", "levels")
    if (weights and not same) or any(getattr(described, key) != getattr(encoder, key) for key in shape):
        raise PredictorError(
            f"--arch {arch} with {weights or 'random weights'} is not the encoder of this bundle "
            f"({encoder.architecture}, {encoder.weights}): give what it was built from"
        )
    return graph


class _Runner:
    """Calls the graph on numpy frames as `Backend.run` does, without splitting the batch."""

    def __init__(self, graph: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        self.graph = graph

    def __call__(self, frames: NDArray[np.uint8], recipe: Recipe) -> object:
        with torch.inference_mode():
            tensors = [torch.tensor(recipe.tensors[name]) for name in TENSORS]
            return [part.numpy() for part in self.graph(torch.from_numpy(frames), *tensors)]


class _GpuRunner:
    """The same on the GPU: frames are copied there, answers back."""

    def __init__(self, graph: Callable[..., tuple[torch.Tensor, ...]], *, fp16_sums: bool) -> None:
        self.graph = graph
        self.fp16_sums = fp16_sums
        self.resident: tuple[Recipe, list[torch.Tensor]] | None = None

    def __call__(self, frames: NDArray[np.uint8], recipe: Recipe) -> object:
        if self.resident is None or self.resident[0] is not recipe:
            self.resident = recipe, [torch.tensor(recipe.tensors[name], device="cuda") for name in TENSORS]
        torch.backends.cuda.matmul.allow_fp16_accumulation = self.fp16_sums
        with torch.inference_mode():
            parts = self.graph(torch.from_numpy(frames).cuda(non_blocking=True), *self.resident[1])
            return [part.cpu().numpy() for part in parts]
