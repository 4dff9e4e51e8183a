"""The ONNX file that a builder reads: the bundle's graph, rewritten for TensorRT and TensorRT for RTX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from runtime.recipe import TENSORS

from ..errors import ExportError
from .engine_target import EngineTarget


def write_network(onnx_file: Path, network: Path, target: EngineTarget) -> int:
    """Write the graph without default values of its recipe inputs; returns the bytes of the weights that are left.

    Raises ExportError if no weight is of the target's precision, since the engine would not be either.
    """
    model = onnx.load(onnx_file)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in TENSORS]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    wanted = {"fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}[target.precision]
    if not any(tensor.data_type == wanted and len(tensor.dims) == 2 for tensor in kept):
        raise ExportError(f"{onnx_file.name} holds no {target.precision} weights, so no engine of it would be that")
    expand_fp32_attention(model)
    if target.accumulate == "fp32":
        sum_in_fp32(model)
    onnx.save(model, network)
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in kept)


def expand_fp32_attention(model: onnx.ModelProto) -> None:
    """Replace fp32 Attention nodes by MatMul and Softmax, since the builders' fused kernels take fp16 only.

    Layers whose scores are too large for fp16 have such nodes (`DualPathEncoder.half_precision`); with trained weights
    that is most layers. Q, K, V: [B, heads, N, d]. Raises ExportError for a mask, a cache or other options, which
    graphs of a bundle do not have.
    """
    inferred = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type for value in inferred.value_info}
    nodes = []
    for node in model.graph.node:
        query = types.get(node.input[0]) if node.op_type == "Attention" else None
        if query is None or query.elem_type != TensorProto.FLOAT:
            nodes.append(node)
            continue
        set_otherwise = [a.name for a in node.attribute if helper.get_attribute_value(a)]
        depth = query.shape.dim[-1].dim_value
        if len(node.input) != 3 or len(node.output) != 1 or set_otherwise or len(query.shape.dim) != 4 or not depth:
            raise ExportError(f"{node.name} is not a plain Attention, so it cannot be rewritten for an engine")
        (q, k, v), out = node.input, node.output[0]
        model.graph.initializer.append(numpy_helper.from_array(np.array(depth**-0.5, np.float32), f"{out}_scale"))
        nodes += _attention_steps(q, k, v, out)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _attention_steps(q: str, k: str, v: str, out: str) -> list[onnx.NodeProto]:
    """softmax(q * scale @ kᵀ) @ v as nodes; tensors by name, the scale is `{out}_scale`."""
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Mul", [q, f"{out}_scale"], f"{out}_query", {}),
        ("Transpose", [k], f"{out}_key", {"perm": [0, 1, 3, 2]}),
        ("MatMul", [f"{out}_query", f"{out}_key"], f"{out}_scores", {}),
        ("Softmax", [f"{out}_scores"], f"{out}_shares", {"axis": -1}),
        ("MatMul", [f"{out}_shares", v], out, {}),
    )
    return [
        helper.make_node(operator, inputs, [output], name=f"{output}_node", **more)
        for operator, inputs, output, more in steps
    ]


def sum_in_fp32(model: onnx.ModelProto) -> None:
    """Put casts around every MatMul of fp16 numbers: fp32 in, fp16 out. 8-bit MatMuls add in 32 bits anyway.

    TensorRT recognizes the pattern as one MatMul that reads and writes fp16 and sums in fp32. Weights stay fp16 in the
    plan, and no fp32 copies are made.
    """
    inferred = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    nodes = []
    for node in model.graph.node:
        halves = node.op_type in ("MatMul", "Gemm") and types.get(node.output[0]) == TensorProto.FLOAT16
        if not halves or dequantized.issuperset(node.input):
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            wide = f"{node.output[0]}_input{index}_fp32"
            nodes.append(helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.FLOAT))
            node.input[index] = wide
        narrow = node.output[0]
        node.output[0] = f"{narrow}_fp32"
        cast = helper.make_node("Cast", [node.output[0]], [narrow], name=f"{narrow}_fp16", to=TensorProto.FLOAT16)
        nodes += [node, cast]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
