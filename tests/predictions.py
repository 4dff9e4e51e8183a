"""A made-up `Prediction` and the frame that it is of."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.prediction import Prediction
from runtime.recipe import FrameOptions

SIZE = (90, 120)


def hot_map() -> np.ndarray:
    """Two hot patches, far from each other."""
    patches = np.full((4, 4), 0.1, np.float32)
    patches[1, 1], patches[3, 3] = 1.0, 0.7
    return patches


def make_prediction(**changes: Any) -> Prediction:
    """A defect on a 90 x 120 frame whose text bar (10 rows) is ignored."""
    values: dict[str, Any] = {
        "source": "lot7/frame.png",
        "verdict": "cannot decide",
        "reason": "bridge 0.875 against good 0.125; bridge is decided from 0.900 on",
        "label": "bridge",
        "confidence": 0.875,
        "score": 0.7512345678,
        "probabilities": {"good": 0.125, "bridge": 0.875},
        "head_class": "bridge",
        "map_score": 0.7123456789,
        "peak": 0.987654321,
        "novelty": 0.0123456789,
        "is_defect": True,
        "patch_map": hot_map(),
        "features": np.zeros(8, np.float32),
        "frame_size": SIZE,
        "image_size": (64, 64),
        "ignored_rows": (0, 10),
        "defect_threshold": 0.5,
        "pixel_threshold": 0.5,
        "smoothing_px": 2.0,
        "backend": "fake",
        "timings_ms": {"prepare": 1.23456, "infer": 2.0, "postprocess": 0.1},
        "frame_options": FrameOptions(ignore_bottom=10),
    }
    return Prediction(**{**values, **changes})


def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 180, SIZE, dtype=np.uint8)
