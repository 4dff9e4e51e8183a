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
    if threads:
        torch.set_num_threads(threads)
    runs: dict[str, Run] = {"torch eager/fp32": _Runner(graph)}
    if not compiled:
        return runs, [Skipped("torch compile/fp32", "left out by --quick")]
    # Whole or not at all, for each batch size: dynamo's habit is to go on in eager mode without a word.
    torch._dynamo.config.recompile_limit = 64
    runner = _Runner(torch.compile(graph, dynamic=False, fullgraph=True))
    try:
        runner(np.zeros((1, *encoder.input_size), np.uint8), recipe)
    except Exception as exc:  # no compiler, no headers, an unsupported system: inductor raises what it likes
        return runs, [Skipped("torch compile/fp32", f"does not work here: {str(exc).strip().splitlines()[0][:200]}")]
    return {**runs, "torch compile/fp32": runner}, []


class _Runner:
    """Calls the graph on numpy frames as `Backend.run` does, without splitting the batch."""

    def __init__(self, graph: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        self.graph = graph

    def __call__(self, frames: NDArray[np.uint8], recipe: Recipe) -> object:
        with torch.inference_mode():
            tensors = [torch.tensor(recipe.tensors[name]) for name in TENSORS]
            return [part.numpy() for part in self.graph(torch.from_numpy(frames), *tensors)]
