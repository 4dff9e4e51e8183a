"""Pictures of an accuracy measurement, as in the paper's figures 6-8. matplotlib loads with the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.dataset import Sample
from calibration.plots import new_figure, to_png

if TYPE_CHECKING:
    from runtime import Prediction


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """A PNG: true classes in rows, predicted ones in columns; colour is the share of the row, numbers are frames."""
    figure, ((ax,),) = new_figure(1.2 + 0.75 * len(classes), 1.0 + 0.65 * len(classes))
    counts = np.asarray(confusion)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if share[row, column] > 0.5 else "black"
        ax.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    ax.set(xticks=range(len(classes)), yticks=range(len(classes)), xlabel="predicted", ylabel="true")
    # A class name is text; dollar signs in it start no formula.
    ax.set_xticklabels(classes, rotation=40, ha="right", parse_math=False)
    ax.set_yticklabels(classes, parse_math=False)
    return to_png(figure)


def draw_shots(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> bytes:
    """A PNG: mean and standard deviation over seeds against the number of shots, one line per metric."""
    figure, ((ax,),) = new_figure(6.0, 4.4)
    shots = sorted({row["shots"] for row in rows})
    for key, name in names.items():
        points = [[row[key] for row in rows if row["shots"] == k and row[key] is not None] for k in shots]
        if all(points):
            mean = [100 * np.mean(p) for p in points]
            ax.errorbar(shots, mean, [100 * np.std(p) for p in points], marker="o", capsize=3, label=name)
    ax.set(xlabel="shots per class", ylabel="per cent", xticks=shots)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    return to_png(figure)


def draw_overlays(results: Sequence[tuple[Sample, Prediction]], columns: int = 4) -> bytes:
    """A contact sheet as PNG: each frame twice, plain and with map, outline (yellow) and true outline (blue).

    The title of each pair is the true class and the verdict, in red if the verdict is wrong.
    """
    rows = -(-len(results) // columns)
    figure, axes = new_figure(4.0 * columns, 2.3 * rows, rows, columns)
    figure.suptitle(
        "true class: verdict (defect score), red if wrong. Yellow outline: defect found. Blue outline: true defect.",
        fontsize=10,
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, (sample, result) in zip(axes.flat, results, strict=False):
        drawn = np.asarray(result.overlay())
        plain = np.repeat(sample.read(result.frame_options)[:, :, None], 3, axis=2)
        gap = np.full((len(drawn), max(2, drawn.shape[1] // 60), 3), 255, np.uint8)
        ax.imshow(np.concatenate([plain, gap, drawn], axis=1))
        mask = sample.read_mask(result.frame_size)
        if mask is not None and mask.any():
            shift = plain.shape[1] + gap.shape[1]
            ax.contour(
                np.arange(mask.shape[1]) + shift,
                np.arange(len(mask)),
                mask,
                levels=[0.5],
                colors="deepskyblue",
                linewidths=1,
            )
        right = result.verdict == sample.label
        ax.set_title(
            f"{sample.label}: {result.verdict} ({result.score:.2f})",
            fontsize=9,
            color="black" if right else "crimson",
            parse_math=False,
        )
    return to_png(figure)
