"""An inference server of the V2 protocol in this process: gRPC on the loopback interface, answers from numpy.

Import it only after `pytest.importorskip("tritonclient.grpc")`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import LinearBackend, make_encoder, make_recipe
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from runtime import Prediction, Predictor
from runtime.backends import OUTPUTS, Backend
from runtime.backends.base import graph_inputs, graph_outputs
from runtime.backends.triton import TritonBackend
from runtime.manifest import Encoder
from runtime.recipe import TENSORS, Recipe, tensors_digest
from runtime.serving.served import HeldRecipe, Served
from runtime.serving.triton_config import ModelConfig, Tensor

MODEL = "sem_clip"
CALLS = ("ServerMetadata", "ModelReady", "RepositoryIndex", "ModelConfig", "ModelMetadata", "ModelInfer")
_NUMPY = {"UINT8": np.uint8, "FP32": np.dtype("<f4")}
_KINDS = {model_config_pb2.TYPE_UINT8: "UINT8", model_config_pb2.TYPE_FP32: "FP32"}


def served(encoder: Encoder, recipes: Mapping[int, Recipe] | None = None, **changes: Any) -> Served:
    """What a model says of itself. recipes: by version; without them, each request brings its own."""
    held = {
        version: HeldRecipe(tensors_digest(recipe), "34" * 32, recipe.classes)
        for version, recipe in (recipes or {}).items()
    }
    said = Served(encoder.id, encoder.value_path, "fp32", "12" * 32, 8, 64, "sem-clip-bundle 2", held)
    return replace(said, **changes)


def config_of(encoder: Encoder, said: Served, **changes: Any) -> Any:
    """The server's ModelConfig, as read from the text that this project writes."""
    batched = bool(said.recipes)
    inputs = {"frames": graph_inputs(encoder)["frames"]} if batched else graph_inputs(encoder)
    skip = 1 if batched else 0
    config = ModelConfig(
        name=MODEL,
        backend="onnxruntime",
        max_batch=said.max_batch if batched else 0,
        inputs=[Tensor(name, kind, shape[skip:], name != "frames") for name, (kind, shape) in inputs.items()],
        outputs=[Tensor(name, kind, shape[skip:]) for name, (kind, shape) in graph_outputs(encoder).items()],
        parameters=said.parameters(),
    )
    return text_format.Parse(replace(config, **changes).text(), model_config_pb2.ModelConfig())


