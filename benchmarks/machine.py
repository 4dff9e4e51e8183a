"""What every figure carries: the machine, its load and the versions; and the peak memory of this process."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from export.versions import tool_versions
from runtime.host import processor, usable_cores

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
        "processor": processor(),
        "instructions": [flag for flag in _TELLING_FLAGS if flag in _cpuinfo("flags").split()],
        "cores": usable_cores(),
        "memory_mb": _memory_mb(),
        "load": load(),
        "system": f"{platform.system()} {platform.machine()}",
        "thread_limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
        "versions": tool_versions(),
    }


def load() -> float | None:
    """Load average of the last minute, in processes; None where the system has none. Other programs count in it."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def peak_memory_mb() -> float:
    """The most resident memory that this process has held, in MB (1e6 bytes)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        pass
    # The second choice: a child process begins with the peak of the parent that forked it.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


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
