"""export.artifacts.engine_target: valid targets, installed builders, and the key of a plan."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest

from export.artifacts import engine_target
from export.artifacts.engine_target import Builder, EngineTarget, file_name
from export.errors import ExportError
from runtime.host import Gpu

RTX_4090 = EngineTarget("tensorrt-rtx", "8.9", batch=(1, 2, 4))
VERSION = "1.2.3.4"


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_target, "find_gpu", lambda device: (None, "no NVIDIA driver was found"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"product": "openvino"}, "choose tensorrt or tensorrt-rtx"),
        ({"product": "tensorrt", "compute_capability": "8.9"}, "builds for the GPU of this machine only"),
        ({"product": "tensorrt-rtx", "compute_capability": "89"}, "write it as 8.9"),
        ({"product": "tensorrt-rtx", "batch": (0, 1, 2)}, "least, usual and most"),
        ({"product": "tensorrt-rtx", "batch": (1, 8, 4)}, "least, usual and most"),
        ({"product": "tensorrt-rtx", "batch": (1, 8, 4096)}, "1 to 1024"),
        ({"product": "tensorrt-rtx", "most_classes": 1}, "2 to 1024"),
        ({"product": "tensorrt-rtx", "accumulate": "bf16"}, "choose fp32 or fp16"),
    ],
)
def test_impossible_targets_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        EngineTarget(**arguments)


def test_a_missing_product_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(ExportError, match=r"tensorrt is not installed.*pip install 'sem-clip\[tensorrt\]'"):
        Builder.find(EngineTarget("tensorrt"))


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("product", "advice"), [("tensorrt-rtx", "--compute-capability, such as 8.9"), ("tensorrt", "or use tensorrt-rtx")]
)
def test_find_without_gpu_or_compute_capability_raises_with_advice(
    monkeypatch: pytest.MonkeyPatch, product: str, advice: str
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: VERSION)
    monkeypatch.setattr(engine_target.util, "find_spec", lambda _: object())
    with pytest.raises(ExportError, match="has no GPU here to build for") as caught:
        Builder.find(EngineTarget(product))
    assert advice in str(caught.value)


def test_key_and_file_name_change_with_everything_a_plan_depends_on() -> None:
    builder = Builder(RTX_4090, VERSION, "8.9")
    others = [
        (replace(builder, version="1.2.3.5"), "a"),
        (replace(builder, compute_capability="8.6"), "a"),
        (replace(builder, gpu="NVIDIA L40S"), "a"),
        (replace(builder, target=replace(RTX_4090, batch=(1, 2, 8))), "a"),
        (replace(builder, target=replace(RTX_4090, most_classes=9)), "a"),
        (replace(builder, target=replace(RTX_4090, accumulate="fp16")), "a"),
        (replace(builder, target=replace(RTX_4090, product="tensorrt", compute_capability=None)), "a"),
        (builder, "b"),
    ]
    keys = [maker.describe(sha)["key"] for maker, sha in [(builder, "a"), *others]]
    assert len(set(keys)) == len(keys)
    names = [file_name(maker.describe("a")) for maker, sha in [(builder, "a"), *others] if sha == "a"]
    assert len(set(names)) == len(names), "no plan overwrites another"


def test_record_of_tensorrt_names_the_gpu_model(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA H100 80GB HBM3", "9.0", "13.0", 80 * 2**30, "0000:01:00.0")
    monkeypatch.setattr(engine_target, "find_gpu", lambda device: (gpu, ""))
    monkeypatch.setattr(metadata, "version", lambda _: VERSION)
    monkeypatch.setattr(engine_target.util, "find_spec", lambda _: object())
    record = Builder.find(EngineTarget("tensorrt")).describe("a")
    assert (record["gpu"], record["compute_capability"]) == (gpu.name, "9.0")
    assert "_sm90-nvidia-h100-80gb-hbm3_" in file_name(record)
    assert "gpu" not in Builder.find(EngineTarget("tensorrt-rtx")).describe("a"), (
        "TensorRT for RTX does not look at the GPU"
    )


@pytest.mark.parametrize("product", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_is_built_for_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch, product: str) -> None:
    gpus = [Gpu("NVIDIA L4", "8.9", "13.0", 1 << 34, "", 0, "GPU-0a"), Gpu("NVIDIA H100", "9.0", "13.0", 1 << 34, "")]
    gpus[1] = replace(gpus[1], index=1, uuid="GPU-1b")
    monkeypatch.setattr(engine_target, "find_gpu", lambda device: (gpus[device or 0], ""))
    monkeypatch.setattr(metadata, "version", lambda _: VERSION)
    monkeypatch.setattr(engine_target.util, "find_spec", lambda _: object())
    first, second = (Builder.find(EngineTarget(product), device) for device in (None, 1))
    assert (first.compute_capability, first.uuid) == ("8.9", "")
    assert (second.compute_capability, second.uuid) == ("9.0", "GPU-1b")
    assert "GPU-1b" not in str(second.describe("a")), "engines for equal GPUs are equal"


def test_a_device_and_a_compute_capability_are_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: VERSION)
    monkeypatch.setattr(engine_target.util, "find_spec", lambda _: object())
    with pytest.raises(ExportError, match=r"--device.*or for a compute capability: give one"):
        Builder.find(RTX_4090, 1)
