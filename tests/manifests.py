"""Manifests to change entry by entry, for tests of their reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_encoder

from runtime.errors import BundleError, RecipeError
from runtime.manifest import (
    Artifact,
    Manifest,
)

GOLDEN = """{
  "format": "sem-clip-bundle",
  "version": 2,
  "encoder": {
    "id": "abababababababababababababababababababababababababababababababab",
    "architecture": "toy",
    "weights": "random, seed 0",
    "trained": false,
    "checkpoint_sha256": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
    "image_size": [64, 64],
    "input_size": [64, 64],
    "patch_size": [16, 16],
    "grid": [4, 4],
    "layers": 4,
    "heads": 2,
    "levels": [1, 2, 3, 4],
    "width": 32,
    "text_dim": 24,
    "features": 385,
    "redundancy": "cls_weight",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "value_path": true
  },
  "artifacts": [
    {
      "file": "engines/model.onnx",
      "kind": "onnx",
      "precision": "fp32",
      "sha256": "efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef",
      "bytes": 15,
      "operators": {"Attention": 8},
      "parity": {"frames": 3, "max_abs_probability": 1e-06},
      "target": {}
    }
  ],
  "recipe": {
    "file": "recipe.safetensors",
    "sha256": "efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef"
  },
  "smoothing_px": 4.0,
  "tools": {"python": "3"},
  "notes": ["made for tests", "é"]
}
"""
MISSING = object()


def golden_manifest() -> Manifest:
    """What GOLDEN says."""
    return Manifest(
        encoder=make_encoder(),
        artifacts=(
            Artifact(
                "engines/model.onnx",
                "onnx",
                "fp32",
                "ef" * 32,
                15,
                {"Attention": 8},
                {"frames": 3, "max_abs_probability": 1e-6},
                {},
            ),
        ),
        recipe_file="recipe.safetensors",
        recipe_sha256="ef" * 32,
        smoothing_px=4.0,
        tools={"python": "3"},
        notes=("made for tests", "é"),
    )


def edit(document: Any, path: str, value: object) -> None:
    """Set, or remove where the value is MISSING, one entry of a JSON document; `path` is dotted."""
    *outer, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in outer:
        document = document[part]
    if value is MISSING:
        del document[last]
    else:
        document[last] = value


def faults_after(path: str, value: object) -> tuple[str, ...]:
    """What is said of the golden manifest with one entry changed."""
    document = json.loads(GOLDEN)
    edit(document, path, value)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document), where="here.json")
    assert caught.value.where == "here.json"
    assert not isinstance(caught.value, RecipeError)
    return caught.value.faults


def edit_bundle(folder: Path, path: str, value: object) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    edit(document, path, value)
    (folder / "manifest.json").write_text(json.dumps(document))


def paths_of(document: Any, prefix: str = "") -> list[str]:
    """The dotted path of every entry that the format fixes; what reports hold is free."""
    free = ("operators", "parity", "target", "tools", "notes")
    found: list[str] = []
    for key, value in document.items():
        found.append(prefix + key)
        if isinstance(value, dict) and key not in free:
            found += paths_of(value, f"{prefix}{key}.")
        if key == "artifacts":
            found += paths_of(value[0], f"{prefix}{key}.0.")
    return found


def named(path: str) -> str:
    """How messages call an entry: artifacts.0.kind is manifest.artifacts[0].kind."""
    return "manifest." + path.replace(".0.", "[0].")


ALL_PATHS = paths_of(json.loads(GOLDEN))
