"""export.teaching.support_pixels and unseen_tiles: which tiles teach, and which are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_encoder
from PIL import Image
from tile_samples import SIZE, TILED, make_sample

from calibration.dataset import load_dataset
from calibration.errors import DatasetError
from export.teaching.support_pixels import DEFECT_TILES, GOOD_TILES, MOST_OF_DEFECT, other_tiles, read_supports
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


def test_a_defect_whose_mask_lies_in_ignored_rows_is_refused(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "hole", "a", (10, 20, 10, 20))
    with pytest.raises(DatasetError, match="has no mask that shows a defect in the rows that count"):
        read_supports([sample], ENCODER, replace(TILED, ignore_top=20), seed=0)
    assert read_supports([sample], ENCODER, FrameOptions(ignore_top=20), seed=0)[0].cover is None


@pytest.mark.parametrize("whole", [False, True])
def test_ignored_rows_are_cut_from_frame_and_mask(tmp_path: Path, whole: bool) -> None:
    box, name = (140, 150, 60, 70), "a"
    sample = make_sample(tmp_path, "hole", name, box, (300, 320))
    (tmp_path / "cut").mkdir()
    cut = make_sample(tmp_path / "cut", "hole", name, (100, 110, 60, 70), (250, 320))
    for kept, file in ((cut.path, sample.path), (cut.mask, sample.mask)):
        assert kept is not None
        assert file is not None
        Image.fromarray(np.asarray(Image.open(file))[40:290]).save(kept)
    options = replace(TILED, whole=whole)
    found = read_supports([sample], ENCODER, replace(options, ignore_top=40, ignore_bottom=10), seed=0)
    expected = read_supports([cut], ENCODER, options, seed=0)
    assert len(found) == len(expected) == DEFECT_TILES + whole
    for one, other in zip(found, expected, strict=True):
        assert one.corner == other.corner
        assert (one.frame == other.frame).all()
        assert one.cover is not None
        assert other.cover is not None
        assert (one.cover == other.cover).all()
        assert one.cover.any()


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
