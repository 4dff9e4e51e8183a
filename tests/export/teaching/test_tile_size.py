"""export.teaching.tile_size: how large the tiles of a recipe are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_encoder
from tile_samples import Box, make_sample

from calibration.errors import DatasetError
from export.teaching.tile_size import AUTO, NATIVE, NONE, Tiling, with_tiles
from runtime.recipe import FrameOptions

ENCODER = make_encoder()


@pytest.mark.parametrize(
    ("side", "box", "tile", "why"),
    [
        (1024, 20, 64, "spans 0.08 patches"),  # no smaller than the encoder's input
        (1024, 200, 400, "spans 0.78 patches"),
        (1024, 400, 0, "a tile of 800 would cover 61% of the frame"),
        (1024, 900, 0, "2 are enough"),
        (128, 40, 80, "spans 1.25 patches"),
        (80, 8, 0, "a tile of 64 would cover 64% of the frame"),
    ],
)
def test_auto_goes_by_the_masks(tmp_path: Path, side: int, box: int, tile: int, why: str) -> None:
    defect = make_sample(tmp_path, "hole", "a", (5, 5 + box, 7, 7 + box // 2), (side, side))
    samples = [make_sample(tmp_path, "good", "b", None, (side, side)), defect]
    options, said = with_tiles(FrameOptions(), Tiling(AUTO), samples, ENCODER)
    assert (options.tile, options.overlap) == (tile, tile // 8)
    assert f"a small defect of {box} pixels" in said
    assert f"{side // 4} pixels each" in said
    assert why in said


@pytest.mark.parametrize(
    ("size", "box", "tile", "why"),
    [
        ((40, 4000), 20, 64, "spans 0.02 patches of the whole frame, 1000 pixels each"),
        ((4000, 40), 20, 64, "spans 0.02 patches of the whole frame, 1000 pixels each"),
        ((256, 2048), 150, 300, "spans 0.29 patches"),
        ((40, 120), 20, 0, "a tile of 64 would cover 53% of the frame"),
        ((64, 200), 130, 0, "spans 2.60 patches of the whole frame, 50 pixels each"),
    ],
)
def test_of_a_frame_that_is_not_square_the_axis_counts_that_is_squashed_most(
    tmp_path: Path, size: tuple[int, int], box: int, tile: int, why: str
) -> None:
    rows = (0, min(box, size[0]), 0, min(box, size[1]))
    options, said = with_tiles(FrameOptions(), Tiling(AUTO), [make_sample(tmp_path, "hole", "a", rows, size)], ENCODER)
    assert options.tile == tile
    assert why in said


@pytest.mark.parametrize(
    ("more", "size"), [(None, 30), ((100, 104, 10, 14), 30), ((0, 60, 0, 60), 30), ((150, 200, 40, 90), 50)]
)
def test_the_largest_part_that_is_not_cut_counts(tmp_path: Path, more: Box | None, size: int) -> None:
    """The rows of a text bar may hold something, too."""
    sample = make_sample(tmp_path, "hole", "a", (80, 110, 120, 150), (1160, 1024), more)
    options, said = with_tiles(FrameOptions(ignore_top=60), Tiling(AUTO), [sample], ENCODER)
    assert options.ignore_top == 60
    assert f"a small defect of {size} pixels" in said
    assert "275 pixels each" in said, "a quarter of the rows that are left"


def test_auto_goes_by_the_small_ones_of_many_defects(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, "hole", "a" * n, (5, 5 + n * 10, 7, 17), (1024, 1024)) for n in range(1, 12)]
    assert "a small defect of 20 pixels" in with_tiles(FrameOptions(), Tiling(AUTO), samples, ENCODER)[1]


def test_tiles_as_asked_for(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, "hole", "a", (5, 15, 7, 17))]
    assert with_tiles(FrameOptions(), Tiling(NATIVE), samples, ENCODER)[0] == FrameOptions(tile=64, overlap=8)
    asked = with_tiles(FrameOptions(), Tiling(100, 50, True), samples, ENCODER)
    assert asked[0] == FrameOptions(tile=100, overlap=50, whole=True)
    with pytest.raises(ValueError, match="overlap must be smaller than tile"):
        with_tiles(FrameOptions(), Tiling(NATIVE, 64), samples, ENCODER)
    with pytest.raises(DatasetError, match="no defect among the supports has a mask"):
        with_tiles(FrameOptions(), Tiling(AUTO), [replace(samples[0], mask=None)], ENCODER)


def test_no_tiles_are_asked_for(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, "hole", "a", (5, 15, 7, 17))]
    options, said = with_tiles(FrameOptions(ignore_top=3, tile=64, overlap=8), Tiling(NONE), samples, ENCODER)
    assert options == FrameOptions(ignore_top=3)
    assert "each frame as a whole" in said
