"""From the fp32 ONNX file to an 8-bit one, by ranges and sensitivities measured on real frames.

For CPUs, and as the source of TensorRT engines. The MatMuls of the encoder's blocks read 8-bit activations (one scale
per tensor) and 8-bit weights (one scale per output channel), as QuantizeLinear/DequantizeLinear pairs. Everything else
stays as it is. `int8_from_onnx` works in four steps:

1. find the MatMuls and balance outliers of their inputs into their weights (`matmuls`);
2. measure ranges (`observe`) and round the weights so that rounding errors cancel (`round_weights`);
3. measure the sensitivity of each MatMul: the feature drift if it alone is 8-bit;
4. quantize all but the most sensitive, as few as label agreement and feature drift allow.

docs/int8.md gives the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from runtime.backends import Outputs
from runtime.recipe import TENSORS, Recipe

from ..errors import ExportError
from ..progress import Progress
from .matmuls import Array, MatMul, balance, find_matmuls, insert_before
from .observe import channel_maxima, input_statistics, run
from .round_weights import Rounded, round_weight

_SENSITIVITY_FRAMES = 16
_ROUNDS = 24
"""A round of leaving MatMuls out takes this part of them."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """The 8-bit numbers that an engine takes.

    weight_limit: largest weight level. symmetric: activations are int8 around 0, not uint8 with a zero point.
    """

    weight_limit: int
    symmetric: bool


CPU = Scheme(63, symmetric=False)
"""CPUs without VNNI add two products of uint8 and int8 in 16 bits and saturate; 2 x 255 x 63 just fits."""
TENSORRT = Scheme(127, symmetric=True)
"""TensorRT and TensorRT for RTX support no zero points, and their tensor cores add in 32 bits."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How MatMuls become 8-bit. weights: by weight name. ranges: least and largest value by input tensor name."""

    weights: Mapping[str, Rounded]
    ranges: Mapping[str, tuple[float, float]]
    scheme: Scheme = CPU


@dataclass(frozen=True)
class Int8Report:
    """Titles of the MatMuls in 8 bits and of those left out (most sensitive first), and the sensitivity of each.

    sensitivity: feature drift if that MatMul alone is 8-bit. labels_equal: share of frames whose label is that of fp32.
    labels_equal, feature_drift: of the whole graph, on the frames that it was fitted on. operators: nodes by type.
    """

    quantized: tuple[str, ...]
    left_out: tuple[str, ...]
    sensitivity: Mapping[str, float]
    labels_equal: float
    feature_drift: float
    operators: Mapping[str, int]


def feature_drift(reference: Array, features: Array) -> float:
    """Mean absolute change of features [n, F], relative to their mean size."""
    return float(np.abs(features - reference).mean() / np.abs(reference).mean())


def int8_from_onnx(
    source: Path,
    frames: NDArray[np.uint8],
    recipe: Recipe,
    path: Path,
    *,
    agreement: float,
    max_drift: float,
    scheme: Scheme = CPU,
    half: Path | None = None,
    progress: Progress | None = None,
) -> Int8Report:
    """Write the 8-bit form of `source` (fp32, as `onnx_from_graph` writes it) to `path`.

    frames: uint8 [n, height, width], real ones of the kind that will be served. recipe: gives their labels.
    agreement: least share of `frames` whose label must be that of fp32. max_drift: largest feature drift.
    half: the fp16 form of `source`. If given, it is quantized the way that was found on `source`; all else stays fp16.
    Raises ExportError if `source` is not an exported encoder, if `half` is of another, or if the limits cannot be met.
    """
    model = onnx.load(source)
    matmuls = find_matmuls(model)
    if not matmuls:
        raise ExportError(f"{source.name} has no MatMul with a constant weight: it is not an exported encoder")
    half_model = None if half is None else onnx.load(half)
    if half is not None and half_model is not None:
        _require_same_encoder(half_model, matmuls, source.name, half.name)
    maxima = channel_maxima(model, matmuls, frames)
    balance(model, matmuls, maxima)
    fit = _measure(model, frames, recipe, scheme)
    sensitivity = fit.sensitivities(progress)
    choice = _choose(fit, sensitivity, agreement, max_drift)
    if half_model is None:
        result = quantized(model, choice.quantized, fit.quantization)
    else:
        result = _quantized_alike(half_model, fit, choice.quantized, maxima)
    _save(result, path)
    return Int8Report(
        quantized=tuple(m.title for m in fit.matmuls if m in choice.quantized),
        left_out=tuple(m.title for m in choice.left_out),
        sensitivity={m.title: sensitivity[m.name] for m in fit.matmuls},
        labels_equal=choice.labels_equal,
        feature_drift=choice.feature_drift,
        operators=dict(sorted(Counter(node.op_type for node in result.graph.node).items())),
    )


