"""How many fp32 operations per second this host's CPU reaches in matrix products, measured with numpy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np

from .packages import child_command, child_environment

SIZES = (512, 1024, 1536)
REPEATS = 3
LONGEST_S = 30.0
_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True, slots=True)
class Peak:
    """gflops: the best of several square products, in GFLOP/s; None if not measured; then why_not has the reason."""

    gflops: float | None
    threads: int
    library: str
    why_not: str = ""


def measured_peak(threads: int) -> Peak:
    """Measure in a child process: the number of threads of numpy's library is set as a process starts."""
    library = f"numpy {np.__version__}"
    try:
        done = subprocess.run(
            child_command("runtime.peak"),
            env={**child_environment(), **dict.fromkeys(_LIMITS, str(threads))},
            capture_output=True,
            check=True,
            timeout=LONGEST_S,
        )
        return Peak(float(json.loads(done.stdout)), threads, library)
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        return Peak(None, threads, library, f"the measurement failed ({type(exc).__name__})")


def best_gflops() -> float:
    """In GFLOP/s, in this process."""
    best = 0.0
    for size in SIZES:
        square = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
        np.matmul(square, square)
        for _ in range(REPEATS):
            began = time.perf_counter()
            np.matmul(square, square)
            best = max(best, 2e-9 * size**3 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    print(json.dumps(best_gflops()))
    sys.exit(0)
