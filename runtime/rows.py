"""Answers as flat rows of plain Python values, for tables: Parquet files, Ray datasets, message queues.

A row holds all it takes to draw: the patch map, the sizes and the thresholds, from which `Prediction.from_row` gives
the same map and mask, to the bit. The row of a frame that was not read has `source` and `error`; all else is None.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .errors import RowError
from .fab.sem_values import LEAST_PIXEL_NM, MOST_PIXEL_NM
from .jsonfields import listed
from .maps import SIZES_NM, Region
from .pixels import MAX_PIXELS, MAX_SIDE
from .recipe import FRAME_OPTION_RANGES, FrameOptions
from .windows import MAX_CANVAS_CELLS, MAX_CANVAS_SIDE

SCHEMA_VERSION = 1
"""Rises when a column changes its meaning or its type, or when one that a reader needs is added."""
Row: TypeAlias = "dict[str, Any]"
_MAX_TILES = 2**16  # a frame may take fewer today
_MAX_FEATURES, _MAX_REGIONS = 10**6, 10**6
_SHARPEST = 8
"""Smoothing is at most the image's shorter side divided by this, as in a manifest."""
_WHITE_LEVEL = {name: (low, high) for name, low, high in FRAME_OPTION_RANGES}["white_level"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. kind: see `parquet.arrow_schema`. low, high: the range of its numbers.

    needed: whether the row of an answer must have a value.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    needed: bool = True


COLUMNS = (
    Column("source", "text"),
    Column("verdict", "text"),
    Column("reason", "text"),
    Column("is_defect", "flag"),
    Column("label", "text"),
    Column("confidence", "number"),
    Column("score", "number"),
    Column("defect_threshold", "number", -math.inf, math.inf),
    Column("pixel_threshold", "number", -math.inf, math.inf),
    Column("head_class", "text"),
    Column("probabilities", "numbers by name"),
    Column("map_score", "number"),
    Column("peak", "number"),
    Column("novelty", "number", 0, 2),
    Column("regions", "regions"),
    Column("patch_map", "bytes"),
    Column("map_rows", "whole", 1, MAX_CANVAS_CELLS),
    Column("map_columns", "whole", 1, MAX_CANVAS_CELLS),
    Column("frame_height", "whole", 1, MAX_SIDE),
    Column("frame_width", "whole", 1, MAX_SIDE),
    Column("image_height", "whole", 1, MAX_CANVAS_SIDE),
    Column("image_width", "whole", 1, MAX_CANVAS_SIDE),
    Column("pixel_width_nm", "number", LEAST_PIXEL_NM, MOST_PIXEL_NM, needed=False),
    Column("pixel_height_nm", "number", LEAST_PIXEL_NM, MOST_PIXEL_NM, needed=False),
    Column("ignored_top", "whole", 0, MAX_SIDE),
    Column("ignored_bottom", "whole", 0, MAX_SIDE),
    Column("white_level", "whole", *_WHITE_LEVEL),
    Column("smoothing_px", "number", 0, MAX_SIDE),
    Column("backend", "text"),
    Column("timings_ms", "numbers by name", 0, math.inf),
    Column("warnings", "texts"),
    Column("checksum", "checksum", 0, 2**32 - 1, needed=False),
    Column("encoder_id", "text"),
    Column("recipe_sha256", "text"),
    Column("tiles", "whole", 1, _MAX_TILES),
    Column("error", "text", needed=False),
    Column("features", "float32s", -math.inf, math.inf, needed=False),
)
NAMES = tuple(column.name for column in COLUMNS)
_SAME = (
    *("source", "verdict", "reason", "is_defect", "label", "confidence", "score", "defect_threshold"),
    *("pixel_threshold", "head_class", "map_score", "peak", "novelty", "smoothing_px", "backend", "checksum"),
    *("encoder_id", "recipe_sha256", "tiles"),
)
"""Columns that are fields of `Prediction` under the same name."""


def answer_row(answer: Any, *, features: bool) -> Row:
    """The row of a `Prediction`. features: whether to fill that column."""
    rows, columns = answer.patch_map.shape
    found = {name: getattr(answer, name) for name in _SAME}
    pixel = answer.pixel_size_nm or (None, None)
    found |= {
        "probabilities": dict(answer.probabilities),
        "regions": [_region_row(region) for region in answer.regions],
        "patch_map": np.ascontiguousarray(answer.patch_map, "<f4").tobytes(),
        "map_rows": rows,
        "map_columns": columns,
        "frame_height": answer.frame_size[0],
        "frame_width": answer.frame_size[1],
        "image_height": answer.image_size[0],
        "image_width": answer.image_size[1],
        "pixel_width_nm": pixel[0],
        "pixel_height_nm": pixel[1],
        "ignored_top": answer.ignored_rows[0],
        "ignored_bottom": answer.ignored_rows[1],
        "white_level": answer.frame_options.white_level,
        "timings_ms": dict(answer.timings_ms),
        "warnings": [printed(text) for text in answer.warnings],
        "error": None,
        "features": answer.features.tolist() if features else None,
    }
    for name in ("source", "reason", "backend"):
        found[name] = printed(found[name])
    return {name: found[name] for name in NAMES}


def failed_row(source: str, error: str) -> Row:
    """The row of a frame that was not read."""
    return {**dict.fromkeys(NAMES), "source": printed(source), "error": printed(error)}


def printed(text: str) -> str:
    r"""Text that every file takes: a byte of a name that is no UTF-8 becomes \udcXX, as in the JSON lines."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _region_row(region: Region) -> Row:
    return {
        "x": region.x,
        "y": region.y,
        "width": region.width,
        "height": region.height,
        "area": region.area,
        "centroid_x": region.centroid[0],
        "centroid_y": region.centroid[1],
        "peak": region.peak,
        "below_threshold": region.below_threshold,
        **{name: getattr(region, name) for name in SIZES_NM},
    }


def error_in(row: Mapping[str, Any]) -> tuple[str, str | None]:
    """Source, and error; None if the row holds an answer. Raises RowError where it is no row."""
    if not isinstance(row, Mapping):
        raise RowError(f"a row is a mapping of columns, not {type(row).__name__}")
    reader = _Reader(row, {"source", "error"})
    reader.finish()
    return reader.values["source"], reader.values["error"]


def answer_fields(row: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Region, ...]]:
    """The fields of a `Prediction`, and its regions, from the row of an answer. Further columns are not read.

    Values may be those of `answer_row`, or what pyarrow, pandas and DuckDB make of them: pairs in place of a mapping,
    arrays, numpy's numbers. Raises RowError with all faults.
    """
    source, error = error_in(row)
    if error is not None:
        raise RowError(f"{source}: the row has no answer, the frame was not read: {error}")
    reader = _Reader(row, set(NAMES))
    value = reader.values
    reader.finish()
    sides = value["pixel_width_nm"], value["pixel_height_nm"]
    reader.require(None not in sides or sides == (None, None), "pixel_width_nm and pixel_height_nm go together")
    pixel = None if None in sides else sides
    # Sizes in nm follow from those in pixels, so they are not read.
    regions = tuple(reader.region(one).sized(pixel) for one in value["regions"])
    frame, image = (value["frame_height"], value["frame_width"]), (value["image_height"], value["image_width"])
    ignored = value["ignored_top"], value["ignored_bottom"]
    grid = value["map_rows"], value["map_columns"]
    size = 4 * grid[0] * grid[1]
    reader.require(len(value["patch_map"]) == size, f"patch_map must hold {grid[0]} x {grid[1]} float32")
    reader.require(frame[0] * frame[1] <= MAX_PIXELS, f"a frame must not have more than {MAX_PIXELS:,} pixels")
    reader.require(sum(ignored) < frame[0], "ignored_top and ignored_bottom must leave a row of the frame")
    reader.require(value["smoothing_px"] <= min(image) / _SHARPEST, f"smoothing_px must fit an image of {image}")
    reader.require(value["label"] in value["probabilities"], "label must be one of the probabilities")
    reader.require(value["is_defect"] == bool(regions), "a defect must have regions, and nothing else may")
    reader.finish()
    patch_map = np.frombuffer(value["patch_map"], "<f4").reshape(grid).astype(np.float32)
    reader.require(bool((patch_map >= 0).all() and (patch_map <= 1).all()), "patch_map must lie in [0, 1]")
    reader.finish()
    return {
        **{name: value[name] for name in _SAME},
        "probabilities": value["probabilities"],
        "patch_map": patch_map,
        "features": np.array(value["features"] or (), np.float32),
        "frame_size": frame,
        "image_size": image,
        "ignored_rows": ignored,
        "pixel_size_nm": pixel,
        "timings_ms": value["timings_ms"],
        "frame_options": FrameOptions(*ignored, value["white_level"]),
        "warnings": tuple(value["warnings"]),
    }, regions


class _Reader:
    """Reads the columns of a row by their kinds. Faults are collected; `finish` raises them."""

    def __init__(self, row: Mapping[str, Any], wanted: set[str]) -> None:
        self._source = row.get("source")
        self._faults: list[str] = []
        self.values: dict[str, Any] = {}
        for column in (column for column in COLUMNS if column.name in wanted):
            value = _plain(row.get(column.name))
            if value is not None:
                self.values[column.name] = self._read(column, value)
            elif column.needed:
                self._faults.append(f"{column.name} is {'empty' if column.name in row else 'missing'}")
            else:
                self.values[column.name] = None

    def require(self, sound: bool, message: str) -> None:
        """Record a fault unless `sound`."""
        if not sound:
            self._faults.append(message)

    def finish(self) -> None:
        """Raise RowError if there are faults."""
        if self._faults:
            name = self._source if isinstance(self._source, str) else "a row"
            told = "; ".join(listed(self._faults))
            raise RowError(f"{name:.200}: is no row of schema version {SCHEMA_VERSION}: {told}")

    def region(self, row: Any) -> Region:
        """One entry of `regions`."""
        if not isinstance(row, Mapping) or not set(_REGION) <= set(row):
            self._faults.append(f"regions must have {', '.join(_REGION)}")
            return Region(0, 0, 0, 0, 0, (0.0, 0.0), 0.0)
        x, y, width, height, area, centre_x, centre_y, peak, below = (
            self._read(column, _plain(row[column.name])) for column in _REGION.values()
        )
        return Region(x, y, width, height, area, (centre_x, centre_y), peak, below)

    def _read(self, column: Column, value: Any) -> Any:
        """The value, or a placeholder of its type and a fault."""
        kind, kind_of = column.kind, type(value)
        if kind in ("number", "whole", "checksum"):
            return self._number(column, value)
        if kind in ("text", "flag", "bytes"):
            wanted: type = {"text": str, "flag": bool, "bytes": bytes}[kind]
            if kind_of is not wanted:
                self._faults.append(f"{column.name} must be {wanted.__name__}, not {kind_of.__name__}")
            return value if kind_of is wanted else wanted()
        if kind == "numbers by name":
            return self._by_name(column, value)
        most = _MAX_FEATURES if kind == "float32s" else _MAX_REGIONS
        if kind_of is not list or len(value) > most:
            self._faults.append(f"{column.name} must be a list of at most {most:,} entries, not {kind_of.__name__}")
            return []
        if kind == "texts" and not all(isinstance(text, str) for text in value):
            self._faults.append(f"{column.name} must hold texts")
        if kind == "float32s" and not all(isinstance(one, float) and math.isfinite(one) for one in value):
            self._faults.append(f"{column.name} must hold finite numbers")
            return []
        return value

    def _number(self, column: Column, value: Any) -> Any:
        """A number in the column's range. Whole ones may come as floats: a table with empty cells makes them that."""
        whole = column.kind in ("whole", "checksum")
        sound = isinstance(value, int | float) and not isinstance(value, bool) and column.low <= value <= column.high
        sound &= sound and -sys.float_info.max <= value <= sys.float_info.max
        if not sound or (whole and value != int(value)):
            what = "a whole number" if whole else "a finite number"
            between = f" in [{column.low:.10g}, {column.high:.10g}]"
            self._faults.append(f"{column.name} must be {what}{between}, not {value!r:.40}")
            return 1
        return int(value) if whole else float(value)

    def _by_name(self, column: Column, value: Any) -> dict[str, float]:
        """A mapping of text to numbers, or its pairs."""
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        fine = isinstance(pairs, Sequence) and all(
            isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
        )
        if not fine or len(pairs) != len({pair[0] for pair in pairs}):
            self._faults.append(f"{column.name} must map texts to numbers, each text once")
            return {}
        return {name: self._number(column, _plain(number)) for name, number in pairs}


def _plain(value: Any) -> Any:
    """Numpy's values and DuckDB's bytes as Python's; NaN as None, since tables write an empty cell like that."""
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


_REGION = {
    column.name: column
    for column in (
        Column("x", "whole", 0, MAX_SIDE),
        Column("y", "whole", 0, MAX_SIDE),
        Column("width", "whole", 1, MAX_SIDE),
        Column("height", "whole", 1, MAX_SIDE),
        Column("area", "whole", 1, MAX_PIXELS),
        Column("centroid_x", "number", 0, MAX_SIDE),
        Column("centroid_y", "number", 0, MAX_SIDE),
        Column("peak", "number"),
        Column("below_threshold", "flag"),
    )
}
