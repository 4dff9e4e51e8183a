"""One opened engine against the golden frames: a list of checks, each passed or not, with figures and a reason.

Correctness goes through `Pipeline.infer`, as every frame does. Speed is measured and never decides, unless targets are
given: this host may be busy.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from .agreement import Difference, Limits, compare, explain, joined, rows_of
from .backends import Backend, Outputs
from .errors import PredictorError
from .frames import Prepared
from .golden import FEWER, MORE, REVERSED, Frames, Golden, judge, png_file, variants, verdict_of
from .host import resident_memory_mb, usable_cores
from .manifest import Encoder, Manifest
from .pipeline import Job, Pipeline, Setup
from .recipe import MAX_CLASSES, FrameOptions, Recipe
from .stream import stream

THREADS = 4
REPEATS = 3
GROWTH_MB = 64.0
"""Memory may grow by so much from the end of the parity runs to the end: pools of an engine settle before."""
BOX_PX = 2
"""A region's side may differ by so much between hosts: each CPU rounds the map's up-sampling its own way."""
PERCENTILES = (50, 95, 99)
LEAST_CALLS = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. passed: None where it could not be. said: the reason, or the result in words."""

    name: str
    passed: bool | None
    said: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is proved: an engine, by the bundle's own recipe. batches: sizes to run, the largest last.

    most_classes: of any recipe that the engine takes, where it has a bound.
    """

    encoder: Encoder
    smoothing_px: float
    recipe: Recipe
    recipe_sha256: str
    golden: Golden
    backend: Backend
    batches: tuple[int, ...]
    most_classes: int = MAX_CLASSES

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
        """An engine of the bundle of `manifest`, which `recipe` belongs to."""
        encoder, smoothing_px, digest = manifest.encoder, manifest.smoothing_px, manifest.recipe_sha256
        return cls(encoder, smoothing_px, recipe, digest, golden, backend, batches, most_classes)

    @property
    def limits(self) -> Limits:
        """What the backend's precision allows."""
        precision = self.backend.precision
        return Limits.of(precision, self.golden.tolerance[precision])

    def infer(self, frames: Frames, recipe: Recipe) -> Outputs:
        """One batch, as the Predictor runs it. Raises BackendError, also for answers that are none."""
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
    checks.append(_checked("speed", partial(speed, subject, seconds)))
    checks.append(memory(before))
    return checks


def check_opening(subject: Subject) -> str:
    """What is wrong with one batch of golden frames; "" where nothing is. Raises BackendError."""
    count = min(len(subject.golden.frames), subject.batches[-1])
    found = subject.infer(subject.golden.frames[:count], subject.recipe)
    reference = rows_of(subject.golden.answers, slice(count))
    if compare(reference, found, subject.limits).passed:
        return ""
    return explain(reference, found, subject.limits, subject.recipe.classes)


def host_verdicts(subject: Subject) -> Check:
    """The reference answers, judged by this host, give the verdicts and regions of the export."""
    golden = subject.golden
    if golden.recipe_sha256 != subject.recipe_sha256:
        return Check("host", None, "the recipe's thresholds have been changed since the export: nothing to compare")
    found = [verdict_of(p) for p in judge(subject.encoder, subject.smoothing_px, subject.recipe, golden.answers)]
    wrong = [i for i, (a, b) in enumerate(zip(golden.verdicts, found, strict=True)) if not _same_verdict(a, b)]
    if wrong:
        return Check("host", False, f"this host draws other verdicts or regions from equal numbers: frame {wrong[0]}")
    return Check("host", True, f"verdicts and regions of {len(found)} frames are those of the export")


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
    """The verdicts by the engine's numbers, beside those by the reference's; a close call may fall either way."""
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
        return Check("verdicts", False, f"frame {others[0]} is {b.verdict}, the export says {a.verdict}", figures)
    close = f"; {len(others)} close calls fall the other way" if others else ""
    return Check("verdicts", True, f"{len(pairs) - len(others)} of {len(pairs)} equal{close}", figures)


