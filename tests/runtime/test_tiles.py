"""Tiles: where they lie, how their maps meet, and one answer for a frame of many."""

from __future__ import annotations

import io
import itertools
import json
import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

from runtime import BackendError, FailedFrame, FakeBackend, FrameError, FrameOptions, Prediction, Predictor, RecipeError
from runtime.recipe import METADATA_KEY, Recipe
from runtime.windows import MAX_CANVAS_CELLS, MAX_CANVAS_SIDE, MAX_WINDOWS, cut, lay_out, stitch

ENCODER = make_encoder()
NATIVE = FrameOptions(tile=64, overlap=16)


def frame(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 100, size, dtype=np.uint8)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(ENCODER)


@pytest.fixture
def predictor(fake_bundle: Path, backend: FakeBackend) -> Iterator[Predictor]:
    with Predictor(fake_bundle, backend=backend, recipe=make_recipe(frame=NATIVE)) as opened:
        yield opened


@pytest.mark.parametrize("size", [(65, 64), (100, 90), (200, 64), (512, 300), (64, 6500), (70, 20)])
@pytest.mark.parametrize("overlap", [0, 8, 16, 63])
def test_windows_cover_every_patch_and_overlap(size: tuple[int, int], overlap: int) -> None:
    layout = lay_out(size, ENCODER, FrameOptions(tile=64, overlap=overlap), "frame")
    if layout is None:
        assert max(size) <= 72  # rounds to the four patches of a window
        return
    seen = np.zeros(layout.cells, int)
    for row, column in layout.corners:
        part = seen[row : row + 4, column : column + 4]
        assert part.shape == (4, 4)
        part += 1
    assert seen.min() >= 1
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in layout.corners})
        shared = min(math.ceil(overlap / 16), 3)
        assert all(4 - (b - a) >= shared for a, b in itertools.pairwise(starts))


def test_a_patch_of_a_larger_tile_shows_more_of_the_frame() -> None:
    for tile, cells in ((64, (32, 16)), (128, (16, 8)), (256, (8, 4))):
        layout = lay_out((512, 256), ENCODER, FrameOptions(tile=tile), "frame")
        assert layout is not None
        assert layout.cells == cells
        assert layout.canvas == (cells[0] * 16, cells[1] * 16)


@pytest.mark.parametrize(("size", "tile"), [((64, 64), 64), ((40, 20), 64), ((512, 512), 512), ((2048, 100), 4096)])
def test_one_window_is_no_tile(size: tuple[int, int], tile: int) -> None:
    assert lay_out(size, ENCODER, FrameOptions(tile=tile), "frame") is None
    assert lay_out(size, ENCODER, FrameOptions(), "frame") is None


def test_too_many_windows_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(FrameError, match=rf"takes 1,000,000 tiles of 16 pixels; {MAX_WINDOWS:,} are the most"):
        lay_out((16000, 16000), ENCODER, FrameOptions(tile=16), "frame")


@pytest.mark.parametrize(
    ("size", "tile", "changes", "canvas"),
    [
        ((512, 512), 8, {"grid": (15, 15), "input_size": (240, 240)}, "15360x15360"),
        ((512, 512), 8, {"grid": (128, 128), "input_size": (2048, 2048)}, "131072x131072"),
        ((65_000, 3), 60, {"grid": (32, 2), "input_size": (1024, 64)}, "1109344x64"),
        ((20, 65_000), 22, {"grid": (24, 24), "input_size": (96, 96)}, "96x283636"),
    ],
)
def test_a_canvas_that_is_too_large_is_refused_before_memory_is_taken(
    size: tuple[int, int], tile: int, changes: dict[str, Any], canvas: str
) -> None:
    """Too many pixels, twice; too many along one side; and too many patches along one side."""
    encoder = make_encoder(image_size=changes["input_size"], **changes)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError) as raised:
            lay_out(size, encoder, FrameOptions(tile=tile), "frame.png")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert f"tiles of {tile} pixels enlarge it to {canvas}, or " in str(raised.value)
    assert str(raised.value).endswith("teach with larger tiles, or cut the frame")


