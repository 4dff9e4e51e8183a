"""Facts about this host: operating system, processor, memory and GPU."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU that CUDA shows to this process (CUDA_VISIBLE_DEVICES chooses which, and in which order).

    compute_capability: such as "8.9". driver: the newest CUDA that the driver runs, such as "13.0". memory: bytes.
    bus: where on PCI it is, as nvidia-smi takes it: "0000:01:00.0". index: CUDA's number for it in this process, from
    0. uuid: the same in every process, "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"; "" where CUDA does not tell.
    """

    name: str
    compute_capability: str
    driver: str
    memory: int
    bus: str
    index: int = 0
    uuid: str = ""

    @property
    def label(self) -> str:
        """For people; the UUID is cut to its first part, which `device` takes as well."""
        return f"GPU {self.index} ({', '.join(filter(None, (self.name, self.uuid[:12])))})"


def operating_system() -> str:
    """System and processor, as engines are tied to them: "linux-x86_64"."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's model, where the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "") or (
        platform.processor() or "unknown"
    )


def resident_memory_mb() -> float | None:
    """Resident memory of this process now, in MB (1e6 bytes); None where the system does not report it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        return None


def find_gpu(device: int | str | None = None) -> tuple[Gpu | None, str]:
    """The GPU `device` of `arguments.gpu_device`, by default the first; or None and the reason, with a list of GPUs.

    Needs cuda-bindings; loads nothing else.
    """
    try:
        from cuda.bindings import runtime as cuda
    except ImportError:
        return None, 'cuda-bindings is not installed: pip install "cuda-bindings>=13"'
    try:
        error, version = cuda.cudaDriverGetVersion()
        if int(error) or version == 0:
            return None, "no NVIDIA driver was found"
        driver = f"{version // 1000}.{version % 1000 // 10}"
        error, count = cuda.cudaGetDeviceCount()
        if int(error) or count == 0:
            return None, f"no NVIDIA GPU can be used ({_name(cuda, error)}, driver for CUDA {driver}){_hidden()}"
        return _choose(cuda, device, count, driver)
    except RuntimeError as exc:  # cuda-bindings without the libraries of the driver
        return None, f"no NVIDIA driver was found ({str(exc).splitlines()[0]})"


def _choose(cuda: Any, device: int | str | None, count: int, driver: str) -> tuple[Gpu | None, str]:
    """As `find_gpu`, of `count` GPUs, at least one."""
    index = device or 0
    found: Gpu | str
    if isinstance(index, str):
        found = _of_uuid([_gpu(cuda, number, driver) for number in range(count)], index)
    else:
        found = _gpu(cuda, index, driver) if index < count else f"there is no GPU {index}"
    if isinstance(found, Gpu):
        return found, ""
    there = [gpu.label for gpu in (_gpu(cuda, number, driver) for number in range(count)) if isinstance(gpu, Gpu)]
    return None, "; there is ".join(filter(None, (found, ", ".join(there)))) + _hidden()


def _of_uuid(there: Sequence[Gpu | str], beginning: str) -> Gpu | str:
    """The only GPU whose UUID begins so, or why there is no such one."""
    if beginning.startswith("MIG-"):
        return f"{beginning} is a slice of a GPU: set CUDA_VISIBLE_DEVICES={beginning} and name no device"
    named = [gpu for gpu in there if isinstance(gpu, Gpu) and gpu.uuid.startswith(beginning)]
    return named[0] if len(named) == 1 else f"{len(named) or 'no'} GPUs have a UUID that begins with {beginning}"


def _hidden() -> str:
    """A note for messages that list GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (of CUDA_VISIBLE_DEVICES={visible[:200]!r})"


def _gpu(cuda: Any, index: int, driver: str) -> Gpu | str:
    """The GPU of CUDA's number `index`, or why it cannot be used."""
    error, properties = cuda.cudaGetDeviceProperties(index)
    if int(error):
        return f"GPU {index} does not answer ({_name(cuda, error)})"
    error, bus = cuda.cudaDeviceGetPCIBusId(32, index)
    return Gpu(
        _text(properties.name),
        f"{properties.major}.{properties.minor}",
        driver,
        int(properties.totalGlobalMem),
        "" if int(error) else _text(bus),
        index,
        f"GPU-{uuid.UUID(bytes=bytes(properties.uuid.bytes))}",
    )


def _name(cuda: Any, error: object) -> str:
    _, name = cuda.cudaGetErrorName(error)
    return _text(name) if isinstance(name, bytes) else str(error)


def _text(value: bytes | str) -> str:
    """A C string of the bindings, up to the first NUL."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text.split("\0", 1)[0].strip()
