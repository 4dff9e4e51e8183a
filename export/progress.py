"""Progress of long work: named stages with their seconds, and bars within them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


class Stage:
    """A running stage: call it with (done, total) to move its bar; `remark` ends its line."""

    def __init__(self, name: str) -> None:
        self.remark = ""
        self._bar = tqdm(
            desc=name, total=None, leave=False, file=sys.stderr, disable=None, bar_format="{desc} {elapsed}"
        )

    def __call__(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._bar.total != total:
            self._bar.bar_format = "{desc} {bar:30} {n_fmt}/{total_fmt} {remaining}"
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


class Stages:
    """Shows each stage on stderr while it runs and when it ends. seconds: how long each took, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a block."""
        began = time.perf_counter()
        stage = Stage(name)
        try:
            yield stage
        finally:
            stage.close()
            self.seconds[name] = time.perf_counter() - began
        remark = f"   {stage.remark}" if stage.remark else ""
        print(f"{name:<28}{self.seconds[name]:8.1f} s{remark}", file=sys.stderr, flush=True)
