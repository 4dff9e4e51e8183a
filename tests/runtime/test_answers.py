"""What an engine answers is checked before anyone sees it, and small misses by rounding are mended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from gated import PATIENCE, frame, number_of

from runtime import (
    BackendError,
    FakeBackend,
    Outputs,
    Predictor,
)
from runtime import pipeline as pipeline_module


class BrokenBackend(FakeBackend):
    """Of a frame whose first pixel is 7, one of the answers is NaN."""

    def __init__(self, spoilt: str) -> None:
        super().__init__(make_encoder())
        self.spoilt = spoilt

    def run(self, frames: Any, recipe: Any) -> Any:
        outputs = super().run(frames, recipe)
        getattr(outputs, self.spoilt)[frames[:, 0, 0] == 7] = np.nan
        return outputs


@pytest.mark.parametrize("spoilt", ["probabilities", "defect_map", "features"])
def test_a_nan_answer_raises_a_backend_error(spoilt: str, fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend=BrokenBackend(spoilt)) as predictor:
        assert number_of(predictor(frame(6))) == 6
        with pytest.raises(BackendError, match=rf"fake backend.*: {spoilt} of frame\[1\] is NaN or infinite"):
            predictor.predict([frame(6), frame(7), frame(8)])
        answered = []
        with pytest.raises(BackendError, match=r"without an answer: frame\[8\]") as caught:
            answered.extend(predictor.stream(frame(number if number < 7 else 7) for number in [*range(7), 1, 7, 1]))
        assert caught.value.unanswered[0] == "frame[8]"


class Lying(FakeBackend):
    """Answers as told, from the second frame on."""

    def __init__(self, lie: Callable[[Outputs], Any]) -> None:
        super().__init__(make_encoder())
        self.lie = lie

    def run(self, frames: Any, recipe: Any) -> Any:
        outputs = super().run(frames, recipe)
        return self.lie(outputs) if len(frames) > 1 else outputs


def second_row(values: Any, row: Any) -> Any:
    values[1] = row
    return values


LIES: dict[str, tuple[Callable[[Outputs], Any], str]] = {
    "sum": (
        lambda out: replace(out, probabilities=second_row(out.probabilities, [0.5, 0.5, 0.5])),
        r"the probabilities of frame\[1\] sum to 1.5, not to 1",
    ),
    "negative": (
        lambda out: replace(out, probabilities=second_row(out.probabilities, [-0.5, 0.5, 1])),
        r"probabilities of frame\[1\]: -0.5 to 1, not within \[0, 1\]",
    ),
    "map": (
        lambda out: replace(out, defect_map=second_row(out.defect_map, 3)),
        r"defect_map of frame\[1\]: 3 to 3, not within \[0, 1\]",
    ),
    "infinite": (
        lambda out: replace(out, features=second_row(out.features, np.inf)),
        r"features of frame\[1\] is NaN or infinite",
    ),
    "class": (
        lambda out: replace(out, probabilities=out.probabilities[:, :2]),
        r"probabilities: float32 \[3, 2\], not float32 \[3, 3\]",
    ),
    "frame": (
        lambda out: replace(out, features=out.features[:1]),
        r"features: float32 \[1, 385\], not float32 \[3, 385\]",
    ),
    "grid": (
        lambda out: replace(out, defect_map=out.defect_map.reshape(3, 16)),
        r"defect_map: float32 \[3, 16\], not float32 \[3, 4, 4\]",
    ),
    "type": (
        lambda out: replace(out, features=out.features.astype(object)),
        r"features: object \[3, 385\], not float32",
    ),
    "list": (lambda out: replace(out, probabilities=out.probabilities.tolist()), "probabilities: list, not an array"),
    "masked": (
        lambda out: replace(out, defect_map=np.ma.masked_greater(out.defect_map, 0.5)),
        "defect_map: MaskedArray, not an array",
    ),
    "precision": (
        lambda out: replace(out, features=out.features.astype(np.longdouble)),
        r"features: \w+ \[3, 385\], not float32",
    ),
    "huge": (
        lambda out: replace(out, features=second_row(out.features, 1e30)),
        r"features of frame\[1\] are of a size at which float32 has no direction left",
    ),
    "tiny": (
        lambda out: replace(out, features=second_row(out.features, -1e-30)),
        r"features of frame\[1\] are of a size at which float32 has no direction left",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_invalid_answer_raises_a_backend_error(lie: str, fake_bundle: Path) -> None:
    told, message = LIES[lie]
    with (
        Predictor(fake_bundle, backend=Lying(told), batch_size=3) as predictor,
        pytest.raises(BackendError, match=message),
    ):
        predictor.predict([frame(0), frame(1), frame(2)])


def test_rounding_of_half_precision_is_no_fault(fake_bundle: Path) -> None:
    def rounded(out: Outputs) -> Outputs:
        return replace(
            out, probabilities=out.probabilities * np.float32(1.004), defect_map=out.defect_map + np.float32(0.002)
        )

    with Predictor(fake_bundle, backend=Lying(rounded)) as predictor:
        assert len(predictor.predict([frame(0), np.full((64, 64), 255, np.uint8)])) == 2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_misses_0_and_1_by_rounding_is_judged_as_0_and_1(temperature: float, tmp_path: Path) -> None:
    """A probability below 0 has no logarithm, and one above 1 makes a score below 0."""

    def rounded(out: Outputs) -> Outputs:
        probabilities = np.tile(np.array([1.006, -0.006, 0], np.float32), (len(out.probabilities), 1))
        return replace(out, probabilities=probabilities, defect_map=out.defect_map * 0)

    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(temperature=temperature, class_share=0.5))
    with Predictor(bundle, backend=Lying(rounded)) as predictor:
        for answer in predictor.predict([frame(0), frame(1)]):
            assert (answer.verdict, answer.score, answer.confidence) == ("good", 0.0, 1.0)
            assert dict(answer.probabilities) == {"good": 1.0, "bridge": 0.0, "hole": 0.0}


def test_answers_are_taken_within_their_range_and_in_float32(fake_bundle: Path) -> None:
    def rounded(out: Outputs) -> Outputs:
        probabilities = second_row(out.probabilities.astype(np.float64), [1.004, -0.004, 0])
        return replace(out, probabilities=probabilities, defect_map=out.defect_map.astype(np.float64) - 0.002)

    point = replace(make_recipe().operating_point, defect_threshold=0.0, class_share=1.0, temperature=2.0)
    with Predictor(fake_bundle, backend=Lying(rounded), recipe=replace(make_recipe(), operating_point=point)) as p:
        result = p.predict([frame(0), np.zeros((64, 64), np.uint8)])[1]
    assert (result.score, result.is_defect, result.label) == (0.0, True, "bridge")
    assert list(result.probabilities.values()) == [1.0, 0.0, 0.0]
    assert (result.patch_map.dtype, result.patch_map.min()) == (np.float32, 0)


def test_a_defect_in_a_frame_of_one_pixel_has_a_region(fake_bundle: Path) -> None:
    def ring(out: Outputs) -> Outputs:
        defect_map = np.full_like(out.defect_map, 0.9)
        defect_map[:, 1:-1, 1:-1] = 0.1
        return replace(out, defect_map=defect_map)

    point = replace(make_recipe().operating_point, defect_threshold=0.0, pixel_threshold=1.0)
    with Predictor(fake_bundle, backend=Lying(ring), recipe=replace(make_recipe(), operating_point=point)) as p:
        result = p.predict([np.zeros((1, 1), np.uint8), frame(0)])[0]
    assert [(region.area, region.below_threshold) for region in result.regions] == [(1, True)]
    assert result.mask().tolist() == [[True]]


def test_predictions_that_find_no_memory_are_a_typed_error(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(pipeline_module, "summarize", short)
    with Predictor(fake_bundle, backend="fake") as predictor:
        for ask in (
            lambda: predictor(frame(0)),
            lambda: list(predictor.stream([frame(0)])),
            lambda: predictor.submit(frame(0)).result(PATIENCE),
        ):
            with pytest.raises(BackendError, match="no memory is left for a batch of 1"):
                ask()
