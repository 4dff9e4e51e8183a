"""runtime.backends.triton: servers that die, hang, change or answer nonsense, and servers of other makers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from places import ROOT

from runtime import BackendError, BackendUnavailable, Prediction, Predictor
from runtime.backends import triton, v2_model

pytest.importorskip("tritonclient.grpc")
import fake_server
import grpc
from fake_server import (
    BOTH,
    CALLS,
    ENCODER,
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

held = fake_server.held  # pytest looks for fixtures among these names


# ---- servers that fail -------------------------------------------------------------------------------------------


def test_no_server_at_the_address(fake_bundle: Path) -> None:
    server = make_server().start()
    server.kill()
    with pytest.raises(BackendUnavailable, match=r"cannot be used \(UNAVAILABLE: .*see that the server runs, and that"):
        connect(server)


def test_a_server_that_dies_in_mid_run_leaves_every_frame_answered_or_named(fake_bundle: Path) -> None:
    server = make_server(BOTH).start()
    frames = some_frames(400)
    names = [f"frame[{index}]" for index in range(400)]
    drawn = []

    def feed() -> Iterator[NDArray[np.uint8]]:
        for index, frame in enumerate(frames):
            if index == 200:
                server.kill()
            drawn.append(names[index])
            yield frame

    answered: list[Prediction] = []
    with Predictor(fake_bundle, backend=connect(server)) as predictor:
        with pytest.raises(BackendError, match="without an answer: frame") as caught:
            answered.extend(predictor.stream(feed()))
        named = [prediction.source for prediction in answered] + list(caught.value.unanswered)
        assert named == drawn[: len(named)]
        assert len(answered) < 200 <= len(named) + 16  # and those that were drawn ahead of the batches
        assert "and all after it" in str(caught.value)
        assert told_apart(answered, by_hand(fake_bundle, frames[: len(answered)])) == []
        with pytest.raises(BackendError, match="cannot be used"):
            predictor(frames[0])


def test_a_server_that_was_started_anew_is_looked_at_before_it_answers(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "RECHECK_S", 1e9)
    server = make_server(BOTH).start()
    frame = some_frames(1)
    with Predictor(fake_bundle, backend=connect(server)) as predictor:
        predictor(frame[0])
        server.kill()
        with pytest.raises(BackendError):
            predictor(frame[0])
        server.config.parameters["sem_clip_encoder_id"].string_value = "cd" * 32
        server.start(server.port)
        wait_for(lambda: "replaced since it was opened (encoder_id)" in error_of(predictor, frame[0]))
        server.config.parameters["sem_clip_encoder_id"].string_value = ENCODER.id
        assert told_apart([predictor(frame[0])], by_hand(fake_bundle, frame)) == []


def error_of(predictor: Predictor, frame: NDArray[np.uint8]) -> str:
    with pytest.raises(BackendError) as caught:
        predictor(frame)
    return str(caught.value)


def wait_for(true: Callable[[], bool]) -> None:
    """gRPC tries a lost connection again after a second or so."""
    done = threading.Event()
    for _ in range(200):
        if true():
            return
        done.wait(0.1)
    raise AssertionError("it did not become true")


def test_a_model_that_is_replaced_under_the_client_is_seen(
    fake_bundle: Path, held: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "RECHECK_S", 0.0)
    frame = some_frames(1)[0]
    with Predictor(fake_bundle, backend=connect(held)) as predictor:
        predictor(frame)
        # Version 1 now holds the recipe of version 2.
        held.config = config_of(ENCODER, served(ENCODER, {1: OTHER, 2: OTHER}))
        assert "does not hold the recipe in use" in error_of(predictor, frame)
        held.config = config_of(ENCODER, served(ENCODER, BOTH, model_sha256="56" * 32))
        assert "was replaced since it was opened (model_sha256): open it again" in error_of(predictor, frame)
        held.config = config_of(ENCODER, served(ENCODER))
        assert "was replaced since it was opened (signature)" in error_of(predictor, frame)
        held.config = config_of(ENCODER, served(ENCODER, BOTH))
        predictor(frame)


def test_while_one_thread_looks_at_the_model_no_other_takes_it_for_looked_at(
    fake_bundle: Path, held: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = connect(held)
    with Predictor(fake_bundle, backend=backend) as predictor:
        look, seen = backend._look, []
        monkeypatch.setattr(backend, "_look", lambda model: [seen.append(backend._looked_at), look(model)][1])
        backend._looked_at = before = -2 * triton.RECHECK_S
        predictor(some_frames(1)[0])
        assert seen == [before]
        assert backend._looked_at > before


def test_a_version_that_is_gone_is_not_asked_again(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "RECHECK_S", 0.0)
    with make_server() as server:
        server.versions = ["1", "2"]
        with Predictor(fake_bundle, backend=connect(server)) as predictor:
            predictor(some_frames(1)[0])
            assert set(server.asked) == {"2"}
            server.versions, server.asked = ["1"], []
            predictor(some_frames(1)[0])
            assert server.asked == ["1"]


def test_the_model_is_looked_at_no_more_often_than_asked(
    fake_bundle: Path, held: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "RECHECK_S", 1e9)
    with Predictor(fake_bundle, backend=connect(held)) as predictor:
        looks = held.looks
        predictor.predict(some_frames(40))
        assert held.looks == looks


def test_a_server_that_takes_too_long_is_an_error_that_names_the_frames(fake_bundle: Path, held: FakeServer) -> None:
    with Predictor(fake_bundle, backend=connect(held, timeout_s=1.0)) as predictor:
        held.delay_s = 3.0
        with pytest.raises(BackendError, match="DEADLINE_EXCEEDED: no answer within 1 s") as caught:
            list(predictor.stream(some_frames(3)))
        assert caught.value.unanswered == ("frame[0]", "frame[1]", "frame[2]")


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_an_error_of_the_server_is_told(fake_bundle: Path, held: FakeServer, code: grpc.StatusCode) -> None:
    with Predictor(fake_bundle, backend=connect(held)) as predictor:
        held.failure = code, "the stub died\nand more"
        assert error_of(predictor, some_frames(1)[0]).endswith(f"failed on 1 frames: {code.name}: the stub died")
        held.failure = None
        predictor(some_frames(1)[0])


def shorter(response: Any) -> None:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-1]


def fewer(response: Any) -> None:
    del response.raw_output_contents[2]


def unnamed(response: Any) -> None:
    response.outputs[1].name = "map"


def doubles(response: Any) -> None:
    response.outputs[0].datatype = "FP64"


def negative(response: Any) -> None:
    response.outputs[0].shape[0] = -1


def huge(response: Any) -> None:
    response.raw_output_contents[2] = bytes(v2_model.MAX_ANSWER_BYTES)


def other_version(response: Any) -> None:
    response.model_version = "2"


def swapped_map(response: Any) -> None:
    response.outputs[1].shape[:] = [1, 2, 8]


def not_numbers(response: Any) -> None:
    response.raw_output_contents[0] = np.full(3, np.nan, "<f4").tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shorter, "probabilities came with other bytes than those of its shape [1, 3]"),
        (fewer, "features came with other bytes than those of its shape [1, 385]"),
        (unnamed, "the answer lacks defect_map"),
        (doubles, "probabilities came as FP64, not as FP32"),
        (negative, "probabilities came with other bytes than those of its shape [-1, 3]"),
        (huge, "RESOURCE_EXHAUSTED"),
        (other_version, "version 2 has answered in place of version 1"),
        (swapped_map, "defect_map: float32 [1, 2, 8], not float32 [1, 4, 4]"),
        (not_numbers, "probabilities of frame[0] is NaN or infinite"),
    ],
)
def test_answers_that_cannot_be_are_errors(
    fake_bundle: Path, held: FakeServer, change: Callable[[Any], None], words: str
) -> None:
    with Predictor(fake_bundle, backend=connect(held)) as predictor:
        held.change = change
        with pytest.raises(BackendError) as caught:
            predictor.predict(some_frames(1))
        assert words in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_damaged_messages_are_typed_errors(
    fake_bundle: Path, held: FakeServer, call: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(6)

    def damage(name: str, content: bytes) -> bytes:
        if name != call:
            return content
        changed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(changed) + 1))
            changed[place : place + int(rng.integers(2))] = rng.bytes(int(rng.integers(3)))
        return bytes(changed)

    held.damage = damage
    frames, outcomes = some_frames(2), set()
    wanted = [prediction.verdict for prediction in by_hand(fake_bundle, frames)]
    for _ in range(40):
        try:
            with Predictor(fake_bundle, backend=connect(held)) as predictor:
                assert [prediction.verdict for prediction in predictor.predict(frames)] == wanted
            outcomes.add("answered")
        except (BackendError, BackendUnavailable):
            outcomes.add("refused")
    assert outcomes - {"answered"} == ({"refused"} if call != "RepositoryIndex" else set())
    assert capfd.readouterr() == ("", "")


def test_a_closed_backend_says_so(held: FakeServer) -> None:
    backend = connect(held)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="is closed"):
        backend.run(np.zeros((1, 64, 64), np.uint8), RECIPE)
    with pytest.raises(BackendError, match="is closed"):
        backend.warm_up(RECIPE)


def test_batches_under_way_are_answered_when_it_closes(fake_bundle: Path, held: FakeServer) -> None:
    frames = some_frames(1)
    found: list[Prediction] = []
    with Predictor(fake_bundle, backend=connect(held)) as predictor:
        held.delay_s = 0.5
        thread = threading.Thread(target=lambda: found.append(predictor(frames[0])))
        before = len(held.batches)
        thread.start()
        wait_for(lambda: len(held.batches) > before)
    thread.join(30)
    assert told_apart(found, by_hand(fake_bundle, frames)) == []


def test_frames_of_another_size_are_not_sent(held: FakeServer) -> None:
    with connect(held) as backend, pytest.raises(BackendError, match=r"takes frames of \[64, 64\], not of \[64, 32\]"):
        backend.run(np.zeros((1, 64, 32), np.uint8), RECIPE)
    assert held.batches == []


PROGRAM = """
import os, sys
import numpy as np
from runtime import BackendUnavailable, Predictor, PredictorError, TritonBackend

