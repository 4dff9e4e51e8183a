"""Inference engines behind one interface. `open_backend` is the only place that chooses one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..arguments import gpu_device
from ..errors import BackendUnavailable
from ..host import find_gpu
from ..manifest import Manifest
from ..targets import BACKENDS, GPU_BACKENDS
from .base import OUTPUTS, Backend, Outputs
from .choice import MEANT, check_precision, engine_artifact, onnx_artifact
from .fake import FakeBackend
from .openvino import FILES, OpenVinoBackend, check_openvino, stored_precision
from .ort import OrtCpuBackend, OrtCudaBackend, check_provider
from .trt import MODULES, TensorRtBackend

__all__ = [
    "ENGINES",
    "GPU_BACKENDS",
    "NAMES",
    "OUTPUTS",
    "Backend",
    "FakeBackend",
    "Outputs",
    "obstacles",
    "open_backend",
    "require_gpu",
    "uses_gpu",
]

ENGINES = BACKENDS
"""In the order in which "auto" tries them. On a CPU, ONNX Runtime comes before OpenVINO: with OpenVINO more frames are
judged in a second, but a frame alone is computed by one core."""
EMBEDDED = "cpu"
"""The backend whose obstacle is reported where "auto" finds none: it needs nothing but a processor."""
NAMES = ("auto", *ENGINES, "fake")


def open_backend(
    name: str,
    folder: Path,
    manifest: Manifest,
    *,
    precision: str | None = None,
    threads: int = 0,
    device: int | str | None = None,
) -> Backend:
    """Open the backend `name` on a bundle. A named backend never falls back to another.

    "auto" opens the first of ENGINES that this host can run; its `why` lists why each one before it was skipped. What
    is installed and what the bundle holds decide, never a measurement.
    precision: to compute in; by default fp16 on a GPU and fp32 on a CPU. threads: for the CPU. device: the GPU, as
    `arguments.gpu_device` takes it; with it, "auto" tries GPU_BACKENDS alone.
    Raises ValueError for a device that is none; BackendUnavailable; BundleError for a damaged artifact and
    BackendError for a failing GPU, also with "auto".
    """
    if name == "triton":
        raise BackendUnavailable(
            'backend "triton" needs a server: Predictor(bundle, backend=TritonBackend("HOST:PORT", "MODEL")); commands '
            "take --backend triton --url HOST:PORT"
        )
    if name not in NAMES:
        raise BackendUnavailable(f'there is no backend "{name}" in this version; choose one of {", ".join(NAMES)}')
    device = gpu_device(device)
    if device is not None:
        require_gpu((name,), device)
    if name == "auto":
        check_precision("openvino", precision)  # whether there is such a one at all
    if name == "fake":
        return FakeBackend(manifest.encoder)
    if name != "auto":
        return _open(name, folder, manifest, precision, threads, device)
    candidates = ENGINES if device is None else GPU_BACKENDS
    passed_over: dict[str, BackendUnavailable] = {}
    for candidate in candidates:
        try:
            backend = _open(candidate, folder, manifest, precision, threads, device)
        except BackendUnavailable as exc:
            passed_over[candidate] = exc
        else:
            backend.why = "\n".join(f"not {skipped}: {why}" for skipped, why in passed_over.items())
            return backend
    if device is None:
        alone = precision is not None and FILES.get(precision, precision) != precision
        raise passed_over["openvino" if alone else EMBEDDED]
    reasons = "; ".join(f"not {skipped}: {why}" for skipped, why in passed_over.items())
    raise BackendUnavailable(f"nothing runs on device {device}: {reasons}")


def uses_gpu(name: str) -> bool:
    """Whether `device` means something to the backend of this name."""
    return name == "auto" or name in GPU_BACKENDS


def require_gpu(names: Sequence[str], device: int | str) -> None:
    """Raise BackendUnavailable if none of these backends uses a GPU, or if there is no GPU `device` here."""
    if not any(map(uses_gpu, names)):
        raise BackendUnavailable(
            f'backend "{names[0]}" uses no GPU: leave device {device} out, or choose one of {", ".join(GPU_BACKENDS)}'
        )
    gpu, why = find_gpu(device)
    if gpu is None:
        raise BackendUnavailable(f"device {device} cannot be used: {why}")


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


def _open(
    name: str, folder: Path, manifest: Manifest, precision: str | None, threads: int, device: int | str | None
) -> Backend:
    check_precision(name, precision)
    if name == "cpu":
        artifact = onnx_artifact(folder, manifest, precision or "fp32")
        return OrtCpuBackend(folder, artifact, manifest.encoder, threads=threads)
    if name == "openvino":
        precision = precision or "fp32"
        artifact = onnx_artifact(folder, manifest, stored_precision(precision))
        return OpenVinoBackend(folder, artifact, manifest.encoder, precision=precision, threads=threads)
    if name == "cuda":
        artifact = onnx_artifact(folder, manifest, precision or "fp16")
        return OrtCudaBackend(folder, artifact, manifest.encoder, gpu=find_gpu(device)[0])
    artifact = engine_artifact(name, folder, manifest, precision, device=device)
    return TensorRtBackend(folder, artifact, manifest.encoder, name, gpu=find_gpu(device)[0])
