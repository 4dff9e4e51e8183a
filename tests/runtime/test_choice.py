"""Which engine this host can run: the exact difference and the command that mends it, and what "auto" takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder

from runtime import Predictor, backends
from runtime.backends import ENGINES, FakeBackend, choice, obstacles, open_backend
from runtime.backends.base import Signature, graph_inputs, graph_outputs
from runtime.backends.choice import engine_artifact, precisions_held
from runtime.backends.ort import OrtCpuBackend, OrtCudaBackend, _left_to_others
from runtime.cli import main
from runtime.errors import BackendError, BackendUnavailable, BundleError, PredictorError
from runtime.host import Gpu, find_gpu, operating_system
from runtime.manifest import Artifact, Manifest, load_bundle
from runtime.recipe import TENSORS
from runtime.targets import ENGINE_PRODUCTS

RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0", 24 * 2**30, "0000:01:00.0")
PRODUCT, VERSION = "tensorrt-rtx", "1.7.1"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.util, "find_spec", lambda name: object())


@pytest.fixture
def manifest(fake_bundle: Path) -> Manifest:
    found, _ = load_bundle(fake_bundle)
    onnx = replace(found.artifacts[0], precision="fp16", file="model.fp16.onnx", sha256="12" * 32)
    return replace(found, artifacts=(*found.artifacts, onnx))


def with_engine(manifest: Manifest, **changes: str) -> Manifest:
    target = {"product": PRODUCT, "version": VERSION, "compute_capability": "8.9", "os": operating_system()}
    target |= {"onnx_sha256": "12" * 32, **changes}
    name = f"{len(manifest.artifacts)}.plan"
    engine = Artifact(name, "engine", "fp16", "34" * 32, 10, {}, {}, target)
    return replace(manifest, artifacts=(*manifest.artifacts, engine))


def choose(manifest: Manifest, *, gpu: Gpu | None = RTX_4090, why: str = "", **more: Any) -> Artifact:
    return engine_artifact(
        PRODUCT, Path("bundle"), manifest, version_of=lambda name: VERSION, gpu=lambda: (gpu, why), **more
    )


def test_the_engine_built_for_this_host_is_taken(manifest: Manifest) -> None:
    held = with_engine(with_engine(with_engine(manifest, compute_capability="8.6")), version="1.6.0")
    assert choose(held).file == "3.plan"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "1.6.0"}, "was built by tensorrt-rtx 1.6.0, here is 1.7.1"),
        (
            {"compute_capability": "8.6"},
            "was built for compute capability 8.6, the GPU here (NVIDIA GeForce RTX 4090) has 8.9",
        ),
        ({"gpu": "NVIDIA L40S"}, "was built on NVIDIA L40S, here is NVIDIA GeForce RTX 4090"),
        ({"os": "windows-amd64"}, f"was built for windows-amd64, this is {operating_system()}"),
        ({"onnx_sha256": "ff" * 32}, "was built from another fp16 ONNX file than the bundle's"),
        (
            {"os": "windows-amd64", "version": "1.6.0"},
            "was built by tensorrt-rtx 1.6.0, here is 1.7.1; it was built for windows-amd64, this is "
            + operating_system(),
        ),
    ],
)
def test_an_engine_for_another_host_is_refused_with_the_difference(
    manifest: Manifest, changes: dict[str, str], says: str
) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        choose(with_engine(manifest, **changes))
    command = "build one on this machine with: sem-clip build-engine bundle --engine tensorrt-rtx"
    assert str(caught.value) == f"bundle: 2.plan {says}; {command}"


def test_an_8_bit_engine_runs_only_where_it_is_asked_for(manifest: Manifest) -> None:
    """And the 8-bit ONNX file that it was built from is none that ONNX Runtime is given."""
    onnx = Artifact("8.onnx", "onnx", "int8", "56" * 32, 10, {}, {}, {"engine": "tensorrt"})
    held = with_engine(replace(manifest, artifacts=(*manifest.artifacts, onnx)), onnx_sha256="56" * 32)
    held = replace(held, artifacts=(*held.artifacts[:-1], replace(held.artifacts[-1], precision="int8")))
    with pytest.raises(BackendUnavailable, match="holds no fp16 engine"):
        choose(held)
    assert choose(held, precision="int8") is held.artifacts[-1]
    with pytest.raises(BackendUnavailable, match="--engine tensorrt-rtx --precision int8"):
        choose(manifest, precision="int8")
    with pytest.raises(BackendUnavailable, match="holds no int8 ONNX artifact"):
        choice.onnx_artifact(Path("bundle"), held, "int8")


def test_of_several_unfit_engines_the_nearest_is_reported(manifest: Manifest) -> None:
    held = with_engine(with_engine(manifest, os="x", version="y"), version="1.6.0")
    with pytest.raises(BackendUnavailable, match=r"3\.plan was built by tensorrt-rtx 1\.6\.0"):
        choose(held)


def test_without_an_engine_a_gpu_or_the_product(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackendUnavailable, match="holds no fp16 engine of tensorrt-rtx; build one on this machine with"
    ):
        choose(manifest)
    with pytest.raises(BackendUnavailable, match='"tensorrt-rtx" cannot run here: no NVIDIA driver was found'):
        choose(with_engine(manifest), gpu=None, why="no NVIDIA driver was found")
    with pytest.raises(BackendUnavailable, match="runs fp16 and int8 engines, not fp32"):
        choose(with_engine(manifest), precision="fp32")
    monkeypatch.setattr(choice.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install \"sem-clip\[tensorrt-rtx\]\""):
        choose(with_engine(manifest))

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with pytest.raises(BackendUnavailable, match="needs tensorrt-rtx, which is not installed"):
        engine_artifact(PRODUCT, Path("bundle"), manifest, version_of=absent, gpu=lambda: (RTX_4090, ""))


# ---- auto ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> Callable[..., list[str]]:
    """Lets only some backends run; the names that were tried."""

    def make(*running: str, failing: Exception | None = None) -> list[str]:
        tried: list[str] = []

        def opened(name: str, *arguments: Any) -> FakeBackend:
            tried.append(name)
            if failing is not None and name == tried[0]:
                raise failing
            if name not in running:
                raise BackendUnavailable(f"{name} is not for this host")
            backend = FakeBackend(manifest.encoder)
            backend.name = name
            return backend

        monkeypatch.setattr(backends, "_open", opened)
        return tried

    return make


@pytest.mark.parametrize("running", [ENGINES[i:] for i in range(len(ENGINES))])
def test_auto_takes_the_fastest_that_runs_and_logs_why_others_were_skipped(
    pretend: Callable[..., list[str]], manifest: Manifest, running: tuple[str, ...]
) -> None:
    tried = pretend(*running)
    backend = open_backend("auto", Path("bundle"), manifest)
    assert backend.name == running[0]
    assert tuple(tried) == ENGINES[: ENGINES.index(running[0]) + 1]
    assert backend.why.splitlines() == [f"not {name}: {name} is not for this host" for name in tried[:-1]]


def test_on_a_cpu_auto_takes_onnx_runtime_where_both_are_installed(
    pretend: Callable[..., list[str]], manifest: Manifest
) -> None:
    """The rule is fixed: no measurement, and no precision but the one that is asked for."""
    pretend("openvino", "cpu")
    assert open_backend("auto", Path("bundle"), manifest).name == "cpu"
    pretend("openvino")
    backend = open_backend("auto", Path("bundle"), manifest)
    assert backend.name == "openvino"
    assert "not cpu: cpu is not for this host" in backend.why.splitlines()


def test_where_nothing_runs_auto_says_what_the_embedded_engine_lacks(
    pretend: Callable[..., list[str]], manifest: Manifest
) -> None:
    tried = pretend()
    with pytest.raises(BackendUnavailable, match=r"^cpu is not for this host$"):
        open_backend("auto", Path("bundle"), manifest)
    assert tuple(tried) == ENGINES


def test_each_backend_runs_what_the_bundle_holds_a_file_for(manifest: Manifest) -> None:
    held = {name: precisions_held(name, manifest) for name in ENGINES}
    none = dict.fromkeys(ENGINE_PRODUCTS, ())
    assert held == {**none, "cuda": ("fp16", "fp32"), "cpu": ("fp32",), "openvino": ("fp32", "bf16")}
    eight = replace(manifest, artifacts=(replace(manifest.artifacts[0], precision="int8"),))
    assert precisions_held("openvino", eight) == ("int8", "int8-bf16")
    assert precisions_held("tensorrt-rtx", with_engine(manifest)) == ("fp16",)


@pytest.mark.parametrize("error", [BackendError("the GPU has 0.1 of 24 GB free"), BundleError("bundle", "damaged")])
def test_auto_does_not_pass_over_a_fault(
    pretend: Callable[..., list[str]], manifest: Manifest, error: Exception
) -> None:
    tried = pretend("cpu", failing=error)
    with pytest.raises(type(error)):
        open_backend("auto", Path("bundle"), manifest)
    assert tried == ["tensorrt"]


def test_a_named_backend_never_falls_back(pretend: Callable[..., list[str]], manifest: Manifest) -> None:
    tried = pretend("cpu")
    with pytest.raises(BackendUnavailable, match="cuda is not for this host"):
        open_backend("cuda", Path("bundle"), manifest)
    assert tried == ["cuda"]


@pytest.mark.skipif(find_gpu()[0] is not None, reason="there is a GPU")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "cuda"])
def test_a_gpu_backend_without_a_gpu_is_an_error_by_name(
    toy_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(BackendUnavailable, match=f'backend "{name}" (needs|cannot run here)'):
        Predictor(toy_bundle, backend=name)


def test_inspect_says_what_runs_here(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = obstacles(toy_bundle, load_bundle(toy_bundle)[0])
    assert tuple(found) == ENGINES
    assert found["cpu"] == ""
    assert main(["inspect", str(toy_bundle)]) == 0
    said = capsys.readouterr().out
    assert "runs here   cpu: yes" in said
    for name in ENGINES[:-1]:
        assert f"runs here   {name}: {'no, ' + found[name] if found[name] else 'yes'}" in said


# ---- ONNX Runtime's CUDA provider ------------------------------------------------------------------------------------


class Binding:
    """As IOBinding."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, str] = {}

    def bind_cpu_input(self, name: str, value: np.ndarray) -> None:
        assert value.flags.c_contiguous
        self.inputs[name] = value

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, device: str) -> None:
        self.outputs[name] = device

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return [np.full(1, len(self.inputs["frames"])), np.zeros(1), np.zeros(1)]


