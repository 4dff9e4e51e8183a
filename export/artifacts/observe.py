"""Running an ONNX graph on frames in ONNX Runtime on the CPU: its answers, and statistics of its inner tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime.backends import OUTPUTS, Outputs
from runtime.backends.ort import check_provider
from runtime.recipe import Recipe

from .matmuls import Array, MatMul

_BATCH = 4


def run(model: onnx.ModelProto, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
    """The model's outputs on uint8 frames [n, height, width] with `recipe`."""
    session = _session(model)
    parts = [session.run(list(OUTPUTS), {"frames": batch, **recipe.tensors}) for batch in _batches(frames)]
    return Outputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def channel_maxima(model: onnx.ModelProto, matmuls: Sequence[MatMul], frames: NDArray[np.uint8]) -> dict[str, Array]:
    """Largest absolute value of every channel of each MatMul's input, by weight name."""
    inputs = _inputs(model, matmuls)
    maxima: dict[str, Array] = {}
    for values in observe(model, [name for names in inputs.values() for name in names], frames):
        for weight, names in inputs.items():
            for name in names:
                peak = np.abs(values[name]).max(axis=tuple(range(values[name].ndim - 1)))
                maxima[weight] = np.maximum(maxima[weight], peak) if weight in maxima else peak
    return maxima


def input_statistics(
    model: onnx.ModelProto, matmuls: Sequence[MatMul], frames: NDArray[np.uint8]
) -> tuple[dict[str, tuple[float, float]], dict[str, Array]]:
    """Least and largest value, 0 included, by input tensor; and the sum of x xᵀ over all inputs x, by weight name.

    The whole range, unclipped: the rare large values carry the class (docs/int8.md).
    """
    inputs = _inputs(model, matmuls)
    names = [name for group in inputs.values() for name in group]
    ranges = dict.fromkeys(names, (0.0, 0.0))
    moments = {m.name: np.zeros((len(m.weight),) * 2, np.float32) for m in matmuls}
    for values in observe(model, names, frames):
        for weight, group in inputs.items():
            for name in group:
                rows = values[name].reshape(-1, values[name].shape[-1])
                moments[weight] += rows.T @ rows
                low, high = ranges[name]
                ranges[name] = (min(low, float(rows.min())), max(high, float(rows.max())))
    return ranges, moments


def _inputs(model: onnx.ModelProto, matmuls: Sequence[MatMul]) -> dict[str, list[str]]:
    """The tensors that each weight is multiplied with, by weight name."""
    sources = {node.name: node.input[0] for node in model.graph.node}
    return {m.name: list(dict.fromkeys(sources[node] for node in m.nodes)) for m in matmuls}


def observe(
    model: onnx.ModelProto, names: Sequence[str], frames: NDArray[np.uint8]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The values of inner tensors by name, batch by batch."""
    names = list(dict.fromkeys(names))
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    observed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = _session(observed)
    for batch in _batches(frames):
        yield dict(zip(names, session.run(names, {"frames": batch}), strict=True))


def _batches(frames: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(frames), _BATCH):
        yield frames[start : start + _BATCH]


def _session(model: onnx.ModelProto) -> Any:
    onnxruntime = check_provider("cpu")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
