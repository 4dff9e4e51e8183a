"""The report of a store: one HTML file with pictures and drawings inside, without scripts, from nowhere else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import runtime
from runtime.errors import BackendUnavailable, FrameError
from runtime.fab.lot_tally import Places
from runtime.fab.report_svg import colours, pareto_chart, places_map
from runtime.operating_point import VERDICTS
from runtime.terminal import Reasons, show
from runtime.verdict_store import NOT_READ, Entry, Query, VerdictStore

from ..corrections import Correction
from ..dataset import GOOD
from .figures import confusion, coverage, purity
from .report_pictures import data_uri

MOST_PICTURES = 500
MOST_ROWS, MOST_WAFERS, MOST_CLASSES = 100, 50, 40
"""What tables and maps hold at most; the report says how many more there are."""
_UNDRAWN_SHOWN = 5
_NM_PER_MM = 1e6


def import_jinja() -> Any:
    """The module `jinja2`. Raises BackendUnavailable, with how to install it."""
    try:
        import jinja2
    except ImportError as exc:
        raise BackendUnavailable(f'a report needs Jinja2 ({exc}): pip install "sem-clip[review]"') from exc
    return jinja2


def report_html(store: VerdictStore, standing: Mapping[str, Correction], pictures: int) -> tuple[str, Reasons]:
    """The whole page, and the frames that could not be drawn.

    standing: corrections by frame, the newest last. pictures: how many least sure frames, and corrected ones, to show.
    Every text of a store or a file is text on the page. Raises BackendUnavailable, StoreError.
    """
    jinja2 = import_jinja()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"line": show, "share": _share}  # `line`: on one line, of bounded length
    undrawn = Reasons(_UNDRAWN_SHOWN)
    entries = _of_store(store, standing)
    values = {
        **_about(store),
        **_counts(store, entries),
        **_places(store),
        **_against(entries, standing),
        "unsure": [_card(store, entry, None, undrawn) for entry in _least_sure(store, pictures)],
        "corrected": [_card(store, *pair, undrawn) for pair in _newest(entries, standing, pictures)],
    }
    page: str = environment.get_template("report.html").render(values)
    return page, undrawn


def _of_store(store: VerdictStore, standing: Mapping[str, Correction]) -> dict[int, Entry]:
    """The frames of this store that were corrected, by id."""
    by_path = store.ids_by_path()
    found = (store.entry(number) for frame in standing for number in by_path.get(frame, ()))
    return {entry.id: entry for entry in found if entry is not None}


def _about(store: VerdictStore) -> dict[str, Any]:
    """What was judged, when, by what."""
    runs = store.runs()
    latest = runs[-1] if runs else None
    return {
        "title": Path(store.where).name,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": runtime.__version__,
        "runs": list(reversed(runs))[:MOST_ROWS],
        "more_runs": max(0, len(runs) - MOST_ROWS),
        "point": [] if latest is None else _point_rows(latest.operating_point),
    }


def _point_rows(point: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The operating point for a table."""
    rows: list[tuple[str, Any]] = []
    for name, value in point.items():
        if isinstance(value, Mapping):
            rows += [(f"{name.replace('_', ' ')}: {inner}", number) for inner, number in value.items()]
        else:
            rows.append((name.replace("_", " "), "none" if value is None else value))
    return rows[: 2 * MOST_ROWS]


def _counts(store: VerdictStore, corrected: Mapping[int, Entry]) -> dict[str, Any]:
    """How often each verdict was given: in all, and by lot."""
    verdicts = store.verdicts()
    unread = verdicts.pop(NOT_READ, 0)
    colour = colours(list(verdicts), (GOOD,))
    shown = list(verdicts.items())
    judged = sum(verdicts.values())
    failed = store.entries(Query(verdicts=(NOT_READ,)), 0, MOST_ROWS) if unread else []
    return {
        "judged": judged,
        "unread": unread,
        "failed": failed,
        "pareto": pareto_chart(shown[:MOST_CLASSES], colour),
        "verdicts": [(name, count, colour[name]) for name, count in shown[:MOST_CLASSES]],
        "more_verdicts": max(0, len(shown) - MOST_CLASSES),
        "coverage": coverage(verdicts),
        "corrected_of": Counter(entry.verdict for entry in corrected.values()),
        "rejects": VERDICTS,
        "colour": colour,
        "lots": [_lot(store, name) for name in store.lots()[:MOST_ROWS]],
        "more_lots": max(0, len(store.lots()) - MOST_ROWS),
    }


