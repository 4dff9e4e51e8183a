"""The encoder's MatMuls in an ONNX graph: finding them, and balancing outliers of their inputs into their weights.

Balancing is SmoothQuant (Xiao et al. 2023, arXiv:2211.10438).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from runtime.recipe import TENSORS

BALANCE = 0.7
"""SmoothQuant's alpha: the share of an outlier that moves into the weights (docs/int8.md)."""
PATCH_WEIGHT = "encoder.patch_weight"
TEXT_PROJECTION = "encoder.proj"
PARTS = ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
"""The MatMuls of a layer, in graph order."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class MatMul:
    """One constant weight of the encoder and the MatMul nodes that read it (both paths share one `out_proj`).

    name: of the weight's tensor. title: layer and part, for people. weight: [in, out], as the nodes read it.
    """

    name: str
    title: str
    nodes: tuple[str, ...]
    weight: Array = field(repr=False, compare=False)

    @property
    def cost(self) -> int:
        """Multiply-adds per token."""
        return len(self.nodes) * self.weight.size


def find_matmuls(model: onnx.ModelProto) -> list[MatMul]:
    """The encoder's MatMuls with a constant weight, in graph order; without the patch embedding and the recipe's."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in TENSORS}
    turned = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Transpose" and node.input[0] in constants
    }
    nodes: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants.keys() | turned.keys():
            nodes.setdefault(node.input[1], []).append(node.name)
    stored = {name: numpy_helper.to_array(constants[turned.get(name, name)]) for name in nodes if name != PATCH_WEIGHT}
    weights = {name: value.T if name in turned else value for name, value in stored.items() if value.ndim == 2}
    # The exporter renames weights, so layers are known by their order.
    inner = [name for name in weights if name != TEXT_PROJECTION]
    titles = {name: f"blocks.{i // len(PARTS)}.{PARTS[i % len(PARTS)]}" for i, name in enumerate(inner)}
    return [
        MatMul(name, titles.get(name, TEXT_PROJECTION), tuple(nodes[name]), weight) for name, weight in weights.items()
    ]


def balance(model: onnx.ModelProto, matmuls: Sequence[MatMul], maxima: Mapping[str, Array]) -> None:
    """Move outlier channels of activations into the weights (SmoothQuant eq. 4), in place; answers stay the same.

    A LayerNormalization before the MatMul takes the factors into its scale and bias. Elsewhere a new Mul takes them.
    maxima: largest absolute value per channel of each MatMul's input, by weight name.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    by_name = {node.name: node for node in model.graph.node}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for matmul in matmuls:
        factors = _balance_factors(matmul, maxima[matmul.name])
        for user in (by_name[name] for name in matmul.nodes):
            norm = _norm_before(user.input[0], makers, readers)
            if norm is not None:
                _divide_norm(model, norm, constants, factors)
            else:
                _divide_input(model, user, (1 / factors).astype(matmul.weight.dtype))
        weight = matmul.weight.astype(np.float32) * factors[:, None]
        _set_weight(model, matmul, weight.astype(matmul.weight.dtype))


def _balance_factors(matmul: MatMul, maxima: Array) -> Array:
    """What each input channel [in] is divided by, and its row of the weight multiplied with; geometric mean 1."""
    weight_maxima = np.abs(matmul.weight.astype(np.float32)).max(1)
    factors = np.maximum(maxima, 1e-5) ** BALANCE / np.maximum(weight_maxima, 1e-5) ** (1 - BALANCE)
    clipped: Array = np.clip(factors / np.exp(np.log(factors).mean()), 1e-2, 1e2).astype(np.float32)
    return clipped


def _divide_norm(
    model: onnx.ModelProto, norm: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], factors: Array
) -> None:
    """Divide scale and bias of a LayerNormalization; it gets constants of its own, since others may share the old."""
    for place, kind in ((1, "scale"), (2, "bias")):
        stored = numpy_helper.to_array(constants[norm.input[place]])
        value = (stored / factors).astype(stored.dtype)
        norm.input[place] = f"{norm.name}_balanced_{kind}"
        model.graph.initializer.append(numpy_helper.from_array(value, norm.input[place]))


def _divide_input(model: onnx.ModelProto, user: onnx.NodeProto, inverse: NDArray[np.generic]) -> None:
    """Put a Mul by `inverse` [in] before a MatMul node."""
    name = f"{user.name}_balance"
    model.graph.initializer.append(numpy_helper.from_array(inverse, name))
    insert_before(model, user, helper.make_node("Mul", [user.input[0], name], [f"{user.name}_balanced"]))
    user.input[0] = f"{user.name}_balanced"


def _norm_before(name: str, makers: Mapping[str, onnx.NodeProto], readers: Mapping[str, int]) -> onnx.NodeProto | None:
    """The LayerNormalization that makes this tensor, straight or through a Cast, if it has one reader; else None."""
    maker = makers.get(name)
    if maker is not None and maker.op_type == "Cast" and readers[name] == 1:
        name, maker = maker.input[0], makers.get(maker.input[0])
    found = maker is not None and maker.op_type == "LayerNormalization" and readers[name] == 1
    return maker if found else None


def _set_weight(model: onnx.ModelProto, matmul: MatMul, weight: Array) -> None:
    """Store a weight as a constant [in, out] under its own name, without a Transpose node."""
    for index, node in enumerate(model.graph.node):
        if node.op_type == "Transpose" and node.output[0] == matmul.name:
            del model.graph.node[index]
            break
    for tensor in model.graph.initializer:
        if tensor.name == matmul.name:
            _replace(tensor, weight)
            return
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), matmul.name))


def _replace(tensor: onnx.TensorProto, value: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


def insert_before(model: onnx.ModelProto, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
    """Insert nodes right before `node`; a node without a name takes that of its output."""
    index = next(i for i, other in enumerate(model.graph.node) if other.name == node.name)
    for offset, item in enumerate(new):
        item.name = item.name or item.output[0]
        model.graph.node.insert(index + offset, item)