def test_the_largest_canvas_can_be_archived(fake_bundle: Path) -> None:
    """It is 2^16 patches of 16 pixels, as many as a row may hold."""
    with Predictor(fake_bundle, backend="fake", recipe=make_recipe(frame=FrameOptions(tile=64))) as predictor:
        result = predictor(np.zeros((16 * 1024, 20), np.uint8))
        assert result.image_size == (16 * 1024, 64)
    least = replace(result, patch_map=np.zeros((MAX_CANVAS_CELLS, 4), np.float32), image_size=(MAX_CANVAS_SIDE, 64))
    assert Prediction.from_row(least.to_row()).patch_map.shape == (MAX_CANVAS_CELLS, 4)


def test_tiles_are_parts_of_the_canvas_and_share_no_memory_with_the_frame() -> None:
    pixels = frame((160, 96))
    layout = lay_out((160, 96), ENCODER, FrameOptions(tile=64, overlap=16, whole=True), "frame")
    assert layout is not None
    tiles = cut(pixels, layout, ENCODER)
    for number, (row, column) in enumerate(layout.corners):
        expected = pixels[row * 16 : row * 16 + 64, column * 16 : column * 16 + 64]
        np.testing.assert_array_equal(tiles.pixels(number), expected)
    assert len(layout) == len(layout.corners) + 1
    assert tiles.pixels(len(layout) - 1).shape == (64, 64)
    assert not np.shares_memory(tiles.canvas, pixels)


@pytest.mark.parametrize("overlap", [0, 16, 48])
def test_maps_that_agree_meet_without_a_seam(overlap: int) -> None:
    layout = lay_out((500, 300), ENCODER, FrameOptions(tile=64, overlap=overlap), "frame")
    assert layout is not None
    whole = np.random.default_rng(1).random(layout.cells).astype(np.float32)
    maps = np.stack([whole[r : r + 4, c : c + 4] for r, c in layout.corners])
    np.testing.assert_allclose(stitch(maps, layout), whole, atol=1e-6)


def test_where_maps_differ_the_middle_of_a_window_counts_more() -> None:
    layout = lay_out((64, 96), ENCODER, FrameOptions(tile=64, overlap=32), "frame")
    assert layout is not None
    assert layout.corners == ((0, 0), (0, 2))
    stitched = stitch(np.stack([np.zeros((4, 4)), np.ones((4, 4))]).astype(np.float32), layout)
    np.testing.assert_allclose(stitched[0], [0, 0, 1 / 3, 2 / 3, 1, 1], atol=1e-6)


def test_the_whole_frame_raises_the_map() -> None:
    layout = lay_out((128, 128), ENCODER, FrameOptions(tile=64, whole=True), "frame")
    assert layout is not None
    maps = np.zeros((len(layout), 4, 4), np.float32)
    maps[-1] = 0.4
    maps[0, 0, 0] = 0.9
    stitched = stitch(maps, layout)
    assert stitched[0, 0] == np.float32(0.9)
    assert np.allclose(stitched[4:], 0.4)


def test_the_most_suspicious_tile_gives_the_answer(predictor: Predictor) -> None:
    pixels = frame((256, 320))
    pixels[200:216, 240:256] = 255  # one bright patch
    result = predictor(pixels)
    assert result.tiles == 35
    assert result.is_defect
    assert result.patch_map.shape == (16, 20)
    assert 0.8 < result.peak <= 1
    assert np.unravel_index(result.patch_map.argmax(), (16, 20)) == (12, 15)
    (region,) = result.regions
    assert 190 < region.centroid[1] < 226
    assert 230 < region.centroid[0] < 266
    assert result.defect_map().shape == (256, 320)
    assert result.to_dict()["tiles"] == 35
    assert result.overlay(pixels).size == (320, 256)
    assert not predictor(frame((256, 320))).is_defect


def test_a_defect_across_the_border_of_tiles_is_one_region(predictor: Predictor) -> None:
    pixels = frame((64, 256))
    pixels[16:48, 64:208] = 255
    assert len(predictor(pixels).regions) == 1


