"""Two recipes on the same frames: what the new one does better, and what worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime import Predictor, Recipe
from runtime.terminal import printable

from .relearning import Known
from .scoring import Scored, rate_text, score_frames

RATES = ("accuracy", "purity", "coverage", "overkill", "underkill", "unknown", "cannot decide")
SHOWN = 20
"""Changed frames that are listed for people; the JSON file names all."""


@dataclass(frozen=True, slots=True)
class Change:
    """A frame with another verdict than before."""

    frame: str
    truth: str
    before: str
    after: str

    @property
    def better(self) -> bool | None:
        """Whether only the new verdict is right; None if both are wrong."""
        return None if self.truth not in (self.before, self.after) else self.after == self.truth


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """before, after: rates with their counts, by RATES. corrected: how many of the frames a person corrected."""

    frames: int
    corrected: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    changed: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "changed": [asdict(one) for one in self.changed]}

    def lines(self) -> list[str]:
        """A table for people, and the frames that changed."""
        whose = f"{self.corrected} of them corrected" if self.corrected else "none of them corrected"
        lines = [f"{f'{self.frames} frames, {whose}':<36}{'before':>20}{'after':>20}"]
        lines += [f"  {name:<34}{rate_text(self.before[name]):>20}{rate_text(self.after[name]):>20}" for name in RATES]
        better, worse = (sum(one.better is good for one in self.changed) for good in (True, False))
        lines.append(f"  {len(self.changed)} frames changed: {better} for the better, {worse} for the worse")
        signs = {True: "+", False: "-", None: " "}
        lines += [
            printable(f"  {signs[one.better]} {one.frame}: {one.before} -> {one.after} (it is {one.truth})")
            for one in self.changed[:SHOWN]
        ]
        left = len(self.changed) - SHOWN
        return [*lines, f"    and {left} more"] if left > 0 else lines


def compare_recipes(
    predictor: Predictor, old: Recipe, new: Recipe, frames: Sequence[Known], *, show_progress: bool = False
) -> BeforeAfter | None:
    """Judge the frames by both recipes, each at its own operating point; None without frames.

    Classes that a recipe does not know count as wrong. The new recipe stays in use. Raises CalibrationError that names
    frames which cannot be read, RecipeError, BackendError.
    """
    if not frames:
        return None
    samples = [known.sample for known in frames]
    rates, verdicts = [], []
    for recipe in (old, new):
        predictor.use(recipe)
        scored = score_frames(predictor, samples, pixels=False, show_progress=show_progress)
        verdicts.append(scored.verdicts(recipe.operating_point))
        rates.append(_rates(scored, recipe, verdicts[-1]))
    changed = tuple(
        Change(str(sample.path), sample.label, before, after)
        for sample, before, after in zip(samples, *verdicts, strict=True)
        if before != after
    )
    return BeforeAfter(len(frames), sum(known.corrected for known in frames), rates[0], rates[1], changed)


def _rates(scored: Scored, recipe: Recipe, verdicts: Sequence[str]) -> dict[str, Any]:
    right = sum(verdict == label for verdict, label in zip(verdicts, scored.labels, strict=True))
    accuracy = {"value": right / len(verdicts), "count": right, "of": len(verdicts)}
    found: dict[str, Any] = {"accuracy": accuracy, **scored.summary(recipe.operating_point)}
    return {name: found[name] for name in RATES}
