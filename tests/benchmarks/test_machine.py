"""benchmarks.machine: the description of a machine, and memory."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys

import pytest

from benchmarks.machine import describe_machine, peak_memory_mb
from runtime.host import resident_memory_mb, usable_cores


def test_peak_memory_rises_with_an_allocation() -> None:
    before = peak_memory_mb()
    block = mmap.mmap(-1, 200_000_000)  # not by malloc, which may keep what is freed
    for page in range(0, len(block), 4096):
        block[page] = 1
    assert peak_memory_mb() - before > 150 or peak_memory_mb() > 1000


def test_peak_memory_of_a_child_is_its_own() -> None:
    block = bytearray(400_000_000)
    block[::4096] = b"x" * len(block[::4096])
    code = "from benchmarks.machine import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert float(child.stdout) < 200


def test_the_description_of_a_machine_has_its_cores_memory_and_versions() -> None:
    described = describe_machine()
    assert described["cores"] == usable_cores() >= 1
    assert described["memory_mb"] > 100
    json.dumps(described, allow_nan=False)
    assert {"python", "torch", "onnxruntime"} <= described["versions"].keys()


def test_resident_memory_falls_again_where_the_peak_does_not() -> None:
    block = mmap.mmap(-1, 200_000_000)  # not by malloc, which may keep what is freed
    for page in range(0, len(block), 4096):
        block[page] = 1
    held = resident_memory_mb()
    if held is None:
        pytest.skip("this system does not tell")
    block.close()
    now = resident_memory_mb()
    assert now is not None
    assert now < held - 150
    assert peak_memory_mb() >= held - 1
