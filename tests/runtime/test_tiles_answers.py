"""Which tile gives the answer of a frame, what the whole view is, and what the engine's batches add up to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe
from numpy.typing import NDArray

from runtime import FakeBackend, FrameOptions, Prediction, Predictor
from runtime.backends import Backend, Outputs
from runtime.pipeline import Pipeline, Setup
from runtime.recipe import Recipe
from runtime.resize import resize

ENCODER = make_encoder()
NATIVE, WHOLE = FrameOptions(tile=64), FrameOptions(tile=64, whole=True)
Levels = Sequence[tuple[float, ...]]


class Planned(Backend):
    """Answers row after row as it is told, and remembers what it was shown.

    levels: of every row of a frame, the value of its map, the first of its features and, if it is not 0.2, P(good). All
        frames get the same.
    """

    name = "planned"
    description = "planned backend: tests"
    max_batch = 4

    def __init__(self, levels: Levels) -> None:
        self.levels = levels
        self.shown: list[NDArray[np.uint8]] = []

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`."""
        told = [self.levels[(len(self.shown) + n) % len(self.levels)] for n in range(len(frames))]
        self.shown += list(frames.copy())
        probabilities = np.tile(np.array([0.2, 0.5, 0.3], np.float32), (len(frames), 1))
        maps = np.zeros((len(frames), *ENCODER.grid), np.float32)
        features = np.zeros((len(frames), ENCODER.features), np.float32)
        for row, (level, feature, *good) in enumerate(told):
            maps[row], features[row, 0] = level, feature
            if good:
                probabilities[row] = good[0], 1 - good[0], 0
        return Outputs(probabilities, maps, features)


def judged(
    bundle: Path, levels: Levels, options: FrameOptions, pixels: NDArray[np.uint8], class_share: float = 0.0
) -> tuple[Prediction, Planned]:
    backend = Planned(levels)
    recipe = make_recipe(frame=options, class_share=class_share)
    with Predictor(bundle, backend=backend, recipe=recipe) as predictor:
        return predictor(pixels), backend


def noise(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 200, size, dtype=np.uint8)


@pytest.mark.parametrize("most", range(6))
def test_score_and_features_are_of_the_most_suspicious_tile(fake_bundle: Path, most: int) -> None:
    """Six tiles in batches of four."""
    levels = [(0.9 if number == most else 0.1, 1.0 + number) for number in range(6)]
    result, backend = judged(fake_bundle, levels, NATIVE, noise((128, 192)))
    assert (result.tiles, len(backend.shown)) == (6, 6)
    assert result.features[0] == 1.0 + most
    assert result.map_score == pytest.approx(0.9)
    assert result.peak == pytest.approx(0.9)
    assert np.isclose(result.patch_map, 0.9).sum() == 16


def test_the_peak_is_the_highest_of_all_tiles(fake_bundle: Path) -> None:
    """Also where another tile, by its class, has the highest score."""
    levels = [(0.5, 1.0, 0.0), (0.6, 2.0, 1.0)] + [(0.1, 3.0)] * 4
    result, _ = judged(fake_bundle, levels, NATIVE, noise((128, 192)), class_share=0.25)
    assert (result.features[0], result.head_class) == (1.0, "bridge")
    assert result.map_score == pytest.approx(0.5)
    assert result.peak == pytest.approx(0.6)


@pytest.mark.parametrize("equal", [(0, 1, 2, 3, 4, 5), (1, 5), (3, 4)])
def test_of_equal_tiles_the_first_gives_the_answer(fake_bundle: Path, equal: tuple[int, ...]) -> None:
    levels = [(0.7 if number in equal else 0.2, 1.0 + number) for number in range(6)]
    result, _ = judged(fake_bundle, levels, NATIVE, noise((128, 192)))
    assert result.features[0] == 1.0 + equal[0]


@pytest.mark.parametrize(("tile", "size"), [(64, (128, 192)), (100, (230, 310)), (40, (70, 90))])
def test_the_whole_view_is_of_the_frame_and_not_of_the_canvas(
    fake_bundle: Path, tile: int, size: tuple[int, int]
) -> None:
    """With ignored rows, which are cut before. The canvas of the latter two is another resize of the frame."""
    options = FrameOptions(ignore_top=7, ignore_bottom=5, tile=tile, whole=True)
    pixels = np.vstack([np.full((7, size[1]), 255, np.uint8), noise(size), np.full((5, size[1]), 255, np.uint8)])
    result, backend = judged(fake_bundle, [(0.1, 1.0)], options, pixels)
    assert len(backend.shown) == result.tiles > 4
    np.testing.assert_array_equal(backend.shown[-1], resize(noise(size), (64, 64)))
    assert not np.array_equal(backend.shown[0], backend.shown[-1])
    if tile != 64:
        canvas = resize(noise(size), result.image_size)
        assert not np.array_equal(resize(canvas, (64, 64)), backend.shown[-1]), "else the test shows nothing"


