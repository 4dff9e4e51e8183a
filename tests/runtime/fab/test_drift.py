"""Drift of a lot against calibration: the tests' p values, their false alarms, and what a recipe must keep."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import make_recipe

from runtime.fab.drift import (
    ERROR_RATE,
    KEPT,
    REFERENCE,
    Collector,
    Group,
    find_drift,
    kolmogorov_smirnov,
    more_rejects,
    read_reference,
    reference_record,
)
from runtime.recipe import Recipe


def frames(rng: np.random.Generator, count: int, *, shift: float = 0.0, rejects: float = 0.1) -> dict[str, Group]:
    """`count` frames of two classes, one of them rare."""
    collector = Collector()
    for _ in range(count):
        label = "bridge" if rng.random() < 0.3 else "good"
        score = float(np.clip(rng.normal(0.7 if label == "bridge" else 0.2, 0.1), 0, 1))
        novelty = float(np.clip(rng.gamma(4, 0.05) + shift, 0, 2))
        collector.add(label, score, novelty, "unknown" if rng.random() < rejects else label)
    return collector.groups()


def kept(groups: dict[str, Group], **changes: Any) -> Recipe:
    recipe = make_recipe()
    record = {**reference_record(groups, recipe.operating_point), **changes}
    return replace(recipe, calibration=json.loads(json.dumps({REFERENCE: record})))


def test_p_values_are_those_of_the_textbook_tests() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for a, b in ((30, 20), (200, 50), (200, 1000)):
        x, y = rng.normal(size=a), rng.normal(0.4, size=b)
        assert kolmogorov_smirnov(x, y) == pytest.approx(stats.ks_2samp(x, y, method="asymp").pvalue, rel=0.35)
        assert kolmogorov_smirnov(y, x) == kolmogorov_smirnov(x, y)
        same = rng.normal(size=b)
        assert kolmogorov_smirnov(x, same) == pytest.approx(stats.ks_2samp(x, same, method="asymp").pvalue, abs=0.08)
    for table in ((3, 50, 12, 60), (0, 20, 5, 10), (10, 100, 10, 100), (0, 50, 0, 30), (20, 20, 10, 10)):
        r, n, x, m = table
        expected = stats.fisher_exact([[x, m - x], [r, n - r]], alternative="greater").pvalue
        assert more_rejects(*table) == pytest.approx(expected, rel=1e-6)


def test_equal_samples_and_constant_ones_are_no_change() -> None:
    assert kolmogorov_smirnov([0.5] * 40, [0.5] * 30) == 1
    assert kolmogorov_smirnov([0.5] * 40, [0.6] * 30) < 1e-9
    assert kolmogorov_smirnov([1.0], [2.0]) > 0.05


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Of 600 lots without drift 6 may be called so; more than 15 would be a chance of 1 in 2,000."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(600):
        drift = find_drift(frames(rng, 90), frames(rng, 70))
        assert len(drift.changes) in range(2, 7)
        alarms += bool(drift.alarms)
    assert ERROR_RATE == 0.01
    assert alarms <= 15


def test_a_test_that_cannot_fire_does_not_lower_the_limit_of_the_others() -> None:
    """A recipe without thresholds rejects nothing, so three tests became two; a constant score tells nothing."""
    rng = np.random.default_rng(8)
    drift = find_drift(frames(rng, 100, rejects=0), frames(rng, 300, rejects=0))
    assert [change.what for change in drift.changes] == ["novelty", "score"] * 2
    assert [text.split(": no lot")[0] for text in drift.untested] == ["bridge: rejects", "good: rejects"]
    flat = {"good": replace(frames(rng, 100)["good"], score=np.full(60, 0.5), rejected=0)}
    drift = find_drift(flat, {"good": replace(flat["good"], novelty=flat["good"].novelty + 1)})
    assert [change.what for change in drift.changes] == ["novelty"]
    assert drift.alarms
    constant = {"good": replace(flat["good"], novelty=np.full(60, 0.5))}
    assert "score: no lot with these values" in find_drift(constant, constant).why_not


def test_rejects_that_are_many_enough_to_tell_are_tested() -> None:
    before = Group(40, np.linspace(0, 1, 40), np.linspace(0, 1, 40), 0)
    few, many = (find_drift({"good": replace(before, rejected=count)}, {"good": before}) for count in (3, 12))
    assert "rejects" not in {change.what for change in few.changes}
    assert [change.what for change in many.alarms] == ["rejects"]


@pytest.mark.parametrize(("shift", "least", "most"), [(0.5, 0.05, 0.35), (0.9, 0.55, 0.85), (1.2, 0.9, 1)])
def test_the_shift_that_25_frames_of_calibration_find_is_that_of_the_docs(
    shift: float, least: float, most: float
) -> None:
    """In standard deviations of a normal distribution, with 78 frames in the lot."""
    rng = np.random.default_rng(9)
    found = 0
    for _ in range(300):
        old, new = (np.sort(rng.normal(size=(2, count))) for count in (25, 78))
        drift = find_drift({"good": Group(78, new[0], new[1] + shift, 0)}, {"good": Group(25, old[0], old[1], 0)})
        found += bool(drift.alarms)
    assert least <= found / 300 <= most


@pytest.mark.parametrize(("change", "what"), [({"shift": 0.1}, "novelty"), ({"rejects": 0.5}, "rejects")])
def test_a_real_change_is_found_and_said_with_how_sure_it_is(change: dict[str, float], what: str) -> None:
    rng = np.random.default_rng(2)
    drift = find_drift(frames(rng, 200, **change), read_reference(kept(frames(rng, 300))))
    assert {alarm.what for alarm in drift.alarms} == {what}
    assert drift.alarms[0].p * len(drift.changes) <= ERROR_RATE
    sentence = drift.sentences()[0]
    assert f"{drift.alarms[0].label}: {what}" in sentence
    assert "in calibration" in sentence
    assert "by chance at most 1 of" in sentence
    record = drift.to_dict()
    assert record["drifts"] is True
    assert sum(test["alarm"] for test in record["tests"]) == len(drift.alarms)
    json.dumps(record, allow_nan=False)


def test_another_mix_of_classes_is_no_drift() -> None:
    rng = np.random.default_rng(3)
    reference = frames(rng, 400)
    collector = Collector()
    for _ in range(300):  # all of them bridges
        collector.add("bridge", float(np.clip(rng.normal(0.7, 0.1), 0, 1)), float(rng.gamma(4, 0.05)), "bridge")
    assert find_drift(collector.groups(), reference).alarms == ()


def test_few_frames_are_not_tested_and_named() -> None:
    rng = np.random.default_rng(4)
    drift = find_drift(frames(rng, 9), frames(rng, 400))
    assert drift.changes == ()
    assert "no class has frames enough: " in drift.why_not
    assert drift.to_dict()["drifts"] is None
    lone = Collector()
    for _ in range(30):
        lone.add("hole", 0.5, 0.5, "hole")
    drift = find_drift(lone.groups() | frames(rng, 100), frames(rng, 400))
    assert drift.untested == ("hole: 30 frames here (at least 10 are needed) and 0 in calibration (at least 20)",)


def test_a_lot_without_frames_cannot_be_tested() -> None:
    assert find_drift({}, frames(np.random.default_rng(5), 100)).why_not.endswith("no image was read")


def test_a_reference_passes_through_a_recipe_file() -> None:
    groups = frames(np.random.default_rng(6), 900)
    found = read_reference(Recipe.from_bytes(kept(groups).to_bytes()))
    assert isinstance(found, dict)
    assert found.keys() == groups.keys()
    for label, group in groups.items():
        assert (found[label].frames, found[label].rejected) == (group.frames, group.rejected)
        assert len(group.score) <= KEPT
        np.testing.assert_array_equal(found[label].score, group.score)
        np.testing.assert_array_equal(found[label].novelty, group.novelty)


def test_an_older_recipe_opens_and_says_that_drift_cannot_be_tested() -> None:
    why = read_reference(make_recipe())
    assert isinstance(why, str)
    assert "sem-clip calibrate" in why
    assert find_drift({}, why).why_not == why


def test_an_operating_point_that_was_edited_since_cannot_be_tested() -> None:
    recipe = kept(frames(np.random.default_rng(7), 100))
    assert isinstance(read_reference(recipe), dict)
    edited = replace(recipe, operating_point=replace(recipe.operating_point, pixel_threshold=0.7))
    assert isinstance(read_reference(edited), dict)
    edited = replace(recipe, operating_point=replace(recipe.operating_point, defect_threshold=0.7))
    assert "has changed since calibration" in str(read_reference(edited))


@pytest.mark.parametrize(
    "classes",
    [
        [],
        {"good": 3},
        {"good": {"frames": 3, "rejected": 4, "score": [0.1], "novelty": [0.1]}},
        {"good": {"frames": True, "rejected": 0, "score": [0.1], "novelty": [0.1]}},
        {"good": {"frames": 3, "rejected": 0, "score": [], "novelty": [0.1]}},
        {"good": {"frames": 3, "rejected": 0, "score": ["a"], "novelty": [0.1]}},
        {"good": {"frames": 3, "rejected": 0, "score": [math.nan], "novelty": [0.1]}},
        {"good": {"frames": 3, "rejected": 0, "score": [0.1] * 4, "novelty": [0.1]}},
    ],
)
def test_a_malformed_reference_is_no_error_and_no_guess(classes: Any) -> None:
    recipe = kept({}, classes=classes)
    assert "cannot be read" in str(read_reference(recipe))
