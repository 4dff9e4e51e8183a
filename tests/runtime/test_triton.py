"""runtime.backends.triton: the same verdicts from a server, refusals before the first frame, and servers that fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_encoder, make_recipe, with_scalars, write_bundle

from runtime import BackendError, BackendUnavailable, Prediction, Predictor, PredictorError
from runtime.backends import open_backend
from runtime.backends.triton import TritonBackend
from runtime.manifest import load_bundle

pytest.importorskip("tritonclient.grpc")
import fake_server
from fake_server import (
    BOTH,
    ENCODER,
    MODEL,
    MORE_CLASSES,
    OTHER,
    RECIPE,
    FakeServer,
    by_hand,
    config_of,
    connect,
    make_server,
    served,
    some_frames,
    told_apart,
)
from tritonclient.grpc import model_config_pb2

held = fake_server.held  # pytest looks for fixtures among these names


@pytest.fixture
def open_one() -> Iterator[FakeServer]:
    """A server whose model takes a recipe with each request."""
    with make_server() as server:
        yield server


@pytest.fixture(params=["held", "open_one"])
def server(request: pytest.FixtureRequest) -> FakeServer:
    found: FakeServer = request.getfixturevalue(request.param)
    return found


# ---- answers -----------------------------------------------------------------------------------------------------


def test_a_server_gives_the_same_predictions_to_the_bit(fake_bundle: Path, server: FakeServer) -> None:
    frames = some_frames(30)
    wanted = by_hand(fake_bundle, frames)
    with Predictor(fake_bundle, backend=connect(server)) as predictor:
        assert told_apart(predictor.predict(frames), wanted) == []
        assert told_apart(list(predictor.stream(iter(frames))), wanted) == []
        assert told_apart([predictor.submit(frame).result() for frame in frames[:3]], wanted[:3]) == []
        assert max(server.batches) == 8
        assert predictor.predict(frames[:1])[0].backend == "triton"
        assert predictor.backend.description == f"fake 1.2 at {server.url}, model sem_clip version {1} (fp32)"
        assert predictor.backend.in_flight == 4


def test_eight_threads_share_a_server(fake_bundle: Path, server: FakeServer) -> None:
    frames = some_frames(64)
    wanted = by_hand(fake_bundle, frames)
    found: dict[int, list[Prediction]] = {}
    with Predictor(fake_bundle, backend=connect(server)) as predictor:
        threads = [
            threading.Thread(target=lambda k=k: found.update({k: [predictor(f) for f in frames[k::8]]}))
            for k in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert told_apart([found[i % 8][i // 8] for i in range(64)], wanted) == []


def test_a_recipe_with_each_request_may_be_any(fake_bundle: Path, open_one: FakeServer) -> None:
    frames = some_frames(9)
    with Predictor(fake_bundle, backend=connect(open_one)) as predictor:
        for recipe in (OTHER, MORE_CLASSES, RECIPE):
            predictor.use(recipe)
            assert told_apart(predictor.predict(frames), by_hand(fake_bundle, frames, recipe)) == []


def test_the_version_is_the_one_that_holds_the_recipe(fake_bundle: Path, held: FakeServer) -> None:
    frames = some_frames(9)
    with Predictor(fake_bundle, backend=connect(held), recipe=OTHER) as predictor:
        assert told_apart(predictor.predict(frames), by_hand(fake_bundle, frames, OTHER)) == []
        assert set(held.asked) == {"2"}
        predictor.use(RECIPE)
        assert predictor.backend.description.endswith("version 1 (fp32)")
        assert told_apart(predictor.predict(frames), by_hand(fake_bundle, frames)) == []
        assert set(held.asked) == {"1", "2"}


def test_a_recipe_that_no_version_holds_is_refused_and_the_one_in_use_stays(
    fake_bundle: Path, held: FakeServer
) -> None:
    frames = some_frames(4)
    with Predictor(fake_bundle, backend=connect(held)) as predictor:
        with pytest.raises(BackendUnavailable) as caught:
            predictor.use(MORE_CLASSES)
        assert "does not hold the recipe in use, of 4 classes (good, bridge, hole, scratch)" in str(caught.value)
        assert f"version 2: recipe {'34' * 6} of 3 classes: add it as a version" in str(caught.value)
        assert predictor.recipe.classes == RECIPE.classes
        assert told_apart(predictor.predict(frames), by_hand(fake_bundle, frames)) == []
        # An operator adds it while the client runs.
        more = {**BOTH, 3: MORE_CLASSES}
        held.recipes, held.versions = more, ["1", "2", "3"]
        held.config = config_of(ENCODER, served(ENCODER, more))
        predictor.use(MORE_CLASSES)
        assert told_apart(predictor.predict(frames), by_hand(fake_bundle, frames, MORE_CLASSES)) == []


def test_thresholds_are_the_clients_and_may_differ(fake_bundle: Path, held: FakeServer) -> None:
    point = replace(RECIPE.operating_point, defect_threshold=0.01)
    strict = replace(RECIPE, operating_point=point)
    with Predictor(fake_bundle, backend=connect(held), recipe=strict) as predictor:
        assert predictor(some_frames(1)[0]).defect_threshold == 0.01


def test_a_version_can_be_named(fake_bundle: Path, held: FakeServer) -> None:
    with Predictor(fake_bundle, backend=connect(held, version=2), recipe=OTHER) as predictor:
        predictor(some_frames(1)[0])
    with pytest.raises(BackendUnavailable, match="does not hold the recipe in use"):
        Predictor(fake_bundle, backend=connect(held, version=2))
    with pytest.raises(BackendUnavailable, match="NOT_FOUND: it is not ready"):
        connect(held, version=7)


def test_the_largest_batch_is_the_smaller_of_what_server_and_parameters_say(fake_bundle: Path) -> None:
    with make_server(BOTH, max_batch=6) as server:
        server.config.max_batch_size = 5
        with Predictor(fake_bundle, backend=connect(server), batch_size=64) as predictor:
            assert len(predictor.predict(some_frames(12))) == 12
            assert max(server.batches) == 5


def test_golden_frames_are_checked_through_a_server(golden_bundle: Path, server: FakeServer) -> None:
    with Predictor(golden_bundle, backend=connect(server), check=True) as predictor:
        assert sum(server.batches) > 1
        predictor(some_frames(1)[0])
    if server.recipes:
        server.recipes[1] = OTHER  # and its parameters say otherwise
        with pytest.raises(BackendError, match="does not give the export's answers to the golden frames"):
            Predictor(golden_bundle, backend=connect(server), check=True)


def test_rows_of_a_server_are_those_of_this_machine(fake_bundle: Path, held: FakeServer) -> None:
    frames = some_frames(3)
    with Predictor(fake_bundle, backend=connect(held)) as predictor:
        rows = [prediction.to_row() for prediction in predictor.predict(frames)]
    for row, wanted in zip(rows, by_hand(fake_bundle, frames), strict=True):
        other = wanted.to_row()
        assert {name for name in row if row[name] != other[name]} <= {"backend", "timings_ms"}


# ---- refusals ----------------------------------------------------------------------------------------------------


def without_parameters(server: FakeServer) -> None:
    server.config.parameters.clear()


def with_parameter(name: str, value: str) -> Callable[[FakeServer], None]:
    def change(server: FakeServer) -> None:
        server.config.parameters[f"sem_clip_{name}"].string_value = value

    return change


def other_size(server: FakeServer) -> None:
    server.config.input[0].dims[0] = 32


def huge_size(server: FakeServer) -> None:
    server.config.input[0].dims[0] = 2**40


def other_type(server: FakeServer) -> None:
    server.config.input[0].data_type = model_config_pb2.TYPE_FP32


def other_name(server: FakeServer) -> None:
    server.config.input[0].name = "pixels"


def other_rank(server: FakeServer) -> None:
    server.config.input[0].dims.append(3)


def not_ready(server: FakeServer) -> None:
    server.ready = False


def other_versions(server: FakeServer) -> None:
    server.versions = ["1", "2", "3"]


def extra_input(server: FakeServer) -> None:
    server.config.input.add(name="mask", data_type=model_config_pb2.TYPE_UINT8, dims=[64, 64])


def fewer_features(server: FakeServer) -> None:
    server.config.output[2].dims[:] = [384]


def no_map(server: FakeServer) -> None:
    del server.config.output[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_parameters, "does not say by which encoder and recipe it answers"),
        (without_parameters, "write the server's model repository with: sem-clip triton-repository BUNDLE OUT"),
        (with_parameter("format", "2"), "has parameters of format 2, this client knows 1: update sem-clip"),
        (with_parameter("encoder_id", "cd" * 32), "computes with encoder cdcdcdcdcdcd, this bundle holds abababababab"),
        (with_parameter("encoder_id", "?"), "has faulty parameters (parameters.encoder_id must be a SHA-256"),
        (with_parameter("precision", "fp8"), "parameters.precision must be one of fp32, fp16"),
        (with_parameter("max_batch", "0"), "parameters.max_batch must lie in [1, 4096], not 0"),
        (with_parameter("recipes", "[" * 99), "parameters.recipes must be an object"),
        (with_parameter("recipes", '{"x": {}}'), 'must be by the number of a version, not "x"'),
        (with_parameter("recipes", '{"1": {}}'), "parameters.recipes.1.tensors_sha256 is missing"),
        (with_parameter("more", "1"), "parameters.more is not known"),
        (other_size, "frames is uint8 [-1, 32, 64], not uint8 [-1, 64, 64]"),
        (huge_size, "takes no frames [batch, height, width] of a fixed size"),
        (other_type, "frames is float [-1, 64, 64], not uint8 [-1, 64, 64]"),
        (other_name, "takes no frames [batch, height, width] of a fixed size"),
        (other_rank, "takes no frames [batch, height, width] of a fixed size"),
        (extra_input, "it has mask, which is not of the bundle's format"),
        (fewer_features, "features is float [-1, 384], not float [-1, 385]"),
        (no_map, "it lacks defect_map"),
        (not_ready, "NOT_FOUND: it is not ready; the server holds no model that is ready"),
        (other_versions, "has the versions 1, 2, 3, and its parameters tell of 1, 2"),
    ],
)
def test_a_model_of_another_kind_is_refused_before_the_first_frame(
    fake_bundle: Path, held: FakeServer, change: Callable[[FakeServer], None], words: str
) -> None:
    change(held)
    with pytest.raises(BackendUnavailable) as caught:
        Predictor(fake_bundle, backend=connect(held))
    assert words in str(caught.value)
    assert f'model "sem_clip" of the server at {held.url}' in str(caught.value)
    assert held.batches == []


def test_an_unknown_model_is_refused_with_those_there_are(held: FakeServer) -> None:
    with pytest.raises(BackendUnavailable, match='it is not ready; the server holds "sem_clip"\\): give the name of a'):
        TritonBackend(held.url, "sem-clip")
    held.has_index = False
    with pytest.raises(BackendUnavailable, match="the server holds models that it does not list"):
        TritonBackend(held.url, "sem-clip")


def test_a_recipe_that_needs_the_v_path_is_refused_by_a_graph_without_it(fake_bundle: Path) -> None:
    with make_server(value_path=False) as server:
        with pytest.raises(BackendUnavailable, match=r"leaves the V path out, which the recipe needs \(lambda_v 1\)"):
            Predictor(fake_bundle, backend=connect(server))
        Predictor(fake_bundle, backend=connect(server), recipe=with_scalars(RECIPE, lambda_v=0.0)).close()


def test_an_engine_for_fewer_classes_refuses_more(fake_bundle: Path) -> None:
    refused = pytest.raises(BackendUnavailable, match="takes up to 3 classes, the recipe has 4")
    with make_server(most_classes=3) as server, Predictor(fake_bundle, backend=connect(server)) as predictor, refused:
        predictor.use(MORE_CLASSES)


def test_a_bundle_of_other_frame_sizes_is_refused_though_its_encoder_is_the_same(tmp_path: Path) -> None:
    other = make_encoder(input_size=(480, 640))
    bundle = write_bundle(tmp_path / "other", encoder=other)
    words = r"frames is uint8 \[-1, 64, 64\], not uint8 \[-1, 480, 640\]"
    with make_server() as server, pytest.raises(BackendUnavailable, match=words):
        Predictor(bundle, backend=connect(server))


def test_a_recipe_of_another_encoder_is_refused_without_a_bundle_too(open_one: FakeServer) -> None:
    stranger = make_encoder(id="cd" * 32)
    with connect(open_one) as backend, pytest.raises(BackendUnavailable, match="the recipe was taught on cdcdcdcdcdcd"):
        backend.warm_up(make_recipe(encoder=stranger))


def test_a_model_that_answers_by_another_k_than_it_says_is_refused(fake_bundle: Path, held: FakeServer) -> None:
    held.recipes[1] = MORE_CLASSES
    with pytest.raises(BackendUnavailable, match=r"answers with probabilities \[1, 4\], the recipe needs \[1, 3\]"):
        Predictor(fake_bundle, backend=connect(held))


@pytest.mark.parametrize(
    "url",
    ["http://server:8001", "server", "server:", ":8001", "server:0", "server:65536", "a b:1", "", "unix:/s", 5],
)
def test_an_address_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(BackendUnavailable, match="is no address of an inference server: give HOST:PORT"):
        TritonBackend(url, MODEL)


@pytest.mark.parametrize(
    "options",
    [{"version": 0}, {"version": "1"}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"in_flight": 0}, {"model": ""}],
)
def test_arguments_that_are_none_are_value_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TritonBackend("127.0.0.1:1", **{"model": MODEL, **options})


def test_a_file_of_certificates_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "roots.pem"
    with pytest.raises(PredictorError, match=r"roots\.pem: does not exist"):
        TritonBackend("127.0.0.1:1", MODEL, ssl_roots=file)
    file.write_text("nothing")
    with pytest.raises(BackendUnavailable, match=r"roots\.pem: holds no certificate"):
        TritonBackend("127.0.0.1:1", MODEL, ssl_roots=file)


def test_a_server_without_encryption_is_refused_where_it_is_asked_for(tmp_path: Path, held: FakeServer) -> None:
    file = tmp_path / "roots.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(BackendUnavailable, match="cannot be used"):
        connect(held, ssl_roots=str(file), timeout_s=5)
    assert held.looks == 0


def test_without_the_client_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(BackendUnavailable, match='pip install "sem-clip\\[triton\\]"'):
        TritonBackend("127.0.0.1:1", MODEL)


def test_the_name_alone_is_refused_with_what_to_do(fake_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"needs a server: Predictor\(bundle, backend=TritonBackend"):
        open_backend("triton", fake_bundle, load_bundle(fake_bundle)[0])
