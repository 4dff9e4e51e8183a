"""Frames to calibrate on, and the commands."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.commands import Calibrate, EditOperatingPoint
from runtime.cli import describe, run

Capture = pytest.CaptureFixture[str]


def command(kind: Callable[[], Any], *arguments: object) -> int:
    """Run a command as the program does."""
    made = kind()
    parser = describe(argparse.ArgumentParser(), made)
    made.add_arguments(parser)
    return run(made, parser.parse_args([str(argument) for argument in arguments]))


def calibrate(bundle: Path, data: Path, *arguments: object) -> int:
    return command(Calibrate, bundle, data, "--backend", "fake", *arguments)


def operating_point(target: Path, *arguments: object) -> int:
    return command(EditOperatingPoint, target, *arguments)


def paint(path: Path, number: int, brightness: int) -> Path:
    """A frame that the fake backend calls class `number` modulo K and whose map is `brightness` / 255 in the middle."""
    pixels = np.full((64, 64), 10, np.uint8)
    pixels[16:48, 16:48] = brightness
    pixels[0, 0] = number
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:48, 16:48] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def labelled_frames(tmp_path: Path) -> Path:
    """40 good frames, 15 bridges and 15 holes; good ones are darker; each tenth frame is classified wrong."""
    folder, kinds = tmp_path / "data", (("good", 40, 0), ("bridge", 15, 100), ("hole", 15, 110))
    for label, (name, count, offset) in enumerate(kinds):
        for n in range(count):
            wrong = n % 10 == 9
            paint(folder / "images" / name / f"{n:02d}.png", 3 * n + (label + wrong) % 3, 40 + offset + 2 * n)
            if name != "good":
                mask(folder / "masks" / name / f"{n:02d}.png")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
