"""8-bit export (matmuls, observe, to_int8) and `sem-clip quantize`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export.artifacts import matmuls, observe, quantize, to_int8
from export.artifacts.round_weights import round_weight
from runtime import FrameError, Predictor, SemClipError
from runtime.cli import main
from runtime.manifest import load_bundle
from runtime.recipe import TENSORS

LOOSELY = ("--agreement", "0.5")
"""With a random encoder and a dozen frames, single labels depend on the rounding of the machine."""


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def frames(toy_frames: Path, toy_bundle: Path) -> np.ndarray:
    manifest, recipe = load_bundle(toy_bundle)
    paths = sorted((toy_frames / "images").rglob("*.png"))
    return quantize._read(paths, manifest, recipe)


@pytest.fixture
def many_frames(toy_frames: Path, tmp_path: Path) -> Path:
    """24 different frames: the toy set in several brightnesses."""
    folder = tmp_path / "frames"
    folder.mkdir()
    paths = sorted((toy_frames / "images").rglob("*.png"))
    for index in range(24):
        grey = np.asarray(Image.open(paths[index % len(paths)])).astype(np.float32)
        Image.fromarray(np.clip(grey + 4 * index, 0, 255).astype(np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def test_find_matmuls_returns_those_of_the_encoder_alone(either_bundle: Path) -> None:
    model = onnx.load(either_bundle / "model.onnx")
    value_path = load_bundle(either_bundle)[0].encoder.value_path
    found = matmuls.find_matmuls(model)
    titles = [matmul.title for matmul in found]
    for layer in range(4):
        for part in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
            assert f"blocks.{layer}.{part}" in titles
    assert sorted(titles) == sorted({*titles})
    assert len(titles) == 4 * 4 + value_path, "the projection to the text space is there for the V path only"
    assert not {matmul.name for matmul in found} & {*TENSORS, matmuls.PATCH_WEIGHT}
    for matmul in found:  # out_proj serves both paths, the projection both paths of every level
        shared = {"out_proj": 1 + value_path, "proj": 8}.get(matmul.title.rsplit(".", 1)[1], 1)
        assert len(matmul.nodes) == shared, matmul.title


def test_balance_keeps_outputs_and_evens_out_channels(either_bundle: Path, frames: np.ndarray) -> None:
    recipe = load_bundle(either_bundle)[1]
    model = onnx.load(either_bundle / "model.onnx")
    before = observe.run(model, frames, recipe)
    found = matmuls.find_matmuls(model)
    maxima = observe.channel_maxima(model, found, frames)
    matmuls.balance(model, found, maxima)
    after = observe.run(model, frames, recipe)
    for name in ("probabilities", "defect_map", "features"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=2e-5)
    evened = observe.channel_maxima(model, matmuls.find_matmuls(model), frames)
    spread = {name: np.median(peaks.max() / np.maximum(peaks, 1e-6)) for name, peaks in maxima.items()}
    assert np.mean([np.median(p.max() / np.maximum(p, 1e-6)) < spread[n] for n, p in evened.items()]) > 0.8


def test_quantized_stores_weights_as_the_rounded_levels(toy_bundle: Path) -> None:
    model = onnx.load(toy_bundle / "model.onnx")
    (matmul, *_) = matmuls.find_matmuls(model)
    rounded = round_weight(matmul.weight, np.eye(len(matmul.weight), dtype=np.float32), to_int8.CPU.weight_limit)
    ranges = dict.fromkeys(_inputs(model, matmul), (-1.0, 1.0))
    result = to_int8.quantized(model, [matmul], to_int8.Quantization({matmul.name: rounded}, ranges))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    levels, scale = constants[f"{matmul.name}_q"], constants[f"{matmul.name}_scale"]
    assert levels.dtype == np.int8
    assert 2 * 255 * int(np.abs(levels).max()) < 2**15, "or CPUs without VNNI saturate"
    assert (np.abs(levels * scale - matmul.weight) <= scale / 2 + 1e-7).all()
    assert matmul.name not in constants


def test_input_statistics_equal_those_of_the_observed_inputs(dual_bundle: Path, frames: np.ndarray) -> None:
    """One MatMul weight with two nodes; its statistics are computed by hand."""
    model = onnx.load(dual_bundle / "model.onnx")
    matmul = next(matmul for matmul in matmuls.find_matmuls(model) if len(matmul.nodes) == 2)
    ranges, moments = observe.input_statistics(model, [matmul], frames)
    rows = [
        values[name].reshape(-1, len(matmul.weight))
        for name in _inputs(model, matmul)
        for values in observe.observe(model, [name], frames)
    ]
    together = np.concatenate(rows)
    np.testing.assert_allclose(moments[matmul.name], together.T @ together, rtol=1e-3, atol=1e-3)
    assert min(low for low, _ in ranges.values()) == pytest.approx(min(0.0, together.min()))
    assert max(high for _, high in ranges.values()) == pytest.approx(together.max())


def _inputs(model: onnx.ModelProto, matmul: matmuls.MatMul) -> list[str]:
    return [node.input[0] for node in model.graph.node if node.name in matmul.nodes]


def test_the_most_sensitive_matmul_per_cost_is_left_out_first(
    toy_bundle: Path, frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MatMul with ruined ranges has the largest sensitivity and stays in fp32."""
    recipe = load_bundle(toy_bundle)[1]
    ruined = "blocks.1.mlp.c_fc"
    real = to_int8.quantized

    def quantized(
        model: onnx.ModelProto, found: Sequence[matmuls.MatMul], quantization: to_int8.Quantization
    ) -> onnx.ModelProto:
        narrow = dict(quantization.ranges)
        for matmul in found:
            if matmul.title == ruined:
                narrow.update(dict.fromkeys(_inputs(model, matmul), (0.0, 1e-3)))
        return real(model, found, replace(quantization, ranges=narrow))

    monkeypatch.setattr(to_int8, "quantized", quantized)
    report = to_int8.int8_from_onnx(
        toy_bundle / "model.onnx", frames, recipe, tmp_path / "a.onnx", agreement=1.0, max_drift=0.01
    )
    assert max(report.sensitivity, key=report.sensitivity.__getitem__) == ruined
    if report.left_out:
        assert report.left_out[0] == ruined
    assert set(report.quantized) | set(report.left_out) == set(report.sensitivity)
    assert report.labels_equal == 1.0


