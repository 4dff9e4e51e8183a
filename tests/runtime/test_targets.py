"""Targets in the manifest: what is read, what is refused, and what `verify` makes of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LinearBackend

from runtime.backends import ENGINES
from runtime.cli import main
from runtime.errors import BundleError
from runtime.golden import load_golden
from runtime.manifest import Manifest, load_bundle, read_manifest
from runtime.qualification import TARGET, Check, Subject, qualify, reached
from runtime.targets import BACKENDS, Target, read_targets, targets_to_json
from runtime.verification import NOT_QUALIFIED, QUALIFIED, TOO_SLOW, Result
from runtime.verify import set_targets

TARGETS = {("cpu", "fp32"): Target(50.0, 20.0), ("tensorrt-rtx", "fp16"): Target(p99_ms=8.0)}
SPEED = Check("speed", True, "", {"end_to_end_ms": {"p99": 40.0, "n": 12}, "end_to_end_frames_per_second": 25.0})


def verify(*arguments: object) -> int:
    return main(["verify", *map(str, arguments), "--time", "0.05", "--threads", "1", "--backend", "cpu"])


def faults_of(document: object) -> list[str]:
    faults: list[str] = []
    read_targets(document, "manifest.targets", faults)
    return faults


def test_targets_survive_writing_and_reading(fake_bundle: Path) -> None:
    manifest = replace(read_manifest(fake_bundle), targets=TARGETS)
    document = json.loads(manifest.to_json())
    assert document["targets"] == {
        "cpu": {"fp32": {"p99_ms": 50.0, "frames_per_s": 20.0}},
        "tensorrt-rtx": {"fp16": {"p99_ms": 8.0}},
    }
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert read_targets(targets_to_json(TARGETS), "", []) == TARGETS


def test_a_manifest_without_targets_is_written_as_before(fake_bundle: Path) -> None:
    manifest = read_manifest(fake_bundle)
    assert manifest.targets == {}
    assert "targets" not in json.loads(manifest.to_json())


def test_every_engine_can_have_a_target() -> None:
    assert set(BACKENDS) == set(ENGINES)


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], "manifest.targets must be an object"),
        ({"warp": {}}, "manifest.targets.warp is not known: choose of tensorrt,"),
        ({"cpu": 3}, "manifest.targets.cpu must be an object"),
        ({"cpu": {"fp8": {"p99_ms": 1}}}, "manifest.targets.cpu.fp8 is not known: choose of fp32,"),
        ({"cpu": {"fp32": {}}}, "manifest.targets.cpu.fp32 must hold p99_ms or frames_per_s"),
        ({"cpu": {"fp32": None}}, "manifest.targets.cpu.fp32 must be an object"),
        ({"cpu": {"fp32": {"p99_ms": 0}}}, "manifest.targets.cpu.fp32.p99_ms must lie in [0.001, 1e+06]"),
        ({"cpu": {"fp32": {"frames_per_s": "20"}}}, "frames_per_s must be a finite number"),
        ({"cpu": {"fp32": {"p99_ms": True}}}, "p99_ms must be a finite number"),
        ({"cpu": {"fp32": {"p50_ms": 1}}}, "manifest.targets.cpu.fp32.p50_ms is not known to this version"),
    ],
)
def test_faulty_targets_are_refused_by_name(document: object, fault: str) -> None:
    faults = faults_of(document)
    assert len(faults) == 1
    assert fault in faults[0]


@pytest.mark.parametrize("value", ["null", "7", '{"cpu": {"fp32": {"p99_ms": NaN}}}', '{"cpu": []}'])
def test_a_manifest_with_faulty_targets_is_not_read(fake_bundle: Path, value: str) -> None:
    text = (fake_bundle / "manifest.json").read_text()
    with pytest.raises(BundleError, match="targets"):
        Manifest.from_json(text.replace('"smoothing_px"', f'"targets": {value}, "smoothing_px"'))


def test_set_targets_changes_the_targets_alone(fake_bundle: Path) -> None:
    before = read_manifest(fake_bundle)
    set_targets(fake_bundle, [("cpu", "fp32", "p99_ms", 50.0), ("cpu", "fp32", "frames_per_s", 20.0)])
    assert read_manifest(fake_bundle) == replace(before, targets={("cpu", "fp32"): Target(50.0, 20.0)})
    set_targets(fake_bundle, [("cpu", "fp32", "p99_ms", None), ("cuda", "fp16", "p99_ms", 3.0)])
    expected = {("cpu", "fp32"): Target(frames_per_s=20.0), ("cuda", "fp16"): Target(3.0)}
    assert read_manifest(fake_bundle).targets == expected
    set_targets(fake_bundle, [("cpu", "fp32", "frames_per_s", None), ("cuda", "fp16", "p99_ms", None)])
    assert read_manifest(fake_bundle) == before


@pytest.mark.parametrize(
    ("target", "passed", "said"),
    [
        (Target(50.0), True, "p99 is 40 ms of 12 frames, the target 50 ms"),
        (Target(39.0), False, "p99 is 40 ms of 12 frames, the target 39 ms"),
        (Target(frames_per_s=25.0), True, "25 frames/s, the target 25"),
        (Target(50.0, 30.0), False, "25 frames/s, the target 30"),
        (Target(10.0, 30.0), False, "p99 is 40 ms of 12 frames, the target 10 ms; 25 frames/s, the target 30"),
    ],
)
def test_speed_is_compared_with_the_target(target: Target, passed: bool, said: str) -> None:
    found = reached(target, SPEED)
    assert (found.name, found.passed, found.said) == (TARGET, passed, said)


def test_a_speed_that_was_not_measured_misses_its_target() -> None:
    assert reached(Target(50.0), Check("speed", False, "told to fail")).passed is False


def test_the_verdict_names_a_slow_engine_apart_from_a_wrong_one() -> None:
    def result(*checks: Check) -> Result:
        return Result("cpu", "fp32", "model.onnx", "", "", checks)

    right, wrong, slow = Check("batch 1", True, ""), Check("batch 1", False, "off"), Check(TARGET, False, "40 ms")
    assert result(right).verdict == QUALIFIED
    assert result(right, slow).verdict == TOO_SLOW
    assert result(wrong, slow).verdict == NOT_QUALIFIED
    assert (result(right, slow).qualified, result(right, slow).faults) == (True, ())
    assert (result(right).target_met, result(right, slow).target_met) == (None, False)
    assert result().verdict is None


def test_an_engine_without_a_target_has_no_check_of_it(golden_bundle: Path) -> None:
    manifest, recipe = load_bundle(golden_bundle)
    backend = LinearBackend(manifest.encoder)
    backend.name, backend.precision = "cpu", "fp32"
    golden = load_golden(golden_bundle, manifest, recipe)
    subject = Subject.of(manifest, recipe, golden, backend, (1, 2))
    assert TARGET not in {check.name for check in qualify(subject, 0.01)}
    asked = replace(manifest, targets={("cpu", "fp32"): Target(1e-3)})
    checks = {check.name: check for check in qualify(Subject.of(asked, recipe, golden, backend, (1, 2)), 0.01)}
    assert checks[TARGET].passed is False


@pytest.mark.slow
def test_verify_ends_with_3_where_only_a_target_is_missed(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    file = tmp_path / "record.json"
    assert verify(bundle, "--set-target", "cpu:fp32:p99_ms=100000") == 0
    assert verify(bundle, "--set-target", "cpu:fp32:frames_per_s=9999999", "--json", file) == 3
    said = capsys.readouterr().out
    assert "cpu fp32  TOO SLOW" in said
    assert "TOO SLOW       cpu fp32: " in said
    assert "frames/s, the target 1e+07" in said
    record: dict[str, Any] = json.loads(file.read_text())
    assert (record["qualified"], record["targets_met"]) == (True, False)
    entry = record["backends"][0]
    assert (entry["verdict"], entry["qualified"], entry["target_met"]) == ("TOO SLOW", True, False)
    check = next(check for check in entry["checks"] if check["name"] == "target")
    assert check["figures"]["asked"] == {"p99_ms": 100000.0, "frames_per_s": 9999999.0}
    assert check["figures"]["missed"] == ["frames_per_s"]
    # The target stays with the bundle; one of an engine that does not run here decides nothing.
    assert verify(bundle) == 3
    arguments = ("--set-target", "cpu:fp32:frames_per_s=none", "--set-target", "cuda:fp16:p99_ms=0.001")
    capsys.readouterr()
    assert verify(bundle, *arguments, "--json", file, "--force") == 0
    assert "not measured   cuda fp16: its target" in capsys.readouterr().out
    assert json.loads(file.read_text())["targets_not_measured"] == ["cuda fp16"]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "cpu",
        "cpu:fp32",
        "cpu:fp32:p99_ms",
        "cpu:fp32:p99_ms=0",
        "cpu:fp32:p99_ms=nan",
        "cpu:fp32:p99_ms=inf",
        "cpu:fp32:p99_ms=3 ms",
        "cpu:fp32:p99_ms:1=3",
        "cpu:fp32:p50_ms=3",
        "cpu:fp8:p99_ms=3",
        "warp:fp32:p99_ms=3",
    ],
)
def test_a_target_that_is_none_is_refused(fake_bundle: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (fake_bundle / "manifest.json").read_bytes()
    with pytest.raises(SystemExit):
        verify(fake_bundle, "--set-target", wrong)
    assert "--set-target" in capsys.readouterr().err
    assert (fake_bundle / "manifest.json").read_bytes() == before


def test_a_target_of_an_engine_that_does_not_run_here_is_listed(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_targets(fake_bundle, [("tensorrt-rtx", "fp16", "frames_per_s", 2600.0)])
    assert main(["inspect", str(fake_bundle)]) == 0
    assert "target      tensorrt-rtx fp16: frames_per_s 2600" in capsys.readouterr().out
