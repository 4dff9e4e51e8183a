"""Recipes: every fault of header, tensors and classes is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import make_recipe
from recipes import (
    HEADER_KEYS,
    POINT_KEYS,
    STORED,
    changed,
    faults_of,
    file_of,
    header_of,
    safetensors_of,
    stored,
    with_tensors,
    without,
)
from safetensors.numpy import save

from runtime.errors import RecipeError
from runtime.recipe import (
    MAX_CLASSES,
    METADATA_KEY,
    VERSION,
    Recipe,
)


@pytest.mark.parametrize(
    "key",
    [
        *HEADER_KEYS[1:],
        "frame.ignore_top",
        "frame.ignore_bottom",
        "frame.white_level",
        *(f"operating_point.{key}" for key in POINT_KEYS[:-1]),  # the share came later, and is 0 where it is missing
        "operating_point.confidence_thresholds.hole",
    ],
)
def test_a_missing_header_entry_is_named(key: str) -> None:
    assert f"recipe.{key} is missing" in faults_of(without(key))


@pytest.mark.parametrize("key", ["colour", "frame.colour", "operating_point.colour"])
def test_an_unknown_header_entry_is_named(key: str) -> None:
    assert faults_of(changed(key, 1)) == (f"recipe.{key} is not known to this version",)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("version", "1", 'recipe.version must be a whole number, not the string "1"'),
        ("version", True, "recipe.version must be a whole number, not bool True"),
        ("encoder_id", 7, "recipe.encoder_id must be a string, not int 7"),
        ("encoder_id", "", "recipe.encoder_id must not be empty"),
        ("classes", "good", 'recipe.classes must be a list, not the string "good"'),
        ("classes", ["good", 1, "hole"], "recipe.classes must be a list of strings"),
        ("operating_point", None, "recipe.operating_point must be an object, not NoneType None"),
        ("calibration", [], "recipe.calibration must be an object, not list []"),
        ("text", "images", 'recipe.text must be "tower" or "anchors", not "images"'),
        ("text", "", "recipe.text must not be empty"),
        ("frame", [0, 0], "recipe.frame must be an object, not list [0, 0]"),
        ("frame.ignore_top", -1, "recipe.frame.ignore_top must lie in [0, 1000000], not -1"),
        ("frame.ignore_bottom", 1.5, "recipe.frame.ignore_bottom must be a whole number, not float 1.5"),
        ("frame.white_level", 0, "recipe.frame.white_level must lie in [1, 65535], not 0"),
        ("frame.white_level", 65536, "recipe.frame.white_level must lie in [1, 65535], not 65536"),
        ("teaching", "none", 'recipe.teaching must be an object, not the string "none"'),
    ],
)
def test_a_wrong_header_entry_is_named_with_its_value(key: str, value: object, fault: str) -> None:
    assert fault in faults_of(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("defect_threshold", "0.5", 'must be a finite number, not the string "0.5"'),
        ("defect_threshold", None, "must be a finite number, not NoneType None"),
        ("defect_threshold", True, "must be a finite number, not bool True"),
        ("defect_threshold", float("nan"), "must be a finite number, not float nan"),
        ("defect_threshold", -0.01, "must lie in [0, 1], not -0.01"),
        ("pixel_threshold", 1.01, "must lie in [0, 1], not 1.01"),
        ("pixel_threshold", float("inf"), "must be a finite number, not float inf"),
        ("pixel_threshold", 10**400, "must be a finite number, not int 1" + "0" * 39),
        ("temperature", 0, "must lie in [0.01, 100], not 0"),
        ("temperature", None, "must be a finite number, not NoneType None"),
        ("novelty_threshold", -1, "must lie in [0, 2], not -1"),
        ("novelty_threshold", "none", 'must be a finite number, not the string "none"'),
        ("review_disagreement", 1, "must be true or false, not int 1"),
        ("confidence_thresholds", 0.5, "must be an object, not float 0.5"),
        ("confidence_thresholds.hole", 1.5, "must lie in [0, 1], not 1.5"),
        ("confidence_thresholds.crack", 0.5, "is not a class of this recipe"),
    ],
)
def test_a_wrong_entry_of_the_operating_point_is_named_with_its_value(key: str, value: object, fault: str) -> None:
    assert faults_of(changed(f"operating_point.{key}", value)) == (f"recipe.operating_point.{key} {fault}",)


@pytest.mark.parametrize("version", [3, 99, 10**400])
def test_a_newer_recipe_asks_for_a_newer_reader(version: int) -> None:
    (fault,) = faults_of(changed("version", version))
    assert fault == f"has format version {version}, this reader knows up to 2: update sem-clip"


@pytest.mark.parametrize("version", [-1, 0, 1])
def test_an_older_recipe_asks_to_be_taught_again(version: int) -> None:
    (fault,) = faults_of(changed("version", version))
    assert fault == f"has format version {version}, this reader takes {VERSION}: teach it again"


@pytest.mark.parametrize("name", ["sem-clip-bundle", "", None, 3])
def test_another_format_is_refused_before_anything_else(name: object) -> None:
    assert faults_of(changed("format", name)) == (f'has the format "{name}", expected "sem-clip-recipe"',)


@pytest.mark.parametrize("name", STORED)
def test_a_missing_tensor_is_named(name: str) -> None:
    assert faults_of(with_tensors(**{name: None})) == (f"tensor {name} is missing",)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", STORED)
def test_a_tensor_that_is_not_finite_is_named(name: str, value: float) -> None:
    array = np.array(stored(make_recipe())[name])
    array.flat[-1] = value
    assert f"tensor {name} holds values that are not finite" in faults_of(with_tensors(**{name: array}))


@pytest.mark.parametrize(
    ("name", "shape", "fault"),
    [
        ("text_seg", (3, 24), "tensor text_seg has shape [3, 24], expected [2, C]"),
        ("text_cls", (2, 24), "tensor text_cls has shape [2, 24], expected [3, 24]"),
        ("transform_weight", (4, 768), "tensor transform_weight has shape [4, 768], expected [m, D, 24]"),
        ("transform_bias", (3, 24), "tensor transform_bias has shape [3, 24], expected [4, 24]"),
        ("head_weight", (4, 385), "tensor head_weight has shape [4, 385], expected [3, F]"),
        ("head_bias", (3, 1), "tensor head_bias has shape [3, 1], expected [3]"),
        ("memory", (4, 100, 32), "tensor memory has shape [4, 100, 32], expected [4, 128, 32]"),
        ("memory_scale", (4, 1), "tensor memory_scale has shape [4, 1], expected [4, 2]"),
        ("memory_scale", (4,), "tensor memory_scale has shape [4], expected [4, 2]"),
        ("scalars", (5,), "tensor scalars has shape [5], expected [6]"),
        ("scalars", (), "tensor scalars has shape [], expected [6]"),
        ("support_features", (4, 64), "tensor support_features has shape [4, 64], expected [S, 385]"),
        ("support_features", (0, 385), "tensor support_features holds no support"),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_named(name: str, shape: tuple[int, ...], fault: str) -> None:
    assert fault in faults_of(with_tensors(**{name: np.ones(shape, np.float32)}))


@pytest.mark.parametrize(("dtype", "stored"), [(np.float64, "F64"), (np.float16, "F16"), (np.int32, "I32")])
def test_a_tensor_of_the_wrong_type_is_named(dtype: type, stored: str) -> None:
    assert f"tensor head_bias must be F32, not {stored}" in faults_of(with_tensors(head_bias=np.zeros(3, dtype)))


def test_an_unknown_tensor_is_named() -> None:
    assert faults_of(with_tensors(extra=np.zeros(1, np.float32))) == ("tensor extra is not known to this version",)


@pytest.mark.parametrize(
    ("scalars", "fault"),
    [
        ([-0.1, 1, 1, 1, 1, 1], "alpha must lie in [0, 1], not -0.1"),
        ([1.5, 1, 1, 1, 1, 1], "alpha must lie in [0, 1], not 1.5"),
        ([1, -2, 1, 1, 1, 1], "lambda_v must not be negative, not -2"),
        ([1, 1, -3, 1, 1, 1], "lambda_m must not be negative, not -3"),
        ([1, 1, 1, 0, 1, 1], "tau must be positive, not 0"),
        ([1, 1, 1, 1, -3, 1], "tau_v must be positive, not -3"),
        ([1, 1, 1, 1, 1, -4], "tau_s must be positive, not -4"),
    ],
)
def test_a_scalar_out_of_range_is_named(scalars: list[float], fault: str) -> None:
    assert faults_of(with_tensors(scalars=np.array(scalars, np.float32))) == (fault,)


@pytest.mark.parametrize("spread", [0.0, -1.0])
def test_a_memory_scale_without_spread_is_named(spread: float) -> None:
    scale = np.array([[0.5, 0.1], [0.5, 0.1], [0.5, spread], [0.5, 0.1]], np.float32)
    assert faults_of(with_tensors(memory_scale=scale)) == ("memory_scale holds a spread that is not positive",)


@pytest.mark.parametrize(
    ("classes", "fault"),
    [
        (("bridge", "good", "hole"), 'classes must begin with "good"'),
        (("good", "hole", "hole"), "classes holds one name twice"),
        (("good", "unknown"), 'no class may be called "unknown": that is a verdict'),
        (("good", " Cannot Decide"), 'no class may be called " Cannot Decide": that is a verdict'),
        (("good",), "classes must be 2 to 64, not 1"),
        ((), "classes must be 2 to 64, not 0"),
        (("good", *(f"c{i}" for i in range(64))), "classes must be 2 to 64, not 65"),
    ],
    ids=["good not first", "twice", "unknown", "cannot decide", "one", "none", "65"],
)
def test_wrong_class_lists_are_refused_when_made_and_when_read(classes: tuple[str, ...], fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(classes)
    assert fault in caught.value.faults
    assert fault in faults_of(changed("classes", list(classes)))


@pytest.mark.parametrize("count", [2, MAX_CLASSES])
def test_the_fewest_and_the_most_classes_are_accepted(count: int) -> None:
    classes = ("good", *(f"c{i}" for i in range(1, count)))
    assert Recipe.from_bytes(make_recipe(classes).to_bytes()).classes == classes


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    header = header_of(make_recipe().to_bytes())
    header |= {"text": "images", "colour": "red", "classes": ["bad", "x", "x"]}
    header["frame"]["white_level"] = -1
    header["operating_point"] |= {"defect_threshold": 2, "confidence_thresholds": {"bad": 0, "x": 2}}
    del header["operating_point"]["pixel_threshold"]
    tensors = {name: np.array(array) for name, array in stored(make_recipe()).items()}
    tensors["head_weight"][0, 0] = np.nan
    tensors["text_seg"] = np.zeros((5, 24), np.float32)
    tensors["scalars"][3] = -1
    tensors["odd"] = np.zeros(1, np.float32)
    del tensors["head_bias"]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(file_of(header, tensors))
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert set(caught.value.faults) == {
        "recipe.operating_point.defect_threshold must lie in [0, 1], not 2",
        "recipe.operating_point.confidence_thresholds.x must lie in [0, 1], not 2",
        'recipe.text must be "tower" or "anchors", not "images"',
        "recipe.colour is not known to this version",
        "recipe.frame.white_level must lie in [1, 65535], not -1",
        "recipe.operating_point.pixel_threshold is missing",
        "classes holds one name twice",
        'classes must begin with "good"',
        "tensor head_weight holds values that are not finite",
        "tensor text_seg has shape [5, 24], expected [2, C]",
        "tensor odd is not known to this version",
        "tensor head_bias is missing",
        "tau must be positive, not -1",
    }
    assert len(caught.value.faults) == len(set(caught.value.faults))
    message = str(caught.value)
    assert message.startswith(f"{path}: 13 faults:\n")
    assert all(f"\n  - {fault}" in message for fault in caught.value.faults)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\ud800", "\x1b[31m"])
def test_a_class_that_no_report_could_show_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"no class may be called .*: it cannot be printed"):
        make_recipe(("good", name))


def test_a_header_entry_that_stands_twice_is_a_fault() -> None:
    recipe = make_recipe()
    text = json.dumps(header_of(recipe.to_bytes())).replace('"text":', '"text": "tower", "text":')
    content = save(stored(recipe), {METADATA_KEY: text})
    assert faults_of(content) == ('"text" appears twice',)


def test_a_record_with_a_number_that_json_has_not_is_a_fault() -> None:
    """It could be read, and then never be written again."""
    assert faults_of(changed("teaching", {"loss": float("nan")})) == (
        "recipe.teaching holds a number that is not finite, which JSON does not allow",
    )


@pytest.mark.parametrize("shape", [[0] * 100, [0, 2**62, 2**62], [0, 2**40]])
def test_shapes_that_no_array_has_are_named(shape: list[int]) -> None:
    content = with_tensors(head_bias=None)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    header["head_bias"] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end]}
    faults = faults_of(safetensors_of(json.dumps(header).encode(), content[8 + length :]))
    assert any("head_bias" in fault or "is not a readable safetensors file" in fault for fault in faults)


@pytest.mark.parametrize("size", [1e20, 1e16, 1e-12, 1e-30])
def test_supports_whose_direction_is_lost_in_float32_are_refused(size: float) -> None:
    """Their squares overflow or vanish, and then every frame is as novel as can be."""
    features = make_recipe().support_features
    with pytest.raises(RecipeError, match="a size at which float32 has no direction left"):
        make_recipe(support_features=features * np.float32(size))
    for sound in (1e12, 1e-6):
        unit = make_recipe(support_features=features * np.float32(sound)).unit_supports
        np.testing.assert_allclose(unit, make_recipe().unit_supports, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("twin", ["Hole", "hole ", "HOLE", "Line  break", "\u00e9tch", "e\u0301tch"])
def test_classes_that_people_would_take_for_one_are_refused(twin: str) -> None:
    classes = ("good", "hole", "line break", "e\u0301tch" if twin == "\u00e9tch" else "\u00e9tch", twin)
    with pytest.raises(RecipeError, match="classes holds names that differ in case, blanks or Unicode form alone"):
        make_recipe(classes)
