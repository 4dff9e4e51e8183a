"""Measures of the code: the longest function, the longest file, and no cycle of imports."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT
from test_layering import MODULES, imports

LONGEST_FUNCTION, LONGEST_FILE = 60, 400
FILES = [path for folder in ("runtime", "calibration", "export", "benchmarks", "tests", "docs") for path in
         sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "sem_clip.py"]  # fmt: skip


def function_lengths(path: Path) -> dict[str, int]:
    """Lines of each function of a file, signature and docstring included, by its name and first line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{node.name}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one cycle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


def test_functions_have_at_most_60_lines() -> None:
    lengths = {f"{path.relative_to(ROOT)}:{name}": n for path in FILES for name, n in function_lengths(path).items()}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}


def test_files_have_at_most_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_find_cycle_names_a_cycle() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}}) == []
    assert set(find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("package", ["runtime", "calibration", "export", "benchmarks"])
def test_modules_import_each_other_without_a_cycle(package: str) -> None:
    mine = {name for name in MODULES if name.split(".")[0] == package}
    assert find_cycle({name: (imports(name, inner=False) & mine) - {name} for name in mine}) == []
