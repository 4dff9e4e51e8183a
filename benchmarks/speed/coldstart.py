"""Probes of work that a process does once. They run in a child (`child.py`) and import `runtime` inside, timed."""

from __future__ import annotations

import time
from itertools import pairwise


def first_prediction(
    bundle: str,
    backend: str,
    precision: str | None,
    device: int | str | None,
    threads: int,
    frame: str,
    spawned: float,
) -> dict[str, float]:
    """Milliseconds of each step from `spawned` (`time.time()` of the parent) to the first answer, and of the second."""
    at = [spawned, time.time()]
    from runtime import Predictor

    at.append(time.time())
    with Predictor(
        bundle, backend=backend, precision=precision, device=device, threads=threads, batch_size=1
    ) as predictor:
        at.append(time.time())
        for _ in range(2):
            predictor(frame)
            at.append(time.time())
    start, imported, opened, first, second = (1e3 * (b - a) for a, b in pairwise(at))
    return {
        "interpreter_ms": start,
        "import_ms": imported,
        "open_ms": opened,
        "first_ms": first,
        "total_ms": start + imported + opened + first,
        "second_ms": second,
    }


def import_runtime() -> dict[str, float]:
    """Milliseconds of `import runtime`, including numpy and Pillow."""
    began = time.perf_counter()
    import runtime  # noqa: F401

    return {"import_ms": 1e3 * (time.perf_counter() - began)}