def _lot(store: VerdictStore, name: str) -> dict[str, Any]:
    total = store.count(Query(lots=(name,)))
    unread = store.count(Query(lots=(name,), verdicts=(NOT_READ,)))
    return {
        "name": name,
        "judged": total - unread,
        "good": store.count(Query(lots=(name,), verdicts=(GOOD,))),
        "rejected": store.count(Query(lots=(name,), verdicts=VERDICTS)),
        "unread": unread,
    }


@dataclass(slots=True, eq=False)
class _Wafer:
    """Where the frames of one wafer lie, by verdict."""

    lot: str
    name: str
    diameter_nm: float | None
    frames: int = 0
    spots: dict[str, Places] = field(default_factory=lambda: defaultdict(Places))


def _places(store: VerdictStore) -> dict[str, Any]:
    """The maps of wafers that have places, in the order of lots."""
    wafers: dict[tuple[str, str], _Wafer] = {}
    more: set[tuple[str, str]] = set()
    for lot in store.lots()[:MOST_ROWS]:
        for entry in store.all_entries(Query(lots=(lot,))):
            site = entry.site
            if site.x_nm is None or site.y_nm is None or entry.verdict is None:
                continue
            key = (lot, site.wafer or "")
            if key not in wafers and len(wafers) >= MOST_WAFERS:
                more.add(key)
                continue
            size = None if site.wafer_mm is None else site.wafer_mm * _NM_PER_MM
            wafer = wafers.setdefault(key, _Wafer(*key, size))
            wafer.frames += 1
            wafer.spots[entry.verdict].x_nm.append(site.x_nm)
            wafer.spots[entry.verdict].y_nm.append(site.y_nm)
    colour = colours(list(store.verdicts()), (GOOD,))
    drawn = [(wafer, places_map(wafer.name, wafer.diameter_nm, wafer.spots, colour)) for wafer in wafers.values()]
    return {"wafers": drawn, "more_wafers": len(more)}


def _against(entries: Mapping[int, Entry], standing: Mapping[str, Correction]) -> dict[str, Any]:
    """The verdicts against what people said."""
    verdicts = {number: entry.verdict for number, entry in entries.items() if entry.verdict is not None}
    truth = {number: standing[entry.path].new for number, entry in entries.items() if entry.path is not None}
    names = list(dict.fromkeys([*sorted(verdicts.values()), *sorted(truth.values())]))
    names = sorted(names, key=lambda name: (name != GOOD, name in VERDICTS, name))[:MOST_CLASSES]
    return {
        "corrections": len(standing),
        "elsewhere": len(standing) - len({entry.path for entry in entries.values()}),
        "confusion_names": names,
        "confusion": confusion(names, verdicts, truth),
        "purity": purity(verdicts, truth),
    }


def _least_sure(store: VerdictStore, most: int) -> list[Entry]:
    found = store.entries(Query(order="least sure"), 0, most) if most else []
    return [entry for entry in found if entry.error is None]  # those that were not read come last


def _newest(
    entries: Mapping[int, Entry], standing: Mapping[str, Correction], most: int
) -> list[tuple[Entry, Correction]]:
    """Corrected frames with their corrections, the newest first."""
    by_path = {entry.path: entry for entry in entries.values()}
    pairs = [(by_path[frame], correction) for frame, correction in standing.items() if frame in by_path]
    return pairs[::-1][:most]


def _card(store: VerdictStore, entry: Entry, correction: Correction | None, undrawn: Reasons) -> dict[str, Any]:
    """One frame with its picture, or why there is none."""
    picture, reason = "", ""
    try:
        picture = data_uri(store, entry)
    except FrameError as exc:
        undrawn.add(exc)
        reason = exc.reason
    facts = store.facts(entry.id)
    name = entry.source.replace("\\", "/").rpartition("/")[2] or entry.source
    return {
        "entry": entry,
        "name": name,
        "picture": picture,
        "no_picture": reason,
        "reason": facts.get("reason", ""),
        "correction": correction,
    }


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "-"
