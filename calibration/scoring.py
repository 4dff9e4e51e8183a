"""Frames of known class, scored once through the Predictor. Every rule chooses from these scores."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import FailedFrame, Prediction, Predictor, Recipe
from runtime.files import sha256_of
from runtime.operating_point import VERDICTS, OperatingPoint
from runtime.verdict import decide, named_class, temper

from .dataset import GOOD, Dataset, Sample
from .errors import CalibrationError
from .histogram import ScoreHistogram
from .temperature import expected_calibration_error


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores that the recipe gives n frames, before any operating point.

    classes: the recipe's. labels: [n] the true class names. probabilities: float32 [n, K] at temperature 1.
    score, novelty: float64 [n] as in `Prediction`; score is the defect score with the recipe's own `class_share`.
    pixels: map values with masks. good_pixels: map values of good frames alone. good_peaks: the highest map value of
    each good frame. These three are None where pixels were not requested. flat: the frames had no labels and count as
    good.
    """

    classes: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    score: NDArray[np.float64]
    novelty: NDArray[np.float64]
    pixels: ScoreHistogram | None = None
    good_pixels: ScoreHistogram | None = None
    good_peaks: NDArray[np.float64] | None = None
    flat: bool = False

    @property
    def defect(self) -> NDArray[np.bool_]:
        """Whether each frame truly is a defect."""
        return np.array([label != GOOD for label in self.labels])

    @property
    def truth(self) -> NDArray[np.intp]:
        """Each frame's true class as an index into `classes`; -1 where the recipe does not know it."""
        index = {name: k for k, name in enumerate(self.classes)}
        return np.array([index.get(label, -1) for label in self.labels], dtype=np.intp)

    @property
    def head_class(self) -> NDArray[np.intp]:
        """The most probable class of each frame (the paper's arg max); no temperature changes it."""
        return np.asarray(self.probabilities.argmax(axis=1))

    def head_confidence(self, temperature: float) -> NDArray[np.float32]:
        """The probability of `head_class` at a temperature."""
        confidence: NDArray[np.float32] = temper(self.probabilities, temperature).max(axis=1)
        return confidence

    def named(self, point: OperatingPoint) -> NDArray[np.intp]:
        """The class that each verdict names, or would name without abstaining: `Prediction.label`, as an index."""
        return named_class(self.probabilities, self.score >= point.defect_threshold)

    def confidence(self, point: OperatingPoint) -> NDArray[np.float32]:
        """The probability of the named class: `Prediction.confidence`."""
        tempered = temper(self.probabilities, point.temperature)
        confidence: NDArray[np.float32] = tempered[np.arange(len(tempered)), self.named(point)]
        return confidence

    def verdicts(self, point: OperatingPoint) -> list[str]:
        """`Prediction.verdict` of each frame at an operating point."""
        rows = zip(self.probabilities, self.score.tolist(), self.novelty.tolist(), strict=True)
        return [decide(point, self.classes, row, score, novelty).verdict for row, score, novelty in rows]

    def summary(self, point: OperatingPoint) -> dict[str, object]:
        """Rates of the verdicts at an operating point, each with its counts; null where no frame counts.

        overkill: share of the good frames whose verdict is a defect class. underkill: share of the defects whose
        verdict is good. purity: share of the decided frames whose class is right. coverage: share of all frames that
        are decided. ece: expected calibration error of the head's probabilities, over all frames of known classes.
        """
        verdicts = np.array(self.verdicts(point))
        decided = ~np.isin(verdicts, VERDICTS)
        right = decided & (verdicts == np.array(self.labels))
        known = self.truth >= 0
        sure = self.head_confidence(point.temperature)[known]
        return {
            "overkill": _rate(decided & (verdicts != GOOD) & ~self.defect, ~self.defect),
            "underkill": _rate((verdicts == GOOD) & self.defect, self.defect),
            "purity": _rate(right, decided),
            "coverage": _rate(decided, np.ones_like(decided)),
            **{name: _rate(verdicts == name, np.ones_like(decided)) for name in VERDICTS},
            "ece": {
                "value": expected_calibration_error(sure, (self.head_class == self.truth)[known])
                if known.any()
                else None,
                "of": int(known.sum()),
            },
        }


