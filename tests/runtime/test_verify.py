"""`sem-clip verify` on bundles that were really exported, and what it prints and records."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LinearBackend

from runtime import Predictor
from runtime.backends import Outputs
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtCpuBackend
from runtime.cli import main
from runtime.errors import BackendUnavailable
from runtime.golden import load_golden
from runtime.manifest import Artifact, load_bundle, replace_recipe
from runtime.verification import lines
from runtime.verify import batches_of
from runtime.verify import verify as run_verify


def verify(*arguments: object) -> int:
    return main(["verify", *map(str, arguments), "--time", "0.05", "--threads", "1"])


def test_the_cpu_is_qualified_and_the_record_names_its_proof(
    either_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.json"
    assert verify(either_bundle, "--json", file) == 0
    said = capsys.readouterr().out
    assert re.search("^cpu fp32 +qualified", said, re.MULTILINE)
    record: dict[str, Any] = json.loads(file.read_text())
    manifest, recipe = load_bundle(either_bundle)
    assert record["qualified"] is True
    assert manifest.golden is not None
    assert record["bundle"]["golden_sha256"] == manifest.golden.sha256
    assert record["bundle"]["recipe_sha256"] == manifest.recipe_sha256
    by_backend = {(entry["backend"], entry["precision"]): entry for entry in record["backends"]}
    cpu = by_backend["cpu", "fp32"]
    assert cpu["artifact_sha256"] == next(a.sha256 for a in manifest.artifacts if a.precision == "fp32")
    checks = {check["name"]: check for check in cpu["checks"]}
    for name in ("host", "batch 1", "batch 2", "batch 8", "verdicts", "repeats", "recipe swap", "one class more"):
        assert checks[name]["passed"] is True, name
    assert checks["batch 8"]["figures"]["max_abs_probability"] < 1e-4
    assert set(checks["speed"]["figures"]["end_to_end_ms"]) == {"p50", "p95", "p99", "n"}
    assert {"python", "numpy", "sem-clip", "onnxruntime"} <= set(record["versions"])
    assert record["machine"]["cores"] >= 1
    assert all(entry["why_not_run"] for entry in by_backend.values() if not entry["checks"])
    golden = load_golden(either_bundle, manifest, recipe)
    assert 16 <= len(golden.frames) <= 32
    assert {"flat", "saturated", *recipe.classes} == set(golden.about)
    assert (either_bundle / "golden.safetensors").stat().st_size < 2e6


@pytest.mark.slow
def test_patterns_prove_an_engine_without_pictures_and_the_command_warns_that_they_prove_less(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from calibration.dataset import load_dataset
    from export.artifacts.golden import pattern_frames
    from export.model.checkpoint import load_model
    from export.model.graph import SemClipGraph
    from export.progress import Stages
    from export.teach import build_bundle, parity_samples

    model, recipe = load_model("toy", random_seed=0), load_bundle(toy_bundle)[1]
    samples, out = parity_samples(load_dataset(toy_frames), recipe), tmp_path / "bundle"
    build_bundle(model, SemClipGraph(model.encoder()), recipe, samples, out, Stages(), fp16=False, golden="patterns")
    manifest, _ = load_bundle(out)
    golden = load_golden(out, manifest, recipe)
    made, names = pattern_frames(manifest.encoder.input_size)
    assert golden.about == names
    np.testing.assert_array_equal(golden.frames, made)
    assert verify(out) == 0
    assert "made-up patterns" in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0
    assert "16 frames (made-up patterns)" in capsys.readouterr().out


def test_a_predictor_with_check_opens_the_toy_bundle(toy_bundle: Path, toy_frames: Path) -> None:
    frame = next(toy_frames.rglob("*.png"))
    with Predictor(toy_bundle, backend="cpu", check=True) as predictor:
        assert predictor(frame).ok


def test_a_recalibrated_bundle_is_still_verified(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    recipe = load_bundle(bundle)[1]
    replace_recipe(bundle, replace(recipe, operating_point=replace(recipe.operating_point, defect_threshold=0.9)))
    assert verify(bundle) == 0
    assert "cpu fp32: host: verdicts are not compared: the recipe's thresholds have changed" in capsys.readouterr().out


def test_a_wrong_engine_fails_the_command(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = OrtCpuBackend.run

    def shifted(self: OrtCpuBackend, frames: Any, recipe: Any) -> Outputs:
        found = run(self, frames, recipe)
        return replace(found, defect_map=np.roll(found.defect_map, 1, axis=2))

    monkeypatch.setattr(OrtCpuBackend, "run", shifted)
    file = tmp_path / "record.json"
    assert verify(toy_bundle, "--backend", "cpu", "--json", file) == 1
    said = capsys.readouterr().out
    assert "NOT QUALIFIED  cpu fp32: batch 8: the map is shifted by 0 patches down and 1 to the right" in said
    record = json.loads(file.read_text())
    assert record["qualified"] is False
    assert record["backends"][0]["qualified"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "cuda"], "cuda"),
        (["--precision", "int8", "--backend", "cpu"], "holds no int8 ONNX artifact"),
    ],
)
def test_a_named_engine_that_cannot_run_is_an_error(
    toy_bundle: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(toy_bundle, *arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--backend", "warp"], ["--time", "0"], ["--time", "nan"], ["--precision", "fp4"]])
def test_wrong_arguments_are_refused(toy_bundle: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", str(toy_bundle), *wrong])


def test_bundles_without_golden_frames_are_an_error(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(fake_bundle) == 2
    assert "has no golden frames" in capsys.readouterr().err


def test_an_artifact_that_cannot_be_opened_is_not_qualified(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(golden_bundle, "--backend", "cpu") == 1
    assert "NOT QUALIFIED  cpu fp32: open:" in capsys.readouterr().out


def test_an_existing_record_is_not_replaced_without_force(golden_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text("mine")
    assert verify(golden_bundle, "--json", file) == 2
    assert file.read_text() == "mine"


def test_a_record_that_cannot_be_written_does_not_cost_the_table(
    toy_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert verify(toy_bundle, "--backend", "cpu", "--json", "/dev/full") == 2
    said = capfd.readouterr()
    assert re.search("^cpu fp32 +qualified", said.out, re.MULTILINE)
    assert "/dev/full: No space left on device" in said.err


def test_an_engine_that_was_asked_for_and_cannot_run_is_refused_before_the_others_run(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.verify._result", lambda *_: pytest.fail("an engine was run"))
    with pytest.raises(BackendUnavailable, match="cuda"):
        run_verify(toy_bundle, ["cpu", "cuda"], seconds=1)


@pytest.mark.parametrize("asked", [None, "bf16"])
def test_what_the_processor_cannot_compute_fails_only_where_it_was_asked_for(
    toy_bundle: Path, asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")

    def absent(backend: OpenVinoBackend, module: object) -> None:
        raise BackendUnavailable("no instructions for bf16")

    monkeypatch.setattr(OpenVinoBackend, "_require_bf16", absent)
    if asked:
        with pytest.raises(BackendUnavailable, match="no instructions for bf16"):
            run_verify(toy_bundle, ["openvino"], asked, seconds=0.05, threads=1)
        return
    report = run_verify(toy_bundle, ["openvino"], seconds=0.05, threads=1)
    assert report["qualified"] is True
    assert {entry["precision"]: entry["why_not_run"] for entry in report["backends"]} == {
        "fp32": "",
        "bf16": "no instructions for bf16",
    }


def test_openvino_is_qualified_in_every_precision_it_has_here(toy_bundle: Path) -> None:
    pytest.importorskip("openvino")
    report = run_verify(toy_bundle, ["openvino"], seconds=0.05, threads=2)
    assert report["qualified"] is True
    ran = {entry["precision"]: entry for entry in report["backends"] if entry["checks"]}
    assert {"fp32"} <= set(ran) <= {"fp32", "bf16"}
    assert ran["fp32"]["share_of_peak"] > 0
    assert report["versions"]["openvino"]


def test_the_share_of_the_peak_is_of_this_hosts_matrix_products(toy_bundle: Path) -> None:
    report = run_verify(toy_bundle, ["cpu"], seconds=0.05, threads=1)
    entry, peak = report["backends"][0], report["peak"]
    assert peak["threads"] == 1
    assert peak["library"] == f"numpy {np.__version__}"
    rate = next(check["figures"] for check in entry["checks"] if check["name"] == "speed")["engine_frames_per_second"]
    share = rate * report["golden"]["gflop_per_frame"] / peak["gflops"]
    assert entry["share_of_peak"] == pytest.approx(share)
    assert share > 0
    assert f"{share:.0%}" in "\n".join(lines(report))


def test_a_peak_that_cannot_be_measured_costs_its_column_alone(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    report = run_verify(toy_bundle, ["cpu"], seconds=0.05, threads=1)
    assert report["qualified"] is True
    assert report["peak"]["gflops"] is None
    assert report["peak"]["why_not"] == "the measurement failed (FileNotFoundError)"
    assert report["backends"][0]["share_of_peak"] is None


def test_equal_reasons_not_to_run_share_a_line(toy_bundle: Path) -> None:
    report = run_verify(toy_bundle, ["cpu"], seconds=0.05, threads=1)
    idle = {**report["backends"][0], "checks": [], "why_not_run": "there is no GPU"}
    report["backends"] += [{**idle, "backend": "cuda", "precision": precision} for precision in ("fp16", "fp32")]
    report["backends"].append({**idle, "backend": "tensorrt", "precision": "fp16", "why_not_run": "not installed"})
    assert lines(report)[-2:] == [
        "not run        cuda fp16, cuda fp32: there is no GPU",
        "not run        tensorrt fp16: not installed",
    ]


def test_engines_run_every_power_of_two_of_their_profile() -> None:
    plan = Artifact("a.plan", "engine", "fp16", "0" * 64, 1, {}, {}, {"batch": [1, 8, 24]})
    onnx = replace(plan, kind="onnx", target={})
    assert batches_of("tensorrt-rtx", plan, 24) == (1, 2, 4, 8, 16, 24)
    assert batches_of("cpu", onnx, 64) == (1, 2, 8)
    assert batches_of("cuda", onnx, 256) == (1, 2, 8, 32)
    assert batches_of("linear", onnx, 4) == (1, 2)
    assert LinearBackend.max_batch == 8
