"""runtime.operating_point: reading and writing; that a hand-edited one changes verdicts and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, make_encoder, make_recipe

from runtime import FakeBackend, Predictor
from runtime.jsonfields import Fields
from runtime.operating_point import OperatingPoint, is_verdict, same_name_key

POINT = OperatingPoint(0.25, 0.75, 1.5, {"good": 0.5, "bridge": 0.0, "hole": 1.0}, 0.125, True)


def test_what_is_written_is_read() -> None:
    faults: list[str] = []
    for point in (POINT, replace(POINT, novelty_threshold=None)):
        assert OperatingPoint.read(Fields(point.to_dict(), "point", faults), CLASSES) == point
    assert faults == []


def test_all_faults_are_listed() -> None:
    assert replace(POINT, pixel_threshold=-1.0, novelty_threshold=3.0).faults(("good", "crack")) == [
        "operating_point.novelty_threshold must lie in [0, 2], not 3",
        "operating_point.pixel_threshold must lie in [0, 1], not -1",
        "operating_point.confidence_thresholds.crack is missing",
        "operating_point.confidence_thresholds.bridge is not a class of this recipe",
        "operating_point.confidence_thresholds.hole is not a class of this recipe",
    ]


def test_names_that_are_verdicts() -> None:
    assert all(is_verdict(name) for name in ("unknown", "Unknown ", "CANNOT DECIDE"))
    assert not any(is_verdict(name) for name in ("good", "unknowns", "cannot"))


class RandomBackend(FakeBackend):
    """Probabilities, maps and features that differ from frame to frame."""

    def run(self, frames, recipe):  # type: ignore[no-untyped-def]
        outputs = super().run(frames, recipe)
        for row, frame in enumerate(frames):
            rng = np.random.default_rng(frame[0, :4])
            outputs.probabilities[row] = rng.dirichlet(np.ones(len(recipe.classes)))
            outputs.defect_map[row] = rng.random(outputs.defect_map[row].shape)
            outputs.features[row] = rng.standard_normal(outputs.features[row].shape)
        return outputs


@pytest.mark.parametrize(
    "changes",
    [
        {"defect_threshold": 0.999},
        {"pixel_threshold": 0.9},
        {"temperature": 3.0},
        {"confidence_thresholds": {"good": 0.9, "bridge": 0.6, "hole": 0.0}},
        {"novelty_threshold": 0.8},
        {"review_disagreement": True},
        {"class_share": 0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_operating_point_changes_verdicts_and_nothing_else(
    fake_bundle: Path, changes: dict[str, object]
) -> None:
    rng = np.random.default_rng(0)
    frames = list(rng.integers(0, 256, (40, 64, 64), dtype=np.uint8))
    with Predictor(fake_bundle, backend=RandomBackend(make_encoder())) as predictor:
        before = predictor.predict(frames)
        predictor.use(make_recipe(**changes))
        after = predictor.predict(frames)
    for old, new in zip(before, after, strict=True):
        assert old.patch_map.tobytes() == new.patch_map.tobytes()
        assert old.features.tobytes() == new.features.tobytes()
        assert (old.head_class, old.map_score, old.peak, old.novelty) == (
            new.head_class,
            new.map_score,
            new.peak,
            new.novelty,
        )
        assert [k for k, _ in sorted(old.probabilities.items(), key=lambda item: item[1])] == [
            k for k, _ in sorted(new.probabilities.items(), key=lambda item: item[1])
        ]
        if "temperature" not in changes:
            assert old.probabilities == new.probabilities

    def judged(results: list) -> list:  # type: ignore[type-arg]
        return [(r.verdict, r.reason, r.is_defect, r.mask().sum()) for r in results]

    assert judged(before) != judged(after)


@pytest.mark.parametrize(("name", "twin"), [("g\u043eod", "good"), ("\u0421r\u0430ck", "crack"), ("h\u03bfle", "Hole")])
def test_letters_that_look_alike_make_no_second_name(name: str, twin: str) -> None:
    assert same_name_key(name) == same_name_key(twin)
    assert same_name_key("\u0434\u044b\u0440\u0430") != same_name_key("hole")
