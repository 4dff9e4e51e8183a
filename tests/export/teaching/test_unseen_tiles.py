"""export.teaching.unseen_tiles: the tiles that do not teach are judged, and thresholds are of whole frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_recipe
from PIL import Image
from planted import LABELS, QUICK, lesson, plant
from tile_samples import SIZE, TILED, make_sample
from torch import Tensor

from calibration.dataset import load_dataset
from calibration.histogram import ScoreHistogram
from calibration.thresholds import f1_max_threshold
from export.bundle import describe_encoder
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.teach import TeachRequest, encode_request, fit_supports
from export.teaching.fit_recipe import (
    CLASS_SHARE,
    ScoredSupports,
    defect_threshold,
    fit_recipe,
    pixel_threshold_of_tiles,
)
from export.teaching.prompts import load_prompts
from export.teaching.settings import TeachSettings
from export.teaching.support_pixels import DEFECT_TILES, GOOD_TILES
from export.teaching.unseen_tiles import HARD_TILES, JudgedTiles, UnseenTiles
from runtime.recipe import FrameOptions

ENCODER = make_encoder()


class Brightness(SemClipGraph):
    """P(good) falls and the map rises with a frame's brightest pixel."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, frames: Tensor, **recipe: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        bright = frames.float().amax((1, 2)) / 255
        probabilities = torch.stack([1 - bright, bright / 2, bright / 2], 1)
        return probabilities, bright[:, None, None].expand(-1, 4, 4), torch.zeros(len(frames), 1)


def test_the_hardest_tiles_are_taught_and_not_judged_again(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, "hole", "bb", (10, 20, 10, 20)), make_sample(tmp_path, "good", "a", None)]
    pixels = np.random.default_rng(0).integers(0, 50, SIZE).astype(np.uint8)
    pixels[70, 170] = 250
    Image.fromarray(pixels).save(samples[1].path)
    unseen = UnseenTiles(Brightness(), ENCODER, samples, TILED, 0, 1.0)
    tensors = make_recipe().tensors
    before = unseen.judge(tensors)
    assert set(before.frame) == {1}
    hard = unseen.hardest(tensors, 0.25)
    assert [tile.number for tile in hard] == [1] * HARD_TILES
    assert before.map_scores.max() > 0.5, "the bright pixel is not in a tile that was drawn at random"
    assert max(tile.frame.max() for tile in hard) == 250
    after = unseen.judge(tensors)
    assert len(after.frame) == len(before.frame) - HARD_TILES
    for judged in (before, after):
        assert judged.cells.negative.sum() == len(judged.frame) * 16 * 16
        assert not judged.cells.positive.any()
    assert after.map_scores.max() < 0.5


def test_the_threshold_is_of_whole_frames() -> None:
    """More tiles are more chances for a false alarm: a threshold of tiles would call many good frames defects."""
    rng = np.random.default_rng(0)
    frames, tiles = 10, 100

    def scores_of_good_frames(count: int) -> np.ndarray:
        return rng.beta(2, 12, (count, tiles)).astype(np.float32)

    taught = scores_of_good_frames(frames)
    defects = rng.uniform(0.52, 1, frames).astype(np.float32)
    supports = ScoredSupports(
        np.repeat(np.arange(2 * frames), [4] * frames + [1] * frames),
        np.repeat([False, True], [4 * frames, frames]),
        np.concatenate([taught[:, :4].ravel(), defects]),
        np.concatenate([1 - taught[:, :4].ravel(), 1 - defects]),
    )
    rest = taught[:, 4:].ravel()
    unseen = JudgedTiles(np.repeat(np.arange(frames), tiles - 4), rest, 1 - rest, ScoreHistogram())
    of_tiles, of_frames = defect_threshold(supports, 7), defect_threshold(supports.with_good(unseen), 7)
    new = scores_of_good_frames(2000).max(axis=1)
    assert float((new >= of_frames).mean()) < 0.05
    assert float((new >= of_tiles).mean()) > 0.1


