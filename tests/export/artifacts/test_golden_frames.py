"""Which frames become golden, and how many bytes they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.speed.roofline import count_flops
from calibration.dataset import load_dataset
from export.artifacts.golden import (
    MOST_FRAMES,
    WORTHWHILE_FRAMES,
    count_gflop,
    golden_frames,
    largest_scores,
    make_golden,
    pattern_frames,
    within_budget,
)
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.teach import parity_samples
from runtime.frames import prepare
from runtime.golden import load_golden
from runtime.manifest import load_bundle

Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def graph() -> SemClipGraph:
    return SemClipGraph(load_model("toy", random_seed=0).encoder(), value_path=False)


@pytest.fixture(scope="module")
def candidates(toy_bundle: Path, toy_frames: Path) -> tuple[Frames, list[str]]:
    """The frames that the toy bundle's parity was measured on, and their classes."""
    manifest, recipe = load_bundle(toy_bundle)
    samples = parity_samples(load_dataset(toy_frames), recipe)
    frames = [prepare(s.read(recipe.frame), manifest.encoder, recipe.frame, str(s.path)) for s in samples]
    return np.stack(frames), [sample.label for sample in samples]


def noise(count: int, height: int, width: int) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (count, height, width), dtype=np.uint8)


def test_golden_frames_hold_a_support_and_another_frame_of_every_class(toy_bundle: Path) -> None:
    manifest, recipe = load_bundle(toy_bundle)
    golden = load_golden(toy_bundle, manifest, recipe)
    assert all(golden.about.count(name) >= 2 for name in recipe.classes)
    features = golden.answers.features
    nearest = (features / np.linalg.norm(features, axis=1, keepdims=True) @ recipe.unit_supports.T).max(axis=1)
    taught = {about for about, cosine in zip(golden.about, nearest, strict=True) if cosine > 1 - 1e-5}
    others = {about for about, cosine in zip(golden.about, nearest, strict=True) if cosine <= 1 - 1e-5}
    assert taught == set(recipe.classes)
    assert others == {*recipe.classes, "flat", "saturated"}


def test_the_largest_scores_are_those_of_queries_and_keys(graph: SemClipGraph) -> None:
    import torch

    frames = noise(3, *graph.input_size)
    found = largest_scores(graph, frames)
    encoder = graph.encoder
    z, layers = encoder.embed(graph.pixels(torch.from_numpy(frames))), []
    for layer, block in enumerate(encoder.blocks, start=1):
        q, k, _ = encoder._heads_of(block, z)
        layers.append((q @ k.transpose(-1, -2)).abs().amax((1, 2, 3)) * q.shape[-1] ** -0.5)
        z, _ = encoder._dual_path(block, z, layer, value_path=False)
    groups = torch.stack(layers, 1).unflatten(1, (len(encoder.block_ends), -1)).amax(2)
    np.testing.assert_allclose(found, groups.numpy(), rtol=1e-5)


def test_measuring_scores_leaves_the_graph_as_it_was(graph: SemClipGraph) -> None:
    before = graph.encoder.attention
    largest_scores(graph, noise(1, *graph.input_size))
    assert graph.encoder.attention is before


def test_the_frame_with_the_largest_score_of_each_level_is_golden(
    graph: SemClipGraph, candidates: tuple[Frames, list[str]]
) -> None:
    frames, labels = candidates
    chosen, about = golden_frames(frames, labels, graph)
    kept = {frame.tobytes() for frame in chosen}
    hardest = set(largest_scores(graph, frames).argmax(0).tolist())
    assert hardest - set(range(2 * len(set(labels))))  # or choosing by class alone would do
    assert all(frames[i].tobytes() in kept for i in hardest)
    assert about[4:6] == ("flat", "saturated")
    assert len(chosen) == len(about) <= MOST_FRAMES
    assert len(kept) == len(chosen)


def test_golden_frames_of_few_candidates_are_all_of_them(graph: SemClipGraph) -> None:
    frames = noise(2, *graph.input_size)
    chosen, about = golden_frames(frames, ["good", "hole"], graph)
    assert about == ("good", "hole", "flat", "saturated")
    np.testing.assert_array_equal(chosen[:2], frames)


def test_operations_are_those_that_the_onnx_file_counts(toy_bundle: Path, graph: SemClipGraph) -> None:
    manifest, recipe = load_bundle(toy_bundle)
    assert not manifest.encoder.value_path
    expected = count_flops(toy_bundle / "model.onnx")["gflop_per_frame"]
    assert count_gflop(graph, recipe) == pytest.approx(expected, rel=0.01)
    assert load_golden(toy_bundle, manifest, recipe).gflop_per_frame == pytest.approx(expected, rel=0.01)


def test_frames_beyond_the_budget_are_passed_over(toy_bundle: Path) -> None:
    encoder = replace(load_bundle(toy_bundle)[0].encoder, input_size=(480, 640))
    frames = noise(9, 480, 640)
    frames[8] = 128
    kept, about = within_budget(frames, "abcdefghi", encoder, 7)
    assert about == (*"abcdef"[: len(kept) - 1], "i")  # a small frame still fits behind large ones
    assert WORTHWHILE_FRAMES <= len(kept) < 9
    small = noise(16, 240, 240)
    assert len(within_budget(small, "x" * 16, replace(encoder, input_size=(240, 240)), 7)[0]) == 16


@pytest.mark.slow
def test_frames_too_large_for_the_budget_are_kept_in_less_detail(toy_bundle: Path) -> None:
    encoder = replace(load_bundle(toy_bundle)[0].encoder, input_size=(1001, 1203))
    frames = noise(7, 1001, 1203)
    kept, _ = within_budget(frames, "abcdefg", encoder, 7)
    assert len(kept) >= WORTHWHILE_FRAMES
    assert kept.shape[1:] == (1001, 1203)
    for down, right in ((0, 0), (1, 2), (3, 3)):  # one value in each square of 4 x 4
        np.testing.assert_array_equal(kept[0, down:1000:4, right:1200:4], frames[0, :1000:4, :1200:4])


@pytest.mark.parametrize("made", [lambda size: noise(32, *size), lambda size: pattern_frames(size)[0]])
@pytest.mark.slow
def test_a_golden_file_of_large_frames_stays_below_2_mb(toy_bundle: Path, made: Callable[..., Frames]) -> None:
    size = (768, 1024)
    graph = SemClipGraph(load_model("toy", random_seed=0).encoder(), input_size=size, value_path=False)
    manifest, recipe = load_bundle(toy_bundle)
    frames = made(size)
    golden = make_golden(
        graph, replace(manifest.encoder, input_size=size), recipe, 6.0, frames, ["x"] * len(frames), "frames"
    )
    assert len(golden.frames) >= WORTHWHILE_FRAMES
    assert len(golden.to_bytes()) < 2_000_000
