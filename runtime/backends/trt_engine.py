"""One engine of TensorRT or TensorRT for RTX, which share one interface: opened, checked, and its contexts."""

from __future__ import annotations

import importlib
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BackendError, BundleError
from ..host import Gpu
from ..manifest import Artifact, Encoder, read_artifact
from ..recipe import TENSORS
from ..targets import ENGINE_PRODUCTS
from .base import graph_inputs, graph_outputs
from .trt_kernels import KernelFile

MODULES = {product: product.replace("-", "_") for product in ENGINE_PRODUCTS}
"""Python module by product; the product is also the name of the backend and of the extra that installs it."""
_log = logging.getLogger("sem_clip")


class TensorRtEngine:
    """An engine of `product`; every name of TensorRT that the runtime uses is in this class.

    least_batch, most_batch, most_classes: bounds of its profile, known once it is open.
    Raises ImportError if the product is not installed. module: in place of the product's, for tests without a GPU.
    """

    least_batch: int
    most_batch: int
    most_classes: int

    def __init__(self, product: str, module: Any = None) -> None:
        self.name = product
        self._trt = importlib.import_module(MODULES[product]) if module is None else module
        self._messages: deque[str] = deque(maxlen=8)
        self._runtime: Any = None
        self._engine: Any = None
        self._config: Any = None
        self._cache: Any = None
        self._kernel_file: KernelFile | None = None

    @property
    def version(self) -> str:
        """The product's."""
        return str(self._trt.__version__)

    @property
    def has_own_graphs(self) -> bool:
        """Whether the product captures CUDA graphs by itself, as TensorRT for RTX does."""
        return self._config is not None

    def open(self, folder: Path, artifact: Artifact, encoder: Encoder, gpu: Gpu | None = None) -> None:
        """gpu: that of the calling thread, where kernels are compiled for it.

        Raises BundleError if the engine is damaged or not one of `encoder`, BackendError if memory is short.
        """
        plan = read_artifact(folder, artifact)
        self._logger = _logger(self._trt, self._messages)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            if "out of memory" in self.last_messages().lower():
                raise BackendError(f"the GPU has no room for the weights of {artifact.file}: {self.last_messages()}")
            raise BundleError(folder, f"{artifact.file} cannot be opened by {self.name}: {self.last_messages()}")
        faults = self._faults(encoder)
        if faults:
            raise BundleError(folder, [f"{artifact.file}: {fault}" for fault in faults])
        self._input_size = encoder.input_size
        batches = self._engine.get_tensor_profile_shape("frames", 0)
        self.least_batch, self.most_batch = int(batches[0][0]), int(batches[2][0])
        self.most_classes = int(self._engine.get_tensor_profile_shape("head_bias", 0)[2][0])
        if self.name == "tensorrt-rtx":
            self._kernel_file = KernelFile(folder, artifact, gpu)
            self._config = self._runtime_config(self._kernel_file)

    def _faults(self, encoder: Encoder) -> list[str]:
        """Where the engine's tensors differ from the bundle format."""
        engine = self._engine
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

    def _runtime_config(self, file: KernelFile) -> Any:
        """How TensorRT for RTX compiles its kernels: all before the first answer, kept on disk, run as one graph."""
        trt, config = self._trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = config.create_runtime_cache()
        kept = file.read()
        if kept is not None and not self._cache.deserialize(kept):
            _log.warning("%s: is of no use to this %s; compiling anew", file.path, self.name)
        config.set_runtime_cache(self._cache)
        return config

    def recipe_shapes(self, classes: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes of a recipe's tensors for a number of classes."""
        engine = self._engine
        return {
            name: tuple(classes if side < 0 else side for side in engine.get_tensor_shape(name)) for name in TENSORS
        }

    def context(self, batch: int, classes: int) -> Any:
        """A new execution context with the shapes of a batch size and a number of classes. Raises BackendError."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy if self._config is None else self._config)
        if context is None:
            raise BackendError(f"{self.name} gave no execution context: {self.last_messages()}")
        shapes = {"frames": (batch, *self._input_size), **self.recipe_shapes(classes)}
        for name, shape in shapes.items():
            self._require(context.set_input_shape(name, shape), f"did not take the shape {list(shape)} for {name}")
        return context

    def activation_bytes(self, context: Any) -> int:
        """Activation memory for the context's shapes. Until this is asked, it takes no less than for the largest."""
        size = int(context.update_device_memory_size_for_shapes())
        self._require(size > 0, "reports no size of activation memory for a batch")
        return size

    def bind(self, context: Any, activations: int, size: int, addresses: Mapping[str, int]) -> None:
        """Give a context of `context` its activation memory, `size` bytes, and the address of every tensor."""
        needed = self.activation_bytes(context)
        self._require(needed <= size, f"wants {needed:,} bytes of activation memory, not {size:,}")
        context.set_device_memory(activations, size)
        for name, address in addresses.items():
            self._require(context.set_tensor_address(name, address), f"did not take an address for {name}")

    def enqueue(self, context: Any, stream: int) -> None:
        """Queue one batch in a CUDA stream. Raises BackendError."""
        self._require(context.execute_async_v3(stream), "did not run the batch")

    def keep_kernels(self) -> None:
        """Write the kernels compiled so far to disk, if the product compiles any."""
        if self._kernel_file is None:
            return
        kernels = self._cache.serialize()
        if kernels is None:
            path, why = self._kernel_file.path, self.last_messages()
            _log.warning("%s: not written, for %s gave no kernels: %s", path, self.name, why)
            return
        self._kernel_file.write(bytes(kernels))

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"{self.name} {what}: {self.last_messages()}")

    def last_messages(self) -> str:
        """The last warnings and errors that the product logged."""
        return "; ".join(self._messages) or "it gave no reason"

    def close(self) -> None:
        """Free the engine, then what it uses. Its contexts must be gone."""
        self._config = self._cache = self._engine = self._runtime = None


def _logger(trt: Any, messages: deque[str]) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                messages.append(message.strip().split("\n", 1)[0][:300])

    return Log()
