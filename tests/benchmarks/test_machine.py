"""benchmarks.machine: what every figure carries."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.machine import describe_machine, peak_memory_mb, resident_memory_mb, usable_cores


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
    assert described["cores"] == usable_cores() >= 1
    assert described["memory_mb"] > 100
    json.dumps(described, allow_nan=False)
    assert {"python", "torch", "onnxruntime"} <= described["versions"].keys()


def test_resident_memory_falls_again_where_the_peak_does_not() -> None:
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    held = resident_memory_mb()
    del block
    assert resident_memory_mb() < held - 150 or sys.platform == "darwin"
    assert peak_memory_mb() >= held - 1
