"""TensorRT on a simulated GPU: engines that do not open, a GPU that fails, closing, and streams above it."""

from __future__ import annotations

import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import PROBABLE, Engine, FakeDevice, fake_module, recipe_of
from simulated_engine import ENCODER, Opened, check, frames

from runtime import Predictor
from runtime.backends.cuda_device import GpuError
from runtime.backends.trt import SLOTS, TensorRtBackend
from runtime.errors import BackendError, BackendUnavailable, BundleError


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


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
    with pytest.raises(BundleError, match="it gave no reason"):
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
def test_after_a_gpu_fault_every_call_is_refused(opened: Opened, method: str) -> None:
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


def test_a_refused_batch_raises_the_reason_and_later_batches_run(tmp_path: Path) -> None:
    opened = Opened(tmp_path, "tensorrt-rtx")
    recipe = recipe_of(3)
    opened.backend.warm_up(recipe)
    opened.engine.failing = True
    for _ in range(2 * SLOTS):  # no slot is lost
        with pytest.raises(BackendError, match="tensorrt-rtx did not run the batch: a layer failed"):
            opened.backend.run(frames(*range(20)), recipe)
    opened.engine.failing = False
    check(opened.backend, frames(*range(20)), recipe)


def test_a_closed_engine_refuses_batches_and_may_be_closed_again(opened: Opened) -> None:
    opened.backend.close()
    opened.backend.close()
    with pytest.raises(BackendError, match="engine is closed"):
        opened.backend.run(frames(1), recipe_of(3))


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


def test_weights_that_do_not_fit_are_no_fault_of_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no room for the weights of engine.plan: .*Out of memory"):
        Opened(tmp_path, module=fake_module(None, "CUDA: Out of memory"))
