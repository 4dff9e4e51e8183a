"""Predictor.stream on the fake backend: order, bad frames, bounded look-ahead, errors, and clean ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe
from PIL import Image

from runtime import BackendError, FailedFrame, FakeBackend, FrameError, Prediction, Predictor, PredictorError
from runtime import pipeline as pipeline_module

TWO = make_recipe(("good", "scratch"))
BATCHES_IN_FLIGHT = 5
"""At most: one with the consumer, one handed over, one that was run and waits, and two that are decoded ahead."""


def frame(number: int, size: int = 64) -> np.ndarray:
    """A frame that the fake backend calls class `number` modulo K, with `number` as its first feature."""
    return np.full((size, size), number, np.uint8)


def number_of(result: Prediction | FailedFrame) -> int:
    """Which frame() a result answers."""
    assert isinstance(result, Prediction)
    return int(result.features[0])


@pytest.fixture
def threads_left() -> Callable[[], list[str]]:
    """Names of the runtime's threads that were started in this test and still run."""
    before = set(threading.enumerate())
    return lambda: [t.name for t in threading.enumerate() if t not in before and t.name.startswith("sem-clip")]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(make_encoder())


@pytest.fixture
def predictor(fake_bundle: Path, backend: FakeBackend) -> Iterator[Predictor]:
    with Predictor(fake_bundle, backend=backend, batch_size=3) as opened:
        yield opened


class Source:
    """Frames without end, counted as they are drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            self.drawn += 1
            yield frame(self.drawn % 256)


def taken(results: Iterator[Prediction | FailedFrame], into: list[int]) -> None:
    """Take everything, so that what came before an error is known."""
    for result in results:
        into.append(number_of(result))


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


def test_what_cannot_be_iterated_is_a_type_error(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        next(predictor.stream(5))  # type: ignore[arg-type]


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

    def read_or_break(source: Any, options: Any, name: str) -> Any:
        if name == "frame[5]":
            raise ZeroDivisionError("a bug")
        return read(source, options, name)

    monkeypatch.setattr(pipeline_module, "decode_frame", read_or_break)
    numbers: list[int] = []
    with pytest.raises(ZeroDivisionError, match="a bug"):
        taken(predictor.stream([frame(number) for number in range(12)]), numbers)
    assert numbers == [0, 1, 2, 3, 4]
    assert threads_left() == []


@pytest.mark.parametrize("swap_at", [0, 1, 3, 4, 8])
@pytest.mark.parametrize("bad_too", [False, True])
def test_a_recipe_swapped_by_the_source_counts_from_that_frame_on(
    swap_at: int, bad_too: bool, predictor: Predictor, backend: FakeBackend
) -> None:
    def sources() -> Iterator[Any]:
        for number in range(9):
            if number == swap_at:
                if bad_too:
                    yield "absent.png"
                predictor.use(TWO)
            yield frame(number)

    results = [result for result in predictor.stream(sources()) if isinstance(result, Prediction)]
    assert [number_of(result) for result in results] == list(range(9))
    for number, result in enumerate(results):
        classes = ("good", "bridge", "hole") if number < swap_at else ("good", "scratch")
        assert tuple(result.probabilities) == classes
        assert result.label == classes[number % len(classes)]
    assert sum(backend.batches) == 9
    assert max(backend.batches) <= 3


def test_batches_end_where_the_recipe_changes(fake_bundle: Path, backend: FakeBackend) -> None:
    three = make_recipe()
    with Predictor(fake_bundle, backend=backend, batch_size=4) as predictor:

        def sources() -> Iterator[np.ndarray]:
            for number in range(11):
                if number in (2, 9):
                    predictor.use(TWO if number == 2 else three)
                yield frame(number)

        results = list(predictor.stream(sources()))
    assert [len(result.probabilities) for result in results if isinstance(result, Prediction)] == [3] * 2 + [2] * 7 + [
        3
    ] * 2
    assert backend.batches == [2, 4, 3, 2]


def test_a_recipe_swapped_by_the_consumer_reaches_the_stream(predictor: Predictor) -> None:
    results = predictor.stream(Source())
    first = next(results)
    predictor.use(TWO)
    later = [next(results) for _ in range(BATCHES_IN_FLIGHT * 3 + 3)]
    results.close()
    assert isinstance(first, Prediction)
    assert len(first.probabilities) == 3
    counts = [len(result.probabilities) for result in later if isinstance(result, Prediction)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 2


def test_two_streams_and_single_calls_do_not_mix(predictor: Predictor) -> None:
    odd = predictor.stream(frame(number) for number in range(1, 40, 2))
    even = predictor.stream(frame(number) for number in range(0, 40, 2))
    for number, (left, right) in enumerate(zip(even, odd, strict=True)):
        assert (number_of(left), number_of(right)) == (2 * number, 2 * number + 1)
        assert number_of(predictor(frame(200))) == 200


def test_a_closed_predictor_refuses_before_the_first_frame(fake_bundle: Path) -> None:
    predictor = Predictor(fake_bundle, backend="fake")
    predictor.close()
    with pytest.raises(PredictorError, match="closed"):
        predictor.stream([])


@pytest.mark.parametrize("single", ["frame.png", Path("frame.png"), Image.new("L", (64, 64))])
def test_a_single_frame_is_not_an_iterable_of_frames(fake_bundle: Path, single: object) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor, pytest.raises(FrameError, match="put it in a list"):
        predictor.stream(single)