def test_matmuls_stay_in_fp32_until_feature_drift_is_below_the_limit(
    toy_bundle: Path, frames: np.ndarray, tmp_path: Path
) -> None:
    """Label agreement alone is not enough: the labels of the toy recipe hold in any case."""
    recipe = load_bundle(toy_bundle)[1]

    def report(max_drift: float) -> to_int8.Int8Report:
        file = tmp_path / f"{max_drift}.onnx"
        return to_int8.int8_from_onnx(
            toy_bundle / "model.onnx", frames, recipe, file, agreement=0.5, max_drift=max_drift
        )

    everything = report(1.0)
    assert everything.left_out == ()
    asked = 0.6 * everything.feature_drift
    some = report(asked)
    assert some.left_out
    assert some.quantized
    assert some.feature_drift <= asked
    outputs = [
        observe.run(onnx.load(file), frames, recipe) for file in (toy_bundle / "model.onnx", tmp_path / f"{asked}.onnx")
    ]
    found = to_int8.feature_drift(outputs[0].features, outputs[1].features)
    assert found == pytest.approx(some.feature_drift, rel=1e-3)


def test_quantize_adds_an_artifact_and_leaves_the_others_alone(
    bundle: Path, many_frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert main(["quantize", str(bundle), str(many_frames), "--frames", "8", *LOOSELY]) == 0
    output = capsys.readouterr().out
    assert "labels equal" in output
    assert "--precision int8" in output
    for name in before.keys() - {"manifest.json"}:
        assert (bundle / name).read_bytes() == before[name]
    manifest, _ = load_bundle(bundle, verify_all=True)
    (artifact,) = (a for a in manifest.artifacts if a.precision == "int8")
    assert artifact.operators["QuantizeLinear"] > 0
    assert artifact.operators["Attention"] == 4  # the toy's text is not aligned, so there is no V path
    assert artifact.parity["frames"] == 16
    assert set(artifact.parity["left_out"]) <= set(artifact.parity["harm"])
    with (
        Predictor(bundle, precision="int8", threads=1) as eight,
        Predictor(bundle, threads=1) as whole,
    ):
        assert "int8" in eight.backend.description
        paths = sorted(many_frames.iterdir())
        one_by_one = [eight(path) for path in paths[:4]]
        for a, b, c in zip(eight.predict(paths[:4]), whole.predict(paths[:4]), one_by_one, strict=True):
            assert np.abs(a.patch_map - b.patch_map).max() < 0.2
            assert not np.array_equal(a.features, b.features), "8 bits are not fp32"
            np.testing.assert_allclose(a.features, c.features, atol=1e-6)  # whatever the batch


def test_quantize_for_tensorrt_uses_no_zero_points_and_keeps_the_rest_in_fp16(
    bundle: Path, many_frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(bundle), str(many_frames), "--frames", "8", "--for", "tensorrt", *LOOSELY]) == 0
    assert "build-engine" in capsys.readouterr().out
    manifest, _ = load_bundle(bundle, verify_all=True)
    (artifact,) = (a for a in manifest.artifacts if a.precision == "int8")
    assert (artifact.file, artifact.target) == ("model.int8-tensorrt.onnx", {"engine": "tensorrt"})
    assert artifact.parity["others"] == "fp16"
    model = onnx.load(bundle / artifact.file)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        scale, zero = (constants[name] for name in node.input[1:])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == np.float16
        assert scale.all()
    levels = [value for name, value in constants.items() if name.endswith("_q")]
    assert max(int(np.abs(value).max()) for value in levels) == 127
    halves = onnx.load(bundle / "model.fp16.onnx")
    assert sum(n.op_type == "MatMul" for n in model.graph.node) == sum(n.op_type == "MatMul" for n in halves.graph.node)
    with pytest.raises(SemClipError, match="holds no int8 ONNX artifact"):
        Predictor(bundle, precision="int8")


