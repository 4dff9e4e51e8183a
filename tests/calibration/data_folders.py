"""Data folders for tests, and their faults."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.dataset import Sample, load_dataset
from calibration.errors import DatasetError

COLUMNS = ("path", "class", "group")


Rows = list[tuple[str, ...]]


def save(path: Path, size: tuple[int, int] = (8, 6), value: int = 100) -> Path:
    """A flat grey image of [height, width]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def write_groups(folder: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> None:
    with (folder / "groups.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])


def labelled_folder(tmp_path: Path) -> Path:
    """good, hole and scratch with 3 frames each, masks for hole, and a groups.csv with two sites."""
    rows = []
    for label in ("good", "hole", "scratch"):
        for number in range(3):
            save(tmp_path / "images" / label / f"{number}.png")
            rows.append((f"images/{label}/{number}.png", label, f"site-{number % 2}"))
    for number in range(3):
        save(tmp_path / "masks/hole" / f"{number}.png", value=255)
    write_groups(tmp_path, rows)
    return tmp_path


def rows_of(folder: Path) -> Rows:
    with (folder / "groups.csv").open(newline="", encoding="utf-8") as stream:
        return [tuple(row) for row in csv.reader(stream)][1:]


def faults_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        load_dataset(folder)
    assert str(folder) in str(caught.value)
    return caught.value.faults


def names(samples: Sequence[Sample]) -> list[str]:
    return [f"{sample.label}/{sample.path.name}" for sample in samples]


def remove(folder: Path, name: str) -> None:
    for path in sorted((folder / name).iterdir()):
        path.unlink()
    (folder / name).rmdir()


def good_alone(folder: Path) -> None:
    for name in ("images/hole", "images/scratch", "masks/hole", "masks"):
        remove(folder, name)
    write_groups(folder, [row for row in rows_of(folder) if row[1] == "good"])
