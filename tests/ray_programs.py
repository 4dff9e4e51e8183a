"""Programs that judge with Ray in a process of their own: Ray warns under `-W error`, and leaves threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

LIMIT_S = 240
"""Seconds after which a program counts as hanging: Ray takes 5 to start, and 10 to give up a node."""
MARK = "SEM_CLIP_TEST_RUN"
"""A variable that marks all processes of a program, Ray's included."""
BEFORE = """
import os, signal, sys, time
from pathlib import Path
from runtime.cli import main
from runtime.serving import answer_folder, ray_command, ray_data

def predict(*words):
    # A later --backend counts.
    return main(["predict", sys.argv[1], "--backend", "fake", "--engine", "ray", *map(str, words)])

def first(file):
    # Whether this process is the first to ask for the file.
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def wait_for(file):
    while not Path(file).exists():
        time.sleep(0.05)

# A node of a cluster on this machine.
small = dict(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
"""


def start(bundle: Path, program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a program; `sys.argv` holds the bundle and the arguments."""
    code = BEFORE + textwrap.dedent(program)
    words = [sys.executable, "-W", "ignore", "-c", code, str(bundle), *map(str, arguments)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", MARK: str(bundle), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, **pipes, **options)


def run(bundle: Path, program: str, *arguments: object, words_of_ray: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; none of its processes is left. words_of_ray: whether Ray may print its tracebacks."""
    started = start(bundle, program, *arguments)
    try:
        out, err = started.communicate(timeout=LIMIT_S)
    finally:
        started.kill()
    assert words_of_ray or "Traceback" not in err, err
    assert_all_ended(bundle)
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


def assert_all_ended(bundle: Path) -> None:
    """No process of a program lives in the end: Ray's wait for their centre, about a minute on an idle machine."""
    until = time.monotonic() + 300
    while (left := processes(bundle)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == {}


def processes(bundle: Path) -> dict[int, str]:
    """Number and command of each process that a program on this bundle started."""
    mark, found = f"{MARK}={bundle}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
    return found
