"""The `sem-clip` program: its help, its commands, and its exit statuses."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from importlib import metadata
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from commandline import three_frames
from places import ROOT

from runtime import SemClipError, cli
from runtime.cli import EXIT_STATUS, NO_MEMORY, SHELLS, main, run
from runtime.options import add_engine_arguments

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames, the second a defect."""
    return three_frames(tmp_path / "frames")


def test_the_program_runs_as_a_module(fake_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", "inspect", str(fake_bundle)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe.safetensors: good, bridge, hole" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["predict"],
        ["predict", "bundle"],
        ["predict", "bundle", "x.png", "--batch-size", "0"],
        ["predict", "bundle", "x.png", "--batch-size", "many"],
        ["predict", "bundle", "x.png", "--threads", "-1"],
        ["predict", "bundle", "x.png", "--backend", "tpu"],
        ["predict", "bundle", "x.png", "--precision", "fp8"],
        ["inspect"],
    ],
)
def test_wrong_arguments_are_explained_with_status_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: sem-clip")
    assert "error: " in err


COMMANDS = (
    *("inspect", "predict", "verify", "teach", "build", "build-engine", "quantize", "calibrate", "operating-point"),
    *("evaluate", "benchmark"),
)


def options_of(command: str) -> list[argparse.Action]:
    """What the command declares, without --help and options that were removed."""
    (point,) = entry_points(group="sem_clip.commands", name=command)
    parser = argparse.ArgumentParser(add_help=False)
    point.load()().add_arguments(parser)
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def test_all_commands_are_registered() -> None:
    names = {point.name for point in entry_points(group="sem_clip.commands")}
    assert set(COMMANDS) <= names


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    (point,) = entry_points(group="sem_clip.commands", name=command)
    cls = point.load()
    assert f"usage: sem-clip {command}" in out
    assert cls.help in out
    assert f"example:\n  {cls.example}" in out
    first = cls.example.splitlines()[0]
    assert first.startswith(f"sem-clip {command} ")


def test_the_help_of_the_program_names_the_commands(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    for status, meaning in EXIT_STATUS.items():
        assert f"\n  {status:<5}{meaning}\n" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_guidance_and_the_options_with_values_name_their_default(command: str) -> None:
    in_pairs = {"write", "apply", "purity", "max_reject", "novelty_quantile", "defect_rule", "pixel_rule", "report"}
    in_pairs |= {"plots", "json", "weights", "pretrained", "arch"}
    for action in options_of(command):
        assert action.help, action.dest
        assert action.metavar or action.choices or action.nargs == 0, action.dest
        if action.option_strings and action.nargs != 0 and not action.required and action.dest not in in_pairs:
            assert "(default: " in action.help, action.dest


@pytest.mark.parametrize("command", ["predict", "evaluate", "calibrate", "verify", "benchmark"])
def test_engine_options_are_the_same_for_every_command_that_runs_a_bundle(command: str) -> None:
    options = {action.dest: action for action in options_of(command)}
    assert {"backend", "precision", "threads"} <= set(options)
    assert options["threads"].help == {action.dest: action for action in options_of("predict")}["threads"].help
    assert options["backend"].default in ("auto", ())


def test_lists_of_backends_add_up_and_name_each_once() -> None:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser, several=("backend", "precision"))
    args = parser.parse_args(["--backend", "cuda,cpu", "--backend", "cpu, fake"])
    assert (args.backend, args.precision, args.threads) == (("cuda", "cpu", "fake"), (), 0)


def test_version_names_the_project_and_python_and_loads_no_command(capsys: Capture) -> None:
    loaded = set(sys.modules)
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"sem-clip {metadata.version('sem-clip')}, Python {platform.python_version()}\n", "")
    assert {name for name in set(sys.modules) - loaded if name.endswith("commands")} == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_knows_commands_and_options(shell: str, capsys: Capture) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as caught:
        main(["--completion", shell])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(name in out for name in (*COMMANDS, "white-level"))
    assert "redundancy" not in out


def test_without_shtab_completion_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--completion", "bash"]) == 2
    assert 'pip install "sem-clip[completion]"' in capsys.readouterr().err


def test_help_has_no_colours_on_a_terminal_that_could_show_them(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for words in (["--help"], ["predict", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "x1b" not in capsys.readouterr().out


class Raises:
    """A command that ends in an exception."""

    help = "h"
    example = "e"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """None."""

    def run(self, args: argparse.Namespace) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (SemClipError("no room"), 2, "error: no room\n"),
        (SemClipError("2 faults:\n  - a\n  - b\nerror: forged"), 2, "error: 2 faults:\n  - a\n  - b\\nerror: forged\n"),
        (OSError(28, "No space left on device", "v.jsonl"), 2, "error: v.jsonl: No space left on device\n"),
        (OSError("odd"), 2, "error: input or output: odd\n"),
        (MemoryError(), 2, f"error: {NO_MEMORY}\n"),
        (RuntimeError("can't start new thread"), 2, f"error: can't start new thread: {NO_MEMORY}\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["error", "faults", "system", "odd", "memory", "threads", "interrupt"],
)
def test_an_expected_error_is_one_message_without_a_traceback(
    error: BaseException, status: int, said: str, capsys: Capture
) -> None:
    assert run(Raises(error), argparse.Namespace()) == status
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Raises(ZeroDivisionError()), argparse.Namespace())


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("a.png", "exists; add --force"),
        ("", "is a folder; give the name of a file"),
        ("a.png/r", "nothing can be written"),
    ],
)
def test_teach_refuses_a_bad_place_for_its_recipe_before_it_teaches(
    place: str, says: str, fake_bundle: Path, frames: Path, capsys: Capture
) -> None:
    assert main(["teach", str(fake_bundle), "--data", str(frames), "--out", str(frames / place)]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert out == ""


@pytest.mark.parametrize("command", ["predict", "calibrate", "benchmark"])
def test_too_many_threads_are_one_message(command: str, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, str(tmp_path), str(tmp_path), "--threads", "100000"])
    assert caught.value.code == 2
    assert "--threads: must be at most 1024, not 100000" in capsys.readouterr().err


def test_only_the_command_asked_for_is_loaded(fake_bundle: Path, capsys: Capture) -> None:
    code = (
        f"import sys; from runtime.cli import main; main(['inspect', {str(fake_bundle)!r}]); "
        "sys.exit(bool({'export', 'calibration', 'benchmarks', 'tqdm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120, stdout=-3).returncode == 0


def test_a_command_that_cannot_be_loaded_is_named_and_the_others_work(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "calibration.commands", None)
    assert main(["calibrate", "a", "b"]) == 2
    assert 'error: the command "calibrate" cannot be loaded' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert 'the command "calibrate" cannot be loaded' in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(fake_bundle)]) == 0


def test_a_copy_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda **_: ())
    assert main(["predict", "bundle", "frames"]) == 2
    assert capsys.readouterr().err.startswith("error: sem-clip is not installed, so it has no commands: python -m pip")
