"""A backend that waits at a gate, and threads, for tests of Predictor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_encoder, make_recipe

from runtime import (
    FakeBackend,
    Prediction,
    Predictor,
)

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
