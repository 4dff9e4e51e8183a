"""Servers of others on the loopback interface: Triton itself, and MLServer, another of the same protocol.

Neither is installed with this project. SEM_CLIP_PYTRITON names a folder that was made by

    pip install --target FOLDER nvidia-pytriton onnxruntime==1.24.1 "numpy<2"

It holds the server with its Python backend alone, which needs numpy 1. So a model of a few lines stands in for the ONNX
Runtime backend. SEM_CLIP_MLSERVER names a Python with mlserver and onnxruntime.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from places import TESTS

from runtime import BackendError, BackendUnavailable, Prediction, Predictor
from runtime.backends.triton import TritonBackend
from runtime.manifest import load_bundle
from runtime.serving.triton_repository import Wishes, write_repository

pytest.importorskip("tritonclient.grpc")
from fake_server import with_other_answers
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="the servers are for Linux")]
START_S = 90


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers by a bundle and by another recipe."""

    url: str
    process: subprocess.Popen[bytes]
    bundle: Path
    recipes: tuple[Path, Path]

    def connect(self, model: str = "sem_clip", **options: Any) -> TritonBackend:
        return TritonBackend(self.url, model, **{"timeout_s": 60, **options})


@pytest.fixture(params=["triton", "mlserver"])
def server(request: pytest.FixtureRequest, toy_bundle: Path, tmp_path: Path) -> Iterator[Running]:
    """Each of the servers in turn, as the environment names it."""
    own = load_bundle(toy_bundle)[1]
    recipes = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    own.save(recipes[0])
    with_other_answers(own).save(recipes[1])
    if request.param == "triton":
        folder = Path(os.environ.get("SEM_CLIP_PYTRITON") or pytest.skip("SEM_CLIP_PYTRITON names no folder"))
        write_repository(toy_bundle, tmp_path / "models", Wishes(recipes=recipes))
        start = start_triton(folder, tmp_path / "models")
    else:
        python = os.environ.get("SEM_CLIP_MLSERVER") or pytest.skip("SEM_CLIP_MLSERVER names no Python with mlserver")
        # It serves one version of a model.
        write_repository(toy_bundle, tmp_path / "models", Wishes(recipes=recipes[:1]))
        start = start_mlserver(python, tmp_path / "models")
    with start as (port, process):
        yield Running(f"127.0.0.1:{port}", process, toy_bundle, recipes)


