"""One measurement in a process of its own, for what a process has only once: a start, an import, a peak of memory.

    run_child("benchmarks.memory:stream_probe", {"bundle": "bundle", ...})

The child calls the named function with those arguments and prints what it returns as JSON. Imports nothing here
beyond the standard library: the child's imports are part of what is measured.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def run_child(probe: str, arguments: Mapping[str, Any], *, threads: int = 0) -> dict[str, Any]:
    """What `module:function` returns in a fresh interpreter. Raises PredictorError, with the child's last words.

    arguments: JSON-ready. threads: how many threads the child's numerical libraries may use; 0 for their own choice.
    """
    from runtime.errors import PredictorError
    from runtime.packages import child_command, child_environment

    # The child measures this code, wherever it was started from and whatever else is installed.
    environment = child_environment()
    if threads:
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        environment.update(dict.fromkeys(limits, str(threads)))
    done = subprocess.run(
        child_command("benchmarks.speed.child", probe, json.dumps(dict(arguments))),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise PredictorError(f"the child process for {probe} ended with status {done.returncode}: {said[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> int:
    """Be the child."""
    module, _, function = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
