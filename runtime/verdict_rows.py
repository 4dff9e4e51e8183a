"""Between the answers of a Predictor and the rows of a store of verdicts, in both directions.

What lists show and sort by is in columns of `answers`; all else of `rows.COLUMNS` is in `details`: numbers and texts as
one JSON object, probabilities, regions, map and features as little-endian arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import RowError, StoreError
from .jsonfields import Fields, listed, parse_json
from .maps import SIZES_NM, Region
from .operating_point import VERDICTS
from .prediction import FailedFrame, Prediction
from .rows import COLUMNS, Row, printed
from .terminal import show
from .verdict_records import Entry, Run, Site

Record: TypeAlias = "dict[str, Any]"
"""Values by column, of `answers` (without id, run and newest) and of `details`."""
LISTED = (
    *("id", "run", "source", "path", "lot", "wafer", "defect_id", "x_nm", "y_nm", "wafer_mm", "verdict", "label"),
    *("is_defect", "confidence", "score", "novelty", "size_nm", "frame_height", "frame_width", "error"),
)
"""Columns of `answers` that an Entry is made of."""
ANSWERS = ("frame", *LISTED[2:], "sureness")
DETAILS = ("facts", "probabilities", "regions", "patch_map", "features")
_BY_COLUMN = {*LISTED, "encoder_id", "recipe_sha256", "probabilities", "regions", "patch_map", "features"}
_FACTS = tuple(column.name for column in COLUMNS if column.name not in _BY_COLUMN)
_REGION = ("x", "y", "width", "height", "area", "centroid_x", "centroid_y", "peak", "below_threshold")
_REJECT, _FAILED = 2.0, 3.0
_LARGEST = 2.0**31
_EMPTY: Record = {"facts": "{}", "probabilities": b"", "regions": b"", "patch_map": None, "features": None}


def record_of(result: Prediction | FailedFrame, site: Site, path: str | None, classes: Sequence[str]) -> Record:
    """An answer as columns. path: of the frame, absolute; None where it did not come from a file.

    classes: of the run; the probabilities must be theirs, in their order.
    """
    if isinstance(result, FailedFrame):
        return failed_record(printed(result.source), printed(result.error.reason), site, path)
    row = result.to_row()
    if tuple(row["probabilities"]) != tuple(classes):
        raise ValueError(f"{result.source}: its classes are {', '.join(row['probabilities'])}, not those of the run")
    features = np.ascontiguousarray(result.features, "<f4").tobytes()
    return answer_record(row, site, path, features=features)


def failed_record(source: str, error: str, site: Site, path: str | None) -> Record:
    """The columns of a frame that was not read."""
    names = dict.fromkeys(ANSWERS)
    return {**names, **_frame(source, site, path), "sureness": _FAILED, "error": error, **_EMPTY}


def answer_record(row: Row, site: Site, path: str | None, *, features: bytes | None) -> Record:
    """The columns of an answer. row: as `Prediction.to_row`; `patch_map` may be missing."""
    probabilities = list(row["probabilities"].values())
    regions = [[float(region[name]) for name in _REGION] for region in row["regions"]]
    found = {name: row[name] for name in ANSWERS if name in row}
    return {
        **dict.fromkeys(ANSWERS),
        **found,
        **_frame(row["source"], site, path),
        "is_defect": int(row["is_defect"]),
        "size_nm": _size_nm(row),
        "sureness": _sureness(row["verdict"], probabilities),
        "facts": json.dumps({name: row[name] for name in _FACTS if name in row}, allow_nan=False),
        "probabilities": np.array(probabilities, "<f8").tobytes(),
        "regions": np.array(regions, "<f8").reshape(-1, len(_REGION)).tobytes(),
        "patch_map": row.get("patch_map"),
        "features": features,
    }


def _frame(source: str, site: Site, path: str | None) -> Record:
    """The columns that name a frame."""
    place = {name: printed(value) if isinstance(value, str) else value for name, value in asdict(site).items()}
    stored = None if path is None else os.fsencode(path)
    named = repr((stored or source, site.lot, site.wafer, site.defect_id)).encode("utf-8", "backslashreplace")
    return {**place, "source": source, "path": stored, "frame": hashlib.blake2b(named, digest_size=16).digest()}


def _sureness(verdict: str, probabilities: Sequence[float]) -> float:
    """What "least sure" sorts by: rejects below 0, others by the margin of the two likeliest classes, in [0, 1]."""
    first, second = sorted(probabilities)[:-3:-1]
    return first - second - (_REJECT if verdict in VERDICTS else 0.0)


def _size_nm(row: Row) -> float | None:
    """The longest side of the largest region."""
    sides = row.get("pixel_width_nm"), row.get("pixel_height_nm")
    if None in sides or not row["regions"]:
        return None
    largest = max(row["regions"], key=lambda region: region["area"])
    return float(max(largest["width"] * sides[0], largest["height"] * sides[1]))


def entry_of(where: str, values: Sequence[Any], runs: int) -> Entry:
    """An entry from the columns LISTED. runs: how many there are. Raises StoreError for what no writer stores."""
    row = dict(zip(LISTED, values, strict=True))
    failed = row["error"] is not None
    faults = [name for name, sound in _CHECKS.items() if not sound(row[name], failed)]
    if not isinstance(row["run"], int) or not 1 <= row["run"] <= runs:
        faults.append("run")
    if faults:
        raise damaged(where, row["id"], f"its {', '.join(faults)} cannot be right")
    height, width = row["frame_height"], row["frame_width"]
    return Entry(
        id=row["id"],
        run=row["run"] - 1,
        path=None if row["path"] is None else os.fsdecode(row["path"]),
        site=Site(*(row[name] for name in Site.__slots__)),
        is_defect=None if failed else bool(row["is_defect"]),
        frame_size=None if failed else (height, width),
        **{name: row[name] for name in _SAME},
    )


_SAME = ("source", "verdict", "label", "confidence", "score", "novelty", "size_nm", "error")


def _text(value: Any, _: bool) -> bool:
    return value is None or isinstance(value, str)


def _number(value: Any, _: bool) -> bool:
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _within(most: float) -> Any:
    return lambda value, failed: value is None if failed else isinstance(value, float) and 0 <= value <= most


def _whole(most: int, least: int = 1) -> Any:
    return lambda value, failed: value is None if failed else isinstance(value, int) and least <= value <= most


_CHECKS: dict[str, Any] = {
    "source": lambda value, _: isinstance(value, str),
    "path": lambda value, _: value is None or (isinstance(value, bytes) and b"\0" not in value),
    **dict.fromkeys(("lot", "wafer", "defect_id", "error"), _text),
    **dict.fromkeys(("x_nm", "y_nm", "wafer_mm", "size_nm"), _number),
    **dict.fromkeys(("verdict", "label"), lambda value, failed: value is None if failed else isinstance(value, str)),
    "is_defect": _whole(1, 0),
    **dict.fromkeys(("confidence", "score"), _within(1)),
    "novelty": _within(2),
    **dict.fromkeys(("frame_height", "frame_width"), _whole(2**31)),
}
"""Whether a value is one that a writer stores, by column; of the value, and whether the frame was not read."""


def facts_of(where: str, number: int, text: Any) -> dict[str, Any]:
    """The JSON object of `details`. Raises StoreError."""
    faults: list[str] = []
    try:
        facts = parse_json(text, faults)
    except (ValueError, RecursionError, TypeError) as exc:
        raise damaged(where, number, f"its details are no JSON ({exc!s:.100})") from exc
    if faults or not isinstance(facts, dict):
        raise damaged(where, number, "; ".join(listed(faults)) or "its details are no object")
    return facts


def floats_of(where: str, number: int, blob: Any, kind: str, columns: int | None = None) -> NDArray[Any]:
    """A stored array [n], or [n, columns]. kind: "<f4" or "<f8". Raises StoreError."""
    size = int(kind[-1]) * (columns or 1)
    if not isinstance(blob, bytes) or len(blob) % size:
        raise damaged(where, number, "an array of its details has no whole number of values")
    values = np.frombuffer(blob, kind)
    return values if columns is None else values.reshape(-1, columns)


def prediction_of(where: str, entry: Entry, run: Run, details: Sequence[Any]) -> Prediction | None:
    """The answer, to the bit as it was; None if its map was not stored. details: the columns DETAILS.

    Raises StoreError for a row that `Prediction.from_row` refuses.
    """
    facts, probabilities, regions, patch_map, features = details
    if patch_map is None:
        return None
    named = facts_of(where, entry.id, facts)
    odd = sorted(set(named) - set(_FACTS))
    if odd:
        raise damaged(where, entry.id, f"its details hold {show(odd)}")
    height, width = entry.frame_size or (None, None)
    row: Row = {
        **named,
        **{name: getattr(entry, name) for name in _SAME if name != "size_nm"},
        "is_defect": entry.is_defect,
        "frame_height": height,
        "frame_width": width,
        "encoder_id": run.encoder_id,
        "recipe_sha256": run.recipe_sha256,
        "probabilities": probabilities_of(where, entry.id, run, probabilities),
        "regions": _region_rows(where, entry.id, regions),
        "patch_map": patch_map,
        "features": None if features is None else floats_of(where, entry.id, features, "<f4").tolist(),
    }
    try:
        prediction = Prediction.from_row(row)
    except RowError as exc:
        raise damaged(where, entry.id, str(exc)) from exc
    vars(prediction)["path"] = entry.path
    return prediction


def probabilities_of(where: str, number: int, run: Run, blob: Any) -> dict[str, float]:
    """Probabilities by class, as the run names them. Raises StoreError."""
    values = floats_of(where, number, blob, "<f8").tolist()
    if len(values) != len(run.classes):
        raise damaged(where, number, f"it has {len(values)} probabilities for {len(run.classes)} classes")
    return dict(zip(run.classes, values, strict=True))


def _region_rows(where: str, number: int, blob: Any) -> list[Row]:
    found = floats_of(where, number, blob, "<f8", len(_REGION)).tolist()
    return [{**dict(zip(_REGION, one, strict=True)), "below_threshold": bool(one[-1])} for one in found]


def regions_of(where: str, number: int, blob: Any, pixel_size_nm: tuple[float, float] | None) -> tuple[Region, ...]:
    """Regions without the map, for frames whose map was not stored. Raises StoreError."""
    rows = _region_rows(where, number, blob)
    if not all(0 <= value <= _LARGEST for row in rows for value in row.values()):
        raise damaged(where, number, "its regions hold numbers that cannot be right")
    if not all(row["width"] >= 1 <= row["height"] for row in rows):
        raise damaged(where, number, "its regions are empty")
    return tuple(
        Region(
            x=int(row["x"]),
            y=int(row["y"]),
            width=int(row["width"]),
            height=int(row["height"]),
            area=int(row["area"]),
            centroid=(row["centroid_x"], row["centroid_y"]),
            peak=row["peak"],
            below_threshold=row["below_threshold"],
        ).sized(pixel_size_nm)
        for row in rows
    )


def region_dict(region: Region) -> dict[str, Any]:
    """JSON-ready, as in `Prediction.to_dict`, with all digits."""
    return {
        **{name: getattr(region, name) for name in _REGION[:5]},
        "centroid": list(region.centroid),
        "peak": region.peak,
        "below_threshold": region.below_threshold,
        **{name: getattr(region, name) for name in SIZES_NM},
    }


def run_values(run: Run) -> tuple[str, ...]:
    """A run as the columns of `runs`, without its id."""
    point = json.dumps(dict(run.operating_point), allow_nan=False)
    names = json.dumps(list(run.classes))
    return run.when, run.bundle, run.encoder_id, run.recipe_sha256, names, point


def run_of(where: str, values: Sequence[Any]) -> Run:
    """The inverse of `run_values`. Raises StoreError."""
    if not all(isinstance(value, str) for value in values):
        raise StoreError(where, "is damaged: a run is described by what is no text")
    when, bundle, encoder_id, recipe_sha256, names, point = values
    faults: list[str] = []
    try:
        document = parse_json(f'{{"classes": {names}, "operating_point": {point}}}', faults)
    except (ValueError, RecursionError) as exc:
        raise StoreError(where, f"is damaged: a run is described by what is no JSON ({exc!s:.100})") from exc
    fields = Fields(document, "run", faults)
    classes, found = fields.texts("classes", 1000), fields.mapping("operating_point")
    if faults:
        raise StoreError(where, f"is damaged: {'; '.join(listed(faults))}")
    return Run(when, bundle, encoder_id, recipe_sha256, classes, found)


def damaged(where: str, number: Any, reason: str) -> StoreError:
    """The error of an answer that cannot be used."""
    return StoreError(where, f"answer {show(number)} is damaged: {reason}")
