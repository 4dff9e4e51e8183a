"""Golden frames for a bundle: which frames, and what torch answers to them in fp32 (format: `runtime.golden`)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.dataset import Dataset, Sample
from runtime.agreement import INT8_TOLERANCE, TOLERANCE
from runtime.golden import Golden, judge, png_file, tensors_digest, variants, verdict_of
from runtime.manifest import Encoder
from runtime.recipe import Recipe

from ..model.graph import SemClipGraph
from .parity import torch_outputs

LEAST_FRAMES, MOST_FRAMES = 16, 32
FRAMES_PER_CLASS = 2
"""A support and another one, where there are both."""
OTHER_FRAMES = 4
"""So many frames are also answered by the variants of the recipe."""
BUDGET_BYTES = 1_900_000
"""Of packed frames and answers; frames beyond it are left out, but for the first `_KEPT`. A bundle grows by 2 MB."""
_KEPT = 6

Frames = NDArray[np.uint8]


def ordered_samples(dataset: Dataset, recipe: Recipe | None = None) -> list[Sample]:
    """All samples, class by class in turn: of each a support of the recipe first, then another, and so on.

    So any beginning of the list has as many of each class as can be, and both kinds.
    """
    taught = set(recipe.teaching.get("supports", ())) if recipe is not None else set()
    queues = []
    for label in dataset.classes:
        samples = sorted(dataset.of_class(label), key=lambda sample: sample.path)
        supports = [s for s in samples if s.path.relative_to(dataset.folder).as_posix() in taught]
        others = [s for s in samples if s not in supports]
        queues.append(_in_turn(supports, others))
    return _in_turn(*queues)


def golden_frames(frames: Frames, labels: Sequence[str]) -> tuple[Frames, tuple[str, ...]]:
    """The first of `frames`, and a flat and a saturated one among them: uint8 [n, height, width], and a word for each.

    frames: of the encoder's input size, in the order of `ordered_samples`; labels: their classes.
    """
    size = (frames.shape[1], frames.shape[2])
    count = min(MOST_FRAMES, max(LEAST_FRAMES, FRAMES_PER_CLASS * len(set(labels)) + 2)) - 2
    edges = np.stack([_flat(size, 128), _flat(size, 255)])
    chosen = np.concatenate([frames[:OTHER_FRAMES], edges, frames[OTHER_FRAMES:count]])
    return chosen, (*labels[:OTHER_FRAMES], "flat", "saturated", *labels[OTHER_FRAMES:count])


def pattern_frames(size: tuple[int, int]) -> tuple[Frames, tuple[str, ...]]:
    """Made-up frames for sites that may not ship pictures: uint8 [16, height, width], always the same."""
    rng = np.random.default_rng(0)
    made = {
        "noise 4": _noise(size, 4, rng),
        "spot": _spot(size),
        "lines 12": _lines(size, 12),
        "checks 16": _checks(size, 16),
        "flat": _flat(size, 128),
        "saturated": _flat(size, 255),
        "black": _flat(size, 0),
        "gradient": np.broadcast_to(np.linspace(0, 255, size[1]), size).astype(np.uint8),
        **{f"lines {period}": _lines(size, period) for period in (4, 40)},
        **{f"checks {period}": _checks(size, period) for period in (2, 48)},
        **{f"noise {grain}": _noise(size, grain, rng) for grain in (1, 2, 8, 16)},
    }
    return np.stack(list(made.values())), tuple(made)


def make_golden(
    graph: SemClipGraph,
    encoder: Encoder,
    recipe: Recipe,
    smoothing_px: float,
    frames: Frames,
    about: Sequence[str],
    source: str,
) -> Golden:
    """Ask torch, in fp32, and keep as many of the frames as the budget holds.

    graph: the reference; `encoder`: of the exported graph. frames: uint8 [n, height, width]. source: "frames" or
    "patterns".
    """
    frames = frames[: _within_budget(frames, encoder, len(recipe.classes))]
    answers = torch_outputs(graph, frames, recipe)
    few = frames[:OTHER_FRAMES]
    others = {name: torch_outputs(graph, few, other) for name, other in variants(recipe).items()}
    judged = judge(encoder, smoothing_px, recipe, answers)
    return Golden(
        frames=frames,
        about=tuple(about[: len(frames)]),
        source=source,
        reference=f"torch {torch.__version__} fp32",
        answers=answers,
        others=others,
        tolerance={**TOLERANCE, "int8": INT8_TOLERANCE},
        verdicts=tuple(verdict_of(prediction) for prediction in judged),
        encoder_id=encoder.id,
        recipe_sha256=hashlib.sha256(recipe.to_bytes()).hexdigest(),
        tensors_sha256=tensors_digest(recipe),
    )


def _in_turn(*queues: Sequence[Sample]) -> list[Sample]:
    """The first of each, then the second of each, as long as there are any."""
    return [sample for turn in itertools.zip_longest(*queues) for sample in turn if sample is not None]


def _within_budget(frames: Frames, encoder: Encoder, classes: int) -> int:
    """How many of the frames the budget holds with their answers; the first few always."""
    answer = 4 * (classes + encoder.grid[0] * encoder.grid[1] + encoder.features)
    size = 3 * OTHER_FRAMES * answer
    for index, frame in enumerate(frames):
        size += len(png_file(frame)) + answer
        if size > BUDGET_BYTES and index >= _KEPT:
            return index
    return len(frames)


def _flat(size: tuple[int, int], value: int) -> Frames:
    return np.full(size, value, np.uint8)


def _lines(size: tuple[int, int], period: int) -> Frames:
    return np.broadcast_to(np.where(np.arange(size[1]) % period < period / 2, 200, 40), size).astype(np.uint8)


def _checks(size: tuple[int, int], period: int) -> Frames:
    rows, columns = (np.arange(side) % period < period / 2 for side in size)
    return np.where(rows[:, None] ^ columns, 255, 0).astype(np.uint8)


def _spot(size: tuple[int, int]) -> Frames:
    """A bright disc, off the centre, on dim ground."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    away = np.hypot(rows - size[0] / 3, columns - size[1] / 4)
    return np.where(away < min(size) / 10, 240, 60).astype(np.uint8)


def _noise(size: tuple[int, int], grain: int, rng: np.random.Generator) -> Frames:
    """Noise in blocks of `grain` pixels."""
    blocks = rng.integers(0, 256, [-(-side // grain) for side in size], dtype=np.uint8)
    return np.kron(blocks, np.ones((grain, grain), np.uint8))[: size[0], : size[1]]
