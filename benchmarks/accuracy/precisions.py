"""The bundle under test in every requested precision, and the label agreement of these precisions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.table import KEPT
from calibration.dataset import Dataset, Sample
from calibration.errors import DatasetError
from export.artifacts.quantize import LEAST_FRAMES, MOST_PARITY_FRAMES, add_int8
from export.errors import ParityError
from runtime import Predictor
from runtime.agreement import EIGHT_BITS

INT8_FRAMES = 32
"""Frames whose activations set the int8 ranges."""


def open_precisions(
    bundle: Path,
    precisions: Sequence[str],
    dataset: Dataset,
    test: Sequence[Sample],
    seed: int,
    *,
    backend: str = "auto",
) -> dict[str, Predictor]:
    """A predictor for each precision. int8 is quantized first, on frames outside `test`.

    A seed whose int8 form `sem-clip quantize` would refuse has no int8: it could not ship. A line on stderr names
    the reason. Raises DatasetError as `frames_not_tested`.
    """
    kept = list(precisions)
    if in_8_bits(kept):
        try:
            quantize(bundle, frames_not_tested(dataset, test))
        except ParityError as error:
            print(f"seed {seed}, no int8: {error}", file=sys.stderr)
            kept = [precision for precision in kept if precision not in EIGHT_BITS]
    return {precision: Predictor(bundle, backend=backend, precision=precision) for precision in kept}


def in_8_bits(precisions: Sequence[str]) -> bool:
    """Whether one of them needs the bundle's 8-bit file."""
    return any(precision in EIGHT_BITS for precision in precisions)


def frames_not_tested(dataset: Dataset, test: Sequence[Sample]) -> list[Sample]:
    """Frames that are not in `test`. Raises DatasetError if there are too few to quantize with."""
    tested = {sample.path for sample in test}
    left = [sample for sample in dataset.samples if sample.path not in tested]
    if len(left) < 2 * LEAST_FRAMES:
        raise DatasetError(
            dataset.folder,
            f"a seed tests on all frames but {len(left)}, and int8 needs at least {2 * LEAST_FRAMES} untested frames: "
            "add frames, or leave int8 out of --precisions",
        )
    return left


def quantize(bundle: Path, pool: Sequence[Sample]) -> None:
    """Add int8 to a bundle; ranges and sensitivities come from frames of `pool`, none of which is tested on."""
    count = min(len(pool), INT8_FRAMES + MOST_PARITY_FRAMES)
    paths = [pool[i].path for i in np.linspace(0, len(pool) - 1, count).round().astype(int)]
    add_int8(bundle, paths, calibration_frames=INT8_FRAMES)


def label_agreement(reference: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Share of frames with the label of `reference`: of all frames, and of the KEPT share most confident in it."""
    same = np.array([a == b for a, b in zip(reference["labels"], other["labels"], strict=True)])
    surest = np.argsort(-np.asarray(reference["confidences"]), kind="stable")[: round(KEPT * len(same))]
    return {"labels_equal": float(same.mean()), "labels_equal_kept": float(same[surest].mean())}
