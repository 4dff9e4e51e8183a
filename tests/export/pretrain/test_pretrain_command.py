"""`python -m export.pretrain`: options, schedules, and the end of a training that fails."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from export.errors import ExportError
from export.pretrain.command import Pretrain
from export.pretrain.schedule import Phase, PretrainSettings, parse_phases


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "1"], "0 to below 1"),
        (["--leave-stem"], "name them: --start FILE"),
        (["--replay", "0.8"], r"0 to 0\.75, the rest of a batch is new"),
        (["--keep", "0.5"], r"name them: --start FILE\.safetensors"),
        (["--keep", "0.5", "--start", "checkpoint.pt"], r"name them: --start FILE\.safetensors"),
    ],
)
def test_invalid_fractions_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    command = Pretrain()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ExportError, match=message):
        command.run(parser.parse_args(["--out", str(tmp_path / "out"), *options]))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(tmp_path: Path) -> None:
    command = Pretrain()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ExportError, match="sees no GPU"):
        command.run(parser.parse_args(["--out", str(tmp_path), "--device", "cuda"]))


def test_bfloat16_is_refused_without_instructions_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True})
    command = Pretrain()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ExportError, match=r"no instructions for bfloat16.*leave it out"):
        command.run(parser.parse_args(["--out", str(tmp_path / "out"), "--bf16"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learning-rate", "-1"], "--learning-rate -1 --decay 0.3 cannot be"),
        (["--decay", "5"], "--decay 5 cannot be"),
        (["--device", "foo"], "--device foo is not known"),
        (["--schedule", "6:4:10"], "the batch is a multiple of that"),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    command, parser = Pretrain(), argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ExportError, match=message):
        command.run(parser.parse_args(["--out", str(tmp_path / "out"), *options]))
    assert not (tmp_path / "out").exists()


FAILING = """
import argparse
import sys
from export.pretrain import command, training
from export.pretrain.windows import WindowStream
from runtime.cli import run


class Failing(WindowStream):
    def make(self, number):
        raise RuntimeError("no frame fits")


if __name__ == "__main__":
    training.WindowStream = Failing
    pretrain, parser = command.Pretrain(), argparse.ArgumentParser()
    pretrain.add_arguments(parser)
    sys.exit(run(pretrain, parser.parse_args(sys.argv[1:])))
"""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_a_failing_generator_ends_the_training_and_its_workers(workers: int, tmp_path: Path) -> None:
    """A worker that outlives its trainer would keep the program running."""
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    words = [sys.executable, str(script), "--out", str(tmp_path / "out"), "--schedule", "2:3:4", "--threads", "1"]
    done = subprocess.run([*words, "--workers", str(workers)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "error: frames cannot be made: " in done.stderr
    assert "no frame fits" in done.stderr


@pytest.mark.parametrize(
    "text", ["", "6:96", "6:96:x", "16:8:10", "6:0:10", "1:8:10", "stem:6:96", "stem", "trunk:6:9:1"]
)
def test_invalid_schedules_are_refused(text: str) -> None:
    with pytest.raises(ExportError, match=r"schedule|cannot be"):
        parse_phases(text)


def test_schedule_names_phases_of_the_stem(tmp_path: Path) -> None:
    assert parse_phases("stem:15:32:10,6:96:20") == (Phase(15, 32, 10, stem=True), Phase(6, 96, 20))


def test_rate_warms_up_stays_and_falls_to_zero() -> None:
    plan = PretrainSettings((Phase(3, 7, 60), Phase(4, 7, 40)), warm_up=10, decay=0.3)
    assert (plan.steps, plan.fall_begins) == (100, 70)
    assert plan.rate_at(0) == pytest.approx(0.1)
    assert plan.rate_at(30) == plan.rate_at(70) == 1
    assert plan.rate_at(99) == pytest.approx(1 / 30)
    assert plan.phase_at(59) == (Phase(3, 7, 60), 1)
    assert plan.phase_at(60) == (Phase(4, 7, 40), 40)
