"""export.artifacts.to_engine: real plans for an absent GPU, and every way in which a builder can fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import make_recipe

from export.artifacts import to_engine
from export.artifacts.engine_network import expand_fp32_attention
from export.artifacts.engine_target import Builder, EngineTarget
from export.artifacts.to_engine import add_engine, build_plan
from export.errors import ExportError
from runtime import Predictor
from runtime.cli import main
from runtime.errors import BundleError
from runtime.files import sha256_of
from runtime.manifest import load_bundle
from runtime.recipe import TENSORS

RTX_4090 = EngineTarget("tensorrt-rtx", "8.9", batch=(1, 2, 4))
VERSION = "1.2.3.4"


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


# ---- a simulated builder ---------------------------------------------------------------------------------------------

FAKE = """
import json, os, sys
from pathlib import Path
__version__ = "{version}"
def main(request):
    print("info: Total Activation Memory: 1234 bytes", file=sys.stderr)
    print("error: the last log line", file=sys.stderr, flush=True)
    Path(os.environ["SAW"]).write_text(json.dumps(request))
    {behave}
    size = os.path.getsize(request["onnx"])
    Path(request["plan"]).write_bytes(b"p" * size)
    return {{"done": {{"version": __version__, "layers": 7}}}}
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Builder]:
    """A builder whose child process runs Python code of the test instead of export.artifacts.engine_child."""

    def make(behave: str = "pass") -> Builder:
        code = FAKE.format(version=VERSION, behave=behave)
        (tmp_path / "fake_child.py").write_text(
            code + "\nprint(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), flush=True)\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("SAW", str(tmp_path / "request.json"))
        monkeypatch.setattr(to_engine, "CHILD", "fake_child")
        return Builder(RTX_4090, VERSION, "8.9")

    return make


def test_builder_gets_recipe_inputs_without_defaults_and_the_profile(
    bundle: Path, fake: Callable[[str], Builder], tmp_path: Path
) -> None:
    behave = 'import shutil; shutil.copy(request["onnx"], os.environ["SAW"] + ".onnx")'
    artifact, built = add_engine(bundle, fake(behave))
    assert built
    request = json.loads((tmp_path / "request.json").read_text())
    assert request["module"] == "tensorrt_rtx"
    assert request["compute_capability"] == "SM89"
    assert request["profile"]["frames"] == [[1, 64, 64], [2, 64, 64], [4, 64, 64]]
    assert request["profile"]["head_bias"] == [[2], [7], [64]]
    assert request["inputs"]["frames"] == ["uint8", [-1, 64, 64]]
    graph = onnx.load(tmp_path / "request.json.onnx").graph
    assert not {tensor.name for tensor in graph.initializer} & TENSORS.keys()
    assert TENSORS.keys() < {value.name for value in graph.input}

    casts = {name for node in graph.node if node.op_type == "Cast" for name in node.output}
    matmuls = [node for node in graph.node if node.op_type == "MatMul"]
    assert sum(set(node.input) <= casts for node in matmuls) > len(matmuls) / 2
    onnx.checker.check_model(onnx.load(tmp_path / "request.json.onnx"), full_check=True)

    manifest, _ = load_bundle(bundle, verify_all=True)
    assert manifest.artifacts[-1] == artifact
    assert (artifact.kind, artifact.precision) == ("engine", "fp16")
    source = next(a for a in manifest.artifacts if a.precision == "fp16")
    about = artifact.target
    assert (about["product"], about["version"], about["compute_capability"]) == ("tensorrt-rtx", VERSION, "8.9")
    assert (about["onnx_sha256"], about["layers"], about["activation_bytes"]) == (source.sha256, 7, 1234)
    assert (bundle / artifact.file).stat().st_size == artifact.bytes


@pytest.mark.parametrize(("uuid", "shown"), [("", "5,6"), ("GPU-1b", "GPU-1b")])
def test_the_builder_sees_the_gpu_it_builds_for_and_no_other(
    bundle: Path, fake: Callable[[str], Builder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uuid: str, shown: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    builder = fake('Path(os.environ["SAW"] + ".gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])')
    add_engine(bundle, replace(builder, uuid=uuid))
    assert (tmp_path / "request.json.gpu").read_text() == shown


def test_an_engine_with_an_equal_key_is_not_built_again(
    bundle: Path, fake: Callable[[str], Builder], tmp_path: Path
) -> None:
    first, built = add_engine(bundle, fake("pass"))
    assert built
    again, built = add_engine(bundle, fake("os.abort()"))
    assert (again, built) == (first, False)
    other = replace(fake("pass"), target=replace(RTX_4090, batch=(1, 2, 8)))
    second, built = add_engine(bundle, other)
    assert built
    assert second.file != first.file
    assert add_engine(bundle, fake("pass"), force=True) == (first, True)
    manifest, _ = load_bundle(bundle, verify_all=True)
    assert sum(a.kind == "engine" for a in manifest.artifacts) == 2
    (bundle / first.file).write_bytes(b"x" * first.bytes)
    with pytest.raises(BundleError, match="SHA-256"):
        add_engine(bundle, fake("pass"))


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        ("os.abort()", "ended by signal 6"),
        ("os._exit(139)", "ended with status 139"),
        ("raise MemoryError", "ended with status 1"),
        ('return {"error": "no kernel for this graph"}', "no kernel for this graph"),
        (
            'Path(request["plan"]).write_bytes(b"p"); return {"done": {"version": __version__, "layers": 7}}',
            "is 1 bytes",
        ),
        (
            'Path(request["plan"]).write_bytes(b"p"); return {"done": {"version": "9.9", "layers": 7}}',
            "reports version 9.9",
        ),
    ],
)
def test_a_builder_that_fails_leaves_the_bundle_as_it_was(
    bundle: Path, fake: Callable[[str], Builder], behave: str, message: str
) -> None:
    before = {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(ExportError) as caught:
        add_engine(bundle, fake(behave))
    assert message in str(caught.value)
    if "9.9" not in message:
        assert "the last log line" in str(caught.value)
    assert {
        path: sha256_of(path) for path in bundle.parent.rglob("*") if bundle in path.parents and path.is_file()
    } == before
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_bundles_without_fp16_or_with_too_many_classes_are_refused(
    bundle: Path, fake: Callable[[str], Builder]
) -> None:
    with pytest.raises(ExportError, match="raise --most-classes"):
        add_engine(bundle, replace(fake("pass"), target=replace(RTX_4090, most_classes=2)))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifacts"] = [a for a in manifest["artifacts"] if a["precision"] != "fp16"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="no fp16 ONNX artifact"):
        add_engine(bundle, fake("pass"))


def test_accumulate_fp16_leaves_the_graph_without_casts(
    bundle: Path, fake: Callable[[str], Builder], tmp_path: Path
) -> None:
    builder = fake('import shutil; shutil.copy(request["onnx"], os.environ["SAW"] + ".onnx")')
    artifact, _ = add_engine(bundle, replace(builder, target=replace(RTX_4090, accumulate="fp16")))
    assert artifact.target["accumulate"] == "fp16"
    asked, source = (onnx.load(path).graph for path in (tmp_path / "request.json.onnx", bundle / "model.fp16.onnx"))
    assert list(asked.node) == list(source.node)


# ---- the real builder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rtx() -> Builder:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX exists for x86-64 only")
    return Builder.find(RTX_4090)


def test_a_real_plan_is_built_for_an_absent_gpu(rtx: Builder, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--engine tensorrt-rtx --compute-capability 8.9 --batch 1,2,4"
    arguments = ["build-engine", str(bundle), *options.split()]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "compute capability 8.9" in printed
    assert "built, not run" in printed
    assert main(arguments) == 0
    assert "it was there already" in capsys.readouterr().out
    manifest, _ = load_bundle(bundle, verify_all=True)
    (engine,) = [a for a in manifest.artifacts if a.kind == "engine"]
    assert engine.target["version"] == rtx.version
    assert engine.target["layers"] > 100
    with Predictor(bundle) as predictor:
        assert predictor(np.full((64, 64), 128, np.uint8)).label
    assert main(["inspect", str(bundle)]) == 0
    assert f"tensorrt-rtx {rtx.version}, compute capability 8.9" in capsys.readouterr().out


@pytest.mark.slow
def test_an_int8_engine_needs_the_int8_artifact_and_is_smaller(
    rtx: Builder, bundle: Path, toy_frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--engine tensorrt-rtx --compute-capability 8.9 --batch 1,2,4"
    eight = ["build-engine", str(bundle), *options.split(), "--precision", "int8"]
    loosely = ("--agreement", "0.5", "--change", "1")  # so that what is left out does not decide the size
    assert main(eight) == 2
    assert "quantize" in capsys.readouterr().err
    assert main(["quantize", str(bundle), str(toy_frames), "--frames", "14", "--for", "tensorrt", *loosely]) == 0
    assert main(eight) == 0
    assert main(["build-engine", str(bundle), *options.split()]) == 0
    manifest, _ = load_bundle(bundle, verify_all=True)
    engines = {a.precision: a for a in manifest.artifacts if a.kind == "engine"}
    assert engines["int8"].target["key"] != engines["fp16"].target["key"]
    assert engines["int8"].target["precision"] == "int8"
    assert engines["int8"].target["weight_bytes"] < 0.8 * engines["fp16"].target["weight_bytes"]


def test_an_unsupported_compute_capability_is_named(rtx: Builder, bundle: Path) -> None:
    with pytest.raises(ExportError, match=r"offers no SM90, but .*SM89"):
        add_engine(bundle, replace(rtx, compute_capability="9.0"))


def test_a_graph_of_another_encoder_is_refused(rtx: Builder, bundle: Path, tmp_path: Path) -> None:
    manifest, _ = load_bundle(bundle)
    other = replace(manifest.encoder, features=manifest.encoder.features + 1)
    with pytest.raises(ExportError, match="features is"):
        build_plan(bundle / "model.fp16.onnx", tmp_path / "plan", rtx, other, usual_classes=3)
    model = onnx.load(bundle / "model.fp16.onnx")
    model.graph.node[-1].op_type = "Unheard"
    onnx.save(model, tmp_path / "no.onnx")
    with pytest.raises(ExportError, match=r"cannot be parsed(.|\n)*Unheard"):
        build_plan(tmp_path / "no.onnx", tmp_path / "plan", rtx, manifest.encoder, usual_classes=3)


@pytest.fixture
def fp32_attention_graph(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy's fp16 graph with all attention in fp32, as trained weights with large scores have it."""
    import torch

    from export.artifacts.to_onnx import onnx_from_graph
    from export.model import dual_path as encoder
    from export.model.checkpoint import load_model
    from export.model.graph import SemClipGraph

    monkeypatch.setattr(encoder, "LARGE_SCORE", 0.0)
    graph = SemClipGraph(load_model("toy", random_seed=0).encoder())
    half = graph.half_precision(torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8))
    assert half.encoder.fp32_attention
    onnx_from_graph(half, load_bundle(toy_bundle)[1].tensors, tmp_path / "fp32_attention.onnx")
    return tmp_path / "fp32_attention.onnx"


@pytest.mark.slow
def test_expanded_fp32_attention_gives_the_same_outputs(fp32_attention_graph: Path) -> None:
    model = onnx.load(fp32_attention_graph)
    expanded = onnx.load(fp32_attention_graph)
    expand_fp32_attention(expanded)
    assert sum(node.op_type == "Attention" for node in model.graph.node) == 8
    assert not [node for node in expanded.graph.node if node.op_type == "Attention"]
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    answers = []
    for graph in (model, expanded):
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"frames": frames}))
    for a, b in zip(*answers, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.slow
def test_an_engine_with_attention_in_fp32_is_built(
    rtx: Builder, bundle: Path, fp32_attention_graph: Path, tmp_path: Path
) -> None:
    built = build_plan(fp32_attention_graph, tmp_path / "plan", rtx, load_bundle(bundle)[0].encoder, usual_classes=3)
    assert built["layers"] > 100


@pytest.mark.slow
def test_attention_with_options_is_refused(fp32_attention_graph: Path) -> None:
    model = onnx.load(fp32_attention_graph)
    node = next(node for node in model.graph.node if node.op_type == "Attention")
    next(a for a in node.attribute if a.name == "is_causal").i = 1
    with pytest.raises(ExportError, match="not a plain Attention"):
        expand_fp32_attention(model)


def test_an_fp16_engine_of_an_fp32_graph_is_refused(rtx: Builder, bundle: Path, tmp_path: Path) -> None:
    """A builder would silently build an fp32 engine."""
    manifest, _ = load_bundle(bundle)
    with pytest.raises(ExportError, match=r"model\.onnx holds no fp16 weights"):
        build_plan(bundle / "model.onnx", tmp_path / "plan", rtx, manifest.encoder, usual_classes=3)


@pytest.mark.slow
def test_the_full_size_encoder_is_built_for_an_rtx_4090(rtx: Builder, tmp_path: Path) -> None:
    """ViT-B/16+ with both paths and the heads, random weights; batches up to 64, recipes up to 64 classes."""
    import torch

    from export.artifacts.to_onnx import onnx_from_graph
    from export.bundle import describe_encoder
    from export.model.checkpoint import load_model
    from export.model.graph import SemClipGraph

    model = load_model("vit_b_16_plus_240", random_seed=0)
    graph = SemClipGraph(model.encoder())
    encoder = describe_encoder(model, graph)
    frames = torch.randint(0, 256, (1, *encoder.input_size), dtype=torch.uint8)
    recipe = make_recipe(encoder=encoder)
    onnx_from_graph(graph.half_precision(frames), recipe.tensors, tmp_path / "model.fp16.onnx")
    builder = replace(rtx, target=EngineTarget("tensorrt-rtx", "8.9", batch=(1, 32, 64)))
    steps: list[tuple[int, int]] = []
    built = build_plan(
        tmp_path / "model.fp16.onnx",
        tmp_path / "plan",
        builder,
        encoder,
        usual_classes=7,
        progress=lambda step, of: steps.append((step, of)),
    )
    parameters = sum(p.numel() for p in model.clip.visual.parameters())
    size = (tmp_path / "plan").stat().st_size
    assert 2 * parameters <= size < 2.5 * parameters, "about two bytes a parameter"
    assert 1.95 * parameters <= built["weight_bytes"] <= size
    assert built["activation_bytes"] + size < 2.5e9, "with batches of 64 it leaves room on any GPU"
    assert steps
    assert steps[-1][0] <= steps[-1][1]
