"""Inference engines behind one seam. `open_backend` is the only place that chooses one."""

from __future__ import annotations

from pathlib import Path

from ..errors import BackendUnavailable
from ..manifest import Artifact, Manifest
from .base import Backend, Outputs
from .fake import FakeBackend

__all__ = ["Backend", "FakeBackend", "Outputs", "open_backend"]

NAMES = ("auto", "cpu", "fake")


def open_backend(
    name: str, folder: Path, manifest: Manifest, *, precision: str | None = None, threads: int = 0
) -> Backend:
    """Open the backend `name` on a bundle; nothing else is tried if that fails.

    "auto" is "cpu" in this version. precision: which ONNX artifact; fp32 where not said.
    Raises BackendUnavailable, BundleError.
    """
    if name not in NAMES:
        raise BackendUnavailable(f'there is no backend "{name}" in this version; choose one of {", ".join(NAMES)}')
    if name == "fake":
        return FakeBackend(manifest.encoder)
    from .ort import OrtCpuBackend

    return OrtCpuBackend(folder, _onnx_artifact(folder, manifest, precision or "fp32"), threads=threads)


def _onnx_artifact(folder: Path, manifest: Manifest, precision: str) -> Artifact:
    found = [a for a in manifest.artifacts if a.kind == "onnx" and a.precision == precision]
    if not found:
        held = ", ".join(f"{a.file} ({a.precision})" for a in manifest.artifacts) or "none"
        raise BackendUnavailable(f"{folder}: holds no {precision} ONNX artifact; it holds {held}")
    return found[0]
