"""export.artifacts.to_onnx: the ONNX files of a really built bundle, and one with the resize in the graph."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import make_recipe
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from places import ROOT

from export.artifacts.to_onnx import OPSET, _check_signature, onnx_from_graph
from export.errors import ExportError
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from runtime import Predictor
from runtime.backends import OUTPUTS
from runtime.frames import prepare
from runtime.manifest import load_bundle
from runtime.recipe import TENSORS, FrameOptions, Recipe

FILES = ("model.onnx", "model.fp16.onnx")
FRAME_SIZE = (80, 96)


def session(path: Path) -> onnxruntime.InferenceSession:
    """A plain session, as any tool would open the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def random_frames(count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Blocks and noise, so that a resize has something to smooth."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(0, 200, (count, size[0] // 8, size[1] // 8)), np.ones((8, 8)))
    return (coarse + rng.integers(0, 55, (count, *size))).astype(np.uint8)


@pytest.fixture(scope="module")
def own_recipe(toy_bundle: Path) -> Recipe:
    return load_bundle(toy_bundle)[1]


@pytest.fixture(scope="module")
def resizing(tmp_path_factory: pytest.TempPathFactory, own_recipe: Recipe) -> tuple[SemClipGraph, Path]:
    """The toy encoder exported for frames of FRAME_SIZE."""
    graph = SemClipGraph(load_model("toy", random_seed=0).encoder(), input_size=FRAME_SIZE)
    path = tmp_path_factory.mktemp("resizing") / "model.onnx"
    census = onnx_from_graph(graph, own_recipe.tensors, path)
    assert census["Attention"] == 8
    return graph, path


@pytest.mark.parametrize("file", FILES)
def test_opset_and_operators(either_bundle: Path, file: str) -> None:
    model = onnx.load(either_bundle / file)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import if not opset.domain] == [("", OPSET)]
    assert OPSET == 23
    assert {node.domain for node in model.graph.node} == {""}
    kinds = [node.op_type for node in model.graph.node]
    value_path = load_bundle(either_bundle)[0].encoder.value_path
    assert kinds.count("Attention") == 4 * (1 + value_path)
    assert kinds.count("Gelu") == 4
    assert kinds.count("LayerNormalization") == 2 * 4 + 1 + 8 * value_path  # ln_post is the V path's
    manifest, _ = load_bundle(either_bundle)
    (artifact,) = [artifact for artifact in manifest.artifacts if artifact.file == file]
    assert artifact.operators == {kind: kinds.count(kind) for kind in set(kinds)}


@pytest.mark.parametrize("file", FILES)
def test_only_batch_and_classes_are_symbolic(toy_bundle: Path, file: str) -> None:
    graph = onnx.load(toy_bundle / file).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "frames": ["batch", 64, 64],
        "text_seg": [2, 24],
        "text_cls": ["classes", 24],
        "transform_weight": [4, 32, 24],
        "transform_bias": [4, 24],
        "memory": [4, 128, 32],
        "memory_scale": [4, 2],
        "head_weight": ["classes", 385],
        "head_bias": ["classes"],
        "scalars": [6],
        "probabilities": ["batch", "classes"],
        "defect_map": ["batch", 4, 4],
        "features": ["batch", 385],
    }
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert types.pop("frames") == onnx.TensorProto.UINT8
    assert set(types.values()) == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("file", FILES)
def test_recipe_tensors_are_inputs_with_the_recipe_as_their_default(
    toy_bundle: Path, own_recipe: Recipe, file: str
) -> None:
    graph = onnx.load(toy_bundle / file).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs = [value.name for value in graph.input]
    assert inputs == ["frames", *TENSORS]
    for name in TENSORS:
        np.testing.assert_array_equal(held[name], own_recipe.tensors[name])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("value_path", [False, True])
@pytest.mark.slow
def test_inputs_and_outputs_are_the_same_with_the_v_path_and_without(
    own_recipe: Recipe, tmp_path: Path, value_path: bool, half: bool
) -> None:
    graph = SemClipGraph(load_model("toy", random_seed=0).encoder(), value_path=value_path)
    if half:
        graph = graph.half_precision(torch.from_numpy(random_frames(2, (64, 64))))
    census = onnx_from_graph(graph, own_recipe.tensors, tmp_path / "model.onnx")
    assert census["Attention"] == (8 if value_path else 4)
    written = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in written.input] == ["frames", *TENSORS]
    assert [value.name for value in written.output] == list(OUTPUTS)
    assert {name for node in written.node for name in node.input} >= {"frames", *TENSORS}, "each is read"


