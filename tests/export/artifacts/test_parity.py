"""export.artifacts.parity: what counts as agreement with torch, and that the toy bundle's artifacts agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.dataset import load_dataset
from export.artifacts.parity import (
    MAX_FRAMES,
    TOLERANCE,
    artifact_outputs,
    measure_parity,
    require_parity,
    spread,
    torch_outputs,
    worst_layers,
)
from export.errors import ParityError
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from runtime.backends import Outputs
from runtime.frames import prepare
from runtime.manifest import load_bundle
from runtime.recipe import TENSORS, FrameOptions

FRAMES, CLASSES = 6, 3


@pytest.fixture
def reference() -> Outputs:
    """Clear verdicts: 0.8, 0.15 and 0.05, the classes in turn."""
    probabilities = np.tile(np.array([0.8, 0.15, 0.05], np.float32), (FRAMES, 1))
    for row in range(FRAMES):
        probabilities[row] = np.roll(probabilities[row], row)
    rng = np.random.default_rng(0)
    return Outputs(
        probabilities, rng.random((FRAMES, 4, 4), dtype=np.float32), rng.random((FRAMES, 8), dtype=np.float32)
    )


def changed(outputs: Outputs, field: str, index: tuple[int, ...], value: float) -> Outputs:
    array = getattr(outputs, field).copy()
    array[index] = value
    return replace(outputs, **{field: array})


@pytest.mark.parametrize("precision", sorted(TOLERANCE))
def test_equal_outputs_pass(reference: Outputs, precision: str) -> None:
    report = measure_parity(reference, reference, precision, "some frames")
    assert report["passed"]
    assert report["max_abs_probability"] == report["max_abs_defect_map"] == report["max_abs_features"] == 0
    assert (report["frames"], report["labels_equal"], report["label_ties"]) == (FRAMES, FRAMES, 0)
    assert report["tolerance"] == TOLERANCE[precision]
    assert report["frame_source"] == "some frames"
    assert "torch" in report["reference"]
    require_parity("model.onnx", report)


@pytest.mark.parametrize("precision", sorted(TOLERANCE))
@pytest.mark.parametrize(("field", "figure"), [("probabilities", "probability"), ("defect_map", "defect_map")])
@pytest.mark.parametrize(("part", "passes"), [(0.5, True), (2.0, False)])
def test_one_value_beyond_the_tolerance_fails(
    reference: Outputs, precision: str, field: str, figure: str, part: float, passes: bool
) -> None:
    index = (2, 1) if field == "probabilities" else (2, 1, 3)
    difference = part * TOLERANCE[precision]
    off = changed(reference, field, index, getattr(reference, field)[index] + difference)
    report = measure_parity(reference, off, precision, "")
    assert report[f"max_abs_{figure}"] == pytest.approx(difference, rel=1e-2)
    assert report["passed"] is passes


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["probabilities", "defect_map"])
def test_values_that_are_not_finite_fail(reference: Outputs, field: str, bad: float) -> None:
    index = (0, 2) if field == "probabilities" else (0, 0, 0)
    report = measure_parity(reference, changed(reference, field, index, bad), "fp16", "")
    assert not report["passed"]
    with pytest.raises(ParityError, match=r"by up to inf\b"):
        require_parity("model.onnx", report)


def test_nan_on_both_sides_fails_too(reference: Outputs) -> None:
    broken = changed(reference, "defect_map", (0, 0, 0), float("nan"))
    assert not measure_parity(broken, broken, "fp16", "")["passed"]


@pytest.mark.parametrize(
    ("margin", "ties", "passes"),
    [
        (0.05, 1, True),  # of the tolerance; a tenth is a tie
        (0.5, 0, False),
    ],
)
def test_another_label_fails_except_on_a_tie(reference: Outputs, margin: float, ties: int, passes: bool) -> None:
    tolerance = TOLERANCE["fp16"]
    gap = margin * tolerance
    close = replace(reference, probabilities=reference.probabilities.copy())
    close.probabilities[0] = [0.45 + gap, 0.45, 0.1 - gap]
    flipped = replace(close, probabilities=close.probabilities.copy())
    flipped.probabilities[0] = [0.45, 0.45 + gap, 0.1 - gap]
    report = measure_parity(close, flipped, "fp16", "")
    assert report["max_abs_probability"] < tolerance
    assert (report["labels_equal"], report["label_ties"]) == (FRAMES - 1, ties)
    assert report["passed"] is passes


def test_a_failure_names_the_file_and_all_figures(reference: Outputs) -> None:
    off = changed(reference, "probabilities", (1, 0), 0.9)
    off = changed(off, "defect_map", (0, 0, 0), float(reference.defect_map[0, 0, 0]) + 0.25)
    with pytest.raises(ParityError) as caught:
        require_parity("model.fp16.onnx", measure_parity(reference, off, "fp16", ""))
    message = str(caught.value)
    for part in ("model.fp16.onnx", "6 frames", "8.50e-01", "2.50e-01", "allowed 1e-02", "5 labels are equal"):
        assert part in message


@pytest.mark.slow
def test_worst_layers_come_first_where_outputs_diverge(toy_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(toy_bundle / "model.onnx")
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in TENSORS}
    used = Counter(name for node in model.graph.node for name in node.input)
    node = next(
        n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights and used[n.input[1]] == 1
    )
    weight = weights[node.input[1]]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    frames = np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8)
    lines = worst_layers(toy_bundle / "model.onnx", tmp_path / "other.onnx", frames)
    assert lines[0].startswith(f"MatMul {node.output[0]} [")
    assert worst_layers(toy_bundle / "model.onnx", toy_bundle / "model.onnx", frames, 1)[0].endswith("error 0.0e+00")
    off = measure_parity(*(all_classes_at(x) for x in (0.0, 1.0)), "fp16", "")
    with pytest.raises(ParityError, match=r"nothing was written\nwhere the outputs diverge:\n  MatMul "):
        require_parity("model.fp16.onnx", off, lambda: lines)
    with pytest.raises(ParityError, match=r"nothing was written; do without\nwhere the outputs diverge:"):
        require_parity("model.fp16.onnx", off, lambda: lines, remedy="do without")


def all_classes_at(value: float) -> Outputs:
    return Outputs(np.full((2, 2), value, np.float32), np.zeros((2, 4, 4), np.float32), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("count", [0, 1, MAX_FRAMES, MAX_FRAMES + 1, 1000])
def test_spread_covers_the_whole_sequence(count: int) -> None:
    chosen = spread(range(count))
    assert len(chosen) == len(set(chosen)) == min(count, MAX_FRAMES)
    assert chosen == sorted(chosen)
    if count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_artifacts_of_the_toy_bundle_agree_with_torch(either_bundle: Path, toy_frames: Path, precision: str) -> None:
    """Measured again on frames that the parity check of the build did not choose, in odd batches."""
    manifest, recipe = load_bundle(either_bundle)
    (artifact,) = [artifact for artifact in manifest.artifacts if artifact.precision == precision]
    samples = load_dataset(toy_frames).samples[:19]
    frames = np.stack([prepare(s.read(FrameOptions()), manifest.encoder, recipe.frame, "") for s in samples])
    graph = SemClipGraph(load_model("toy", random_seed=0).encoder())
    reference = torch_outputs(graph, frames, recipe)
    report = measure_parity(
        reference, artifact_outputs(either_bundle, artifact, manifest.encoder, frames, recipe), precision, ""
    )
    assert report["passed"], report
    assert report["frames"] == 19
    assert report["max_abs_features"] <= TOLERANCE[precision]

    inverted = artifact_outputs(either_bundle, artifact, manifest.encoder, 255 - frames, recipe)
    assert not measure_parity(reference, inverted, precision, "")["passed"]


def test_manifest_holds_the_parity_reports(toy_bundle: Path) -> None:
    manifest, _ = load_bundle(toy_bundle)
    assert [artifact.precision for artifact in manifest.artifacts] == ["fp32", "fp16"]
    for artifact in manifest.artifacts:
        assert artifact.parity["passed"] is True
        assert artifact.parity["frames"] == 28
        assert 0 < artifact.parity["max_abs_probability"] <= TOLERANCE[artifact.precision]
