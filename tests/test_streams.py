"""The program on closed, full and narrow streams, under signals, and with control characters in names."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import lines_of, names_in, posix, predict, program, sources_of, three_frames
from conftest import make_recipe, write_bundle

from runtime import Predictor, cli
from runtime import commands as commands_module
from runtime.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames, the second a defect."""
    return three_frames(tmp_path / "frames")


def test_a_reader_that_leaves_ends_the_run_without_a_message(fake_bundle: Path, frames: Path) -> None:
    words = [sys.executable, "-m", "runtime.cli", "predict", str(fake_bundle), "--backend", "fake", *[str(frames)]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@posix
def test_without_a_stderr_stdout_holds_only_results(fake_bundle: Path, frames: Path) -> None:
    done = program("predict", fake_bundle, "--backend", "fake", frames, shell="2>&-")
    assert done.returncode == 0
    assert [line["raw"]["head_class"] for line in lines_of(done.stdout)] == ["good", "bridge", "hole"]


@posix
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_a_stdout_a_file_takes_the_lines(closed: str, fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    words = ("predict", fake_bundle, "--backend", "fake", frames)
    done = program(*words, shell=closed)
    assert done.returncode == 2
    if "2>" not in closed:
        assert done.stderr == "error: there is no stdout to write to: name a file with --json\n"
    assert program(*words, "--json", tmp_path / "v", shell=closed).returncode == 0
    # Nothing that was meant for a closed stream went into a file that got its number.
    assert [line["raw"]["head_class"] for line in lines_of((tmp_path / "v").read_text())] == ["good", "bridge", "hole"]
    assert program("inspect", fake_bundle, shell=closed).returncode == 0
    assert program(*words, "--json", "/dev/stdout", shell=closed).returncode == 2, "a closed stdout takes nothing"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_stdout_is_one_error_line(fake_bundle: Path, frames: Path) -> None:
    for words in (("predict", fake_bundle, "--backend", "fake", frames), ("inspect", fake_bundle)):
        done = program(*words, shell=">/dev/full")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == "error: stdout: No space left on device"
    assert program("--help", shell=">/dev/full").stderr == "", "no complaint at exit"


@posix
def test_a_stderr_without_a_reader_does_not_end_the_run(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    words = ("predict", fake_bundle, "--backend", "fake", frames, "--json", tmp_path / "v")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", *map(str, words)], stderr=writer, check=False, timeout=120
    )
    os.close(writer)
    assert done.returncode == 0
    assert len(lines_of((tmp_path / "v").read_text())) == 3


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_class_names_reach_every_stdout(encoding: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(("good", "größe", "桥接")))
    done = program("inspect", bundle, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    assert done.returncode == 0
    assert ("good, größe, 桥接" if encoding == "utf-8" else "\\u6865\\u63a5") in done.stdout


@posix
def test_json_to_dev_stdout_appends_to_a_redirected_file(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    words = ("predict", fake_bundle, "--backend", "fake", frames, "--json", "/dev/stdout")
    assert program(*words, shell=f">> {tmp_path / 'log'}").returncode == 0
    first, *rest = (tmp_path / "log").read_text().splitlines()
    assert first == "before"
    assert len(rest) == 3


@posix
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (getattr(signal, "SIGHUP", 1), 129, "terminated"),
    ],
)
def test_a_signal_keeps_what_was_judged(
    number: int,
    status: int,
    said: str,
    fake_bundle: Path,
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    request: pytest.FixtureRequest,
) -> None:
    streamed = Predictor.stream

    def stream(self: Predictor, *words: Any, **options: Any) -> Any:
        for count, result in enumerate(streamed(self, *words, **options)):
            if count == 2:
                signal.raise_signal(number)  # not os.kill: another thread might take it, and it would come later
            yield result

    monkeypatch.setattr(Predictor, "stream", stream)
    ours = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    found = signal.signal(number, ours)  # a background job is born ignoring some of them
    request.addfinalizer(lambda: signal.signal(number, found))
    before = signal.getsignal(number)
    out = tmp_path / "v.jsonl"
    assert predict(fake_bundle, frames, "--json", out, "--overlays", tmp_path / "o") == status
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert names_in(tmp_path) == ["bundle", "frames", "o", "v.jsonl.partial"]
    assert sources_of(out.with_name("v.jsonl.partial").read_text()) == [str(frames / n) for n in ("a.png", "b.png")]
    assert names_in(tmp_path / "o") == ["a.png", "b.png"]


@posix
def test_an_ignored_signal_stays_ignored(fake_bundle: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(commands_module, "find_frames", lambda *_: os.kill(os.getpid(), signal.SIGHUP) or [])
        assert predict(fake_bundle, frames) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_control_characters_of_file_names_are_escaped(fake_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "lot"
    folder.mkdir()
    try:
        (folder / "x\x1b[2J\nerror: forged\u202e.png").write_bytes(b"no image")
    except OSError:
        pytest.skip("this system takes no such names")
    assert predict(fake_bundle, folder, "--json", tmp_path / "v.jsonl") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "lot/x\\x1b[2J\\nerror: forged\\u202e.png: " in last
    assert main(["inspect", str(folder / "no\x1b[2J\nsuch")]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: {folder}/no\\x1b[2J\\nsuch: ")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(notes=["\x1b]0;owned\x07\nartifact    x: fp32, SHA-256 correct", "\u202e"]),
        lambda document: document["encoder"].update(weights="\x9b2J\nforged"),
        lambda document: document["artifacts"][0].update(parity={"max_abs_probability": 10**400, "frames": [["\n"]]}),
        lambda document: document["artifacts"][0].update(operators={"Add": 9 * 10**4298, "Mul": 9 * 10**4298}),
    ],
)
def test_control_characters_of_manifests_are_escaped(
    change: Callable[[Any], None], fake_bundle: Path, capsys: Capture
) -> None:
    assert main(["inspect", str(fake_bundle)]) == 0
    lines = len(capsys.readouterr().out.splitlines())
    document = json.loads((fake_bundle / "manifest.json").read_text())
    change(document)
    (fake_bundle / "manifest.json").write_text(json.dumps(document))
    status = main(["inspect", str(fake_bundle)])  # shown, or refused
    out, err = capsys.readouterr()
    assert (status, err == "") in ((0, True), (2, False))
    assert all(line.isprintable() for line in (out + err).splitlines())
    if status == 0:
        assert len(out.splitlines()) == lines + len(document["notes"]) - 1


def test_a_warning_escapes_control_characters() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: dark", ("a\nerror: forged\x1b[2J",), None)
    said = cli._Text("%(levelname)s: %(message)s").format(record)
    assert said == "WARNING: a\\nerror: forged\\x1b[2J: dark"


def test_abbreviated_options_are_refused(fake_bundle: Path, frames: Path) -> None:
    done = program("predict", fake_bundle, "--back", "fake", frames)
    assert done.returncode == 2
    assert "--back" in done.stderr
