"""runtime.backends.cuda_device and runtime.host over pretended bindings: errors, and that everything is freed."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.backends.cuda_device import CudaDevice, GpuError, OutOfDeviceMemory
from runtime.errors import BackendError
from runtime.host import Gpu, find_gpu, operating_system

OUT_OF_MEMORY, LAUNCH_FAILED, NO_DEVICE = 2, 719, 100


class Bindings(ModuleType):
    """As cuda.bindings.runtime: each call gives its error and results; what was made must be freed, once."""

    cudaError_t = SimpleNamespace(cudaErrorMemoryAllocation=OUT_OF_MEMORY)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaHostAllocDefault = cudaStreamNonBlocking = cudaEventDisableTiming = 0

    def __init__(self, gpus: int = 1) -> None:
        super().__init__("runtime")
        self.errors: dict[str, int] = {}
        self.alive: dict[int, str] = {}
        self.host: list[Any] = []
        self.copies: list[tuple[Any, ...]] = []
        self.count = 0
        self.properties = [gpu_properties(number) for number in range(gpus)]
        for kind, make, free in (
            ("memory", "cudaMalloc", "cudaFree"),
            ("stream", "cudaStreamCreateWithFlags", "cudaStreamDestroy"),
            ("event", "cudaEventCreateWithFlags", "cudaEventDestroy"),
            ("graph", "cudaStreamEndCapture", "cudaGraphDestroy"),
            ("ready", "cudaGraphInstantiate", "cudaGraphExecDestroy"),
        ):
            self.call(make, lambda *a, kind=kind: self.make(kind))
            self.call(free, lambda what, kind=kind: self.free(what, kind))
        self.call("cudaHostAlloc", self.host_alloc)
        self.call("cudaFreeHost", lambda what: self.free(what, "host"))
        self.call("cudaMemcpyAsync", lambda *a: self.copies.append(a))
        self.call("cudaMemGetInfo", lambda: (5, 10))
        self.call("cudaDriverGetVersion", lambda: 13020)
        self.call("cudaGetDeviceCount", lambda: gpus)
        self.call("cudaGetDeviceProperties", lambda number: self.properties[number])
        self.call("cudaDeviceGetPCIBusId", lambda size, number: b"0000:4%d:00.0\0".ljust(size, b"\0") % (number + 1))
        quiet = "EventRecord StreamWaitEvent StreamSynchronize StreamBeginCapture GraphLaunch GetLastError"
        for name in (*quiet.split(), "DeviceSynchronize"):
            self.call(f"cuda{name}", lambda *a: None)

    def call(self, name: str, inner: Callable[..., Any]) -> None:
        def function(*arguments: Any) -> tuple[Any, ...]:
            if self.errors.get(name):
                return (self.errors[name], None)
            result = inner(*arguments)
            return (0, *result) if isinstance(result, tuple) else (0, result)

        function.__name__ = name
        setattr(self, name, function)

    def make(self, kind: str) -> int:
        self.count += 1
        self.alive[self.count] = kind
        return self.count

    def host_alloc(self, size: int, flags: int) -> int:
        self.host.append((ctypes.c_uint8 * size)())
        address = ctypes.addressof(self.host[-1])
        self.alive[address] = "host"
        return address

    def free(self, what: int, kind: str) -> None:
        assert self.alive.pop(what) == kind

    def cudaGetErrorName(self, error: int) -> tuple[int, bytes]:
        return 0, {OUT_OF_MEMORY: b"cudaErrorMemoryAllocation", NO_DEVICE: b"cudaErrorNoDevice"}.get(
            error, b"cudaError"
        )

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, b"said in words"


def gpu_properties(number: int) -> SimpleNamespace:
    uuid = SimpleNamespace(bytes=bytes([0xAB, number]) + bytes(14))
    return SimpleNamespace(name=b"Some GPU\0\0", major=8, minor=9, totalGlobalMem=123, uuid=uuid)


class Driver(ModuleType):
    """As cuda.bindings.driver: a stack of contexts for each thread."""

    def __init__(self, bindings: Bindings) -> None:
        super().__init__("driver")
        self.stacks: dict[int, list[str]] = {}
        for name, inner in (
            ("cuInit", lambda flags: None),
            ("cuDeviceGet", lambda index: index),
            ("cuDevicePrimaryCtxRetain", lambda device: f"context {device}"),
            ("cuCtxPushCurrent", lambda context: self.stack.append(context)),
            ("cuCtxPopCurrent", lambda: self.stack.pop()),
        ):
            bindings.call(name, inner)
            setattr(self, name, getattr(bindings, name))

    @property
    def stack(self) -> list[str]:
        return self.stacks.setdefault(threading.get_ident(), [])

    def cuGetErrorName(self, error: int) -> tuple[int, bytes]:
        return 0, b"CUDA_ERROR"

    def cuGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, b"said by the driver"


def install(monkeypatch: pytest.MonkeyPatch, gpus: int = 1) -> Bindings:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = Bindings(gpus)
    package: Any = ModuleType("cuda.bindings")
    package.runtime, package.driver = found, Driver(found)
    found.driver = package.driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", found)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", package.driver)
    return found


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    return install(monkeypatch)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    """Two GPUs, with the UUIDs GPU-ab00... and GPU-ab01..."""
    return install(monkeypatch, 2)


def test_every_allocation_is_freed_exactly_once(bindings: Bindings) -> None:
    device = CudaDevice()
    address, stream = device.allocate(100), device.stream()
    device.allocate(5)
    device.event()
    pinned = device.pinned(10)
    pinned[:] = 7
    graph = device.capture(stream, lambda: None)
    device.launch(device.capture(stream, lambda: None), stream)
    assert sorted(bindings.alive.values()) == ["event", "host", "memory", "memory", "ready", "ready", "stream"]
    device.free(address)
    device.discard(graph)
    assert sorted(bindings.alive.values()) == ["event", "host", "memory", "ready", "stream"]
    device.close()
    device.close()
    assert bindings.alive == {}


def test_copies_carry_addresses_and_sizes(bindings: Bindings) -> None:
    device = CudaDevice()
    stream, array = device.stream(), np.zeros((3, 5), np.float32)
    device.copy_in(64, array, stream)
    device.copy_out(array, 128, stream)
    assert bindings.copies == [(64, array.ctypes.data, 60, 1, stream), (array.ctypes.data, 128, 60, 2, stream)]
    assert device.memory() == (5, 10)


def test_faults_are_typed_and_named(bindings: Bindings) -> None:
    device = CudaDevice()
    bindings.errors["cudaMalloc"] = OUT_OF_MEMORY
    with pytest.raises(OutOfDeviceMemory, match="cudaMalloc: cudaErrorMemoryAllocation"):
        device.allocate(1)
    bindings.errors["cudaStreamSynchronize"] = LAUNCH_FAILED
    with pytest.raises(GpuError, match=r"cudaStreamSynchronize: cudaError \(said in words\)"):
        device.synchronize(1)
    assert issubclass(GpuError, BackendError)
    assert not issubclass(OutOfDeviceMemory, GpuError)


def test_a_capture_that_fails_is_ended_and_leaves_nothing(bindings: Bindings) -> None:
    device = CudaDevice()
    stream = device.stream()

    def fail() -> None:
        raise BackendError("the engine did not run")

    with pytest.raises(BackendError, match="the engine did not run"):
        device.capture(stream, fail)
    bindings.errors["cudaGraphInstantiate"] = LAUNCH_FAILED
    with pytest.raises(GpuError):
        device.capture(stream, lambda: None)
    device.close()
    assert bindings.alive == {}


def test_the_gpu_is_described(bindings: Bindings) -> None:
    gpu, why = find_gpu()
    assert gpu is not None
    assert gpu == Gpu("Some GPU", "8.9", "13.2", 123, "0000:41:00.0", 0, "GPU-ab000000-0000-0000-0000-000000000000")
    assert gpu.label == "GPU 0 (Some GPU, GPU-ab000000)"
    assert why == ""
    bindings.errors["cudaDeviceGetPCIBusId"] = LAUNCH_FAILED
    bindings.properties[0].name = "Other GPU"
    gpu, _ = find_gpu()
    assert gpu is not None
    assert (gpu.name, gpu.bus) == ("Other GPU", "")


def test_without_a_gpu_the_reason_is_named(bindings: Bindings, monkeypatch: pytest.MonkeyPatch) -> None:
    bindings.errors["cudaGetDeviceProperties"] = LAUNCH_FAILED
    assert find_gpu() == (None, "GPU 0 does not answer (cudaError)")
    bindings.errors["cudaGetDeviceCount"] = NO_DEVICE
    assert find_gpu() == (None, "no NVIDIA GPU can be used (cudaErrorNoDevice, driver for CUDA 13.2)")
    bindings.call("cudaDriverGetVersion", lambda: 0)
    assert find_gpu() == (None, "no NVIDIA driver was found")

    def broken() -> tuple[int, int]:
        raise RuntimeError("cannot load libcuda.so.1\nand more")

    bindings.cudaDriverGetVersion = broken  # type: ignore[attr-defined]
    assert find_gpu() == (None, "no NVIDIA driver was found (cannot load libcuda.so.1)")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert find_gpu() == (None, 'cuda-bindings is not installed: pip install "cuda-bindings>=13"')


def test_a_gpu_is_found_by_its_index_and_by_what_its_uuid_begins_with(two: Bindings) -> None:
    for device in (1, "GPU-ab01", "GPU-ab010000-0000-0000-0000-000000000000"):
        gpu, why = find_gpu(device)
        assert (gpu and gpu.index, gpu and gpu.bus, why) == (1, "0000:42:00.0", "")
    first, _ = find_gpu(0)
    assert first == find_gpu()[0]


THERE = "; there is GPU 0 (Some GPU, GPU-ab000000), GPU 1 (Some GPU, GPU-ab010000)"


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (2, "there is no GPU 2"),
        ("GPU-77", "no GPUs have a UUID that begins with GPU-77"),
        ("GPU-ab0", "2 GPUs have a UUID that begins with GPU-ab0"),
        ("MIG-ab", "MIG-ab is a slice of a GPU: set CUDA_VISIBLE_DEVICES=MIG-ab and name no device"),
    ],
)
def test_a_gpu_that_is_not_there_is_named_with_those_that_are(
    two: Bindings, device: int | str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_gpu(device) == (None, why + THERE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert find_gpu(device) == (None, why + THERE + " (of CUDA_VISIBLE_DEVICES='3,1')")


def test_a_gpu_that_vanished_hides_no_other(two: Bindings) -> None:
    answer = two.cudaGetDeviceProperties  # type: ignore[attr-defined]
    two.cudaGetDeviceProperties = lambda number: (LAUNCH_FAILED, None) if number == 0 else answer(1)  # type: ignore
    assert find_gpu() == (None, "GPU 0 does not answer (cudaError); there is GPU 1 (Some GPU, GPU-ab010000)")
    gpu, _ = find_gpu("GPU-ab0")
    assert gpu is not None
    assert gpu.index == 1


def test_the_device_is_current_in_a_block_of_each_thread_and_never_after_it(two: Bindings) -> None:
    driver: Driver = two.driver  # type: ignore[attr-defined]
    devices = [CudaDevice(0), CudaDevice(1)]
    assert driver.stack == [], "opening a device leaves the thread as it was"

    def use(device: CudaDevice, seen: list[list[str]]) -> None:
        with device.current():
            seen.append(list(driver.stack))

    seen: list[list[str]] = []
    for device in devices:
        thread = threading.Thread(target=use, args=(device, seen))
        thread.start()
        thread.join()
    assert seen == [["context 0"], ["context 1"]]
    with devices[1].current():
        with contextlib.suppress(ZeroDivisionError), devices[0].current():
            assert driver.stack == ["context 1", "context 0"]
            _ = 1 // 0
        assert driver.stack == ["context 1"]
    assert not any(driver.stacks.values())


def test_a_fault_of_the_driver_is_typed_and_names_the_gpu(two: Bindings) -> None:
    device = CudaDevice(1)
    two.errors["cuCtxPushCurrent"] = LAUNCH_FAILED
    said = r"GPU 1 failed: cuCtxPushCurrent: CUDA_ERROR \(said by the driver\)"
    with pytest.raises(GpuError, match=said), device.current():
        pass
    two.errors["cuDevicePrimaryCtxRetain"] = OUT_OF_MEMORY
    with pytest.raises(OutOfDeviceMemory, match="GPU 0 is out of memory: cuDevicePrimaryCtxRetain"):
        CudaDevice()


def test_the_operating_system_has_the_form_that_engines_record() -> None:
    system, _, processor = operating_system().partition("-")
    assert system == system.lower()
    assert processor
