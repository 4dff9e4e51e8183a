"""runtime.serving.triton_repository: a server's models compute as the bundle does, and nothing foreign is replaced."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import errors_in, files_in, sem_clip
from conftest import make_encoder, make_recipe, write_bundle
from wire import field

from runtime import BackendUnavailable, BundleError, PredictorError, RecipeError
from runtime.backends.base import graph_inputs, graph_outputs
from runtime.backends.ort import OrtCpuBackend
from runtime.cli import main
from runtime.manifest import Artifact, load_bundle, read_artifact, read_manifest
from runtime.onnxrecipe import with_initializers
from runtime.recipe import TENSORS, tensors_digest
from runtime.serving import triton_repository
from runtime.serving.served import Served
from runtime.serving.triton_config import ModelConfig, Tensor
from runtime.serving.triton_repository import Wishes, write_repository
from runtime.telemetry import import_onnxruntime

pytestmark = pytest.mark.slow
MODELS = ("sem_clip", "sem_clip_any_recipe", "sem_clip_tensorrt")
MORE_CLASSES = make_recipe(("good", "bridge", "hole", "scratch"))


def empty_graph(names: tuple[str, ...] = tuple(TENSORS)) -> bytes:
    """An ONNX file of a recipe's initializers alone, each of one number a side."""
    tensors = [
        bytes([1 << 3, 1] * len(TENSORS.get(name, "1"))) + bytes([2 << 3, 1]) + field(8, name.encode())
        for name in names
    ]
    return field(2, b"tests") + field(7, b"".join(field(5, tensor) for tensor in tensors))


def put(bundle: Path, file: str, content: bytes, *, kind: str = "onnx", precision: str = "fp32", **target: Any) -> None:
    """Make a file an artifact of the bundle, in place of one of the same name."""
    (bundle / file).parent.mkdir(exist_ok=True)
    (bundle / file).write_bytes(content)
    manifest = read_manifest(bundle)
    artifact = Artifact(file, kind, precision, hashlib.sha256(content).hexdigest(), len(content), {}, {}, target)
    others = tuple(a for a in manifest.artifacts if a.file != file)
    (bundle / "manifest.json").write_text(replace(manifest, artifacts=(*others, artifact)).to_json(), encoding="utf-8")


@pytest.fixture
def bundle(fake_bundle: Path) -> Path:
    """A bundle whose ONNX file takes recipes, and computes nothing."""
    put(fake_bundle, "model.onnx", empty_graph())
    return fake_bundle


def put_plan(bundle: Path, file: str = "engines/a.plan", **changes: Any) -> None:
    if not any(a.precision == "fp16" for a in load_bundle(bundle)[0].artifacts):
        put(bundle, "model.fp16.onnx", empty_graph() + b"\x08\x0a", precision="fp16")
    graph = next(a for a in load_bundle(bundle)[0].artifacts if a.file == "model.fp16.onnx")
    target = {
        "product": "tensorrt",
        "version": "11.0.0",
        "compute_capability": "8.9",
        "os": "linux-x86_64",
        "onnx_sha256": graph.sha256,
        "batch": [1, 8, 32],
        "most_classes": 16,
    }
    precision = changes.pop("precision", "fp16")
    put(bundle, file, file.encode(), kind="engine", precision=precision, **{**target, **changes})


def read_config(out: Path, model: str = "sem_clip") -> Any:
    """The model's configuration, by NVIDIA's own definition."""
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (out / model / "config.pbtxt").read_text(encoding="ascii")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def said_by(config: Any) -> Served:
    return Served.read({name: value.string_value for name, value in config.parameters.items()}, "the model")


def sides(tensors: Any) -> dict[str, tuple[str, list[int], bool]]:
    kinds = {2: "uint8", 11: "float"}
    return {t.name: (kinds[t.data_type], list(t.dims), getattr(t, "optional", False)) for t in tensors}


# ---- the models --------------------------------------------------------------------------------------------------