def test_without_held_out_heads_the_threshold_is_of_whole_frames_too() -> None:
    supports = ScoredSupports(np.array([0, 1]), np.array([False, True]), np.array([0.1, 0.9], np.float32), None)
    scores, good = np.array([0.2, 0.5], np.float32), np.array([0.5, 0.5], np.float32)
    unseen = JudgedTiles(np.array([0, 0]), scores, good, ScoreHistogram())
    alone = defect_threshold(supports, 2)
    assert defect_threshold(supports.with_good(unseen), 2) == pytest.approx(alone + (1 - CLASS_SHARE) * 0.2, abs=1e-6)


def test_the_pixel_threshold_is_of_whole_frames() -> None:
    """Each frame has far more cells without a defect than the tiles that teach."""
    rng = np.random.default_rng(0)
    good_frames, bad_frames, tiles, side, marked = 4, 8, 50, 400, 10

    def cells(count: int, defect: int) -> np.ndarray:
        return np.concatenate([rng.beta(6, 4, defect), rng.beta(2, 8, count - defect)]).astype(np.float32)

    frame = np.repeat(np.arange(good_frames + bad_frames), [8] * good_frames + [2] * bad_frames)
    defect = frame >= good_frames
    truths = [np.arange(side) < (marked if bad else 0) for bad in defect]
    values = [cells(side, int(truth.sum())) for truth in truths]
    unseen = ScoreHistogram()
    unseen.add(cells(good_frames * (tiles - 8) * side, 0), np.zeros(good_frames * (tiles - 8) * side, bool))
    whole = [cells(tiles * side, marked) for _ in range(bad_frames)] + [cells(good_frames * tiles * side, 0)]
    truth = [np.arange(tiles * side) < marked] * bad_frames + [np.zeros(good_frames * tiles * side, bool)]

    def f1(threshold: float) -> float:
        called, real = np.concatenate(whole) >= threshold, np.concatenate(truth)
        return float(2 * (called & real).sum() / (called.sum() + real.sum()))

    best = f1_max_threshold(np.concatenate(whole), np.concatenate(truth))[1]
    assert f1(pixel_threshold_of_tiles(values, truths, defect, frame, unseen)) > 0.85 * best
    assert f1(f1_max_threshold(np.concatenate(values), np.concatenate(truths))[0]) < 0.6 * best


def test_hard_tiles_teach_and_the_others_are_judged(toy_frames: Path) -> None:
    dataset, shots = load_dataset(toy_frames), 2
    model = load_model("toy", random_seed=0)
    graph = SemClipGraph(model.encoder())
    encoder = describe_encoder(model, graph)
    options, settings = FrameOptions(tile=24, overlap=4), TeachSettings(steps=20)
    request = TeachRequest(dataset, load_prompts(), shots, options=options, settings=settings, views=2)
    encoded = encode_request(model, graph, request, Stages())
    features = encoded.features
    assert encoded.unseen is not None
    assert features.unaugmented.all(), "half of the views for each tile"
    of_good = features.frame[features.labels == 0]
    assert len(of_good) == (GOOD_TILES + HARD_TILES) * shots
    assert len(of_good.unique()) == shots
    assert len(features.frame) == len(of_good) + DEFECT_TILES * 6 * shots
    assert len(features.frame.unique()) == len(encoded.supports)
    recipe = fit_supports(encoded, encoder, Stages())
    assert len(recipe.support_features) == len(features.frame)
    of_tiles = fit_supports(replace(encoded, unseen=None), encoder, Stages()).operating_point
    assert recipe.operating_point.pixel_threshold != of_tiles.pixel_threshold


def test_a_false_alarm_of_a_tile_that_teaches_nothing_raises_both_thresholds() -> None:
    given = lesson(plant(LABELS), settings=replace(QUICK, steps=20))
    taught = fit_recipe(given, FrameOptions()).operating_point
    above = np.array([taught.defect_threshold + 1e-4], np.float32)
    cells = ScoreHistogram()
    cells.add(np.linspace(0, taught.pixel_threshold + 0.02, 5000), np.zeros(5000, bool))

    class OneTile:
        def judge(self, _: object) -> JudgedTiles:
            return JudgedTiles(np.array([LABELS.index(0)]), above, 1 - above, cells)

    stricter = fit_recipe(replace(given, unseen=OneTile()), FrameOptions()).operating_point  # type: ignore[arg-type]
    assert stricter.defect_threshold > taught.defect_threshold
    assert stricter.pixel_threshold > taught.pixel_threshold
