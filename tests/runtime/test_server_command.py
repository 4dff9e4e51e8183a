"""--backend triton of the commands: the same lines as from an engine of this machine, and options that do not fit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from commandline import errors_in, lines_of, sem_clip, three_frames, write_frame
from conftest import make_encoder, make_recipe

from runtime import FakeBackend
from runtime.cli import main
from runtime.options import add_engine_arguments
from runtime.serving.server_options import chosen_backend

pytest.importorskip("tritonclient.grpc")
from fake_server import FakeServer, config_of, served

ENCODER = make_encoder()


@pytest.fixture
def server() -> Any:
    recipes = {1: make_recipe()}
    with FakeServer(config_of(ENCODER, served(ENCODER, recipes)), FakeBackend(ENCODER), recipes) as running:
        yield running


def without_times(text: str) -> list[dict[str, Any]]:
    lines = lines_of(text)
    for line in lines:
        line.pop("timings_ms", None)
        line.pop("backend", None)
    return lines


def test_predict_prints_what_it_prints_without_a_server(
    fake_bundle: Path, tmp_path: Path, server: FakeServer, capsys: Any
) -> None:
    frames = three_frames(tmp_path / "frames")
    (frames / "d.png").write_bytes(b"no picture")
    assert main(["predict", str(fake_bundle), str(frames), "--backend", "fake"]) == 1
    wanted = capsys.readouterr()
    assert main(["predict", str(fake_bundle), str(frames), "--backend", "triton", "--url", server.url]) == 1
    found = capsys.readouterr()
    assert without_times(found.out) == without_times(wanted.out)
    first, *tally = found.err.splitlines()
    assert first == f"fake 1.2 at {server.url}, model sem_clip version 1 (fp32)"
    assert tally == wanted.err.splitlines()[1:]


def test_a_server_that_ends_in_mid_run_is_an_error_with_what_was_answered_kept(
    fake_bundle: Path, tmp_path: Path, server: FakeServer, capsys: Any
) -> None:
    frames = three_frames(tmp_path / "frames")
    answered = server.change

    def die_at_the_second(response: Any) -> None:
        answered(response)
        if len(server.batches) > 2:
            raise RuntimeError("it fails")

    server.change = die_at_the_second
    words = ["predict", fake_bundle, frames, "--backend", "triton", "--url", server.url, "--batch-size", "1"]
    status, err = sem_clip(capsys, *words, "--json", tmp_path / "out.jsonl")
    assert status == 2
    assert "without an answer: " in errors_in(err)[0]
    assert len(lines_of((tmp_path / "out.jsonl.partial").read_text())) >= 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--backend", "triton"], "--backend triton needs the address of a server: --url HOST:PORT"),
        (["--url", "server:8001"], "--url belongs to --backend triton: add that, or leave --url out"),
        (["--backend", "cpu", "--timeout", "3"], "--timeout belongs to --backend triton"),
        (["--model", "m"], "--model belongs to --backend triton"),
        (["--ssl-roots", "f"], "--ssl-roots belongs to --backend triton"),
        (["--backend", "triton", "--url", "URL", "--threads", "2"], "--threads is for engines on this machine"),
        (["--backend", "triton", "--url", "URL", "--precision", "fp16"], "computes in fp32, not in fp16: leave --prec"),
        (["--backend", "triton", "--url", "URL", "--model", "m"], 'model "m" of the server at URL cannot be used'),
        (["--backend", "triton", "--url", "URL", "--ssl-roots", "f"], "f: does not exist"),
        (["--backend", "triton", "--url", "URL", "--device", "0"], 'backend "triton" uses no GPU: leave device 0 out'),
        (["--backend", "triton", "--url", "server"], "'server' is no address of an inference server"),
    ],
)
def test_options_that_do_not_fit_are_errors(
    fake_bundle: Path, tmp_path: Path, server: FakeServer, capsys: Any, words: list[str], error: str
) -> None:
    frames = three_frames(tmp_path / "frames")
    given = [word.replace("URL", server.url) for word in words]
    status, err = sem_clip(capsys, "predict", fake_bundle, frames, *given)
    assert status == 2
    assert error.replace("URL", server.url) in errors_in(err)[0]


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_other_commands_run_on_a_server_too(
    command: str, fake_bundle: Path, tmp_path: Path, server: FakeServer, capsys: Any
) -> None:
    if command == "evaluate":
        pytest.importorskip("scipy")
    for number, name in enumerate(("good", "bridge", "hole")):
        for index in range(3):
            write_frame(tmp_path / f"data/images/{name}/{index}.png", number, defect=number > 0)
    words = [command, fake_bundle, tmp_path / "data", "--backend", "triton"]
    status, err = sem_clip(capsys, *words)
    assert (status, errors_in(err)) == (
        2,
        ["--backend triton needs the address of a server: --url HOST:PORT of its gRPC service"],
    )
    words += ["--defect-rule", "f1-max"] if command == "calibrate" else []
    status, err = sem_clip(capsys, *words, "--url", server.url)
    assert (status, errors_in(err)) == (0, [])
    assert 8 in server.batches


@pytest.mark.parametrize("seconds", ["0", "nan", "1e9", "soon"])
def test_a_timeout_that_is_none_is_a_usage_error(seconds: str, capsys: Any) -> None:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--timeout", seconds])
    assert "--timeout" in capsys.readouterr().err


def test_names_of_other_backends_pass_through() -> None:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    assert chosen_backend(parser.parse_args(["--backend", "cpu"])) == "cpu"
    assert chosen_backend(parser.parse_args([])) == "auto"
