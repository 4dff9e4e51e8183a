"""TensorRT on a simulated GPU: batch sizes, recipes, contexts and graphs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import recipe_of
from simulated_engine import Opened, check, frames

from runtime.backends.buckets import bucket_for, bucket_sizes, pieces
from runtime.backends.trt import RTX_WARM_UPS, SLOTS
from runtime.errors import BackendError


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


@pytest.mark.parametrize(
    ("least", "most", "sizes"),
    [
        (1, 1, (1,)),
        (1, 2, (1, 2)),
        (1, 8, (1, 2, 4, 8)),
        (1, 12, (1, 2, 4, 8, 12)),
        (3, 20, (3, 6, 12, 20)),
        (4, 4, (4,)),
    ],
)
def test_bucket_sizes_double_up_to_the_largest(least: int, most: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(least, most) == sizes
    for count in range(1, most + 1):
        chosen = bucket_for(count, sizes)
        assert chosen >= count
        assert chosen == min(size for size in sizes if size >= count)
    with pytest.raises(ValueError, match="more than the largest batch"):
        bucket_for(most + 1, sizes)


def test_no_bucket_sizes_without_a_range() -> None:
    for least, most in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="no batch sizes"):
            bucket_sizes(least, most)


def test_pieces_cover_every_frame_once() -> None:
    assert [list(range(10))[piece] for piece in pieces(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(pieces(0, 4)) == []


@pytest.mark.parametrize("product", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("count", [1, 3, 8, 9, 50])
def test_any_number_of_frames_is_padded_or_split(tmp_path: Path, product: str, count: int) -> None:
    opened = Opened(tmp_path, product)
    with opened.backend as backend:
        assert (backend.name, backend.max_batch, backend.in_flight) == (product, 8, SLOTS)
        for shift in range(3):
            check(backend, frames(*((np.arange(count) + shift) % 251)), recipe_of(3))
    assert opened.device.closed


def test_what_was_answered_stays_when_the_buffers_are_used_again(opened: Opened) -> None:
    recipe = recipe_of(3)
    first = opened.backend.run(frames(1, 2), recipe)
    kept = first.probabilities.copy(), first.defect_map.copy(), first.features.copy()
    for _ in range(2 * SLOTS):
        opened.backend.run(frames(7, 8, 9), recipe)
    for before, now in zip(kept, (first.probabilities, first.defect_map, first.features), strict=True):
        np.testing.assert_array_equal(before, now)


def test_recipes_change_between_batches_even_with_other_classes(opened: Opened) -> None:
    recipes = [recipe_of(classes, bias) for classes in (2, 3, 4, 5) for bias in (0.0, 0.25)]
    for number in np.random.default_rng(0).integers(len(recipes), size=60):
        check(opened.backend, frames(*range(number + 1)), recipes[number])


def test_four_threads_and_recipes_that_change_under_them(opened: Opened) -> None:
    recipes = [recipe_of(3, 0.0), recipe_of(3, 0.25), recipe_of(4, 0.5)]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            check(opened.backend, frames(*rng.integers(0, 250, size=rng.integers(1, 40))), recipes[rng.integers(3)])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, seed) for seed in range(4)]:
            future.result(timeout=60)


def test_more_classes_than_the_engine_takes(opened: Opened) -> None:
    with pytest.raises(BackendError, match=r"has 6 classes, the engine takes 5 at most.*--most-classes"):
        opened.backend.run(frames(1), recipe_of(6))
    check(opened.backend, frames(1), recipe_of(5))


def test_after_the_warm_up_no_context_or_graph_is_made(opened: Opened) -> None:
    backend, device, recipe = opened.backend, opened.device, recipe_of(3)
    backend.warm_up(recipe)
    assert device.calls.count("capture") == SLOTS * 4
    contexts, blocks = len(opened.engine.contexts), len(device.blocks)
    device.calls.clear()
    for count in [1, 2, 3, 4, 5, 8, 20] * 30:
        check(backend, frames(*range(count)), recipe)
    assert not {"capture", "allocate"} & set(device.calls)
    assert (len(opened.engine.contexts), len(device.blocks)) == (contexts, blocks)
    assert device.launched == 30 * 9


def test_batches_run_while_another_recipe_is_prepared(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing holds up a batch by one context, not by all."""
    backend, recipe, other = opened.backend, recipe_of(3), recipe_of(4, 0.25)
    backend.warm_up(recipe)
    begun, context = threading.Event(), backend._engine.context

    def slow(*shape: int) -> Any:
        begun.set()
        time.sleep(0.02)
        return context(*shape)

    monkeypatch.setattr(backend._engine, "context", slow)
    answered = 0
    with ThreadPoolExecutor(1) as pool:
        preparing = pool.submit(backend.warm_up, other)
        assert begun.wait(10)
        while not preparing.done():
            check(backend, frames(1, 2, 3), recipe)
            answered += 1
        preparing.result()
    assert answered > 1, "the first of them waited for all of it"
    check(backend, frames(1), other)


def test_rtx_runs_its_own_graphs(tmp_path: Path) -> None:
    opened = Opened(tmp_path, "tensorrt-rtx")
    opened.backend.warm_up(recipe_of(3))
    check(opened.backend, frames(1, 2), recipe_of(3))
    assert "capture" not in opened.device.calls


def test_contexts_for_classes_that_are_not_used_are_freed(tmp_path: Path) -> None:
    opened = Opened(tmp_path, batch=(1, 1, 1))
    for classes in (2, 3, 4, 5, 2, 3, 4, 5):
        check(opened.backend, frames(1), recipe_of(classes))
    assert len(opened.device.graphs) == 3


def test_an_engine_that_no_graph_can_hold_runs_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = Opened(tmp_path)
    opened.device.failing = "capture"
    opened.backend.warm_up(recipe_of(3))
    opened.device.failing = ""
    check(opened.backend, frames(*range(20)), recipe_of(3))
    assert opened.device.launched == 0
    assert "tensorrt runs without a CUDA graph" in caplog.text


def test_rtx_runs_each_context_until_it_has_a_graph_of_its_own(tmp_path: Path) -> None:
    opened = Opened(tmp_path, "tensorrt-rtx")
    opened.backend.warm_up(recipe_of(3))
    assert {context.runs for context in opened.engine.contexts if context.addresses} == {RTX_WARM_UPS}
