"""Inference engines behind one interface. `open_backend` is the only place that chooses one."""

from __future__ import annotations

from pathlib import Path

from ..errors import BackendUnavailable
from ..manifest import Manifest
from ..targets import BACKENDS
from .base import OUTPUTS, Backend, Outputs
from .choice import MEANT, engine_artifact, onnx_artifact
from .fake import FakeBackend
from .openvino import OpenVinoBackend, check_openvino, stored_precision
from .ort import OrtCpuBackend, OrtCudaBackend, check_provider
from .trt import MODULES, TensorRtBackend

__all__ = ["NAMES", "OUTPUTS", "Backend", "FakeBackend", "Outputs", "obstacles", "open_backend"]

ENGINES = BACKENDS
"""In the order in which "auto" tries them. On a CPU, ONNX Runtime comes before OpenVINO: with OpenVINO more frames are
judged in a second, but a frame alone is computed by one core."""
EMBEDDED = "cpu"
"""The backend whose obstacle is reported where "auto" finds none: it needs nothing but a processor."""
NAMES = ("auto", *ENGINES, "fake")


def open_backend(
    name: str, folder: Path, manifest: Manifest, *, precision: str | None = None, threads: int = 0
) -> Backend:
    """Open the backend `name` on a bundle. A named backend never falls back to another.

    "auto" opens the first of ENGINES that this host can run; its `why` lists why each one before it was skipped. What
    is installed and what the bundle holds decide, never a measurement.
    precision: to compute in; by default fp16 on a GPU and fp32 on a CPU. threads: for the CPU.
    Raises BackendUnavailable; BundleError for a damaged artifact and BackendError for a failing GPU, also with "auto".
    """
    if name not in NAMES:
        raise BackendUnavailable(f'there is no backend "{name}" in this version; choose one of {", ".join(NAMES)}')
    if name == "fake":
        return FakeBackend(manifest.encoder)
    if name != "auto":
        return _open(name, folder, manifest, precision, threads)
    passed_over: dict[str, BackendUnavailable] = {}
    for candidate in ENGINES:
        try:
            backend = _open(candidate, folder, manifest, precision, threads)
        except BackendUnavailable as exc:
            passed_over[candidate] = exc
        else:
            backend.why = "\n".join(f"not {skipped}: {why}" for skipped, why in passed_over.items())
            return backend
    raise passed_over[EMBEDDED]


def obstacles(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Why this host cannot run each of ENGINES, by name; "" if nothing is known to prevent it. Opens none."""
    found = {}
    for name in ENGINES:
        try:
            if name in MODULES:
                engine_artifact(name, folder, manifest)
            elif name == "openvino":
                onnx_artifact(folder, manifest, stored_precision(MEANT[name][0]))
                check_openvino()
            else:
                onnx_artifact(folder, manifest, MEANT[name][0])
                check_provider(name)
            found[name] = ""
        except BackendUnavailable as exc:
            found[name] = str(exc)
    return found


def _open(name: str, folder: Path, manifest: Manifest, precision: str | None, threads: int) -> Backend:
    if name == "cpu":
        artifact = onnx_artifact(folder, manifest, precision or "fp32")
        return OrtCpuBackend(folder, artifact, manifest.encoder, threads=threads)
    if name == "openvino":
        precision = precision or "fp32"
        artifact = onnx_artifact(folder, manifest, stored_precision(precision))
        return OpenVinoBackend(folder, artifact, manifest.encoder, precision=precision, threads=threads)
    if name == "cuda":
        return OrtCudaBackend(folder, onnx_artifact(folder, manifest, precision or "fp16"), manifest.encoder)
    return TensorRtBackend(folder, engine_artifact(name, folder, manifest, precision), manifest.encoder, name)
