"""Targets: how fast each engine of a bundle has to be. The manifest keeps them, and `sem-clip verify` compares.

In the manifest: "targets": {"cpu": {"fp32": {"p99_ms": 50, "frames_per_s": 20}}}; either figure may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .jsonfields import Fields

ENGINE_PRODUCTS = ("tensorrt", "tensorrt-rtx")
"""Backends that run engines built from the bundle's ONNX files."""
GPU_BACKENDS = (*ENGINE_PRODUCTS, "cuda")
CPU_BACKENDS = ("cpu", "openvino")
BACKENDS = (*GPU_BACKENDS, *CPU_BACKENDS)
STORED_PRECISIONS = ("fp32", "fp16", "int8")
"""Of the files of a bundle."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-bf16")
"""What engines compute in. int8-bf16: what is not in 8 bits is in bf16."""
BOUNDS = {"p99_ms": (1e-3, 1e6), "frames_per_s": (1e-3, 1e7)}
"""The figures that a target can hold, with the smallest and the largest value."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one engine must reach; None where nothing is asked.

    p99_ms: largest latency in ms that 99 of 100 single frames may take, from image file to Prediction.
    frames_per_s: smallest rate of a stream of image files, in frames/s.
    """

    p99_ms: float | None = None
    frames_per_s: float | None = None

    def figures(self) -> dict[str, float]:
        """What is asked, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NO_TARGET = Target()
Targets = Mapping[tuple[str, str], Target]
"""By backend and precision."""


def targets_to_json(targets: Targets) -> dict[str, dict[str, dict[str, float]]]:
    """The manifest's entry."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (backend, precision), target in targets.items():
        found.setdefault(backend, {})[precision] = target.figures()
    return found


def read_targets(document: object, where: str, faults: list[str]) -> dict[tuple[str, str], Target]:
    """The inverse of `targets_to_json`. Faults go to `faults`; unknown names and empty targets are faults."""
    found = {}
    for backend, by_precision in _entries(document, where, BACKENDS, faults):
        for precision, entry in _entries(by_precision, f"{where}.{backend}", PRECISIONS, faults):
            fields = Fields(entry, f"{where}.{backend}.{precision}", faults)
            asked = [name for name in BOUNDS if isinstance(entry, dict) and name in entry]
            found[backend, precision] = Target(**{name: fields.number(name, *BOUNDS[name]) for name in asked})
            fields.finish()
            if entry == {}:
                faults.append(f"{fields.where} must hold {' or '.join(BOUNDS)}")
    return found


def _entries(value: object, where: str, known: tuple[str, ...], faults: list[str]) -> Iterator[tuple[str, Any]]:
    fields = Fields(value, where, faults)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in known:
                yield name, inner
            else:
                fields.fault(name, f"is not known: choose of {', '.join(known)}")
