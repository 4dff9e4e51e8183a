"""Charts of a report, as PNG. Needs the `plots` extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibration.plots import new_figure, to_png


def charts(report: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG by file name, for the measured sections: throughput.png over batch sizes, split.png, growth.png."""
    sections = report["sections"]
    drawn: dict[str, bytes] = {}
    if "throughput" in sections:
        drawn["throughput.png"] = _over([("throughput", sections["throughput"], "batch", "batch size")])
    if "split" in sections:
        drawn["split.png"] = _split(sections["split"])
    if "growth" in sections:
        growth = sections["growth"]
        sizes = [
            {**row, "megapixels": row["frame_size"][0] * row["frame_size"][1] / 1e6} for row in growth["frame_sizes"]
        ]
        panels = [
            ("threads", growth["threads"], "threads", "threads of the engine"),
            ("frame size", sizes, "megapixels", "frame, megapixels"),
            ("classes", growth["classes"], "classes", "classes of the recipe"),
        ]
        drawn["growth.png"] = _over([panel for panel in panels if panel[1]])
    return drawn


def _over(panels: Sequence[tuple[str, Sequence[Mapping[str, Any]], str, str]]) -> bytes:
    """Frames/s over one quantity: a panel for each (title, rows, key, label), a line for each engine."""
    figure, row_of_axes = new_figure(5 * len(panels), 4, 1, len(panels))
    for axes, (title, rows, key, label) in zip(row_of_axes[0], panels, strict=True):
        for engine in dict.fromkeys(row["engine"] for row in rows):
            own = [row for row in rows if row["engine"] == engine]
            axes.plot([r[key] for r in own], [r["frames_per_second"] for r in own], marker="o", label=engine)
        ticks = sorted({row[key] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.set_ylim(0, 1.15 * max(row["frames_per_second"] for row in rows))
        axes.set(title=title, xlabel=label, ylabel="frames/s")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return to_png(figure)


def _split(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One stacked bar of steps per engine."""
    figure, ((axes,),) = new_figure(7, 1.6 + 0.5 * len(rows))
    left = [0.0] * len(rows)
    for step in rows[0]["ms"]:
        widths = [row["ms"][step] for row in rows]
        axes.barh([row["engine"] for row in rows], widths, left=left, label=step.replace("_", " "))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="ms per frame, steps in sequence")
    figure.legend(fontsize="small", ncols=6, loc="outside upper center", columnspacing=1.0, handlelength=1.0)
    return to_png(figure)
