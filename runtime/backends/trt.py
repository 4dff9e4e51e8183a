"""TensorRT and TensorRT for RTX: one backend, for the two share one interface.

Three batches are in flight, one copied in, one computed, one copied out; each has a slot of its own with a stream and
buffers. They compute one after the other, so they share the engine's activation memory. Each slot has, for each batch
size and number of classes, an execution context and (TensorRT) a CUDA graph captured from it; NVIDIA's advice is one
context a graph. The recipe's tensors stay on the GPU and are replaced between batches.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailable, BundleError
from ..files import write_atomically
from ..manifest import Artifact, Encoder, read_artifact
from ..recipe import TENSORS, Recipe
from .base import OUTPUTS, Backend, Outputs, graph_inputs, graph_outputs
from .buckets import bucket_for, bucket_sizes, pieces
from .cuda_device import CudaDevice, GpuError, Handle, OutOfDeviceMemory

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Product, which is also the name of the backend and of the extra that installs it, and its module."""
SLOTS = 3
RECIPES_READY = 3
"""Numbers of classes for which contexts are kept; the one unused for longest makes room."""
RTX_WARM_UPS = 3
"""Runs of a new context before it counts as ready: TensorRT for RTX takes a graph of its own only after some. How many
is nowhere said, and no GPU has run this yet."""
ALIGNMENT = 256
MAX_CACHE_BYTES = 2**30
RESERVE = 256 * 2**20
"""Bytes of device memory left free for contexts, graphs and kernels, which the product and CUDA allocate themselves.
How much they take is nowhere said, and no GPU has run this yet."""
_log = logging.getLogger("sem_clip")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the outputs of a batch size and number of classes lie in a slot's output buffer, in bytes."""

    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, encoder: Encoder, batch: int, classes: int) -> _Layout:
        shapes = ((batch, classes), (batch, *encoder.grid), (batch, encoder.features))
        offsets, total = [], 0
        for shape in shapes:
            offsets.append(total)
            total += _aligned(4 * math.prod(shape))
        return cls(shapes, tuple(offsets), total)


@dataclass(slots=True, eq=False)
class _Ready:
    """An execution context whose shapes and addresses are set and stay, and the graph captured from it."""

    context: Any
    graph: Handle | None


@dataclass(slots=True, eq=False)
class _Slot:
    """One batch in flight. `computed`: an event, after which the activation memory is free for the next."""

    stream: Handle
    computed: Handle
    host_in: NDArray[np.uint8]
    host_out: NDArray[np.uint8]
    device_in: int
    device_out: int
    ready: dict[tuple[int, int], _Ready] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    slot: _Slot
    frames: int
    layout: _Layout


