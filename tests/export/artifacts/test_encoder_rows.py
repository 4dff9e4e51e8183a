"""export.artifacts.rows: ranges, parity and golden frames are measured on what the encoder reads of frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from numpy.typing import NDArray
from PIL import Image
from tile_samples import TILED, make_sample

from calibration.dataset import Sample
from export.artifacts.quantize import _read, _split
from export.artifacts.rows import TILES, rows_of
from export.teach import _parity_frames
from runtime.backends import FakeBackend
from runtime.frames import prepare
from runtime.manifest import load_bundle
from runtime.pipeline import Pipeline, Setup
from runtime.recipe import FrameOptions

ENCODER = make_encoder()
BOX = (140, 150, 60, 70)
Frame = NDArray[np.uint8]


def served(path: Path, options: FrameOptions) -> list[Frame]:
    pipeline = Pipeline(ENCODER, 1.0, FakeBackend(ENCODER), 8)
    return [row.pixels for row in pipeline.prepare(str(path), Setup(make_recipe(), options)).rows()]


def pixels_of(path: Path | None) -> Frame:
    assert path is not None
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (FrameOptions(), 1),
        (FrameOptions(tile=400), 1),
        (TILED, TILES),
        (replace(TILED, whole=True), TILES + 1),
        (replace(TILED, tile=100, ignore_top=20, ignore_bottom=30), TILES),
        (replace(TILED, ignore_top=110, ignore_bottom=10), TILES),
    ],
)
def test_rows_are_those_that_are_served(tmp_path: Path, options: FrameOptions, count: int) -> None:
    sample = make_sample(tmp_path, "hole", "a", BOX)
    rows = rows_of(pixels_of(sample.path), ENCODER, options, "a", pixels_of(sample.mask))
    assert len(rows) == count
    expected = served(sample.path, options)
    known = [row.tobytes() for row in expected]
    assert len({row.tobytes() for row in rows}) == count
    assert {row.tobytes() for row in rows} <= set(known)
    most = max((row > 200).sum() for row in expected[: len(expected) - options.whole])
    assert (rows[0] > 200).sum() >= 0.95 * most, "the first tile holds the defect"
    if options.whole or not options.tile:
        assert (rows[-1] == prepare(pixels_of(sample.path), ENCODER, options, "a")).all()
    again = rows_of(pixels_of(sample.path), ENCODER, options, "a", pixels_of(sample.mask))
    assert [row.tobytes() for row in again] == [row.tobytes() for row in rows]


def test_without_a_mask_tiles_are_random(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, "good", "a" * n, None) for n in range(1, 9)]
    places = set()
    for sample in samples:
        (first, *_) = rows_of(pixels_of(sample.path), ENCODER, TILED, "a")
        places.add([row.tobytes() for row in served(sample.path, TILED)].index(first.tobytes()))
    assert len(places) > 4


def test_parity_and_golden_frames_of_tiles_are_tiles(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, label, name, BOX) for label, name in (("hole", "a"), ("bridge", "bb"))]
    samples.append(replace(samples[0], mask=None))
    samples.append(make_small(tmp_path))
    frames, labels = _parity_frames(samples, ENCODER, TILED)
    assert labels == ["hole", "bridge", "hole", "hole", "hole", "bridge", "hole"]
    assert frames.shape == (7, 64, 64)
    known = {row.tobytes() for sample in samples for row in served(sample.path, TILED)}
    assert {frame.tobytes() for frame in frames} <= known
    assert all((frame > 200).sum() == 100 for frame in frames[:2]), "first tiles hold the defect"
    whole, labels = _parity_frames(samples, ENCODER, FrameOptions())
    assert labels == ["hole", "bridge", "hole", "hole"]
    expected = [prepare(pixels_of(sample.path), ENCODER, FrameOptions(), "a") for sample in samples]
    assert (whole == np.stack(expected)).all()


def make_small(folder: Path) -> Sample:
    """A frame that one tile covers."""
    return make_sample(folder, "hole", "small", None, (60, 60))


def test_ranges_of_8_bits_are_measured_on_tiles(tmp_path: Path) -> None:
    recipe = make_recipe(frame=TILED)
    manifest, _ = load_bundle(write_bundle(tmp_path / "bundle", recipe=recipe))
    paths = [make_sample(tmp_path, "good", "a" * n, None).path for n in range(1, 6)]
    fitted, proof = _split(paths, 9)
    assert [len(fitted), len(proof)] == [2, 3]
    assert sorted([*fitted, *proof]) == sorted(paths)
    rows = _read(fitted, manifest, recipe)
    assert rows.shape == (2 * TILES, 64, 64)
    known = {row.tobytes() for path in fitted for row in served(path, TILED)}
    assert {row.tobytes() for row in rows} <= known
