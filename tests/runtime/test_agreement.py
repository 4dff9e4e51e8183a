"""Differences between answers, and the words for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.agreement import Limits, compare, explain, int8_tolerance, joined, rows_of, tolerance_of
from runtime.backends import Outputs
from runtime.targets import PRECISIONS

FP32 = Limits.of("fp32", 1e-4)
NAMES = ("good", "bridge", "hole")


def outputs(frames: int = 5) -> Outputs:
    rng = np.random.default_rng(1)
    raw = rng.uniform(0.1, 1, (frames, 3)).astype(np.float32)
    maps = rng.uniform(0.1, 0.9, (frames, 4, 4)).astype(np.float32)
    return Outputs(raw / raw.sum(1, keepdims=True), maps, rng.standard_normal((frames, 9)).astype(np.float32))


def test_equal_answers_pass_with_no_difference() -> None:
    found = compare(outputs(), outputs(), FP32)
    assert (found.passed, found.probabilities, found.defect_map, found.features) == (True, 0, 0, 0)
    assert (found.frames, found.labels_equal, found.label_ties) == (5, 5, 0)


@pytest.mark.parametrize(("part", "most"), [("probabilities", 1e-4), ("defect_map", 1e-4)])
def test_the_largest_difference_decides_and_the_frame_is_named(part: str, most: float) -> None:
    reference = outputs()
    for size, faulty in ((0.9 * most, ()), (1.2 * most, (2,))):
        values = getattr(reference, part).copy()
        values[2].flat[0] += size
        found = compare(reference, replace(reference, **{part: values}), FP32)
        assert found.faulty == faulty
        assert getattr(found, part) == pytest.approx(size, rel=1e-2)


def test_features_are_measured_against_their_size() -> None:
    reference = outputs()
    for share, passed in ((0.9e-3, True), (1.1e-3, False)):
        changed = replace(reference, features=reference.features * np.float32(1 + share))
        assert compare(reference, changed, FP32).passed is passed


def test_nan_in_any_output_is_refused() -> None:
    reference = outputs()
    for part in ("probabilities", "defect_map", "features"):
        values = getattr(reference, part).copy()
        values[1].flat[0] = np.nan
        assert compare(reference, replace(reference, **{part: values}), FP32).faulty == (1,)


@pytest.mark.parametrize(("gap", "passed"), [(0.0009, True), (0.002, False)])
def test_another_label_passes_where_two_classes_are_almost_equal(gap: float, passed: bool) -> None:
    half = (1 - gap) / 2
    one = replace(outputs(1), probabilities=np.array([[half + gap, half, 0]], np.float32))
    other = replace(one, probabilities=one.probabilities[:, [1, 0, 2]])
    found = compare(one, other, Limits.of("fp16", 1e-2))
    assert (found.passed, found.labels_equal, found.label_ties) == (passed, 0, int(passed))


def test_known_kinds_of_faults_are_named() -> None:
    reference = outputs()
    maps, probabilities = reference.defect_map, reference.probabilities
    cases = {
        "classes good and hole are swapped": replace(reference, probabilities=probabilities[:, [2, 1, 0]]),
        "shifted by 0 patches down and 1 to the right": replace(reference, defect_map=np.roll(maps, 1, axis=2)),
        "shifted by -1 patches down and 0 to the right": replace(reference, defect_map=np.roll(maps, -1, axis=1)),
        "transposed": replace(reference, defect_map=maps.transpose(0, 2, 1)),
        "inverted": replace(reference, defect_map=1 - maps),
        "saturated at 0 or 1": replace(reference, defect_map=np.round(maps)),
        "largest number of fp16": replace(reference, features=np.full_like(reference.features, 65504)),
        "answer to another frame": rows_of(reference, np.array([1, 0, 2, 3, 4])),
        "5 of 5 frames: the map differs by up to 1.0e-02": replace(reference, defect_map=maps + np.float32(0.01)),
    }
    for words, found in cases.items():
        assert words in explain(reference, found, FP32, NAMES)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([], 0.2),
        ([{"measured": False}], 0.2),
        ([{"max_abs_probability": "much", "max_abs_defect_map": float("nan")}], 0.2),
        ([{"max_abs_probability": 0.015, "max_abs_defect_map": 0.037}], 0.111),
        ([{"max_abs_probability": 0.001, "max_abs_defect_map": 0.002}, {"measured": False}], 0.1),
        ([{"max_abs_probability": 0.1}, {"max_abs_defect_map": 0.05}], 0.3),
        ([{"max_abs_probability": 0.9}], 0.5),
    ],
)
def test_the_tolerance_of_8_bits_is_what_quantize_measured_with_a_margin(
    reports: list[dict[str, Any]], expected: float
) -> None:
    assert int8_tolerance(reports, 0.2) == pytest.approx(expected)


def test_answers_of_the_recipe_before_are_named() -> None:
    before, wanted = outputs(), rows_of(outputs(10), slice(5, 10))
    assert "recipe before" in explain(wanted, before, FP32, NAMES, before)
    assert "recipe before" not in explain(wanted, outputs(5), FP32, NAMES, wanted)


def test_batches_are_joined_in_order() -> None:
    whole = outputs()
    again = joined([rows_of(whole, slice(0, 2)), rows_of(whole, slice(2, 5))])
    assert compare(whole, again, FP32).passed


def test_a_large_tolerance_of_8_bits_allows_no_other_class_and_no_other_features() -> None:
    limits = Limits.of("int8", 0.5)
    assert (limits.largest, limits.tie, limits.features) == (0.5, 0.2, 0.4)


def test_the_tolerance_follows_what_an_engine_computes_in() -> None:
    recorded = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.2}
    reports = [("fp32", {"max_abs_probability": 0.4}), ("int8", {"max_abs_probability": 0.06})]
    found = {name: tolerance_of(name, recorded, reports) for name in PRECISIONS}
    expected = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 0.08, "int8": 0.18, "int8-bf16": 0.18}
    assert found == pytest.approx(expected)
    for name, tolerance in found.items():
        assert Limits.of(name, tolerance).largest == tolerance
    assert Limits.of("fp16", 1e-2).features < Limits.of("bf16", 0.08).features < Limits.of("int8", 0.18).features
