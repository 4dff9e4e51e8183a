"""tests/lowest.py and the bounds of pyproject.toml: what is declared is what is tried, and said once."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from lowest import lowest, requirements
from places import ROOT


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_dependency_has_a_lowest_version(project: dict[str, Any]) -> None:
    found = requirements()
    assert len(found) == len(project["project"]["dependencies"]) + 4  # ONNX Runtime, isal, imagecodecs and pytest
    assert all("==" in one for one in found[:-1])


@pytest.mark.parametrize(
    ("declared", "pinned"), [("numpy>=1.26", "numpy==1.26"), ("a-b[c,d] >= 2.0.1", "a-b[c,d]==2.0.1")]
)
def test_a_bound_becomes_a_version(declared: str, pinned: str) -> None:
    assert lowest(declared) == pinned


@pytest.mark.parametrize("declared", ["numpy", "numpy<3", "numpy>=1,<3", "numpy>=1; python_version<'3.12'"])
def test_a_dependency_without_a_plain_bound_is_refused(declared: str) -> None:
    with pytest.raises(ValueError, match="has no lower bound"):
        lowest(declared)


def test_the_lowest_python_is_said_the_same_everywhere(project: dict[str, Any]) -> None:
    least = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["mypy"]["python_version"] == least
    assert project["tool"]["ruff"]["target-version"] == "py" + least.replace(".", "")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"\(3, (\d+)\)", makefile)) == {least.removeprefix("3.")}
    assert set(re.findall(r"Python (3\.\d+)", makefile)) == {least}
