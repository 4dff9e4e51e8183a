"""Memory, streams, events and graphs of one GPU, over NVIDIA's own bindings (cuda-bindings); no torch.

Everything allocated here belongs to the CudaDevice and is freed with it. Handles and addresses are plain integers or
objects of the bindings, valid only as arguments of this class.

CUDA works on the GPU that is current in the calling thread. So every thread makes its GPU current around its calls, and
gives back what was current before. It does so by the driver's stack of contexts: `cudaSetDevice` cannot be undone
without opening GPU 0, which would take memory there for a process that uses another GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError

Handle = Any


class GpuError(BackendError):
    """CUDA reports a fault. All state on the GPU is unreliable from then on."""


class OutOfDeviceMemory(BackendError):
    """The GPU has no room for an allocation; its content is unchanged."""


class CudaDevice:
    """The GPU of CUDA's number `index`. Safe to call from many threads, each inside a block of `current`.

    Raises OutOfDeviceMemory if memory is short, GpuError for any other error of CUDA.
    """

    def __init__(self, index: int = 0) -> None:
        from cuda.bindings import driver, runtime

        self._cuda, self._driver, self._index = runtime, driver, index
        self._release: list[tuple[Callable[..., Any], Any]] = []
        self._call(driver.cuInit, 0)
        # The context that CUDA's other users in this process share, ONNX Runtime and torch too; it ends with the
        # process.
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, self._call(driver.cuDeviceGet, index))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        error, *results = function(*arguments)
        if int(error):
            raise self._fault(function.__name__, error)
        return results[0] if len(results) == 1 else results

    def _fault(self, function: str, error: Any) -> BackendError:
        if function.startswith("cuda"):
            (_, name), (_, text) = self._cuda.cudaGetErrorName(error), self._cuda.cudaGetErrorString(error)
            self._cuda.cudaGetLastError()  # clear it where it does not last
        else:
            (_, name), (_, text) = self._driver.cuGetErrorName(error), self._driver.cuGetErrorString(error)
        report = f"{function}: {name.decode()} ({text.decode()})"
        if int(error) == int(self._cuda.cudaError_t.cudaErrorMemoryAllocation):  # the driver's has the same number
            return OutOfDeviceMemory(f"GPU {self._index} is out of memory: {report}")
        return GpuError(f"GPU {self._index} failed: {report}")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the GPU of the calling thread while the block runs; the thread may have used another."""
        self._call(self._driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent()

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes of device memory, aligned to 256."""
        address = int(self._call(self._cuda.cudaMalloc, max(size, 1)))
        self._release.append((self._cuda.cudaFree, address))
        return address

    def free(self, address: int) -> None:
        """Free memory of `allocate` before the device is closed."""
        self._release.remove((self._cuda.cudaFree, address))
        self._call(self._cuda.cudaFree, address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory of `size` bytes, which the GPU accesses directly."""
        address = int(self._call(self._cuda.cudaHostAlloc, max(size, 1), self._cuda.cudaHostAllocDefault))
        self._release.append((self._cuda.cudaFreeHost, address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(address))

    def stream(self) -> Handle:
        """A stream that does not wait for the default one."""
        stream = self._call(self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking)
        self._release.append((self._cuda.cudaStreamDestroy, stream))
        return stream

    def event(self) -> Handle:
        """An event without timing."""
        event = self._call(self._cuda.cudaEventCreateWithFlags, self._cuda.cudaEventDisableTiming)
        self._release.append((self._cuda.cudaEventDestroy, event))
        return event

    def copy_in(self, address: int, source: NDArray[Any], stream: Handle) -> None:
        """Queue a copy of a contiguous array, which must not change until the stream has made the copy."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cuda.cudaMemcpyAsync, address, source.ctypes.data, source.nbytes, kind, stream)

    def copy_out(self, target: NDArray[Any], address: int, stream: Handle) -> None:
        """Queue a copy into a contiguous array; the values are there once the stream has made the copy."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cuda.cudaMemcpyAsync, target.ctypes.data, address, target.nbytes, kind, stream)

    def record(self, event: Handle, stream: Handle) -> None:
        """Record the event at the current end of the stream."""
        self._call(self._cuda.cudaEventRecord, event, stream)

    def wait(self, stream: Handle, event: Handle) -> None:
        """Make all later work in the stream wait for the event's last recording."""
        self._call(self._cuda.cudaStreamWaitEvent, stream, event, 0)

    def synchronize(self, stream: Handle) -> None:
        """Block the calling thread until the stream is empty."""
        self._call(self._cuda.cudaStreamSynchronize, stream)

    def handle(self, stream: Handle) -> int:
        """The stream's address, as other libraries take it."""
        return int(stream)

    def capture(self, stream: Handle, queue: Callable[[], None]) -> Handle:
        """Capture the work that `queue` puts into the stream as a graph for `launch`, without running it."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._cuda.cudaStreamBeginCapture, stream, mode)
        graph = None
        try:
            try:
                queue()
            finally:  # a capturing stream accepts no other work
                graph = self._call(self._cuda.cudaStreamEndCapture, stream)
            ready = self._call(self._cuda.cudaGraphInstantiate, graph, 0)
        finally:
            if graph is not None:
                self._cuda.cudaGraphDestroy(graph)
        self._release.append((self._cuda.cudaGraphExecDestroy, ready))
        return ready

    def discard(self, graph: Handle) -> None:
        """Free a graph of `capture` before the device is closed."""
        self._release.remove((self._cuda.cudaGraphExecDestroy, graph))
        self._call(self._cuda.cudaGraphExecDestroy, graph)

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Queue a captured graph."""
        self._call(self._cuda.cudaGraphLaunch, graph, stream)

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: free, and total."""
        free, total = self._call(self._cuda.cudaMemGetInfo)
        return int(free), int(total)

    def close(self) -> None:
        """Free everything, latest first. Closing twice is allowed; errors of a lost GPU are ignored."""
        with suppress(RuntimeError):
            self._cuda.cudaDeviceSynchronize()
        while self._release:
            function, what = self._release.pop()
            function(what)
