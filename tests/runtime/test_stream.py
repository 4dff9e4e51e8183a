"""Predictor.stream: order, bounded memory, leaving early, and errors in their place."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder
from PIL import Image
from streaming import BATCHES_IN_FLIGHT, Source, frame, number_of, taken

from runtime import BackendError, FailedFrame, FakeBackend, FrameError, Prediction, Predictor, PredictorError
from runtime import pipeline as pipeline_module


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(make_encoder())


@pytest.fixture
def predictor(fake_bundle: Path, backend: FakeBackend) -> Iterator[Predictor]:
    with Predictor(fake_bundle, backend=backend, batch_size=3) as opened:
        yield opened


@pytest.mark.parametrize("count", [1, 2, 3, 4, 29])
@pytest.mark.parametrize("decoders", [None, 1, 4])
def test_frames_are_answered_in_order(
    count: int, decoders: int | None, predictor: Predictor, backend: FakeBackend
) -> None:
    # Large frames take longer to resize than the small ones that follow them.
    sources = [frame(number, 900 if number % 4 == 0 else 64) for number in range(count)]
    results = list(predictor.stream(sources, decoders=decoders))
    assert [number_of(result) for result in results] == list(range(count))
    assert [result.source for result in results] == [f"frame[{number}]" for number in range(count)]
    assert backend.batches == [3] * (count // 3) + ([count % 3] if count % 3 else [])


def test_a_stream_answers_as_single_calls_do(predictor: Predictor, tmp_path: Path) -> None:
    paths = []
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 100), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    for path, result in zip(paths, predictor.stream(paths), strict=True):
        alone = predictor(path)
        assert isinstance(result, Prediction)
        np.testing.assert_array_equal(result.patch_map, alone.patch_map)
        for name in ("source", "path", "label", "probabilities", "score", "peak", "is_defect", "frame_size"):
            assert getattr(result, name) == getattr(alone, name), name


def test_bad_frames_keep_their_place_and_stop_nothing(
    predictor: Predictor, backend: FakeBackend, tmp_path: Path
) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    bad: dict[int, tuple[Any, str, str]] = {
        0: ("absent.png", "absent.png", "no such file"),
        4: (tmp_path / "empty.png", str(tmp_path / "empty.png"), "is empty (0 bytes)"),
        5: (np.zeros((2, 2), int), "frame[5]", "has type int64; expected uint8, uint16 or float in [0, 1]"),
        6: (None, "frame[6]", "a frame is a path, bytes, a file object, a Pillow image or a numpy array, not NoneType"),
        7: (np.full((4, 4), np.nan), "frame[7]", "holds NaN or infinite values"),
        12: (tmp_path, str(tmp_path), "is a folder, not a frame"),
    }
    sources = [bad[number][0] if number in bad else frame(number) for number in range(13)]
    results = list(predictor.stream(sources))
    assert len(results) == 13
    for number, result in enumerate(results):
        if number in bad:
            assert isinstance(result, FailedFrame)
            assert not result.ok
            assert type(result.error) is FrameError
            assert (result.source, result.error.reason) == bad[number][1:]
            assert result.error.source == result.source
        else:
            assert result.ok
            assert number_of(result) == number
    assert sum(backend.batches) == 7


def test_bad_frames_alone_never_reach_the_engine(predictor: Predictor, backend: FakeBackend) -> None:
    results = list(predictor.stream(f"absent-{number}.png" for number in range(11)))
    assert [result.source for result in results] == [f"absent-{number}.png" for number in range(11)]
    assert not any(result.ok for result in results)
    assert backend.batches == []


@pytest.mark.parametrize("sources", [[], (), iter([])], ids=["list", "tuple", "iterator"])
def test_nothing_in_gives_nothing_out(sources: Any, predictor: Predictor, backend: FakeBackend) -> None:
    assert list(predictor.stream(sources)) == []
    assert backend.batches == []


def test_nothing_is_drawn_before_it_is_asked_for(predictor: Predictor, threads_left: Callable[[], list[str]]) -> None:
    source = Source()
    results = predictor.stream(source)
    assert source.drawn == 0
    assert threads_left() == []
    next(results)
    assert source.drawn >= 1
    results.close()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_endless_source_is_drawn_only_a_few_batches_ahead(batch_size: int, fake_bundle: Path) -> None:
    source = Source()
    with Predictor(fake_bundle, backend="fake", batch_size=batch_size) as predictor:
        results = predictor.stream(source)
        for count in range(1, 41):
            assert number_of(next(results)) == count
            assert source.drawn <= count + BATCHES_IN_FLIGHT * batch_size
        threading.Event().wait(0.1)  # time enough for a reader without a bound to run away
        assert source.drawn <= 40 + BATCHES_IN_FLIGHT * batch_size
        results.close()


def test_leaving_the_loop_early_stops_the_threads(predictor: Predictor, threads_left: Callable[[], list[str]]) -> None:
    source = Source()
    results = predictor.stream(source)
    for count, _ in enumerate(results, 1):
        if count == 4:
            break
    assert {name.split("_")[0] for name in threads_left()} == {"sem-clip-infer", "sem-clip-decode", "sem-clip-engine"}
    results.close()
    assert threads_left() == []
    drawn = source.drawn
    assert number_of(predictor(frame(5))) == 5
    assert source.drawn == drawn


def test_leaving_waits_for_the_batch_that_runs(fake_bundle: Path, threads_left: Callable[[], list[str]]) -> None:
    backend = FakeBackend(make_encoder(), delay_s=0.1)
    with Predictor(fake_bundle, backend=backend, batch_size=1) as predictor:
        results = predictor.stream(Source())
        next(results)
        results.close()
        assert threads_left() == []
    assert len(backend.batches) <= BATCHES_IN_FLIGHT


@pytest.mark.parametrize("count", [0, 1, 10])
def test_a_stream_that_ended_leaves_no_threads(
    count: int, predictor: Predictor, threads_left: Callable[[], list[str]]
) -> None:
    assert len(list(predictor.stream([frame(number) for number in range(count)]))) == count
    assert threads_left() == []


def test_an_error_of_the_consumer_stops_the_threads(
    predictor: Predictor, threads_left: Callable[[], list[str]]
) -> None:
    def consume() -> None:
        for _ in predictor.stream(Source()):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        consume()
    assert threads_left() == []


@pytest.mark.parametrize("good", [0, 1, 3, 5, 20])
def test_an_error_of_the_source_is_raised_after_the_answers_before_it(
    good: int, predictor: Predictor, threads_left: Callable[[], list[str]]
) -> None:
    def broken() -> Iterator[np.ndarray]:
        for number in range(good):
            yield frame(number)
        raise OSError("camera unplugged")

    numbers: list[int] = []
    with pytest.raises(OSError, match="camera unplugged"):
        taken(predictor.stream(broken()), numbers)
    assert numbers == list(range(good))
    assert threads_left() == []


@pytest.mark.parametrize(
    "sources",
    [5, None, b"\x89PNG", bytearray(8), io.BytesIO(b"\x89PNG")],
    ids=lambda source: type(source).__name__,
)
def test_a_source_that_is_not_iterable_is_refused_at_once(sources: Any, predictor: Predictor) -> None:
    with pytest.raises(FrameError, match="takes an iterable of frames, not") as caught:
        predictor.stream(sources)
    assert type(sources).__name__ in caught.value.reason


def test_a_backend_error_raised_by_the_source_is_passed_on(predictor: Predictor, fake_bundle: Path) -> None:
    error = BackendError("of another engine", ["its frame"])

    def chained() -> Iterator[np.ndarray]:
        for number in range(5):
            yield frame(number)
        raise error

    numbers: list[int] = []
    with pytest.raises(BackendError) as caught:
        taken(predictor.stream(chained()), numbers)
    assert caught.value is error
    assert numbers == list(range(5))


def test_an_error_on_starting_the_source_is_raised(predictor: Predictor, threads_left: Callable[[], list[str]]) -> None:
    class Unplugged:
        def __iter__(self) -> Iterator[np.ndarray]:
            raise OSError("no camera")

    with pytest.raises(OSError, match="no camera"):
        list(predictor.stream(Unplugged()))
    assert threads_left() == []


@pytest.mark.parametrize("batches", [0, 1, 2, 4])
def test_an_error_of_the_engine_is_raised_after_the_answers_before_it(
    batches: int, fake_bundle: Path, threads_left: Callable[[], list[str]]
) -> None:
    backend = FakeBackend(make_encoder(), fail_after=batches)
    numbers: list[int] = []
    with Predictor(fake_bundle, backend=backend, batch_size=3) as predictor:
        with pytest.raises(BackendError, match="told to fail"):
            taken(predictor.stream(frame(number) for number in range(40)), numbers)
        assert numbers == list(range(3 * batches))
        assert threads_left() == []
        with pytest.raises(BackendError):
            list(predictor.stream([frame(0)]))


def test_an_unforeseen_error_while_decoding_is_raised_after_the_answers_before_it(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, threads_left: Callable[[], list[str]]
) -> None:
    read = pipeline_module.decode_frame

    def read_or_break(source: Any, options: Any, name: str, sides: bool) -> Any:
        if name == "frame[5]":
            raise ZeroDivisionError("a bug")
        return read(source, options, name, sides)

    monkeypatch.setattr(pipeline_module, "decode_frame", read_or_break)
    numbers: list[int] = []
    with pytest.raises(ZeroDivisionError, match="a bug"):
        taken(predictor.stream([frame(number) for number in range(12)]), numbers)
    assert numbers == [0, 1, 2, 3, 4]
    assert threads_left() == []


def test_a_closed_predictor_refuses_before_the_first_frame(fake_bundle: Path) -> None:
    predictor = Predictor(fake_bundle, backend="fake")
    predictor.close()
    with pytest.raises(PredictorError, match="closed"):
        predictor.stream([])


@pytest.mark.parametrize("single", ["frame.png", Path("frame.png"), Image.new("L", (64, 64))])
def test_a_single_frame_is_not_an_iterable_of_frames(fake_bundle: Path, single: object) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor, pytest.raises(FrameError, match="put it in a list"):
        predictor.stream(single)


@pytest.mark.parametrize("started", [0, 1, 2, 3])
def test_a_stream_that_cannot_start_a_thread_raises_and_leaves_none(
    started: int, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, threads_left: Callable[[], list[str]]
) -> None:
    start = threading.Thread.start
    begun: list[threading.Thread] = []

    def start_some(thread: threading.Thread) -> None:
        if len(begun) == started:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(PredictorError, match="no thread can be started") as caught:
        list(predictor.stream([frame(0)], decoders=2))
    assert type(caught.value) is PredictorError
    assert threads_left() == []
    monkeypatch.undo()
    assert number_of(next(predictor.stream([frame(1)]))) == 1


def test_a_frame_that_finds_no_memory_fails_alone(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    read = pipeline_module.decode_frame

    def read_or_fail(source: Any, options: Any, name: str, sides: bool) -> Any:
        if name == "frame[1]":
            raise MemoryError
        return read(source, options, name, sides)

    monkeypatch.setattr(pipeline_module, "decode_frame", read_or_fail)
    results = list(predictor.stream([frame(number) for number in range(4)]))
    assert [result.ok for result in results] == [True, False, True, True]
    assert isinstance(results[1], FailedFrame)
    assert results[1].error.reason == "needs more memory than is left"


@pytest.mark.parametrize("decoders", [0, -1, 1.5, "2", True])
def test_a_number_of_decoders_that_makes_no_sense_is_refused(decoders: Any, predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="decoders must be"):
        predictor.stream([frame(0)], decoders=decoders)


def test_more_decoders_than_work_are_not_started(predictor: Predictor, threads_left: Callable[[], list[str]]) -> None:
    results = predictor.stream(Source(), decoders=10_000)
    next(results)
    assert sum(name.startswith("sem-clip-decode") for name in threads_left()) == 6
    results.close()
