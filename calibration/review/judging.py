"""Judge the frames of a store again, by the recipe that its bundle holds now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime import FailedFrame, Prediction, Predictor
from runtime.operating_point import VERDICTS
from runtime.verdict_store import Query, Run, VerdictWriter

from .session import Session
from .web import ReviewError

EVERY = 200
"""Frames between two lines of progress."""


@dataclass(frozen=True, slots=True)
class _Known:
    """How a frame was read before. sides: of a pixel, in nm. None if unknown, and all of a frame that was not read."""

    white_level: int | None
    sides: tuple[float, float] | None

    @classmethod
    def of(cls, facts: dict[str, Any]) -> _Known:
        """From `VerdictStore.facts`."""
        width, height = facts.get("pixel_width_nm"), facts.get("pixel_height_nm")
        return cls(facts.get("white_level"), None if width is None or height is None else (width, height))


def judge_again(
    session: Session, store: Path, engine: dict[str, Any], tell: Callable[[str], None], ended: Callable[[], bool]
) -> None:
    """Add a new answer to each frame of the store that came from a file; the old answers stay in it.

    engine: arguments of a Predictor. tell: called with lines of progress. ended: asked after each frame; True stops.
    Frames are read with the white level that they were read with before, and keep the size of a pixel that was known.
    Raises ReviewError, BundleError, BackendError, BackendUnavailable, StoreError.
    """
    bundle, recipe = session.require_bundle()
    frames = [(entry.path, entry.id) for entry in session.store.all_entries(Query()) if entry.path is not None]
    if not frames:
        raise ReviewError("no frame of the store came from a file", 409)
    known = [_Known.of(session.store.facts(number)) for _, number in frames]
    changed, read = 0, 0
    with Predictor(bundle, recipe=recipe, white_level=_white_level(known), **engine) as predictor:
        tell(f"{len(frames)} frames; {predictor.backend.description}")
        run = Run.now(bundle, predictor.manifest.encoder.id, predictor.recipe)
        answers = zip(frames, known, predictor.stream(path for path, _ in frames), strict=True)
        with VerdictWriter(store, run) as writer:
            for count, ((path, number), before, answer) in enumerate(answers, 1):
                old = session.entry(number)
                result = _as_known(answer, before, old.frame_size)
                writer.add(result, old.site, path)
                if isinstance(result, Prediction):
                    read += 1
                    changed += result.verdict != old.verdict
                if count % EVERY == 0:
                    tell(f"{count} of {len(frames)} frames")
                if ended():
                    raise ReviewError(f"ended after {count} of {len(frames)} frames", 409)
    undecided = sum(session.store.verdicts().get(name, 0) for name in VERDICTS)
    tell(f"{read} frames judged, {len(frames) - read} not read; {changed} verdicts changed; {undecided} undecided")


def _white_level(known: list[_Known]) -> int | None:
    """The white level of all frames; None where none was read. Raises ReviewError where they have several."""
    levels = {before.white_level for before in known if before.white_level is not None}
    if len(levels) > 1:
        raise ReviewError(
            f"the frames were read with several white levels ({', '.join(map(str, sorted(levels)))}): judge them with "
            "`sem-clip predict`, each with its own",
            409,
        )
    return levels.pop() if levels else None


def _as_known(
    answer: Prediction | FailedFrame, before: _Known, frame_size: tuple[int, int] | None
) -> Prediction | FailedFrame:
    """The answer with the size of a pixel that was known before, where the frame's file does not tell it."""
    if not isinstance(answer, Prediction) or answer.pixel_size_nm is not None or before.sides is None:
        return answer
    return replace(answer, pixel_size_nm=before.sides) if answer.frame_size == frame_size else answer
