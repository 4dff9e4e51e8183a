"""ONNX Runtime on a CPU, the embedded default, and on an NVIDIA GPU through its CUDA provider."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailable, BundleError, PredictorError, raised_by_handler
from ..host import Gpu
from ..jsonfields import listed
from ..manifest import Artifact, Encoder
from ..recipe import TENSORS, Recipe
from ..telemetry import import_onnxruntime
from .base import OUTPUTS, Backend, Outputs, graph_inputs, older, read_onnx, signature_faults

_FATAL_ONLY = 4
_CUDA = "CUDAExecutionProvider"
_PACKAGES = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu"}
LEAST_VERSION = {"cpu": "1.24.1", "cuda": "1.30"}
"""As in the extras of pyproject.toml: older versions lack operators and, on CUDA, kernels."""
SPIN_US = 20
"""Microseconds that a thread without work keeps its core busy for the next operator, before it sleeps. ONNX Runtime's
own default is milliseconds, which on a busy host are taken from the threads that would give it that work."""
_SPINS_SO_LONG_SINCE = "1.26"
# fmt: off
_OF_SHAPES = frozenset({
    "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity", "Max",
    "Min", "Mul", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
})
# fmt: on
"""Operators that compute tensor shapes: ONNX Runtime runs them on the CPU on purpose."""


def check_provider(backend: str) -> Any:
    """ONNX Runtime's module. Raises BackendUnavailable if it is older than LEAST_VERSION or not installed, or if it
    lacks the provider for "cpu" or "cuda"."""
    package = _PACKAGES[backend]
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as exc:
        _raise_interrupt(exc)
        if isinstance(exc, ModuleNotFoundError) and exc.name == "onnxruntime":
            raise BackendUnavailable(
                f'backend "{backend}" needs ONNX Runtime, which is not installed: pip install "sem-clip[{backend}]"'
            ) from exc
        raise BackendUnavailable(
            f'backend "{backend}" needs ONNX Runtime, which is installed and cannot be imported '
            f"({_first_line(exc)}): pip install --force-reinstall {package}"
        ) from exc
    if not hasattr(onnxruntime, "__version__"):
        raise BackendUnavailable(
            f'backend "{backend}" needs ONNX Runtime, and the module onnxruntime here is what an installation left '
            f"behind, or another: pip install --force-reinstall {package}"
        )
    if backend == "cuda" and _CUDA not in onnxruntime.get_available_providers():
        raise BackendUnavailable(
            f'backend "cuda" needs onnxruntime-gpu, and here is ONNX Runtime {onnxruntime.__version__} without '
            'CUDA: pip uninstall onnxruntime, then pip install "sem-clip[cuda]"'
        )
    _check_version(backend, onnxruntime.__version__)
    # CUDA and cuDNN that came as Python packages are not on the search path of the system.
    if backend == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    return onnxruntime


def _check_version(backend: str, version: str) -> None:
    """Raise BackendUnavailable for an ONNX Runtime that cannot run this project's graphs."""
    least = LEAST_VERSION[backend]
    if older(version, least):
        raise BackendUnavailable(
            f'backend "{backend}" needs ONNX Runtime {least} or newer, and here is {version}: '
            f'pip install --upgrade "{_PACKAGES[backend]}>={least}"'
        )


def spinning(version: str) -> tuple[str, str]:
    """The session's entry that bounds for how long threads spin; an ONNX Runtime that cannot, does not spin at all."""
    if older(version, _SPINS_SO_LONG_SINCE):
        return "session.intra_op.allow_spinning", "0"
    return "session.intra_op.spin_duration_us", str(SPIN_US)


def _raise_interrupt(exc: BaseException) -> None:
    """Raise the KeyboardInterrupt that the import of an extension module turned into an ImportError, if there was one.

    Ctrl-C during the import of ONNX Runtime must not be reported as "not installed".
    """
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise cause
        cause = cause.__cause__ or cause.__context__


def cuda_provider(precision: str, device: int = 0) -> tuple[str, dict[str, Any]]:
    """The CUDA provider and its options for an artifact of a precision. device: CUDA's number of the GPU."""
    # TF32 has the mantissa of fp16, so fp32 must not use it. The fp32 parts of fp16 artifacts lose little by it.
    tf32 = "0" if precision == "fp32" else "1"
    return _CUDA, {"device_id": device, "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": tf32}


