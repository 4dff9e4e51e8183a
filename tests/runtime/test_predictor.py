"""runtime.Predictor on the fake backend: one frame, lists, the background queue, swaps of the recipe, and the end."""

from __future__ import annotations

import copy
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from PIL import Image

from runtime import (
    BackendError,
    BackendUnavailable,
    BundleError,
    FakeBackend,
    FrameError,
    FrameOptions,
    Outputs,
    Prediction,
    Predictor,
    PredictorError,
    QueueFullError,
    RecipeError,
)
from runtime import pipeline as pipeline_module

PATIENCE = 20
"""Seconds after which a wait counts as a hang."""
TWO = make_recipe(("good", "scratch"))


def frame(number: int) -> np.ndarray:
    """A black frame that the fake backend calls class `number` modulo K, with `number` as its first feature."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[0, 0] = number
    return pixels


def number_of(result: Prediction) -> int:
    """Which frame() a result answers."""
    return int(result.features[0])


class GatedBackend(FakeBackend):
    """A fake that waits in `run` until the gate is opened, so that a test decides what is queued meanwhile."""

    def __init__(self, **options: Any) -> None:
        super().__init__(make_encoder(), **options)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def run(self, frames: Any, recipe: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        return super().run(frames, recipe)


@pytest.fixture
def gated() -> Iterator[GatedBackend]:
    backend = GatedBackend()
    yield backend
    backend.gate.set()


def busy(bundle: Path, backend: GatedBackend, **options: Any) -> tuple[Predictor, Future[Prediction]]:
    """A predictor whose engine is held up by frame 0."""
    predictor = Predictor(bundle, backend=backend, max_delay_ms=0, **options)
    first = predictor.submit(frame(0))
    assert backend.entered.wait(PATIENCE)
    return predictor, first


def answers(futures: list[Future[Prediction]]) -> list[int]:
    return [number_of(future.result(PATIENCE)) for future in futures]


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start `work`; the list holds what it raised once the thread has ended."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread, raised


def ended(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


# Opening


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
    with pytest.raises(BackendUnavailable, match="choose one of auto, tensorrt, tensorrt-rtx, cuda, cpu, fake"):
        Predictor(fake_bundle, backend="tpu")


@pytest.mark.parametrize("recipe", [make_recipe(encoder_id="ef" * 32), "absent.safetensors"], ids=["other", "absent"])
def test_a_bad_recipe_at_the_start_frees_the_engine(recipe: Any, fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder())
    with pytest.raises(RecipeError):
        Predictor(fake_bundle, backend=backend, recipe=recipe)
    assert backend.closed


# One frame and lists


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
def test_what_is_not_a_list_of_frames_is_refused_with_its_type(
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


# Rows to ignore


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


# Swapping the recipe


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


# The background queue


def test_a_lone_frame_is_answered_once_it_has_waited_for_company(fake_bundle: Path) -> None:
    for delay in (0.0, 20.0):
        with Predictor(fake_bundle, backend="fake", max_delay_ms=delay) as predictor:
            assert number_of(predictor.submit(frame(9)).result(PATIENCE)) == 9


def test_a_full_batch_does_not_wait_for_the_delay(fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder())
    with Predictor(fake_bundle, backend=backend, max_delay_ms=3_600_000, batch_size=3) as predictor:
        futures = [predictor.submit(frame(number)) for number in range(6)]
        assert answers(futures) == list(range(6))
    assert backend.batches == [3, 3]


def test_frames_of_eight_threads_share_a_batch_and_each_gets_its_own_answer(
    fake_bundle: Path, gated: GatedBackend
) -> None:
    predictor, first = busy(fake_bundle, gated, batch_size=8)
    with predictor, ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(lambda number: predictor.submit(frame(number)), range(1, 9)))
        gated.gate.set()
        assert answers([first, *futures]) == list(range(9))
    assert gated.batches == [1, 8]


def test_many_frames_of_many_threads_are_all_answered(fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder(), delay_s=0.002)
    with Predictor(fake_bundle, backend=backend, queue_size=4) as predictor, ThreadPoolExecutor(8) as pool:

        def ask(start: int) -> list[int]:
            return answers([predictor.submit(frame(start + step)) for step in range(20)])

        results = list(pool.map(ask, range(0, 160, 20)))
    assert [number for part in results for number in part] == list(range(160))
    assert sum(backend.batches) == 160
    assert max(backend.batches) <= 8


def test_an_array_may_be_reused_after_submit(fake_bundle: Path, gated: GatedBackend) -> None:
    predictor, _ = busy(fake_bundle, gated)
    with predictor:
        buffer = np.zeros((64, 64), np.uint8)
        futures = []
        for number in range(1, 6):
            buffer[...] = number
            futures.append(predictor.submit(buffer))
        buffer[...] = 99
        gated.gate.set()
        assert answers(futures) == [1, 2, 3, 4, 5]
        for number, future in enumerate(futures, 1):
            assert future.result().peak == pytest.approx(number / 255)


def test_a_bad_frame_is_refused_by_submit_itself(fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor:
        with pytest.raises(FrameError, match="no such file"):
            predictor.submit("absent.png")
        assert number_of(predictor.submit(frame(1)).result(PATIENCE)) == 1


@pytest.mark.parametrize("timeout", [0.0, 0.05])
def test_a_full_queue_is_an_error_after_the_timeout(timeout: float, fake_bundle: Path, gated: GatedBackend) -> None:
    predictor, first = busy(fake_bundle, gated, batch_size=1, queue_size=2)
    with predictor:
        queued = [predictor.submit(frame(number), timeout_s=PATIENCE) for number in (1, 2)]
        with pytest.raises(QueueFullError) as caught:
            predictor.submit(frame(3), timeout_s=timeout)
        assert f"2 frames are waiting and none was taken for {timeout:g} s" in str(caught.value)
        gated.gate.set()
        assert answers([first, *queued]) == [0, 1, 2]
        assert number_of(predictor.submit(frame(4), timeout_s=PATIENCE).result(PATIENCE)) == 4
    assert sum(gated.batches) == 4


def test_without_a_timeout_submit_waits_for_room(fake_bundle: Path, gated: GatedBackend) -> None:
    predictor, _ = busy(fake_bundle, gated, batch_size=1, queue_size=1)
    with predictor:
        predictor.submit(frame(1))
        futures: list[Future[Prediction]] = []
        thread, raised = in_thread(lambda: futures.append(predictor.submit(frame(2))))
        thread.join(0.05)
        assert thread.is_alive()
        gated.gate.set()
        assert ended(thread)
        assert raised == []
        assert answers(futures) == [2]


class FailsOnce(GatedBackend):
    """Fails on its second batch only, for want of memory."""

    def run(self, frames: Any, recipe: Any) -> Any:
        outputs = super().run(frames, recipe)
        if len(self.batches) == 2:
            raise MemoryError("engine")
        return outputs


def test_a_failure_of_the_engine_goes_to_those_who_wait_and_to_nobody_else(fake_bundle: Path) -> None:
    backend = FailsOnce()
    predictor, first = busy(fake_bundle, backend, batch_size=4)
    with predictor:
        failing = [predictor.submit(frame(number)) for number in range(1, 5)]
        later = [predictor.submit(frame(number)) for number in range(5, 8)]
        backend.gate.set()
        assert answers([first]) == [0]
        for future in failing:
            with pytest.raises(BackendError, match="no memory is left for a batch of 4: use a smaller batch_size"):
                future.result(PATIENCE)
        assert answers(later) == [5, 6, 7]
        assert number_of(predictor.submit(frame(8)).result(PATIENCE)) == 8


def test_an_engine_that_is_gone_fails_every_later_frame(fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder(), fail_after=1)
    with Predictor(fake_bundle, backend=backend, max_delay_ms=0) as predictor:
        assert number_of(predictor.submit(frame(1)).result(PATIENCE)) == 1
        for _ in range(3):
            with pytest.raises(BackendError):
                predictor.submit(frame(2)).result(PATIENCE)


def test_cancelled_frames_are_not_run(fake_bundle: Path, gated: GatedBackend) -> None:
    predictor, first = busy(fake_bundle, gated, batch_size=8)
    with predictor:
        futures = [predictor.submit(frame(number)) for number in range(1, 5)]
        assert futures[1].cancel()
        assert not first.cancel()
        gated.gate.set()
        assert answers([first, futures[0], futures[2], futures[3]]) == [0, 1, 3, 4]
        with pytest.raises(CancelledError):
            futures[1].result(PATIENCE)
    assert gated.batches == [1, 3]


def test_a_batch_of_cancelled_frames_alone_is_not_run(fake_bundle: Path, gated: GatedBackend) -> None:
    predictor, first = busy(fake_bundle, gated)
    with predictor:
        assert all(predictor.submit(frame(number)).cancel() for number in (1, 2))
        gated.gate.set()
        assert answers([first]) == [0]
        assert number_of(predictor.submit(frame(3)).result(PATIENCE)) == 3
    assert gated.batches == [1, 1]


def test_frames_of_two_recipes_never_share_a_batch(fake_bundle: Path, gated: GatedBackend) -> None:
    predictor, _ = busy(fake_bundle, gated, batch_size=8)
    with predictor:
        futures = [predictor.submit(frame(number)) for number in (4, 5)]
        predictor.use(TWO)
        futures += [predictor.submit(frame(number)) for number in (4, 5, 6)]
        gated.gate.set()
        labels = [future.result(PATIENCE).head_class for future in futures]
    assert labels == ["bridge", "hole", "good", "scratch", "good"]
    assert gated.batches == [1, 2, 3]


# The end


def test_close_answers_what_was_submitted_and_ends_the_thread(
    fake_bundle: Path, gated: GatedBackend, threads_left: Callable[[], list[str]]
) -> None:
    predictor, first = busy(fake_bundle, gated, batch_size=2)
    futures = [predictor.submit(frame(number)) for number in range(1, 8)]
    thread, raised = in_thread(predictor.close)
    thread.join(0.05)
    assert thread.is_alive()
    assert not gated.closed
    gated.gate.set()
    assert ended(thread)
    assert raised == []
    assert all(future.done() for future in futures)
    assert answers([first, *futures]) == list(range(8))
    assert gated.closed
    assert threads_left() == []


def test_close_does_not_wait_for_the_delay(fake_bundle: Path) -> None:
    predictor = Predictor(fake_bundle, backend="fake", max_delay_ms=3_600_000)
    future = predictor.submit(frame(3))
    thread, _ = in_thread(predictor.close)
    assert ended(thread)
    assert answers([future]) == [3]


def test_submit_that_waits_for_room_is_told_when_the_predictor_closes(fake_bundle: Path, gated: GatedBackend) -> None:
    predictor, first = busy(fake_bundle, gated, batch_size=1, queue_size=1)
    queued = predictor.submit(frame(1))
    waiter, raised = in_thread(lambda: predictor.submit(frame(2)))
    closer, _ = in_thread(predictor.close)
    assert ended(waiter)
    (error,) = raised
    assert type(error) is PredictorError
    gated.gate.set()
    assert ended(closer)
    assert answers([first, queued]) == [0, 1]


def test_close_frees_the_engine_and_may_be_repeated(fake_bundle: Path) -> None:
    backend = FakeBackend(make_encoder())
    predictor = Predictor(fake_bundle, backend=backend)
    predictor.close()
    assert backend.closed
    predictor.close()
    with predictor:
        pass


def test_leaving_the_block_by_an_error_closes(fake_bundle: Path, threads_left: Callable[[], list[str]]) -> None:
    backend = FakeBackend(make_encoder())

    def work() -> None:
        with Predictor(fake_bundle, backend=backend) as predictor:
            predictor.submit(frame(1))
            predictor("absent.png")

    with pytest.raises(FrameError):
        work()
    assert backend.closed
    assert threads_left() == []


@pytest.mark.parametrize(
    "use",
    [
        lambda predictor: predictor(frame(0)),
        lambda predictor: predictor.predict([frame(0)]),
        lambda predictor: predictor.predict([]),
        lambda predictor: predictor.stream([frame(0)]),
        lambda predictor: predictor.submit(frame(0)),
        lambda predictor: predictor.use(TWO),
    ],
    ids=["call", "predict", "predict nothing", "stream", "submit", "use"],
)
@pytest.mark.parametrize("submitted", [False, True])
def test_a_closed_predictor_says_so(
    use: Callable[[Predictor], object], submitted: bool, fake_bundle: Path, threads_left: Callable[[], list[str]]
) -> None:
    predictor = Predictor(fake_bundle, backend="fake")
    if submitted:
        predictor.submit(frame(1)).result(PATIENCE)
    predictor.close()
    with pytest.raises(PredictorError, match="the Predictor is closed") as caught:
        use(predictor)
    assert type(caught.value) is PredictorError
    assert threads_left() == []


class BrokenBackend(FakeBackend):
    """Of a frame whose first pixel is 7, one of the answers is NaN."""

    def __init__(self, spoilt: str) -> None:
        super().__init__(make_encoder())
        self.spoilt = spoilt

    def run(self, frames: Any, recipe: Any) -> Any:
        outputs = super().run(frames, recipe)
        getattr(outputs, self.spoilt)[frames[:, 0, 0] == 7] = np.nan
        return outputs


@pytest.mark.parametrize("spoilt", ["probabilities", "defect_map", "features"])
def test_an_answer_that_is_nan_passes_for_nothing(spoilt: str, fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend=BrokenBackend(spoilt)) as predictor:
        assert number_of(predictor(frame(6))) == 6
        with pytest.raises(BackendError, match=rf"fake backend.*: {spoilt} of frame\[1\] is NaN or infinite"):
            predictor.predict([frame(6), frame(7), frame(8)])
        answered = []
        with pytest.raises(BackendError, match=r"without an answer: frame\[8\]") as caught:
            answered.extend(predictor.stream(frame(number if number < 7 else 7) for number in [*range(7), 1, 7, 1]))
        assert caught.value.unanswered[0] == "frame[8]"


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


# Arguments and answers that cannot be meant


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


def test_maps_and_masks_refuse_what_is_no_size_and_no_threshold(fake_bundle: Path) -> None:
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


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_timeout_that_makes_no_sense_is_refused(timeout: Any, fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor, pytest.raises(ValueError, match="timeout_s must"):
        predictor.submit(frame(1), timeout_s=timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 0])
def test_any_timeout_from_0_on_is_one(timeout: float, fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor:
        assert number_of(predictor.submit(frame(1), timeout_s=timeout).result(PATIENCE)) == 1


def test_a_long_timeout_waits_while_the_queue_is_full(fake_bundle: Path, gated: GatedBackend) -> None:
    predictor, _ = busy(fake_bundle, gated, batch_size=1, queue_size=1)
    with predictor:
        predictor.submit(frame(1))
        thread, raised = in_thread(lambda: predictor.submit(frame(2), timeout_s=1e300))
        thread.join(0.05)
        assert thread.is_alive()
        gated.gate.set()
        assert ended(thread)
        assert raised == []


def test_a_deque_is_a_list_of_frames(fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake", batch_size=2) as predictor:
        assert [number_of(result) for result in predictor.predict(deque([frame(1), frame(2), frame(3)]))] == [1, 2, 3]


@pytest.mark.parametrize("recipe", [5, b"recipe.safetensors", {}])
def test_a_recipe_of_another_type_is_refused(recipe: Any, fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor, pytest.raises(RecipeError, match="must be a Recipe or"):
        predictor.use(recipe)


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_predictor_says_that_it_is_of_its_process_alone(way: Callable[[Any], Any], fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor:
        for value in (predictor, predictor.predict):
            with pytest.raises(PredictorError, match=r"cannot be pickled or copied, .* open one in each process"):
                way(value) if value is predictor or way is pickle.dumps else way(predictor)


class Lying(FakeBackend):
    """Answers as told, from the second frame on."""

    def __init__(self, lie: Callable[[Outputs], Any]) -> None:
        super().__init__(make_encoder())
        self.lie = lie

    def run(self, frames: Any, recipe: Any) -> Any:
        outputs = super().run(frames, recipe)
        return self.lie(outputs) if len(frames) > 1 else outputs


def second_row(values: Any, row: Any) -> Any:
    values[1] = row
    return values


LIES: dict[str, tuple[Callable[[Outputs], Any], str]] = {
    "sum": (
        lambda out: replace(out, probabilities=second_row(out.probabilities, [0.5, 0.5, 0.5])),
        r"the probabilities of frame\[1\] sum to 1.5, not to 1",
    ),
    "negative": (
        lambda out: replace(out, probabilities=second_row(out.probabilities, [-0.5, 0.5, 1])),
        r"probabilities of frame\[1\]: -0.5 to 1, not within \[0, 1\]",
    ),
    "map": (
        lambda out: replace(out, defect_map=second_row(out.defect_map, 3)),
        r"defect_map of frame\[1\]: 3 to 3, not within \[0, 1\]",
    ),
    "infinite": (
        lambda out: replace(out, features=second_row(out.features, np.inf)),
        r"features of frame\[1\] is NaN or infinite",
    ),
    "class": (
        lambda out: replace(out, probabilities=out.probabilities[:, :2]),
        r"probabilities: float32 \[3, 2\], not float32 \[3, 3\]",
    ),
    "frame": (
        lambda out: replace(out, features=out.features[:1]),
        r"features: float32 \[1, 385\], not float32 \[3, 385\]",
    ),
    "grid": (
        lambda out: replace(out, defect_map=out.defect_map.reshape(3, 16)),
        r"defect_map: float32 \[3, 16\], not float32 \[3, 4, 4\]",
    ),
    "type": (
        lambda out: replace(out, features=out.features.astype(object)),
        r"features: object \[3, 385\], not float32",
    ),
    "list": (lambda out: replace(out, probabilities=out.probabilities.tolist()), "probabilities: list, not an array"),
    "masked": (
        lambda out: replace(out, defect_map=np.ma.masked_greater(out.defect_map, 0.5)),
        "defect_map: MaskedArray, not an array",
    ),
    "precision": (
        lambda out: replace(out, features=out.features.astype(np.longdouble)),
        r"features: \w+ \[3, 385\], not float32",
    ),
    "huge": (
        lambda out: replace(out, features=second_row(out.features, 1e30)),
        r"features of frame\[1\] are of a size at which float32 has no direction left",
    ),
    "tiny": (
        lambda out: replace(out, features=second_row(out.features, -1e-30)),
        r"features of frame\[1\] are of a size at which float32 has no direction left",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_is_none_is_a_fault_of_the_engine(lie: str, fake_bundle: Path) -> None:
    told, message = LIES[lie]
    with (
        Predictor(fake_bundle, backend=Lying(told), batch_size=3) as predictor,
        pytest.raises(BackendError, match=message),
    ):
        predictor.predict([frame(0), frame(1), frame(2)])


def test_rounding_of_half_precision_is_no_fault(fake_bundle: Path) -> None:
    def rounded(out: Outputs) -> Outputs:
        return replace(
            out, probabilities=out.probabilities * np.float32(1.004), defect_map=out.defect_map + np.float32(0.002)
        )

    with Predictor(fake_bundle, backend=Lying(rounded)) as predictor:
        assert len(predictor.predict([frame(0), np.full((64, 64), 255, np.uint8)])) == 2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_misses_0_and_1_by_rounding_is_judged_as_0_and_1(temperature: float, tmp_path: Path) -> None:
    """A probability below 0 has no logarithm, and one above 1 makes a score below 0."""

    def rounded(out: Outputs) -> Outputs:
        probabilities = np.tile(np.array([1.006, -0.006, 0], np.float32), (len(out.probabilities), 1))
        return replace(out, probabilities=probabilities, defect_map=out.defect_map * 0)

    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(temperature=temperature, class_share=0.5))
    with Predictor(bundle, backend=Lying(rounded)) as predictor:
        for answer in predictor.predict([frame(0), frame(1)]):
            assert (answer.verdict, answer.score, answer.confidence) == ("good", 0.0, 1.0)
            assert dict(answer.probabilities) == {"good": 1.0, "bridge": 0.0, "hole": 0.0}


def test_answers_are_taken_within_their_range_and_in_float32(fake_bundle: Path) -> None:
    def rounded(out: Outputs) -> Outputs:
        probabilities = second_row(out.probabilities.astype(np.float64), [1.004, -0.004, 0])
        return replace(out, probabilities=probabilities, defect_map=out.defect_map.astype(np.float64) - 0.002)

    point = replace(make_recipe().operating_point, defect_threshold=0.0, class_share=1.0, temperature=2.0)
    with Predictor(fake_bundle, backend=Lying(rounded), recipe=replace(make_recipe(), operating_point=point)) as p:
        result = p.predict([frame(0), np.zeros((64, 64), np.uint8)])[1]
    assert (result.score, result.is_defect, result.label) == (0.0, True, "bridge")
    assert list(result.probabilities.values()) == [1.0, 0.0, 0.0]
    assert (result.patch_map.dtype, result.patch_map.min()) == (np.float32, 0)


def test_a_defect_in_a_frame_of_one_pixel_has_a_region(fake_bundle: Path) -> None:
    def ring(out: Outputs) -> Outputs:
        defect_map = np.full_like(out.defect_map, 0.9)
        defect_map[:, 1:-1, 1:-1] = 0.1
        return replace(out, defect_map=defect_map)

    point = replace(make_recipe().operating_point, defect_threshold=0.0, pixel_threshold=1.0)
    with Predictor(fake_bundle, backend=Lying(ring), recipe=replace(make_recipe(), operating_point=point)) as p:
        result = p.predict([np.zeros((1, 1), np.uint8), frame(0)])[0]
    assert [(region.area, region.below_threshold) for region in result.regions] == [(1, True)]
    assert result.mask().tolist() == [[True]]


def test_a_queue_that_finds_no_room_for_its_thread_says_so(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Predictor(fake_bundle, backend="fake") as predictor:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PredictorError, match="no thread can be started"):
            predictor.submit(frame(1))
        monkeypatch.undo()
        assert number_of(predictor.submit(frame(1)).result(PATIENCE)) == 1


def test_predictions_that_find_no_memory_are_a_typed_error(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(pipeline_module, "summarize", short)
    with Predictor(fake_bundle, backend="fake") as predictor:
        for ask in (
            lambda: predictor(frame(0)),
            lambda: list(predictor.stream([frame(0)])),
            lambda: predictor.submit(frame(0)).result(PATIENCE),
        ):
            with pytest.raises(BackendError, match="no memory is left for a batch of 1"):
                ask()
