"""ONNX Runtime: on a CPU, the embedded default, and on an NVIDIA GPU through its CUDA provider."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailable, BundleError
from ..manifest import Artifact, check_artifact
from ..recipe import TENSORS, Recipe
from .base import OUTPUTS, Backend, Outputs

_ERRORS_ONLY = 3
_CUDA = "CUDAExecutionProvider"


def check_provider(backend: str) -> Any:
    """ONNX Runtime's module. Raises BackendUnavailable if it, or its provider for "cpu" or "cuda", is not installed."""
    try:
        import onnxruntime
    except ImportError as exc:
        raise BackendUnavailable(
            f'backend "{backend}" needs ONNX Runtime, which is not installed: pip install "sem-clip[{backend}]"'
        ) from exc
    if backend == "cuda":
        if _CUDA not in onnxruntime.get_available_providers():
            raise BackendUnavailable(
                f'backend "cuda" needs onnxruntime-gpu, and here is ONNX Runtime {onnxruntime.__version__} without '
                'CUDA: pip uninstall onnxruntime, then pip install "sem-clip[cuda]"'
            )
        # CUDA and cuDNN that came as Python packages are not on the search path of the system.
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
    return onnxruntime


class _OrtBackend(Backend):
    """An ONNX Runtime session with one provider, and with no other."""

    def __init__(self, folder: Path, artifact: Artifact, providers: list[Any], threads: int = 0) -> None:
        self._ort = onnxruntime = check_provider(self.name)
        path = check_artifact(folder, artifact)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Recipe tensors are inputs with defaults, and the engine warns about each of them; that is the design.
        options.log_severity_level = _ERRORS_ONLY
        self._session: Any
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as exc:  # the engine's exception types are its own business
            raise BundleError(folder, f"{artifact.file} cannot be opened by ONNX Runtime: {_first_line(exc)}") from exc
        self._check_signature(folder, artifact)

    def _check_signature(self, folder: Path, artifact: Artifact) -> None:
        names = {node.name for node in (*self._session.get_inputs(), *self._session.get_overridable_initializers())}
        missing = sorted({"frames", *TENSORS} - names)
        missing += sorted(set(OUTPUTS) - {node.name for node in self._session.get_outputs()})
        if missing:
            raise BundleError(folder, f"{artifact.file} lacks the inputs or outputs {', '.join(missing)}")

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`."""
        if self._session is None:
            raise BackendError("the ONNX Runtime session is closed")
        try:
            return self._answer(frames, recipe)
        except Exception as exc:
            raise BackendError(f"ONNX Runtime failed on a batch of {len(frames)}: {_first_line(exc)}") from exc

    def _answer(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        return Outputs(*self._session.run(OUTPUTS, {"frames": frames, **recipe.tensors}))

    def close(self) -> None:
        """Free the session."""
        self._session = None


class OrtCpuBackend(_OrtBackend):
    """Runs an ONNX artifact on the CPU.

    threads: how many threads one batch may use; 0 lets the engine take every core.
    Raises BackendUnavailable if ONNX Runtime is not installed, BundleError if the artifact cannot be loaded.
    """

    name = "cpu"
    max_batch = 64

    def __init__(self, folder: Path, artifact: Artifact, *, threads: int = 0) -> None:
        super().__init__(folder, artifact, ["CPUExecutionProvider"], threads)
        version = self._ort.__version__
        self.description = f"ONNX Runtime {version} on the CPU, {artifact.file} ({artifact.precision})"


class OrtCudaBackend(_OrtBackend):
    """Runs an ONNX artifact on the first NVIDIA GPU. The recipe's tensors stay there until another recipe comes.

    Raises BackendUnavailable if ONNX Runtime or its CUDA provider is not installed or finds no GPU it can use: ONNX
    Runtime itself would go on with the CPU. BundleError if the artifact cannot be loaded.
    """

    name = "cuda"
    max_batch = 256
    in_flight = 2

    def __init__(self, folder: Path, artifact: Artifact) -> None:
        if artifact.precision == "int8":
            raise BackendUnavailable('backend "cuda" runs fp16 and fp32; int8 is for the CPU')
        self._lock = threading.Lock()
        self._resident: tuple[Recipe, dict[str, Any]] | None = None
        options = {"device_id": 0, "cudnn_conv_algo_search": "HEURISTIC"}
        super().__init__(folder, artifact, [(_CUDA, options)])
        running = self._session.get_providers()
        if not running or running[0] != _CUDA:
            self._session = None
            raise BackendUnavailable(
                f'backend "cuda" cannot run here: ONNX Runtime {self._ort.__version__} could not start its CUDA '
                f"provider and offers {', '.join(running) or 'nothing'} instead. It needs an NVIDIA driver, and CUDA "
                'and cuDNN of its own version: pip install "onnxruntime-gpu[cuda,cudnn]"'
            )
        version = self._ort.__version__
        self.description = f"ONNX Runtime {version} on CUDA, {artifact.file} ({artifact.precision})"

    def _answer(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        binding = self._session.io_binding()
        binding.bind_cpu_input("frames", np.ascontiguousarray(frames))
        for name, value in self._on_device(recipe).items():
            binding.bind_ortvalue_input(name, value)
        for name in OUTPUTS:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return Outputs(*binding.copy_outputs_to_cpu())

    def _on_device(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's tensors on the GPU; a batch that runs with those of the recipe before keeps them to its end."""
        with self._lock:
            if self._resident is None or self._resident[0] is not recipe:
                of = self._ort.OrtValue.ortvalue_from_numpy
                self._resident = recipe, {name: of(recipe.tensors[name], "cuda", 0) for name in TENSORS}
            return self._resident[1]

    def close(self) -> None:
        """Free the session and the recipe."""
        self._resident = None
        super().close()


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n", 1)[0][:300]
