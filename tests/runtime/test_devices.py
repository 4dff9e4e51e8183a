"""`device`: which GPU a backend gets, what is refused, and two GPUs in one process."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder
from fake_gpu import PROBABLE, recipe_of
from PIL import Image
from simulated_engine import Opened, check, frames

from runtime import Predictor, backends
from runtime.arguments import MAX_DEVICE, gpu_device
from runtime.backends import GPU_BACKENDS, FakeBackend, open_backend
from runtime.cli import main
from runtime.errors import BackendUnavailable
from runtime.host import Gpu
from runtime.manifest import load_bundle
from runtime.options import engine_options
from runtime.verify import verify

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
L4 = Gpu("NVIDIA L4", "8.9", "13.0", 24 * 2**30, "0000:02:00.0", 1, UUID)


@pytest.mark.parametrize(
    ("given", "device"),
    [
        (None, None),
        (0, 0),
        (np.int64(3), 3),
        ("12", 12),
        (MAX_DEVICE, MAX_DEVICE),
        ("GPU-8932F937", "GPU-8932f937"),
        (f"gpu-{UUID[4:].upper()}", UUID),
        ("mig-1c", "MIG-1c"),
    ],
)
def test_a_device_is_an_index_or_a_uuid(given: object, device: int | str | None) -> None:
    assert gpu_device(given) == device


@pytest.mark.parametrize(
    "wrong", [-1, MAX_DEVICE + 1, True, 1.0, "", "-1", "cuda:1", "GPU-", "GPU-xyz", "8932f937", " 1", "1\n", b"1", [1]]
)
def test_anything_else_is_no_device(wrong: object, fake_bundle: Path) -> None:
    with pytest.raises(ValueError, match="device must"):
        gpu_device(wrong)
    with pytest.raises(ValueError, match="device must"):
        Predictor(fake_bundle, device=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in backends.NAMES if name not in ("auto", *GPU_BACKENDS)])
def test_a_backend_without_a_gpu_takes_no_device(fake_bundle: Path, name: str) -> None:
    with pytest.raises(BackendUnavailable, match=f'backend "{name}" uses no GPU: leave device 1 out, or choose'):
        Predictor(fake_bundle, backend=name, device=1)


def test_a_backend_of_ones_own_takes_no_device(fake_bundle: Path) -> None:
    own = FakeBackend(make_encoder())
    with pytest.raises(ValueError, match="device chooses the GPU of a named backend"):
        Predictor(fake_bundle, backend=own, device=0)
    assert not own.closed, "it belongs to the caller as long as there is no Predictor"


@pytest.mark.parametrize("name", ["auto", *GPU_BACKENDS])
def test_a_device_that_is_not_there_is_an_error_and_no_fallback(
    fake_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_gpu", lambda device: (None, f"there is no GPU {device}; there is {L4.label}"))
    with pytest.raises(BackendUnavailable, match=r"device 7 cannot be used: there is no GPU 7; there is GPU 1 \(NVID"):
        Predictor(fake_bundle, backend=name, device=7)


def test_auto_on_a_device_takes_no_cpu(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def unavailable(name: str, *arguments: Any) -> FakeBackend:
        tried.append((name, arguments[-1]))
        raise BackendUnavailable(f"{name} is not for this host")

    monkeypatch.setattr(backends, "find_gpu", lambda device: (L4, ""))
    monkeypatch.setattr(backends, "_open", unavailable)
    with pytest.raises(
        BackendUnavailable, match=r"nothing runs on device 1: not tensorrt: .*not cuda: cuda is not for"
    ):
        open_backend("auto", fake_bundle, load_bundle(fake_bundle)[0], device="1")
    assert tried == [(name, 1) for name in GPU_BACKENDS]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pretends GPU 1: what `open_backend` looked for, and what it opened the backend with."""
    seen: dict[str, Any] = {}

    def opened(kind: str) -> Callable[..., FakeBackend]:
        def make(*arguments: Any, gpu: Gpu | None, **more: Any) -> FakeBackend:
            seen[kind] = gpu
            return FakeBackend(make_encoder())

        return make

    def artifact(*arguments: Any, device: object) -> Any:
        seen["engine for"] = device
        return SimpleNamespace()

    monkeypatch.setattr(backends, "find_gpu", lambda device: (L4 if device in (1, "GPU-89") else None, "no GPU"))
    monkeypatch.setattr(backends, "engine_artifact", artifact)
    monkeypatch.setattr(backends, "onnx_artifact", lambda *arguments: None)
    monkeypatch.setattr(backends, "TensorRtBackend", opened("tensorrt"))
    monkeypatch.setattr(backends, "OrtCudaBackend", opened("cuda"))
    return seen


