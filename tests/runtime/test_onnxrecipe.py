"""runtime.onnxrecipe: other initializers, or none, and every other byte of the file as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime import onnxrecipe
from runtime.onnxfile import onnx_faults
from runtime.onnxrecipe import with_initializers, without_initializers


def two_tensors(**changes: object) -> onnx.ModelProto:
    """A graph that adds two initializers, one of them an input with a default."""
    first = helper.make_tensor("a", TensorProto.FLOAT, [2, 3], np.arange(6, dtype=np.float32).tobytes(), raw=True)
    second = helper.make_tensor("b", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["n"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["k", 3])],
        [helper.make_tensor_value_info("n", TensorProto.FLOAT, ["k", 3])],
        [first, second],
    )
    return helper.make_model(graph, producer_name="tests", **changes)


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (70_000, 3), (0, 3)])
def test_an_initializer_is_replaced_and_all_else_stays(shape: tuple[int, ...]) -> None:
    content = two_tensors().SerializeToString()
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    changed = with_initializers(content, {"a": values})
    found = onnx.load_from_string(changed)
    onnx.checker.check_model(found)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found.graph.initializer[0]), values)
    found.graph.initializer[0].CopyFrom(two_tensors().graph.initializer[0])
    assert found == two_tensors()
    assert with_initializers(changed, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}) == content
    assert onnx_faults(changed) == []


def test_numbers_may_lie_in_either_field_and_any_order_of_bytes() -> None:
    values = np.asfortranarray(np.array([[1, 2, 3], [4, 5, 6]], ">f4"))
    changed = onnx.load_from_string(with_initializers(two_tensors().SerializeToString(), {"a": values, "b": values[0]}))
    for tensor, wanted in zip(changed.graph.initializer, (values, values[0]), strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), wanted)
        assert not tensor.float_data


def test_sides_may_be_packed() -> None:
    content = two_tensors().SerializeToString()
    packed = content.replace(b"\x08\x02\x08\x03\x10\x01", b"\x0a\x02\x02\x03\x10\x01")
    assert packed != content
    assert onnx.load_from_string(packed) == two_tensors()
    with_initializers(packed, {"a": np.zeros((4, 3), np.float32)})


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("c", (2, 3), "holds no initializer c"),
        ("a", (6,), "holds a as type 1 of 2 sides, not as float32 of 1"),
        ("b", (3, 1), "holds b as type 1 of 1 sides, not as float32 of 2"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_initializers(two_tensors().SerializeToString(), {name: np.zeros(shape, np.float32)})


def test_a_tensor_of_another_type_is_refused() -> None:
    model = two_tensors()
    model.graph.initializer[1].data_type = TensorProto.INT32
    with pytest.raises(ValueError, match="holds b as type 6 of 1 sides"):
        with_initializers(model.SerializeToString(), {"b": np.zeros(3, np.float32)})


def test_a_file_that_would_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxrecipe, "MAX_BYTES", 300)
    with pytest.raises(ValueError, match="more than the 300 that an engine reads"):
        with_initializers(two_tensors().SerializeToString(), {"a": np.zeros((40, 3), np.float32)})


def test_damaged_files_are_refused_or_changed_and_nothing_else() -> None:
    content = bytearray(two_tensors().SerializeToString())
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            with_initializers(bytes(damaged[: rng.integers(1, len(damaged) + 1)]), {"a": np.zeros((2, 3), np.float32)})
            outcomes.add("changed")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"changed", "refused"}


def model_of(*names: str, doc: str = "") -> bytes:
    """Adds all of its inputs; each has a default."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["K"]) for name in names]
    tensors = [onnx.numpy_helper.from_array(np.full(300, i, np.float32), name) for i, name in enumerate(names)]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["K"])
    node = helper.make_node("Sum", list(names), ["out"])
    graph = helper.make_graph([node], "g", values, [out], tensors)
    opset = helper.make_opsetid("", 20)
    content: bytes = helper.make_model(graph, doc_string=doc, opset_imports=[opset]).SerializeToString()
    return content


def read(content: bytes) -> onnx.ModelProto:
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("taken", [(), ("a",), ("b", "c"), ("a", "b", "c"), ("unknown",)])
def test_only_the_named_defaults_go(taken: tuple[str, ...]) -> None:
    before = model_of("a", "b", "c")
    content = without_initializers(before, taken)
    assert onnx_faults(content) == []
    model, old = read(content), read(before)
    assert [tensor.name for tensor in model.graph.initializer] == [n for n in ("a", "b", "c") if n not in taken]
    for graph in (model.graph, old.graph):
        del graph.initializer[:]
    model.doc_string = ""
    assert model == old


def test_it_begins_with_a_text_of_this_project_whatever_it_held() -> None:
    for doc in ("", "another text"):
        content = without_initializers(model_of("a", doc=doc), ())
        assert content[:10] == b"\x32\x08sem-clip"
        assert read(content).doc_string == doc


def test_a_default_that_is_given_twice_goes_twice() -> None:
    """Of two of one name engines take one; both must go."""
    model = onnx.load_from_string(model_of("a", "b"))
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
    content = without_initializers(model.SerializeToString(), ["a"])
    assert [tensor.name for tensor in read(content).graph.initializer] == ["b"]


def test_what_holds_no_graph_or_is_cut_off_is_refused() -> None:
    whole = model_of("a")
    with pytest.raises(ValueError, match="holds 0 graphs, not one"):
        without_initializers(b"\x08\x0a", ["a"])
    with pytest.raises(ValueError, match="holds 2 graphs, not one"):
        without_initializers(whole + whole, ["a"])
    with pytest.raises(ValueError, match="is no ONNX file, or is cut off"):
        without_initializers(whole[:-1], ["a"])
