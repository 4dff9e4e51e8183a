"""A simulated GPU and engine, with stricter ordering rules than hardware.

Queued work happens only when a thread waits for it, and then as late as the rules of streams and events allow. So a
buffer that is read too early, or reused too soon, gives wrong answers every time, not once a month.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from conftest import make_recipe
from numpy.typing import NDArray

from runtime.backends.base import OUTPUTS, graph_inputs, graph_outputs
from runtime.backends.cuda_device import GpuError, OutOfDeviceMemory
from runtime.manifest import Encoder
from runtime.recipe import TENSORS, Recipe


@dataclass(eq=False)
class Stream:
    number: int
    queue: list[Callable[[], None]] = field(default_factory=list)
    captured: list[Callable[[], None]] | None = None


@dataclass(eq=False)
class Event:
    recorded: tuple[Stream, int] | None = None
    """The stream, and how many operations had been queued in it in total."""


def _one_at_a_time(lock: threading.RLock, method: Callable[..., Any]) -> Callable[..., Any]:
    def locked(*arguments: Any) -> Any:
        with lock:
            return method(*arguments)

    return locked


class _Thread(threading.local):
    """The devices that the calling thread made current, the latest last, as CUDA's stack of contexts."""

    def __init__(self) -> None:
        self.devices: list[FakeDevice] = []


_THREAD = _Thread()


class FakeDevice:
    """Simulates CudaDevice. room: bytes of device memory. failing: the name of a method that fails from now on.

    Calls on a thread where it is not the current device fail: on hardware they would work on another GPU.
    """

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.failing = ""
        self.blocks: dict[int, NDArray[np.uint8]] = {}
        self.next_address = 1 << 20
        self.streams: list[Stream] = []
        self.done: dict[int, int] = {}
        self.graphs: set[int] = set()
        self.launched = self.queued = self.computed = 0
        self.calls: list[str] = []
        self.closed = False
        lock = threading.RLock()  # CUDA's own calls may be made from many threads
        for name in ("allocate", "copy_in", "copy_out", "record", "wait", "synchronize", "launch", "compute"):
            setattr(self, name, _one_at_a_time(lock, getattr(self, name)))

    def check_current(self) -> None:
        assert _THREAD.devices, "no device is current in this thread"
        assert _THREAD.devices[-1] is self, "another device is current in this thread"

    def _check(self, name: str) -> None:
        self.check_current()
        self.calls.append(name)
        if self.failing == name:
            raise GpuError(f"the GPU failed: {name}: cudaErrorLaunchFailure (unspecified launch failure)")

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        _THREAD.devices.append(self)
        try:
            yield
        finally:
            assert _THREAD.devices.pop() is self

    def allocate(self, size: int) -> int:
        self._check("allocate")
        if size > self.room - sum(len(block) for block in self.blocks.values()):
            raise OutOfDeviceMemory("the GPU is out of memory: cudaMalloc")
        address, self.next_address = self.next_address, self.next_address + (size + 511) // 256 * 256
        self.blocks[address] = np.full(size, 0xAB, np.uint8)
        return address

    def at(self, address: int, size: int) -> NDArray[np.uint8]:
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} are not allocated")

    def pinned(self, size: int) -> NDArray[np.uint8]:
        self.check_current()
        return np.full(size, 0xCD, np.uint8)

    def stream(self) -> Stream:
        self.check_current()
        self.streams.append(Stream(len(self.streams)))
        return self.streams[-1]

    def event(self) -> Event:
        self.check_current()
        return Event()

    def handle(self, stream: Stream) -> int:
        return stream.number

    def copy_in(self, address: int, source: NDArray[Any], stream: Stream) -> None:
        self._check("copy_in")
        assert source.flags.c_contiguous
        stream.queue.append(lambda: np.copyto(self.at(address, source.nbytes), source.view(np.uint8).reshape(-1)))

    def copy_out(self, target: NDArray[Any], address: int, stream: Stream) -> None:
        self._check("copy_out")
        stream.queue.append(lambda: np.copyto(target.view(np.uint8).reshape(-1), self.at(address, target.nbytes)))

    def record(self, event: Event, stream: Stream) -> None:
        self._check("record")
        event.recorded = (stream, self.done.get(stream.number, 0) + len(stream.queue))

    def wait(self, stream: Stream, event: Event) -> None:
        self._check("wait")
        assert event.recorded is not None
        other, count = event.recorded
        stream.queue.append(lambda: self._run(other, count))

    def synchronize(self, stream: Stream) -> None:
        self._check("synchronize")
        self._run(stream, self.done.get(stream.number, 0) + len(stream.queue))

    def _run(self, stream: Stream, until: int) -> None:
        while self.done.get(stream.number, 0) < until:
            what = stream.queue.pop(0)
            self.done[stream.number] = self.done.get(stream.number, 0) + 1
            what()

    def capture(self, stream: Stream, queue: Callable[[], None]) -> list[Callable[[], None]]:
        self._check("capture")
        stream.captured = []
        queue()
        graph, stream.captured = stream.captured, None
        self.graphs.add(id(graph))
        return graph

    def discard(self, graph: list[Callable[[], None]]) -> None:
        self.check_current()
        self.graphs.remove(id(graph))

    def launch(self, graph: list[Callable[[], None]], stream: Stream) -> None:
        self._check("launch")
        assert id(graph) in self.graphs
        self.launched += 1
        for what in graph:
            self.compute(stream, what)

    def compute(self, stream: Stream, what: Callable[[], None]) -> None:
        """Queue work that needs the activation memory: it must happen in the order in which it was queued."""
        if stream.captured is not None:
            stream.captured.append(what)
            return
        number, self.queued = self.queued, self.queued + 1

        def run() -> None:
            assert self.computed == number, "computed while another batch held the activation memory"
            what()
            self.computed += 1

        stream.queue.append(run)

    def memory(self) -> tuple[int, int]:
        self.check_current()
        return self.room - sum(len(block) for block in self.blocks.values()), self.room

    def close(self) -> None:
        self.check_current()
        self.blocks.clear()
        self.closed = True