class FakeServer:
    """Serves one model. What is set while it runs holds from the next call on.

    config: of the model. recipes: by version, where they are part of the model. backend: gives the answers.
    batches: frames of each request. ready, delay_s, change (of an answer before it is sent), failure (code and text of
    every request for an answer), damage (of the bytes of a call's answer), metadata: raw fields that ModelMetadata has
    besides its own.
    """

    def __init__(self, config: Any, backend: Backend, recipes: Mapping[int, Recipe] | None = None) -> None:
        self.config, self.backend, self.recipes = config, backend, dict(recipes or {})
        self.versions = [str(version) for version in self.recipes] or ["1"]
        self.batches: list[int] = []
        self.asked: list[str] = []
        self.ready, self.has_config, self.has_index = True, True, True
        self.delay_s = 0.0
        self.metadata = b""
        self.change: Callable[[Any], None] = lambda response: None
        self.damage: Callable[[str, bytes], bytes] = lambda name, content: content
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.looks = 0
        self._lock = threading.Lock()
        self._server: Any = None
        self.port = 0

    def start(self, port: int = 0) -> FakeServer:
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        calls = {name: self._call(name) for name in CALLS}
        handler = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", calls)
        self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()
        return self

    def _call(self, name: str) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            getattr(self, name),
            request_deserializer=getattr(service_pb2, f"{name}Request").FromString,
            response_serializer=lambda answer: self.damage(name, answer.SerializeToString()),
        )

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End every connection and call at once."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def __enter__(self) -> FakeServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    # ---- the protocol --------------------------------------------------------------------------------------------

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="fake", version="1.2")

    def ModelReady(self, request: Any, context: Any) -> Any:
        known = request.name == MODEL and request.version in ("", *self.versions)
        return service_pb2.ModelReadyResponse(ready=known and self.ready)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        if not self.has_index:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such call")
        index = service_pb2.RepositoryIndexResponse()
        index.models.add(name=MODEL, version="1", state="READY" if self.ready else "UNAVAILABLE")
        return index

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self.looks += 1
        if not self.has_config:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such call")
        return service_pb2.ModelConfigResponse(config=self.config)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        batch = [-1] if self.config.max_batch_size else []
        kind = service_pb2.ModelMetadataResponse.TensorMetadata
        inputs = [_metadata(kind, tensor, batch) for tensor in self.config.input]
        outputs = [_metadata(kind, tensor, batch) for tensor in self.config.output]
        found = service_pb2.ModelMetadataResponse(
            name=MODEL, versions=self.versions, platform="numpy", inputs=inputs, outputs=outputs
        )
        return service_pb2.ModelMetadataResponse.FromString(found.SerializeToString() + self.metadata)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        inputs = {
            tensor.name: np.frombuffer(raw, _NUMPY[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        with self._lock:
            self.batches.append(len(inputs["frames"]))
            self.asked.append(request.model_version)
        time.sleep(self.delay_s)
        if self.failure is not None:
            context.abort(*self.failure)
        if self.recipes:
            recipe: Any = self.recipes[int(request.model_version or 1)]
        else:
            recipe = SimpleNamespace(tensors={name: inputs[name] for name in TENSORS})
        outputs = self.backend.run(inputs["frames"], recipe)
        response = answer(request, {name: getattr(outputs, name) for name in OUTPUTS})
        self.change(response)
        return response


def answer(request: Any, arrays: Mapping[str, Any]) -> Any:
    """A ModelInferResponse of float32 arrays."""
    response = service_pb2.ModelInferResponse(model_name=MODEL, model_version=request.model_version or "1")
    for name, array in arrays.items():
        response.outputs.add(name=name, datatype="FP32", shape=array.shape)
        response.raw_output_contents.append(np.ascontiguousarray(array, "<f4").tobytes())
    return response


def _metadata(kind: Any, tensor: Any, batch: Iterable[int]) -> Any:
    return kind(name=tensor.name, datatype=_KINDS[tensor.data_type], shape=[*batch, *tensor.dims])


ENCODER = make_encoder()
RECIPE = make_recipe()
MORE_CLASSES = make_recipe(("good", "bridge", "hole", "scratch"))
OTHER = replace(RECIPE, tensors={**RECIPE.tensors, "head_bias": RECIPE.tensors["head_bias"][::-1].copy()})
BOTH = {1: RECIPE, 2: OTHER}


def some_frames(count: int, seed: int = 1) -> list[NDArray[np.uint8]]:
    blocks = np.random.default_rng(seed).integers(0, 256, (count, *ENCODER.grid))
    return list(np.kron(blocks, np.ones((1, 16, 16))).astype(np.uint8))


def make_server(recipes: dict[int, Recipe] | None = None, **changes: Any) -> FakeServer:
    said = served(ENCODER, recipes, **changes)
    return FakeServer(config_of(ENCODER, said), LinearBackend(ENCODER), recipes)


def connect(server: FakeServer, **options: Any) -> TritonBackend:
    return TritonBackend(server.url, MODEL, **{"timeout_s": 20, **options})


def told_apart(found: list[Prediction], wanted: list[Prediction]) -> list[str]:
    """Names of what differs, to the bit."""
    names = ("verdict", "probabilities", "score", "features", "patch_map")
    pairs = list(zip(found, wanted, strict=True))
    return [name for name in names for a, b in pairs if not np.array_equal(getattr(a, name), getattr(b, name))]


def by_hand(bundle: Path, frames: list[NDArray[np.uint8]], recipe: Recipe | None = None) -> list[Prediction]:
    with Predictor(bundle, backend=LinearBackend(ENCODER), recipe=recipe) as predictor:
        return predictor.predict(frames)


def with_other_answers(recipe: Recipe) -> Recipe:
    """A recipe of the same classes that answers otherwise."""
    return replace(recipe, tensors={**recipe.tensors, "head_bias": recipe.tensors["head_bias"][::-1].copy()})


@pytest.fixture
def held() -> Iterator[FakeServer]:
    """A server whose model holds two recipes, as versions 1 and 2."""
    with make_server(BOTH) as server:
        yield server
