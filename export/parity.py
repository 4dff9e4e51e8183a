"""Parity: how far an exported artifact is from torch, on real frames, through the engine that will run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.backends import Outputs
from runtime.backends.ort import OrtCpuBackend
from runtime.manifest import Artifact
from runtime.recipe import TENSORS, Recipe

from .errors import ParityError
from .graph import SemClipGraph

TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "fp16": 1e-2}
"""Largest absolute difference allowed on probabilities and defect map, by precision."""
MAX_FRAMES = 32
_BATCH = 8


def torch_outputs(graph: SemClipGraph, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
    """What torch answers in fp32: the reference. frames: uint8 [n, height, width]."""
    tensors = [torch.tensor(recipe.tensors[name]) for name in TENSORS]
    with torch.inference_mode():
        parts = [graph(torch.from_numpy(frames[i : i + _BATCH]), *tensors) for i in range(0, len(frames), _BATCH)]
    return Outputs(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def artifact_outputs(folder: Path, artifact: Artifact, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
    """What the artifact answers through the production backend."""
    with OrtCpuBackend(folder, artifact) as backend:
        parts = [backend.run(frames[i : i + _BATCH], recipe) for i in range(0, len(frames), _BATCH)]
    return Outputs(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.defect_map for part in parts]),
        np.concatenate([part.features for part in parts]),
    )


def measure_parity(reference: Outputs, outputs: Outputs, precision: str, source: str) -> dict[str, Any]:
    """The parity report of one artifact; `passed` says whether it is within tolerance.

    Labels must be equal, except on frames where torch's own two best classes are within a tenth of the tolerance of
    each other: those are ties, counted apart, or one toss of a coin in thousands of frames would fail an export.
    """
    tolerance = TOLERANCE[precision]
    probabilities = _largest(outputs.probabilities, reference.probabilities)
    defect_map = _largest(outputs.defect_map, reference.defect_map)
    second, first = np.sort(reference.probabilities, axis=1)[:, -2:].T
    equal = outputs.probabilities.argmax(1) == reference.probabilities.argmax(1)
    ties = ~equal & (first - second <= tolerance / 10)
    return {
        "frames": len(equal),
        "frame_source": source,
        "reference": f"torch {torch.__version__} fp32",
        "tolerance": tolerance,
        "max_abs_probability": probabilities,
        "max_abs_defect_map": defect_map,
        "max_abs_features": _largest(outputs.features, reference.features),
        "labels_equal": int(equal.sum()),
        "label_ties": int(ties.sum()),
        "passed": bool(probabilities <= tolerance and defect_map <= tolerance and (equal | ties).all()),
    }


def require_parity(file: str, report: Mapping[str, Any]) -> None:
    """Raise ParityError, with the figures, if the report did not pass."""
    if not report["passed"]:
        raise ParityError(
            f"{file} does not agree with torch on {report['frames']} frames: probabilities differ by up to "
            f"{report['max_abs_probability']:.2e}, the map by up to {report['max_abs_defect_map']:.2e} "
            f"(allowed {report['tolerance']:.0e}), {report['labels_equal']} labels are equal; nothing was written"
        )


def spread(items: Sequence[Any], count: int = MAX_FRAMES) -> list[Any]:
    """At most `count` items, evenly spaced over the sequence, so that every class is among them."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest absolute difference; NaN counts as infinite, or it would pass every test."""
    difference = np.abs(a.astype(np.float64) - b)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")
