"""The drawings of a lot's report, as SVG text: bars of a Pareto chart and a map of each wafer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ..terminal import show
from .lot_tally import Places, Tally

COLOURS = ("#c0392b", "#2471a3", "#b7950b", "#7d3c98", "#117864", "#ca6f1e", "#2e4053", "#a93272", "#5d8c1a", "#1b9aaa")
OTHERS, PLAIN = "#707070", "#d0d3d4"
"""Colours of verdicts beyond COLOURS, and of good frames and defects without a verdict."""
_BINS = 200
"""Places across a wafer map: defects of one verdict in one place are one dot, so that a map of any lot stays small."""
_LABEL = 120.0
"""Room on the right for the last name, which is turned."""
_SIZE, _RADIUS = 240.0, 112.0


def text(value: object) -> str:
    """A value of a file as text of HTML or SVG: on one line, of bounded length, without markup."""
    return escape(show(value), quote=True)


def colours(names: Sequence[str], plain: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the first ones distinct. plain: names that are drawn pale."""
    strong = [name for name in names if name not in plain]
    found = {name: COLOURS[i] if i < len(COLOURS) else OTHERS for i, name in enumerate(strong)}
    return {name: found.get(name, PLAIN) for name in names}


def pareto_chart(counts: Sequence[tuple[str, int]], colour: Mapping[str, str]) -> str:
    """Bars by falling count, with the cumulative share as a line."""
    total = sum(count for _, count in counts)
    shown = [(name, count) for name, count in counts if count]
    if not total:
        return ""
    step, height, left = max(14.0, min(60.0, 640 / len(shown))), 180.0, 40.0
    width = left + step * len(shown) + _LABEL
    parts, points, so_far = [], [], 0
    for index, (name, count) in enumerate(shown):
        so_far += count
        x, tall = left + index * step, height * count / total
        parts.append(
            f'<rect x="{x + 2:.1f}" y="{10 + height - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" '
            f'fill="{colour[name]}"><title>{text(name)}: {count}</title></rect>'
        )
        parts.append(
            f'<text x="{x + step / 2:.1f}" y="{height + 22:.1f}" transform="rotate(35 {x + step / 2:.1f} '
            f'{height + 22:.1f})">{text(name[:24])}</text>'
        )
        points.append(f"{x + step / 2:.1f},{10 + height * (1 - so_far / total):.1f}")
    axis = "".join(
        f'<text x="{left - 6:.0f}" y="{14 + height * (1 - share):.1f}" text-anchor="end">{share:.0%}</text>'
        f'<line x1="{left:.0f}" x2="{width - _LABEL:.1f}" y1="{10 + height * (1 - share):.1f}" '
        f'y2="{10 + height * (1 - share):.1f}" class="grid"/>'
        for share in (0, 0.5, 1)
    )
    line = f'<polyline points="{" ".join(points)}" class="line"/>'
    return (
        f'<svg role="img" aria-label="Pareto chart" viewBox="0 0 {width:.0f} {height + 120:.0f}" '
        f'width="{width:.0f}" height="{height + 120:.0f}">{axis}{"".join(parts)}{line}</svg>'
    )


def wafer_map(tally: Tally, wafer: int, colour: Mapping[str, str]) -> str:
    """One wafer of a lot, as `places_map`."""
    facts = tally.wafers[wafer]
    return places_map(facts.id, facts.diameter_nm, tally.places[wafer], colour)


def places_map(name: str, diameter_nm: float | None, spots: Mapping[str, Places], colour: Mapping[str, str]) -> str:
    """One wafer with a dot for each place that has defects, seen with y upwards; "" without places.

    name: of the wafer. spots: by verdict.
    """
    places = {verdict: found for verdict, found in spots.items() if found.x_nm}
    if not places:
        return ""
    reach = max(abs(value) for found in places.values() for values in (found.x_nm, found.y_nm) for value in values)
    half = diameter_nm / 2 if diameter_nm else 0.0
    outline = f'<circle cx="{_SIZE / 2}" cy="{_SIZE / 2}" r="{_RADIUS}" class="wafer"/>' if half else ""
    scale = _RADIUS / max(half, reach, 1.0)
    if half and reach > half * 1.001:  # the outline then is as small as the scale makes it
        outline = f'<circle cx="{_SIZE / 2}" cy="{_SIZE / 2}" r="{half * scale:.1f}" class="wafer"/>'
    pitch = 2 * _RADIUS / _BINS
    dots = []
    for verdict in sorted(places, key=lambda one: -len(places[one].x_nm)):  # rare ones on top
        dotted = {
            (round(x * scale / pitch), round(y * scale / pitch))
            for x, y in zip(places[verdict].x_nm, places[verdict].y_nm, strict=True)
        }
        path = "".join(
            f"M{_SIZE / 2 + x * pitch:.1f} {_SIZE / 2 - y * pitch:.1f}h0" for x, y in sorted(dotted)
        )  # a line of no length with round ends is a dot
        dots.append(
            f'<path d="{path}" class="dots" stroke="{colour.get(verdict, PLAIN)}"><title>{text(verdict)}</title></path>'
        )
    return (
        f'<svg role="img" aria-label="map of wafer {text(name)}" viewBox="0 0 {_SIZE:.0f} {_SIZE:.0f}" '
        f'width="{_SIZE:.0f}" height="{_SIZE:.0f}">{outline}{"".join(dots)}</svg>'
    )
