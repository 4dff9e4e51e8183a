"""Stores of verdicts made for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_recipe
from predictions import make_prediction

from runtime import FailedFrame, FrameError, Prediction
from runtime.verdict_store import Run, VerdictWriter

CLASSES = ("good", "bridge", "hole")
RECIPE = make_recipe()
RECIPE_SHA256 = RECIPE.sha256()


def make_run(**changes: Any) -> Run:
    """A run of three classes."""
    values: dict[str, Any] = {
        "when": "2026-11-29T03:00:00Z",
        "bundle": "/bundles/metal2",
        "encoder_id": RECIPE.encoder_id,
        "recipe_sha256": RECIPE_SHA256,
        "classes": CLASSES,
        "operating_point": RECIPE.operating_point.to_dict(),
    }
    return Run(**{**values, **changes})


def answer(source: str, chances: tuple[float, ...] = (0.1, 0.7, 0.2), **changes: Any) -> Prediction:
    """A prediction of `make_run` on the frame of a path; the verdict follows the probabilities unless it is given."""
    best = int(np.argmax(chances))
    values: dict[str, Any] = {
        "source": source,
        "path": source,
        "verdict": CLASSES[best],
        "reason": f"{CLASSES[best]} {chances[best]:.3f}",
        "label": CLASSES[best],
        "is_defect": best > 0,
        "confidence": float(chances[best]),
        "probabilities": dict(zip(CLASSES, chances, strict=True)),
        "head_class": CLASSES[best],
        "features": np.linspace(-1, 1, 8, dtype=np.float32),
        "encoder_id": RECIPE.encoder_id,
        "recipe_sha256": RECIPE_SHA256,
        "checksum": 7,
        "pixel_size_nm": (2.0, 3.0),
    }
    return make_prediction(**{**values, **changes})


def failed(source: str, why: str = "is empty") -> FailedFrame:
    return FailedFrame(source, FrameError(source, why))


def write_store(path: Path, results: Iterable[Prediction | FailedFrame], run: Run | None = None) -> Path:
    """A store of these answers; failed frames are of the path that is their source."""
    with VerdictWriter(path, run or make_run()) as writer:
        for result in results:
            writer.add(result, path=None if result.ok else result.source)
    return path
