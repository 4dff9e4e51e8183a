"""What long work says while it runs: named stages with their seconds, and bars within them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Stages:
    """Prints each stage as it begins and ends, to stderr. `seconds` holds how long each one took, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Time a block; yields a function (done, total) that moves its bar."""
        began = time.perf_counter()
        bar = tqdm(desc=name, total=None, leave=False, file=sys.stderr, disable=None, bar_format="{desc} {elapsed}")

        def advance(done: int, total: int) -> None:
            if bar.total != total:
                bar.bar_format = "{desc} {bar:30} {n_fmt}/{total_fmt} {remaining}"
                bar.reset(total)
            bar.update(done - bar.n)

        try:
            yield advance
        finally:
            bar.close()
            self.seconds[name] = time.perf_counter() - began
        print(f"{name:<28}{self.seconds[name]:8.1f} s", file=sys.stderr, flush=True)
