"""runtime.onnxfile: graphs that could run for ever, or lie elsewhere, are seen before an engine opens them."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import write_bundle
from onnx import TensorProto, helper

from runtime.backends import open_backend
from runtime.errors import BundleError
from runtime.manifest import load_bundle
from runtime.onnxfile import MAX_FIELDS, MAX_NODES, onnx_faults

NUMBER = helper.make_tensor_value_info("n", TensorProto.FLOAT, [1])
TENSOR = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
EXTERNAL = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
EXTERNAL.ClearField("float_data")
EXTERNAL.data_location = TensorProto.EXTERNAL
EXTERNAL.external_data.add(key="location", value="w.bin")


def model_of(*nodes: onnx.NodeProto, tensor: TensorProto = TENSOR, **fields: object) -> bytes:
    return bytes(helper.make_model(helper.make_graph(nodes, "g", [], [NUMBER], [tensor]), **fields).SerializeToString())


def endless_loop() -> onnx.NodeProto:
    """While true: the graph's answer never comes."""
    inside = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        inside,
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    return helper.make_node("Loop", ["", ""], ["n"], body=body)


def branch() -> onnx.NodeProto:
    graph = helper.make_graph([helper.make_node("Constant", [], ["n"], value_float=1.0)], "b", [], [NUMBER])
    return helper.make_node("If", ["w"], ["n"], then_branch=graph, else_branch=graph)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (model_of(endless_loop()), "holds an operator Loop with a graph of its own, which may run for ever"),
        (model_of(branch()), "holds an operator If with a graph of its own, which may run for ever"),
        (
            model_of(helper.make_node("Own", ["w"], ["n"], domain="com.example")),
            "holds an operator Own of com.example, which is not of the ONNX standard",
        ),
        (
            model_of(
                helper.make_node("F", ["w"], ["n"], domain="f"),
                functions=[
                    helper.make_function("f", "F", ["a"], ["b"], [helper.make_node("F", ["a"], ["b"], domain="f")], [])
                ],
                opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("f", 1)],
            ),
            "holds an operator F of f, which is not of the ONNX standard",
        ),
        (
            model_of(functions=[helper.make_function("f", "F", [], [], [], [])]),
            "holds functions of its own, which may call each other for ever",
        ),
        (model_of(tensor=EXTERNAL), "keeps weights in a file of their own, which no hash covers"),
        (
            model_of(helper.make_node("Constant", [], ["n"], value=EXTERNAL)),
            "keeps weights in a file of their own, which no hash covers",
        ),
        (b"not really ONNX", "is no ONNX file, or is cut off"),
        (model_of()[:-1], "is no ONNX file, or is cut off"),
        (b"\x3a\x05\x0a\xff\xff\xff\xff\x0f", "is no ONNX file, or is cut off"),
        (b"\x3a" + b"\xff" * 20, "is no ONNX file, or is cut off"),
        (b"\x38\x01", "is no ONNX file, or is cut off"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_no_graph_of_this_project_has_is_named(content: bytes, fault: str) -> None:
    assert onnx_faults(content) == [fault]


def test_bits_above_32_do_not_hide_weights_in_other_files() -> None:
    """Protocol Buffers drop what is above 32 bits of a field's number and of an enumeration."""
    graph = helper.make_graph([], "g", [], [NUMBER], []).SerializeToString()
    tensor = b"\x70\x81\x80\x80\x80\x10"  # data_location = 1 + 2**32
    initializer = b"\x2a" + bytes([len(tensor)]) + tensor
    whole = graph + initializer
    assert onnx_faults(b"\x3a" + bytes([len(whole)]) + whole) == [
        "keeps weights in a file of their own, which no hash covers"
    ]


def test_a_straight_graph_is_accepted_with_any_names_of_weights() -> None:
    nodes = [helper.make_node("Add", ["w", "w"], ["n"], name="location")]
    assert onnx_faults(model_of(*nodes, tensor=helper.make_tensor("w", TensorProto.STRING, [1], [b"location"]))) == []


def test_a_file_of_nothing_but_fields_is_refused_in_time() -> None:
    length = 8 * MAX_FIELDS
    varint = bytes((length >> shift & 0x7F) | 0x80 for shift in range(0, 28, 7)) + bytes([length >> 28])
    begun = time.process_time()
    assert onnx_faults(b"\x3a" + varint + b"\x12\x00" * (length // 2)) == ["has more than 1,000,000 fields"]
    assert time.process_time() - begun < 20


def test_more_nodes_than_an_engine_takes_in_time_are_refused() -> None:
    node = helper.make_node("Identity", ["w"], ["n"])
    assert onnx_faults(model_of(*[node] * MAX_NODES)) == []
    assert onnx_faults(model_of(*[node] * (MAX_NODES + 1))) == ["has more than 20,000 nodes"]
    assert onnx_faults(model_of(node) + model_of(node)) == ["holds more than one graph"]


def test_no_damaged_byte_raises() -> None:
    content = model_of(branch(), endless_loop(), tensor=EXTERNAL)
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        assert all(isinstance(fault, str) for fault in onnx_faults(bytes(damaged)))


def bundle_with(tmp_path: Path, content: bytes) -> Path:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "model.onnx").write_bytes(content)
    document = json.loads((bundle / "manifest.json").read_text())
    document["artifacts"][0] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(document))
    return bundle


@pytest.mark.parametrize(
    "content", [model_of(endless_loop()), b"\x18\x00\x00\x00ORTM" + bytes(40)], ids=["loop", "ort"]
)
def test_a_refused_graph_never_reaches_an_engine(content: bytes, tmp_path: Path) -> None:
    """Nor a file of ONNX Runtime's own format, in which nobody has looked."""
    bundle = bundle_with(tmp_path, content)
    with pytest.raises(BundleError, match=r"model\.onnx (holds an operator Loop|is no ONNX file)"):
        open_backend("cpu", bundle, load_bundle(bundle)[0])


def test_names_that_are_no_text_are_a_fault_of_the_bundle(tmp_path: Path) -> None:
    content = model_of(helper.make_node("Add", ["w", "w"], ["n"])).replace(b"\x01n", b"\x01\x80")
    bundle = bundle_with(tmp_path, content)
    with pytest.raises(BundleError, match=r"model\.onnx cannot be opened by ONNX Runtime"):
        open_backend("cpu", bundle, load_bundle(bundle)[0])
