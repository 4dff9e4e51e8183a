"""Drift of a whole lot: said on stderr, in the summary and in the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_recipe
from lots import LotCase, make_case

from runtime import Predictor, Recipe
from runtime.fab.drift import REFERENCE, Collector, reference_record

pytest.importorskip("pyarrow")
Capture = pytest.CaptureFixture[str]


def calibrated(case: LotCase, shift: float) -> Recipe:
    """A recipe calibrated on frames like those of the lot, whose scores were lower by `shift`."""
    frames, recipe = Collector(), make_recipe()
    with Predictor(case.bundle, backend="fake") as predictor:
        for page in range(1, 101):
            answer = predictor(f"{case.lot.parent / 'stack1.tif'}#{page}")
            frames.add(answer.label, max(0.0, answer.score - shift), answer.novelty, answer.verdict)
    return replace(recipe, calibration={REFERENCE: reference_record(frames.groups(), recipe.operating_point)})


@pytest.mark.parametrize(("shift", "drifts"), [(0.0, False), (0.1, True)])
def test_a_lot_is_compared_with_the_recipes_calibration(
    tmp_path: Path, shift: float, drifts: bool, capsys: Capture
) -> None:
    case = make_case(tmp_path, 300)
    calibrated(case, shift).save(tmp_path / "calibrated.safetensors")
    assert case.run("--recipe", tmp_path / "calibrated.safetensors") == 0
    err = capsys.readouterr().err
    summary = json.loads((case.out / "lot7.klarf.lot.json").read_text())
    report = (case.out / "lot7.klarf.html").read_text()
    assert summary["drift"]["drifts"] is drifts
    assert {test["class"] for test in summary["drift"]["tests"]} == {"good", "bridge", "hole"}
    assert ("warning: lot L7 drifts: " in err) is drifts
    assert ("\ndrift: lot L7 drifts (" in err) is drifts
    assert ("\ndrift: none seen at these counts of frames (3 tests)" in err) is not drifts
    assert ("score is higher than in calibration" in report) is drifts
    assert ("score is higher than in calibration" in err) is drifts


def test_an_older_recipe_says_that_drift_cannot_be_tested(tmp_path: Path, capsys: Capture) -> None:
    case = make_case(tmp_path)
    assert case.run() == 0
    assert "drift: cannot be tested: the recipe keeps no scores of calibration frames" in capsys.readouterr().err
    assert json.loads((case.out / "lot7.klarf.lot.json").read_text())["drift"]["drifts"] is None
