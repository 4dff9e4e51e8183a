"""Inference engines behind one interface. `open_backend` is the only place that chooses one."""

from __future__ import annotations

from pathlib import Path

from ..errors import BackendUnavailable
from ..manifest import Manifest
from ..targets import BACKENDS
from .base import OUTPUTS, Backend, Outputs
from .choice import engine_artifact, onnx_artifact
from .fake import FakeBackend
from .ort import OrtCpuBackend, OrtCudaBackend, check_provider
from .trt import MODULES, TensorRtBackend

__all__ = ["NAMES", "OUTPUTS", "Backend", "FakeBackend", "Outputs", "obstacles", "open_backend"]

ENGINES = BACKENDS
"""Fastest first; "auto" takes the first that this host can run."""
NAMES = ("auto", *ENGINES, "fake")


def open_backend(
    name: str, folder: Path, manifest: Manifest, *, precision: str | None = None, threads: int = 0
) -> Backend:
    """Open the backend `name` on a bundle. A named backend never falls back to another.

    "auto" opens the first of ENGINES that this host can run; its `why` lists why each faster one was skipped.
    precision: of the artifact; by default fp16 on a GPU and fp32 on a CPU. threads: for the CPU.
    Raises BackendUnavailable; BundleError for a damaged artifact and BackendError for a failing GPU, also with "auto".
    """
    if name == "triton":
        raise BackendUnavailable(
            'backend "triton" needs a server: Predictor(bundle, backend=TritonBackend("HOST:PORT", "MODEL")); commands '
            "take --backend triton --url HOST:PORT"
        )
    if name not in NAMES:
        raise BackendUnavailable(f'there is no backend "{name}" in this version; choose one of {", ".join(NAMES)}')
    if name == "fake":
        return FakeBackend(manifest.encoder)
    if name != "auto":
        return _open(name, folder, manifest, precision, threads)
    passed_over = []
    for candidate in ENGINES[:-1]:
        try:
            backend = _open(candidate, folder, manifest, precision, threads)
        except BackendUnavailable as exc:
            passed_over.append(f"not {candidate}: {exc}")
        else:
            break
    else:
        backend = _open(ENGINES[-1], folder, manifest, precision, threads)
    backend.why = "\n".join(passed_over)
    return backend


def obstacles(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Why this host cannot run each of ENGINES, by name; "" if nothing is known to prevent it. Opens none."""
    found = {}
    for name in ENGINES:
        try:
            if name in MODULES:
                engine_artifact(name, folder, manifest)
            else:
                onnx_artifact(folder, manifest, "fp32" if name == "cpu" else "fp16")
                check_provider(name)
            found[name] = ""
        except BackendUnavailable as exc:
            found[name] = str(exc)
    return found


def _open(name: str, folder: Path, manifest: Manifest, precision: str | None, threads: int) -> Backend:
    if name == "cpu":
        artifact = onnx_artifact(folder, manifest, precision or "fp32")
        return OrtCpuBackend(folder, artifact, manifest.encoder, threads=threads)
    if name == "cuda":
        return OrtCudaBackend(folder, onnx_artifact(folder, manifest, precision or "fp16"), manifest.encoder)
    return TensorRtBackend(folder, engine_artifact(name, folder, manifest, precision), manifest.encoder, name)
