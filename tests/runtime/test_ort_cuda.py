"""ONNX Runtime's CUDA provider, pretended: which GPU it gets, the recipe on it, and that nothing falls back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder

from runtime.backends import open_backend
from runtime.backends.base import Signature, graph_inputs, graph_outputs
from runtime.backends.ort import OrtCpuBackend, OrtCudaBackend, _left_to_others
from runtime.errors import BackendError, BackendUnavailable, BundleError, PredictorError
from runtime.host import Gpu
from runtime.manifest import load_bundle
from runtime.recipe import TENSORS


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
    options: dict[str, Any]

    def __init__(self, path: str, options: Any, providers: list[Any], enable_fallback: int) -> None:
        assert enable_fallback == 0, "ONNX Runtime would go on with the CPU"
        assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
        if self.fails is not None:
            raise RuntimeError(self.fails)
        ((name, Session.options),) = providers
        assert name == "CUDAExecutionProvider"

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
def cuda(monkeypatch: pytest.MonkeyPatch, fake_bundle: Path) -> tuple[Callable[..., OrtCudaBackend], list[str]]:
    """Opens the backend on a pretended onnxruntime-gpu; the tensors that were put on the GPU."""
    import onnxruntime

    uploads: list[str] = []

    def to_device(value: np.ndarray, device: str, number: int) -> Any:
        uploads.append(f"{device}:{number}")
        return SimpleNamespace(value=value)

    monkeypatch.setattr(onnxruntime, "__version__", "1.32.0")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", to_device)
    artifact = load_bundle(fake_bundle)[0].artifacts[0]
    return (lambda **more: OrtCudaBackend(fake_bundle, artifact, make_encoder(), **more)), uploads


def test_cuda_keeps_the_recipe_on_the_gpu(
    cuda: tuple[Callable[..., OrtCudaBackend], list[str]], fake_bundle: Path
) -> None:
    from conftest import make_recipe

    opened, uploads = cuda
    first, second = make_recipe(), make_recipe()
    frames = np.zeros((2, 64, 64), np.uint8)
    with opened() as backend:
        assert (backend.name, backend.in_flight) == ("cuda", 2)
        for _ in range(3):
            assert backend.run(frames, first).probabilities[0] == 2
        assert uploads == ["cuda:0"] * len(TENSORS)
        backend.run(frames, second)
        assert len(uploads) == 2 * len(TENSORS)
        with pytest.raises(BackendError, match=r"failed on a batch of 5: out of memory$"):
            backend.run(np.zeros((5, 64, 64), np.uint8), second)
    with pytest.raises(BackendError, match="session is closed"):
        backend.run(frames, first)


def test_engine_and_recipe_are_on_the_same_gpu(
    cuda: tuple[Callable[..., OrtCudaBackend], list[str]], fake_bundle: Path
) -> None:
    from conftest import make_recipe

    opened, uploads = cuda
    with opened() as first:
        assert Session.options["device_id"] == 0
        assert "GPU" not in first.description
    gpu = Gpu("NVIDIA L4", "8.9", "13.0", 1 << 34, "0000:02:00.0", 1, "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")
    with opened(gpu=gpu) as second:
        assert Session.options["device_id"] == 1
        assert "on CUDA on GPU 1 (NVIDIA L4, GPU-8932f937), model.onnx" in second.description
        second.run(np.zeros((2, 64, 64), np.uint8), make_recipe())
    assert uploads == ["cuda:1"] * len(TENSORS)


def test_a_provider_that_fell_back_is_an_error(
    cuda: tuple[Callable[..., OrtCudaBackend], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "running", ("CPUExecutionProvider",))
    with pytest.raises(BackendUnavailable, match=r"could not start its CUDA provider \(it offers CPUExecutionProvider"):
        cuda[0]()


def test_operators_that_fell_back_are_an_error(
    cuda: tuple[Callable[..., OrtCudaBackend], list[str]], monkeypatch: pytest.MonkeyPatch
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
    cuda: tuple[Callable[..., OrtCudaBackend], list[str]],
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
