"""The lists of the review page: facts of the store, frames by filters and queues, one frame with all that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from runtime.errors import FrameError
from runtime.prediction import Prediction
from runtime.verdict_store import MOST_LISTED, ORDERS, Entry, Query

from ..corrections import Correction
from .outline import Point, closed_polygons
from .session import Kept, Session
from .web import Answer, Asked, Parameters, ReviewError, id_in, json_answer

_KEYS = "1234567890abcdefhijklmnopqrtvwxyz"
"""Of the classes, place by place. Without g, s and u, which do something else on the page."""
_RANGES = ("confidence", "novelty", "size_nm")
_TOLD = ("reason", "probabilities", "regions", "warnings", "defect_threshold", "pixel_threshold")
"""What `VerdictStore.facts` knows of a frame, and the page shows."""


class Listing:
    """Handlers of /api/facts, /api/frames, /api/frames/{id} and /api/wafer.

    page_token: what the page must send with each change. teaching: what the page must know before it teaches.
    """

    def __init__(self, session: Session, page_token: str, teaching: Callable[[], Mapping[str, Any]]) -> None:
        self._session = session
        self._token = page_token
        self._teaching = teaching
        self._wafers = Kept(self._find_wafers, session.store.change_counter)

    def facts(self, _: Asked) -> Answer:
        """What the page needs to begin."""
        session, store = self._session, self._session.store
        classes, point = session.classes(), session.point()
        return json_answer(
            {
                "classes": list(classes),
                "verdicts": store.verdicts(),
                "lots": list(store.lots()),
                "frames": store.count(Query()),
                "changed": store.change_counter(),
                "keys": {key: name for key, name in zip(_KEYS, session.places(), strict=False) if name in classes},
                "corrected": len(session.corrected()),
                "who": session.who,
                **self._teaching(),
                "operating_point": None if point is None else point.to_dict(),
                "wafers": self._wafers.get(),
                "page_token": self._token,
            }
        )

    def frames(self, asked: Asked) -> Answer:
        """A page of frames by filters, in an order."""
        given = Parameters(asked.query)
        query = _query(given)
        corrected = given.choice("corrected", ("yes", "no", "all"), "all")
        offset, limit = given.whole("offset", 0, 0, 2**53), given.whole("limit", 100, 1, MOST_LISTED)
        given.finish()
        if corrected != "all":
            ids = tuple(sorted(self._session.corrected()))
            query = replace(query, ids=ids) if corrected == "yes" else replace(query, without=ids)
        found = self._session.store.entries(query, offset, limit)
        current = self._session.log.current()
        shown = [entry_json(entry, current.get(entry.path or "")) for entry in found]
        return json_answer({"total": self._session.store.count(query), "frames": shown})

    def frame(self, asked: Asked) -> Answer:
        """One frame, with all that the store knows of it."""
        entry = self._session.entry(id_in(asked))
        told = self._session.store.facts(entry.id)
        width, height = told.get("pixel_width_nm"), told.get("pixel_height_nm")
        shown = {
            **entry_json(entry, self._session.correction_of(entry)),
            **{name: told.get(name) for name in _TOLD},
            "source": entry.source,
            "pixel_size_nm": None if width is None or height is None else [width, height],
            "x_nm": entry.site.x_nm,
            "y_nm": entry.site.y_nm,
        }
        shown["outline"], remark = self._outline(entry)
        shown["warnings"] = [*(shown["warnings"] or []), *([remark] if remark else [])]
        shown["regions"], shown["probabilities"] = shown["regions"] or [], shown["probabilities"] or {}
        return json_answer(shown)

    def _outline(self, entry: Entry) -> tuple[list[Any], str]:
        """Polygons around the mask, and why there are none where there should be."""
        if not entry.is_defect:
            return [], ""
        result = self._session.store.result(entry.id)
        if not isinstance(result, Prediction):
            return [], "JSON lines hold no map, so there is no outline"
        try:
            with self._session.room:
                polygons = _polygons(result)
        except FrameError as exc:
            return [], f"no outline: {exc.reason}"
        return (polygons, "") if polygons is not None else ([], "the outline has too many corners to be drawn")

    def wafer(self, asked: Asked) -> Answer:
        """The frames of one wafer that have a place on it."""
        given = Parameters(asked.query)
        lot, wafer = given.text("lot"), given.text("wafer")
        given.finish()
        points: list[dict[str, Any]] = []
        diameter = None
        for entry in self._session.store.all_entries(Query(lots=(lot,) if lot else ())):
            site = entry.site
            if (site.lot or "", site.wafer or "") == (lot, wafer) and site.x_nm is not None and site.y_nm is not None:
                diameter = site.wafer_mm if diameter is None else diameter
                points.append({"id": entry.id, "x": site.x_nm, "y": site.y_nm, "verdict": entry.verdict})
        if not points:
            raise ReviewError("the store knows no places of frames on this wafer", 404)
        return json_answer({"mm": diameter, "points": points})

    def _find_wafers(self) -> list[dict[str, Any]]:
        found: dict[tuple[str | None, str | None], float | None] = {}
        lots = self._session.store.lots()[:MOST_LISTED]
        for entry in self._session.store.all_entries(Query(lots=lots)) if lots else ():
            site = entry.site
            if site.x_nm is not None and site.y_nm is not None:
                found.setdefault((site.lot, site.wafer), site.wafer_mm)
        return [{"lot": lot, "wafer": wafer, "mm": mm} for (lot, wafer), mm in found.items()]


def _polygons(result: Prediction) -> list[list[Point]] | None:
    """The outline of the mask, sought where the regions are: a frame may be large, and its defect small."""
    boxes = result.regions
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    right, bottom = max(box.x + box.width for box in boxes), max(box.y + box.height for box in boxes)
    found = closed_polygons(result.mask()[top:bottom, left:right])
    return None if found is None else [[(x + left, y + top) for x, y in corners] for corners in found]


def _query(given: Parameters) -> Query:
    bounds: dict[str, Any] = {
        f"{end}_{name}": given.number(f"{end}_{name}") for name in _RANGES for end in ("min", "max")
    }
    return Query(
        verdicts=given.texts("verdict"),
        labels=given.texts("label"),
        lots=given.texts("lot"),
        **bounds,
        text=given.text("text"),
        order=given.choice("order", ORDERS, "source"),
        descending=given.choice("descending", ("true", "false"), "false") == "true",
    )


def entry_json(entry: Entry, correction: Correction | None) -> dict[str, Any]:
    """A frame as lists show it."""
    height, width = entry.frame_size or (None, None)
    numbers = {name: getattr(entry, name) for name in ("verdict", "label", "confidence", "score", "novelty", "size_nm")}
    return {
        "id": entry.id,
        "name": entry.source.rpartition("/")[2] or entry.source,
        **numbers,
        "lot": entry.site.lot,
        "wafer": entry.site.wafer,
        "defect_id": entry.site.defect_id,
        "width": width,
        "height": height,
        "error": entry.error,
        "corrected": correction_json(correction),
    }


def correction_json(correction: Correction | None) -> dict[str, Any] | None:
    """A correction as the page shows it."""
    if correction is None:
        return None
    shown: dict[str, Any] = {name: getattr(correction, name) for name in ("new", "old", "when", "who")}
    return {**shown, "mask": correction.mask is not None}
