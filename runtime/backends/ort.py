"""ONNX Runtime on a CPU: the embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailable, BundleError
from ..manifest import Artifact, check_artifact
from ..recipe import TENSORS, Recipe
from .base import Backend, Outputs

OUTPUTS = ("probabilities", "defect_map", "features")
_MAX_BATCH = 64
_ERRORS_ONLY = 3


class OrtCpuBackend(Backend):
    """Runs an ONNX artifact with ONNX Runtime's CPU provider, and with no other.

    threads: how many threads one batch may use; 0 lets the engine take every core.
    Raises BackendUnavailable if ONNX Runtime is not installed, BundleError if the artifact cannot be loaded.
    """

    name = "cpu"

    def __init__(self, folder: Path, artifact: Artifact, *, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise BackendUnavailable(
                'backend "cpu" needs ONNX Runtime, which is not installed: pip install "sem-clip[cpu]"'
            ) from exc
        path = check_artifact(folder, artifact)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Recipe tensors are inputs with defaults, and the engine warns about each of them; that is the design.
        options.log_severity_level = _ERRORS_ONLY
        self._session: Any
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # the engine's exception types are its own business
            raise BundleError(folder, f"{artifact.file} cannot be opened by ONNX Runtime: {_first_line(exc)}") from exc
        self.max_batch = _MAX_BATCH
        self.description = f"ONNX Runtime {onnxruntime.__version__} on the CPU, {artifact.file} ({artifact.precision})"
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
            return Outputs(*self._session.run(OUTPUTS, {"frames": frames, **recipe.tensors}))
        except Exception as exc:
            raise BackendError(f"ONNX Runtime failed on a batch of {len(frames)}: {_first_line(exc)}") from exc

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n", 1)[0][:300]
