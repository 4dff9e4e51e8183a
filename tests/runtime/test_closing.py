"""Closing a Predictor: what was submitted is answered, then the engine is freed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_encoder
from gated import PATIENCE, TWO, GatedBackend, answers, busy, ended, frame, in_thread

from runtime import (
    FakeBackend,
    FrameError,
    Predictor,
    PredictorError,
)


@pytest.fixture
def gated() -> Iterator[GatedBackend]:
    backend = GatedBackend()
    yield backend
    backend.gate.set()


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


def test_submit_waiting_for_room_raises_when_the_predictor_closes(fake_bundle: Path, gated: GatedBackend) -> None:
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
def test_a_closed_predictor_raises_on_every_call(
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


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_predictor_refuses_to_be_pickled_or_copied(way: Callable[[Any], Any], fake_bundle: Path) -> None:
    with Predictor(fake_bundle, backend="fake") as predictor:
        for value in (predictor, predictor.predict):
            with pytest.raises(PredictorError, match=r"cannot be pickled or copied, .* open one in each process"):
                way(value) if value is predictor or way is pickle.dumps else way(predictor)
