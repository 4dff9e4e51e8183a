"""benchmarks.speed.roofline: operations of small graphs counted by hand, and of the method's own graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.speed.roofline import count_flops, measured_peak, node_flops, reached
from export.artifacts.to_onnx import onnx_from_graph
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from runtime import SemClipError
from runtime.manifest import load_bundle
from runtime.recipe import MEMORY_ROWS


def save(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list[Any]], output: list[Any]) -> Path:
    """A graph over `frames` [batch, ...]; other inputs have default values of their shape."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, [0.0] * math.prod(shape))
        for name, shape in inputs.items()
        if name != "frames"
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, output)
    graph = helper.make_graph(nodes, "g", values, [out], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), path)
    return path


def test_operations_of_a_small_graph_equal_a_count_by_hand(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["frames", "w"], ["a"]),  # [1, 5, 6] @ [6, 7]
        helper.make_node("Relu", ["a"], ["r"]),  # not counted
        helper.make_node("MatMul", ["r", "v"], ["out"]),  # [1, 5, 7] @ [7, 2]
    ]
    path = save(tmp_path / "m.onnx", nodes, {"frames": ["batch", 5, 6], "w": [6, 7], "v": [7, 2]}, ["batch", 5, 2])
    expected = 2 * 5 * 6 * 7 + 2 * 5 * 7 * 2
    assert count_flops(path) == {
        "file": "m.onnx",
        "gflop_per_frame": expected / 1e9,
        "by_operator": {"MatMul": expected},
    }


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "attributes", "expected"),
    [
        ("MatMul", [[1, 5, 6], [6, 7]], [1, 5, 7], {}, 2 * 5 * 6 * 7),
        ("MatMulInteger", [[3, 4], [4, 5]], [3, 5], {}, 2 * 3 * 4 * 5),
        ("Gemm", [[1, 8], [3, 8], [3]], [1, 3], {"transB": 1}, 2 * 8 * 3),
        ("Gemm", [[8, 2], [8, 3]], [2, 3], {"transA": 1}, 2 * 8 * 2 * 3),
        ("Conv", [[1, 4, 8, 8], [6, 2, 3, 3]], [1, 6, 6, 6], {"group": 2}, 2 * 6 * 36 * 2 * 9),
        ("Attention", [[1, 2, 5, 4], [1, 2, 7, 4], [1, 2, 7, 3]], [1, 2, 5, 3], {}, 2 * 2 * 5 * 7 * (4 + 3)),
        (
            "Attention",
            [[1, 5, 8], [1, 7, 8], [1, 7, 6]],
            [1, 5, 6],
            {"q_num_heads": 2, "kv_num_heads": 2},
            2 * 2 * 5 * 7 * (4 + 3),
        ),
    ],
)
def test_operations_of_each_product(
    operator: str, inputs: list[list[int]], output: list[int], attributes: dict[str, int], expected: int
) -> None:
    assert node_flops(operator, inputs, output, attributes) == expected


@pytest.mark.parametrize("shapes", [([[1, 0, 6], [6, 7]], [1, 5, 7]), ([[], [6, 7]], [5, 7]), ([[5, 6], [6, 7]], [])])
def test_an_unknown_shape_is_an_error_and_not_zero(shapes: tuple[list[list[int]], list[int]]) -> None:
    with pytest.raises(SemClipError, match="the shape of a MatMul is not known"):
        node_flops("MatMul", shapes[0], shapes[1], {})


def test_a_product_that_is_not_counted_is_an_error(tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["frames", "w"], ["out"], equation="bij,jk->bik")
    path = save(tmp_path / "m.onnx", [node], {"frames": ["batch", 5, 6], "w": [6, 7]}, ["batch", 5, 7])
    with pytest.raises(SemClipError, match="Einsum"):
        count_flops(path)


@pytest.mark.parametrize("value_path", [False, True])
@pytest.mark.slow
def test_operations_of_the_toy_graph_equal_a_count_by_hand(toy_bundle: Path, tmp_path: Path, value_path: bool) -> None:
    graph = SemClipGraph(load_model("toy", random_seed=0).encoder(), value_path=value_path)
    onnx_from_graph(graph, load_bundle(toy_bundle)[1].tensors, tmp_path / "model.onnx")
    tokens, patches, width, text, levels, classes = 17, 16, 32, 24, 4, 7
    valued = patches if value_path else 0  # patches with a V; the CLS that weighs them is projected for it alone
    layer = 2 * width * (3 * width * tokens + width * (tokens + valued) + 8 * width * tokens)
    attention = 4 * (2 * 2 * tokens * width * (tokens + valued))
    last_level_counts = levels * (2 * (patches + valued + value_path) * width * text)  # transformation, V path, CLS
    cosines = levels * (2 * patches * text * (2 + classes) + 2 * (valued + value_path) * text * 2)
    memory = levels * 2 * patches * width * MEMORY_ROWS
    embed, head = 2 * patches * 256 * width, 2 * levels * width * classes
    found = count_flops(tmp_path / "model.onnx")
    assert found["by_operator"]["Attention"] == attention
    assert 1e9 * found["gflop_per_frame"] == pytest.approx(
        4 * layer + attention + last_level_counts + cosines + memory + embed + head, rel=0.02
    )


def test_share_of_the_peak_at_the_best_batch() -> None:
    rows = [
        {"engine": "a", "batch": 1, "frames_per_second": 2.0},
        {"engine": "a", "batch": 8, "frames_per_second": 4.0},
        {"engine": "b", "batch": 1, "frames_per_second": 1.0},
    ]
    assert reached(rows, gflop_per_frame=10.0, peak_gflops=80.0) == [
        {"engine": "a", "batch": 8, "gflops": 40.0, "share_of_fp32_peak": 0.5},
        {"engine": "b", "batch": 1, "gflops": 10.0, "share_of_fp32_peak": 0.125},
    ]


def test_the_peak_is_measured_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.roofline.PEAK_SIZES", (64, 128))
    peak = measured_peak(threads=1)
    assert peak["gflops"] > 0.01
    assert peak["size"] in (64, 128)
    assert peak["library"] in ("numpy", "torch")
