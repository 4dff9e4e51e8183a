"""The files of an accuracy measurement: accuracy.json, accuracy.md and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.evaluate import per_class
from benchmarks.accuracy.table import METRICS
from runtime.files import write_atomically

JSON_FILE, TABLE_FILE = "accuracy.json", "accuracy.md"
CURVES = ("accuracy", "f1", "iauroc", "pauroc", "f1_max")
"""Metrics that shots.png draws over the number of shots."""


def write_rows(folder: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write accuracy.json. Called after each seed and number of shots, so that an interruption loses one cell."""
    write_atomically(folder / JSON_FILE, json.dumps({**about, "rows": rows}, indent=1).encode())


def write_summary(
    folder: Path, classes: tuple[str, ...], rows: list[dict[str, Any]], table: str, overlays: bytes
) -> None:
    """Write accuracy.md, which is `table` and the figures by class, and the pictures. overlays: a PNG."""
    from benchmarks.accuracy.plots import draw_confusion, draw_shots

    ours = [row for row in rows if row["method"] == "fp32"]
    most = max(row["shots"] for row in ours)
    confusion = np.asarray(sum(np.asarray(row["confusion"]) for row in ours if row["shots"] == most))
    by_class = per_class(confusion, classes)
    table += f"\n\nPer cent by class, K = {most}, all seeds together:\n\n" + "\n".join(by_class)
    files = {
        TABLE_FILE: (table + "\n").encode(),
        "shots.png": draw_shots(ours, {name: METRICS[name] for name in CURVES}),
        "overlays.png": overlays,
        "confusion.png": draw_confusion(confusion.tolist(), classes),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