def test_the_whole_view_can_be_the_most_suspicious(fake_bundle: Path) -> None:
    levels = [*((0.1, 1.0 + number) for number in range(6)), (0.8, 7.0)]
    result, backend = judged(fake_bundle, levels, WHOLE, noise((128, 192)))
    assert (result.tiles, len(backend.shown)) == (7, 7)
    assert (result.features[0], result.is_defect) == (7.0, True)
    np.testing.assert_allclose(result.patch_map, 0.8, atol=1e-6)
    alone, _ = judged(fake_bundle, levels[:-1], NATIVE, noise((128, 192)))
    assert not alone.is_defect


def test_a_defect_that_only_the_whole_view_shows_reaches_every_way_to_call(fake_bundle: Path) -> None:
    frames = [noise((128, 192), seed) for seed in range(3)]
    levels = [*[(0.1, 1.0)] * 6, (0.8, 7.0)]
    with Predictor(fake_bundle, backend=Planned(levels), recipe=make_recipe(frame=WHOLE)) as predictor:
        answers: list[Any] = [*predictor.stream(frames), *predictor.predict(frames)]
        answers += [predictor.submit(one).result() for one in frames]
    assert [(one.is_defect, one.tiles, one.features[0]) for one in answers] == [(True, 7, 7.0)] * 9


def test_the_time_of_a_frame_adds_up_over_its_batches(fake_bundle: Path) -> None:
    """Of 12 tiles in batches of 4: three batches that hold it alone."""
    slow = FakeBackend(ENCODER, max_batch=4, delay_s=0.02)
    pixels = noise((192, 256))
    with Predictor(fake_bundle, backend=slow, recipe=make_recipe(frame=NATIVE), batch_size=4) as predictor:
        answers: list[Any] = [predictor(pixels), *predictor.stream([pixels, pixels]), *predictor.predict([pixels])]
        answers.append(predictor.submit(pixels).result())
    assert set(slow.batches) == {4}
    for answer in answers:
        assert answer.timings_ms["infer"] >= 3 * 20
        assert answer.tiles == 12


def test_a_frame_counts_every_batch_that_held_one_of_its_tiles() -> None:
    """Six tiles a frame, in batches of four: the second batch holds the end of one and the beginning of the next."""
    pipeline, jobs = _prepared(2)
    rows = [row for job in jobs for row in job.rows()]
    answers: list[Prediction] = []
    for number, seconds in enumerate((1.0, 10.0, 100.0)):
        batch = rows[4 * number : 4 * number + 4]
        outputs, _ = pipeline.infer(batch)
        pipeline.hand_out(batch, outputs, seconds)
        answers += pipeline.finish(batch, outputs, seconds)
    assert [answer.timings_ms["infer"] for answer in answers] == [11_000, 110_000]


def test_answers_of_tiles_do_not_lie_in_the_engines_buffers() -> None:
    """An engine may write the next batch where the last one was; and a view would keep the whole batch alive."""
    pipeline, (job,) = _prepared(1)
    (expected,) = pipeline.answer([_prepared(1)[1][0]])
    rows = job.rows()
    found: list[Prediction] = []
    for start in (0, 4):
        batch = rows[start : start + 4]
        outputs, seconds = pipeline.infer(batch)
        pipeline.hand_out(batch, outputs, seconds)
        for values in (outputs.probabilities, outputs.defect_map, outputs.features):
            values[:] = 0.5
        found += pipeline.finish(batch, outputs, seconds)
    (result,) = found
    assert result.patch_map.tobytes() == expected.patch_map.tobytes()
    assert result.features.tobytes() == expected.features.tobytes()
    assert (result.score, dict(result.probabilities)) == (expected.score, dict(expected.probabilities))


def _prepared(frames: int) -> tuple[Pipeline, list[Any]]:
    """A pipeline of batches of four, and frames of six tiles."""
    recipe = make_recipe(frame=NATIVE)
    pipeline = Pipeline(ENCODER, 4.0, FakeBackend(ENCODER, max_batch=4), 4)
    setup = Setup(recipe, recipe.frame)
    return pipeline, [pipeline.prepare(noise((128, 192), seed), setup) for seed in range(frames)]
