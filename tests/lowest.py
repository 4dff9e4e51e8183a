"""Prints the lowest versions that pyproject.toml allows of what runs a bundle, as requirements for pip.

    python tests/lowest.py > requirements.txt

`make lowest` runs the tests of the runtime with them: a bound that is only written down is a guess.
"""

from __future__ import annotations

import re
import sys
import tomllib

from places import ROOT

PROJECT = ROOT / "pyproject.toml"
EXTRAS = ("cpu", "fast", "tiff")
PYTEST = "pytest"


def lowest(requirement: str) -> str:
    """`name>=1.2` as `name==1.2`. Raises ValueError for a requirement without a lower bound."""
    found = re.fullmatch(r"([\w.-]+)(\[[\w,-]+\])?>=([\w.]+)", requirement.replace(" ", ""))
    if found is None:
        raise ValueError(f'"{requirement}" has no lower bound of the form name>=version')
    name, extras, version = found.groups()
    return f"{name}{extras or ''}=={version}"


def requirements() -> list[str]:
    """Of the project itself and of EXTRAS at their lowest, and what the tests need as it is declared."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = [lowest(one) for one in (*project["dependencies"], *(one for name in EXTRAS for one in extras[name]))]
    return [*pinned, *(one for one in extras["dev"] if one.startswith(f"{PYTEST}>"))]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements()) + "\n")
