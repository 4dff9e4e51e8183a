"""Rounding a weight to integer levels so that rounding errors cancel: later rows compensate for earlier ones.

GPTQ (Frantar et al. 2023, arXiv:2210.17323), with inputs measured on real frames. On DeiT-Tiny at 7 bits it halves the
error of the features compared with rounding to nearest, at no cost when the model runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_DAMPING = 0.03
"""Added to the diagonal of the inputs' second moments, as a share of its mean; otherwise directions that hardly occur
in the frames would absorb any error. 0.03 to 0.3 are alike on DeiT-Tiny."""
_BLOCK = 64
"""Rows whose errors are passed together to all later rows: one large product instead of many small ones."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight [in, out] as int8 `levels` times `scale` [out] (float32)."""

    levels: NDArray[np.int8]
    scale: Array


def round_weight(weight: Array, moments: Array, limit: int) -> Rounded:
    """Levels in -limit ... limit that change `x @ weight` least for the measured inputs x; one scale per output.

    weight: [in, out]. moments: [in, in], the sum of x xᵀ over inputs x. Zeros or a multiple of the identity give
    rounding to nearest.
    """
    rest = weight.astype(np.float64)
    scale = np.maximum(np.abs(rest).max(0) / limit, np.finfo(np.float32).tiny).astype(np.float32)
    steps = scale.astype(np.float64)
    rows = len(rest)
    # Row i of the factor: how later rows compensate for an error in row i (GPTQ, section 3.3).
    damped = moments.astype(np.float64)
    mean = float(np.diag(damped).mean())
    damped = damped / mean + _DAMPING * np.eye(rows) if mean > 0 else np.eye(rows)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    levels = np.empty(weight.shape, np.int8)
    for start in range(0, rows, _BLOCK):
        stop = min(rows, start + _BLOCK)
        errors = np.empty((stop - start, rest.shape[1]))
        for row in range(start, stop):
            levels[row] = np.clip(np.rint(rest[row] / steps), -limit, limit)
            error = (rest[row] - levels[row] * steps) / factor[row, row]
            rest[row + 1 : stop] -= factor[row, row + 1 : stop, None] * error
            errors[row - start] = error
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return Rounded(levels, scale)
