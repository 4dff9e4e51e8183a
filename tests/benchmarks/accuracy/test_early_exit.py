"""What an early exit saves and misses, by hand, and over a bundle."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.early_exit import EarlyExit, curve
from calibration.errors import DatasetError
from runtime.cli import main


def test_frames_that_the_whole_view_trusts_are_not_read_in_tiles() -> None:
    whole = np.array([0.9, 0.8, 0.1, 0.4])
    rows = curve(whole, np.array([True, False, True, False]), np.array([True, True, True, False]), tiles=9.0)
    by_share = {row["share"]: row for row in rows}
    assert by_share[1.0] == {"share": 1.0, "speed": 1.0, "underkill": 0.0, "overkill": 0.5}
    assert by_share[0.5] == {"share": 0.5, "speed": 9 / 5.5, "underkill": 0.5, "overkill": 0.5}
    assert by_share[0.1] == {"share": 0.1, "speed": 9.0, "underkill": 1.0, "overkill": 0.0}


def run(*words: object) -> int:
    command, parser = EarlyExit(), argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def tiled(toy_bundle: Path, toy_frames: Path, tmp_path: Path) -> Path:
    """A recipe of tiles, taught by the frames that taught the toy bundle's own."""
    out = tmp_path / "tiles.safetensors"
    words = ["teach", str(toy_bundle), "--data", str(toy_frames), "--shots", "2", "--random-weights", "--tile", "64"]
    assert main([*words, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_the_table_tells_what_is_saved_and_missed(
    toy_bundle: Path, toy_frames: Path, tiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = toy_bundle / "recipe.safetensors"
    assert run(toy_bundle, toy_frames, "--whole", whole, "--tiles", tiled) == 0
    said = capsys.readouterr().out
    assert " 4 tiles a frame" in said
    assert said.count("\n| 1") == 2  # 100 % and 10 %
    shutil.copytree(toy_frames / "images/good", tmp_path / "data/images/good")
    with pytest.raises(DatasetError):
        run(toy_bundle, tmp_path / "data", "--whole", whole, "--tiles", tiled)
