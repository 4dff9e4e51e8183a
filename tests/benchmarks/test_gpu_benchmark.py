"""benchmarks.gpu on a simulated GPU: every row, both files, and the refusals without a GPU."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import make_encoder, write_bundle
from fake_gpu import PROBABLE, Engine, FakeDevice, fake_module

from benchmarks import gpu
from benchmarks.gpu import Gpu, gpu_state, markdown, shares
from runtime.backends.trt import TensorRtBackend
from runtime.errors import BackendUnavailable, PredictorError
from runtime.host import Gpu as Card
from runtime.manifest import Artifact, Manifest
from runtime.recipe import MAX_CLASSES

CARD = Card("NVIDIA GeForce RTX 4090", "8.9", "13.0", 24 * 2**30, "0000:41:00.0", 2, "GPU-8932f937")


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    Gpu().add_arguments(parser)
    return parser.parse_args(given)


@pytest.fixture
def fake_bundle(tmp_path: Path) -> Path:
    """A bundle on whose recipe the fake engine's answers are probabilities."""
    return write_bundle(tmp_path / "bundle", recipe=PROBABLE)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated GPU on which only "tensorrt" runs."""

    def opened(name: str, folder: Path, manifest: Manifest, **more: Any) -> TensorRtBackend:
        assert more["device"] == CARD.index
        if name != "tensorrt":
            raise BackendUnavailable(f"{name} is not for this host")
        plan = folder / "engine.plan"
        plan.write_bytes(b"plan")
        artifact = Artifact("engine.plan", "engine", "fp16", hashlib.sha256(b"plan").hexdigest(), 4, {}, {}, {})
        device = FakeDevice()
        engine = Engine(manifest.encoder, device, (1, 4, 8), MAX_CLASSES)
        return TensorRtBackend(folder, artifact, manifest.encoder, name, device=device, module=fake_module(engine))

    state = "NVIDIA GeForce RTX 4090, 580.1, 41, 2520 MHz, 10501 MHz, 300 W, 99 %, 1000 MiB\n"
    monkeypatch.setattr(gpu, "open_backend", opened)
    monkeypatch.setattr(gpu, "find_gpu", lambda device: (CARD, ""))
    monkeypatch.setattr(gpu.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=state))
    free = iter(range(9_000_000_000, 0, -500_000_000))

    def memory() -> tuple[int, int]:
        return next(free), 10**10

    monkeypatch.setattr(gpu, "CudaDevice", lambda index: SimpleNamespace(memory=memory, current=nullcontext))
    monkeypatch.setattr(gpu, "FRAMES_A_RUN", 16)
    monkeypatch.setattr(gpu, "STREAMED", 24)
    monkeypatch.setattr(gpu, "count_flops", lambda path: {"gflop_per_frame": 63.4})


@pytest.mark.usefixtures("card")
def test_every_batch_size_has_a_row_and_both_files_are_written(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    given = (str(fake_bundle), "--batch", "1,4,8,16", "--rounds", "2", "--latency-seconds", "0.2", "--out", str(out))
    assert Gpu().run(arguments(*given)) == 0
    report = json.loads((out / "gpu.json").read_text())
    assert [(row["engine"], row["batch"]) for row in report["throughput"]] == [
        ("tensorrt/fp16", 1),
        ("tensorrt/fp16", 4),
        ("tensorrt/fp16", 8),
    ], "16 is more than the engine takes"
    assert all(row["frames_per_second"] > 0 for row in (*report["throughput"], *report["end_to_end"]))
    assert {"p50", "p95", "p99"} <= set(report["latency"][0]["run_ms"])
    assert [item["name"] for item in report["skipped"]] == ["tensorrt-rtx", "cuda"]
    assert report["gpu"]["before"]["temperature.gpu"] == "41"
    assert report["device_memory_mb"] == {"tensorrt/fp16": 500.0}
    best = max(row["frames_per_second"] for row in report["throughput"])
    assert report["roofline"]["engines"]["tensorrt/fp16"]["tflops"] == pytest.approx(best * 63.4 / 1e3)
    said = capsys.readouterr().out
    assert said.strip() == (out / "gpu.md").read_text().strip()
    for part in ("NVIDIA GeForce RTX 4090, driver 580.1", "left out: cuda: cuda is not for this host", "2520 MHz"):
        assert part in said


@pytest.mark.usefixtures("card")
def test_a_named_backend_that_cannot_run_is_an_error(fake_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match="cuda is not for this host"):
        Gpu().run(arguments(str(fake_bundle), "--backend", "cuda"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--batch", "1,x"), "not a list of batch sizes"),
        (("--batch", "0"), "not a list of batch sizes"),
        (("--arch", "toy"), "--arch needs either --weights FILE"),
    ],
)
@pytest.mark.usefixtures("card")
def test_bad_options_are_refused_before_anything_is_opened(
    fake_bundle: Path, given: tuple[str, ...], says: str
) -> None:
    with pytest.raises(PredictorError, match=says):
        Gpu().run(arguments(str(fake_bundle), *given))


def test_without_a_gpu_there_is_nothing_to_measure(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda device: (None, "no NVIDIA driver was found"))
    with pytest.raises(BackendUnavailable, match="no GPU to measure: no NVIDIA driver was found"):
        Gpu().run(arguments(str(fake_bundle)))


@pytest.mark.usefixtures("card")
def test_the_state_is_that_of_the_gpu_that_cuda_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(query: list[str], **more: Any) -> SimpleNamespace:
        asked.append(query)
        return SimpleNamespace(stdout="NVIDIA H100, 580.1, 41\n")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu_state(CARD) == {"name": "NVIDIA H100", "driver_version": "580.1", "temperature.gpu": "41"}
    assert "--id=0000:41:00.0" in asked[0]
    assert gpu_state(None) is None


@pytest.mark.usefixtures("card")
def test_the_state_is_none_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu_state(CARD) is None
    monkeypatch.setattr(gpu.shutil, "which", lambda name: "/usr/bin/nvidia-smi")

    def fails(*arguments: Any, **more: Any) -> Any:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(gpu.subprocess, "run", fails)
    assert gpu_state(CARD) is None


def test_shares_are_of_each_peak_that_was_measured() -> None:
    rows = [{"engine": "a", "frames_per_second": 100.0}, {"engine": "a", "frames_per_second": 500.0}]
    found = shares(rows, 60.0, {"fp32_sums": 60.0, "fp16_sums": 120.0})
    assert found["engines"]["a"] == {"tflops": 30.0, "share_of_fp32_sums": 0.5, "share_of_fp16_sums": 0.25}
    assert shares(rows, 60.0, None)["engines"]["a"] == {"tflops": 30.0}


def test_the_report_is_complete_without_the_gpu_s_state() -> None:
    report = {
        "taken": "2030-01-01",
        "machine": {"versions": {"numpy": "2"}},
        "gpu": {"before": None, "after": None},
        "bundle": {"architecture": make_encoder().architecture, "weights": "random, seed 0"},
        "engines": {},
        "skipped": [],
        "latency": [],
        "throughput": [],
        "end_to_end": [],
        "device_memory_mb": {"tensorrt/fp16": 1234.5},
        "value_path": [{"batch": 8, "times_vanilla": 1.12345}],
        "peak": None,
    }
    assert "a GPU that nvidia-smi does not show" in markdown(report)
    assert replace(make_encoder()).architecture in markdown(report)
    assert "- batch 8: 1.123" in markdown(report)
    assert "- tensorrt/fp16: 1234 MB" in markdown(report)
