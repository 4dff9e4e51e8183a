"""Programs that run a Predictor in a process of their own and must end by themselves."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

LIMIT_S = 60
"""Seconds after which a program counts as hanging; each takes one or two, most of them for its imports."""
BEFORE = """
import gc, os, queue, signal, sys, threading, time
import numpy as np
from runtime import FakeBackend, Predictor, PredictorError
from runtime import lifetime, pipeline
from runtime.manifest import load_bundle

class Engine(FakeBackend):
    def __init__(self, **options):
        super().__init__(load_bundle(sys.argv[1])[0].encoder, **options)
        self.entered = threading.Event()
    def run(self, frames, recipe):
        os.write(1, b"in ")
        self.entered.set()
        outputs = super().run(frames, recipe)
        os.write(1, b"out ")
        return outputs

def frame(number=0):
    return np.full((64, 64), number, np.uint8)

def endless():
    while True:
        yield frame()

def for_ever(*_):
    threading.Event().wait()

def hanging(after):
    for number in range(after):
        yield frame(number)
    for_ever()

def left_in_time(results):
    began = time.monotonic()
    results.close()
    seconds = time.monotonic() - began
    print("left" if seconds < 5 else f"left after {seconds:.1f} s")
"""


def command(bundle: Path, program: str) -> list[str]:
    return [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BEFORE + textwrap.dedent(program), str(bundle)]


def run(bundle: Path, program: str) -> str:
    """What the program printed. It must end by itself, with status 0 and without a word on stderr."""
    done = subprocess.run(command(bundle, program), capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()
