"""export.teaching.support_pixels and unseen_tiles: which tiles teach, and which are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_recipe
from PIL import Image
from tile_samples import SIZE, TILED, make_sample
from torch import Tensor

from calibration.dataset import load_dataset
from calibration.errors import DatasetError
from export.model.graph import SemClipGraph
from export.teaching.fit_recipe import CLASS_SHARE, ScoredSupports, defect_threshold
from export.teaching.support_pixels import DEFECT_TILES, GOOD_TILES, MOST_OF_DEFECT, other_tiles, read_supports
from export.teaching.unseen_tiles import HARD_TILES, JudgedTiles, UnseenTiles
from runtime import Predictor
from runtime.cli import main
from runtime.recipe import FrameOptions, Recipe
from runtime.windows import lay_out

ENCODER = make_encoder()


@pytest.mark.parametrize("box", [(20, 30, 20, 30), (200, 212, 280, 292), (120, 136, 60, 70), (100, 110, 0, 320)])
def test_the_tiles_of_a_defect_hold_it(tmp_path: Path, box: tuple[int, int, int, int]) -> None:
    sample = make_sample(tmp_path, "hole", "a", box)
    tiles = read_supports([sample], ENCODER, TILED, seed=0)
    assert len(tiles) == DEFECT_TILES
    held = [float(tile.cover.sum()) for tile in tiles if tile.cover is not None]
    mask = np.asarray(Image.open(sample.mask)) > 0 if sample.mask else None
    layout = lay_out(SIZE, ENCODER, TILED, "a")
    assert layout is not None
    assert mask is not None
    most = max(mask[r * 16 : r * 16 + 64, c * 16 : c * 16 + 64].sum() for r, c in layout.corners)
    assert held[0] == pytest.approx(most, rel=1e-6)
    assert min(held) >= MOST_OF_DEFECT * most
    for tile in tiles:
        assert tile.frame.shape == (64, 64)
        assert (tile.frame[tile.cover > 0.5] == 240).all()
    assert len({tile.frame.tobytes() for tile in tiles}) == DEFECT_TILES


def test_a_defect_in_the_corner_may_have_one_tile(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "hole", "a", (0, 12, 0, 12))
    assert len(read_supports([sample], ENCODER, TILED, seed=0)) == 1


def test_k_counts_frames(tmp_path: Path) -> None:
    samples = [
        make_sample(tmp_path, "good", "a", None),
        make_sample(tmp_path, "hole", "bb", (20, 30, 20, 30)),
        make_sample(tmp_path, "good", "ccc", None, size=(60, 60)),
    ]
    tiles = read_supports(samples, ENCODER, TILED, seed=0)
    assert [tile.number for tile in tiles] == [0] * GOOD_TILES + [1] * DEFECT_TILES + [2]
    assert [tile.label for tile in tiles] == ["good"] * GOOD_TILES + ["hole"] * DEFECT_TILES + ["good"]
    whole = read_supports(samples, ENCODER, replace(TILED, whole=True), seed=0)
    assert [tile.number for tile in whole] == [0] * (GOOD_TILES + 1) + [1] * (DEFECT_TILES + 1) + [2]


def test_tiles_depend_on_seed_and_pixels_only(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, "good", "a", None), make_sample(tmp_path, "hole", "bb", (10, 20, 10, 20))]
    content = [tile.frame.tobytes() for tile in read_supports(samples, ENCODER, TILED, seed=3)]
    turned = [tile.frame.tobytes() for tile in read_supports(samples[::-1], ENCODER, TILED, seed=3)]
    assert sorted(content) == sorted(turned)
    assert sorted(content) != sorted(tile.frame.tobytes() for tile in read_supports(samples, ENCODER, TILED, seed=4))


def test_other_tiles_are_the_rest_of_a_good_frame(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "good", "a", None)
    taught = {tile.frame.tobytes() for tile in read_supports([sample], ENCODER, TILED, seed=0)}
    others = {tile.frame.tobytes() for tile in other_tiles(sample, 0, ENCODER, TILED, seed=0)}
    layout = lay_out(SIZE, ENCODER, TILED, "a")
    assert layout is not None
    assert len(taught) + len(others) == len(layout.corners)
    assert not taught & others


def test_a_defect_without_a_mask_is_refused(tmp_path: Path) -> None:
    sample = replace(make_sample(tmp_path, "hole", "a", (10, 20, 10, 20)), mask=None)
    with pytest.raises(DatasetError, match=r"has no mask.*with --tile none"):
        read_supports([sample], ENCODER, TILED, seed=0)
    assert len(read_supports([sample], ENCODER, FrameOptions(), seed=0)) == 1


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
    pixels[100, 200] = 250
    Image.fromarray(pixels).save(samples[1].path)
    unseen = UnseenTiles(Brightness(), ENCODER, samples, TILED, 0, 1.0)
    tensors = make_recipe().tensors
    before = unseen.judge(tensors)
    assert set(before.frame) == {1}
    hard = unseen.hardest(tensors, 0.25)
    assert [tile.number for tile in hard] == [1] * HARD_TILES
    if before.map_scores.max() > 0.5:  # not among the tiles that were drawn at random
        assert max(tile.frame.max() for tile in hard) == 250
    after = unseen.judge(tensors)
    assert len(after.frame) < len(before.frame)
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
    unseen = JudgedTiles(np.repeat(np.arange(frames), tiles - 4), rest, 1 - rest)
    of_tiles, of_frames = defect_threshold(supports, 7), defect_threshold(supports.with_good(unseen), 7)
    new = scores_of_good_frames(2000).max(axis=1)
    assert float((new >= of_frames).mean()) < 0.05
    assert float((new >= of_tiles).mean()) > 0.1


def test_without_held_out_heads_the_threshold_is_of_whole_frames_too() -> None:
    supports = ScoredSupports(np.array([0, 1]), np.array([False, True]), np.array([0.1, 0.9], np.float32), None)
    unseen = JudgedTiles(np.array([0, 0]), np.array([0.2, 0.5], np.float32), np.array([0.5, 0.5], np.float32))
    alone = defect_threshold(supports, 2)
    assert defect_threshold(supports.with_good(unseen), 2) == pytest.approx(alone + (1 - CLASS_SHARE) * 0.2, abs=1e-6)


@pytest.mark.slow
def test_teach_and_predict_by_tiles(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["teach", str(toy_bundle), "--data", str(toy_frames), "--shots", "2", "--views", "2"]
    words += ["--support-cache", "none", "--out", str(tmp_path / "tiled.safetensors")]
    assert main([*words, "--tile", "native", "--tile-overlap", "16"]) == 0
    said = capsys.readouterr().err
    assert "tiles of 64 pixels that overlap by 16" in said
    assert "search good frames for hard tiles" in said
    recipe = Recipe.load(tmp_path / "tiled.safetensors")
    assert recipe.frame == FrameOptions(tile=64, overlap=16)
    assert recipe.teaching["shots"] == 2
    assert len(recipe.teaching["supports"]) == 14
    with Predictor(toy_bundle, backend="cpu", recipe=recipe) as predictor:
        sample = load_dataset(toy_frames).samples[0]
        assert predictor(sample.path).tiles == 4
    capsys.readouterr()
    words[-1] = str(tmp_path / "other.safetensors")
    assert main([*words, "--tile-overlap", "16"]) == 2
    assert "add --tile" in capsys.readouterr().err
    assert main([*words, "--tile", "32", "--tile-overlap", "32"]) == 2
    assert "--tile-overlap must be smaller than tile" in capsys.readouterr().err
