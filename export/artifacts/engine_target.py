"""What an engine is built for, and by which installed builder."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import metadata, util
from typing import Any

from runtime.backends.choice import ENGINE_PRECISIONS
from runtime.backends.trt import MODULES
from runtime.host import find_gpu, operating_system

from ..errors import ExportError

ACCUMULATE = ("fp32", "fp16")
MOST_CLASSES = 64
MOST_BATCH = 1024


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """What an engine is built for. Raises ExportError for impossible values.

    product: "tensorrt" or "tensorrt-rtx". compute_capability: such as "8.9" (RTX 4090). None means that of this
    machine's GPU, the only one TensorRT builds for. batch: least, usual and most frames. most_classes: of any recipe.
    accumulate: what MatMuls of fp16 numbers are summed in. "fp16" allows up to twice the rate on GeForce GPUs.
    Attention is summed as the product's fused kernel does it, either way.
    precision: "fp16", or "int8" from the bundle's 8-bit form for TensorRT.
    """

    product: str
    compute_capability: str | None = None
    batch: tuple[int, int, int] = (1, 32, 64)
    most_classes: int = MOST_CLASSES
    accumulate: str = "fp32"
    precision: str = "fp16"

    def __post_init__(self) -> None:
        if self.product not in MODULES:
            raise ExportError(f'there is no engine "{self.product}"; choose {" or ".join(MODULES)}')
        least, usual, most = self.batch
        if not 1 <= least <= usual <= most <= MOST_BATCH:
            raise ExportError(
                f"batch {least},{usual},{most} cannot be: it is least, usual and most frames, 1 to {MOST_BATCH}"
            )
        if not 2 <= self.most_classes <= 1024:
            raise ExportError(f"an engine for up to {self.most_classes} classes cannot be: 2 to 1024")
        if self.accumulate not in ACCUMULATE:
            raise ExportError(f'sums in "{self.accumulate}" are not offered; choose {" or ".join(ACCUMULATE)}')
        if self.precision not in ENGINE_PRECISIONS:
            raise ExportError(f'engines of "{self.precision}" are not built; choose {" or ".join(ENGINE_PRECISIONS)}')
        if self.compute_capability is not None:
            if self.product == "tensorrt":
                raise ExportError(
                    "tensorrt builds for the GPU of this machine only: leave --compute-capability out, or choose "
                    "tensorrt-rtx, which builds for others"
                )
            if not re.fullmatch(r"\d{1,2}\.\d", self.compute_capability):
                raise ExportError(f'"{self.compute_capability}" is no compute capability; write it as 8.9 (RTX 4090)')


@dataclass(frozen=True, slots=True)
class Builder:
    """An installed builder and the GPU it will build for; found before any long work begins.

    version: the product's full version. compute_capability: such as "8.9"; by default that of this machine's GPU.
    gpu: the GPU's model, for TensorRT only. TensorRT picks kernels by timing them, and warns of engines built on
    another model of the same capability (H100 and H200). uuid: of the only GPU that the builder may see; "" for all.
    """

    target: EngineTarget
    version: str
    compute_capability: str
    gpu: str = ""
    uuid: str = ""

    @classmethod
    def find(cls, target: EngineTarget, device: int | str | None = None) -> Builder:
        """For the GPU `device` of this machine, by default the first, or for the compute capability of the target.

        Raises ExportError if the product is not installed, or a GPU is needed and there is none.
        """
        module = MODULES[target.product]
        try:
            version = metadata.version(target.product)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or util.find_spec(module) is None:
            raise ExportError(
                f"{target.product} is not installed; install it with: pip install 'sem-clip[{target.product}]'"
            )
        if target.compute_capability is not None:
            if device is not None:
                raise ExportError(
                    "an engine is built for a GPU of this machine (--device) or for a compute capability: give one"
                )
            return cls(target, version, target.compute_capability)
        gpu, why = find_gpu(device)
        if gpu is None:
            advice = (
                "name one with --compute-capability, such as 8.9 for an RTX 4090"
                if target.product == "tensorrt-rtx"
                else "build on the machine that will run the engine (sem-clip build-engine BUNDLE), or use tensorrt-rtx"
            )
            raise ExportError(f"{target.product} has no GPU here to build for ({why}): {advice}")
        model = gpu.name if target.product == "tensorrt" else ""
        return cls(target, version, gpu.compute_capability, model, "" if device is None else gpu.uuid)

    def describe(self, onnx_sha256: str) -> dict[str, Any]:
        """The manifest's record of the target; equal records mean equal engines. key: SHA-256 of the record."""
        record: dict[str, Any] = {
            "product": self.target.product,
            "version": self.version,
            "compute_capability": self.compute_capability,
            **({"gpu": self.gpu} if self.gpu else {}),
            "os": operating_system(),
            "precision": self.target.precision,
            "batch": list(self.target.batch),
            "most_classes": self.target.most_classes,
            "accumulate": self.target.accumulate,
            "onnx_sha256": onnx_sha256,
        }
        record["key"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        return record


def file_name(record: dict[str, Any]) -> str:
    """File name of the plan with this record; records with different targets have different names."""
    batch = "-".join(map(str, record["batch"]))
    capability = record["compute_capability"].replace(".", "")
    gpu = re.sub(r"[^a-z0-9]+", "-", record.get("gpu", "").lower()).strip("-")
    place = f"sm{capability}{f'-{gpu}' if gpu else ''}_{record['os']}"
    return (
        f"{record['product']}-{record['version']}_{place}_{record['precision']}_b{batch}"
        f"_k{record['most_classes']}_sum{record['accumulate']}.plan"
    )
