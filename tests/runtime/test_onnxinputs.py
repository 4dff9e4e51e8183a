"""runtime.onnxinputs: the recipe's tensors are inputs of the file that an engine is given, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.onnxfile import onnx_faults
from runtime.onnxinputs import without_defaults

onnx = pytest.importorskip("onnx")


def model_of(*names: str, doc: str = "") -> bytes:
    """Adds all of its inputs; each has a default."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["K"]) for name in names]
    tensors = [onnx.numpy_helper.from_array(np.full(300, i, np.float32), name) for i, name in enumerate(names)]
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["K"])
    node = onnx.helper.make_node("Sum", list(names), ["out"])
    graph = onnx.helper.make_graph([node], "g", values, [out], tensors)
    opset = onnx.helper.make_opsetid("", 20)
    content: bytes = onnx.helper.make_model(graph, doc_string=doc, opset_imports=[opset]).SerializeToString()
    return content


def read(content: bytes) -> onnx.ModelProto:
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("taken", [(), ("a",), ("b", "c"), ("a", "b", "c"), ("unknown",)])
def test_only_the_named_defaults_go(taken: tuple[str, ...]) -> None:
    before = model_of("a", "b", "c")
    content = without_defaults(before, taken)
    assert onnx_faults(content) == []
    model, old = read(content), read(before)
    assert [tensor.name for tensor in model.graph.initializer] == [n for n in ("a", "b", "c") if n not in taken]
    for graph in (model.graph, old.graph):
        del graph.initializer[:]
    model.doc_string = ""
    assert model == old


def test_it_begins_with_a_text_of_this_project_whatever_it_held() -> None:
    for doc in ("", "another text"):
        content = without_defaults(model_of("a", doc=doc), ())
        assert content[:10] == b"\x32\x08sem-clip"
        assert read(content).doc_string == "sem-clip"


def test_a_default_that_is_given_twice_goes_twice() -> None:
    """Of two of one name engines take one; both must go."""
    model = onnx.load_model_from_string(model_of("a", "b"))
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
    content = without_defaults(model.SerializeToString(), ["a"])
    assert [tensor.name for tensor in read(content).graph.initializer] == ["b"]


def test_what_holds_no_graph_or_is_cut_off_is_refused() -> None:
    whole = model_of("a")
    with pytest.raises(ValueError, match="holds 0 graphs, not one"):
        without_defaults(b"\x08\x0a", ["a"])
    with pytest.raises(ValueError, match="holds 2 graphs, not one"):
        without_defaults(whole + whole, ["a"])
    with pytest.raises((ValueError, IndexError)):
        without_defaults(whole[:-1], ["a"])
