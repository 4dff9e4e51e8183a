"""The side file of a lot as Parquet. Needs pyarrow: pip install "sem-clip[parquet]"."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ..files import OutputFile
from ..maps import SIZES_NM
from ..parquet import import_pyarrow

SCHEMA_VERSION = "1"
ROW_GROUP = 2000
"""Defects and images that are written together; one defect may have 200,000 images."""


def lot_schema() -> Any:
    """The `pyarrow.Schema` of side files: one row a defect, with the names of the JSON lines.

    Raises BackendUnavailable without pyarrow.
    """
    pa = import_pyarrow()
    text, number, whole = pa.string(), pa.float64(), pa.int64()
    image = pa.struct(
        [
            *((name, text) for name in ("image", "type", "verdict", "label")),
            *((name, number) for name in ("score", "novelty")),
            ("warnings", pa.list_(text)),
            ("error", text),
        ]
    )
    columns = [
        *((name, text) for name in ("lot", "wafer", "slot")),
        *((name, whole) for name in ("defect_id", "test")),
        *((name, text) for name in ("verdict", "reason")),
        *((name, whole) for name in ("code", "manual")),
        ("label", text),
        *((name, number) for name in ("confidence", "score", "novelty")),
        ("probabilities", pa.map_(text, number)),
        ("image", text),
        *((name, number) for name in ("x_nm", "y_nm", *SIZES)),
        ("images", pa.list_(image)),
        *((name, text) for name in ("encoder_id", "recipe_sha256")),
    ]
    return pa.schema(columns, {"sem_clip.lot_schema": SCHEMA_VERSION})


SIZES = ("pixel_width_nm", "pixel_height_nm", *SIZES_NM)
"""The size of a pixel of the deciding image, and of its strongest region."""


class LotRows:
    """Writes rows to a file in groups, so that any number of them takes little memory."""

    def __init__(self, out: OutputFile) -> None:
        self._pa = import_pyarrow()
        self._schema = lot_schema()
        self._rows: list[Mapping[str, Any]] = []
        self._held = 0
        self._writer = self._pa.parquet.ParquetWriter(_Sink(out), self._schema, compression="zstd")

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one defect."""
        self._rows.append(record)
        self._held += 1 + len(record["images"])
        if self._held >= ROW_GROUP:
            self._write()

    def finish(self) -> None:
        """Write what is left, and the file's end."""
        if self._rows:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(self._pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._held = [], 0


class _Sink(io.RawIOBase):
    """What Arrow writes to."""

    def __init__(self, out: OutputFile) -> None:
        self._out = out

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: Any) -> int:
        """All of it."""
        self._out.write(content)
        return len(content)
