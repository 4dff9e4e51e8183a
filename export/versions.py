"""Versions of the tools that produce bundles and figures, read from package metadata."""

from __future__ import annotations

import platform
from importlib import metadata

_TOOLS = (
    "sem-clip",
    "torch",
    "open_clip_torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "pillow",
)


def tool_versions() -> dict[str, str]:
    """Version by package name, and of Python; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
