"""Memory, streams, events and graphs of one GPU, over NVIDIA's own bindings (cuda-bindings); no torch.

Everything made here belongs to the CudaDevice and is freed with it. Handles and addresses are plain integers or objects
of the bindings, to be handed back to this class and to nothing else.
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
    """CUDA reports a fault. Nothing on the GPU can be relied on any more."""


class OutOfDeviceMemory(BackendError):
    """The GPU has no room for what was asked for; what it holds is as it was."""


class CudaDevice:
    """The first GPU that CUDA shows. Safe to call from many threads.

    Raises GpuError for whatever CUDA reports, OutOfDeviceMemory for want of memory.
    """

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._cuda = runtime
        self._release: list[tuple[Callable[..., Any], Any]] = []
        self._call(runtime.cudaSetDevice, 0)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        error, *results = function(*arguments)
        if int(error):
            _, name = self._cuda.cudaGetErrorName(error)
            _, text = self._cuda.cudaGetErrorString(error)
            said = f"{function.__name__}: {name.decode()} ({text.decode()})"
            if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
                self._cuda.cudaGetLastError()  # this one is no lasting fault of the GPU; forget it
                raise OutOfDeviceMemory(f"the GPU is out of memory: {said}")
            raise GpuError(f"the GPU failed: {said}")
        return results[0] if len(results) == 1 else results

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the GPU of the calling thread, which may be new or have another, for as long as the block runs."""
        before = int(self._call(self._cuda.cudaGetDevice))
        self._call(self._cuda.cudaSetDevice, 0)
        try:
            yield
        finally:
            if before != 0:
                self._cuda.cudaSetDevice(before)

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes, aligned to 256: its address."""
        address = int(self._call(self._cuda.cudaMalloc, max(size, 1)))
        self._release.append((self._cuda.cudaFree, address))
        return address

    def free(self, address: int) -> None:
        """Give memory of `allocate` back before the device is closed."""
        self._release.remove((self._cuda.cudaFree, address))
        self._call(self._cuda.cudaFree, address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory of `size` bytes, which the GPU copies from and to by itself."""
        address = int(self._call(self._cuda.cudaHostAlloc, max(size, 1), self._cuda.cudaHostAllocDefault))
        self._release.append((self._cuda.cudaFreeHost, address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(address))

    def stream(self) -> Handle:
        """A stream that does not wait for the default one."""
        stream = self._call(self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking)
        self._release.append((self._cuda.cudaStreamDestroy, stream))
        return stream

    def event(self) -> Handle:
        """An event without a time."""
        event = self._call(self._cuda.cudaEventCreateWithFlags, self._cuda.cudaEventDisableTiming)
        self._release.append((self._cuda.cudaEventDestroy, event))
        return event

    def copy_in(self, address: int, source: NDArray[Any], stream: Handle) -> None:
        """Queue a copy of an array that is contiguous and stays as it is until the stream has come so far."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cuda.cudaMemcpyAsync, address, source.ctypes.data, source.nbytes, kind, stream)

    def copy_out(self, target: NDArray[Any], address: int, stream: Handle) -> None:
        """Queue a copy into an array that is contiguous; it holds the values once the stream has come so far."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cuda.cudaMemcpyAsync, target.ctypes.data, address, target.nbytes, kind, stream)

    def record(self, event: Handle, stream: Handle) -> None:
        """The event happens when the stream has come so far."""
        self._call(self._cuda.cudaEventRecord, event, stream)

    def wait(self, stream: Handle, event: Handle) -> None:
        """What is queued from here on waits for the event's last recording."""
        self._call(self._cuda.cudaStreamWaitEvent, stream, event, 0)

    def synchronize(self, stream: Handle) -> None:
        """Wait, here, until the stream is empty."""
        self._call(self._cuda.cudaStreamSynchronize, stream)

    def handle(self, stream: Handle) -> int:
        """The stream as other libraries take it."""
        return int(stream)

    def capture(self, stream: Handle, queue: Callable[[], None]) -> Handle:
        """What `queue` puts into the stream, as a graph that `launch` runs; it is not run now."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._cuda.cudaStreamBeginCapture, stream, mode)
        graph = None
        try:
            try:
                queue()
            finally:  # a stream that captures takes no other work
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
        """Bytes of device memory: free, and in all."""
        free, total = self._call(self._cuda.cudaMemGetInfo)
        return int(free), int(total)

    def close(self) -> None:
        """Free everything, the latest first. Closing twice is allowed; a GPU that is lost is left alone."""
        with suppress(RuntimeError):
            self._cuda.cudaDeviceSynchronize()
        while self._release:
            function, what = self._release.pop()
            function(what)
