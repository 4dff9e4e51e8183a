"""Predictor: opening, one frame, lists of frames, recipes, and what it refuses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from gated import PATIENCE, TWO, frame, number_of
from PIL import Image

from runtime import (
    BackendError,
    BackendUnavailable,
    BundleError,
    FakeBackend,
    FrameError,
    FrameOptions,
    Prediction,
    Predictor,
    PredictorError,
    RecipeError,
)


def test_a_bundle_opens_by_name_of_the_backend(fake_bundle: Path) -> None:
    with Predictor(str(fake_bundle), backend="fake") as predictor:
        assert predictor.backend.name == "fake"
        assert predictor.recipe.classes == ("good", "bridge", "hole")
        assert predictor.manifest.encoder == make_encoder()


def test_another_recipe_can_be_given_from_the_start(fake_bundle: Path, tmp_path: Path) -> None:
    TWO.save(tmp_path / "two.safetensors")
    for recipe in (TWO, tmp_path / "two.safetensors", str(tmp_path / "two.safetensors")):
        with Predictor(fake_bundle, backend="fake", recipe=recipe) as predictor:
            assert predictor.recipe.classes == ("good", "scratch")
            assert predictor(frame(3)).head_class == "scratch"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 0, "batch_size must be at least 1, not 0"),
        ("queue_size", 0, "queue_size must be at least 1, not 0"),
        ("threads", -1, r"threads must lie in \[0, 1024\], not -1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(option: str, value: int, message: str, fake_bundle: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(fake_bundle, backend="fake", **{option: value})


def test_a_faulty_bundle_is_refused_before_a_backend_is_looked_for(fake_bundle: Path) -> None:
    (fake_bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        Predictor(fake_bundle, backend="no such backend")


def test_an_unknown_backend_is_refused(fake_bundle: Path) -> None:
    with pytest.raises(
        BackendUnavailable, match="choose one of auto, tensorrt, tensorrt-rtx, cuda, cpu, openvino, fake"
    ):
        Predictor(fake_bundle, backend="tpu")


@pytest.mark.parametrize("recipe", [make_recipe(encoder_id="ef" * 32), "absent.safetensors"], ids=["other", "absent"])
def test_a_bad_recipe_at_the_start_frees_the_engine(recipe: Any, fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder())
    with pytest.raises(RecipeError):
        Predictor(fake_bundle, backend=backend, recipe=recipe)
    assert backend.closed


def test_one_frame_is_answered_in_full(fake_bundle: Path) -> None:
    pixels = frame(1)
    pixels[20:40, 40:60] = 204
    with Predictor(fake_bundle, backend="fake") as predictor:
        result = predictor(pixels)
    assert result.ok
    assert result.source == "frame"
    assert result.path is None
    assert result.head_class == "bridge"
    assert result.confidence == pytest.approx(0.9)
    assert list(result.probabilities) == ["good", "bridge", "hole"]
    assert sum(result.probabilities.values()) == pytest.approx(1)
    assert result.patch_map[1:3, 2:4] == pytest.approx(0.8)
    assert 0.5 < result.score <= result.peak <= 0.8
    assert result.is_defect
    assert result.frame_size == (64, 64)
    assert result.ignored_rows == (0, 0)
    assert result.backend == "fake"
    assert list(result.timings_ms) == ["prepare", "infer", "postprocess"]
    assert all(value >= 0 for value in result.timings_ms.values())
    (region,) = result.regions
    assert 40 <= region.centroid[0] < 60


def test_paths_images_and_arrays_give_the_same_answer(fake_bundle: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150), dtype=np.uint8)
    path = tmp_path / "frame.png"
    Image.fromarray(pixels).save(path)
    with Predictor(fake_bundle, backend="fake") as predictor:
        results = [predictor(source) for source in (pixels, path, str(path), Image.fromarray(pixels))]
    for result in results:
        np.testing.assert_array_equal(result.patch_map, results[0].patch_map)
        assert result.frame_size == (100, 150)
    assert [result.source for result in results] == ["frame", str(path), str(path), "frame"]
    assert [result.path for result in results] == [None, str(path), str(path), None]


@pytest.mark.parametrize(
    ("count", "batch_size", "most", "batches"),
    [
        (0, 8, 8, []),
        (1, 8, 8, [1]),
        (8, 8, 8, [8]),
        (19, 8, 8, [8, 8, 3]),
        (3, 1, 8, [1, 1, 1]),
        (7, 8, 3, [3, 3, 1]),
        (7, 100, 64, [7]),
    ],
)
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_is_split_into_batches_and_answered_in_order(
    count: int, batch_size: int, most: int, batches: list[int], kind: Any, fake_bundle: Path
) -> None:
    backend = FakeBackend(make_encoder(), max_batch=most)
    with Predictor(fake_bundle, backend=backend, batch_size=batch_size) as predictor:
        results = predictor.predict(kind(frame(number) for number in range(count)))
    assert [number_of(result) for result in results] == list(range(count))
    assert [result.head_class for result in results] == [("good", "bridge", "hole")[n % 3] for n in range(count)]
    assert [result.source for result in results] == [f"frame[{number}]" for number in range(count)]
    assert backend.batches == batches


def test_a_bad_frame_in_a_list_is_named_by_its_place(fake_bundle: Path) -> None:
    sources: list[Any] = [frame(number) for number in range(12)]
    sources[10] = np.zeros((4, 4, 4, 4))
    with Predictor(fake_bundle, backend="fake", batch_size=4) as predictor:
        with pytest.raises(FrameError) as caught:
            predictor.predict(sources)
        assert caught.value.source == "frame[10]"
        assert number_of(predictor(frame(5))) == 5


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ("frame.png", "str"),
        (Path("frame.png"), None),
        (np.zeros((64, 64), np.uint8), "ndarray"),
        (np.zeros((3, 64, 64), np.uint8), "ndarray"),
        (Image.new("L", (64, 64)), "Image"),
        ((frame(i) for i in range(3)), "generator"),
        (None, "NoneType"),
    ],
    ids=["str", "Path", "one array", "stack", "image", "generator", "None"],
)
def test_an_argument_that_is_not_a_list_of_frames_is_refused_with_its_type(
    frames: Any, kind: str | None, fake_bundle: Path
) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor, pytest.raises(FrameError) as caught:
        predictor.predict(frames)
    name = kind or type(frames).__name__
    assert caught.value.reason == f"takes a list of frames, not {name}; for one frame, call predictor(frame)"


def test_calls_from_many_threads_get_their_own_answers(fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(predictor, [frame(number) for number in range(64)]))
    assert [number_of(result) for result in results] == list(range(64))


def test_an_engine_failure_is_a_backend_error(fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder(), fail_after=1)
    with Predictor(fake_bundle, backend=backend, batch_size=2) as predictor:
        with pytest.raises(BackendError):
            predictor.predict([frame(number) for number in range(4)])
        with pytest.raises(BackendError):
            predictor(frame(0))


def test_results_do_not_share_memory_with_their_batch(fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor:
        first, second = predictor.predict([frame(1), frame(2)])
    assert first.patch_map.base is None
    assert first.features.base is None
    assert not np.shares_memory(first.features, second.features)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, (4, 6)),
        ({"ignore_top": 10}, (10, 6)),
        ({"ignore_bottom": 20}, (4, 20)),
        ({"ignore_top": 0, "ignore_bottom": 0}, (0, 0)),
    ],
)
def test_rows_to_ignore_come_from_the_recipe_unless_given(
    options: dict[str, int], rows: tuple[int, int], tmp_path: Path
) -> None:
    recipe = make_recipe(frame=FrameOptions(ignore_top=4, ignore_bottom=6))
    bundle = write_bundle(tmp_path / "bundle", recipe=recipe)
    top, bottom = rows
    pixels = np.zeros((64 + top + bottom, 64), np.uint8)
    pixels[top, 0] = 1
    pixels[:top] = 255
    pixels[64 + top :] = 255
    with Predictor(bundle, backend="fake", **options) as predictor:
        results = [predictor(pixels), *predictor.predict([pixels]), *predictor.stream([pixels])]
        results.append(predictor.submit(pixels).result(PATIENCE))
        predictor.use(recipe)
        results.append(predictor(pixels))
    for result in results:
        assert isinstance(result, Prediction)
        assert result.ignored_rows == rows
        assert result.frame_size == pixels.shape
        assert result.head_class == "bridge"
        assert not result.is_defect
        assert not result.defect_map()[:top].any()
    assert recipe.frame == FrameOptions(ignore_top=4, ignore_bottom=6)


def test_an_overlay_reads_a_file_as_the_prediction_did(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(frame=FrameOptions(white_level=1000)))
    Image.fromarray(np.full((64, 64), 500, np.uint16)).save(tmp_path / "deep.tif")
    with Predictor(bundle, backend="fake") as predictor:
        result = predictor(tmp_path / "deep.tif")
    assert result.patch_map == pytest.approx(128 / 255)
    picture = np.asarray(result.overlay())
    assert picture[:, :, 1].min() > 0
    assert picture.shape == (64, 64, 3)


def test_a_recipe_of_another_number_of_classes_is_used_from_the_next_frame(fake_bundle: Path, tmp_path: Path) -> None:
    many = make_recipe(("good", *(f"c{i}" for i in range(1, 10))), defect_threshold=0.0)
    many.save(tmp_path / "many.safetensors")
    with Predictor(fake_bundle, backend="fake") as predictor:
        assert (predictor(frame(7)).head_class, predictor(frame(7)).is_defect) == ("bridge", False)
        predictor.use(tmp_path / "many.safetensors")
        result = predictor(frame(7))
        assert (result.head_class, result.is_defect, len(result.probabilities)) == ("c7", True, 10)
        assert result.defect_threshold == 0.0
        predictor.use(TWO)
        assert predictor.recipe is TWO
        assert predictor(frame(7)).head_class == "scratch"


def write_text(path: Path) -> Path:
    path.write_text("not a recipe")
    return path


@pytest.mark.parametrize(
    "recipe",
    [
        lambda folder: make_recipe(encoder_id="ef" * 32),
        lambda folder: make_recipe(encoder=make_encoder(width=16)),
        lambda folder: folder / "absent.safetensors",
        lambda folder: str(write_text(folder / "text.safetensors")),
    ],
    ids=["other encoder", "other shapes", "missing", "damaged"],
)
def test_a_bad_recipe_changes_nothing(recipe: Callable[[Path], Any], fake_bundle: Path, tmp_path: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor:
        before = predictor.recipe
        with pytest.raises(RecipeError):
            predictor.use(recipe(tmp_path))
        assert predictor.recipe is before
        assert predictor(frame(2)).head_class == "hole"


@pytest.mark.parametrize("delay", [-1.0, float("nan"), float("inf"), 1e14])
def test_a_delay_that_no_clock_can_wait_for_is_refused(delay: float, fake_bundle: Path) -> None:
    with pytest.raises(ValueError, match="max_delay_ms must lie in"):
        Predictor(fake_bundle, backend="fake", max_delay_ms=delay)


@pytest.mark.parametrize("rows", [{"ignore_top": -5}, {"ignore_bottom": -1}, {"ignore_top": 10**7}])
def test_rows_that_cannot_be_ignored_are_refused(rows: dict[str, int], fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder())
    with pytest.raises(ValueError, match=f"{next(iter(rows))} must lie in"):
        Predictor(fake_bundle, backend=backend, **rows)  # type: ignore[arg-type]
    assert backend.closed


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3), (64, 64, 1)])
def test_a_stream_of_one_array_is_not_taken_for_frames(shape: tuple[int, ...], fake_bundle: Path) -> None:
    with (
        Predictor(fake_bundle, backend="fake") as predictor,
        pytest.raises(FrameError, match=r"takes many frames, not one of shape \[64, 64"),
    ):
        predictor.stream(np.zeros(shape, np.uint8))


def test_a_stream_ends_with_the_predictor(fake_bundle: Path, threads_left: Callable[[], list[str]]) -> None:
    predictor = Predictor(fake_bundle, backend="fake", batch_size=2)
    answers = predictor.stream(frame(number % 200) for number in range(500))
    assert number_of(next(answers)) == 0  # type: ignore[arg-type]
    predictor.close()
    with pytest.raises(PredictorError, match="the Predictor is closed"):
        for _ in answers:
            pass
    assert threads_left() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2.5}, "batch_size must be a whole number, not 2.5"),
        ({"batch_size": True}, "batch_size must be a whole number, not True"),
        ({"batch_size": None}, "batch_size must be a whole number, not None"),
        ({"threads": "x"}, "threads must be a whole number, not 'x'"),
        ({"threads": 10**9}, r"threads must lie in \[0, 1024\], not 1000000000"),
        ({"queue_size": [1]}, r"queue_size must be a whole number, not \[1\]"),
        ({"max_delay_ms": "2"}, "max_delay_ms must be a number, not '2'"),
        ({"max_delay_ms": None}, "max_delay_ms must be a number, not None"),
        ({"ignore_top": 1.5}, "ignore_top must be a whole number, not 1.5"),
        ({"ignore_bottom": "3"}, "ignore_bottom must be a whole number, not '3'"),
        ({"backend": 5}, "backend must be a name or a Backend, not 5"),
        ({"bundle": 5}, "bundle must be the path of a folder, not 5"),
    ],
    ids=str,
)
def test_arguments_of_another_type_are_refused_by_name(
    options: dict[str, Any], message: str, fake_bundle: Path
) -> None:
    bundle = options.pop("bundle", fake_bundle)
    with pytest.raises(ValueError, match=message):
        Predictor(bundle, **{"backend": "fake", **options})


@pytest.mark.parametrize("frames", [np.float32(1), np.array("x"), np.datetime64("2020")])
def test_a_stream_of_one_number_is_refused_with_its_type(frames: Any, fake_bundle: Path) -> None:
    with (
        Predictor(fake_bundle, backend="fake") as predictor,
        pytest.raises(FrameError, match="takes an iterable of frames, not"),
    ):
        predictor.stream(frames)


@pytest.mark.parametrize("option", ["max_delay_ms", "queue_size"])
def test_a_number_beyond_all_floats_is_out_of_range(option: str, fake_bundle: Path) -> None:
    if option == "max_delay_ms":
        with pytest.raises(ValueError, match=f"{option} must lie in"):
            Predictor(fake_bundle, backend="fake", **{option: 10**400})
    with pytest.raises(ValueError, match=option):
        Predictor(fake_bundle, backend="fake", **{option: -(10**400)})


@pytest.mark.parametrize("value", [0, -1, "8", None, 1.5])
@pytest.mark.parametrize("name", ["max_batch", "in_flight"])
def test_a_backend_that_takes_no_frame_at_all_is_refused(name: str, value: Any, fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder())
    setattr(backend, name, value)
    with pytest.raises(ValueError, match=f"{name} of the backend must be"):
        Predictor(fake_bundle, backend=backend)


@pytest.mark.parametrize("argument", [{"max_batch": 0}, {"delay_s": -1}, {"delay_s": "1"}, {"fail_after": 1.5}])
def test_a_fake_backend_refuses_what_it_cannot_do(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(argument))):
        FakeBackend(make_encoder(), **argument)


def test_maps_and_masks_refuse_invalid_sizes_and_thresholds(fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor:
        result = predictor(frame(0))
    for threshold in ("0.5", float("nan"), [0.5]):
        with pytest.raises(ValueError, match="threshold"):
            result.mask(threshold)  # type: ignore[arg-type]
    for size in (5, (5,), (5, 5, 5), (5.5, 5), (-1, 5)):
        with pytest.raises(ValueError, match="size"):
            result.defect_map(size)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(fake_bundle: Path) -> None:
    options: dict[str, Any] = {"batch_size": np.int64(2), "ignore_top": np.uint8(3), "max_delay_ms": np.float32(1)}
    with Predictor(fake_bundle, backend="fake", **options) as predictor:
        assert predictor(np.zeros((67, 64), np.uint8)).ignored_rows == (3, 0)


def test_a_deque_is_a_list_of_frames(fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake", batch_size=2) as predictor:
        assert [number_of(result) for result in predictor.predict(deque([frame(1), frame(2), frame(3)]))] == [1, 2, 3]


@pytest.mark.parametrize("recipe", [5, b"recipe.safetensors", {}])
def test_a_recipe_of_another_type_is_refused(recipe: Any, fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor, pytest.raises(RecipeError, match="must be a Recipe or"):
        predictor.use(recipe)
