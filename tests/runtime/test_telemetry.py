"""runtime.telemetry: nothing leaves the machine, and nothing is kept about it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

SOURCES = [path for name in ("runtime", "calibration", "export", "benchmarks") for path in (ROOT / name).rglob("*.py")]
OPEN = """
import sys, time
from runtime import Predictor
import numpy as np
with Predictor(sys.argv[1], backend="cpu") as predictor:
    predictor(np.zeros(predictor.manifest.encoder.input_size, np.uint8))
    time.sleep(12)
"""
EARLY = """
import logging, sys
logging.basicConfig(format="%(message)s")
import onnxruntime
from runtime.telemetry import import_onnxruntime
assert import_onnxruntime() is onnxruntime
import_onnxruntime()
"""
NETWORK = "connect,sendto,sendmsg,sendmmsg"


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """That of a user who has just been made: nothing set, an empty home and an empty folder for temporary files.

    On machines that say they only test, in whatever variable, ONNX Runtime keeps quiet by itself.
    """
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT") if name in os.environ}
    return {**kept, "HOME": str(home), "TMPDIR": str(home / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", **more}


def written(home: Path) -> list[str]:
    return [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_only_one_module_imports_an_engine_that_sends(engine: str) -> None:
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            if any(name.split(".")[0] == engine for name in names):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"runtime/telemetry.py"}


@pytest.mark.slow
def test_an_open_predictor_writes_no_file_and_makes_no_look_up(toy_bundle: Path, tmp_path: Path) -> None:
    """Whatever the variable was: a fab that sends is a fab that loses its customers."""
    home = tmp_path / "home"
    environment = clean_environment(home, ORT_DISABLE_TELEMETRY="0")
    strace, trace = shutil.which("strace"), tmp_path / "trace"
    traced = [strace, "-f", "-e", f"trace={NETWORK}", "-o", str(trace)] if strace else []
    subprocess.run(
        [*traced, sys.executable, "-c", OPEN, toy_bundle], env=environment, cwd=ROOT, check=True, timeout=240
    )
    assert written(home) == []
    if not strace:
        pytest.skip("files were watched; look-ups were not, for strace is not installed")
    assert [line for line in trace.read_text(errors="replace").splitlines() if "sin_addr" in line] == []


def test_the_watch_sees_what_is_sent(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("strace is not installed")
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    trace = tmp_path / "trace"
    subprocess.run([strace, "-f", "-e", f"trace={NETWORK}", "-o", trace, sys.executable, "-c", code], check=True)
    assert "sin_addr" in trace.read_text()


def test_an_engine_that_was_imported_before_is_warned_of_once(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for value, warnings in (("0", 1), ("1", 0)):
        done = subprocess.run(
            [sys.executable, "-c", EARLY],
            env=clean_environment(tmp_path / value, ORT_DISABLE_TELEMETRY=value),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert done.stderr.count("ONNX Runtime was imported before this package") == warnings


def test_importing_the_package_is_enough(tmp_path: Path) -> None:
    code = "import os, runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "1\n"
