"""Golden frames for a bundle: the choice of frames, and torch's fp32 answers to them (format: `runtime.golden`)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from calibration.dataset import Dataset, Sample
from runtime.agreement import INT8_TOLERANCE, TOLERANCE
from runtime.golden import MIN_FRAMES, Golden, judge, png_file, tensors_digest, variants, verdict_of
from runtime.manifest import Encoder
from runtime.recipe import TENSORS, Recipe

from ..model.graph import SemClipGraph
from .parity import torch_outputs

LEAST_FRAMES, MOST_FRAMES = 16, 32
FRAMES_PER_CLASS = 2
"""A support and another frame, where the data set has both."""
OTHER_FRAMES = 4
"""The first frames, which the variants of the recipe answer too."""
BUDGET_BYTES = 1_900_000
"""Of packed frames and answers, so that a bundle grows by less than 2 MB; frames beyond it are left out."""
WORTHWHILE_FRAMES = 6
"""Where fewer fit, all frames are kept in less detail instead."""
_BATCH = 8

Frames = NDArray[np.uint8]


def ordered_samples(dataset: Dataset, recipe: Recipe | None = None) -> list[Sample]:
    """All samples, the classes in turn, and of each class a support of the recipe and another frame in turn.

    So the first n samples hold every class about equally often, and both kinds of frames.
    """
    taught = set(recipe.teaching.get("supports", ())) if recipe is not None else set()
    queues = []
    for label in dataset.classes:
        samples = sorted(dataset.of_class(label), key=lambda sample: sample.path)
        supports = [s for s in samples if s.path.relative_to(dataset.folder).as_posix() in taught]
        others = [s for s in samples if s not in supports]
        queues.append(_in_turn(supports, others))
    return _in_turn(*queues)


def golden_frames(frames: Frames, labels: Sequence[str], graph: SemClipGraph) -> tuple[Frames, tuple[str, ...]]:
    """The golden ones of `frames`, a flat and a saturated one: uint8 [n, height, width], and a word for each.

    The first frames of every class, and for each level of the encoder the frame with the largest attention score, where
    fp16 overflows first. frames: of the encoder's input size, in the order of `ordered_samples`; labels: their classes.
    graph: the exported one, which measures the scores.
    """
    size = (frames.shape[1], frames.shape[2])
    count = min(MOST_FRAMES, max(LEAST_FRAMES, FRAMES_PER_CLASS * len(set(labels)) + 2)) - 2
    hardest = largest_scores(graph, frames).argmax(0).tolist()
    by_class = list(range(min(count, len(frames))))
    first = by_class[:OTHER_FRAMES]
    chosen = list(dict.fromkeys([*first, *hardest, *by_class]))[: MOST_FRAMES - 2]
    rest = chosen[len(first) :]
    edges = np.stack([_flat(size, 128), _flat(size, 255)])
    words = (*(labels[i] for i in first), "flat", "saturated", *(labels[i] for i in rest))
    return np.concatenate([frames[first], edges, frames[rest]]), words


def largest_scores(graph: SemClipGraph, frames: Frames) -> NDArray[np.float64]:
    """The largest attention score of each frame in each level of the encoder: [n, levels]."""
    parts = []
    for start in range(0, len(frames), _BATCH):
        found: list[Tensor] = []
        with torch.inference_mode(), _attention_of(graph, _recording(found)):
            graph.encode(torch.from_numpy(frames[start : start + _BATCH]), value_path=graph.value_path)
        # One entry per call of attention, in the order of the layers; with a V path two entries per layer.
        parts.append(torch.stack(found, dim=1))
    scores = torch.cat(parts).numpy().astype(np.float64)
    groups = np.array_split(scores, len(graph.encoder.block_ends), axis=1)
    return np.stack([group.max(axis=1) for group in groups], axis=1)


def count_gflop(graph: SemClipGraph, recipe: Recipe) -> float:
    """1e9 floating-point operations of one frame, 2 for each multiply-add of a matrix product."""
    tensors = [torch.tensor(recipe.tensors[name]) for name in TENSORS]
    frame = torch.zeros((1, *graph.input_size), dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, _attention_of(graph, _recording([])):
        graph(frame, *tensors)
    return float(counter.get_total_flops()) / 1e9


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
    """Record torch's fp32 answers to as many of the frames as the budget holds.

    graph: the reference; `encoder`: of the exported graph. frames: uint8 [n, height, width]; about: a word for each.
    source: "frames" or "patterns".
    """
    frames, about = within_budget(frames, about, encoder, len(recipe.classes))
    exported = graph if encoder.value_path else graph.without_value_path()
    answers = torch_outputs(graph, frames, recipe)
    few = frames[:OTHER_FRAMES]
    others = {name: torch_outputs(graph, few, other) for name, other in variants(recipe).items()}
    judged = judge(encoder, smoothing_px, recipe, answers)
    return Golden(
        frames=frames,
        about=tuple(about),
        source=source,
        reference=f"torch {torch.__version__} fp32",
        answers=answers,
        others=others,
        tolerance={**TOLERANCE, "int8": INT8_TOLERANCE},
        verdicts=tuple(verdict_of(prediction) for prediction in judged),
        encoder_id=encoder.id,
        recipe_sha256=hashlib.sha256(recipe.to_bytes()).hexdigest(),
        tensors_sha256=tensors_digest(recipe),
        gflop_per_frame=count_gflop(exported, recipe),
    )


def _in_turn(*queues: Sequence[Sample]) -> list[Sample]:
    """The first of each, then the second of each, as long as there are any."""
    return [sample for turn in itertools.zip_longest(*queues) for sample in turn if sample is not None]


def within_budget(
    frames: Frames, about: Sequence[str], encoder: Encoder, classes: int
) -> tuple[Frames, tuple[str, ...]]:
    """The frames that the budget holds with their answers, the first ones first, and their words.

    Where fewer than `WORTHWHILE_FRAMES` fit, each square of 2 x 2 pixels gets one value, or of 4 x 4, and so on.
    """
    answer = 4 * (classes + encoder.grid[0] * encoder.grid[1] + encoder.features)
    room = BUDGET_BYTES - 3 * OTHER_FRAMES * answer
    wanted, detail = min(WORTHWHILE_FRAMES, len(frames)), 1
    while True:
        seen = frames if detail == 1 else _coarse(frames, detail)
        kept = _that_fit(seen, answer, room)
        if len(kept) >= wanted or detail >= max(encoder.input_size):
            kept = kept if len(kept) >= MIN_FRAMES else list(range(MIN_FRAMES))
            return seen[kept], tuple(about[i] for i in kept)
        detail *= 2


def _that_fit(frames: Frames, answer: int, room: int) -> list[int]:
    """Indices of the frames that fit, one after the other; a frame that does not is passed over."""
    kept = []
    for index, frame in enumerate(frames):
        size = len(png_file(frame)) + answer
        if size <= room:
            kept.append(index)
            room -= size
    return kept


def _coarse(frames: Frames, detail: int) -> Frames:
    """The same frames with one value in each square of `detail` x `detail` pixels."""
    height, width = frames.shape[1:]
    return frames[:, ::detail, ::detail].repeat(detail, 1).repeat(detail, 2)[:, :height, :width]


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@contextmanager
def _attention_of(graph: SemClipGraph, attention: Attention) -> Iterator[None]:
    """The encoder computes attention by `attention` as long as the block runs."""
    before = graph.encoder.attention
    graph.encoder.attention = attention
    try:
        yield
    finally:
        graph.encoder.attention = before


def _recording(found: list[Tensor]) -> Attention:
    """Attention as two products, which a counter of operations sees; `found` gets each frame's largest score: [n]."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        found.append(scores.abs().flatten(1).amax(1))
        answer: Tensor = scores.softmax(-1) @ v
        return answer

    return attention


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
