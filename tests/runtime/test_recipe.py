"""Recipes: written, read, made, and the format that is pinned."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_recipe
from recipes import HEADER_KEYS, POINT_KEYS, STORED, file_of, header_of, stored, without
from safetensors import safe_open
from safetensors.numpy import load

from runtime.errors import BundleError, RecipeError
from runtime.operating_point import OperatingPoint
from runtime.recipe import (
    METADATA_KEY,
    SCALARS,
    TENSORS,
    FrameOptions,
    Recipe,
)


def test_a_saved_recipe_loads_with_all_it_held(tmp_path: Path) -> None:
    recipe = make_recipe(
        defect_threshold=0.25,
        pixel_threshold=0.75,
        text="tower",
        frame=FrameOptions(3, 64, 4095),
        confidence_thresholds={"good": 0.5, "bridge": 0.25, "hole": 0.0},
        temperature=1.75,
        novelty_threshold=0.3,
        review_disagreement=True,
        calibration={"defect_threshold": {"rule": "f1-max", "f1": 0.9}},
        teaching={"shots": 5, "support": ["a.png", "b.png"], "nested": {"é": [1.5, None, True]}},
    )
    path = tmp_path / "new folder" / "recipe.safetensors"
    recipe.save(path)
    loaded = Recipe.load(path)
    for name in ("classes", "encoder_id", "operating_point", "text", "frame", "teaching", "calibration"):
        assert getattr(loaded, name) == getattr(recipe, name), name
    assert list(header_of(path.read_bytes())["operating_point"]) == POINT_KEYS
    np.testing.assert_array_equal(loaded.support_features, recipe.support_features)
    assert set(loaded.tensors) == set(TENSORS)
    for name, array in recipe.tensors.items():
        assert loaded.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(loaded.tensors[name], array)


def test_equal_recipes_give_equal_bytes() -> None:
    first = make_recipe().to_bytes()
    assert {make_recipe().to_bytes() for _ in range(20)} == {first}
    assert Recipe.from_bytes(first).to_bytes() == first
    assert make_recipe(defect_threshold=0.51).to_bytes() != first


def test_class_names_of_any_alphabet_survive() -> None:
    classes = ("good", "Brücke", "断线", 'a "quoted" name')
    assert Recipe.from_bytes(make_recipe(classes).to_bytes()).classes == classes


def test_the_format_is_pinned() -> None:
    content = make_recipe().to_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + length])
    assert set(outer) == {"__metadata__", *STORED}
    assert list(outer["__metadata__"]) == ["sem_clip_recipe"]
    text = outer["__metadata__"]["sem_clip_recipe"]
    assert text.startswith('{"format": "sem-clip-recipe", "version": 2, "encoder_id": ')
    assert list(json.loads(text)) == HEADER_KEYS
    assert json.loads(text) == {
        "format": "sem-clip-recipe",
        "version": 2,
        "encoder_id": "ab" * 32,
        "classes": ["good", "bridge", "hole"],
        "operating_point": {
            "defect_threshold": 0.5,
            "pixel_threshold": 0.5,
            "temperature": 1.0,
            "confidence_thresholds": {"good": 0.0, "bridge": 0.0, "hole": 0.0},
            "novelty_threshold": None,
            "review_disagreement": False,
            "class_share": 0.0,
        },
        "text": "anchors",
        "frame": {"ignore_top": 0, "ignore_bottom": 0, "white_level": 65535},
        "teaching": {"seed": 0},
        "calibration": {},
    }
    shapes = {
        "text_seg": [2, 24],
        "text_cls": [3, 24],
        "transform_weight": [4, 32, 24],
        "transform_bias": [4, 24],
        "memory": [4, 128, 32],
        "memory_scale": [4, 2],
        "head_weight": [3, 385],
        "head_bias": [3],
        "scalars": [6],
        "support_features": [4, 385],
    }
    assert {name: (outer[name]["dtype"], outer[name]["shape"]) for name in STORED} == {
        name: ("F32", shape) for name, shape in shapes.items()
    }
    assert SCALARS == ("alpha", "lambda_v", "lambda_m", "tau", "tau_v", "tau_s")


def test_other_safetensors_readers_can_read_it(tmp_path: Path) -> None:
    recipe = make_recipe()
    recipe.save(tmp_path / "r.safetensors")
    with safe_open(tmp_path / "r.safetensors", framework="numpy") as file:
        assert set(file.metadata()) == {METADATA_KEY}
    tensors = load(recipe.to_bytes())
    np.testing.assert_array_equal(tensors["head_weight"], recipe.tensors["head_weight"])


def test_a_recipe_written_by_hand_loads() -> None:
    tensors = {
        "text_seg": np.eye(2, 4, dtype=np.float32),
        "text_cls": np.eye(2, 4, dtype=np.float32),
        "transform_weight": np.ones((1, 3, 4), np.float32),
        "transform_bias": np.zeros((1, 4), np.float32),
        "memory": np.zeros((1, 128, 3), np.float32),
        "memory_scale": np.array([[0, 1]], np.float32),
        "head_weight": np.zeros((2, 3), np.float32),
        "head_bias": np.array([0, 1], np.float32),
        "scalars": np.array([1, 0, 0, 2, 3, 4], np.float32),
        "support_features": np.array([[3, 0, 4], [0, 0, 0]], np.float32),
    }
    header = (
        '{"version": 2, "format": "sem-clip-recipe", "classes": ["good", "bad"], "encoder_id": "x", "text": "tower",'
        ' "operating_point": {"pixel_threshold": 0, "defect_threshold": 1, "novelty_threshold": 2,'
        ' "review_disagreement": true, "confidence_thresholds": {"bad": 1, "good": 0.5}, "temperature": 100},'
        ' "teaching": {}, "calibration": {},'
        ' "frame": {"white_level": 1, "ignore_bottom": 2, "ignore_top": 1}}'
    )
    recipe = Recipe.from_bytes(file_of(header, tensors))
    assert recipe.classes == ("good", "bad")
    assert recipe.frame == FrameOptions(ignore_top=1, ignore_bottom=2, white_level=1)
    assert recipe.operating_point == OperatingPoint(1.0, 0.0, 100.0, {"good": 0.5, "bad": 1.0}, 2.0, True)
    np.testing.assert_allclose(recipe.unit_supports, [[0.6, 0, 0.8], [0, 0, 0]], rtol=1e-6)
    assert recipe.tensors["head_bias"].tolist() == [0, 1]


@pytest.mark.parametrize("loaded", [False, True], ids=["taught", "loaded"])
def test_tensors_of_a_recipe_cannot_be_written(loaded: bool) -> None:
    recipe = make_recipe()
    recipe = Recipe.from_bytes(recipe.to_bytes()) if loaded else recipe
    for array in (*stored(recipe).values(), recipe.unit_supports):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(
    ("name", "array", "fault"),
    [
        ("head_bias", np.zeros(3), "tensor head_bias must be float32, not float64"),
        ("head_bias", np.zeros(3, ">f4"), "tensor head_bias must be float32, not >f4"),
        ("head_bias", np.zeros(4, np.float32), "tensor head_bias has shape [4], expected [3]"),
        ("scalars", np.full(6, np.nan, np.float32), "tensor scalars holds values that are not finite"),
    ],
)
def test_a_recipe_cannot_be_made_of_wrong_tensors(name: str, array: Any, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(tensors={**make_recipe().tensors, name: array})
    assert fault in caught.value.faults


def test_a_recipe_cannot_be_made_with_a_wrong_operating_point() -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(defect_threshold=1.5, temperature=-1.0, confidence_thresholds={"good": 0.0})
    assert caught.value.faults == (
        "operating_point.defect_threshold must lie in [0, 1], not 1.5",
        "operating_point.temperature must lie in [0.01, 100], not -1",
        "operating_point.confidence_thresholds.bridge is missing",
        "operating_point.confidence_thresholds.hole is missing",
    )


def test_saving_replaces_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "recipe.safetensors"
    make_recipe().save(path)
    make_recipe(defect_threshold=0.1).save(path)
    assert Recipe.load(path).operating_point.defect_threshold == 0.1
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_recipe_errors_are_bundle_errors() -> None:
    with pytest.raises(BundleError):
        Recipe.from_bytes(b"")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", None),
        ("classes", ("good", 1)),
        ("tensors", [1]),
        ("tensors", {"text_seg": 1}),
        ("support_features", [[1.0]]),
        ("encoder_id", 5),
        ("operating_point", {"defect_threshold": 0.5}),
        ("operating_point", replace(make_recipe().operating_point, confidence_thresholds=None)),  # type: ignore[arg-type]
        ("text", "poem"),
        ("frame", {"ignore_top": 5}),
        ("teaching", 5),
        ("calibration", None),
    ],
)
def test_a_field_of_another_type_is_a_typed_error(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"{field} is not what it must be"):
        replace(make_recipe(), **{field: value})  # type: ignore[arg-type]


def test_an_invalid_path_or_content_is_a_typed_error() -> None:
    with pytest.raises(RecipeError, match="must be read from a path, not 5"):
        Recipe.load(5)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="must be bytes, not str"):
        Recipe.from_bytes("x")  # type: ignore[arg-type]


def test_a_recipe_from_before_there_was_a_share_has_the_map_alone_in_its_score() -> None:
    assert Recipe.from_bytes(without("operating_point.class_share")).operating_point.class_share == 0
