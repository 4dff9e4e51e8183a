"""One measurement in a child process, for what a process has only once: a start, an import, a peak of memory.

    run_child("benchmarks.memory:stream_probe", {"bundle": "bundle", ...})

The child calls the named function with these arguments and prints its result as JSON. This module imports only the
standard library: the imports of the child are part of the measurement.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def run_child(probe: str, arguments: Mapping[str, Any], *, threads: int = 0) -> dict[str, Any]:
    """The result of `module:function` in a fresh interpreter. Raises PredictorError with its last line on stderr.

    arguments: JSON-ready. threads: limit for the child's numerical libraries; 0 for their own choice.
    """
    from runtime.errors import PredictorError
    from runtime.packages import child_command, child_environment

    # The child measures this code, independent of the working directory and of other installations.
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
        said = done.stderr.strip().splitlines() or ["no output"]
        raise PredictorError(f"the child process for {probe} ended with status {done.returncode}: {said[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> int:
    """Run as the child."""
    module, _, function = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