def test_the_repository_holds_both_models_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    lines = write_repository(bundle, tmp_path / "models", Wishes())
    assert files_in(tmp_path / "models") == [
        "sem_clip",
        "sem_clip/1",
        "sem_clip/1/model.onnx",
        "sem_clip/config.pbtxt",
        "sem_clip_any_recipe",
        "sem_clip_any_recipe/1",
        "sem_clip_any_recipe/1/model.onnx",
        "sem_clip_any_recipe/config.pbtxt",
    ]
    assert lines == [
        "sem_clip version 1: recipe.safetensors, 3 classes",
        "sem_clip_any_recipe: the recipe comes with each request",
    ]
    assert (tmp_path / "models/sem_clip_any_recipe/1/model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()


def test_the_model_with_a_recipe_lets_the_server_put_requests_together(bundle: Path, tmp_path: Path) -> None:
    manifest, recipe = load_bundle(bundle)
    write_repository(bundle, tmp_path / "models", Wishes(threads=3, instances=2))
    config = read_config(tmp_path / "models")
    assert (config.name, config.backend, config.max_batch_size) == ("sem_clip", "onnxruntime", 64)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert config.version_policy.HasField("all")
    assert [(group.KIND_CPU, group.count) for group in config.instance_group] == [(config.instance_group[0].kind, 2)]
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert sides(config.input) == {"frames": ("uint8", [64, 64], False)}
    wanted = {name: (kind, list(shape[1:]), False) for name, (kind, shape) in graph_outputs(manifest.encoder).items()}
    assert sides(config.output) == wanted
    said = said_by(config)
    assert said.encoder_id == manifest.encoder.id
    assert said.precision == "fp32"
    assert said.bundle == "sem-clip-bundle 2"
    assert said.model_sha256 == manifest.artifacts[0].sha256
    held = said.recipes[1]
    assert (held.tensors_sha256, held.sha256) == (tensors_digest(recipe), manifest.recipe_sha256)
    assert held.classes == recipe.classes


def test_the_model_for_any_recipe_has_its_tensors_as_optional_inputs(bundle: Path, tmp_path: Path) -> None:
    manifest, _ = load_bundle(bundle)
    write_repository(bundle, tmp_path / "models", Wishes(gpu=False))
    config = read_config(tmp_path / "models", "sem_clip_any_recipe")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    wanted = graph_inputs(manifest.encoder)
    assert sides(config.input) == {n: (kind, list(shape), n != "frames") for n, (kind, shape) in wanted.items()}
    assert sides(config.output) == {n: (k, list(s), False) for n, (k, s) in graph_outputs(manifest.encoder).items()}
    assert said_by(config).recipes == {}


def test_recipes_become_versions_in_their_order(bundle: Path, tmp_path: Path) -> None:
    names = []
    for number, recipe in enumerate([make_recipe(), MORE_CLASSES]):
        names.append(tmp_path / f"{number}.safetensors")
        recipe.save(names[-1])
    write_repository(bundle, tmp_path / "models", Wishes(name="litho", recipes=names))
    assert files_in(tmp_path / "models/litho") == ["1", "1/model.onnx", "2", "2/model.onnx", "config.pbtxt"]
    held = said_by(read_config(tmp_path / "models", "litho")).recipes
    assert [held[v].classes for v in (1, 2)] == [make_recipe().classes, MORE_CLASSES.classes]
    assert held[2].sha256 == hashlib.sha256(names[1].read_bytes()).hexdigest()
    content = (tmp_path / "models/litho/2/model.onnx").read_bytes()
    assert content == with_initializers((bundle / "model.onnx").read_bytes(), MORE_CLASSES.tensors)


def test_on_a_gpu_the_half_precision_graph_and_the_engines_are_served(bundle: Path, tmp_path: Path) -> None:
    put_plan(bundle)
    put_plan(bundle, "engines/b.plan", compute_capability="9.0", batch=[1, 8, 16], most_classes=20)
    put_plan(bundle, "engines/rtx.plan", product="tensorrt-rtx")
    put_plan(bundle, "engines/old.plan", onnx_sha256="ab" * 32)
    put_plan(bundle, "engines/windows.plan", os="windows-amd64")
    put_plan(bundle, "engines/batches.plan", batch=[2, 8, 16])
    put_plan(bundle, "engines/odd.plan", batch="1,2,3")
    lines = write_repository(bundle, tmp_path / "models", Wishes(gpu=True))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(MODELS)
    assert lines[-1] == (
        "sem_clip_tensorrt: engines of TensorRT 11.0.0 for compute capability 8.9, 9.0; each request brings a recipe"
    )
    config = read_config(tmp_path / "models", "sem_clip_tensorrt")
    assert dict(config.cc_model_filenames) == {"8.9": "sm89.plan", "9.0": "sm90.plan"}
    assert (tmp_path / "models/sem_clip_tensorrt/1/sm90.plan").read_bytes() == b"engines/b.plan"
    assert (config.backend, config.max_batch_size, config.instance_group[0].kind) == ("tensorrt", 0, 1)
    assert not any(tensor.optional for tensor in config.input)
    said = said_by(config)
    assert (said.precision, said.max_batch, said.most_classes, said.recipes) == ("fp16", 16, 16, {})
    fixed = read_config(tmp_path / "models")
    assert (fixed.instance_group[0].kind, said_by(fixed).precision) == (1, "fp16")


def test_of_several_engines_for_one_gpu_one_is_named(bundle: Path, tmp_path: Path) -> None:
    put_plan(bundle)
    put_plan(bundle, "engines/b.plan", version="11.1.0")
    with pytest.raises(BundleError, match=r"choose one with --engine engines/a\.plan or --engine engines/b\.plan"):
        write_repository(bundle, tmp_path / "models", Wishes(gpu=True))
    assert not (tmp_path / "models").exists()
    write_repository(bundle, tmp_path / "models", Wishes(gpu=True, engines=["engines/b.plan"]))
    assert (tmp_path / "models/sem_clip_tensorrt/1/sm89.plan").read_bytes() == b"engines/b.plan"


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("engines/c.plan", r"holds no TensorRT engine engines/c\.plan; it holds engines/a\.plan, engines/old\.plan"),
        ("engines/old.plan", r"holds engines/old\.plan, which no such server can run: it must be of precision fp16"),
        ("engines/text.plan", r"holds engines/text\.plan, which no such server can run"),
    ],
)
def test_an_engine_that_cannot_be_served_is_refused(bundle: Path, tmp_path: Path, engine: str, words: str) -> None:
    put_plan(bundle)
    put_plan(bundle, "engines/old.plan", onnx_sha256="ab" * 32)
    put_plan(bundle, "engines/text.plan", compute_capability="9.0", version='11\nbackend: "python"')
    with pytest.raises(BundleError, match=words):
        write_repository(bundle, tmp_path / "models", Wishes(gpu=True, engines=[engine]))


