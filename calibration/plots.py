"""Pictures of a calibration: purity over coverage, reliability before and after. matplotlib loads with the first one.

`new_figure` and `to_png` draw every picture of the project that needs matplotlib."""

from __future__ import annotations

import io
from typing import Any

from numpy.typing import NDArray

from runtime.folders import OUTPUT_TEXT
from runtime.operating_point import OperatingPoint

from .errors import PlotsUnavailable
from .rejects import purity_coverage
from .scoring import Scored
from .temperature import BINS, expected_calibration_error, reliability

_WRONG, _RIGHT, _GREY = "#c44536", "#2a6f97", "#777777"
_GAP = {True: "#e3a199", False: "#9cc4a0"}


def require_matplotlib() -> None:
    """Raise PlotsUnavailable, which names the extra, if there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise PlotsUnavailable(f'pictures need matplotlib ({exc}): pip install "sem-clip[plots]"') from exc


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, NDArray[Any]]:
    """A figure of [width, height] inches and its axes [rows, columns]. Raises PlotsUnavailable."""
    require_matplotlib()
    # Not pyplot: it keeps figures alive, and on a desktop it wants a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def to_png(figure: Any) -> bytes:
    """The figure as PNG, marked as a picture of this program, so that no data folder takes it for a frame."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata=dict([OUTPUT_TEXT]))
    return stream.getvalue()


def draw_purity_coverage(scored: Scored, before: OperatingPoint, after: OperatingPoint) -> bytes:
    """A PNG: purity of the decided frames as the least confident are rejected, and the two operating points."""
    figure, (ax,) = _panels(1)
    curve = purity_coverage(scored, after)
    ax.plot(100 * curve.coverage, 100 * curve.purity, color=_RIGHT, label="one confidence threshold for all classes")
    lowest = float(curve.purity.min())
    for name, point, colour in (("before", before, _GREY), ("after", after, _WRONG)):
        summary: dict[str, Any] = scored.summary(point)
        coverage, purity = summary["coverage"]["value"], summary["purity"]["value"]
        if purity is not None:
            lowest = min(lowest, purity)
            ax.plot(
                100 * coverage,
                100 * purity,
                "o",
                color=colour,
                label=f"{name}: {purity:.1%} pure, {coverage:.1%} decided",
            )
    ax.set(xlabel="coverage: decided frames, %", ylabel="purity: right among decided, %")
    ax.set(
        xlim=(0, 101), ylim=(max(0, 100 * lowest - 5), 101), title=f"Purity and coverage, {len(scored.labels)} frames"
    )
    ax.legend(loc="lower left", frameon=False)
    return to_png(figure)


def draw_reliability(scored: Scored, before: OperatingPoint, after: OperatingPoint) -> bytes:
    """A PNG: accuracy over confidence in bins, before and after. Calibrated probabilities lie on the diagonal."""
    figure, axes = _panels(2)
    right = scored.head_class == scored.truth
    for ax, (name, point) in zip(axes, (("before", before), ("after", after)), strict=True):
        confidence = scored.head_confidence(point.temperature)
        for b in reliability(confidence, right):
            middle, common = (b.low + b.high) / 2, min(b.accuracy, b.confidence)
            ax.bar(middle, common, 0.92 / BINS, color=_RIGHT)
            too_sure = b.confidence > b.accuracy
            ax.bar(middle, abs(b.accuracy - b.confidence), 0.92 / BINS, bottom=common, color=_GAP[too_sure])
            ax.text(middle, 0.01, str(b.frames), ha="center", va="bottom", fontsize=6, color="white")
        ax.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1)
        error = expected_calibration_error(confidence, right)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", aspect="equal")
        ax.set_title(f"{name}: temperature {point.temperature:.3g}, ECE {100 * error:.1f} %")
    axes[0].set_ylabel("accuracy")
    for colour, text in ((_GAP[True], "overconfident"), (_GAP[False], "underconfident")):
        axes[0].bar(0, 0, color=colour, label=text)
    axes[0].legend(loc="upper left", frameon=False)
    return to_png(figure)


def _panels(columns: int) -> tuple[Any, list[Any]]:
    figure, axes = new_figure(5.6 * columns, 4.8, 1, columns)
    for ax in axes[0]:
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
    return figure, list(axes[0])
