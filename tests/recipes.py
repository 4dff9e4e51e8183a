"""Recipes to change entry by entry, for tests of their reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from conftest import make_recipe
from safetensors.numpy import save

from runtime.errors import RecipeError
from runtime.recipe import (
    METADATA_KEY,
    SUPPORT_FEATURES,
    TENSORS,
    Recipe,
)

HEADER_KEYS = [
    "format",
    "version",
    "encoder_id",
    "classes",
    "operating_point",
    "text",
    "frame",
    "teaching",
    "calibration",
]
POINT_KEYS = [
    "defect_threshold",
    "pixel_threshold",
    "temperature",
    "confidence_thresholds",
    "novelty_threshold",
    "review_disagreement",
    "class_share",
]
STORED = (*TENSORS, SUPPORT_FEATURES)


def header_of(content: bytes) -> dict[str, Any]:
    """The recipe's JSON header, read without the code under test."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA_KEY])
    assert isinstance(header, dict)
    return header


def stored(recipe: Recipe) -> dict[str, Any]:
    """All tensors of its file."""
    return {**recipe.tensors, SUPPORT_FEATURES: recipe.support_features}


def file_of(header: object, tensors: Mapping[str, Any] | None = None) -> bytes:
    """A recipe file with this header, whatever it is worth."""
    text = header if isinstance(header, str) else json.dumps(header)
    return bytes(save(dict(tensors or stored(make_recipe())), metadata={METADATA_KEY: text}))


def changed(path: str, value: object) -> bytes:
    """A good recipe with one header entry replaced; `path` is dotted."""
    header = header_of(make_recipe().to_bytes())
    *outer, key = path.split(".")
    inner = header
    for name in outer:
        inner = inner[name]
    inner[key] = value
    return file_of(header)


def without(path: str) -> bytes:
    """A good recipe with one header entry removed."""
    header = header_of(make_recipe().to_bytes())
    *outer, key = path.split(".")
    inner = header
    for name in outer:
        inner = inner[name]
    del inner[key]
    return file_of(header)


def with_tensors(**changes: Any) -> bytes:
    """A good recipe with tensors replaced, or removed where the value is None."""
    tensors = {name: np.array(array) for name, array in stored(make_recipe()).items()}
    tensors.update(changes)
    kept = {name: array for name, array in tensors.items() if array is not None}
    return file_of(header_of(make_recipe().to_bytes()), kept)


def faults_of(content: bytes) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_bytes(content)
    return caught.value.faults


def safetensors_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data