def test_8_bit_engines_are_served_without_the_8_bit_graph_of_the_cpu(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PredictorError, match="holds no int8 TensorRT engine that fits, and int8 ONNX files are for the"
    ):
        write_repository(bundle, tmp_path / "models", Wishes(gpu=True, precision="int8"))
    put(bundle, "model.int8.onnx", empty_graph() + b"\x08\x09", precision="int8", engine="tensorrt")
    graph = hashlib.sha256(empty_graph() + b"\x08\x09").hexdigest()
    put_plan(bundle, precision="int8", onnx_sha256=graph)
    write_repository(bundle, tmp_path / "models", Wishes(gpu=True, precision="int8"))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["sem_clip_tensorrt"]


def test_the_models_compute_what_the_predictor_does_with_each_recipe(either_bundle: Path, tmp_path: Path) -> None:
    """The file of each version, opened by ONNX Runtime with its own recipe, against the recipe as inputs."""
    onnx = pytest.importorskip("onnx")
    manifest, own = load_bundle(either_bundle)
    encoder = manifest.encoder
    rng = np.random.default_rng(5)
    moved = {n: (t * rng.uniform(0.5, 1.5, t.shape)).astype(np.float32) for n, t in own.tensors.items()}
    moved["scalars"] = own.tensors["scalars"]
    fewer = {n: moved[n][:4] for n in ("text_cls", "head_weight", "head_bias")}
    recipes = [
        own,
        replace(own, tensors=moved),
        replace(make_recipe(own.classes[:4], encoder), tensors={**moved, **fewer}),
    ]
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for file, recipe in zip(files, recipes, strict=True):
        recipe.save(file)
    write_repository(either_bundle, tmp_path / "models", Wishes(recipes=files))
    frames = rng.integers(0, 256, (3, *encoder.input_size), np.uint8)
    original = read_artifact(either_bundle, manifest.artifacts[0])
    with OrtCpuBackend(either_bundle, manifest.artifacts[0], encoder, threads=1) as backend:
        for version, recipe in enumerate(recipes, start=1):
            content = (tmp_path / f"models/sem_clip/{version}/model.onnx").read_bytes()
            onnx.checker.check_model(onnx.load_from_string(content))
            wanted = backend.run(frames, recipe)
            found = session(content).run(None, {"frames": frames})
            for name, array in zip(("probabilities", "defect_map", "features"), found, strict=True):
                np.testing.assert_array_equal(array, getattr(wanted, name))
    assert (tmp_path / "models/sem_clip/1/model.onnx").read_bytes() == original


def session(content: bytes) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


# ---- refusals ----------------------------------------------------------------------------------------------------


