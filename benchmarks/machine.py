"""What a figure must carry: the machine, its load and the versions; and how memory is read."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from export.versions import tool_versions

_TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)
_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def describe_machine() -> dict[str, Any]:
    """Processor, its vector instructions, cores, memory, load, system, thread limits and versions."""
    return {
        "processor": _cpuinfo("model name") or platform.processor(),
        "instructions": [flag for flag in _TELLING_FLAGS if flag in _cpuinfo("flags").split()],
        "cores": usable_cores(),
        "memory_mb": _memory_mb(),
        "load": load(),
        "system": f"{platform.system()} {platform.machine()}",
        "thread_limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
        "versions": tool_versions(),
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Processes that ran or wanted to run, mean of the last minute; more than this program's own are neighbours."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def peak_memory_mb() -> float:
    """The most resident memory this process ever held, in MB (1e6 bytes)."""
    # Not getrusage where it can be helped: there a child process begins with the peak of the parent that forked it.
    found = _status_mb("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def resident_memory_mb() -> float:
    """Resident memory of this process now, in MB; its peak where the system does not tell."""
    found = _status_mb("VmRSS")
    return peak_memory_mb() if found is None else found


def _status_mb(field: str) -> float | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split(f"{field}:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        return None


def _memory_mb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    except (OSError, ValueError):
        return None


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
