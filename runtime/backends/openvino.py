"""OpenVINO on a CPU: for throughput, in fp32, in bf16 where the processor has it, and in 8 bits."""

from __future__ import annotations

import queue
import re
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailable, BundleError, raised_by_handler
from ..host import processor, usable_cores
from ..jsonfields import listed
from ..manifest import Artifact, Encoder
from ..onnxrecipe import without_initializers
from ..recipe import TENSORS, Recipe
from ..telemetry import import_openvino
from .base import OUTPUTS, Backend, Outputs, Signature, graph_inputs, older, read_onnx, signature_faults
from .buckets import pieces

FILES = {"fp32": "fp32", "bf16": "fp32", "int8": "int8", "int8-bf16": "int8"}
"""The precision of the ONNX file, by what the engine computes in. int8-bf16: what is not in 8 bits is in bf16."""
LEAST_VERSION = "2026.2"
"""As in the extra of pyproject.toml."""
MOST_FRAMES = 4
"""Frames in one request. More are no faster, and each takes some 60 MB of a full-size encoder's activations."""
_DEVICE = "CPU"
_FIRST_ARRAY = threading.Lock()
_KINDS = {"f32": "float", "u8": "uint8"}
_NOT_INSTALLED = 'backend "openvino" needs OpenVINO, which is not installed: pip install "sem-clip[openvino]"'


def check_openvino() -> Any:
    """OpenVINO's module. Raises BackendUnavailable if it is not installed, or older than LEAST_VERSION."""
    try:
        openvino = import_openvino()
    except ImportError as exc:
        if isinstance(exc, ModuleNotFoundError) and exc.name == "openvino":
            raise BackendUnavailable(_NOT_INSTALLED) from exc
        raise BackendUnavailable(
            f'backend "openvino" needs OpenVINO, which is installed and cannot be imported ({_reason(exc)}): '
            "pip install --force-reinstall openvino"
        ) from exc
    try:
        version = metadata.version("openvino")
    except metadata.PackageNotFoundError:  # what an installation left behind is importable
        raise BackendUnavailable(_NOT_INSTALLED) from None
    if older(version, LEAST_VERSION):
        raise BackendUnavailable(
            f'backend "openvino" needs OpenVINO {LEAST_VERSION} or newer, and here is {version}: '
            f'pip install --upgrade "openvino>={LEAST_VERSION}"'
        )
    return openvino


def stored_precision(precision: str) -> str:
    """The precision of the ONNX file that is run. Raises BackendUnavailable for one that OpenVINO is not given."""
    if precision not in FILES:
        raise BackendUnavailable(f'backend "openvino" runs {", ".join(FILES)}, not {precision}')
    return FILES[precision]