bundle, url, roots = sys.argv[1:]
frame = np.zeros((64, 64), np.uint8)
predictor = Predictor(bundle, backend=TritonBackend(url, "sem_clip"))
results = predictor.stream([frame] * 40)
next(results)
child = os.fork()
if child == 0:
    try:
        predictor(frame)
    except PredictorError as exc:
        print("child:", str(exc)[:42], flush=True)
    try:
        TritonBackend(url, "sem_clip")
    except BackendUnavailable as exc:
        print("child:", exc, flush=True)
    sys.exit(0)
print("child left with", os.waitpid(child, 0)[1], "and", len(list(results)), "were left")
try:
    TritonBackend(url, "sem_clip", ssl_roots=roots, timeout_s=5)
except BackendUnavailable:
    print("no encryption")
next(predictor.stream([frame] * 100))  # it leaves in the middle
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_program_may_fork_and_leave_and_says_nothing_of_its_own(
    fake_bundle: Path, tmp_path: Path, held: FakeServer
) -> None:
    """gRPC has threads of its own, and writes to stderr what it thinks of forks and of failed handshakes."""
    roots = tmp_path / "roots.pem"
    roots.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PROGRAM]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run(
        [*command, str(fake_bundle), held.url, str(roots)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "child: this Predictor was opened before a fork an",
        "child: gRPC was in use before this process was forked, and does not work in it: connect first after the fork, "
        'or start processes anew (multiprocessing.get_context("spawn"))',
        "child left with 0 and 39 were left",
        "no encryption",
    ]
