"""The manifest as text: text that is damaged, hostile, contradicts itself or is too long."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import GOLDEN, faults_after

from runtime.errors import BundleError
from runtime.manifest import (
    Manifest,
    load_bundle,
)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0\0\0\0",
        b"{",
        b"not JSON",
        b"\xff\xfe\xfd",
        b'{"format": "\xe9"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"version": ' + b"9" * 5000 + b"}",
        GOLDEN.encode()[:-10],
    ],
    ids=["empty", "zeros", "open", "words", "bytes", "latin-1", "deep list", "deep object", "long number", "cut"],
)
def test_text_that_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: is not readable JSON \("):
        Manifest.from_json(text)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"manifest"', "NaN"])
def test_json_that_is_not_an_object_is_one_fault(text: str) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text)
    (fault,) = caught.value.faults
    assert fault.startswith("manifest must be an object, not ")


def test_no_damaged_byte_raises_anything_but_bundle_errors() -> None:
    content = GOLDEN.encode()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        try:
            Manifest.from_json(bytes(damaged))
        except BundleError:
            refused += 1
    assert refused > 150  # the others hit spaces, notes, or the digit of a number


def test_a_name_that_stands_twice_is_a_fault(fake_bundle: Path) -> None:
    path = fake_bundle / "manifest.json"
    path.write_text(path.read_text().replace('"smoothing_px"', '"smoothing_px": 900, "smoothing_px"'))
    with pytest.raises(BundleError, match='"smoothing_px" appears twice'):
        load_bundle(fake_bundle)


def test_a_report_with_a_number_that_json_has_not_is_a_fault(fake_bundle: Path) -> None:
    """It could be read, and then never be written again."""
    path = fake_bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["artifacts"][0]["parity"] = {"max_abs_probability": float("nan")}
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"artifacts\[0\].parity holds a number that is not finite"):
        load_bundle(fake_bundle)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"image_size": [1, 1]}, "image_size must be grid x patch_size, [64, 64], not [1, 1]"),
        ({"patch_size": [8, 16]}, "image_size must be grid x patch_size, [32, 64], not [64, 64]"),
        ({"grid": [4, 5]}, "image_size must be grid x patch_size, [64, 80], not [64, 64]"),
        (
            {"grid": [1024, 1024], "image_size": [16384, 16384]},
            "image_size must not be more than 4,194,304 pixels, not 16384 x 16384",
        ),
        ({"input_size": [16384, 16384]}, "input_size must not be more than 100,000,000 pixels, not 16384 x 16384"),
        ({"levels": [1, 2, 4, 3]}, "levels must rise, not [1, 2, 4, 3]"),
        ({"levels": [1, 2, 2, 4]}, "levels must rise, not [1, 2, 2, 4]"),
        ({"levels": [1, 2, 3, 5]}, "levels must not go beyond layer 4, the last, not [1, 2, 3, 5]"),
        ({"layers": 3}, "levels must not go beyond layer 3, the last, not [1, 2, 3, 4]"),
        ({"heads": 3}, "heads must divide the width of 32, not 3"),
        ({"features": 384}, "features must be 3 x levels x width + 1, 385, not 384"),
        ({"std": [0.25, 0, 0.25]}, "std must be positive, not [0.25, 0.0, 0.25]"),
        ({"std": [0.25, -1, 0.25]}, "std must be positive, not [0.25, -1.0, 0.25]"),
    ],
)
def test_a_geometry_that_contradicts_itself_is_refused(changes: dict[str, Any], fault: str) -> None:
    document = json.loads(GOLDEN)
    document["encoder"] |= changes
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert caught.value.faults == (f"manifest.encoder.{fault}",)


def test_smoothing_wider_than_the_picture_is_refused() -> None:
    says = "manifest.smoothing_px must not be more than 8, an eighth of the image's shorter side"
    assert faults_after("smoothing_px", 8.1) == (says,)


@pytest.mark.parametrize("twin", ["engines/model.onnx", "recipe.safetensors"])
def test_a_file_that_is_named_twice_is_refused(twin: str) -> None:
    document = json.loads(GOLDEN)
    document["artifacts"].append(document["artifacts"][0] | {"file": twin})
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert caught.value.faults == (f"manifest.artifacts must name every file once, not {twin} again",)


def many(count: int) -> dict[str, int]:
    return {f"key {number}": number for number in range(count)}


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("artifacts", [1] * 65, "manifest.artifacts must hold at most 64 entries, not 65"),
        ("notes", ["x"] * 101, "manifest.notes must hold at most 100 entries, not 101"),
        ("notes", ["x" * 5000], "manifest.notes must not hold texts of more than 4,096 characters"),
        ("encoder.weights", "x" * 5000, "manifest.encoder.weights must not be longer than 4,096 characters, not 5,000"),
        ("artifacts.0.operators", {"Add": 2**63}, "manifest.artifacts[0].operators holds a number that is larger than"),
        ("artifacts.0.parity", {"a": [{"b": 10**400}]}, "manifest.artifacts[0].parity holds a number that is larger"),
        ("tools", {"python": 3}, "manifest.tools must give a text for each tool"),
        ("artifacts.0.target", {"a": [1] * 600_000}, "is not readable JSON (it holds more than 500,000 values)"),
        ("tools", many(200_000), "manifest.tools must give a text for each tool"),
        ("artifacts.0.parity", {"a": nested(40)}, "is not readable JSON (it is nested deeper than 32)"),
        ("notes", ["\ud800"], "is not readable JSON (a text holds half a surrogate pair)"),
        ("tools", {"\udfff": "1"}, "is not readable JSON (a text holds half a surrogate pair)"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_content_beyond_the_limits_of_a_manifest_is_refused(path: str, value: object, fault: str) -> None:
    assert any(found.startswith(fault) for found in faults_after(path, value))


@pytest.mark.parametrize(
    "text",
    [
        '{"artifacts": [' + "1," * 1_900_000 + "1]}",
        "{" + ",".join(f'"a{number}": 1' for number in range(300_000)) + "}",
        "{" + '"a": 1,' * 500_000 + '"a": 1}',
        "{" + ",".join(f'"a{number % 100_000}": 1' for number in range(300_000)) + "}",
        '{"a": ' + "9" * 4_000_000 + "}",
        '{"a": "' + "\\ud83d" * 600_000 + '"}',
        "[" + "{}," * 1_300_000 + "{}]",
        '{"' + "x" * 4_000_000 + '": 1}',
    ],
    ids=["artifacts", "keys", "equal keys", "pairs of keys", "digits", "surrogates", "objects", "a long key"],
)
def test_four_megabytes_of_anything_are_refused_quickly_and_briefly(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text)
    assert time.process_time() - begun < 20
    assert len(str(caught.value)) < 20_000


def test_the_first_faults_are_listed_and_the_others_counted() -> None:
    document = json.loads(GOLDEN) | many(250)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert len(caught.value.faults) == 101
    assert caught.value.faults[-1] == "and 150 more"