@dataclass(frozen=True)
class _Fit:
    """The balanced fp32 graph, the quantization measured on it, and the frames and recipe that judge 8-bit forms.

    reference: the fp32 graph's outputs on the frames.
    """

    model: onnx.ModelProto
    matmuls: Sequence[MatMul]
    quantization: Quantization
    frames: NDArray[np.uint8]
    recipe: Recipe
    reference: Outputs

    def sensitivities(self, progress: Progress | None) -> dict[str, float]:
        """Feature drift, on a few of the frames, if one MatMul alone is 8-bit; by weight name."""
        few = slice(None, None, max(1, len(self.frames) // _SENSITIVITY_FRAMES))
        found = {}
        for index, matmul in enumerate(self.matmuls):
            outputs = run(quantized(self.model, [matmul], self.quantization), self.frames[few], self.recipe)
            found[matmul.name] = feature_drift(self.reference.features[few], outputs.features)
            if progress is not None:
                progress(index + 1, len(self.matmuls))
        return found


@dataclass(frozen=True)
class _Choice:
    """Which MatMuls become 8-bit and which do not, and how near that is to fp32 on the frames of the fit."""

    quantized: Sequence[MatMul]
    left_out: Sequence[MatMul]
    labels_equal: float
    feature_drift: float


def _measure(model: onnx.ModelProto, frames: NDArray[np.uint8], recipe: Recipe, scheme: Scheme) -> _Fit:
    """Ranges, rounded weights and fp32 outputs of a balanced graph."""
    matmuls = find_matmuls(model)
    ranges, moments = input_statistics(model, matmuls, frames)
    weights = {m.name: round_weight(m.weight, moments.pop(m.name), scheme.weight_limit) for m in matmuls}
    return _Fit(model, matmuls, Quantization(weights, ranges, scheme), frames, recipe, run(model, frames, recipe))


def _choose(fit: _Fit, sensitivity: Mapping[str, float], agreement: float, max_drift: float) -> _Choice:
    """Leave MatMuls out, the most sensitive per multiply-add first, until both limits hold. Raises ExportError."""
    # Errors of MatMuls are independent, so their squares add.
    order = sorted(fit.matmuls, key=lambda m: sensitivity[m.name] ** 2 / m.cost, reverse=True)
    labels = fit.reference.probabilities.argmax(1)
    for left in range(0, len(order), max(1, len(order) // _ROUNDS)):
        outputs = run(quantized(fit.model, order[left:], fit.quantization), fit.frames, fit.recipe)
        equal = float((outputs.probabilities.argmax(1) == labels).mean())
        drift = feature_drift(fit.reference.features, outputs.features)
        if equal >= agreement and drift <= max_drift:
            return _Choice(order[left:], order[:left], equal, drift)
    raise ExportError(
        f"no MatMul could be quantized with labels equal on {agreement:.0%} of {len(fit.frames)} frames and features "
        f"that drift by {max_drift:g} at most"
    )


def _require_same_encoder(half: onnx.ModelProto, matmuls: Sequence[MatMul], source: str, name: str) -> None:
    """Raise ExportError unless `half` holds the same MatMuls in the same order."""
    expected, found = ([(m.title, m.weight.shape, len(m.nodes)) for m in of] for of in (matmuls, find_matmuls(half)))
    if found != expected:
        raise ExportError(
            f"{name} does not hold the MatMuls of {source}: they are not of one encoder; build them again"
        )


def _quantized_alike(
    half: onnx.ModelProto, fit: _Fit, chosen: Sequence[MatMul], maxima: Mapping[str, Array]
) -> onnx.ModelProto:
    """Do to `half`, of other precision and names, what was found on fp32: balance all MatMuls, quantize the chosen.

    maxima: of the fp32 graph before it was balanced, by its weights' names.
    """
    partners = {here.title: there for here, there in zip(fit.matmuls, find_matmuls(half), strict=True)}
    balance(half, list(partners.values()), {partners[m.title].name: maxima[m.name] for m in fit.matmuls})
    titles = {m.title for m in chosen}
    theirs = {m.title: m for m in find_matmuls(half) if m.title in titles}
    inputs, their_inputs = (
        {node.name: node.input[0] for node in m.graph.node if node.input} for m in (fit.model, half)
    )
    ranges = {
        their_inputs[there]: fit.quantization.ranges[inputs[here]]
        for m in chosen
        for here, there in zip(m.nodes, theirs[m.title].nodes, strict=True)
    }
    weights = {theirs[m.title].name: fit.quantization.weights[m.name] for m in chosen}
    return quantized(half, list(theirs.values()), Quantization(weights, ranges, fit.quantization.scheme))


def quantized(model: onnx.ModelProto, matmuls: Sequence[MatMul], quantization: Quantization) -> onnx.ModelProto:
    """A copy of `model` whose `matmuls` run in 8 bits.

    Steps are of the type of the MatMul's weight, fp32 or fp16, and so are the results.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    by_name = {node.name: node for node in result.graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    types: dict[str, np.dtype[Any]] = {}
    for matmul in matmuls:
        _quantize_weight(result, matmul, quantization.weights[matmul.name])
        for node in (by_name[name] for name in matmul.nodes):
            readers.setdefault(node.input[0], []).append(node)
            types[node.input[0]] = matmul.weight.dtype
    for name, nodes in readers.items():
        step, zero = _step_and_zero(quantization.ranges[name], types[name], symmetric=quantization.scheme.symmetric)
        _quantize_input(result, name, nodes, step, zero)
    return result


def _quantize_weight(model: onnx.ModelProto, matmul: MatMul, rounded: Rounded) -> None:
    """Replace a constant weight by its levels and a DequantizeLinear that gives the weight's name."""
    name, stored = matmul.name, matmul.weight.dtype
    scale = np.maximum(rounded.scale, np.finfo(stored).tiny).astype(stored)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            model.graph.initializer.remove(tensor)
            break
    _add_constants(model, name, q=rounded.levels, scale=scale, zero=np.zeros(scale.shape, np.int8))
    inputs = [f"{name}_q", f"{name}_scale", f"{name}_zero"]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], f"{name}_dequantize", axis=1))


def _step_and_zero(
    limits: tuple[float, float], dtype: np.dtype[Any], *, symmetric: bool
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """The width of a level, of `dtype`, and the zero point: int8 0, or uint8."""
    low, high = limits
    width = 2 * max(-low, high) / 254 if symmetric else (high - low) / 255
    step = np.maximum(width, np.finfo(dtype).tiny).astype(dtype)
    zero = np.int8(0) if symmetric else np.uint8(np.clip(np.rint(-low / step), 0, 255))
    return np.array(step), np.array(zero)


def _quantize_input(
    model: onnx.ModelProto,
    name: str,
    readers: Sequence[onnx.NodeProto],
    step: NDArray[np.generic],
    zero: NDArray[np.generic],
) -> None:
    """Let nodes read a tensor through a QuantizeLinear/DequantizeLinear pair."""
    _add_constants(model, name, scale=step, zero=zero)
    parameters = [f"{name}_scale", f"{name}_zero"]
    insert_before(
        model,
        readers[0],
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_8bit"]),
    )
    for node in readers:
        node.input[0] = f"{name}_8bit"


def _add_constants(model: onnx.ModelProto, name: str, **parts: NDArray[np.generic]) -> None:
    for kind, value in parts.items():
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{kind}"))


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Check a graph and write it, without constants that nothing reads."""
    _drop_unused(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants that nothing reads; those of the recipe are inputs and stay."""
    read = {name for node in model.graph.node for name in node.input} | set(TENSORS)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
