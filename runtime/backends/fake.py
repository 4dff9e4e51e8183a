"""A backend without an engine, for tests of the Predictor and of programs that use it."""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

from ..arguments import real_number, whole_number
from ..errors import BackendError
from ..manifest import Encoder
from ..recipe import Recipe
from .base import Backend, Outputs


class FakeBackend(Backend):
    """Answers from pixels alone, at no cost, so that a test can paint the answer it wants.

    A patch's map value is its brightest pixel / 255; the class is the frame's first pixel modulo K.

    delay_s: how long each batch takes. fail_after: raise BackendError from this batch on (0 = the first).
    batches: the sizes of the batches that were run.
    """

    name = "fake"
    description = "fake backend: no engine, answers from pixel values"

    def __init__(
        self, encoder: Encoder, *, max_batch: int = 8, delay_s: float = 0.0, fail_after: int | None = None
    ) -> None:
        self.encoder = encoder
        if not isinstance(encoder, Encoder):
            raise ValueError(f"encoder must be the Encoder of a manifest, not {encoder!r:.60}")
        self.max_batch = whole_number("max_batch", max_batch, 1)
        self.delay_s = real_number("delay_s", delay_s, 0, threading.TIMEOUT_MAX)
        self.fail_after = None if fail_after is None else whole_number("fail_after", fail_after, 0)
        self.batches: list[int] = []
        self.closed = False
        self._lock = threading.Lock()

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`."""
        with self._lock:
            if self.fail_after is not None and len(self.batches) >= self.fail_after:
                raise BackendError("fake backend: told to fail")
            self.batches.append(len(frames))
        time.sleep(self.delay_s)
        batch, height, width = frames.shape
        classes = len(recipe.classes)
        chosen = frames[:, 0, 0].astype(int) % classes
        probabilities = np.full((batch, classes), np.float32(0.1 / (classes - 1)))
        probabilities[np.arange(batch), chosen] = 0.9
        rows, columns = self.encoder.grid
        tiles = frames[:, : height // rows * rows, : width // columns * columns]
        tiles = tiles.reshape(batch, rows, height // rows, columns, width // columns).max(axis=2).max(axis=3)
        features = np.zeros((batch, self.encoder.features), np.float32)
        features[:, 0] = frames[:, 0, 0]
        return Outputs(probabilities, tiles.astype(np.float32) / 255, features)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
