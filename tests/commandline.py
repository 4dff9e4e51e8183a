"""Runs of the `sem-clip` program, and frames for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.cli import main

posix = pytest.mark.skipif(os.name != "posix", reason="shells, pipes and signals of POSIX systems")


def write_frame(path: Path, number: int = 0, *, defect: bool = False) -> Path:
    """A frame that the fake backend calls class `number` modulo K; a defect has a bright square."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[0, 0] = number
    if defect:
        pixels[16:48, 16:48] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def three_frames(folder: Path) -> Path:
    """Three frames in a new folder, the second a defect."""
    write_frame(folder / "a.png", 0)
    write_frame(folder / "b.png", 1, defect=True)
    write_frame(folder / "c.png", 2)
    return folder


def write_stack(path: Path, pages: int) -> Path:
    first, *rest = (Image.fromarray(np.full((64, 64), number, np.uint8)) for number in range(pages))
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=rest)
    return path


def predict(bundle: Path, *arguments: object) -> int:
    return main(["predict", str(bundle), "--backend", "fake", *map(str, arguments)])


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def sources_of(text: str) -> list[str]:
    return [line["source"] for line in lines_of(text)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def program(*words: object, shell: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own. shell: redirections, such as `>&-`."""
    line = [sys.executable, "-m", "runtime.cli", *map(str, words)]
    if shell:
        line = ["sh", "-c", f'exec "$@" {shell}', "sh", *line]
    settings = {"capture_output": True, "text": True, "check": False, "timeout": 120, **options}
    done: subprocess.CompletedProcess[str] = subprocess.run(line, **settings)
    assert "Traceback" not in done.stderr
    return done


def sem_clip(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and stderr of the program."""
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().err


def errors_in(stderr: str) -> list[str]:
    """The error messages; stages that were passed before are left out."""
    assert "Traceback" not in stderr
    return [line.removeprefix("error: ") for line in stderr.splitlines() if line.startswith("error: ")]


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
