"""Versions of the tools that produce bundles and figures. Loads none of them."""

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
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "pillow",
)


def tool_versions() -> dict[str, str]:
    """Versions of what produced a bundle."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
