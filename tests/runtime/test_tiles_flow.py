"""The flow of tiles: how many frames are drawn ahead of the engine, and which frames share a batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_encoder, make_recipe
from numpy.typing import NDArray

from runtime import BackendError, FakeBackend, FrameOptions, Predictor
from runtime.backends import Outputs
from runtime.recipe import Recipe

NATIVE = FrameOptions(tile=64, overlap=0)
SIXTEEN_TILES = (256, 256)
ONE_TILE = (64, 64)


class Gated(FakeBackend):
    """Answers nothing until `gate` is set; `entered` tells that it was asked."""

    def __init__(self, max_batch: int) -> None:
        super().__init__(make_encoder(), max_batch=max_batch)
        self.gate, self.entered = threading.Event(), threading.Event()

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        self.entered.set()
        assert self.gate.wait(60)
        return super().run(frames, recipe)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        pytest.param(ONE_TILE, 4 + 2 * 4, id="frames of one tile: two batches, as without tiles"),
        pytest.param(SIXTEEN_TILES, 1 + 1, id="frames of many tiles: the next one"),
    ],
)
def test_frames_are_prepared_while_the_engine_has_work(fake_bundle: Path, size: tuple[int, int], drawn: int) -> None:
    taken: list[int] = []

    def source() -> Iterator[NDArray[np.uint8]]:
        for number in range(40):
            taken.append(number)
            yield np.full(size, number, np.uint8)

    backend = Gated(max_batch=4)
    recipe = make_recipe(frame=NATIVE)
    with Predictor(fake_bundle, backend=backend, recipe=recipe, batch_size=4) as predictor:
        results: list[float] = []
        reader = threading.Thread(
            target=lambda: results.extend(r.features[0] for r in predictor.stream(source(), decoders=1))
        )  # type: ignore[union-attr]
        reader.start()
        try:
            assert backend.entered.wait(60)
            until(lambda: len(taken) >= drawn)
            assert len(taken) <= drawn + 4
        finally:
            backend.gate.set()
            reader.join(60)
    assert results == list(range(40))


def test_submitted_frames_wait_for_no_more_tiles_than_fill_a_batch(fake_bundle: Path) -> None:
    backend = Gated(max_batch=4)
    with Predictor(
        fake_bundle, backend=backend, recipe=make_recipe(frame=NATIVE), batch_size=4, max_delay_ms=0
    ) as predictor:
        first = predictor.submit(np.zeros(SIXTEEN_TILES, np.uint8))
        assert backend.entered.wait(60)
        others = [predictor.submit(np.full(SIXTEEN_TILES, number, np.uint8)) for number in (1, 2)]
        backend.fail_after = 8  # four batches are the first frame, four the second
        backend.gate.set()
        assert [future.result(60).features[0] for future in (first, others[0])] == [0, 1]
        with pytest.raises(BackendError, match="told to fail"):
            others[1].result(60)


def test_a_list_of_frames_holds_no_more_tiles_than_fill_a_batch(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend(make_encoder(), max_batch=4)
    with Predictor(fake_bundle, backend=backend, recipe=make_recipe(frame=NATIVE), batch_size=4) as predictor:
        held: list[int] = []
        answer = predictor._pipeline.answer
        monkeypatch.setattr(
            type(predictor._pipeline), "answer", lambda _, jobs: (held.append(len(jobs)), answer(jobs))[1]
        )
        sizes = [ONE_TILE, ONE_TILE, SIXTEEN_TILES, SIXTEEN_TILES, *[ONE_TILE] * 5]
        found = predictor.predict([np.full(size, k, np.uint8) for k, size in enumerate(sizes)])
    assert [result.features[0] for result in found] == list(range(9))
    assert held == [3, 1, 4, 1]
