"""Every error this project raises on purpose. Each message names the fault, the place and the remedy.

    SemClipError
    ├── PredictorError            the runtime: bundles, engines, frames
    │   ├── BundleError           a bundle that is incomplete, damaged, newer than this reader, or unsafe
    │   │   └── RecipeError       the same of a recipe, or a recipe taught on another encoder
    │   ├── BackendUnavailable    the engine asked for cannot run here; names the extra to install
    │   ├── BackendError          the engine failed while it ran
    │   ├── FrameError            one frame cannot be used; nothing else is wrong
    │   ├── BarsError             frames do not tell where their text bars are
    │   ├── KlarfError            a KLARF file that cannot be read, or may not be changed as asked
    │   │   └── KlarfIncomplete   a KLARF file that is not whole yet
    │   ├── (runtime.fab.lot_errors.LotError, for lots and their codes)
    │   ├── QueueFullError        `submit` found no room in time
    │   ├── RowError              a row, or a Parquet file of rows, that is none of this version
    │   └── StoreError            a store of verdicts that is damaged, foreign, or cannot be written
    ├── (calibration.errors: DatasetError, CalibrationError)
    └── (export.errors.ExportError, for teaching and exporting)

No exception type of an engine, of Pillow or of safetensors reaches a caller: each is mapped once, where that
library is called.
"""

from __future__ import annotations

import copyreg
import signal
import traceback
from collections.abc import Sequence
from typing import Any


def raised_by_handler(error: BaseException) -> bool:
    """Whether a signal handler of the calling program raised it, such as an alarm that limits the time of a call.

    Handlers run in the main thread between any two steps, so their errors come out of a decoder or an engine.
    """
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = [getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


class SemClipError(Exception):
    """Root of all errors of this project. All can be pickled and copied, without their causes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls `__init__` with the text alone, which most of these errors do not take. In a pool of
        # processes the resulting error ends the thread that reads answers, and the pool waits for ever.
        return copyreg.__newobj__, (type(self), *self.args), vars(self).copy()  # type: ignore[attr-defined]


class PredictorError(SemClipError):
    """Root of the errors of `runtime`; raised itself when a closed Predictor is used."""


class BundleError(PredictorError):
    """A bundle cannot be used. `faults` lists all of its faults, not only the first."""

    def __init__(self, where: object, faults: str | Sequence[str]) -> None:
        self.where = str(where)
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        if len(self.faults) == 1:
            text = f"{self.where}: {self.faults[0]}"
        else:
            text = f"{self.where}: {len(self.faults)} faults:" + "".join(f"\n  - {fault}" for fault in self.faults)
        super().__init__(text)


class RecipeError(BundleError):
    """A recipe is damaged, or does not belong to this encoder."""


class BackendUnavailable(PredictorError):
    """The engine that was asked for cannot run on this host."""


class BackendError(PredictorError):
    """The engine failed while running a batch.

    unanswered: in a stream, names of the frames that were drawn before the failure and got no answer.
    """

    def __init__(self, message: str, unanswered: Sequence[str] = ()) -> None:
        self.unanswered = tuple(unanswered)
        super().__init__(message)


class FrameError(PredictorError):
    """One frame cannot be read or has the wrong shape, type or values.

    `source` names it; `reason` is the message without the name.
    """

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"{source}: {reason}")


class BarsError(PredictorError):
    """Frames disagree about their text bars, or are too few: the rows must be given."""


class KlarfError(PredictorError):
    """A KLARF file cannot be read, or cannot be changed as asked.

    source: the file. line: from 1, or None where the fault has no line. reason: the message without both.
    """

    def __init__(self, source: object, reason: str, line: int | None = None) -> None:
        self.source = str(source)
        self.reason = reason
        self.line = line
        super().__init__(f"{self.source}{'' if line is None else f', line {line}'}: {reason}")


class KlarfIncomplete(KlarfError):
    """A KLARF file ends too early, or changes while it is read: its writer may not be done yet."""


class QueueFullError(PredictorError):
    """The queue of `Predictor.submit` stayed full for the whole `timeout_s`."""


class RowError(PredictorError):
    """A row of answers, or a Parquet file of them, is damaged, foreign, or of another version of the schema."""


class StoreError(PredictorError):
    """A store of verdicts is damaged, foreign, of another version, or cannot be written.

    where: the file. reason: the message without it.
    """

    def __init__(self, where: object, reason: str) -> None:
        self.where = str(where)
        self.reason = reason
        super().__init__(f"{self.where}: {reason}")
