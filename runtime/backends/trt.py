"""TensorRT and TensorRT for RTX as one backend.

Three batches are in flight: one copied in, one computed, one copied out. Each has a slot of its own with a stream and
buffers. Batches compute one after the other, so they share the engine's activation memory. Each slot holds, for each
batch size and number of classes, an execution context and (TensorRT) a CUDA graph captured from it; NVIDIA advises one
context per graph. The recipe's tensors stay on the GPU and are replaced between batches.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailable
from ..host import Gpu
from ..manifest import Artifact, Encoder
from ..recipe import Recipe
from .base import OUTPUTS, Backend, Outputs
from .buckets import bucket_for, bucket_sizes, pieces
from .cuda_device import CudaDevice, GpuError, Handle, OutOfDeviceMemory
from .trt_engine import MODULES, TensorRtEngine
from .trt_slots import SLOTS, DeviceMemory, Layout, Ready, Slot, Ticket, aligned

__all__ = ["MODULES", "RECIPES_READY", "RESERVE", "RTX_WARM_UPS", "SLOTS", "TensorRtBackend"]

RECIPES_READY = 3
"""Numbers of classes for which contexts are kept; the one unused for longest makes room."""
RTX_WARM_UPS = 3
"""Runs of a new context before it counts as ready: TensorRT for RTX captures a graph of its own only after some. NVIDIA
documents no number, and this one is not tried on a GPU."""
RESERVE = 256 * 2**20
"""Bytes of device memory left free for contexts, graphs and kernels, which the product and CUDA allocate themselves.
NVIDIA documents no figure, and this one is not tried on a GPU."""
_log = logging.getLogger("sem_clip")


class TensorRtBackend(Backend):
    """Runs a serialized engine of `product` ("tensorrt" or "tensorrt-rtx") on the GPU it was built for.

    `backends.choice` has checked before that it was built for this host. gpu: where it runs; None for the first that
    CUDA shows. device, module: for tests without a GPU.
    Raises BackendUnavailable if the product is not installed. Raises BundleError if the engine is damaged or not one of
    this bundle, and BackendError if the GPU fails or has no room.
    """

    in_flight = SLOTS

    def __init__(
        self,
        folder: Path,
        artifact: Artifact,
        encoder: Encoder,
        product: str,
        *,
        gpu: Gpu | None = None,
        device: CudaDevice | None = None,
        module: Any = None,
    ) -> None:
        self.name, self.precision = product, artifact.precision
        try:
            self._engine = TensorRtEngine(product, module)
            self._device = CudaDevice(0 if gpu is None else gpu.index) if device is None else device
        except ImportError as exc:
            raise BackendUnavailable(
                f'backend "{product}" needs {exc.name}, which is not installed: pip install "sem-clip[{product}]"'
            ) from exc
        self._encoder, self._where = encoder, "the GPU" if gpu is None else gpu.label
        self._lock = threading.Lock()
        self._broken: GpuError | None = None
        self._recipe: Recipe | None = None
        self._recipe_at: dict[str, int] = {}
        self._last: Slot | None = None
        self._known_classes: list[int] = []
        self._slots: list[Slot] = []
        self._free: queue.Queue[Slot | None] = queue.Queue()
        self._closed = False
        try:
            with self._device.current():
                self._open(folder, artifact, gpu)
        except BaseException:
            self.close()
            raise

    # ---- opening -------------------------------------------------------------------------------------------------

    def _open(self, folder: Path, artifact: Artifact, gpu: Gpu | None) -> None:
        engine = self._engine
        engine.open(folder, artifact, self._encoder, gpu)
        self._sizes = self._take_memory(bucket_sizes(engine.least_batch, engine.most_batch))
        self.max_batch = most = self._sizes[-1]
        note = (
            ""
            if most == engine.most_batch
            else f", batches of {most} because memory is short (the engine takes {engine.most_batch})"
        )
        where = "" if gpu is None else f" on {gpu.label}"
        self.description = f"{self.name} {engine.version}{where}, {artifact.file} ({artifact.precision}){note}"
        if note:
            _log.warning("%s: %s", folder, self.description)

    def _take_memory(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Allocate for the largest of the rising `sizes` that the GPU has room for; return the sizes up to it."""
        for batch in reversed(sizes):
            smallest = batch == sizes[0]
            needed = self._memory_of(batch)
            free, there = self._device.memory()
            if not smallest and free < needed.total + RESERVE:
                continue
            try:
                address = self._device.allocate(needed.total)
            except OutOfDeviceMemory as exc:
                if not smallest:
                    continue
                raise BackendError(
                    f"{self._where} has {free / 1e9:.2f} of {there / 1e9:.2f} GB free, batches of {batch} need "
                    f"{needed.total / 1e9:.2f} GB in addition to the weights: free memory, or build a smaller engine "
                    "(--batch)"
                ) from exc
            self._lay_out(needed, address)
            return tuple(size for size in sizes if size <= batch)
        raise AssertionError("there is a smallest batch size, and it returns or raises")

    def _memory_of(self, batch: int) -> DeviceMemory:
        """What batches of up to `batch` frames need, with the most classes of the engine's profile."""
        classes = self._engine.most_classes
        return DeviceMemory(
            batch,
            aligned(self._engine.activation_bytes(self._engine.context(batch, classes))),
            {name: aligned(4 * math.prod(shape)) for name, shape in self._engine.recipe_shapes(classes).items()},
            aligned(batch * math.prod(self._encoder.input_size)),
            Layout.of(self._encoder, batch, classes).total,
        )

    def _lay_out(self, memory: DeviceMemory, address: int) -> None:
        """Divide device memory from `address` on: activations, then the recipe, then the slots."""
        self._activations, self._activation_size = address, memory.activations
        address += memory.activations
        for name, size in memory.recipe.items():
            self._recipe_at[name] = address
            address += size
        for _ in range(SLOTS):
            slot = Slot(
                self._device.stream(),
                self._device.event(),
                self._device.pinned(memory.batch * math.prod(self._encoder.input_size)),
                self._device.pinned(memory.slot_out),
                address,
                address + memory.slot_in,
            )
            address += memory.slot_in + memory.slot_out
            self._slots.append(slot)
            self._free.put(slot)
        self._uploads = self._device.stream()

    # ---- answering -----------------------------------------------------------------------------------------------

    def warm_up(self, recipe: Recipe) -> None:
        """As `Backend.warm_up`: every slot runs every batch size once with this number of classes.

        Batches of other threads run in between, with their own recipes.
        """
        for slot in tuple(self._slots):
            for batch in self._sizes:
                with self._lock, self._device.current(), self._remembering():
                    self._check_open()
                    self._use(recipe)
                    self._ready(slot, batch, len(recipe.classes))
                time.sleep(0.001)  # locks are not fair: without a pause, waiting threads would not get it
        with self._lock, self._device.current(), self._remembering():
            self._check_open()
            self._engine.keep_kernels()

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`; more than `max_batch` frames are split."""
        self._check_open()
        waiting: deque[Ticket] = deque()
        parts: list[Outputs] = []
        try:
            for piece in pieces(len(frames), self.max_batch):
                try:
                    slot = self._take(block=not waiting)
                except (
                    queue.Empty
                ):  # all are in use, some by this call: free one of those instead of waiting for others
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

    def _take(self, *, block: bool = True) -> Slot:
        """A free slot; queue.Empty if there is none and `block` is false. BackendError once the backend is closed."""
        slot = self._free.get(block=block)
        if slot is None:
            self._free.put(None)  # for the next waiting thread
            self._check_open()
        assert slot is not None
        return slot

    def _submit(self, slot: Slot, frames: NDArray[np.uint8], recipe: Recipe) -> Ticket:
        """Queue one batch in a free slot; the slot is free again if that fails."""
        classes, device = len(recipe.classes), self._device
        try:
            pixels = slot.host_in[: frames.size]
            np.copyto(pixels.reshape(frames.shape), frames)
            batch = bucket_for(len(frames), self._sizes)
            layout = Layout.of(self._encoder, batch, classes)
            with self._lock, device.current(), self._remembering():
                self._use(recipe)
                ready = self._ready(slot, batch, classes)
                device.copy_in(slot.device_in, pixels, slot.stream)
                self._compute(slot, ready)
                device.copy_out(slot.host_out[: layout.total], slot.device_out, slot.stream)
            return Ticket(slot, len(frames), layout)
        except BaseException:
            self._give_up(slot)
            raise

    def _give_up(self, slot: Slot) -> None:
        """Free the slot of an abandoned batch: none may be lost, and none reused while the GPU writes to it."""
        with suppress(BackendError), self._device.current():
            self._device.synchronize(slot.stream)
        self._free.put(slot)

    def _collect(self, ticket: Ticket) -> Outputs:
        """Wait for a batch, copy its answers out of the slot and free the slot."""
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

    def _compute(self, slot: Slot, ready: Ready) -> None:
        """Queue the engine after the previous batch, whose activation memory it reuses."""
        if self._last is not None:
            self._device.wait(slot.stream, self._last.computed)
        if ready.graph is None:
            self._enqueue(ready.context, slot)
        else:
            self._device.launch(ready.graph, slot.stream)
        self._device.record(slot.computed, slot.stream)
        self._last = slot

    def _enqueue(self, context: Any, slot: Slot) -> None:
        self._engine.enqueue(context, self._device.handle(slot.stream))

    def _use(self, recipe: Recipe) -> None:
        """Make `recipe` the one on the GPU, after batches queued with the old recipe have finished."""
        if recipe is self._recipe:
            return
        classes, most = len(recipe.classes), self._engine.most_classes
        if classes > most:
            raise BackendError(
                f"the recipe has {classes} classes, the engine takes {most} at most: build one for more "
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

    def _ready(self, slot: Slot, batch: int, classes: int) -> Ready:
        """The context for a batch size and number of classes in this slot; a new one is run and captured first."""
        key = (batch, classes)
        if key not in slot.ready:
            context = self._engine.context(batch, classes)
            layout = Layout.of(self._encoder, batch, classes)
            outputs = {name: slot.device_out + at for name, at in zip(OUTPUTS, layout.offsets, strict=True)}
            addresses = {"frames": slot.device_in, **self._recipe_at, **outputs}
            self._engine.bind(context, self._activations, self._activation_size, addresses)
            ready = Ready(context, None)
            for _ in range(RTX_WARM_UPS if self._engine.has_own_graphs else 1):
                self._compute(slot, ready)  # one-time work of a context must not end up in its graph
                self._device.synchronize(slot.stream)
            if not self._engine.has_own_graphs:
                ready.graph = self._capture(slot, context)
            slot.ready[key] = ready
        return slot.ready[key]

    def _capture(self, slot: Slot, context: Any) -> Handle | None:
        """The context's graph; None, with a warning, if the engine holds work that no graph may hold. It then runs
        slower."""
        try:
            return self._device.capture(slot.stream, lambda: self._enqueue(context, slot))
        except GpuError as exc:
            _log.warning("%s runs without a CUDA graph: %s", self.name, exc)
            return None

    def _forget(self, classes: int) -> None:
        """Free the contexts for a number of classes, while no batch is in flight."""
        for slot in self._slots:
            for key in [key for key in slot.ready if key[1] == classes]:
                ready = slot.ready.pop(key)
                if ready.graph is not None:
                    self._device.discard(ready.graph)

    # ---- errors and the end --------------------------------------------------------------------------------------

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Remember a fault of the GPU, so that later calls are refused."""
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

    def close(self) -> None:
        """Free the engine and all of its memory, after batches in flight. Waiting calls are refused."""
        with self._lock:
            already, self._closed = self._closed, True
        if already:
            return
        for _ in self._slots:
            self._free.get()  # waits until the slot's batch was answered, so that nothing reads its buffers
        self._free.put(None)
        with self._lock, self._device.current():
            for slot in self._slots:
                with suppress(BackendError):
                    self._device.synchronize(slot.stream)
                slot.ready.clear()
            self._slots = []
            self._recipe = self._last = None
            self._engine.close()  # after its contexts, which the slots held
            self._device.close()
