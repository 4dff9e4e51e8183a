"""Facts about this host: operating system, processor, memory and GPU."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first NVIDIA GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses another).

    compute_capability: such as "8.9". driver: the newest CUDA that the driver runs, such as "13.0". memory: bytes.
    bus: where on PCI it is, as nvidia-smi takes it: "0000:01:00.0".
    """

    name: str
    compute_capability: str
    driver: str
    memory: int
    bus: str


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


def find_gpu() -> tuple[Gpu | None, str]:
    """The GPU, or None and the reason. Needs cuda-bindings; loads nothing else."""
    try:
        from cuda.bindings import runtime as cuda
    except ImportError:
        return None, "cuda-bindings is not installed"
    try:
        error, version = cuda.cudaDriverGetVersion()
        if int(error) or version == 0:
            return None, "no NVIDIA driver was found"
        driver = f"{version // 1000}.{version % 1000 // 10}"
        error, count = cuda.cudaGetDeviceCount()
        if int(error) or count == 0:
            return None, f"no NVIDIA GPU can be used ({_name(cuda, error)}, driver for CUDA {driver})"
        error, properties = cuda.cudaGetDeviceProperties(0)
        _, bus = (error, b"") if int(error) else cuda.cudaDeviceGetPCIBusId(32, 0)
    except RuntimeError as exc:  # cuda-bindings without the libraries of the driver
        return None, f"no NVIDIA driver was found ({str(exc).splitlines()[0]})"
    if int(error):
        return None, f"the GPU does not answer ({_name(cuda, error)})"
    capability = f"{properties.major}.{properties.minor}"
    return Gpu(_text(properties.name), capability, driver, int(properties.totalGlobalMem), _text(bus or b"")), ""


def _name(cuda: object, error: object) -> str:
    _, name = cuda.cudaGetErrorName(error)  # type: ignore[attr-defined]
    return _text(name) if isinstance(name, bytes) else str(error)


def _text(value: bytes | str) -> str:
    """A C string of the bindings, up to the first NUL."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text.split("\0", 1)[0].strip()
