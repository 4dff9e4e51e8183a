"""Parity: how far an exported artifact is from torch on real frames, run by the production engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from runtime.agreement import TOLERANCE as TOLERANCE  # where others look for it, too
from runtime.agreement import Limits, compare, joined
from runtime.backends import Outputs
from runtime.backends.ort import OrtCpuBackend, check_provider
from runtime.manifest import Artifact, Encoder
from runtime.recipe import TENSORS, Recipe

from ..errors import ParityError
from ..model.graph import SemClipGraph

MAX_FRAMES = 32
_BATCH = 8


def torch_outputs(graph: SemClipGraph, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
    """The reference: outputs of torch in fp32. frames: uint8 [n, height, width]."""
    tensors = [torch.tensor(recipe.tensors[name]) for name in TENSORS]
    with torch.inference_mode():
        parts = [graph(torch.from_numpy(frames[i : i + _BATCH]), *tensors) for i in range(0, len(frames), _BATCH)]
    return Outputs(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def artifact_outputs(
    folder: Path, artifact: Artifact, encoder: Encoder, frames: NDArray[np.uint8], recipe: Recipe
) -> Outputs:
    """Outputs of the artifact, run by the production backend. frames: uint8 [n, height, width]."""
    with OrtCpuBackend(folder, artifact, encoder) as backend:
        parts = [backend.run(frames[i : i + _BATCH], recipe) for i in range(0, len(frames), _BATCH)]
    return joined(parts)


def measure_parity(reference: Outputs, outputs: Outputs, precision: str, source: str) -> dict[str, Any]:
    """The parity report of one artifact; `passed`: whether it is within tolerance.

    Labels must be equal, except for ties: frames whose two best classes, by torch, are within a tenth of the tolerance.
    Ties are counted apart; otherwise one such frame among thousands would fail an export.
    """
    tolerance = TOLERANCE[precision]
    difference = compare(reference, outputs, Limits.of(precision, tolerance))
    labels = difference.labels_equal + difference.label_ties == difference.frames
    return {
        "frames": difference.frames,
        "frame_source": source,
        "reference": f"torch {torch.__version__} fp32",
        "tolerance": tolerance,
        "max_abs_probability": difference.probabilities,
        "max_abs_defect_map": difference.defect_map,
        "max_abs_features": _largest(outputs.features, reference.features),
        "labels_equal": difference.labels_equal,
        "label_ties": difference.label_ties,
        "passed": difference.probabilities <= tolerance and difference.defect_map <= tolerance and labels,
    }


def require_parity(
    file: str, report: Mapping[str, Any], worst: Callable[[], Sequence[str]] | None = None, remedy: str = ""
) -> None:
    """Raise ParityError, with the figures, if the report did not pass.

    worst: returns lines that name where the outputs diverge. remedy: what the user can do.
    """
    if not report["passed"]:
        lines = [] if worst is None else ["", "where the outputs diverge:", *(f"  {line}" for line in worst())]
        raise ParityError(
            f"{file} does not agree with torch on {report['frames']} frames: probabilities differ by up to "
            f"{report['max_abs_probability']:.2e}, the map by up to {report['max_abs_defect_map']:.2e} "
            f"(allowed {report['tolerance']:.0e}), {report['labels_equal']} labels are equal; nothing was written"
            + (f"; {remedy}" if remedy else "")
            + "\n".join(lines)
        )


def worst_layers(reference: Path, other: Path, frames: NDArray[np.uint8], count: int = 8) -> list[str]:
    """The layer outputs that differ most between two ONNX files of one graph, as lines for people.

    Layers pass their errors on, so those come first at which the relative error grows most. Outputs are matched by
    name. frames: uint8 [n, height, width]; a few are enough.
    """
    left, right = _all_outputs(reference, frames), _all_outputs(other, frames)
    found: list[tuple[float, float, str]] = []
    before = 0.0
    for name, (operator, a) in left.items():
        if name not in right or right[name][1].shape != a.shape:
            continue
        b = right[name][1].astype(np.float64)
        size = float(np.linalg.norm(a)) or 1.0
        error = float(np.linalg.norm(a - b)) / size if np.isfinite(b).all() else float("inf")
        growth = error / max(before, 1e-7) if np.isfinite(before) else 0.0
        found.append((growth, error, f"{operator} {name} {list(a.shape)}: relative error {error:.1e}"))
        before = error
    found.sort(key=lambda item: (np.isfinite(item[1]), -item[0] if item[1] > 1e-3 else 0.0, -item[1]))
    return [line for _, _, line in found[:count]]


def _all_outputs(file: Path, frames: NDArray[np.uint8]) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Operator and value of every floating-point output in the graph, with the recipe that is stored in it."""
    onnxruntime = check_provider("cpu")
    model = onnx.load(file)
    operators = {name: node.op_type for node in model.graph.node for name in node.output if name}
    known = {value.name for value in model.graph.output}
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    names = [name for name in operators if name in known or types.get(name) in floats]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    # Unoptimized: fusions would remove outputs that are asked for.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(names, {"frames": frames})
    return {name: (operators[name], np.asarray(value, np.float64)) for name, value in zip(names, values, strict=True)}


def spread(items: Sequence[Any], count: int = MAX_FRAMES) -> list[Any]:
    """At most `count` items, evenly spaced over the sequence."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest absolute difference; NaN counts as infinite, since it would pass every comparison."""
    difference = np.abs(a.astype(np.float64) - b)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")
