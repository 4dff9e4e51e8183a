"""The first lines of the `sem-clip` program, under a name that no other project has.

`runtime` is a common name: another `runtime.py` on PYTHONPATH would be imported in place of this project's package. So
this file loads the package next to it; `runtime.packages` then protects the other names.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def main() -> int:
    """Run `runtime.cli.main` of the package next to this file."""
    try:
        if "runtime" not in sys.modules:
            spec = PathFinder.find_spec("runtime", [str(Path(__file__).resolve().parent)])
            if spec is None or spec.loader is None:
                sys.exit("error: the package `runtime` is not next to sem_clip.py: install sem-clip again")
            sys.modules["runtime"] = package = module_from_spec(spec)
            spec.loader.exec_module(package)
        from runtime.cli import main as program
    except ModuleNotFoundError as exc:
        where = Path(__file__).resolve().parent
        print(f"error: {exc}: sem-clip is not installed for {sys.executable}: -m pip install {where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return program()


if __name__ == "__main__":
    sys.exit(main())