@pytest.mark.parametrize("file", FILES)
def test_the_file_runs_on_frames_alone_with_its_stored_recipe(toy_bundle: Path, own_recipe: Recipe, file: str) -> None:
    frames = random_frames(3, (64, 64))
    opened = session(toy_bundle / file)
    alone = opened.run(None, {"frames": frames})
    told = opened.run(list(OUTPUTS), {"frames": frames, **own_recipe.tensors})
    assert [output.shape for output in alone] == [(3, 7), (3, 4, 4), (3, 385)]
    for a, b in zip(alone, told, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("file", FILES)
def test_the_file_holds_no_local_paths(toy_bundle: Path, file: str) -> None:
    model = onnx.load(toy_bundle / file)
    for tensor in model.graph.initializer:
        tensor.raw_data = b""  # numbers, in which any three letters may stand by chance
    content = model.SerializeToString()
    assert b"text_cls" in content
    for text in (str(ROOT), str(Path.home()), str(toy_bundle.parent), "site-packages", ".py", 'File "'):
        assert text.encode() not in content, text
    assert not model.doc_string
    assert not model.graph.doc_string
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not model.functions


def test_the_file_is_self_contained(toy_bundle: Path) -> None:
    """No weights in a second file beside it."""
    for file in FILES:
        assert not any(tensor.external_data for tensor in onnx.load(toy_bundle / file).graph.initializer)


@pytest.mark.parametrize("classes", [2, 12, 64])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_recipe_of_any_number_of_classes_runs_on_a_bundle_taught_with_seven(
    toy_bundle: Path, classes: int, precision: str
) -> None:
    frames = list(random_frames(3, (72, 88)))
    with Predictor(toy_bundle, backend="cpu", precision=precision, threads=1) as predictor:
        names = ("good", *(f"class{n}" for n in range(1, classes)))
        predictor.use(make_recipe(names, encoder=predictor.manifest.encoder))
        for result in predictor.predict(frames):
            assert tuple(result.probabilities) == names
            assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-5)
            assert result.head_class == max(names, key=result.probabilities.__getitem__)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_outputs_of_a_frame_do_not_depend_on_its_batch(either_bundle: Path, precision: str) -> None:
    frames = list(random_frames(5, (96, 96)))
    tolerance = 1e-5 if precision == "fp32" else 2e-3
    with Predictor(either_bundle, backend="cpu", precision=precision, threads=1) as predictor:
        together = predictor.predict(frames)
        for frame, batched in zip(frames, together, strict=True):
            alone = predictor(frame)
            for name, value in batched.probabilities.items():
                assert alone.probabilities[name] == pytest.approx(value, abs=tolerance)
            assert alone.score == pytest.approx(batched.score, abs=tolerance)
            np.testing.assert_allclose(alone.defect_map(), batched.defect_map(), atol=tolerance)


# ---- the resize in the graph -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.slow
def test_a_file_for_one_frame_size_agrees_with_torch(
    resizing: tuple[SemClipGraph, Path], own_recipe: Recipe, batch: int
) -> None:
    graph, path = resizing
    frames = random_frames(batch, FRAME_SIZE)
    expected = graph(torch.from_numpy(frames), *(torch.tensor(own_recipe.tensors[name]) for name in TENSORS))
    found = session(path).run(list(OUTPUTS), {"frames": frames})
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-4)


def test_the_resize_in_the_graph_is_close_to_the_one_on_the_host(
    resizing: tuple[SemClipGraph, Path], toy_bundle: Path
) -> None:
    """They differ by the host's rounding to 8 bits; a resize without antialiasing is far off."""
    frames = random_frames(3, FRAME_SIZE)
    encoder = load_bundle(toy_bundle)[0].encoder
    on_host = np.stack([prepare(frame, encoder, FrameOptions(), "frame") for frame in frames])
    aliased = np.stack([Image.fromarray(frame).resize((64, 64), Image.Resampling.NEAREST) for frame in frames])
    in_graph = session(resizing[1]).run(list(OUTPUTS), {"frames": frames})
    near, far = (
        session(toy_bundle / "model.onnx").run(list(OUTPUTS), {"frames": resized}) for resized in (on_host, aliased)
    )
    for found, expected in zip(in_graph, near, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.abs(in_graph[2] - near[2]).max() < 0.2 * np.abs(in_graph[2] - far[2]).max()


def test_frames_of_another_size_are_refused_by_the_file(resizing: tuple[SemClipGraph, Path]) -> None:
    with pytest.raises(Exception, match="invalid dimensions"):
        session(resizing[1]).run(None, {"frames": random_frames(1, (64, 64))})


# ---- the exporter's silent mistakes ----------------------------------------------------------------------------------


def test_a_graph_with_a_constant_or_missing_dimension_is_refused(toy_bundle: Path) -> None:
    graph = SemClipGraph(load_model("toy", random_seed=0).encoder())
    model = onnx.load(toy_bundle / "model.onnx")
    _check_signature(model, graph)

    burnt = copy.deepcopy(model)
    burnt.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match=r"frames is \[2, 64, 64\], not \['batch', 64, 64\]"):
        _check_signature(burnt, graph)

    renamed = copy.deepcopy(model)
    renamed.graph.output[2].name = "vectors"
    with pytest.raises(ExportError, match="features is missing"):
        _check_signature(renamed, graph)