class Context:
    """An execution context that answers as FakeBackend does, with the recipe's head_bias added to the probabilities."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] = (0, 0)
        self.needs = engine.activation_bytes * engine.batch[2]  # for the profile's largest batch, until shapes are set
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        if not all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True)):
            self.engine.say(f"{name}: {shape} is outside the profile")
            return False
        self.engine.device.check_current()
        self.shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        self.needs = int(self.engine.activation_bytes * self.shapes["frames"][0])
        return self.needs

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.needs
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        engine.device.check_current()
        assert self.shapes.keys() == {"frames", *TENSORS}
        assert self.addresses.keys() == {"frames", *TENSORS, *OUTPUTS}
        if engine.failing:
            engine.say("a layer failed")
            return False
        self.runs += 1
        engine.device.compute(engine.device.streams[stream], self._compute)
        return True

    def _compute(self) -> None:
        device = self.engine.device
        device.at(*self.memory)[:] = 0xEF
        values = {}
        for name, shape in self.shapes.items():
            kind = np.dtype(np.uint8 if name == "frames" else np.float32)
            values[name] = device.at(self.addresses[name], kind.itemsize * math.prod(shape)).view(kind).reshape(shape)
        for name, answer in self.engine.answer(values).items():
            flat = np.ascontiguousarray(answer, np.float32).view(np.uint8).reshape(-1)
            device.at(self.addresses[name], len(flat))[:] = flat


class Engine:
    """Simulates ICudaEngine, for batches and classes of a profile."""

    activation_bytes = 1000

    def __init__(self, encoder: Encoder, device: FakeDevice, batch: tuple[int, int, int], most_classes: int) -> None:
        self.encoder, self.device = encoder, device
        self.failing = False
        self.said: list[str] = []
        self.contexts: list[Context] = []
        signature = graph_inputs(encoder) | graph_outputs(encoder)
        self.tensors = {name: (kind.upper(), shape) for name, (kind, shape) in signature.items()}
        self.batch, self.classes = batch, (2, most_classes, most_classes)
        self.say: Callable[[str], None] = self.said.append

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        values = self.batch if name == "frames" else self.classes
        return [tuple(v if side < 0 else side for side in self.tensors[name][1]) for v in values]

    def create_execution_context(self, how: object) -> Context:
        assert how == "user managed" or isinstance(how, Config)
        self.device.check_current()
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def create_runtime_config(self) -> Config:
        return Config()

    def answer(self, values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        frames, bias = values["frames"], values["head_bias"]
        batch, height, width = frames.shape
        chosen = frames[:, 0, 0].astype(int) % len(bias)
        probabilities = np.tile(bias, (batch, 1))
        probabilities[np.arange(batch), chosen] += 0.5
        rows, columns = self.encoder.grid
        tiles = frames[:, : height // rows * rows, : width // columns * columns]
        tiles = tiles.reshape(batch, rows, height // rows, columns, width // columns).max(axis=2).max(axis=3)
        features = np.zeros((batch, self.encoder.features))
        features[:, 0] = frames[:, 0, 0]
        return {"probabilities": probabilities, "defect_map": tiles / 255, "features": features}


class Cache:
    content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content.startswith(b"kernels")

    def serialize(self) -> bytes:
        return b"kernels"


class Config:
    """Simulates IRuntimeConfig."""

    dynamic_shapes_kernel_specialization_strategy = cuda_graph_strategy = ""

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        assert strategy == "user managed"

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


def fake_module(engine: Engine | None, message: str = "") -> Any:
    """Simulates the module of TensorRT: it opens every plan as `engine`, or refuses it and logs `message`."""

    class Logger:
        Severity = SimpleNamespace(WARNING=2)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            if engine is not None:
                engine.say = lambda text: logger.log(1, text)
            elif message:
                logger.log(1, message)

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if engine is not None:
                engine.device.check_current()
            return engine

    return SimpleNamespace(
        __version__="1.2.3.4",
        ILogger=Logger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph"),
    )


def recipe_of(classes: int, bias: float = 0.0) -> Recipe:
    """A recipe whose head_bias, which the simulated engine adds, distinguishes it from others."""
    recipe = make_recipe(("good", *(f"defect_{i}" for i in range(1, classes))))
    return replace(recipe, tensors={**recipe.tensors, "head_bias": np.full(classes, bias, np.float32)})


PROBABLE = recipe_of(3, 0.5 / 3)
"""A recipe by which the simulated engine answers probabilities that sum to 1."""
