"""Predictor.stream: each frame is judged as it was when it was drawn, by the recipe of that moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe
from PIL import Image, ImageSequence
from streaming import BATCHES_IN_FLIGHT, TWO, Source, frame, number_of

from runtime import FakeBackend, Prediction, Predictor
from runtime import stream as stream_module


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(make_encoder())


@pytest.fixture
def predictor(fake_bundle: Path, backend: FakeBackend) -> Iterator[Predictor]:
    with Predictor(fake_bundle, backend=backend, batch_size=3) as opened:
        yield opened


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
        assert result.head_class == classes[number % len(classes)]
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


def refilled(count: int, shape: tuple[int, ...] = (64, 64)) -> Iterator[np.ndarray]:
    """As a camera does."""
    buffer = np.zeros(shape, np.uint8)
    for number in range(count):
        buffer[...] = number
        yield buffer


def seeked(path: Path) -> Iterator[Image.Image]:
    """As Pillow walks the pages of a file."""
    with Image.open(path) as image:
        yield from ImageSequence.Iterator(image)


def pasted(count: int) -> Iterator[Image.Image]:
    image = Image.new("L", (64, 64))
    for number in range(count):
        image.paste(number, (0, 0, 64, 64))
        yield image


class Untrue(np.ndarray):
    """An array of a camera's library, whose copies are the same array."""

    def copy(self, *_: object, **__: object) -> Untrue:  # type: ignore[override]
        return self


def untrue(count: int) -> Iterator[np.ndarray]:
    for buffer in refilled(count):
        yield buffer.view(Untrue)


@pytest.mark.parametrize("kind", ["array", "view", "large array", "subclass", "file", "image", "memory map"])
def test_each_frame_is_judged_as_it_was_when_it_was_drawn(
    kind: str, fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "large array":
        monkeypatch.setattr(stream_module, "_COPIED", 1000)
    pages = [Image.fromarray(frame(number)) for number in range(30)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    mapped = np.memmap(tmp_path / "frame.raw", np.uint8, "w+", shape=(64, 64))

    def mapping() -> Iterator[np.ndarray]:
        for number in range(30):
            mapped[...] = number
            yield mapped

    sources: dict[str, Any] = {
        "array": refilled(30),
        "view": (buffer[1:-1, ::2] for buffer in refilled(30, (66, 128))),
        "large array": refilled(30),
        "subclass": untrue(30),
        "file": seeked(tmp_path / "stack.tif"),
        "image": pasted(30),
        "memory map": mapping(),
    }
    with Predictor(fake_bundle, backend="fake", batch_size=4) as predictor:
        results = list(predictor.stream(sources[kind], decoders=3))
    assert [number_of(result) for result in results] == list(range(30))
    named = {"file": str(tmp_path / "stack.tif"), "memory map": str(tmp_path / "frame.raw")}
    assert {result.source for result in results} == (
        {named[kind]} if kind in named else {f"frame[{number}]" for number in range(30)}
    )


def test_a_path_object_that_moves_on_is_read_as_it_was_drawn(fake_bundle: Path, tmp_path: Path) -> None:
    class Latest:
        number = -1

        def __fspath__(self) -> str:
            return str(tmp_path / f"{self.number}.png")

    def walked() -> Iterator[Latest]:
        latest = Latest()
        for latest.number in range(20):
            yield latest

    for number in range(20):
        Image.fromarray(frame(number)).save(tmp_path / f"{number}.png")
    with Predictor(fake_bundle, backend="fake", batch_size=4) as predictor:
        results = list(predictor.stream(walked(), decoders=3))
    assert [number_of(result) for result in results] == list(range(20))
    assert [result.path for result in results] == [str(tmp_path / f"{number}.png") for number in range(20)]


def test_a_list_whose_items_are_one_array_refilled_is_judged_as_it_is_walked(fake_bundle: Path) -> None:
    class Camera(Sequence[np.ndarray]):
        buffer = np.zeros((64, 64), np.uint8)

        def __len__(self) -> int:
            return 20

        def __getitem__(self, number: Any) -> Any:
            if number >= 20:
                raise IndexError
            self.buffer[...] = number
            return self.buffer

    with Predictor(fake_bundle, backend="fake", batch_size=8) as predictor:
        assert [number_of(result) for result in predictor.predict(Camera())] == list(range(20))


def test_a_bad_image_keeps_its_place_too(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with Image.open(tmp_path / "half.png") as half:
        results = list(predictor.stream([frame(0), half, frame(2), np.zeros((4, 4, 4, 4)), frame(4)]))
    assert [result.ok for result in results] == [True, False, True, False, True]
    assert [number_of(result) for result in results if result.ok] == [0, 2, 4]
    assert [result.source for result in results][1::2] == [str(tmp_path / "half.png"), "frame[3]"]
