"""runtime.backends.v2_model: servers that say what they hold in other ways than Triton, and other forms of answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BackendUnavailable, Predictor
from runtime.recipe import tensors_digest

pytest.importorskip("tritonclient.grpc")
import fake_server
from fake_server import (
    BOTH,
    ENCODER,
    OTHER,
    RECIPE,
    FakeServer,
    by_hand,
    connect,
    make_server,
    served,
    some_frames,
    told_apart,
)
from tritonclient.grpc import model_config_pb2, service_pb2
from wire import field

held = fake_server.held  # pytest looks for fixtures among these names


def entry(kind: Any, name: str, value: Any) -> bytes:
    """Field 6 of ModelMetadataResponse, which NVIDIA's client does not know."""
    return field(6, kind(key=name, value=value).SerializeToString())


def as_parameters(said: dict[str, str]) -> bytes:
    """As MLServer: values of several types."""
    kind = service_pb2.ModelInferRequest.ParametersEntry
    value = service_pb2.InferParameter
    texts = [entry(kind, name, value(string_param=text)) for name, text in said.items()]
    return b"".join([entry(kind, "shards", value(int64_param=3)), *texts])


def as_properties(said: dict[str, str]) -> bytes:
    """As in the protocol: texts."""
    return b"".join(entry(model_config_pb2.ModelConfig.MetricTagsEntry, name, text) for name, text in said.items())


@pytest.mark.parametrize("write", [as_parameters, as_properties])
def test_a_server_without_configurations_may_say_it_in_the_metadata(
    fake_bundle: Path, held: FakeServer, write: Callable[[dict[str, str]], bytes]
) -> None:
    held.has_config = False
    held.metadata = write(served(ENCODER, BOTH).parameters())
    frames = some_frames(5)
    with Predictor(fake_bundle, backend=connect(held), recipe=OTHER) as predictor:
        assert told_apart(predictor.predict(frames), by_hand(fake_bundle, frames, OTHER)) == []


def test_a_server_without_versions_is_asked_for_none(fake_bundle: Path) -> None:
    with make_server({1: RECIPE}) as server:
        server.versions = []
        with Predictor(fake_bundle, backend=connect(server)) as predictor:
            predictor.predict(some_frames(2))
        assert set(server.asked) == {""}


@pytest.mark.parametrize("metadata", [b"", b"\x32\x03\xff\xff\xff", b"\x30\x07", as_properties({"platform": "x"})])
def test_a_server_that_says_nothing_of_its_model_is_refused(held: FakeServer, metadata: bytes) -> None:
    held.has_config, held.metadata = False, metadata
    with pytest.raises(BackendUnavailable, match="does not say by which encoder and recipe it answers"):
        connect(held)


def test_answers_may_come_as_lists_of_numbers(fake_bundle: Path, held: FakeServer) -> None:
    def listed(response: Any) -> None:
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            tensor.contents.fp32_contents.extend(np.frombuffer(raw, "<f4").tolist())
        del response.raw_output_contents[:]

    held.change = listed
    frames = some_frames(5)
    with Predictor(fake_bundle, backend=connect(held)) as predictor:
        assert told_apart(predictor.predict(frames), by_hand(fake_bundle, frames)) == []


def test_the_digest_that_is_compared_is_of_the_tensors_alone() -> None:
    moved = replace(RECIPE, operating_point=replace(RECIPE.operating_point, pixel_threshold=0.9))
    assert tensors_digest(moved) == tensors_digest(RECIPE) != tensors_digest(OTHER)