def _rate(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> dict[str, float | int | None]:
    count, of = int(hits.sum()), int(among.sum())
    return {"value": count / of if of else None, "count": count, "of": of}


def rate_text(rate: Mapping[str, Any]) -> str:
    """A rate of `Scored.summary` with its counts, for people."""
    if rate["value"] is None:
        return "no such frames"
    counts = f"{rate['count']}/{rate['of']}" if "count" in rate else f"{rate['of']} frames"
    return f"{100 * rate['value']:.1f} % ({counts})"


def leave_out_supports(dataset: Dataset, recipe: Recipe) -> tuple[list[Sample], list[Sample]]:
    """The frames that did not teach the recipe, and those that did. Files are compared by content, not by name.

    A recipe is more confident on frames that it was fitted to than on future frames. Raises CalibrationError if no
    frame is left.
    """
    recorded = recipe.teaching.get("support_sha256")
    taught = {str(digest) for digest in recorded} if isinstance(recorded, list) else set()
    fresh: list[Sample] = []
    supports: list[Sample] = []
    for sample in dataset.samples:
        (supports if sha256_of(sample.path) in taught else fresh).append(sample)
    if not fresh:
        raise CalibrationError(
            f"{dataset.folder}: all {len(supports)} frames are supports of this recipe; calibrate on frames that did "
            "not teach it"
        )
    return fresh, supports


def score_frames(
    predictor: Predictor, samples: Sequence[Sample], *, pixels: bool, flat: bool = False, show_progress: bool = False
) -> Scored:
    """Run the frames through `predictor`, with its recipe at temperature 1.

    pixels: also compare maps with masks, which reads every mask. Raises CalibrationError that names the frames that
    cannot be scored, DatasetError for an unusable mask, and BackendError.
    """
    recipe = predictor.recipe
    predictor.use(replace(recipe, operating_point=replace(recipe.operating_point, temperature=1.0)))
    histogram, of_good = (ScoreHistogram(), ScoreHistogram()) if pixels else (None, None)
    peaks: list[float] = []
    results: list[Prediction] = []
    failed: list[FailedFrame] = []
    from tqdm import tqdm

    answers = zip(samples, predictor.stream(sample.path for sample in samples), strict=True)
    disable = None if show_progress else True
    for sample, result in tqdm(answers, total=len(samples), unit="frame", file=sys.stderr, disable=disable):
        if isinstance(result, FailedFrame):
            failed.append(result)
            continue
        results.append(replace(result, patch_map=_NOTHING, features=_NOTHING))
        if histogram is not None and of_good is not None:
            _count_pixels(histogram, of_good, peaks, sample, result)
    predictor.use(recipe)
    _require_scores(samples, failed)
    return Scored(
        classes=recipe.classes,
        labels=tuple(sample.label for sample in samples),
        probabilities=np.array([list(result.probabilities.values()) for result in results], dtype=np.float32),
        score=np.array([result.score for result in results]),
        novelty=np.array([result.novelty for result in results]),
        pixels=histogram,
        good_pixels=of_good,
        good_peaks=np.array(peaks) if pixels else None,
        flat=flat,
    )


_NOTHING = np.zeros((0, 0), np.float32)


def _count_pixels(
    histogram: ScoreHistogram, of_good: ScoreHistogram, peaks: list[float], sample: Sample, result: Prediction
) -> None:
    mask = sample.read_mask(result.frame_size)
    full = result.defect_map()[result.judged_rows]
    if sample.label == GOOD:
        peaks.append(float(full.max()))
        of_good.add(full, np.zeros(full.shape, bool))
    if mask is not None:
        histogram.add(full, mask[result.judged_rows] > 0)


def _require_scores(samples: Sequence[Sample], failed: Sequence[FailedFrame]) -> None:
    if failed:
        shown = "".join(f"\n  - {failure.source}: {failure.error.reason}" for failure in failed[:5])
        more = f"\n  - ... and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise CalibrationError(
            f"{len(failed)} of {len(samples)} frames cannot be scored; calibrate on frames as the tool delivers them, "
            f"and remove the others:{shown}{more}"
        )


def count_labels(samples: Sequence[Sample]) -> dict[str, int]:
    """The number of frames of every class."""
    return dict(Counter(sample.label for sample in samples))
