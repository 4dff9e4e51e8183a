"""Errors of teaching and exporting. Each message names what is wrong, where, and what to do.

SemClipError
└── ExportError
    ├── CheckpointError   an architecture or weights that cannot be found, read or used
    ├── PromptError       a prompt file that cannot be read, or lacks a class
    ├── ParityError       an artifact that disagrees with torch by more than its tolerance
    └── OutputExistsError something exists where the result should go
"""

from __future__ import annotations

from runtime.errors import SemClipError


class ExportError(SemClipError):
    """Root of the errors of `export`."""


class CheckpointError(ExportError):
    """The encoder cannot be built."""


class PromptError(ExportError):
    """The prompts cannot be used."""


class ParityError(ExportError):
    """An exported artifact does not agree with torch."""


class OutputExistsError(ExportError):
    """The output exists, and --force was not given."""
