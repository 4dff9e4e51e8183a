"""What one batch in flight needs on a GPU, and how its buffers are laid out. Sizes and offsets are in bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..manifest import Encoder
from .cuda_device import Handle

SLOTS = 3
"""Batches in flight: one copied in, one computed, one copied out."""
_ALIGNMENT = 256


def aligned(size: int) -> int:
    """`size` rounded up to the alignment of device memory."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the outputs of a batch size and number of classes lie in a slot's output buffer."""

    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, encoder: Encoder, batch: int, classes: int) -> Layout:
        """For float32 outputs in the order of `OUTPUTS`."""
        shapes = ((batch, classes), (batch, *encoder.grid), (batch, encoder.features))
        offsets, total = [], 0
        for shape in shapes:
            offsets.append(total)
            total += aligned(4 * math.prod(shape))
        return cls(shapes, tuple(offsets), total)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What batches of up to `batch` frames need: shared activations, the recipe by tensor, and each slot's buffers."""

    batch: int
    activations: int
    recipe: Mapping[str, int]
    slot_in: int
    slot_out: int

    @property
    def total(self) -> int:
        """Of everything."""
        return self.activations + sum(self.recipe.values()) + SLOTS * (self.slot_in + self.slot_out)


@dataclass(slots=True, eq=False)
class Ready:
    """An execution context whose shapes and addresses stay as they are, and the graph captured from it."""

    context: Any
    graph: Handle | None


@dataclass(slots=True, eq=False)
class Slot:
    """One batch in flight. `computed`: an event, after which the activation memory is free for the next.

    ready: by batch size and number of classes.
    """

    stream: Handle
    computed: Handle
    host_in: NDArray[np.uint8]
    host_out: NDArray[np.uint8]
    device_in: int
    device_out: int
    ready: dict[tuple[int, int], Ready] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A batch of `frames` frames that is queued in a slot."""

    slot: Slot
    frames: int
    layout: Layout
