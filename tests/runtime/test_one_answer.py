"""One frame, one answer: on generated and real frames no verdict contradicts `is_defect`, `label` or `regions`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.bounds import exact_ceil, exact_floor
from calibration.rules import DEFECT_RULES, Rule
from calibration.scoring import Scored
from calibration.thresholds import choose_defect_threshold
from runtime import OperatingPoint, Prediction, Predictor
from runtime.operating_point import VERDICTS

CHANGES = {
    "as taught": {},
    "map out of reach": {"pixel_threshold": 1.0},
    "all defects": {"defect_threshold": 0.0, "pixel_threshold": 0.9},
    "rejects": {"novelty_threshold": 0.3, "review_disagreement": True},
    "head alone": {"class_share": 1.0, "defect_threshold": 0.5},
}


def contradictions(result: Prediction, classes: tuple[str, ...]) -> list[str]:
    """What of a result cannot be true at once."""
    written, marked = result.to_dict(), result.mask()
    holds = {
        "the verdict is a class or a reject": result.verdict in (*classes, *VERDICTS),
        "a verdict that is a class is the label": result.verdict in (result.label, *VERDICTS),
        "the label says what is_defect says": (result.label != "good") == result.is_defect,
        "the score says what is_defect says": (result.score >= result.defect_threshold) == result.is_defect,
        "a defect has a region, a good frame none": bool(result.regions) == result.is_defect,
        "regions and mask are the same pixels": sum(region.area for region in result.regions) == marked.sum(),
        "only a map below its threshold has a peak's region": all(
            region.below_threshold == (not result.mask(result.pixel_threshold).any()) for region in result.regions
        ),
        "score and threshold in the JSON say what is_defect says": (
            (written["score"] >= written["defect_threshold"]) == result.is_defect
        ),
        "the JSON says the same": (written["verdict"], written["is_defect"], len(written["regions"]))
        == (result.verdict, result.is_defect, len(result.regions)),
    }
    return [what for what, true in holds.items() if not true]


def judge_all(bundle: Path, frames: Iterable[Path], changes: dict[str, object]) -> list[Prediction]:
    with Predictor(bundle, backend="cpu", threads=1) as predictor:
        recipe = predictor.recipe
        predictor.use(replace(recipe, operating_point=replace(recipe.operating_point, **changes)))  # type: ignore[arg-type]
        results = list(predictor.stream(frames))
        for result in results:
            assert isinstance(result, Prediction)
            assert contradictions(result, recipe.classes) == []
    return results  # type: ignore[return-value]


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_no_verdict_on_generated_frames_contradicts_itself(
    toy_bundle: Path, toy_frames: Path, changes: dict[str, object]
) -> None:
    results = judge_all(toy_bundle, sorted((toy_frames / "images").rglob("*.png")), changes)
    assert len(results) == 28
    if "defect_threshold" in changes and not changes.get("class_share"):
        assert all(result.is_defect for result in results)
    if changes.get("pixel_threshold") == 1.0:
        assert all(region.below_threshold for result in results for region in result.regions)


@pytest.mark.parametrize("name", ["emps-particles", "magnetic-tile", "nanofiber-sem"])
def test_no_verdict_on_real_frames_contradicts_itself(toy_bundle: Path, shared: Path, name: str) -> None:
    frames = sorted((shared / "data" / name / "images").rglob("*.png"))
    assert len(frames) >= 50
    judge_all(toy_bundle, frames, {})


@pytest.mark.parametrize("rule", [name for name in DEFECT_RULES if name != "f1-max"])
@pytest.mark.parametrize("rejects", [False, True])
def test_what_a_rule_promises_of_the_calibration_set_its_verdicts_keep(rule: str, rejects: bool) -> None:
    share = 0.9 if rule == "good-quantile" else 0.1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = tuple(rng.choice(["good", "bridge", "hole"], 200).tolist())
        score = np.clip(rng.normal([0.4 if label == "good" else 0.6 for label in labels], 0.2), 0, 1)
        scored = Scored(
            ("good", "bridge", "hole"), labels, rng.dirichlet([1, 1, 1], 200).astype(np.float32), score, rng.random(200)
        )
        threshold = choose_defect_threshold(Rule(rule, share), score, scored.defect).value
        point = OperatingPoint.taught(scored.classes, threshold, 0.5)
        if rejects:
            point = replace(point, novelty_threshold=0.7, confidence_thresholds=dict.fromkeys(scored.classes, 0.3))
        verdicts, truth = np.array(scored.verdicts(point)), np.array(labels)
        wrong = {
            "max-underkill": (verdicts == "good") & (truth != "good"),
        }.get(rule, ~np.isin(verdicts, ("good", *VERDICTS)) & (truth == "good"))
        among = int(((truth != "good") if rule == "max-underkill" else (truth == "good")).sum())
        allowed = among - exact_ceil(share, among) if rule == "good-quantile" else exact_floor(share, among)
        assert wrong.sum() <= allowed
        name = "underkill" if rule == "max-underkill" else "overkill"
        assert scored.summary(point)[name]["count"] == wrong.sum()  # type: ignore[index]
        if not rejects and rule != "conformal":
            assert wrong.sum() == allowed
