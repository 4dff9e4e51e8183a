"""benchmarks.speed.trunk: the encoder with and without the V path, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.speed.trunk import DUAL, VANILLA, export_trunks, value_path_cost
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph


@pytest.fixture(scope="module")
def graph() -> SemClipGraph:
    return SemClipGraph(load_model("toy", random_seed=0).encoder())


@pytest.mark.slow
def test_without_the_v_path_it_is_the_tower_alone(graph: SemClipGraph, tmp_path: Path) -> None:
    files = export_trunks(graph, tmp_path)
    counts = {name: [n.op_type for n in onnx.load(file).graph.node].count("Attention") for name, file in files.items()}
    layers = len(graph.encoder.blocks)
    assert counts == {VANILLA: layers, DUAL: 2 * layers}
    frames = np.random.default_rng(0).integers(0, 256, (3, *graph.input_size), np.uint8)
    session = onnxruntime.InferenceSession(str(files[VANILLA]), providers=["CPUExecutionProvider"])
    expected = graph.encode(torch.from_numpy(frames)).cls[-1]
    np.testing.assert_allclose(session.run(None, {"frames": frames})[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_cost_is_a_ratio_for_every_batch_size(graph: SemClipGraph, tmp_path: Path) -> None:
    frames = np.zeros((4, *graph.input_size), np.uint8)
    files = export_trunks(graph, tmp_path)
    rows = value_path_cost(
        files, "CPUExecutionProvider", frames, (1, 4), count=lambda batch: 4 // batch, rounds=2, in_flight=2
    )
    assert [row["batch"] for row in rows] == [1, 4]
    for row in rows:
        assert row[f"{DUAL} frames_per_second"] > 0
        assert row["times_vanilla"] > 0
