"""benchmarks.speed.torch_runs: PyTorch's side of the GPU benchmark, on a simulated GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from benchmarks.speed import torch_runs
from export.model.graph import SemClipGraph
from runtime.manifest import load_bundle


class Event:
    """Counts batches in the queue."""

    queued = most = 0

    def record(self) -> None:
        Event.queued += 1
        Event.most = max(Event.most, Event.queued)

    def synchronize(self) -> None:
        Event.queued -= 1


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch_runs, "DEVICE", "cpu")
    monkeypatch.setattr(torch_runs, "_page_locked", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    monkeypatch.setattr(torch_runs.torch.cuda, "Event", Event)
    Event.queued = Event.most = 0
    yield
    torch.backends.cuda.matmul.allow_fp16_accumulation = False


def test_several_batches_are_queued_before_waiting_for_the_first(fake_bundle: Path) -> None:
    _, recipe = load_bundle(fake_bundle)
    calls: list[int] = []

    def graph(frames: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(frames))
        return frames.float().mean((1, 2)), tensors[-1] + len(calls)

    runner = torch_runs._GpuRunner(graph, fp16_sums=True)
    frames = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    mean, last = runner(frames, recipe, 7)
    assert (calls, Event.queued, Event.most) == ([2] * 7, 0, torch_runs.IN_FLIGHT)
    np.testing.assert_allclose(mean, frames.mean((1, 2)))
    np.testing.assert_allclose(last, recipe.tensors["scalars"] + 7, err_msg="the answers of the last batch")
    assert torch.backends.cuda.matmul.allow_fp16_accumulation
    runner(frames[:1], recipe, 1)
    assert calls[-1] == 1


def test_both_accumulations_are_measured_eager_and_compiled(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, recipe = load_bundle(fake_bundle)

    class Half(torch.nn.Module):
        def forward(self, frames: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (frames.float(),)

    compiled: list[tuple[torch.nn.Module, str]] = []

    def compile(graph: torch.nn.Module, *, mode: str, **more: object) -> torch.nn.Module:
        compiled.append((graph, mode))
        return graph

    monkeypatch.setattr(torch_runs.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_runs.torch, "compile", compile)
    frames = np.zeros((2, 4, 4), np.uint8)
    runs, skipped = torch_runs.gpu_torch_runs(cast("SemClipGraph", Half()), recipe, frames, compiled=True)
    assert list(runs) == [f"torch {how}/fp16{sums}" for how in ("eager", "compile") for sums in ("", ", sums in fp16")]
    assert skipped == []
    assert compiled[0][0] is not compiled[1][0], "a captured graph sums as it was captured"
    assert {mode for _, mode in compiled} == {"reduce-overhead"}
    runs, skipped = torch_runs.gpu_torch_runs(cast("SemClipGraph", Half()), recipe, frames, compiled=False)
    assert [item.reason for item in skipped] == ["left out by --no-compile"]
    assert len(runs) == 2


def test_without_a_gpu_pytorch_is_left_out_by_name(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, recipe = load_bundle(fake_bundle)
    monkeypatch.setattr(torch_runs.torch.cuda, "is_available", lambda: False)
    runs, skipped = torch_runs.gpu_torch_runs(
        cast("SemClipGraph", None), recipe, np.zeros((1, 4, 4), np.uint8), compiled=True
    )
    assert runs == {}
    assert "finds no GPU" in skipped[0].reason


def test_torch_computes_the_v_path_where_the_bundle_s_graph_does(either_bundle: Path) -> None:
    """Otherwise the engines would be compared with another amount of work."""
    manifest, _ = load_bundle(either_bundle)
    assert torch_runs._graph(manifest, "toy", None).value_path is manifest.encoder.value_path


def test_torch_is_measured_in_bf16_beside_fp32_where_asked(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in bf16 is compared with PyTorch in bf16, too."""
    manifest, recipe = load_bundle(toy_bundle)
    monkeypatch.setattr(torch_runs.torch, "compile", lambda graph, **_: graph)
    frames = np.random.default_rng(0).integers(0, 256, (2, *manifest.encoder.input_size), np.uint8)
    runs, skipped = torch_runs.torch_runs(manifest, recipe, "toy", None, 1, compiled=True, bf16=True)
    assert skipped == []
    answers = {name: cast("list[np.ndarray]", run(frames, recipe)) for name, run in runs.items()}
    assert list(answers) == [f"torch {how}/{name}" for how in ("eager", "compile") for name in ("fp32", "bf16")]
    single, half = answers["torch eager/fp32"][2], answers["torch eager/bf16"][2]
    assert half.dtype == np.float32
    assert 1e-4 < np.abs(single - half).mean() / np.abs(single).mean() < 0.1
    runs, skipped = torch_runs.torch_runs(manifest, recipe, "toy", None, 1, compiled=False)
    assert (list(runs), [item.name for item in skipped]) == (["torch eager/fp32"], ["torch compile/fp32"])
