"""Batch sizes that an engine is prepared for. Any other is padded up to the next one, or split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def bucket_sizes(least: int, most: int) -> tuple[int, ...]:
    """`least`, then its doubles below `most`, then `most`. Raises ValueError unless 1 <= least <= most."""
    if not 1 <= least <= most:
        raise ValueError(f"there are no batch sizes from {least} to {most}")
    sizes = [least]
    while sizes[-1] * 2 < most:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes) if sizes[-1] == most else (*sizes, most)


def bucket_for(frames: int, sizes: Sequence[int]) -> int:
    """The smallest size that holds `frames`. Raises ValueError if none does."""
    for size in sizes:
        if frames <= size:
            return size
    raise ValueError(f"{frames} frames are more than the largest batch of {sizes[-1]}")


def pieces(frames: int, most: int) -> Iterator[slice]:
    """Consecutive slices of at most `most` frames."""
    for start in range(0, frames, most):
        yield slice(start, min(start + most, frames))
