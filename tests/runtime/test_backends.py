"""runtime.backends: choosing an engine, what is checked before one is opened, and the fake one."""

from __future__ import annotations

import hashlib
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import numpy as np
import pytest
from conftest import make_encoder, make_recipe
from places import ROOT

from runtime.backends import NAMES, Backend, FakeBackend, obstacles, open_backend, ort
from runtime.backends.base import graph_inputs, graph_outputs
from runtime.errors import BackendError, BackendUnavailable, BundleError
from runtime.manifest import Manifest, load_bundle
from runtime.recipe import Recipe


def manifest_of(folder: Path) -> Manifest:
    return load_bundle(folder)[0]


def manifest_of_changed(folder: Path, onnx: bytes) -> Manifest:
    """As it would be had the bundle been written with this ONNX file."""
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    (artifact,) = manifest.artifacts
    changed = replace(artifact, bytes=len(onnx), sha256=hashlib.sha256(onnx).hexdigest())
    return replace(manifest, artifacts=(changed,))


def frames(*first_pixels: int) -> np.ndarray:
    """Black 64 x 64 frames that the fake backend calls class `first pixel modulo K`."""
    batch = np.zeros((len(first_pixels), 64, 64), np.uint8)
    batch[:, 0, 0] = first_pixels
    return batch


def test_the_fake_backend_is_opened_by_name(fake_bundle: Path) -> None:
    manifest = manifest_of(fake_bundle)
    with open_backend("fake", fake_bundle, manifest) as backend:
        assert isinstance(backend, FakeBackend)
        assert backend.name == "fake"
        assert backend.encoder == manifest.encoder
    assert backend.closed