class _OrtBackend(Backend):
    """An ONNX Runtime session with exactly one provider."""

    def __init__(
        self,
        folder: Path,
        artifact: Artifact,
        encoder: Encoder,
        providers: list[Any],
        threads: int = 0,
        spin: tuple[str, str] | None = None,
    ) -> None:
        self._ort = onnxruntime = check_provider(self.name)
        self.precision = artifact.precision
        content = read_onnx(folder, artifact)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry(*(spin or spinning(onnxruntime.__version__)))
        # The engine warns of inputs with defaults, which the recipe's inputs are by design. It also prints errors that
        # it raises anyway, with names of an untrusted graph that could control a terminal.
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # ONNX Runtime's own format would bypass `onnx_faults`.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            # By default ONNX Runtime's Python layer falls back to other providers, here and when a batch fails. It gets
            # the bytes that were hashed, because the file could have changed since.
            session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
            # The session keeps the bytes for that fallback.
            session._model_bytes = None
            found, asked = _signature(session), [node.name for node in session.get_inputs()]
        except Exception as exc:  # ONNX Runtime's exception types are not public
            raise self._unopened(folder, artifact, exc) from exc
        inputs = graph_inputs(encoder)
        faults = [f"{artifact.file}: {fault}" for fault in signature_faults(found, encoder)]
        extra = [name for name in asked if name not in inputs]
        faults += [f"{artifact.file}: asks for {name}, which is not in the bundle's format" for name in extra]
        if faults:
            raise BundleError(folder, listed(faults))
        self._session: Any = session

    def _unopened(self, folder: Path, artifact: Artifact, exc: Exception) -> PredictorError:
        """The error for an artifact that ONNX Runtime does not open."""
        return BundleError(folder, f"{artifact.file} cannot be opened by ONNX Runtime: {_first_line(exc)}")

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`."""
        session = self._session  # keeps it alive if close() is called while this runs
        if session is None:
            raise BackendError("the ONNX Runtime session is closed")
        try:
            return self._answer(session, frames, recipe)
        except Exception as exc:
            if raised_by_handler(exc):
                raise
            raise BackendError(f"ONNX Runtime failed on a batch of {len(frames)}: {_first_line(exc)}") from exc

    def _answer(self, session: Any, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        return Outputs(*session.run(OUTPUTS, {"frames": frames, **recipe.tensors}))

    def close(self) -> None:
        """Free the session."""
        self._session = None


class OrtCpuBackend(_OrtBackend):
    """Runs an ONNX artifact on the CPU.

    threads: how many threads one batch may use; 0 lets the engine take every core. spin: the session's entry on how
    threads wait, for measurements; by default that of `spinning`.
    Raises BackendUnavailable if ONNX Runtime is not installed, BundleError if the artifact cannot be loaded.
    """

    name = "cpu"
    max_batch = 64

    def __init__(
        self,
        folder: Path,
        artifact: Artifact,
        encoder: Encoder,
        *,
        threads: int = 0,
        spin: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(folder, artifact, encoder, ["CPUExecutionProvider"], threads, spin)
        version = self._ort.__version__
        self.description = f"ONNX Runtime {version} on the CPU, {artifact.file} ({artifact.precision})"


class OrtCudaBackend(_OrtBackend):
    """Runs an ONNX artifact on an NVIDIA GPU. The recipe's tensors stay there until another recipe comes.

    gpu: where; None for the first that CUDA shows. ONNX Runtime makes it current in each thread that calls.

    Raises BackendUnavailable if ONNX Runtime or its CUDA provider is not installed, finds no usable GPU, or would
    compute a part of the graph on the CPU. ONNX Runtime itself would fall back to the CPU in each case. Raises
    BundleError if the artifact cannot be loaded.
    """

    name = "cuda"
    max_batch = 256
    in_flight = 2

    def __init__(self, folder: Path, artifact: Artifact, encoder: Encoder, *, gpu: Gpu | None = None) -> None:
        if artifact.precision == "int8":
            raise BackendUnavailable('backend "cuda" runs fp16 and fp32; int8 is for the CPU')
        self._lock = threading.Lock()
        self._resident: tuple[Recipe, dict[str, Any]] | None = None
        self._device = 0 if gpu is None else gpu.index
        super().__init__(folder, artifact, encoder, [cuda_provider(artifact.precision, self._device)])
        version = self._ort.__version__
        running = self._session.get_providers()
        if not running or running[0] != _CUDA:
            self._session = None
            raise self._not_started(f"it offers {', '.join(running) or 'nothing'} instead")
        elsewhere = _left_to_others(self._session)
        if elsewhere:
            self._session = None
            raise BackendUnavailable(
                f'backend "cuda" cannot run {artifact.file} here: ONNX Runtime {version} has no CUDA kernel for '
                f"{', '.join(elsewhere)} and would go to the CPU for it: pip install --upgrade onnxruntime-gpu"
            )
        where = "" if gpu is None else f" on {gpu.label}"
        self.description = f"ONNX Runtime {version} on CUDA{where}, {artifact.file} ({artifact.precision})"

    def _not_started(self, why: str) -> BackendUnavailable:
        return BackendUnavailable(
            f'backend "cuda" cannot run here: ONNX Runtime {self._ort.__version__} could not start its CUDA provider '
            f"({why}). It needs an NVIDIA driver, and CUDA and cuDNN of its own version: "
            'pip install "onnxruntime-gpu[cuda,cudnn]"'
        )

    def _unopened(self, folder: Path, artifact: Artifact, exc: Exception) -> PredictorError:
        if any(part in str(exc).lower() for part in ("cuda", "cudnn", "cublas")):
            return self._not_started(_first_line(exc))
        return super()._unopened(folder, artifact, exc)

    def _answer(self, session: Any, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        binding = session.io_binding()
        binding.bind_cpu_input("frames", np.ascontiguousarray(frames))
        for name, value in self._on_device(recipe).items():
            binding.bind_ortvalue_input(name, value)
        for name in OUTPUTS:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return Outputs(*binding.copy_outputs_to_cpu())

    def _on_device(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's tensors on the GPU; a running batch keeps those of an earlier recipe until it ends."""
        with self._lock:
            if self._resident is None or self._resident[0] is not recipe:
                of = self._ort.OrtValue.ortvalue_from_numpy
                self._resident = recipe, {name: of(recipe.tensors[name], "cuda", self._device) for name in TENSORS}
            return self._resident[1]

    def close(self) -> None:
        """Free the session and the recipe."""
        self._resident = None
        super().close()


def _signature(session: Any) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Type and shape of the graph's inputs and outputs, by name."""
    nodes = (*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs())
    return {node.name: (node.type.removeprefix("tensor(").removesuffix(")"), tuple(node.shape)) for node in nodes}


def _left_to_others(session: Any) -> list[str]:
    """Operators, other than those on shapes, that are not on the GPU. Empty before version 1.32, which reports none."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != _CUDA]
    return sorted({node.op_type for part in parts for node in part.get_nodes()} - _OF_SHAPES)


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n", 1)[0][:300]