def test_an_fp16_file_of_another_encoder_is_refused(dual_bundle: Path, frames: np.ndarray, tmp_path: Path) -> None:
    model = onnx.load(dual_bundle / "model.fp16.onnx")
    twice = next(matmul for matmul in matmuls.find_matmuls(model) if len(matmul.nodes) == 2)
    model.graph.initializer.append(onnx.numpy_helper.from_array(twice.weight, "another"))
    next(node for node in model.graph.node if node.name == twice.nodes[1]).input[1] = "another"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(SemClipError, match="not of one encoder"):
        to_int8.int8_from_onnx(
            dual_bundle / "model.onnx",
            frames[:8],
            load_bundle(dual_bundle)[1],
            tmp_path / "out.onnx",
            agreement=0.97,
            max_drift=0.01,
            scheme=to_int8.TENSORRT,
            half=tmp_path / "other.onnx",
        )
    assert not (tmp_path / "out.onnx").exists()


def test_quantizing_again_needs_force(bundle: Path, many_frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(bundle), str(many_frames), "--frames", "8", *LOOSELY]) == 0
    first = (bundle / "manifest.json").read_text()
    assert main(["quantize", str(bundle), str(many_frames), "--frames", "8"]) == 2
    assert "add --force" in capsys.readouterr().err
    assert (bundle / "manifest.json").read_text() == first
    assert main(["quantize", str(bundle), str(many_frames), "--frames", "12", "--force", *LOOSELY]) == 0
    assert sum(a["precision"] == "int8" for a in json.loads((bundle / "manifest.json").read_text())["artifacts"]) == 1
    load_bundle(bundle, verify_all=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--frames", "3"], "ranges need at least 8 frames"),
        (["--agreement", "2"], "it is a share in [0.5, 1]"),
        (["--change", "0"], "--change is 0; it is a share of the features' mean size, above 0"),
        (["--change", "nan"], "--change is nan"),
        (["few"], "2 frames; at least 16 are needed"),
        (["absent"], "is not a folder of frames"),
        (["damaged"], "is not a readable"),
    ],
)
def test_bad_input_gives_one_message_and_leaves_the_bundle_unchanged(
    bundle: Path, many_frames: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    if options == ["few"]:
        for path in sorted(many_frames.iterdir())[2:]:
            path.unlink()
    elif options == ["absent"]:
        shutil.rmtree(many_frames)
    elif options == ["damaged"]:
        (many_frames / "05.png").write_bytes(b"no frame")
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    extra = options if options[0].startswith("--") else []
    assert main(["quantize", str(bundle), str(many_frames), *extra]) == 2
    stderr = capsys.readouterr().err
    assert says in stderr
    assert "Traceback" not in stderr
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_low_label_agreement_on_other_frames_fails(
    bundle: Path, many_frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = quantize._parity
    monkeypatch.setattr(quantize, "_parity", lambda *what: {**measure(*what), "labels_equal": 13})
    before = (bundle / "manifest.json").read_bytes()
    paths = sorted(many_frames.iterdir())
    says = r"label of fp32 on 13 of 16 frames it was not fitted on, less than --agreement 0\.9: .*nothing was written"
    with pytest.raises(SemClipError, match=says):
        quantize.add_int8(bundle, paths, calibration_frames=8, agreement=0.9)
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_file_of_another_kind_is_refused(toy_bundle: Path, frames: np.ndarray, tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, [None, 4, 4])
    node = onnx.helper.make_node("Identity", ["frames"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [None, 4, 4])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), tmp_path / "other.onnx")
    with pytest.raises(SemClipError, match="not an exported encoder"):
        to_int8.int8_from_onnx(
            tmp_path / "other.onnx",
            frames,
            load_bundle(toy_bundle)[1],
            tmp_path / "out.onnx",
            agreement=0.97,
            max_drift=0.01,
        )
    assert not (tmp_path / "out.onnx").exists()


def test_frame_files_are_those_that_predict_takes(many_frames: Path) -> None:
    whole = sorted(many_frames.iterdir())
    for name in (".snapshot/00.png", "ground_truth/00_mask.png", "00_mask.png"):
        (many_frames / name).parent.mkdir(exist_ok=True)
        shutil.copy(whole[0], many_frames / name)
    assert quantize._frame_files(many_frames, 24) == whole
    (many_frames / "24.png").symlink_to("/nowhere/there")
    with pytest.raises(FrameError, match=r"24\.png: is a link that leads to no file"):
        quantize._frame_files(many_frames, 24)
