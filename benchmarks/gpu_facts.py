"""Facts about a host before a GPU session: `python -m benchmarks.gpu_facts FACTS.json`.

`gpu_session.sh` reads stdout: one line `NAME=REASON` for the GPU and each GPU backend. REASON is empty if no obstacle
is known. The file holds these reasons, the machine, the GPU's state, versions, and the packages of pyproject.toml that
are missing or too old.
"""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

EXTRAS = ("export",)
"""Extras of pyproject.toml that a session needs: those that build bundles."""


def main(file: Path) -> int:
    """Write the facts, print the reasons."""
    reasons = obstacles_here()
    found: dict[str, Any] = {"obstacles": reasons, "packages_missing": packages_missing(_pyproject())}
    if not reasons.get("project"):
        from benchmarks.gpu import gpu_state
        from benchmarks.machine import describe_machine
        from runtime.host import find_gpu

        found |= {"machine": describe_machine(), "gpu": gpu_state(find_gpu()[0])}
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for name, reason in reasons.items():
        print(f"{name}={' '.join(reason.split())}")
    return 0


def obstacles_here() -> dict[str, str]:
    """Reasons against "project" (this code itself), "gpu", "second-gpu" and each GPU backend; "" for none known."""
    try:
        importlib.import_module("benchmarks.gpu")
    except ImportError as exc:
        reason = f"this project cannot be imported here ({exc})"
        return dict.fromkeys(("project", "gpu", "second-gpu", "cuda", "tensorrt", "tensorrt-rtx"), reason)
    from runtime.host import find_gpu

    gpu, why = find_gpu()
    second = find_gpu(1)
    found = {"project": "", "gpu": "" if gpu is not None else why, "second-gpu": "" if second[0] else second[1]}
    for name, obstacle in (("cuda", _cuda), ("tensorrt", _tensorrt), ("tensorrt-rtx", _tensorrt)):
        # Without a GPU nothing is checked, and nothing is loaded.
        found[name] = why if gpu is None else obstacle(name, gpu.compute_capability)
    return found


def packages_missing(pyproject: dict[str, Any]) -> list[str]:
    """Requirements that the installed packages do not meet, such as "torch>=2.13, here is 2.11.0"."""
    from packaging.requirements import Requirement

    project = pyproject["project"]
    wanted = [*project["dependencies"]]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    found = []
    for requirement in map(Requirement, wanted):
        if requirement.name == project["name"]:  # its own other extras
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(str(requirement))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement}, here is {version}")
    return found


def _cuda(name: str, _: str) -> str:
    from runtime.backends.ort import check_provider
    from runtime.errors import BackendUnavailable

    try:
        check_provider(name)
    except BackendUnavailable as exc:
        return str(exc)
    return ""


def _tensorrt(product: str, capability: str) -> str:
    """The reason why no engine of the product can be built for the GPU here, or ""."""
    from runtime.backends.trt import MODULES

    try:
        trt = importlib.import_module(MODULES[product])
    except ImportError as exc:
        return f"{product} is not installed ({exc})"
    name = f"SM{capability.replace('.', '')}"
    if product == "tensorrt-rtx" and not hasattr(trt.ComputeCapability, name):
        return f"{product} builds for no GPU of compute capability {capability}"
    return ""


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
