"""Errors of data folders and calibration. Each message names the fault, the place and the remedy.

SemClipError
├── DatasetError          a data folder that cannot be used; lists all faults
│   └── CorrectionError   a file of corrections that cannot be used, or a correction that cannot be taken
└── CalibrationError      an operating point that cannot be chosen from these frames
    └── PlotsUnavailable  matplotlib is not installed; names the extra
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.errors import SemClipError


class DatasetError(SemClipError):
    """The data folder cannot be used. `faults` lists everything that is wrong with it."""

    def __init__(self, where: object, faults: str | Sequence[str]) -> None:
        self.where = str(where)
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        shown = self.faults[:20]
        text = f"{where}: {shown[0]}" if len(self.faults) == 1 else f"{where}: {len(self.faults)} faults:"
        if len(self.faults) > 1:
            text += "".join(f"\n  - {fault}" for fault in shown)
        if len(self.faults) > len(shown):
            text += f"\n  - ... and {len(self.faults) - len(shown)} more"
        super().__init__(text)


class CorrectionError(DatasetError):
    """A file of corrections cannot be used, or a correction cannot be taken. `faults` lists all that is wrong."""


class CalibrationError(SemClipError):
    """No operating point can be chosen from these frames."""


class PlotsUnavailable(CalibrationError):
    """Pictures were requested, but matplotlib is not installed."""