class TensorRtBackend(Backend):
    """Runs a serialized engine of `product` ("tensorrt" or "tensorrt-rtx") on the GPU it was built for.

    `backends.choice` has checked by then that it was built for this host. device, module: for tests without a GPU.
    Raises BackendUnavailable if the product is not installed, BundleError if the engine is damaged or not one of this
    bundle, BackendError if the GPU fails or has no room.
    """

    in_flight = SLOTS

    def __init__(
        self,
        folder: Path,
        artifact: Artifact,
        encoder: Encoder,
        product: str,
        *,
        device: CudaDevice | None = None,
        module: Any = None,
    ) -> None:
        self.name, self.precision = product, artifact.precision
        try:
            self._trt = importlib.import_module(MODULES[product]) if module is None else module
            self._device = CudaDevice() if device is None else device
        except ImportError as exc:
            raise BackendUnavailable(
                f'backend "{product}" needs {exc.name}, which is not installed: pip install "sem-clip[{product}]"'
            ) from exc
        self._encoder = encoder
        self._lock = threading.Lock()
        self._broken: GpuError | None = None
        self._recipe: Recipe | None = None
        self._last: _Slot | None = None
        self._known_classes: list[int] = []
        self._slots: list[_Slot] = []
        self._free: queue.Queue[_Slot | None] = queue.Queue()
        self._closed = False
        self._said: deque[str] = deque(maxlen=8)
        try:
            self._open(folder, artifact)
        except BaseException:
            self.close()
            raise

    # ---- opening -------------------------------------------------------------------------------------------------

    def _open(self, folder: Path, artifact: Artifact) -> None:
        plan = read_artifact(folder, artifact)
        self._logger = _logger(self._trt, self._said)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            if "out of memory" in self._last_words().lower():
                raise BackendError(f"the GPU has no room for the weights of {artifact.file}: {self._last_words()}")
            raise BundleError(folder, f"{artifact.file} cannot be opened by {self.name}: {self._last_words()}")
        faults = self._faults()
        if faults:
            raise BundleError(folder, [f"{artifact.file}: {fault}" for fault in faults])
        least, _, most = (int(shape[0]) for shape in self._engine.get_tensor_profile_shape("frames", 0))
        self._most_classes = int(self._engine.get_tensor_profile_shape("head_bias", 0)[2][0])
        self._cache_file = _cache_file(folder, artifact) if self.name == "tensorrt-rtx" else None
        self._config = self._runtime_config()
        self._sizes = self._take_memory(bucket_sizes(least, most))
        self.max_batch = self._sizes[-1]
        note = "" if self.max_batch == most else f", batches of {self.max_batch} for want of memory (it takes {most})"
        self.description = f"{self.name} {self._trt.__version__}, {artifact.file} ({artifact.precision}){note}"
        if note:
            _log.warning("%s: %s", folder, self.description)

    def _faults(self) -> list[str]:
        """What the engine has that the bundle format has not."""
        engine, encoder = self._engine, self._encoder
        found = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            found[name] = (engine.get_tensor_dtype(name).name.lower(), tuple(engine.get_tensor_shape(name)))
        needed = graph_inputs(encoder) | graph_outputs(encoder)
        return [
            f"{name} is {found.get(name, 'missing')}, not {needed.get(name, 'of the bundle format')}"
            for name in sorted({*found, *needed})
            if found.get(name) != needed.get(name)
        ]

    def _runtime_config(self) -> Any:
        """How TensorRT for RTX compiles its kernels: all before the first answer, kept on disk, run as one graph."""
        if self._cache_file is None:
            return None
        trt, config = self._trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = config.create_runtime_cache()
        kept = _read_cache(self._cache_file)
        if kept is not None and not self._cache.deserialize(kept):
            _log.warning("%s: is of no use to this %s; compiling anew", self._cache_file, self.name)
        config.set_runtime_cache(self._cache)
        return config

    def _context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy if self._config is None else self._config)
        if context is None:
            raise BackendError(f"{self.name} gave no execution context: {self._last_words()}")
        return context

    def _take_memory(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Allocate for the largest of `sizes` that the GPU has room for; the sizes up to it."""
        recipe_bytes = {
            name: _aligned(4 * math.prod(shape)) for name, shape in self._recipe_shapes(self._most_classes).items()
        }
        pixels = math.prod(self._encoder.input_size)
        for count in range(len(sizes), 0, -1):
            batch = sizes[count - 1]
            into, out = _aligned(batch * pixels), _Layout.of(self._encoder, batch, self._most_classes).total
            activations = _aligned(self._activation_bytes(batch))
            total = activations + sum(recipe_bytes.values()) + SLOTS * (into + out)
            try:
                free, there = self._device.memory()
                if count > 1 and free < total + RESERVE:
                    continue
                address = self._device.allocate(total)
                break
            except OutOfDeviceMemory as exc:
                if count == 1:
                    raise BackendError(
                        f"the GPU has {free / 1e9:.2f} of {there / 1e9:.2f} GB free, batches of {batch} need "
                        f"{total / 1e9:.2f} GB beside the weights: free memory, or build a smaller engine (--batch)"
                    ) from exc
        self._activations, self._activation_size = address, activations
        address += activations
        self._recipe_at: dict[str, int] = {}
        for name, size in recipe_bytes.items():
            self._recipe_at[name] = address
            address += size
        for _ in range(SLOTS):
            slot = _Slot(
                self._device.stream(),
                self._device.event(),
                self._device.pinned(batch * pixels),
                self._device.pinned(out),
                address,
                address + into,
            )
            address += into + out
            self._slots.append(slot)
            self._free.put(slot)
        self._uploads = self._device.stream()
        return sizes[:count]

    def _activation_bytes(self, batch: int) -> int:
        context = self._context()
        self._set_shapes(context, batch, self._most_classes)
        return self._memory_for_shapes(context)

    def _memory_for_shapes(self, context: Any) -> int:
        """Bytes that a context needs for its shapes. Until it was asked, it takes no less than for the largest."""
        size = int(context.update_device_memory_size_for_shapes())
        self._require(size > 0, "does not say how much activation memory a batch needs")
        return size

    # ---- answering -----------------------------------------------------------------------------------------------

    def warm_up(self, recipe: Recipe) -> None:
        """As `Backend.warm_up`: every slot runs every batch size once with this number of classes.

        Batches of other threads go on in between, with the recipe that they bring.
        """
        for slot in tuple(self._slots):
            for batch in self._sizes:
                with self._lock, self._device.current(), self._remembering():
                    self._check_open()
                    self._use(recipe)
                    self._ready(slot, batch, len(recipe.classes))
                time.sleep(0.001)  # a lock is not fair: without a pause, those who wait for it would not get it
        with self._lock, self._device.current(), self._remembering():
            self._check_open()
            self._keep_cache()

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`; more than `max_batch` frames are split."""
        self._check_open()
        waiting: deque[_Ticket] = deque()
        parts: list[Outputs] = []
        try:
            for piece in pieces(len(frames), self.max_batch):
                try:
                    slot = self._take(block=not waiting)
                except queue.Empty:  # all are in use, some by this call: do not wait for others to free theirs
                    parts.append(self._collect(waiting.popleft()))
                    slot = self._take()
                waiting.append(self._submit(slot, frames[piece], recipe))
            while waiting:
                parts.append(self._collect(waiting.popleft()))
        finally:
            for ticket in waiting:  # after an error
                self._give_up(ticket.slot)
        if len(parts) == 1:
            return parts[0]
        return Outputs(*(np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS))

    def _take(self, *, block: bool = True) -> _Slot:
        """A free slot; queue.Empty where none is and it is not to be waited for. BackendError once it is closed."""
        slot = self._free.get(block=block)
        if slot is None:
            self._free.put(None)  # for the next who waits
            self._check_open()
        assert slot is not None
        return slot

    def _submit(self, slot: _Slot, frames: NDArray[np.uint8], recipe: Recipe) -> _Ticket:
        """Queue one batch in a free slot; the slot is free again if that fails."""
        classes, device = len(recipe.classes), self._device
        try:
            pixels = slot.host_in[: frames.size]
            np.copyto(pixels.reshape(frames.shape), frames)
            batch = bucket_for(len(frames), self._sizes)
            layout = _Layout.of(self._encoder, batch, classes)
            with self._lock, device.current(), self._remembering():
                self._use(recipe)
                ready = self._ready(slot, batch, classes)
                device.copy_in(slot.device_in, pixels, slot.stream)
                self._compute(slot, ready)
                device.copy_out(slot.host_out[: layout.total], slot.device_out, slot.stream)
            return _Ticket(slot, len(frames), layout)
        except BaseException:
            self._give_up(slot)
            raise

    def _give_up(self, slot: _Slot) -> None:
        """Free a slot whose batch nobody waits for: none may be lost, and none reused while it is written to."""
        with suppress(BackendError), self._device.current():
            self._device.synchronize(slot.stream)
        self._free.put(slot)

    def _collect(self, ticket: _Ticket) -> Outputs:
        """Wait for a batch and take its answers out of the slot, which is free then."""
        try:
            with self._device.current(), self._remembering():
                self._device.synchronize(ticket.slot.stream)
            values = []
            for shape, offset in zip(ticket.layout.shapes, ticket.layout.offsets, strict=True):
                found = ticket.slot.host_out[offset : offset + 4 * math.prod(shape)].view(np.float32).reshape(shape)
                values.append(found[: ticket.frames].copy())
            return Outputs(*values)
        finally:
            self._free.put(ticket.slot)

    def _compute(self, slot: _Slot, ready: _Ready) -> None:
        """Queue the engine behind the batch before, whose activation memory it takes over."""
        if self._last is not None:
            self._device.wait(slot.stream, self._last.computed)
        if ready.graph is None:
            self._enqueue(ready.context, slot)
        else:
            self._device.launch(ready.graph, slot.stream)
        self._device.record(slot.computed, slot.stream)
        self._last = slot

    def _enqueue(self, context: Any, slot: _Slot) -> None:
        self._require(context.execute_async_v3(self._device.handle(slot.stream)), "did not run the batch")

    def _use(self, recipe: Recipe) -> None:
        """Make `recipe` the one on the GPU. Batches that were queued before it are finished with the old one first."""
        if recipe is self._recipe:
            return
        classes = len(recipe.classes)
        if classes > self._most_classes:
            raise BackendError(
                f"the recipe has {classes} classes, the engine takes {self._most_classes} at most: build one for more "
                "(sem-clip build-engine --most-classes)"
            )
        if self._last is not None:
            self._device.synchronize(self._last.stream)
        self._recipe = None
        for name, address in self._recipe_at.items():
            self._device.copy_in(address, np.ascontiguousarray(recipe.tensors[name], np.float32), self._uploads)
            self._device.synchronize(self._uploads)
        self._recipe = recipe
        if classes in self._known_classes:
            self._known_classes.remove(classes)
        self._known_classes.append(classes)
        if len(self._known_classes) > RECIPES_READY:
            self._forget(self._known_classes.pop(0))

    def _ready(self, slot: _Slot, batch: int, classes: int) -> _Ready:
        """The context for a batch size and number of classes in this slot; made, run and captured where it is new."""
        key = (batch, classes)
        if key not in slot.ready:
            context = self._context()
            self._set_shapes(context, batch, classes)
            needed = self._memory_for_shapes(context)
            self._require(
                needed <= self._activation_size,
                f"wants {needed:,} bytes of activation memory, not {self._activation_size:,}",
            )
            context.set_device_memory(self._activations, self._activation_size)
            layout = _Layout.of(self._encoder, batch, classes)
            outputs = {name: slot.device_out + at for name, at in zip(OUTPUTS, layout.offsets, strict=True)}
            for name, address in {"frames": slot.device_in, **self._recipe_at, **outputs}.items():
                self._require(context.set_tensor_address(name, address), f"did not take an address for {name}")
            ready = _Ready(context, None)
            for _ in range(1 if self._config is None else RTX_WARM_UPS):
                self._compute(slot, ready)  # what a context does but once must not end up in the graph
                self._device.synchronize(slot.stream)
            if self._config is None:
                ready.graph = self._capture(slot, context)
            slot.ready[key] = ready
        return slot.ready[key]

    def _capture(self, slot: _Slot, context: Any) -> Handle | None:
        """The context's graph; None, with a word, where the engine holds something that no graph may: it runs as well,
        if slower."""
        try:
            return self._device.capture(slot.stream, lambda: self._enqueue(context, slot))
        except GpuError as exc:
            _log.warning("%s runs without a CUDA graph: %s", self.name, exc)
            return None

    def _forget(self, classes: int) -> None:
        """Free the contexts for a number of classes. No batch is in flight."""
        for slot in self._slots:
            for key in [key for key in slot.ready if key[1] == classes]:
                ready = slot.ready.pop(key)
                if ready.graph is not None:
                    self._device.discard(ready.graph)

    def _recipe_shapes(self, classes: int) -> Mapping[str, tuple[int, ...]]:
        engine = self._engine
        return {
            name: tuple(classes if side < 0 else side for side in engine.get_tensor_shape(name)) for name in TENSORS
        }

    def _set_shapes(self, context: Any, batch: int, classes: int) -> None:
        shapes = {"frames": (batch, *self._encoder.input_size), **self._recipe_shapes(classes)}
        for name, shape in shapes.items():
            self._require(context.set_input_shape(name, shape), f"did not take the shape {list(shape)} for {name}")

    # ---- errors and the end --------------------------------------------------------------------------------------

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"{self.name} {what}: {self._last_words()}")

    def _last_words(self) -> str:
        return "; ".join(self._said) or "it does not say why"

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Remember a fault of the GPU, after which nothing on it can be relied on."""
        try:
            yield
        except GpuError as exc:
            self._broken = exc
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"the {self.name} engine is closed")
        if self._broken is not None:
            raise BackendError(f"the {self.name} engine failed before ({self._broken}); open another Predictor")

    def _keep_cache(self) -> None:
        """Write the compiled kernels beside the bundle; where that may not be written, the next start compiles them."""
        if self._cache_file is None:
            return
        kernels = self._cache.serialize()
        if kernels is None:
            _log.warning("%s: not written, for %s gave no kernels: %s", self._cache_file, self.name, self._last_words())
            return
        content = bytes(kernels)
        content = hashlib.sha256(content).digest() + content
        try:
            if not self._cache_file.exists() or self._cache_file.read_bytes() != content:
                write_atomically(self._cache_file, content)
        except OSError as exc:
            _log.warning(
                "%s: cannot be written (%s); kernels are compiled at each start", self._cache_file, exc.strerror
            )

    def close(self) -> None:
        """Free the engine and all of its memory. Batches in flight are finished first; calls that wait are refused."""
        with self._lock:
            already, self._closed = self._closed, True
        if already:
            return
        for _ in self._slots:
            self._free.get()  # a slot that is free, or as soon as its batch was answered: then nobody reads its buffers
        self._free.put(None)
        with self._lock, self._device.current():
            for slot in self._slots:
                with suppress(BackendError):
                    self._device.synchronize(slot.stream)
                slot.ready.clear()
            self._slots = []
            self._recipe = self._last = None
            # Contexts, then the engine, then what they use.
            self._config = self._cache = self._engine = self._runtime = None
            self._device.close()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _logger(trt: Any, said: deque[str]) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                said.append(message.strip().split("\n", 1)[0][:300])

    return Log()


def _cache_file(folder: Path, artifact: Artifact) -> Path:
    """Compiled kernels of one engine on one kind of GPU and driver. Beside the bundle, which is never written to."""
    from ..host import find_gpu

    gpu, _ = find_gpu()
    where = "unknown" if gpu is None else f"{gpu.compute_capability}-{gpu.driver}-{gpu.name}"
    name = f"{artifact.sha256[:16]}-{hashlib.sha256(where.encode()).hexdigest()[:16]}.kernels"
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.cache") / name


def _read_cache(file: Path) -> bytes | None:
    """The cache's content without its hash, or None where there is none or it is damaged."""
    try:
        if file.stat().st_size > MAX_CACHE_BYTES:
            return None
        content = file.read_bytes()
    except OSError:
        return None
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() == digest:
        return content
    _log.warning("%s: is damaged; compiling anew", file)
    return None
