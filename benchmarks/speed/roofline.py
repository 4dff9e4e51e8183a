"""Roofline: operations per frame counted in the graph, the machine's measured MatMul peak, and the share of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.child import run_child
from runtime.errors import PredictorError

PEAK_SIZES = (512, 1024, 1536, 2048)
_MATMULS = ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "Conv", "Attention")
_UNCOUNTED_MATMULS = ("Einsum", "ConvInteger", "QLinearConv", "ConvTranspose", "RNN", "LSTM", "GRU")


def count_flops(path: Path) -> dict[str, Any]:
    """Floating-point operations of one frame, by operator: 2 per multiply-add of a matrix product.

    Element-wise work is not counted: it is memory-bound and under 1 % here. Attention is its two products (scores,
    then weights with V). Raises PredictorError if a shape cannot be inferred: the count would be too low.
    """
    import onnx

    model = onnx.load(path)
    _fix_batch(model, onnx)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
    graph = inferred.graph
    shapes: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes.setdefault(value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
    by_operator: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _UNCOUNTED_MATMULS:
            raise PredictorError(f"{path.name}: the operations of {node.op_type} are not counted here")
        if node.op_type in _MATMULS:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            by_operator[node.op_type] = by_operator.get(node.op_type, 0) + node_flops(
                node.op_type, [shapes.get(name, []) for name in node.input], shapes.get(node.output[0], []), attributes
            )
    return {"file": path.name, "gflop_per_frame": sum(by_operator.values()) / 1e9, "by_operator": by_operator}


def node_flops(
    operator: str, inputs: Sequence[Sequence[int]], output: Sequence[int], attributes: Mapping[str, Any]
) -> int:
    """Operations of one matrix product from the shapes of its inputs and output.

    Raises PredictorError for an unknown shape.
    """
    needed = 3 if operator == "Attention" else 1
    if not output or any(not shape for shape in inputs[:needed]) or 0 in (*output, *(d for s in inputs for d in s)):
        raise PredictorError(f"the shape of a {operator} is not known: inputs {inputs}, output {output}")
    if operator == "Attention":
        return _attention_flops(inputs, attributes)
    if operator == "Conv":
        kernel = inputs[1]  # [out channels, in channels / group, *kernel]
        return 2 * math.prod(output) * math.prod(kernel[1:])
    first = inputs[0]
    inner = first[0] if operator == "Gemm" and attributes.get("transA") else first[-1]
    return 2 * math.prod(output) * inner


def measured_peak(threads: int) -> dict[str, Any]:
    """The highest GFLOP/s of fp32 matrix products on this machine, measured in a child process."""
    return run_child("benchmarks.speed.roofline:peak_probe", {"sizes": PEAK_SIZES, "threads": threads}, threads=threads)


def peak_probe(sizes: Sequence[int], threads: int, repeats: int = 5) -> dict[str, Any]:
    """In a child: the best of several square products with numpy and, if installed, torch."""
    import numpy as np

    products: dict[str, Any] = {"numpy": lambda a: a @ a}
    try:
        import torch
    except ImportError:
        pass
    else:
        if threads:
            torch.set_num_threads(threads)
        products["torch"] = lambda a: torch.mm(torch.from_numpy(a), torch.from_numpy(a))
    best: dict[str, Any] = {"gflops": 0.0}
    for size in sizes:
        square = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
        for library, product in products.items():
            product(square)
            for _ in range(repeats):
                began = time.perf_counter()
                product(square)
                gflops = 2e-9 * size**3 / (time.perf_counter() - began)
                if gflops > best["gflops"]:
                    best = {"gflops": gflops, "library": library, "size": size}
    return best


def reached(rows: Sequence[Mapping[str, Any]], gflop_per_frame: float, peak_gflops: float) -> list[dict[str, Any]]:
    """GFLOP/s of each runner at its best batch size, and its share of the fp32 peak; int8 may exceed 1.

    rows: of `throughput`.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["engine"] not in best or row["frames_per_second"] > best[row["engine"]]["frames_per_second"]:
            best[row["engine"]] = row
    return [
        {
            "engine": name,
            "batch": row["batch"],
            "gflops": row["frames_per_second"] * gflop_per_frame,
            "share_of_fp32_peak": row["frames_per_second"] * gflop_per_frame / peak_gflops,
        }
        for name, row in best.items()
    ]


def _attention_flops(inputs: Sequence[Sequence[int]], attributes: Mapping[str, Any]) -> int:
    """Of Q [B, heads, N, d], K [B, h, M, d], V [B, h, M, e], or of 3-D inputs with the heads in the last dimension."""
    query, key, value = inputs[:3]
    if len(query) == 4:
        batch, heads, rows, depth = query
        keys, out = key[2], value[3]
    else:
        batch, rows, wide = query
        heads, groups = attributes["q_num_heads"], attributes["kv_num_heads"]
        depth, keys, out = wide // heads, key[1], value[2] // groups
    return 2 * batch * heads * rows * keys * (depth + out)


def _fix_batch(model: Any, onnx: Any) -> None:
    """Set the batch to one frame, and the shapes of recipe inputs to those of their default values."""
    defaults = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    del model.graph.value_info[:]
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name == "frames":
            dims[0].dim_value = 1
        elif value.name in defaults:
            for dim, size in zip(dims, defaults[value.name], strict=True):
                dim.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[0].dim_value = 1
