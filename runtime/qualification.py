"""One opened engine against the golden frames: a list of checks, each passed or not, with figures and a reason.

Correctness goes through `Pipeline.infer`, as every frame does. Speed is compared with the targets of the manifest, and
an engine that misses them is still correct: this host may be busy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from .agreement import Difference, Limits, compare, explain, joined, rows_of, tolerance_of
from .backends import Backend, Outputs
from .errors import PredictorError
from .frames import Prepared
from .golden import FEWER, MORE, REVERSED, Frames, Golden, judge, variants, verdict_of
from .host import resident_memory_mb
from .manifest import Encoder, Manifest
from .pipeline import Job, Pipeline, Setup
from .recipe import MAX_CLASSES, FrameOptions, Recipe
from .speed import measured_speed
from .targets import NO_TARGET, Target

THREADS = 4
REPEATS = 3
GROWTH_MB = 64.0
"""Memory may grow by this much during the timed part; an engine's memory pools settle before it."""
BOX_PX = 2
"""A region's side may differ by this much between hosts: CPUs round the map's up-sampling differently."""
TARGET = "target"
"""The name of the check that compares speed with the manifest's target."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check. passed: None where it was not possible. said: the reason, or the result in words."""

    name: str
    passed: bool | None
    said: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """An engine to be qualified with the bundle's own recipe. batches: sizes to run, the largest last.

    tolerance: largest difference allowed, for the engine's precision. most_classes: of any recipe that the engine
    takes. target: the speed that the manifest asks of it.
    """

    encoder: Encoder
    smoothing_px: float
    recipe: Recipe
    recipe_sha256: str
    golden: Golden
    backend: Backend
    batches: tuple[int, ...]
    tolerance: float
    most_classes: int = MAX_CLASSES
    target: Target = NO_TARGET

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        recipe: Recipe,
        golden: Golden,
        backend: Backend,
        batches: tuple[int, ...],
        most_classes: int = MAX_CLASSES,
    ) -> Subject:
        """An engine of a bundle. recipe: the bundle's own."""
        reports = [(artifact.precision, artifact.parity) for artifact in manifest.artifacts]
        return cls(
            manifest.encoder,
            manifest.smoothing_px,
            recipe,
            manifest.recipe_sha256,
            golden,
            backend,
            batches,
            tolerance_of(backend.precision, golden.tolerance, reports),
            most_classes,
            manifest.targets.get((backend.name, backend.precision), NO_TARGET),
        )

    @property
    def limits(self) -> Limits:
        """The differences that the backend's precision allows."""
        return Limits.of(self.backend.precision, self.tolerance)

    def infer(self, frames: Frames, recipe: Recipe) -> Outputs:
        """One batch, as the Predictor runs it. Raises BackendError, also for answers that are not finite."""
        setup = Setup(recipe, FrameOptions())
        pipeline = Pipeline(self.encoder, self.smoothing_px, self.backend, len(frames))
        rows = [Prepared(frame, self.encoder.input_size, f"row {i}", None) for i, frame in enumerate(frames)]
        return pipeline.infer([Job(row, setup) for row in rows])[0]


def qualify(subject: Subject, seconds: float) -> list[Check]:
    """All checks of one engine. seconds: for the timed part."""
    checks = [
        _checked("host", partial(host_verdicts, subject)),
        *(_checked(f"batch {size}", partial(batch_parity, subject, size)) for size in subject.batches),
        _checked("verdicts", partial(verdicts, subject)),
        _checked("repeats", partial(repeats, subject)),
        _checked("recipe swap", partial(recipe_swap, subject)),
        *(_checked(name, partial(other_classes, subject, name)) for name in (MORE, FEWER)),
        _checked(f"{THREADS} threads", partial(threads, subject)),
    ]
    before = resident_memory_mb()
    timed = _checked("speed", partial(speed, subject, seconds))
    checks += [timed, memory(before)]
    if subject.target.figures():
        checks.append(reached(subject.target, timed))
    return checks


def check_opening(subject: Subject) -> str:
    """The fault found in one batch of golden frames; "" where there is none. Raises BackendError."""
    count = min(len(subject.golden.frames), subject.batches[-1])
    found = subject.infer(subject.golden.frames[:count], subject.recipe)
    reference = rows_of(subject.golden.answers, slice(count))
    if compare(reference, found, subject.limits).passed:
        return ""
    return explain(reference, found, subject.limits, subject.recipe.classes)