def test_what_is_there_is_kept(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_repository(bundle, out, Wishes())
    before = files_in(out)
    with pytest.raises(PredictorError, match="exists; add --force to replace it"):
        write_repository(bundle, out, Wishes(name="other"))
    assert files_in(out) == before
    write_repository(bundle, out, Wishes(name="other"), force=True)
    assert sorted(path.name for path in out.iterdir()) == ["other", "other_any_recipe"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "models"]


@pytest.mark.parametrize("foreign", ["notes.txt", "model/config.pbtxt"])
def test_foreign_files_are_never_replaced(bundle: Path, tmp_path: Path, foreign: str) -> None:
    out = tmp_path / "models"
    write_repository(bundle, out, Wishes())
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text('name: "model"')
    with pytest.raises(PredictorError, match="which sem-clip did not write, and --force replaces own models only"):
        write_repository(bundle, out, Wishes(), force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictorError, match="is not a folder"):
        write_repository(bundle, tmp_path / "file", Wishes(), force=True)


def test_a_run_that_fails_leaves_the_old_repository(bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "models"
    write_repository(bundle, out, Wishes())
    before = files_in(out)

    def broken(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton_repository, "_any_recipe", broken)
    with pytest.raises(OSError, match="No space"):
        write_repository(bundle, out, Wishes(name="other"), force=True)
    with pytest.raises(OSError, match="No space"):
        write_repository(bundle, tmp_path / "new", Wishes())
    assert files_in(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "models"]


def test_a_leftover_of_a_replacement_is_not_overwritten(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_repository(bundle, out, Wishes())
    (tmp_path / "models.new").mkdir()
    with pytest.raises(PredictorError, match=r"models\.new is in the way"):
        write_repository(bundle, out, Wishes(), force=True)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "é", "x" * 101])
def test_names_that_no_model_can_have_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(PredictorError, match="cannot name a model"):
        write_repository(bundle, tmp_path / "models", Wishes(name=name))


def test_recipes_are_checked(bundle: Path, tmp_path: Path) -> None:
    stranger, twin = tmp_path / "stranger.safetensors", tmp_path / "twin.safetensors"
    make_recipe(encoder=make_encoder(id="cd" * 32)).save(stranger)
    own = load_bundle(bundle)[1]
    replace(own, operating_point=replace(own.operating_point, defect_threshold=0.1)).save(twin)
    for recipes, words in (
        ([stranger], "was taught on encoder cdcdcdcdcdcd"),
        ([tmp_path / "none"], "does not exist"),
        ([bundle / "recipe.safetensors", twin], "is the same recipe as .* but for its thresholds"),
    ):
        with pytest.raises(RecipeError, match=words):
            write_repository(bundle, tmp_path / "models", Wishes(recipes=recipes))
    with pytest.raises(PredictorError, match="101 recipes are too many"):
        write_repository(bundle, tmp_path / "models", Wishes(recipes=[twin] * 101))
    assert not (tmp_path / "models").exists()


def test_a_bundle_that_does_not_hold_what_is_asked_for(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="holds no int8 ONNX artifact"):
        write_repository(bundle, tmp_path / "models", Wishes(precision="int8"))
    with pytest.raises(BundleError, match="is not a bundle folder"):
        write_repository(tmp_path / "none", tmp_path / "models", Wishes())
    with pytest.raises(PredictorError, match="lies in the bundle"):
        write_repository(bundle, bundle / "models", Wishes())
    (bundle / "model.onnx").write_bytes(empty_graph()[:-1] + b"?")
    with pytest.raises(BundleError, match="does not have the SHA-256"):
        write_repository(bundle, tmp_path / "models", Wishes())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (empty_graph(tuple(TENSORS)[:-1]), "holds no initializer scalars, so no recipe can be put into it"),
        (empty_graph((*TENSORS, "scalars")), "holds the initializer scalars twice"),
        (field(2, b"tests"), "holds 0 graphs, not one"),
        (empty_graph() + empty_graph(), "holds more than one graph"),
        (b"\xff" * 20, "is no ONNX file, or is cut off"),
    ],
)
def test_a_graph_that_takes_no_recipe_is_refused(fake_bundle: Path, tmp_path: Path, content: bytes, words: str) -> None:
    put(fake_bundle, "model.onnx", content)
    with pytest.raises(BundleError, match=words):
        write_repository(fake_bundle, tmp_path / "models", Wishes())
    assert not (tmp_path / "models").exists()


def test_a_configuration_holds_ascii_alone() -> None:
    frames = Tensor("frames", "uint8", (1, 1))
    with pytest.raises(ValueError, match="not printable ASCII"):
        ModelConfig("é", "onnxruntime", 0, [frames], [], {}).text()


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_writes_and_says_how_to_start(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "models"
    assert main(["triton-repository", str(bundle), str(out)]) == 0
    printed = capsys.readouterr()
    assert (
        printed.out.splitlines()[-1] == f"written {out}; start the server with: tritonserver --model-repository={out}"
    )
    assert printed.err == ""
    status, err = sem_clip(capsys, "triton-repository", bundle, out)
    assert (status, errors_in(err)) == (2, [f"{out} exists; add --force to replace it, or choose another name"])
    assert sem_clip(capsys, "triton-repository", bundle, out, "--force", "--name", "b")[0] == 0


def test_class_names_of_any_script_reach_the_client(tmp_path: Path) -> None:
    recipe = make_recipe(("good", "Brücke", '"\\ 孔'))
    bundle = write_bundle(tmp_path / "bundle", recipe=recipe)
    put(bundle, "model.onnx", empty_graph())
    write_repository(bundle, tmp_path / "models", Wishes())
    assert said_by(read_config(tmp_path / "models")).recipes[1].classes == recipe.classes
