"""`sem-clip benchmark`: its files, and its refusals before measuring."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from places import ROOT

from benchmarks.commands import Benchmark
from benchmarks.speed import suite
from benchmarks.speed.frames import write_frames
from runtime.cli import describe, run

Capture = pytest.CaptureFixture[str]


def benchmark(*arguments: object) -> int:
    command = Benchmark()
    parser = describe(argparse.ArgumentParser(prog="sem-clip benchmark"), command)
    command.add_arguments(parser)
    return run(command, parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def quick(fake_bundle: Path, tmp_path: Path) -> list[object]:
    """Arguments of the shortest run."""
    write_frames(tmp_path / "frames", 2, (64, 64))
    return [fake_bundle, "--backend", "fake", "--sections", "split", "--rounds", 1, "--frames", tmp_path / "frames"]


def test_benchmark_prints_markdown_and_writes_json_markdown_and_charts(
    quick: list[object], tmp_path: Path, capsys: Capture
) -> None:
    assert benchmark(*quick, "--out", tmp_path / "new" / "out") == 0
    out = capsys.readouterr().out
    folder = tmp_path / "new" / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "result.md", "split.png"]
    assert out.rstrip() == (folder / "result.md").read_text().rstrip()
    report = json.loads((folder / "result.json").read_text())
    assert report["format"] == "sem-clip-benchmark"
    assert list(report["sections"]) == ["split"]
    assert report["settings"]["rounds"] == 1
    assert (folder / "split.png").read_bytes().startswith(b"\x89PNG")


def test_without_out_benchmark_only_prints(quick: list[object], tmp_path: Path, capsys: Capture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert benchmark(*quick) == 0
    assert capsys.readouterr().out.startswith("# Benchmark of bundle\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_earlier_result_is_replaced_only_by_force(quick: list[object], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "result.json").write_text("old")
    assert benchmark(*quick, "--out", tmp_path, "--no-charts") == 2
    assert "result.json exists; add --force" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_text() == "old"
    assert benchmark(*quick, "--out", tmp_path, "--no-charts", "--force") == 0
    assert json.loads((tmp_path / "result.json").read_text())["version"] == 1


def test_nothing_is_written_if_a_section_fails(
    quick: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> object:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(suite, "_SECTIONS", {"split": fail})
    with pytest.raises(RuntimeError):
        benchmark(*quick, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_charts_without_matplotlib_are_refused_before_measuring(
    quick: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("benchmarks.commands.find_spec", lambda name: None)
    assert benchmark(*quick, "--out", tmp_path / "out") == 2
    assert 'pip install "sem-clip[plots]", or add --no-charts' in capsys.readouterr().err
    assert benchmark(*quick, "--out", tmp_path / "out", "--no-charts") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["result.json", "result.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1,zero"], "is not a list of batch sizes"),
        (["--batch", "0"], "is not a list of batch sizes"),
        (["--batch", ""], "is not a list of batch sizes"),
        (["--batch", "9999"], "is not a list of batch sizes"),
        (["--backend", "cpu,,fake"], 'there is no backend ""'),
        (["--backend", "warp"], 'there is no backend "warp"; choose from auto, '),
        (["--sections", "latency,speed"], 'there is no section "speed"; choose from latency, '),
        (["--rounds", "0"], "must be at least 1"),
        (["--soak", "never"], "is not a number of minutes"),
        (["--soak", "-1"], "is not a number of minutes"),
    ],
)
def test_a_malformed_list_is_refused(arguments: list[str], message: str, fake_bundle: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark(fake_bundle, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp16"], "holds no fp16"),
        (["--weights", "w.safetensors"], "belong to --arch"),
        (["--random-weights"], "belong to --arch"),
        (["--arch", "toy"], "needs either --weights FILE"),
        (["--arch", "toy", "--weights", "w", "--random-weights"], "needs either --weights FILE"),
        (["--out", "FILE"], "is a file, so nothing can be written below it"),
    ],
)
def test_an_impossible_measurement_is_refused_in_one_line(
    arguments: list[str], message: str, fake_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "FILE").touch()
    assert benchmark(fake_bundle, *(str(tmp_path / "FILE") if a == "FILE" else a for a in arguments)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err


def test_a_missing_bundle_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert benchmark(tmp_path / "absent", "--out", tmp_path / "out") == 2
    assert "is not a bundle folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_child_is_reported_with_its_last_line() -> None:
    from benchmarks.speed.child import run_child
    from runtime import PredictorError

    with pytest.raises(PredictorError, match=r"no_such.*status 1: .*no_such"):
        run_child("benchmarks.memory:no_such", {})


def test_the_command_loads_neither_torch_nor_an_engine() -> None:
    import subprocess

    code = (
        "import sys, benchmarks.commands\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