def host_verdicts(subject: Subject) -> Check:
    """This host draws the export's verdicts and regions from the reference answers."""
    golden = subject.golden
    if golden.recipe_sha256 != subject.recipe_sha256:
        return Check("host", None, "verdicts are not compared: the recipe's thresholds have changed since the export")
    found = [verdict_of(p) for p in judge(subject.encoder, subject.smoothing_px, subject.recipe, golden.answers)]
    wrong = [i for i, (a, b) in enumerate(zip(golden.verdicts, found, strict=True)) if not _same_verdict(a, b)]
    if wrong:
        return Check("host", False, f"this host draws other verdicts or regions from equal numbers: frame {wrong[0]}")
    return Check("host", True, f"verdicts and regions of {len(found)} frames equal those of the export")


def batch_parity(subject: Subject, size: int) -> Check:
    """All golden frames in batches of one size, the last of them incomplete."""
    name, count = f"batch {size}", len(subject.golden.frames)
    total = max(count, 2 * size - 1)
    total -= 1 if size > 1 and total % size == 0 else 0
    rows = np.arange(total) % count
    whole = joined(
        [subject.infer(subject.golden.frames[rows[i : i + size]], subject.recipe) for i in range(0, total, size)]
    )
    reference = rows_of(subject.golden.answers, rows)
    difference = compare(reference, whole, subject.limits)
    figures = _figures(difference)
    if difference.passed:
        return Check(name, True, "agrees with the export", figures)
    full = total - total % size
    wrong = rows_of(whole, slice(full, None)), rows_of(reference, slice(full, None))
    last_only = size > 1 and min(difference.faulty) >= full
    if last_only:
        said = explain(wrong[1], wrong[0], subject.limits, subject.recipe.classes)
        return Check(name, False, f"the incomplete last batch, {total % size} of {size}, is wrong: {said}", figures)
    return Check(name, False, explain(reference, whole, subject.limits, subject.recipe.classes), figures)


def verdicts(subject: Subject) -> Check:
    """Verdicts from the engine's numbers equal those from the reference's; a close call may fall either way."""
    size, golden = subject.batches[-1], subject.golden
    frames = golden.frames
    found = joined([subject.infer(frames[i : i + size], subject.recipe) for i in range(0, len(frames), size)])
    judged = [
        judge(subject.encoder, subject.smoothing_px, subject.recipe, outputs) for outputs in (golden.answers, found)
    ]
    pairs = list(zip(*judged, strict=True))
    others = [i for i, (a, b) in enumerate(pairs) if a.verdict != b.verdict]
    figures = {"frames": len(pairs), "equal": len(pairs) - len(others)}
    within = compare(golden.answers, found, subject.limits).passed
    if others and not within:
        a, b = pairs[others[0]]
        return Check("verdicts", False, f"frame {others[0]} is {b.verdict}, for the export it is {a.verdict}", figures)
    close = f"; {len(others)} close calls fall the other way" if others else ""
    return Check("verdicts", True, f"{len(pairs) - len(others)} of {len(pairs)} equal{close}", figures)


def repeats(subject: Subject) -> Check:
    """The same batch several times gives the same answers."""
    frames = subject.golden.frames[: subject.batches[-1]]
    runs = [subject.infer(frames, subject.recipe) for _ in range(REPEATS)]
    apart = [compare(runs[0], other, subject.limits) for other in runs[1:]]
    most = max(max(d.probabilities, d.defect_map) for d in apart)
    figures = {"runs": REPEATS, "largest_difference": most}
    if most > subject.limits.tie:
        return Check("repeats", False, f"{REPEATS} runs of one batch differ by up to {most:.1e}", figures)
    return Check("repeats", True, "bit for bit equal" if most == 0 else f"differ by up to {most:.1e}", figures)


def recipe_swap(subject: Subject) -> Check:
    """Another recipe and then the first again, on the same frames."""
    frames, recipe, other, reference, expected = _of_variant(subject, REVERSED)
    subject.infer(frames, recipe)
    swapped, back = subject.infer(frames, other), subject.infer(frames, recipe)
    steps = (
        ("after the swap", expected, swapped, other, reference),
        ("after the swap back", reference, back, recipe, expected),
    )
    for when, wanted, found, asked, before in steps:
        if not compare(wanted, found, subject.limits).passed:
            said = explain(wanted, found, subject.limits, asked.classes, before)
            return Check("recipe swap", False, f"{when}: {said}", _figures(compare(wanted, found, subject.limits)))
    return Check(
        "recipe swap", True, "both recipes agree with the export", _figures(compare(reference, back, subject.limits))
    )


