"""Parquet files of made-up answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from predictions import make_prediction

from runtime import Prediction
from runtime.parquet import parquet_rows


def answers(count: int, **changes: Any) -> list[Prediction]:
    random = np.random.default_rng(5)
    return [
        make_prediction(
            source=f"lot/{number}.png",
            patch_map=random.random((3, 4), np.float32),
            features=random.standard_normal(5).astype(np.float32),
            score=float(random.random()),
            **changes,
        )
        for number in range(count)
    ]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    with parquet_rows(path) as add:
        for row in rows:
            add(row)
    return path


def rewritten(file: Path, change: Any) -> Path:
    """The file after a change of its table."""
    import pyarrow.parquet as pq

    pq.write_table(change(pq.read_table(file)), file)
    return file
