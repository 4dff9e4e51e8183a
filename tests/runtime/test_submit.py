"""Predictor.submit: frames of many threads share batches; the queue is bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder
from gated import PATIENCE, TWO, GatedBackend, answers, busy, ended, frame, in_thread, number_of

from runtime import (
    BackendError,
    FakeBackend,
    FrameError,
    Prediction,
    Predictor,
    PredictorError,
    QueueFullError,
)


@pytest.fixture
def gated() -> Iterator[GatedBackend]:
    backend = GatedBackend()
    yield backend
    backend.gate.set()


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


def test_a_failure_of_the_engine_reaches_the_waiting_callers_only(fake_bundle: Path) -> None:
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


def test_submit_raises_if_its_thread_cannot_start(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Predictor(fake_bundle, backend="fake") as predictor:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PredictorError, match="no thread can be started"):
            predictor.submit(frame(1))
        monkeypatch.undo()
        assert number_of(predictor.submit(frame(1)).result(PATIENCE)) == 1
