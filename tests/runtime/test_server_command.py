"""--backend triton of the commands: the same lines as from an engine of this machine, and options that do not fit."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from commandline import errors_in, lines_of, sem_clip, three_frames, write_frame
from conftest import LinearBackend, make_encoder, make_recipe

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
    for number in range(16):
        write_frame(tmp_path / f"frames/{number:02}.png", number)
    frames, answered = tmp_path / "frames", itertools.count()

    def die(_: Any) -> None:
        if next(answered) > 8:  # the black frame, and eight: with four on their way, the first is among them
            raise RuntimeError("it fails")

    server.change = die
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


@pytest.fixture
def any_recipe() -> Any:
    """A server of a few lines of numpy, whose model takes a recipe with each request."""
    with FakeServer(config_of(ENCODER, served(ENCODER)), LinearBackend(ENCODER)) as running:
        yield running


def test_verify_proves_a_server(golden_bundle: Path, tmp_path: Path, any_recipe: FakeServer, capsys: Any) -> None:
    record = tmp_path / "record.json"
    words = ["verify", str(golden_bundle), "--backend", "triton", "--url", any_recipe.url, "--time", "0.5"]
    assert main([*words, "--json", str(record)]) == 0
    assert "triton" in capsys.readouterr().out
    found = json.loads(record.read_text())
    (engine,) = found["backends"]
    assert (engine["backend"], engine["precision"], engine["verdict"]) == ("triton", "fp32", "qualified")
    assert engine["artifact_sha256"] == "12" * 32
    any_recipe.change = lambda response: response.raw_output_contents.__setitem__(1, bytes(4 * 16))
    assert main(words) == 1
    assert "NOT QUALIFIED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--backend", "triton"], "--backend triton needs the address of a server"),
        (["--backend", "triton,cpu", "--url", "URL"], "--backend triton stands alone"),
        (["--url", "URL"], "--url belongs to --backend triton"),
        (["--backend", "triton", "--url", "URL", "--device", "0"], 'backend "triton" uses no GPU'),
        (
            ["--backend", "triton", "--url", "URL"],
            "holds its recipes, so it cannot be asked by others: verify the model",
        ),
    ],
)
def test_verify_refuses_what_it_cannot_prove(
    golden_bundle: Path, server: FakeServer, capsys: Any, words: list[str], error: str
) -> None:
    status, err = sem_clip(capsys, "verify", golden_bundle, *(word.replace("URL", server.url) for word in words))
    assert status == 2
    assert error in errors_in(err)[0]


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