@pytest.mark.parametrize("name", ["directml", "", "CPU"])
def test_an_unknown_backend_is_refused_with_the_names_there_are(name: str, fake_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        open_backend(name, fake_bundle, manifest_of(fake_bundle))
    assert str(caught.value) == f'there is no backend "{name}" in this version; choose one of {", ".join(NAMES)}'


@pytest.mark.parametrize("name", ["auto", "cpu"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_that_is_not_held_is_refused_with_those_that_are(
    name: str, precision: str, fake_bundle: Path
) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        open_backend(name, fake_bundle, manifest_of(fake_bundle), precision=precision)
    how = f"; make it with: sem-clip quantize {fake_bundle} FRAMES" if precision == "int8" else ""
    assert str(caught.value) == f"{fake_bundle}: holds no {precision} ONNX artifact; it holds model.onnx (fp32){how}"


def test_a_bundle_without_artifacts_is_refused(fake_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match="holds no fp32 ONNX artifact; it holds none"):
        open_backend("cpu", fake_bundle, replace(manifest_of(fake_bundle), artifacts=()))


def test_an_engine_file_is_not_taken_for_onnx(fake_bundle: Path) -> None:
    manifest = manifest_of(fake_bundle)
    engine = replace(manifest.artifacts[0], kind="engine", file="model.engine")
    with pytest.raises(BackendUnavailable, match=r"it holds model\.engine \(fp32\)"):
        open_backend("cpu", fake_bundle, replace(manifest, artifacts=(engine,)))


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_onnx_runtime_the_extra_to_install_is_named(
    name: str, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)  # which "auto" would take
    with pytest.raises(BackendUnavailable) as caught:
        open_backend(name, fake_bundle, manifest_of(fake_bundle))
    assert str(caught.value) == 'backend "cpu" needs ONNX Runtime, which is not installed: pip install "sem-clip[cpu]"'


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_garbage_in_place_of_onnx_is_a_fault_of_the_bundle(name: str, fake_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(BundleError) as caught:
        open_backend(name, fake_bundle, manifest_of(fake_bundle))
    (fault,) = caught.value.faults
    assert fault.startswith("model.onnx cannot be opened by ONNX Runtime: ")
    assert caught.value.where == str(fake_bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"X" * 15, "model.onnx does not have the SHA-256 that the manifest records: copy the bundle again"),
        (b"short", "model.onnx is 5 bytes, the manifest records 15: copy the bundle again"),
        (None, "model.onnx is missing"),
    ],
    ids=["hash", "size", "missing"],
)
def test_an_artifact_is_checked_before_the_engine_sees_it(
    content: bytes | None, fault: str, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    opened: list[object] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: opened.append(args))
    manifest = manifest_of(fake_bundle)
    if content is None:
        (fake_bundle / "model.onnx").unlink()
    else:
        (fake_bundle / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        open_backend("cpu", fake_bundle, manifest)
    assert caught.value.faults == (fault,)
    assert opened == []


SIGNATURE = graph_inputs(make_encoder()) | graph_outputs(make_encoder())


class Node:
    def __init__(self, name: str) -> None:
        kind, shape = SIGNATURE[name]
        self.name, self.type = name, f"tensor({kind})"
        self.shape = [side if side >= 0 else "n" for side in shape]


class Session:
    """What the backend uses of an ONNX Runtime session."""

    def __init__(self, inputs: list[str], outputs: list[str]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def get_inputs(self) -> list[Node]:
        return [Node("frames")]

    def get_overridable_initializers(self) -> list[Node]:
        return [Node(name) for name in self._inputs]

    def get_outputs(self) -> list[Node]:
        return [Node(name) for name in self._outputs]

    def run(self, outputs: object, feeds: object) -> list[np.ndarray]:
        raise RuntimeError("first line\nsecond line")


RECIPE_INPUTS = [
    "text_seg",
    "text_cls",
    "transform_weight",
    "transform_bias",
    "memory",
    "memory_scale",
    "head_weight",
    "head_bias",
    "scalars",
]


def test_a_graph_without_the_recipe_inputs_is_refused(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = Session(RECIPE_INPUTS[2:], ["probabilities"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: session)
    with pytest.raises(BundleError) as caught:
        open_backend("cpu", fake_bundle, manifest_of(fake_bundle))
    assert caught.value.faults == tuple(
        f"model.onnx: {name} is missing, not {SIGNATURE[name]} of the bundle's format"
        for name in ("text_seg", "text_cls", "defect_map", "features")
    )


def test_a_graph_with_an_unknown_input_is_refused(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = Session(RECIPE_INPUTS, ["probabilities", "defect_map", "features"])
    monkeypatch.setattr(session, "get_inputs", lambda: [Node("frames"), more])
    more = Node("frames")
    more.name = "temperature"
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: session)
    with pytest.raises(BundleError, match=r"model\.onnx: asks for temperature, which is not in the bundle's format"):
        open_backend("cpu", fake_bundle, manifest_of(fake_bundle))


def test_any_error_of_the_engine_becomes_a_backend_error(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = Session(RECIPE_INPUTS, ["probabilities", "defect_map", "features"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: session)
    backend = open_backend("cpu", fake_bundle, manifest_of(fake_bundle))
    assert "model.onnx (fp32)" in backend.description
    with pytest.raises(BackendError) as caught:
        backend.run(frames(0, 0), make_recipe())
    assert str(caught.value) == "ONNX Runtime failed on a batch of 2: first line"
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(frames(0), make_recipe())


def test_the_first_artifact_of_a_precision_is_opened(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    opened: list[bytes] = []

    def open_session(content: bytes, options: object, providers: list[str], enable_fallback: int) -> Session:
        assert providers == ["CPUExecutionProvider"]
        opened.append(content)
        return Session(RECIPE_INPUTS, ["probabilities", "defect_map", "features"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    manifest = manifest_of(fake_bundle)
    single, other = (fake_bundle / "model.onnx").read_bytes(), b"\x12\x0dno half graph"
    half = replace(manifest.artifacts[0], precision="fp16", file="half.onnx", sha256=hashlib.sha256(other).hexdigest())
    (fake_bundle / "half.onnx").write_bytes(other)
    both = replace(manifest, artifacts=(half, *manifest.artifacts))
    for precision in (None, "fp32", "fp16"):
        open_backend("cpu", fake_bundle, both, precision=precision)
    assert opened == [single, single, other]


# The fake backend


def test_the_fake_backend_answers_from_the_pixels() -> None:
    backend = FakeBackend(make_encoder())
    batch = frames(0, 1, 5, 255)
    batch[1, 17, 33] = 51
    outputs = backend.run(batch, make_recipe())
    assert outputs.probabilities.argmax(axis=1).tolist() == [0, 1, 2, 0]
    np.testing.assert_allclose(outputs.probabilities.sum(axis=1), 1, atol=1e-6)
    assert outputs.defect_map.shape == (4, 4, 4)
    expected = np.zeros((4, 4), np.float32)
    expected[0, 0], expected[1, 2] = 1 / 255, 0.2
    np.testing.assert_allclose(outputs.defect_map[1], expected, atol=1e-7)
    assert outputs.features.shape == (4, 385)
    assert outputs.features[:, 0].tolist() == [0, 1, 5, 255]
    assert {array.dtype for array in (outputs.probabilities, outputs.defect_map, outputs.features)} == {
        np.dtype(np.float32)
    }


@pytest.mark.parametrize("count", [2, 7, 64])
def test_the_fake_backend_follows_the_classes_of_the_recipe(count: int) -> None:
    recipe = make_recipe(("good", *(f"c{i}" for i in range(1, count))))
    outputs = FakeBackend(make_encoder()).run(frames(count - 1, count), recipe)
    assert outputs.probabilities.shape == (2, count)
    assert outputs.probabilities.argmax(axis=1).tolist() == [count - 1, 0]


def test_the_fake_backend_counts_its_batches_and_fails_when_told() -> None:
    backend = FakeBackend(make_encoder(), fail_after=2)
    for size in (3, 1):
        backend.run(frames(*range(size)), make_recipe())
    for _ in range(2):
        with pytest.raises(BackendError, match="told to fail"):
            backend.run(frames(0), make_recipe())
    assert backend.batches == [3, 1]


def test_a_backend_of_ones_own_needs_only_run() -> None:
    class Own(Backend):
        def run(self, frames: object, recipe: object) -> None:  # type: ignore[override]
            return None

    with Own() as backend:
        backend.close()
    with pytest.raises(TypeError):
        Backend()  # type: ignore[abstract]


def test_weights_that_no_hash_covers_are_refused(fake_bundle: Path) -> None:
    """ONNX may keep weights in a file beside, which the manifest knows nothing of."""
    import onnx

    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    value = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "g", [], [value], [tensor])
    content = onnx.helper.make_model(graph).SerializeToString()
    (fake_bundle / "model.onnx").write_bytes(content)
    manifest = manifest_of_changed(fake_bundle, content)
    with pytest.raises(BundleError, match="keeps weights in a file of their own, which no hash covers"):
        open_backend("cpu", fake_bundle, manifest)


def test_a_graph_of_another_encoder_is_refused_with_every_difference(toy_bundle: Path) -> None:
    manifest = manifest_of(toy_bundle)
    height, width = manifest.encoder.input_size
    encoder = replace(manifest.encoder, input_size=(height // 2, width), grid=(1, 1))
    with pytest.raises(BundleError) as caught:
        open_backend("cpu", toy_bundle, replace(manifest, encoder=encoder))
    assert len(caught.value.faults) == 2
    assert "frames is ('uint8'" in caught.value.faults[0]
    assert "defect_map is ('float'" in caught.value.faults[1]


def test_what_an_engine_fails_on_is_raised_and_not_printed(toy_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Printed past Python, names in a stranger's graph could steer a terminal."""
    manifest, recipe = load_bundle(toy_bundle)
    odd = SimpleNamespace(tensors={**recipe.tensors, "head_bias": np.zeros(3, np.float32)})
    with (
        open_backend("cpu", toy_bundle, manifest) as backend,
        pytest.raises(BackendError, match="failed on a batch of 1"),
    ):
        backend.run(np.zeros((1, *manifest.encoder.input_size), np.uint8), cast(Recipe, odd))
    assert capfd.readouterr() == ("", "")


# Which ONNX Runtime


def pretend_onnxruntime(monkeypatch: pytest.MonkeyPatch, version: str | None, provider: str = "CPU") -> None:
    module = ModuleType("onnxruntime")
    if version is not None:
        module.__version__ = version  # type: ignore[attr-defined]
    module.get_available_providers = lambda: [f"{provider}ExecutionProvider"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


@pytest.mark.parametrize(
    ("backend", "provider", "version", "install"),
    [
        ("cpu", "CPU", "1.20.1", 'pip install --upgrade "onnxruntime>=1.24.1"'),
        ("cpu", "CPU", "1.24.0.dev20251031003", 'pip install --upgrade "onnxruntime>=1.24.1"'),
        ("cpu", "CPU", "1.9", 'pip install --upgrade "onnxruntime>=1.24.1"'),
        ("cuda", "CUDA", "1.29.0", 'pip install --upgrade "onnxruntime-gpu>=1.30"'),
    ],
)
def test_an_onnxruntime_that_is_too_old_is_named_with_what_to_install(
    backend: str, provider: str, version: str, install: str, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_onnxruntime(monkeypatch, version, provider)
    with pytest.raises(BackendUnavailable) as caught:
        ort.check_provider(backend)
    assert f"here is {version}: {install}" in str(caught.value)
    if backend == "cpu":
        assert version in obstacles(fake_bundle, manifest_of(fake_bundle))["cpu"]


@pytest.mark.parametrize("version", ["1.24.1", "1.24.1.post2", "1.32.0", "1.100.0", "2.0", "unknown"])
def test_an_onnxruntime_that_is_new_enough_is_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_onnxruntime(monkeypatch, version)
    assert ort.check_provider("cpu").__version__ == version


def test_the_versions_that_are_checked_are_those_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert {name: extras[name][0].rpartition(">=")[2] for name in ort.LEAST_VERSION} == ort.LEAST_VERSION


def test_what_an_installation_left_behind_is_not_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_onnxruntime(monkeypatch, None)
    with pytest.raises(BackendUnavailable, match="pip install --force-reinstall onnxruntime"):
        ort.check_provider("cpu")


class Importer:
    """Finds onnxruntime and fails to load it, as told."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "onnxruntime":
            raise self.error


def test_an_import_that_fails_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Importer(ImportError("libstdc++.so.6: too old")), *sys.meta_path])
    with pytest.raises(BackendUnavailable, match=r"cannot be imported \(libstdc.*too old\)"):
        ort.check_provider("cpu")


def test_an_interrupt_while_it_is_imported_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extension modules turn it into an ImportError."""
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Importer(error), *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        ort.check_provider("cpu")
