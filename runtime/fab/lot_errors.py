"""The error of lots and of the files beside them."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import PredictorError


class LotError(PredictorError):
    """A lot, or its file of codes, cannot be used. `faults` lists all of its faults, not only the first."""

    def __init__(self, where: object, faults: str | Sequence[str]) -> None:
        self.where = str(where)
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        if len(self.faults) == 1:
            text = f"{self.where}: {self.faults[0]}"
        else:
            text = f"{self.where}: {len(self.faults)} faults:" + "".join(f"\n  - {fault}" for fault in self.faults)
        super().__init__(text)
