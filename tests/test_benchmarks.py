"""The parts of the benchmarks that decide what a figure means."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.accuracy import summarize
from benchmarks.machine import describe_machine, peak_memory_mb
from benchmarks.timing import alternate


def test_runs_alternate_after_one_warm_up_each() -> None:
    calls: list[str] = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_peak_memory_follows_what_the_process_holds() -> None:
    before = peak_memory_mb()
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory_mb() - before > 150 or peak_memory_mb() > 1000


def test_peak_memory_of_a_child_is_its_own() -> None:
    block = bytearray(400_000_000)
    block[::4096] = b"x" * len(block[::4096])
    code = "from benchmarks.machine import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert float(child.stdout) < 200


def test_a_figure_carries_machine_and_versions() -> None:
    described = describe_machine()
    assert described["cores"] >= 1
    assert {"python", "torch", "onnxruntime"} <= described["versions"].keys()


def test_table_says_where_there_are_no_masks() -> None:
    row = {"shots": 1, "test_frames": 9, "accuracy": 0.5, "f1": 0.5, "iauroc": 0.75, "pauroc": None, "f1_max": None}
    table = summarize([{**row, "seed": 0}, {**row, "seed": 1, "accuracy": 0.7}], [1])
    assert "| 1 | 2 | 9-9 | 60.0 ± 10.0 | 50.0 ± 0.0 | 75.0 ± 0.0 | no masks | no masks |" in table