@pytest.mark.parametrize("device", [1, "GPU-89"])
def test_the_backend_is_opened_on_the_gpu_that_was_found(
    fake_bundle: Path, found: dict[str, Any], device: int | str
) -> None:
    for name in ("cuda", "tensorrt", "auto"):
        Predictor(fake_bundle, backend=name, device=device).close()
    assert found == {"cuda": L4, "tensorrt": L4, "engine for": device}


def test_without_a_device_the_first_gpu_is_taken(fake_bundle: Path, found: dict[str, Any]) -> None:
    """Also where cuda-bindings, which find GPUs, are not installed."""
    Predictor(fake_bundle, backend="cuda").close()
    assert found == {"cuda": None}


def test_an_engine_says_where_it_runs(tmp_path: Path) -> None:
    with Opened(tmp_path, gpu=L4).backend as backend:
        assert backend.description == "tensorrt 1.2.3.4 on GPU 1 (NVIDIA L4, GPU-8932f937), engine.plan (fp16)"


def test_two_devices_in_one_process_never_mix(tmp_path: Path) -> None:
    """The simulated devices refuse every call from a thread on which they are not the current one."""
    both = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        both.append(Opened(folder))
    recipes = [recipe_of(3, 0.0), recipe_of(4, 0.25)]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for turn in range(30):
            pixels = frames(*rng.integers(0, 250, size=rng.integers(1, 20)))
            check(both[turn % 2].backend, pixels, recipes[rng.integers(2)])
            if turn % 10 == seed:
                both[(turn + 1) % 2].backend.warm_up(recipes[1])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, seed) for seed in range(4)]:
            future.result(timeout=60)
    assert [opened.device.launched > 0 for opened in both] == [True, True]
    both[0].backend.close()
    check(both[1].backend, frames(1, 2, 3), recipes[0])
    assert [opened.device.closed for opened in both] == [True, False]


def test_two_predictors_on_two_devices_stream_at_once(tmp_path: Path, fake_bundle: Path) -> None:
    predictors = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        backend = Opened(folder).backend
        predictors.append(Predictor(fake_bundle, backend=backend, recipe=PROBABLE, batch_size=4))
    numbers = [int(number) for number in np.random.default_rng(0).integers(0, 250, size=90)]
    streams = [predictor.stream(list(frames(*numbers))) for predictor in predictors]
    answers = [[int(answer.features[0]) for answer in pair] for pair in zip(*streams, strict=True)]
    assert answers == [[number, number] for number in numbers]
    for predictor in predictors:
        predictor.close()


def test_predict_runs_on_the_device_that_it_is_given(
    fake_bundle: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(frames(1)[0]).save(fake_bundle.parent / "frame.png")
    command = ["predict", str(fake_bundle), str(fake_bundle.parent / "frame.png"), "--backend", "cuda", "--device"]
    assert main([*command, "gpu-89"]) == 0
    assert found == {"cuda": L4}
    assert main([*command, "5"]) == 2
    assert "device 5 cannot be used: no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "cuda:1"])
    assert "device must be the index of a GPU, such as 1, or its UUID, such as" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_options_refuse_a_device_for_a_backend_that_is_no_gpus(backend: str) -> None:
    """Also for one that a command opens by itself, as the client of a server."""
    with pytest.raises(BackendUnavailable, match=f'backend "{backend}" uses no GPU'):
        engine_options(Namespace(backend=backend, precision=None, device=0, threads=0))


@pytest.mark.parametrize("command", ["predict", "verify", "calibrate", "evaluate", "benchmark", "build-engine"])
def test_every_command_that_needs_an_engine_takes_a_device(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command not in ("predict", "verify"):
        pytest.importorskip("torch", reason="commands of other packages than runtime")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--device GPU" in capsys.readouterr().out


def test_verify_refuses_a_device_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match='backend "cpu" uses no GPU: leave device 0 out'):
        verify(tmp_path, ["cpu"], seconds=1, device=0)
