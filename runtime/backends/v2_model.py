"""A model of an inference server that speaks the V2 protocol over gRPC, by NVIDIA's client (`tritonclient`).

Every name of that client is in this module. Messages go to the named server alone: not through a proxy of the
environment, and gRPC writes nothing to stderr.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendUnavailable, BundleError, raised_by_handler
from ..files import read_bounded
from .base import Signature

MAX_ANSWER_BYTES = 64 * 2**20
"""Of one message from the server: 64 frames of 2048 x 2048 pixels have answers of 7 MB."""
MAX_ROOTS_BYTES = 16 * 2**20
_KINDS = {"UINT8": "uint8", "FP32": "float"}
_TYPES = {"uint8": "UINT8", "float32": "FP32"}
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PROPERTIES = 6
"""Field of ModelMetadataResponse: `properties` in the protocol, `parameters` in MLServer. NVIDIA's client lacks it."""
T = TypeVar("T")
_process: int | None = None
"""That in which gRPC was used first."""


@dataclass(frozen=True, slots=True)
class Description:
    """What the server says of the model. max_batch: None where each request is a batch as it comes."""

    server: str
    platform: str
    versions: tuple[str, ...]
    inputs: Signature
    outputs: Signature
    parameters: Mapping[str, str]
    max_batch: int | None


class CallError(Exception):
    """A call of the server failed. code: of gRPC, such as "UNAVAILABLE"; "" for a fault of the answer."""

    def __init__(self, code: str, text: str) -> None:
        self.code, self.text = code, text
        super().__init__(f"{code}: {text}" if code else text)


def import_client() -> Any:
    """The module `tritonclient.grpc`. Raises BackendUnavailable if it is not installed."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # every fault arrives as an error, and stderr is the program's
    try:
        import tritonclient.grpc as client
    except (ImportError, RuntimeError) as exc:  # the latter where gRPC is missing
        raise BackendUnavailable(
            f'backend "triton" needs tritonclient with gRPC, which cannot be imported ({_first_line(exc)}): '
            'pip install "sem-clip[triton]"'
        ) from exc
    return client


def require_place(url: object) -> str:
    """The url, where it is HOST:PORT. Raises BackendUnavailable."""
    found = _PLACE.fullmatch(url) if isinstance(url, str) else None
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise BackendUnavailable(
            f"{url!r:.100} is no address of an inference server: give HOST:PORT of its gRPC service, such as "
            "server:8001"
        )
    return found[0]


class V2Model:
    """A connection to one model. Calls may come from many threads; each waits at most `timeout_s` seconds.

    url: HOST:PORT. ssl_roots: PEM file of the certificates to trust; the connection is encrypted if it is given.
    It connects at the first call. Raises BackendUnavailable if the client is not installed, for a faulty url or file,
    and in a process forked from one that had a connection.
    """

    def __init__(self, url: str, model: str, timeout_s: float, ssl_roots: Path | None) -> None:
        self.url, self.model = require_place(url), model
        self.where = f'model "{model}" of the server at {url}'
        self._timeout_s = timeout_s
        self._lock = threading.RLock()  # a signal may close it in the middle of a call
        self._running, self._closing = 0, False
        self._client = import_client()
        options = [
            ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        ]
        _require_no_fork()
        trusted = None if ssl_roots is None else _credentials(ssl_roots)
        self._server = self._client.InferenceServerClient(url, creds=trusted, channel_args=options)

    def describe(self, version: str) -> Description:
        """Ask for everything that a client checks. version: "" lets the server choose. Raises CallError."""
        server = self._call(self._server.get_server_metadata)
        if not self._call(self._server.is_model_ready, self.model, version):
            raise CallError("NOT_FOUND", f"it is not ready; the server holds {self._models()}")
        found = self._call(self._server.get_model_metadata, self.model, version)
        parameters, max_batch = self._config(version)
        if parameters is None:
            parameters = _properties(found)
        return Description(
            server=f"{server.name:.40} {server.version:.40}",
            platform=str(found.platform),
            versions=tuple(found.versions),
            inputs=_signature(found.inputs),
            outputs=_signature(found.outputs),
            parameters=parameters,
            max_batch=max_batch,
        )

    def inputs(self, arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Tensors as `infer` takes them, and may take again."""
        made = []
        for name, array in arrays.items():
            tensor = self._client.InferInput(name, list(array.shape), _TYPES[array.dtype.name])
            made.append(tensor.set_data_from_numpy(array))
        return made

    def infer(self, inputs: list[Any], outputs: tuple[str, ...], version: str) -> list[NDArray[np.float32]]:
        """The named outputs of one batch, read-only. Raises CallError."""
        asked = [self._client.InferRequestedOutput(name) for name in outputs]
        result = self._call(self._server.infer, self.model, inputs, version, asked).get_response()
        if version and result.model_version not in ("", version):
            raise CallError("", f"version {result.model_version:.20} has answered in place of version {version}")
        found = {tensor.name: _floats(result, index) for index, tensor in enumerate(result.outputs)}
        missing = [name for name in outputs if name not in found]
        if missing:
            raise CallError("", f"the answer lacks {', '.join(missing)}")
        return [found[name] for name in outputs]

    def close(self) -> None:
        """End the connection once all blocks of `under_way` have ended. Waits for nothing."""
        with self._lock:
            self._closing = True
            idle = self._running == 0
        if idle:
            self._server.close()

    def _config(self, version: str) -> tuple[dict[str, str] | None, int | None]:
        """Parameters and the largest batch; (None, None) from servers without this call, which is Triton's own."""
        try:
            config = self._call(self._server.get_model_config, self.model, version).config
        except CallError as exc:
            if exc.code != "UNIMPLEMENTED":
                raise
            return None, None
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        return parameters, config.max_batch_size or None

    def _models(self) -> str:
        """Names of the models that are ready, for messages."""
        try:
            index = self._call(self._server.get_model_repository_index).models
        except CallError:
            return "models that it does not list"
        names = sorted({f"{entry.name:.60}" for entry in index if entry.state in ("READY", "")})
        return ", ".join(f'"{name}"' for name in names[:20]) or "no model that is ready"

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Keep the connection open for calls in this block, if it is closed meanwhile."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                last = self._closing and self._running == 0
            if last:
                self._server.close()

    def _call(self, call: Callable[..., T], *arguments: Any) -> T:
        try:
            return call(*arguments, client_timeout=self._timeout_s)
        except Exception as exc:
            if raised_by_handler(exc):
                raise
            status = exc.status() if hasattr(exc, "status") else None
            code = str(status or "").removeprefix("StatusCode.")
            if code == "DEADLINE_EXCEEDED":
                raise CallError(code, f"no answer within {self._timeout_s:g} s") from exc
            text = exc.message() if hasattr(exc, "message") else str(exc)
            raise CallError(code, _first_line(text)) from exc


