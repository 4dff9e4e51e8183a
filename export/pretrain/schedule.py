"""The schedule and settings of a pretraining."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ExportError
from .windows import GRID

SCHEDULE = "6:96:1800,9:48:700,15:18:500"
PER_FRAME = 3
"""Windows cut from one frame."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps on windows of patches x patches, `batch` per step. stem: only the stem learns, at a sixth of the cost."""

    patches: int
    batch: int
    steps: int
    stem: bool = False


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """How to train. decay: the last fraction of all steps, over which the learning rate falls to zero.

    bf16: the blocks' MatMuls in bfloat16, for GPUs and for CPUs with AVX512-BF16 or AMX. replay: fraction of
    every batch that are hard windows of earlier ones. stem_learns: False freezes the stem, at a fifth less time.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warm_up: int = 100
    decay: float = 0.3
    per_frame: int = PER_FRAME
    bf16: bool = False
    replay: float = 0.0
    stem_learns: bool = True

    @property
    def steps(self) -> int:
        """Steps in all."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """The phase of step `step`, and how many of its steps are left."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, phase.steps - step
            step -= phase.steps
        raise ValueError("the schedule has ended")

    @property
    def fall_begins(self) -> int:
        """The first step with a falling learning rate; a longer schedule can start from the state before it."""
        return self.steps - max(1, round(self.decay * self.steps))

    def rate_at(self, step: int) -> float:
        """Learning rate at a step, as a fraction of the full one."""
        return min(1.0, (step + 1) / self.warm_up, (self.steps - step) / (self.steps - self.fall_begins))


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Read "stem:15:32:1000,6:96:1500": patches, batch and steps of every phase. Raises ExportError."""
    try:
        phases = tuple(_phase(part) for part in text.split(","))
    except (ValueError, TypeError):
        raise ExportError(f'"{text}" is not a schedule; write PATCHES:BATCH:STEPS,... such as {SCHEDULE}') from None
    for phase in phases:
        if phase.patches < GRID and phase.batch % PER_FRAME:
            raise ExportError(
                f"phase {phase} cannot be: {PER_FRAME} windows are cut from a frame, so the batch is a multiple of that"
            )
        if not (2 <= phase.patches <= GRID and phase.batch >= 1 and phase.steps >= 1):
            raise ExportError(f"phase {phase} cannot be: patches 2 to {GRID}, batch and steps 1 or more")
    return phases


def _phase(text: str) -> Phase:
    patches, batch, steps = (int(n) for n in text.removeprefix("stem:").split(":"))
    return Phase(patches, batch, steps, stem=text.startswith("stem:"))
