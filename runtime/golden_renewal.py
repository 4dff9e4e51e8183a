"""Golden frames for another recipe of a bundle, without torch: an engine of this host gives the answers.

The engine computes in fp32, and must first give the answers that the golden frames hold, by the recipe that they were
made with. So it stands in for the export, and the bundle keeps a proof of what it runs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .agreement import Limits, compare, joined
from .backends import Backend, Outputs, open_backend
from .errors import BundleError
from .golden import Frames, Golden, judge, load_golden, tensors_digest, variants, verdict_of
from .manifest import Manifest
from .recipe import Recipe

ENGINE, PRECISION = "cpu", "fp32"
_OTHER_FRAMES = 4
_AND_THEN = "; then "


def renewed_golden(folder: Path, manifest: Manifest, old: Recipe, new: Recipe) -> bytes | None:
    """The content of the bundle's golden file by the recipe `new`; None if its answers stay valid.

    old: the recipe of the bundle. Raises BundleError where the bundle has no golden frames of `old`, or where the
    engine does not agree with them; BackendUnavailable, BackendError.
    """
    with suppress(BundleError):
        load_golden(folder, manifest, new)
        return None
    golden = load_golden(folder, manifest, old)
    backend = open_backend(ENGINE, folder, manifest, precision=PRECISION)
    try:
        return renew(golden, backend, manifest, old, new, folder).to_bytes()
    finally:
        backend.close()


def renew(golden: Golden, backend: Backend, manifest: Manifest, old: Recipe, new: Recipe, where: Path) -> Golden:
    """Golden frames with the backend's answers by `new`. Raises BundleError if it does not give those by `old`."""
    limits = Limits.of(PRECISION, golden.tolerance[PRECISION])
    found = compare(golden.answers, _answers(backend, golden.frames, old), limits)
    if not found.passed:
        raise BundleError(
            where,
            f"{backend.description} does not agree with the golden frames, so it cannot answer for another recipe: "
            f"`sem-clip verify {where}` tells more",
        )
    answers = _answers(backend, golden.frames, new)
    few = golden.frames[:_OTHER_FRAMES]
    judged = judge(manifest.encoder, manifest.smoothing_px, new, answers)
    return replace(
        golden,
        answers=answers,
        others={name: _answers(backend, few, other) for name, other in variants(new).items()},
        reference=f"{golden.reference.partition(_AND_THEN)[0]}{_AND_THEN}{backend.description}",
        verdicts=tuple(verdict_of(prediction) for prediction in judged),
        recipe_sha256=new.sha256(),
        tensors_sha256=tensors_digest(new),
    )


def _answers(backend: Backend, frames: Frames, recipe: Recipe) -> Outputs:
    """The backend's answers, one frame at a time: no result depends on the others of a batch."""
    return joined([backend.run(frames[index : index + 1], recipe) for index in range(len(frames))])
