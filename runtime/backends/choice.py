"""Which backends this host can run, and why the others cannot, with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

from ..errors import BackendUnavailable
from ..host import Gpu, find_gpu, operating_system
from ..manifest import PRECISIONS, Artifact, Manifest
from .openvino import FILES
from .trt import MODULES

ENGINE_PRECISIONS = ("fp16", "int8")
"""The first is the default."""
MEANT = {
    "cpu": ("fp32", "int8"),
    "openvino": tuple(FILES),
    "cuda": ("fp16", "fp32"),
    **dict.fromkeys(MODULES, ENGINE_PRECISIONS),
}
"""Precisions that each backend is meant to compute in; the first is its default."""


def precisions_held(backend: str, manifest: Manifest) -> tuple[str, ...]:
    """Those of MEANT for which the bundle holds a file; whether this host can run it is another question."""
    kind = "engine" if backend in MODULES else "onnx"
    held = {a.precision for a in manifest.artifacts if a.kind == kind and (kind == "engine" or not a.target)}
    return tuple(p for p in MEANT[backend] if (FILES[p] if backend == "openvino" else p) in held)


def check_precision(backend: str, precision: str | None) -> None:
    """Raise BackendUnavailable for a precision that is none, or that another backend alone computes in."""
    if precision is None:
        return
    if precision not in PRECISIONS:
        raise BackendUnavailable(f'there is no precision "{precision}"; choose from {", ".join(PRECISIONS)}')
    if backend != "openvino" and precision in FILES and FILES[precision] != precision:
        raise BackendUnavailable(
            f'backend "{backend}" does not compute in {precision}: take --backend openvino, which does'
        )


def onnx_artifact(folder: Path, manifest: Manifest, precision: str) -> Artifact:
    """The ONNX file of a precision for an engine that reads ONNX. Raises BackendUnavailable, which lists the files
    there are."""
    found = [a for a in manifest.artifacts if a.kind == "onnx" and a.precision == precision and not a.target]
    if not found:
        names = [
            f"{a.file} ({a.precision}{', for building engines' if a.kind == 'onnx' and a.target else ''})"
            for a in manifest.artifacts
        ]
        how = f"; make it with: sem-clip quantize {folder} FRAMES" if precision == "int8" else ""
        held = ", ".join(names) or "none"
        raise BackendUnavailable(f"{folder}: holds no {precision} ONNX artifact; it holds {held}{how}")
    return found[0]


def engine_artifact(
    product: str,
    folder: Path,
    manifest: Manifest,
    precision: str | None = None,
    *,
    device: int | str | None = None,
    version_of: Callable[[str], str] = metadata.version,
    gpu: Callable[[int | str | None], tuple[Gpu | None, str]] = find_gpu,
) -> Artifact:
    """The engine of `product` that this host can run, on the GPU `device`. precision: fp16 by default.

    Raises BackendUnavailable if the product or the GPU is missing, or with what keeps the nearest engine from running.
    """
    precision = precision or ENGINE_PRECISIONS[0]
    if precision not in ENGINE_PRECISIONS:
        raise BackendUnavailable(f'backend "{product}" runs {" and ".join(ENGINE_PRECISIONS)} engines, not {precision}')
    missing = f'backend "{product}" needs %s, which is not installed: pip install "sem-clip[{product}]"'
    try:
        version = version_of(product)
    except metadata.PackageNotFoundError:
        raise BackendUnavailable(missing % product) from None
    if util.find_spec(MODULES[product]) is None:
        raise BackendUnavailable(missing % product)
    found, why = gpu(device)
    if found is None:
        raise BackendUnavailable(f'backend "{product}" cannot run here: {why}')
    engines = [
        a
        for a in manifest.artifacts
        if a.kind == "engine" and a.precision == precision and a.target.get("product") == product
    ]
    command = f"build one on this machine with: sem-clip build-engine {folder} --engine {product}"
    if device is not None:
        command += f" --device {device}"
    if precision != ENGINE_PRECISIONS[0]:
        command += f" --precision {precision}"
    if not engines:
        raise BackendUnavailable(f"{folder}: holds no {precision} engine of {product}; {command}")
    differences = [_differences(artifact, manifest, version, found) for artifact in engines]
    fewest = min(differences, key=len)
    artifact = engines[differences.index(fewest)]
    if fewest:
        raise BackendUnavailable(f"{folder}: {artifact.file} {'; it '.join(fewest)}; {command}")
    return artifact


def _differences(artifact: Artifact, manifest: Manifest, version: str, gpu: Gpu) -> list[str]:
    target = artifact.target
    source = {a.sha256 for a in manifest.artifacts if a.kind == "onnx" and a.precision == artifact.precision}
    product, system = target.get("product"), operating_system()
    found = []
    if target.get("version") != version:
        found.append(f"was built by {product} {target.get('version')}, here is {version}")
    if target.get("compute_capability") != gpu.compute_capability:
        found.append(
            f"was built for compute capability {target.get('compute_capability')}, the GPU here ({gpu.name}) has "
            f"{gpu.compute_capability}"
        )
    elif target.get("gpu", gpu.name) != gpu.name:
        found.append(f"was built on {target.get('gpu')}, here is {gpu.name}")
    if target.get("os") != system:
        found.append(f"was built for {target.get('os')}, this is {system}")
    if target.get("onnx_sha256") not in source:
        found.append(f"was built from another {artifact.precision} ONNX file than the bundle's")
    return found