def _nodes(signature: Signature) -> list[Any]:
    return [
        SimpleNamespace(name=name, type=f"tensor({kind})", shape=[side if side >= 0 else "n" for side in shape])
        for name, (kind, shape) in signature.items()
    ]


class Session:
    """As InferenceSession, with the providers that it was told to end up with, and operators on each."""

    running: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assigned: tuple[tuple[str, str], ...] = (
        ("CUDAExecutionProvider", "MatMul"),
        ("CPUExecutionProvider", "Shape"),
        ("CPUExecutionProvider", "Concat"),
    )
    fails: str | None = None

    def __init__(self, path: str, options: Any, providers: list[Any], enable_fallback: int) -> None:
        assert enable_fallback == 0, "ONNX Runtime would go on with the CPU"
        assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
        if self.fails is not None:
            raise RuntimeError(self.fails)
        self.asked = [provider[0] for provider in providers]

    def get_providers(self) -> list[str]:
        return list(self.running)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda kind=kind: [SimpleNamespace(op_type=kind)])
            for name, kind in self.assigned
        ]

    def get_inputs(self) -> list[Any]:
        return _nodes({"frames": graph_inputs(make_encoder())["frames"]})

    def get_overridable_initializers(self) -> list[Any]:
        return _nodes({name: kind for name, kind in graph_inputs(make_encoder()).items() if name in TENSORS})

    def get_outputs(self) -> list[Any]:
        return _nodes(graph_outputs(make_encoder()))

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding) -> None:
        if len(binding.inputs["frames"]) > 4:
            raise RuntimeError("out of memory\nand more")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, fake_bundle: Path) -> tuple[Callable[[], OrtCudaBackend], list[str]]:
    """Opens the backend on a pretended onnxruntime-gpu; the tensors that were put on the GPU."""
    import onnxruntime

    uploads: list[str] = []

    def to_device(value: np.ndarray, device: str, number: int) -> Any:
        uploads.append(device)
        return SimpleNamespace(value=value)

    monkeypatch.setattr(onnxruntime, "__version__", "1.32.0")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", to_device)
    artifact = load_bundle(fake_bundle)[0].artifacts[0]
    return (lambda: OrtCudaBackend(fake_bundle, artifact, make_encoder())), uploads


