"""runtime.backends.trt on a GPU that is not there: slots, batch sizes, recipes, graphs, memory, errors."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder
from fake_gpu import PROBABLE, Cache, Config, Context, Engine, FakeDevice, fake_module, recipe_of
from numpy.typing import NDArray

from runtime import Predictor
from runtime.backends.buckets import bucket_for, bucket_sizes, pieces
from runtime.backends.cuda_device import GpuError
from runtime.backends.trt import MODULES, RESERVE, RTX_WARM_UPS, SLOTS, TensorRtBackend
from runtime.errors import BackendError, BackendUnavailable, BundleError
from runtime.manifest import Artifact
from runtime.recipe import Recipe

ENCODER = make_encoder()
MOST_CLASSES = 5


def frames(*first_pixels: int) -> NDArray[np.uint8]:
    batch = np.zeros((len(first_pixels), 64, 64), np.uint8)
    batch[:, 0, 0] = first_pixels
    return batch


class Opened:
    """A backend on fakes, in a folder with a plan."""

    def __init__(self, folder: Path, product: str = "tensorrt", **changes: Any) -> None:
        self.device = changes.pop("device", None) or FakeDevice()
        batch = changes.pop("batch", (1, 4, 8))
        self.engine = changes.pop("engine", None) or Engine(ENCODER, self.device, batch, MOST_CLASSES)
        plan = folder / "bundle" / "engine.plan"
        plan.parent.mkdir(exist_ok=True)
        plan.write_bytes(b"plan")
        self.artifact = Artifact(
            "engine.plan", "engine", "fp16", hashlib.sha256(b"plan").hexdigest(), 4, {}, {}, {"product": product}
        )
        module = changes.pop("module", None) or fake_module(self.engine)
        self.folder = plan.parent
        self.backend = TensorRtBackend(plan.parent, self.artifact, ENCODER, product, device=self.device, module=module)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


def check(backend: TensorRtBackend, pixels: NDArray[np.uint8], recipe: Recipe) -> None:
    outputs = backend.run(pixels, recipe)
    bias = recipe.tensors["head_bias"][0]
    first = pixels[:, 0, 0].astype(int)
    assert outputs.probabilities.shape == (len(pixels), len(recipe.classes))
    np.testing.assert_array_equal(outputs.probabilities.argmax(1), first % len(recipe.classes))
    np.testing.assert_allclose(outputs.probabilities.max(1), bias + 0.5)
    np.testing.assert_array_equal(outputs.features[:, 0], first)
    np.testing.assert_allclose(outputs.defect_map[:, 0, 0] * 255, first, rtol=1e-6)
    assert outputs.features.shape == (len(pixels), ENCODER.features)


# ---- batch sizes -----------------------------------------------------------------------------------------------------


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


# ---- answers ---------------------------------------------------------------------------------------------------------


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


# ---- prepared once ---------------------------------------------------------------------------------------------------


def test_after_the_warm_up_nothing_is_made_or_captured_any_more(opened: Opened) -> None:
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


def test_batches_go_on_while_another_recipe_is_prepared(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
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


# ---- kernels on disk -------------------------------------------------------------------------------------------------


def test_compiled_kernels_are_kept_beside_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bytes] = []
    monkeypatch.setattr(Cache, "deserialize", lambda self, content: loaded.append(content) or True)
    Opened(tmp_path, "tensorrt-rtx").backend.warm_up(recipe_of(3))
    assert loaded == []
    (file,) = (tmp_path / "bundle.cache").iterdir()
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["engine.plan"]
    Opened(tmp_path, "tensorrt-rtx").backend.warm_up(recipe_of(3))
    assert loaded == [b"kernels"]
    file.write_bytes(file.read_bytes()[:-1])
    Opened(tmp_path, "tensorrt-rtx").backend.warm_up(recipe_of(3))
    assert loaded == [b"kernels"], "a damaged file is compiled anew"
    Opened(tmp_path, "tensorrt-rtx")
    assert loaded == [b"kernels"] * 2, "and was replaced"


def test_a_folder_that_may_not_be_written_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bundle.cache").write_bytes(b"a file where the folder should be")
    opened = Opened(tmp_path, "tensorrt-rtx")
    opened.backend.warm_up(recipe_of(3))
    check(opened.backend, frames(1), recipe_of(3))
    assert "kernels are compiled at each start" in caplog.text


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_little_memory_means_smaller_batches_and_a_word_about_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = Opened(tmp_path)
    (needed,) = (len(block) for block in full.device.blocks.values())
    assert full.backend.max_batch == 8
    assert caplog.text == ""
    small = Opened(tmp_path, device=FakeDevice(room=needed + RESERVE - 1))
    assert small.backend.max_batch == 4
    assert "batches of 4 for want of memory (it takes 8)" in small.backend.description
    assert small.backend.description in caplog.text
    check(small.backend, frames(*range(21)), recipe_of(3))


def test_memory_that_was_free_and_is_not_had_means_smaller_batches_too(tmp_path: Path) -> None:
    (needed,) = (len(block) for block in Opened(tmp_path).device.blocks.values())
    device = FakeDevice(room=needed - 1)
    device.memory = lambda: (1 << 40, 1 << 40)  # type: ignore[method-assign]
    assert Opened(tmp_path, device=device).backend.max_batch == 4


def test_no_memory_at_all_is_an_error_that_says_how_much_it_takes(tmp_path: Path) -> None:
    device = FakeDevice(room=1000)
    with pytest.raises(BackendError, match=r"GB free, batches of 1 need .* GB beside the weights: .*--batch"):
        Opened(tmp_path, device=device)
    assert device.closed


# ---- what can go wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["tensorrt", "tensorrt-rtx"])
def test_a_product_that_is_not_installed_names_its_extra(
    tmp_path: Path, product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = product.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)
    artifact = Opened(tmp_path).artifact
    with pytest.raises(BackendUnavailable, match=rf"pip install \"sem-clip\[{product}\]\""):
        TensorRtBackend(tmp_path / "bundle", artifact, ENCODER, product)


def test_a_plan_that_the_product_refuses_is_a_fault_of_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"engine\.plan cannot be opened by tensorrt: serialized for another device"):
        Opened(tmp_path, module=fake_module(None, "serialized for another device\nand more"))
    with pytest.raises(BundleError, match="does not say why"):
        Opened(tmp_path, module=fake_module(None))


def test_a_plan_with_another_hash_is_never_opened(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    (tmp_path / "bundle" / "engine.plan").write_bytes(b"palm")
    module = fake_module(opened.engine)
    module.Runtime = None
    device = FakeDevice()
    with pytest.raises(BundleError, match="does not have the SHA-256"):
        TensorRtBackend(tmp_path / "bundle", opened.artifact, ENCODER, "tensorrt", device=device, module=module)
    assert device.closed


def test_an_engine_of_another_graph_is_refused_with_every_difference(tmp_path: Path) -> None:
    device = FakeDevice()
    engine = Engine(replace(ENCODER, width=48), device, (1, 2, 4), 5)
    engine.tensors["features"] = ("HALF", engine.tensors["features"][1])
    del engine.tensors["scalars"]
    with pytest.raises(BundleError) as caught:
        Opened(tmp_path, device=device, engine=engine)
    assert [fault.split(" is ")[0] for fault in caught.value.faults] == [
        "engine.plan: features",
        "engine.plan: memory",
        "engine.plan: scalars",
        "engine.plan: transform_weight",
    ]
    assert "scalars is missing, not ('float', (6,))" in str(caught.value)


@pytest.mark.parametrize("method", ["copy_in", "launch", "copy_out", "synchronize"])
def test_a_gpu_that_fails_once_is_not_asked_again(opened: Opened, method: str) -> None:
    recipe = recipe_of(3)
    opened.backend.warm_up(recipe)
    opened.device.failing = method
    with pytest.raises(GpuError, match=f"the GPU failed: {method}: cudaErrorLaunchFailure"):
        opened.backend.run(frames(*range(20)), recipe)
    opened.device.failing = ""
    with pytest.raises(BackendError, match=r"failed before .* open another Predictor"):
        opened.backend.run(frames(1), recipe)
    opened.backend.close()
    assert opened.device.closed


def test_an_engine_that_refuses_a_batch_says_why_and_goes_on(tmp_path: Path) -> None:
    opened = Opened(tmp_path, "tensorrt-rtx")
    recipe = recipe_of(3)
    opened.backend.warm_up(recipe)
    opened.engine.failing = True
    for _ in range(2 * SLOTS):  # no slot is lost
        with pytest.raises(BackendError, match="tensorrt-rtx did not run the batch: a layer failed"):
            opened.backend.run(frames(*range(20)), recipe)
    opened.engine.failing = False
    check(opened.backend, frames(*range(20)), recipe)


def test_closed_is_closed(opened: Opened) -> None:
    opened.backend.close()
    opened.backend.close()
    with pytest.raises(BackendError, match="engine is closed"):
        opened.backend.run(frames(1), recipe_of(3))


# ---- above it --------------------------------------------------------------------------------------------------------


def test_a_stream_keeps_several_batches_in_flight_in_order(tmp_path: Path, fake_bundle: Path) -> None:
    opened = Opened(tmp_path)
    with Predictor(fake_bundle, backend=opened.backend, recipe=PROBABLE, batch_size=4) as predictor:
        numbers = np.random.default_rng(0).integers(0, 250, size=90)
        answers = list(predictor.stream(list(frames(*numbers))))
        assert [int(answer.features[0]) for answer in answers] == numbers.tolist()


def test_a_gpu_lost_in_mid_stream_names_the_frames_without_an_answer(tmp_path: Path, fake_bundle: Path) -> None:
    opened = Opened(tmp_path)
    with Predictor(fake_bundle, backend=opened.backend, recipe=PROBABLE, batch_size=4) as predictor:
        answered: list[int] = []

        def until_it_fails() -> None:
            for answer in predictor.stream(frames(number)[0] for number in range(90)):
                answered.append(int(answer.features[0]))
                if len(answered) == 6:
                    opened.device.failing = "launch"

        with pytest.raises(BackendError, match=r"without an answer: frame\[.* and all after it") as caught:
            until_it_fails()
        assert answered == list(range(len(answered)))
        assert len(answered) < 90
        assert caught.value.unanswered[0] == f"frame[{len(answered)}]"


# ---- the products' own names -----------------------------------------------------------------------------------------

NAMES = {
    "Runtime": "deserialize_cuda_engine",
    "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_dtype get_tensor_shape get_tensor_profile_shape "
    "create_execution_context",
    "IExecutionContext": "set_input_shape set_tensor_address set_device_memory update_device_memory_size_for_shapes "
    "execute_async_v3",
    "ILogger": "log Severity",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
}
ONLY_RTX = {
    "ICudaEngine": "create_runtime_config",
    "IRuntimeConfig": "set_execution_context_allocation_strategy dynamic_shapes_kernel_specialization_strategy "
    "cuda_graph_strategy create_runtime_cache set_runtime_cache",
    "IRuntimeCache": "serialize deserialize",
    "DynamicShapesKernelSpecializationStrategy": "EAGER",
    "CudaGraphStrategy": "WHOLE_GRAPH_CAPTURE",
}


@pytest.mark.parametrize("product", ["tensorrt", "tensorrt-rtx"])
def test_the_names_that_are_used_exist_in_the_product(product: str) -> None:
    """The fakes would hide a misspelling."""
    module = pytest.importorskip(MODULES[product], reason=f"{product} is not installed")
    for names in (NAMES, ONLY_RTX) if product == "tensorrt-rtx" else (NAMES,):
        for owner, attributes in names.items():
            missing = [name for name in attributes.split() if not hasattr(getattr(module, owner), name)]
            assert missing == [], owner


def test_the_fakes_offer_nothing_that_the_products_lack() -> None:
    for fake, owner in ((Engine, "ICudaEngine"), (Context, "IExecutionContext"), (Cache, "IRuntimeCache")):
        known = f"{NAMES.get(owner, '')} {ONLY_RTX.get(owner, '')}".split()
        assert all(hasattr(fake, name) for name in known)
    assert all(hasattr(Config, name) for name in ONLY_RTX["IRuntimeConfig"].split())


class GatedDevice(FakeDevice):
    """Waits in `synchronize` until the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Every wait for a batch begins here, outside the locks."""
        if not self.gate.is_set():
            self.entered.set()
            assert self.gate.wait(20)
        return super().current()


def test_closing_waits_for_the_batch_under_way_and_refuses_those_that_wait(tmp_path: Path) -> None:
    device = GatedDevice()
    opened = Opened(tmp_path, device=device)
    recipe = recipe_of(3)
    opened.backend.warm_up(recipe)
    collect = opened.backend._collect

    def slowly(ticket: Any) -> Any:
        device.entered.set()
        assert device.gate.wait(20)
        return collect(ticket)

    opened.backend._collect = slowly  # type: ignore[method-assign]
    device.gate = threading.Event()
    with ThreadPoolExecutor(SLOTS + 2) as pool:
        running = [pool.submit(opened.backend.run, frames(number), recipe) for number in range(SLOTS + 1)]
        assert device.entered.wait(20)
        closing = pool.submit(opened.backend.close)
        with pytest.raises(TimeoutError):
            closing.result(0.2)
        assert not device.closed
        device.gate.set()
        closing.result(20)
        ends = [future.exception(20) or future.result() for future in running]
    assert device.closed
    answered = [end for end in ends if not isinstance(end, BaseException)]
    refused = [str(end) for end in ends if isinstance(end, BackendError)]
    assert len(answered) >= SLOTS
    assert len(answered) + len(refused) == SLOTS + 1
    assert all("engine is closed" in text for text in refused)


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


def test_kernels_that_are_not_given_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Cache, "serialize", lambda cache: None)
    opened = Opened(tmp_path, "tensorrt-rtx")
    opened.backend.warm_up(recipe_of(3))
    assert "gave no kernels" in caplog.text
    assert not (tmp_path / "bundle.cache").exists()


def test_weights_that_do_not_fit_are_no_fault_of_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no room for the weights of engine.plan: .*Out of memory"):
        Opened(tmp_path, module=fake_module(None, "CUDA: Out of memory"))
