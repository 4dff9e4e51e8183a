"""Charts of a report, as PNG. Needs the `plots` extra."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.folders import OUTPUT_TEXT


def charts(report: Mapping[str, Any]) -> dict[str, bytes]:
    """File name to PNG: throughput.png over batch sizes, split.png, growth.png; for the sections that were measured."""
    sections = report["sections"]
    drawn: dict[str, bytes] = {}
    if "throughput" in sections:
        drawn["throughput.png"] = _figure([("throughput", sections["throughput"], "batch", "batch size")])
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
        drawn["growth.png"] = _figure([panel for panel in panels if panel[1]])
    return drawn


def _figure(panels: Sequence[tuple[str, Sequence[Mapping[str, Any]], str, str]]) -> bytes:
    """Frames/s over one quantity, a line for each engine and a panel for each (title, rows, key, label)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, rows, key, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
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
    return _png(figure)


def _split(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A bar for each engine, made of its steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for step in rows[0]["ms"]:
        widths = [row["ms"][step] for row in rows]
        axes.barh([row["engine"] for row in rows], widths, left=left, label=step.replace("_", " "))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="ms per frame, one step after the other")
    figure.legend(fontsize="small", ncols=6, loc="outside upper center", columnspacing=1.0, handlelength=1.0)
    return _png(figure)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata=dict([OUTPUT_TEXT]))
    return stream.getvalue()