def test_one_tile_over_the_frame_gives_the_same_bytes_as_no_tiles(fake_bundle: Path) -> None:
    plain, tiled = (make_recipe(frame=options) for options in (FrameOptions(), FrameOptions(tile=300, overlap=30)))
    with Predictor(fake_bundle, backend="fake", recipe=plain) as predictor:
        for size in ((300, 300), (100, 280), (64, 64)):
            predictor.use(plain)
            alone = predictor(frame(size))
            predictor.use(tiled)
            one = predictor(frame(size))
            assert one.patch_map.tobytes() == alone.patch_map.tobytes()
            assert one.features.tobytes() == alone.features.tobytes()
            left, right = one.to_dict(), alone.to_dict()
            assert {**left, "timings_ms": None} == {**right, "timings_ms": None}


def test_all_ways_to_call_agree_and_batches_mix_frames(predictor: Predictor, backend: FakeBackend) -> None:
    sizes = [(256, 320), (64, 64), (100, 90), (300, 70), (256, 320), (20, 20)]
    frames = [frame(size, seed) for seed, size in enumerate(sizes)]
    alone = [predictor(one) for one in frames]
    backend.batches.clear()
    streamed = list(predictor.stream(frames))
    tiles = sum(one.tiles for one in alone)
    assert backend.batches == [8] * (tiles // 8) + ([tiles % 8] if tiles % 8 else [])
    backend.batches.clear()
    listed = predictor.predict(frames)
    assert max(backend.batches) == 8
    submitted = [future.result() for future in [predictor.submit(one) for one in frames]]
    for results in (streamed, listed, submitted):
        for result, expected in zip(results, alone, strict=True):
            assert isinstance(result, Prediction)
            assert result.patch_map.tobytes() == expected.patch_map.tobytes()
            assert (result.tiles, result.score, result.verdict) == (expected.tiles, expected.score, expected.verdict)
            assert result.regions == expected.regions


def test_bad_frames_keep_their_place_among_tiles(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    sources: list[Any] = [frame((256, 320)), tmp_path / "bad.png", frame((100, 90)), tmp_path / "gone.png"]
    results = list(predictor.stream(sources * 3))
    assert [isinstance(result, FailedFrame) for result in results] == [False, True, False, True] * 3
    assert [result.tiles for result in results if isinstance(result, Prediction)] == [35, 4] * 3


def test_an_engine_that_fails_in_the_middle_of_a_frame_names_it_once(fake_bundle: Path) -> None:
    failing = FakeBackend(ENCODER, fail_after=2)
    with Predictor(fake_bundle, backend=failing, recipe=make_recipe(frame=NATIVE)) as predictor:
        with pytest.raises(BackendError) as raised:
            list(predictor.stream([frame((256, 320))]))
        assert "frame[0] and all after it" in str(raised.value)
        assert raised.value.unanswered == ("frame[0]",)


def test_leaving_a_stream_in_the_middle_of_a_frame_ends_its_threads(fake_bundle: Path, threads_left: Any) -> None:
    with Predictor(fake_bundle, backend="fake", recipe=make_recipe(frame=NATIVE)) as predictor:
        for _ in predictor.stream(frame((512, 512), seed) for seed in range(20)):
            break
        assert threads_left() == []


def test_a_swap_of_recipes_falls_between_frames(fake_bundle: Path) -> None:
    tiled, plain = make_recipe(frame=NATIVE), make_recipe()
    with Predictor(fake_bundle, backend="fake", recipe=tiled) as predictor:

        def sources() -> Iterator[NDArray[np.uint8]]:
            for number in range(6):
                predictor.use(plain if number % 2 else tiled)
                yield frame((128, 128), number)

        counts = [result.tiles for result in predictor.stream(sources()) if isinstance(result, Prediction)]
    assert set(counts) == {1, 9}
    assert len(counts) == 6


def test_few_large_frames_are_held_at_once(fake_bundle: Path) -> None:
    """Two batches are drawn ahead without tiles; a tiled frame fills batches by itself."""
    slow = FakeBackend(ENCODER, delay_s=0.02)
    drawn = []

    def sources() -> Iterator[NDArray[np.uint8]]:
        for number in range(40):
            drawn.append(number)
            yield frame((512, 512), number)

    with Predictor(fake_bundle, backend=slow, recipe=make_recipe(frame=NATIVE)) as predictor:
        stream = predictor.stream(sources(), decoders=2)
        next(stream)
        assert len(drawn) <= 8
        stream.close()  # type: ignore[attr-defined]


def test_ignored_rows_are_cut_before_tiles(fake_bundle: Path) -> None:
    options = replace(NATIVE, ignore_top=10, ignore_bottom=50)
    pixels = frame((188, 128))
    pixels[:10] = pixels[-50:] = 255
    with Predictor(fake_bundle, backend="fake", recipe=make_recipe(frame=options)) as predictor:
        result = predictor(pixels)
        assert (result.tiles, result.is_defect) == (9, False)
        assert not result.defect_map()[:10].any()
        assert not result.defect_map()[-50:].any()


@pytest.mark.parametrize("tile", [64, 68, 72, 90])
def test_a_strip_is_judged_in_bounded_memory(fake_bundle: Path, tile: int) -> None:
    """At 12 outputs a block, blocks of most of these tiles are no whole number of pixels apart."""
    strip = np.zeros((65_000, 100), np.uint8)
    strip[60_000:60_016, 40:60] = 255
    recipe = make_recipe(frame=FrameOptions(tile=tile, overlap=16))
    with Predictor(fake_bundle, backend="fake", recipe=recipe) as predictor:
        tracemalloc.start()
        try:
            result = predictor(strip)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        (region,) = result.regions
    assert 59_950 < region.centroid[1] < 60_066
    assert result.tiles > 800
    assert peak < 96 << 20


def test_a_bundle_that_resizes_in_its_graph_refuses_tiles(tmp_path: Path) -> None:
    encoder = make_encoder(input_size=(128, 128))
    bundle = write_bundle(tmp_path / "bundle", encoder=encoder, recipe=make_recipe(encoder=encoder))
    with Predictor(bundle, backend="fake") as predictor, pytest.raises(RecipeError, match="without --frame-size"):
        predictor.use(make_recipe(encoder=encoder, frame=NATIVE))


def test_tiles_travel_in_the_recipe(tmp_path: Path) -> None:
    options = FrameOptions(ignore_bottom=3, tile=240, overlap=30, whole=True)
    make_recipe(frame=options).save(tmp_path / "tiled.safetensors")
    assert Recipe.load(tmp_path / "tiled.safetensors").frame == options
    plain = make_recipe().to_bytes()
    assert b"overlap" not in plain, "earlier versions read recipes without tiles"


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"tile": 240}, "recipe.frame.overlap is missing"),
        ({"tile": 240, "overlap": 240, "whole": False}, "recipe.frame.overlap must be smaller than tile"),
        ({"tile": 0, "overlap": 0, "whole": False}, r"recipe.frame.tile must lie in \[8, 16384\]"),
        ({"tile": 240, "overlap": 0, "whole": 1}, "recipe.frame.whole must be"),
        ({"overlap": 3}, "recipe.frame.overlap is not known"),
    ],
)
def test_faulty_tiles_of_a_recipe_are_named(tmp_path: Path, entry: dict[str, Any], fault: str) -> None:
    path = tmp_path / "recipe.safetensors"
    make_recipe().save(path)
    with safe_open(path, "numpy") as stored:
        header = json.loads(stored.metadata()[METADATA_KEY])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    header["frame"] |= entry
    path.write_bytes(save(tensors, metadata={METADATA_KEY: json.dumps(header)}))
    with pytest.raises(RecipeError, match=fault):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"overlap": 5}, "are of tiles"),
        ({"whole": True}, "are of tiles"),
        ({"tile": 7}, "tile"),
        ({"tile": 64, "overlap": 64}, "overlap must be smaller than tile"),
        ({"tile": 64, "overlap": -1}, "overlap"),
        ({"tile": 64.5}, "tile"),
        ({"tile": 64, "whole": "yes"}, "whole must be"),
    ],
)
def test_faulty_options_are_named(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        FrameOptions(**options)


def test_frames_of_mixed_sizes_and_kinds(predictor: Predictor, tmp_path: Path) -> None:
    pixels = frame((256, 320))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "TIFF")
    results = predictor.predict([tmp_path / "a.png", pixels, content.getvalue(), Image.fromarray(pixels)])
    assert {result.patch_map.tobytes() for result in results} == {results[0].patch_map.tobytes()}
