"""Engines that are subtly wrong are refused, each with the right reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LinearBackend, make_golden
from numpy.typing import NDArray

from runtime import Predictor
from runtime.agreement import joined
from runtime.backends import Backend, Outputs
from runtime.errors import BackendError
from runtime.golden import Golden, load_golden
from runtime.manifest import Encoder, load_bundle
from runtime.qualification import Check, Subject, qualify
from runtime.recipe import Recipe

Run = Callable[[NDArray[np.uint8], Recipe], Outputs]
SECONDS = 0.01


class Wrong(LinearBackend):
    """The right engine with something done to it."""

    def __init__(self, encoder: Encoder, precision: str = "fp32") -> None:
        super().__init__(encoder)
        self.precision = precision

    def right(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        return super().run(frames, recipe)


class SwappedClass(Wrong):
    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        found = self.right(frames, recipe)
        order = [*range(len(recipe.classes) - 2), len(recipe.classes) - 1, len(recipe.classes) - 2]
        return replace(found, probabilities=found.probabilities[:, order])


class ShiftedMap(Wrong):
    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        found = self.right(frames, recipe)
        return replace(found, defect_map=np.roll(found.defect_map, 1, axis=1))


class OverflowInAMapLayer(Wrong):
    """The logits of one layer go to infinity, and the sigmoid behind it to 0 or 1."""

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        found = self.right(frames, recipe)
        return replace(found, defect_map=(found.defect_map > 0.5).astype(np.float32))


class ClippedFeatures(Wrong):
    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        found = self.right(frames, recipe)
        clipped = found.features.copy()
        clipped[:, :50] = 65504.0
        return replace(found, features=clipped)


class NotANumber(Wrong):
    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        found = self.right(frames, recipe)
        return replace(found, defect_map=np.full_like(found.defect_map, np.nan))


class StaleRecipe(Wrong):
    """Keeps the tensors of the first recipe that it saw of a size."""

    def __init__(self, encoder: Encoder, precision: str = "fp32") -> None:
        super().__init__(encoder, precision)
        self._first: dict[int, Recipe] = {}

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        return self.right(frames, self._first.setdefault(len(recipe.classes), recipe))


class PaddedAtTheFront(Wrong):
    """Fills up to a power of two in front of the frames, and hands out the first rows."""

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        size = 1 << (len(frames) - 1).bit_length()
        padded = np.concatenate([np.repeat(frames[:1], size - len(frames), axis=0), frames])
        found = self.right(padded, recipe)
        count = len(frames)
        return Outputs(found.probabilities[:count], found.defect_map[:count], found.features[:count])


class OneClassTooFew(Wrong):
    """Was built for the classes of one recipe: a class more has no probability."""

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        found = self.right(frames, recipe)
        if len(recipe.classes) <= 3:
            return found
        cut = found.probabilities.copy()
        cut[:, 3:] = 0
        return replace(found, probabilities=cut / cut.sum(1, keepdims=True))


class Unsteady(Wrong):
    def __init__(self, encoder: Encoder, precision: str = "fp32") -> None:
        super().__init__(encoder, precision)
        self._rng = np.random.default_rng(0)

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        found = self.right(frames, recipe)
        noise = self._rng.uniform(-4e-5, 4e-5, found.defect_map.shape).astype(np.float32)
        return replace(found, defect_map=np.clip(found.defect_map + noise, 0, 1))


class Fails(Wrong):
    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        if len(frames) == 8:
            raise BackendError("linear backend: told to fail")
        return self.right(frames, recipe)


def subject(bundle: Path, backend: Backend, **changes: Any) -> Subject:
    manifest, recipe = load_bundle(bundle)
    golden = load_golden(bundle, manifest, recipe)
    return replace(Subject.of(manifest, recipe, golden, backend, (1, 2, 8)), **changes)


def refused(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.said for check in checks if check.passed is False}


def test_the_right_engine_is_qualified(golden_bundle: Path) -> None:
    checks = qualify(subject(golden_bundle, Wrong(load_bundle(golden_bundle)[0].encoder)), SECONDS)
    assert refused(checks) == {}
    by_name = {check.name: check for check in checks}
    assert {"host", "batch 1", "batch 2", "batch 8", "repeats", "recipe swap", "4 threads", "speed"} <= set(by_name)
    assert by_name["one class more"].passed
    assert by_name["one class fewer"].passed
    assert by_name["speed"].figures["engine_ms"]["n"] >= 3
    assert by_name["speed"].figures["end_to_end_frames_per_second"] > 0


@pytest.mark.parametrize(
    ("kind", "precision", "check", "words"),
    [
        (SwappedClass, "fp32", "batch 8", "classes bridge and hole are swapped"),
        (SwappedClass, "int8", "batch 8", "classes bridge and hole are swapped"),
        (ShiftedMap, "fp32", "batch 8", "shifted by 1 patches down and 0 to the right"),
        (ShiftedMap, "fp16", "batch 8", "shifted by 1 patches down"),
        (ShiftedMap, "int8", "batch 8", "shifted by 1 patches down"),
        (OverflowInAMapLayer, "fp16", "batch 8", "of the map is saturated at 0 or 1"),
        (ClippedFeatures, "fp16", "batch 1", "largest number of fp16"),
        (NotANumber, "fp16", "batch 1", "NaN or infinite"),
        (StaleRecipe, "fp32", "recipe swap", "after the swap: the answers are still those of the recipe before"),
        (StaleRecipe, "fp16", "4 threads", "still those of the recipe before"),
        (PaddedAtTheFront, "fp32", "batch 8", "the incomplete last batch, 7 of 8, is wrong: row 1 of"),
        (OneClassTooFew, "fp32", "one class more", "probabilities differ by up to"),
        (Unsteady, "fp32", "repeats", "3 runs of one batch differ by up to"),
        (Fails, "fp32", "batch 8", "told to fail"),
    ],
)
def test_a_wrong_engine_is_refused_with_the_reason(
    golden_bundle: Path, kind: type[Wrong], precision: str, check: str, words: str
) -> None:
    found = refused(qualify(subject(golden_bundle, kind(load_bundle(golden_bundle)[0].encoder, precision)), SECONDS))
    assert words in found[check]


def test_the_right_answers_of_a_wrong_engine_are_not_refused(golden_bundle: Path) -> None:
    encoder = load_bundle(golden_bundle)[0].encoder
    padded = refused(qualify(subject(golden_bundle, PaddedAtTheFront(encoder)), SECONDS))
    assert {"batch 1", "batch 2"} & set(padded) == set()
    stale = refused(qualify(subject(golden_bundle, StaleRecipe(encoder)), SECONDS))
    assert set(stale) == {"recipe swap", "4 threads"}
    few = refused(qualify(subject(golden_bundle, OneClassTooFew(encoder)), SECONDS))
    assert set(few) == {"one class more"}


def test_rounding_of_fp16_is_allowed_in_fp16_alone(golden_bundle: Path) -> None:
    class Rounded(Wrong):
        def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
            found = self.right(frames, recipe)
            return replace(found, defect_map=np.clip(found.defect_map + np.float32(3e-3), 0, 1))

    encoder = load_bundle(golden_bundle)[0].encoder
    assert refused(qualify(subject(golden_bundle, Rounded(encoder, "fp16")), SECONDS)) == {}
    assert (
        "the map differs by up to 3.0e-03"
        in refused(qualify(subject(golden_bundle, Rounded(encoder, "fp32")), SECONDS))["batch 1"]
    )


def test_a_host_that_draws_other_regions_is_refused(golden_bundle: Path) -> None:
    manifest, recipe = load_bundle(golden_bundle)
    golden = load_golden(golden_bundle, manifest, recipe)
    moved = tuple(
        {**verdict, "verdict": "hole" if verdict["verdict"] == "good" else "good"} for verdict in golden.verdicts
    )
    wrong = subject(golden_bundle, Wrong(manifest.encoder), golden=replace(golden, verdicts=moved))
    assert "other verdicts or regions" in refused(qualify(wrong, SECONDS))["host"]


def test_a_change_of_thresholds_skips_verdicts_and_still_compares_numbers(golden_bundle: Path) -> None:
    changed = subject(golden_bundle, Wrong(load_bundle(golden_bundle)[0].encoder), recipe_sha256="0" * 64)
    checks = {check.name: check for check in qualify(changed, SECONDS)}
    assert checks["host"].passed is None
    assert checks["batch 8"].passed


def test_an_engine_of_few_classes_is_not_asked_for_more(golden_bundle: Path) -> None:
    few = subject(golden_bundle, Wrong(load_bundle(golden_bundle)[0].encoder), most_classes=3)
    checks = {check.name: check for check in qualify(few, SECONDS)}
    assert checks["one class more"].passed is None
    assert "3 classes at most" in checks["one class more"].said


def test_large_batches_repeat_the_golden_frames(golden_bundle: Path) -> None:
    backend = Wrong(load_bundle(golden_bundle)[0].encoder)
    backend.max_batch = 32
    checks = {check.name: check for check in qualify(subject(golden_bundle, backend, batches=(1, 32)), SECONDS)}
    assert checks["batch 32"].passed
    assert checks["batch 32"].figures["frames"] == 63


@pytest.mark.parametrize("kind", [SwappedClass, ShiftedMap, OverflowInAMapLayer])
def test_a_predictor_with_check_refuses_a_backend_that_disagrees(golden_bundle: Path, kind: type[Wrong]) -> None:
    backend = kind(load_bundle(golden_bundle)[0].encoder)
    with pytest.raises(BackendError, match="does not give the export's answers to the golden frames"):
        Predictor(golden_bundle, backend=backend, check=True)
    with Predictor(golden_bundle, backend=backend) as predictor:  # without it, nobody looks
        assert predictor(np.zeros((64, 64), np.uint8)).ok


def test_a_predictor_with_check_opens_on_the_right_backend(golden_bundle: Path) -> None:
    with Predictor(golden_bundle, backend=Wrong(load_bundle(golden_bundle)[0].encoder), check=True) as predictor:
        assert predictor(np.zeros((64, 64), np.uint8)).ok


def test_golden_answers_depend_on_frames_and_recipe(golden_bundle: Path) -> None:
    """Or the tests above would not be able to fail."""
    manifest, recipe = load_bundle(golden_bundle)
    golden: Golden = make_golden(LinearBackend(manifest.encoder), manifest.encoder, recipe)
    assert len({answer.tobytes() for answer in golden.answers.probabilities}) == len(golden.frames)
    other = golden.others["reversed"]
    assert np.abs(other.probabilities - golden.answers.probabilities[:4]).max() > 0.3
    assert np.abs(other.defect_map - golden.answers.defect_map[:4]).max() > 0.3
    assert joined([golden.answers]).features.std() > 0
