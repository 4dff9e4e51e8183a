"""Results of a function that are kept for the next call with the same arguments, up to so many bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def kept(
    most: int, size: Callable[[Result], int]
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Like `functools.lru_cache`, bounded by bytes: a bound by number says little where results differ in size.

    most: bytes of all results together; the oldest go first, and one that is larger is never kept. size: of a result.
    """

    def decorate(make: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        results: dict[tuple[object, ...], Result] = {}
        lock = threading.Lock()

        @wraps(make)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            key = (*args, *kwargs.items())
            found = results.get(key)  # needs no lock
            if found is None:
                found = make(*args, **kwargs)
                if size(found) <= most:
                    with lock:
                        results[key] = found
                        while sum(map(size, results.values())) > most:
                            del results[next(iter(results))]
            return found

        return call

    return decorate
