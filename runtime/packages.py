"""Find this project's packages before others of the same name, in this process and in its children.

`runtime`, `export`, `calibration` and `benchmarks` are common names. A file `export.py` on PYTHONPATH, or in the
current folder, must neither run in place of the project's package nor break a command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from .errors import PredictorError

OWN = ("runtime", "calibration", "export", "benchmarks")
ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds them all: a checkout, or where an installer put them."""


class _OwnPackages:
    """Finds this project's packages in the folder of `runtime`, before others of the same name on the path."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder.find_spec`; None for every other name."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in OWN else None


def own_packages_first() -> None:
    """Put the project's packages before others of their names, and keep child processes of any library from taking
    code from the current folder.

    Raises PredictorError if one of the names is taken already, for example by a program that imports this one.
    """
    if _OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, _OwnPackages)
    os.environ["PYTHONSAFEPATH"] = "1"
    for name in OWN:
        module = sys.modules.get(name)
        if module is None:
            continue
        where = getattr(module, "__file__", None) or "an unknown place"
        if Path(where).resolve().parent != ROOT / name:
            raise PredictorError(
                f'another module is called "{name}", at {where}, and hides this project\'s, at {ROOT / name}: rename '
                "it, or run sem-clip where it is not imported"
            )


def child_command(module: str, *arguments: str) -> list[str]:
    """The command line of `python -m module` for a module of this project, to run in `child_environment`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """An environment in which a child finds this code, installed or not, before any other of its names.

    The current folder provides no code: -P keeps -m from it, and relative entries of PYTHONPATH are dropped.
    """
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    above = [str(ROOT), *(folder for folder in given if Path(folder).is_absolute())]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(above), "PYTHONSAFEPATH": "1"}