class OpenVinoBackend(Backend):
    """Runs an ONNX artifact with OpenVINO on the CPU.

    Each stream has one thread, so threads never wait for each other. A batch is shared out over the streams; a frame
    alone is computed by one thread.
    precision: one of FILES; the artifact is of `stored_precision`. bf16 is computed only where it is asked for.
    threads: how many, each a stream; 0 takes every core. No thread is tied to a core.
    Raises BackendUnavailable if OpenVINO is not installed or the processor has no bf16, BundleError if the artifact
    cannot be loaded.
    """

    name = "openvino"
    max_batch = 64

    def __init__(
        self, folder: Path, artifact: Artifact, encoder: Encoder, *, precision: str = "fp32", threads: int = 0
    ) -> None:
        openvino = check_openvino()
        self.precision = precision
        hint = "bf16" if precision.endswith("bf16") else "f32"
        self._core: Any = openvino.Core()
        if hint == "bf16":
            self._require_bf16(openvino)
        streams = threads or usable_cores()
        content = _content(folder, artifact)
        # Without the first, OpenVINO computes in bf16 on its own wherever the processor can. Without the last, it ties
        # threads to cores, from the first core on: several processes of one host to the same.
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = self._core.read_model(content)
            del content  # as large as the model, which has its own copy
            faults = _faults(model, encoder)
            compiled: Any = None if faults else self._core.compile_model(model, _DEVICE, settings)
        except Exception as exc:  # OpenVINO raises RuntimeError, and what its binding makes of other C++ exceptions
            raise BundleError(folder, f"{artifact.file} cannot be opened by OpenVINO: {_reason(exc)}") from exc
        if faults:
            raise BundleError(folder, listed([f"{artifact.file}: {fault}" for fault in faults]))
        computes = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if computes != hint:
            raise BackendUnavailable(f'backend "openvino" would compute in {computes} here, not in {hint}')
        # On processors with two threads per core, OpenVINO may take fewer than it is given.
        self.in_flight = max(1, int(compiled.get_property("NUM_STREAMS")))
        requests = [compiled.create_infer_request() for _ in range(self.in_flight)]
        self._requests: queue.SimpleQueue[Any] | None = queue.SimpleQueue()
        for request in requests:
            self._requests.put(request)
        self._encoder = encoder
        # The first array ever given to OpenVINO makes its binding import numpy. Two threads that do so at once wait
        # for each other for ever, each with one of two locks; under this lock there is one.
        with _FIRST_ARRAY:
            openvino.Tensor(np.zeros(1, np.float32), shared_memory=True)
        self.description = (
            f"OpenVINO {metadata.version('openvino')} on the CPU, {artifact.file} ({precision}, streams: "
            f"{self.in_flight})"
        )

    def _require_bf16(self, openvino: Any) -> None:
        """Raise BackendUnavailable on a processor that has no instructions for bf16, and would be slow without."""
        if "BF16" not in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"):
            other = "int8" if self.precision == "int8-bf16" else "fp32"
            raise BackendUnavailable(
                f'backend "openvino" computes in {self.precision} only on processors with instructions for bf16 '
                f"(AVX512_BF16, AMX), and {processor()} has none: take --precision {other}"
            )

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`."""
        free = self._requests  # keeps the engine alive if close() is called while this runs
        if free is None:
            raise BackendError("the OpenVINO model is closed")
        try:
            found = self._answer(free, np.ascontiguousarray(frames), dict(recipe.tensors))
        except Exception as exc:
            if raised_by_handler(exc):
                raise
            raise BackendError(f"OpenVINO failed on a batch of {len(frames)}: {_reason(exc)}") from exc
        wanted = (len(recipe.classes),), self._encoder.grid, (self._encoder.features,)
        for name, array, sides in zip(OUTPUTS, found, wanted, strict=True):
            if array.shape != (len(frames), *sides):
                raise BackendError(f"OpenVINO answered {name} of shape {array.shape}, not {(len(frames), *sides)}")
        return Outputs(*found)

    def _answer(
        self, free: queue.SimpleQueue[Any], frames: NDArray[np.uint8], tensors: Mapping[str, NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """The outputs, in the order of OUTPUTS. free: requests that do not run."""
        running: deque[Any] = deque()
        parts: list[list[NDArray[np.float32]]] = []

        def finish() -> Any:
            request = running[0]
            request.wait()
            parts.append([np.array(request.get_tensor(name).data) for name in OUTPUTS])
            return running.popleft()

        try:
            for piece in pieces(len(frames), self._piece(len(frames))):
                # Whoever holds requests never waits for those of others, who might wait for these.
                request = _taken(free) if running else free.get()
                if request is None:
                    request = finish()
                running.append(request)
                request.start_async({"frames": frames[piece], **tensors}, share_inputs=True)
            while running:
                free.put(finish())
        finally:
            while running:  # something failed: a request goes back when it no longer runs
                request = running.popleft()
                with suppress(RuntimeError):  # that failure is on its way already
                    request.wait()
                free.put(request)
        return [np.concatenate(of_one) for of_one in zip(*parts, strict=True)]

    def _piece(self, frames: int) -> int:
        """How many frames of a batch go into one request: equal shares of the streams, at most MOST_FRAMES."""
        return min(MOST_FRAMES, -(-frames // self.in_flight))

    def close(self) -> None:
        """Free the engine."""
        self._requests = self._core = None


def _taken(free: queue.SimpleQueue[Any]) -> Any:
    """A request that does not run; None if all do."""
    try:
        return free.get_nowait()
    except queue.Empty:
        return None


def _content(folder: Path, artifact: Artifact) -> bytes:
    """The artifact with the recipe's tensors as true inputs. Raises BundleError."""
    try:
        return without_initializers(read_onnx(folder, artifact), TENSORS)
    except ValueError as exc:
        raise BundleError(folder, f"{artifact.file} {exc}") from exc


def _faults(model: Any, encoder: Encoder) -> list[str]:
    """Where the graph's inputs and outputs differ from the bundle's format."""
    found: Signature = {}
    for port in (*model.inputs, *model.outputs):
        shape = port.get_partial_shape()
        rank = shape.rank.get_length() if shape.rank.is_static else 0
        sides = tuple(shape[i].get_length() if shape[i].is_static else -1 for i in range(rank))
        kind = port.get_element_type().get_type_name()
        found |= dict.fromkeys(port.get_names(), (_KINDS.get(kind, kind), sides))
    needed = graph_inputs(encoder)
    extra = [sorted(port.get_names()) for port in model.inputs if not port.get_names() & set(needed)]
    return [
        *signature_faults(found, encoder),
        *(f"asks for {', '.join(names)}, which is not in the bundle's format" for names in extra),
    ]


def _reason(exc: BaseException) -> str:
    """What the engine says, on one line and without the places in its own source."""
    lines = [line.strip() for line in str(exc).splitlines()]
    said = [line for line in lines if line and not re.match(r"Exception from |Check '.*' failed at ", line)]
    return "; ".join(said)[:300] or type(exc).__name__