def test_cuda_keeps_the_recipe_on_the_gpu(
    cuda: tuple[Callable[[], OrtCudaBackend], list[str]], fake_bundle: Path
) -> None:
    from conftest import make_recipe

    opened, uploads = cuda
    first, second = make_recipe(), make_recipe()
    frames = np.zeros((2, 64, 64), np.uint8)
    with opened() as backend:
        assert (backend.name, backend.in_flight) == ("cuda", 2)
        for _ in range(3):
            assert backend.run(frames, first).probabilities[0] == 2
        assert uploads == ["cuda"] * len(TENSORS)
        backend.run(frames, second)
        assert len(uploads) == 2 * len(TENSORS)
        with pytest.raises(BackendError, match=r"failed on a batch of 5: out of memory$"):
            backend.run(np.zeros((5, 64, 64), np.uint8), second)
    with pytest.raises(BackendError, match="session is closed"):
        backend.run(frames, first)


def test_a_provider_that_fell_back_is_an_error(
    cuda: tuple[Callable[[], OrtCudaBackend], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "running", ("CPUExecutionProvider",))
    with pytest.raises(BackendUnavailable, match=r"could not start its CUDA provider \(it offers CPUExecutionProvider"):
        cuda[0]()


def test_operators_that_fell_back_are_an_error(
    cuda: tuple[Callable[[], OrtCudaBackend], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "assigned", (*Session.assigned, ("CPUExecutionProvider", "ReduceMax")))
    with pytest.raises(BackendUnavailable, match=r"has no CUDA kernel for ReduceMax and would go to the CPU"):
        cuda[0]()
    monkeypatch.delattr(Session, "get_provider_graph_assignment_info")  # as before 1.32
    cuda[0]().close()


def test_where_operators_run_is_read_from_onnx_runtime(toy_bundle: Path) -> None:
    manifest, _ = load_bundle(toy_bundle)
    with open_backend("cpu", toy_bundle, manifest) as backend:
        assert isinstance(backend, OrtCpuBackend)
        if not hasattr(backend._session, "get_provider_graph_assignment_info"):
            pytest.skip("this ONNX Runtime does not tell")
        elsewhere = _left_to_others(backend._session)
    assert {"MatMul", "Softmax", "LayerNormalization"} <= set(elsewhere)
    assert "Shape" not in elsewhere


@pytest.mark.parametrize(
    ("said", "kind", "says"),
    [
        (
            "CUDA failure 35: CUDA driver version is insufficient\nand more",
            BackendUnavailable,
            "could not start its CUDA provider (CUDA failure 35: CUDA driver version is insufficient)",
        ),
        ("[ONNXRuntimeError] : 10 : INVALID_GRAPH", BundleError, "cannot be opened by ONNX Runtime"),
    ],
)
def test_a_session_that_does_not_open_names_the_cause(
    cuda: tuple[Callable[[], OrtCudaBackend], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    kind: type[PredictorError],
    says: str,
) -> None:
    monkeypatch.setattr(Session, "fails", said)
    with pytest.raises(kind, match=re.escape(says)):
        cuda[0]()


def test_onnx_runtime_without_cuda_names_the_package_to_install(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    artifact = load_bundle(fake_bundle)[0].artifacts[0]
    with pytest.raises(BackendUnavailable, match=r"pip uninstall onnxruntime, then pip install \"sem-clip\[cuda\]\""):
        OrtCudaBackend(fake_bundle, artifact, make_encoder())
    with pytest.raises(BackendUnavailable, match="int8 is for the CPU"):
        OrtCudaBackend(fake_bundle, replace(artifact, precision="int8"), make_encoder())