@contextmanager
def start_triton(folder: Path, models: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    home = folder / "pytriton/tritonserver"
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME") or "")
    if not library.is_file() or ".so" not in library.name:
        pytest.skip("this Python has no shared library, which the server's Python backend needs")
    stub = home / f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}/triton_python_backend_stub"
    backends = models.with_name("backends")
    shutil.copytree(home / "backends/python", backends / "python")
    own_stub = backends / "python/triton_python_backend_stub"
    own_stub.unlink(missing_ok=True)
    shutil.copyfile(stub, own_stub)
    for file in (home / "bin/tritonserver", own_stub):
        file.chmod(0o755)
    for config in models.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
        for version in config.parent.glob("[0-9]*"):
            shutil.copy(TESTS / "servers/python_model.py", version / "model.py")
    port = free_port()
    options = {"model-repository": models, "backend-directory": backends, "grpc-port": port}
    options |= {"grpc-address": "127.0.0.1", "allow-http": "false", "allow-metrics": "false"}
    command = [str(home / "bin/tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
    libraries = os.pathsep.join([str(folder / "nvidia_pytriton.libs"), str(library.parent)])
    environment = {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(folder)}
    with running(command, models.parent, port, environment) as process:
        yield port, process


@contextmanager
def start_mlserver(python: str, models: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    kinds = {model_config_pb2.TYPE_UINT8: "UINT8", model_config_pb2.TYPE_FP32: "FP32"}
    folder = models.with_name("mlserver")
    for file in models.glob("*/config.pbtxt"):
        config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        batch = [-1] if config.max_batch_size else []
        tensors = {
            side: [{"name": t.name, "datatype": kinds[t.data_type], "shape": [*batch, *t.dims]} for t in found]
            for side, found in (("inputs", config.input), ("outputs", config.output))
        }
        said = {name: value.string_value for name, value in config.parameters.items()}
        settings = {
            "name": config.name,
            "implementation": "mlserver_model.SemClip",
            "parameters": {"uri": str(file.parent / "1/model.onnx"), "extra": said},
            **tensors,
        }
        (folder / config.name).mkdir(parents=True)
        (folder / config.name / "model-settings.json").write_text(json.dumps(settings))
    port = free_port()
    ports = {"grpc_port": port, "http_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports}))
    command = [python, "-m", "mlserver", "start", str(folder)]
    if (program := Path(python).with_name("mlserver")).is_file():
        command = [str(program), "start", str(folder)]
    with running(command, folder, port, {"PYTHONPATH": str(TESTS / "servers")}) as process:
        yield port, process


@contextmanager
def running(
    command: list[str], folder: Path, port: int, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / "server.log"
    settings = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", **environment}
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            command, cwd=folder, env=settings, stdout=stream, stderr=stream, start_new_session=True
        ) as process,
    ):
        try:
            until = time.monotonic() + START_S
            while not is_ready(port):
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
                time.sleep(0.2)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def is_ready(port: int) -> bool:
    try:
        TritonBackend(f"127.0.0.1:{port}", "sem_clip_any_recipe", timeout_s=5).close()
        TritonBackend(f"127.0.0.1:{port}", "sem_clip", timeout_s=5).close()
    except BackendUnavailable:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def frames_of(bundle: Path, count: int) -> list[NDArray[np.uint8]]:
    height, width = load_bundle(bundle)[0].encoder.input_size
    rng = np.random.default_rng(2)
    return [rng.integers(0, 256, (height, width), np.uint8) for _ in range(count)]


def assert_same(found: list[Prediction], wanted: list[Prediction]) -> None:
    """Equal verdicts. A batch of another size may round otherwise, here as on one machine."""
    assert [p.verdict for p in found] == [p.verdict for p in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.patch_map, other.patch_map, atol=1e-5)
        np.testing.assert_allclose(list(one.probabilities.values()), list(other.probabilities.values()), atol=1e-5)


def test_a_real_server_gives_the_same_verdicts_and_dies_without_losing_a_frame(server: Running) -> None:
    frames = frames_of(server.bundle, 48)
    with Predictor(server.bundle, backend="cpu", threads=1) as predictor:
        wanted = predictor.predict(frames)
        predictor.use(server.recipes[1])
        others = predictor.predict(frames)
    for model in ("sem_clip", "sem_clip_any_recipe"):
        with Predictor(server.bundle, backend=server.connect(model)) as predictor:
            assert_same(list(predictor.stream(iter(frames))), wanted)
            assert_same(from_eight_threads(predictor, frames), wanted)
            if "version" in predictor.backend.description:
                predictor.use(server.recipes[1])
                assert_same(predictor.predict(frames), others)
    with pytest.raises(BackendUnavailable, match="cannot be used"):
        server.connect("none")
    die_in_mid_run(server)


def from_eight_threads(predictor: Predictor, frames: list[NDArray[np.uint8]]) -> list[Prediction]:
    found: dict[int, list[Prediction]] = {}

    def work(first: int) -> None:
        found[first] = [predictor(frame) for frame in frames[first::8]]

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    return [found[index % 8][index // 8] for index in range(len(frames))]


def die_in_mid_run(server: Running) -> None:
    frames = frames_of(server.bundle, 200)
    drawn: list[str] = []
    answered: list[str] = []

    def feed() -> Iterator[NDArray[np.uint8]]:
        for index, frame in enumerate(frames):
            if index == 100:
                os.killpg(server.process.pid, signal.SIGKILL)
            drawn.append(f"frame[{index}]")
            yield frame

    with Predictor(server.bundle, backend=server.connect(timeout_s=20)) as predictor:
        with pytest.raises(BackendError, match="without an answer") as caught:
            answered.extend(prediction.source for prediction in predictor.stream(feed()))
        named = answered + list(caught.value.unanswered)
        assert named == drawn[: len(named)]
        assert 0 < len(answered) <= 100 <= len(named) + 16