def _require_no_fork() -> None:
    """Raise BackendUnavailable in a process forked since gRPC was used: its threads are gone, and calls may hang."""
    global _process
    if _process not in (None, os.getpid()):
        raise BackendUnavailable(
            "gRPC was in use before this process was forked, and does not work in it: connect first after the fork, or "
            'start processes anew (multiprocessing.get_context("spawn"))'
        )
    _process = os.getpid()


def _credentials(roots: Path) -> Any:
    """To trust the certificates of a file. Raises BackendUnavailable."""
    import grpc

    content = read_bounded(roots, MAX_ROOTS_BYTES, BundleError)
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise BackendUnavailable(f"{roots}: holds no certificate: give a PEM file of those to trust")
    return grpc.ssl_channel_credentials(root_certificates=content)


def _signature(tensors: Any) -> Signature:
    """Types and shapes as in `base.graph_inputs`."""
    return {tensor.name: (_KINDS.get(tensor.datatype, tensor.datatype), tuple(tensor.shape)) for tensor in tensors}


def _properties(metadata: Any) -> dict[str, str]:
    """Texts that other servers than Triton add to the metadata of a model, by name."""
    from google.protobuf.unknown_fields import UnknownFieldSet
    from tritonclient.grpc import model_config_pb2, service_pb2

    found = {}
    for field in UnknownFieldSet(metadata):
        if field.field_number != _PROPERTIES or not isinstance(field.data, bytes):
            continue
        for kind in (service_pb2.ModelInferRequest.ParametersEntry, model_config_pb2.ModelConfig.MetricTagsEntry):
            try:
                entry = kind.FromString(field.data)
            except Exception:  # its type depends on the implementation of Protocol Buffers
                continue
            text = entry.value if isinstance(entry.value, str) else entry.value.string_param
            if text:
                found[entry.key] = text
                break
    return found


def _floats(result: Any, index: int) -> NDArray[np.float32]:
    """An output of a ModelInferResponse: all raw, or none. Raises CallError."""
    tensor = result.outputs[index]
    shape, name = tuple(tensor.shape), f"{tensor.name:.40}"
    if tensor.datatype != "FP32":
        raise CallError("", f"{name} came as {tensor.datatype:.20}, not as FP32")
    raw = result.raw_output_contents
    try:
        if shape and min(shape) < 0:
            raise ValueError(shape)
        values = np.frombuffer(raw[index], "<f4") if raw else np.array(tensor.contents.fp32_contents, np.float32)
        return values.reshape(shape)
    except (IndexError, ValueError) as exc:
        raise CallError("", f"{name} came with other bytes than those of its shape {list(shape)[:8]}") from exc


def _first_line(text: object) -> str:
    return str(text).strip().split("\n", 1)[0][:300]
