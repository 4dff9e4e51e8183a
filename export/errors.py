"""Errors of teaching and exporting. Each message says what, where and what to do.

SemClipError
└── ExportError
    ├── CheckpointError   an architecture or weights that cannot be found, read or used
    ├── PromptError       a prompt file that cannot be read, or lacks a class
    ├── DatasetError      a data folder that cannot be taught from; lists all faults
    ├── ParityError       an artifact that disagrees with torch by more than its tolerance
    └── OutputExistsError something is where the result should go
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.errors import SemClipError


class ExportError(SemClipError):
    """Root of the errors of `export`."""


class CheckpointError(ExportError):
    """The encoder cannot be built."""


class PromptError(ExportError):
    """The prompts cannot be used."""


class DatasetError(ExportError):
    """The data folder cannot be used. `faults` lists everything that is wrong with it."""

    def __init__(self, where: object, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        shown = self.faults[:20]
        text = f"{where}: {shown[0]}" if len(self.faults) == 1 else f"{where}: {len(self.faults)} faults:"
        if len(self.faults) > 1:
            text += "".join(f"\n  - {fault}" for fault in shown)
        if len(self.faults) > len(shown):
            text += f"\n  - ... and {len(self.faults) - len(shown)} more"
        super().__init__(text)


class ParityError(ExportError):
    """An exported artifact does not agree with torch."""


class OutputExistsError(ExportError):
    """Nothing is overwritten without being asked."""
