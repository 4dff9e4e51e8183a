"""The Markdown table of an accuracy measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.accuracy.evaluate import AT_THRESHOLDS, OTHER_SCORES

METRICS = {
    "accuracy": "accuracy",
    "verdict_accuracy": "verdicts right",
    "precision": "macro precision",
    "recall": "macro recall",
    "f1": "macro F1",
    "iauroc": "iAUROC",
    "pauroc": "pAUROC",
    "f1_max": "pixel F1-max",
}
COLUMNS = {
    **{name: METRICS[name] for name in ("accuracy", "verdict_accuracy", "precision", "recall", "f1", "iauroc")},
    "iauroc_score": "iAUROC (score)",
    **{name: METRICS[name] for name in ("pauroc", "f1_max")},
}
"""Columns of the table. iAUROC ranks frames by the map alone, as the paper does. iAUROC (score) ranks them by the
defect score, which the operating point reads; only rows of a recipe have it."""
KEPT = 0.8
"""Share of the test frames, by confidence, on which the labels of two precisions are compared a second time. It stands
for the frames that a reject threshold would keep."""


def summarize(rows: list[dict[str, Any]], shots: list[int]) -> str:
    """A Markdown table in per cent, methods in the order of their rows, and lines on scores, thresholds and precisions.

    Cells are the mean ± the standard deviation over the seeds that ran (population, not sample). supervision: the
    labels that a method gets with its supports (`baselines.Row`). Cells of an unavailable row name what it lacks.
    """
    lines = [
        "| method | supervision | K | seeds | test frames | " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * (len(COLUMNS) + 5),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        for k in shots:
            cell = [row for row in rows if (row["shots"], row["method"]) == (k, method)]
            sizes = [row["test_frames"] for row in cell]
            texts = [_mean(cell, name) for name in COLUMNS]
            start = f"| {method} | {cell[0]['supervision']} | {k} | {len(cell)} | {min(sizes)}-{max(sizes)} | "
            lines.append(start + " | ".join(texts) + " |")
    for method in dict.fromkeys(row["method"] for row in rows if "iauroc_class" in row):
        for k in shots:
            cell = [row for row in rows if (row["shots"], row["method"]) == (k, method)]
            means = {name: _mean(cell, name) for name in (*OTHER_SCORES, *AT_THRESHOLDS)}
            others = ", ".join(f"{means[name]} by {what}" for name, what in OTHER_SCORES.items())
            taught = ", ".join(f"{what} {means[name]}" for name, what in AT_THRESHOLDS.items())
            lines.append(f"\n{method}, K = {k}: iAUROC {others}; at the thresholds as taught: {taught}")
    for key, what in (("labels_equal", "all frames"), ("labels_equal_kept", f"the {KEPT:.0%} most confident frames")):
        for method in dict.fromkeys(row["method"] for row in rows if key in row):
            values = [row[key] for row in rows if row["method"] == method]
            mean, worst = 100 * np.mean(values), 100 * min(values)
            lines.append(f"\n{method}: same label as fp32 on {mean:.1f} % of {what} (worst cell {worst:.1f} %)")
    return "\n".join(lines)


def _mean(cell: Sequence[dict[str, Any]], name: str) -> str:
    """Mean of the figure `name` over the rows of one method and number of shots, as text; words where it is missing."""
    if cell[0]["unavailable"] is not None:
        return str(cell[0]["unavailable"])
    found = [row[name] for row in cell if row.get(name) is not None]
    if found:
        spread = f" ± {100 * np.std(found):.1f}" if len(found) > 1 else ""
        return f"{100 * np.mean(found):.1f}{spread}"
    # A baseline without classes or without a map has no such figure. In a set without masks, no method has one.
    return "no masks" if name in ("pauroc", "f1_max", "pixel_f1") and cell[0]["draws_map"] else "-"