def other_classes(subject: Subject, name: str) -> Check:
    """A recipe with another number of classes."""
    if name not in subject.golden.others:
        return Check(name, None, "no recipe has so many or so few classes")
    frames, _, other, _, expected = _of_variant(subject, name)
    if len(other.classes) > subject.most_classes:
        return Check(name, None, f"the engine was built for {subject.most_classes} classes at most")
    found = subject.infer(frames, other)
    difference = compare(expected, found, subject.limits)
    if not difference.passed:
        said = explain(expected, found, subject.limits, other.classes)
        return Check(name, False, said, _figures(difference))
    return Check(name, True, f"{len(other.classes)} classes agree with the export", _figures(difference))


def threads(subject: Subject) -> Check:
    """Concurrent calls from several threads, with two recipes."""
    frames, recipe, other, reference, expected = _of_variant(subject, REVERSED)
    turns = [(recipe, reference), (other, expected)] * THREADS
    name = f"{THREADS} threads"
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda turn: subject.infer(frames, turn[0]), turns))
    for (asked, wanted), found in zip(turns, answers, strict=True):
        if not compare(wanted, found, subject.limits).passed:
            before = expected if wanted is reference else reference
            return Check(name, False, explain(wanted, found, subject.limits, asked.classes, before))
    return Check(name, True, f"{len(turns)} calls agree with the export")


def speed(subject: Subject, seconds: float) -> Check:
    """Latency at batch 1 and frames/s, of the engine alone and with everything around it."""
    setup = Setup(subject.recipe, FrameOptions())
    pipeline = Pipeline(subject.encoder, subject.smoothing_px, subject.backend, subject.batches[-1])
    return Check("speed", True, "", measured_speed(pipeline, setup, subject.golden.frames, seconds))


def memory(before: float | None) -> Check:
    """How much this process grew during the timed part."""
    after = resident_memory_mb()
    if before is None or after is None:
        return Check("memory", None, "this system does not report it")
    growth = after - before
    figures = {"growth_mb": growth, "resident_mb": after}
    return Check("memory", growth <= GROWTH_MB, f"grew by {growth:.0f} MB (allowed {GROWTH_MB:.0f})", figures)


def reached(target: Target, timed: Check) -> Check:
    """Whether the measured speed is the target's. timed: what `speed` gave."""
    asked = target.figures()
    if not timed.figures:
        return Check(TARGET, False, "the speed could not be measured", {"asked": asked})
    latency = timed.figures["end_to_end_ms"]
    found = {"p99_ms": latency["p99"], "frames_per_s": timed.figures["end_to_end_frames_per_second"]}
    words = {
        "p99_ms": f"p99 is {found['p99_ms']:.4g} ms of {latency['n']} frames, the target {target.p99_ms or 0:g} ms",
        "frames_per_s": f"{found['frames_per_s']:.4g} frames/s, the target {target.frames_per_s or 0:g}",
    }
    missed = [
        name for name, value in asked.items() if (found[name] > value if name == "p99_ms" else found[name] < value)
    ]
    figures = {"asked": asked, "found": {name: found[name] for name in asked}, "missed": missed}
    return Check(TARGET, not missed, "; ".join(words[name] for name in missed or asked), figures)


def _checked(name: str, look: Callable[[], Check]) -> Check:
    """A check in which the engine fails is not passed; the other checks run all the same."""
    try:
        return look()
    except PredictorError as exc:
        return Check(name, False, str(exc))


def _of_variant(subject: Subject, name: str) -> tuple[Frames, Recipe, Recipe, Outputs, Outputs]:
    """Frames, both recipes, and the export's answers with each."""
    expected = subject.golden.others[name]
    count = min(len(expected.probabilities), subject.backend.max_batch)
    rows = slice(count)
    other = variants(subject.recipe)[name]
    reference = rows_of(subject.golden.answers, rows)
    return subject.golden.frames[rows], subject.recipe, other, reference, rows_of(expected, rows)


def _same_verdict(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if a["verdict"] != b["verdict"] or len(a["regions"]) != len(b["regions"]):
        return False
    sides = [abs(p - q) for x, y in zip(a["regions"], b["regions"], strict=True) for p, q in zip(x, y, strict=True)]
    return max(sides, default=0) <= BOX_PX


def _figures(difference: Difference) -> dict[str, Any]:
    """JSON-ready; an infinite value becomes None."""
    values = {
        "max_abs_probability": difference.probabilities,
        "max_abs_defect_map": difference.defect_map,
        "feature_change": difference.features,
    }
    return {
        "frames": difference.frames,
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        "labels_equal": difference.labels_equal,
        "label_ties": difference.label_ties,
        "faulty_rows": list(difference.faulty),
    }