def repeats(subject: Subject) -> Check:
    """The same batch again and again."""
    frames = subject.golden.frames[: subject.batches[-1]]
    runs = [subject.infer(frames, subject.recipe) for _ in range(REPEATS)]
    apart = [compare(runs[0], other, subject.limits) for other in runs[1:]]
    most = max(max(d.probabilities, d.defect_map) for d in apart)
    figures = {"runs": REPEATS, "largest_difference": most}
    if most > subject.limits.tie:
        return Check("repeats", False, f"{REPEATS} runs of one batch differ by up to {most:.1e}", figures)
    return Check("repeats", True, "bit for bit equal" if most == 0 else f"differ by up to {most:.1e}", figures)


def recipe_swap(subject: Subject) -> Check:
    """Another recipe, and back, on the same frames."""
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
    """Calls from several threads at a time, with two recipes."""
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
    share, golden, backend = seconds / 4, subject.golden, subject.backend
    setup, most = Setup(subject.recipe, FrameOptions()), subject.batches[-1]
    pipeline = Pipeline(subject.encoder, subject.smoothing_px, backend, most)
    files = [png_file(frame) for frame in golden.frames]
    one = itertools.cycle([golden.frames[i : i + 1] for i in range(len(files))])
    file = itertools.cycle(files)
    rows = np.arange(most) % len(files)
    batch = golden.frames[rows]
    figures = {
        "batch": most,
        "engine_ms": _percentiles(_timed(lambda: backend.run(next(one), subject.recipe), share)),
        "end_to_end_ms": _percentiles(_timed(lambda: pipeline.answer([pipeline.prepare(next(file), setup)]), share)),
        "engine_frames_per_second": _throughput(lambda: backend.run(batch, subject.recipe), most, backend, share),
        "end_to_end_frames_per_second": _streamed(pipeline, files, setup, share),
    }
    return Check("speed", True, "", figures)


def memory(before: float | None) -> Check:
    """How much this process grew over the timed part."""
    after = resident_memory_mb()
    if before is None or after is None:
        return Check("memory", None, "this system does not tell")
    growth = after - before
    figures = {"growth_mb": growth, "resident_mb": after}
    return Check("memory", growth <= GROWTH_MB, f"grew by {growth:.0f} MB (allowed {GROWTH_MB:.0f})", figures)


def _checked(name: str, look: Callable[[], Check]) -> Check:
    """An engine that fails is a check that is not passed, and the others are made all the same."""
    try:
        return look()
    except PredictorError as exc:
        return Check(name, False, str(exc))


def _of_variant(subject: Subject, name: str) -> tuple[Frames, Recipe, Recipe, Outputs, Outputs]:
    """Frames, both recipes, and what each answers by the export."""
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
    """JSON-ready; what is infinite is None."""
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


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, after one that is not counted."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < LEAST_CALLS or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In ms, each one of the samples (nearest rank), and n, how many there are."""
    ranked = sorted(seconds)
    found: dict[str, float] = {f"p{p}": 1e3 * ranked[-(-p * len(ranked) // 100) - 1] for p in PERCENTILES}
    return {**found, "n": len(ranked)}


def _throughput(call: Callable[[], object], frames: int, backend: Backend, seconds: float) -> float:
    """Frames/s with as many calls at a time as keep the engine busy."""
    with ThreadPoolExecutor(backend.in_flight) as pool:

        def together() -> None:
            list(pool.map(lambda _: call(), range(backend.in_flight)))

        taken = _timed(together, seconds)
    return frames * backend.in_flight * len(taken) / sum(taken)


def _streamed(pipeline: Pipeline, files: Sequence[bytes], setup: Setup, seconds: float) -> float:
    """Frames/s of a stream of PNG files, from the second batch on."""
    end = time.perf_counter() + seconds

    def source() -> Iterator[bytes]:
        for index in itertools.count():
            if index >= (LEAST_CALLS + 1) * pipeline.batch_size and time.perf_counter() >= end:
                return
            yield files[index % len(files)]

    began, count = 0.0, 0
    answers: Iterable[object] = stream(pipeline, source(), lambda: setup, min(8, usable_cores()))
    for number, _ in enumerate(answers, 1):
        if number == pipeline.batch_size:
            began = time.perf_counter()
        count = number - pipeline.batch_size
    return count / (time.perf_counter() - began)
