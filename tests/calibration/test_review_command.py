"""`sem-clip review` as a program: its address, its refusals, and what survives a kill."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")

from calibration_frames import command
from commandline import posix
from review_pages import make_store, six_frames

from calibration.corrections import CorrectionLog, default_path
from calibration.review import command as review
from calibration.review.app import answered
from calibration.review.web import Answer, Asked, Handler
from runtime.packages import child_command, child_environment

Capture = pytest.CaptureFixture[str]


@contextmanager
def serving(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program and the one line that it prints."""
    program = child_command("runtime.cli", "review", *map(str, words))
    with subprocess.Popen(
        program, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise AssertionError(process.communicate(timeout=30)[1])
            yield process, line.strip()
        finally:
            process.kill()


def asked(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    content = None if body is None else json.dumps(body)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, content, {"Content-Type": "application/json", **given} if body else given)
    reply = connection.getresponse()
    found = reply.read()
    connection.close()
    return reply.status, json.loads(found) if reply.headers["content-type"] == "application/json" else found


def port_in(line: str) -> int:
    found = re.search(r"http://127\.0\.0\.1:(\d+)/$", line)
    assert found, line
    return int(found[1])


@posix
def test_corrections_survive_a_kill_and_are_there_again(tmp_path: Path, fake_bundle: Path) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    with serving(store, "--bundle", fake_bundle) as (process, line):
        port = port_in(line)
        _, facts = asked(port, "GET", "/api/facts")
        token = facts["page_token"]
        body = {"id": 2, "new": "hole", "mask": "outline"}
        assert asked(port, "POST", "/api/corrections", body, X_Review_Token=token)[0] == 200
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    with CorrectionLog(default_path(store), write=False) as log:
        (stored,) = log.current().values()
        assert (stored.new, log.mask_path(stored) is not None) == ("hole", True)
    with serving(store) as (process, line):
        port = port_in(line)
        assert asked(port, "GET", "/api/facts")[1]["corrected"] == 1
        assert asked(port, "GET", "/", Host="evil.example")[0] == 403
        status, page = asked(port, "GET", "/")
        assert (status, page[:15].lower()) == (200, b"<!doctype html>")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (143, "", "terminated\n")


@posix
def test_ctrl_c_ends_it_and_a_second_page_of_the_store_is_refused(tmp_path: Path, fake_bundle: Path) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    with serving(store) as (process, _):
        second = subprocess.run(
            child_command("runtime.cli", "review", str(store)),
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (second.returncode, second.stdout) == (2, "")
        assert "corrections.jsonl" in second.stderr
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, "interrupted\n")


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serving ends at once; where it would have listened is kept."""
    import uvicorn

    seen: list[str] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda _, sockets: seen.append(sockets[0].getsockname()[0]))
    return seen


def test_another_address_gets_a_token_and_says_that_nothing_is_encrypted(
    tmp_path: Path, fake_bundle: Path, addresses: list[str], capsys: Capture
) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    assert command(review.Review, store, "--host", "0.0.0.0") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"review page: http://\S+:\d+/\?token=[\w-]{43}  \(not encrypted\)", line)
    assert addresses == ["0.0.0.0"]
    file = tmp_path / "token"
    file.write_text("a/token+of&enough=letters\n")
    assert command(review.Review, store, "--token-file", file) == 0
    assert "?token=a%2Ftoken%2Bof%26enough%3Dletters" in capsys.readouterr().out
    assert addresses[1] == "127.0.0.1"


def test_what_a_browser_asks_first_was_asked_before_the_address_is_printed(
    tmp_path: Path, fake_bundle: Path, addresses: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    asked = []

    def seen(handler: Handler, request: Asked) -> Answer:
        assert capsys.readouterr().out == ""
        answer = answered(handler, request)
        asked.append(answer.status)
        return answer

    monkeypatch.setattr("calibration.review.app.answered", seen)
    assert command(review.Review, store) == 0
    assert asked == [200] * 6
    assert capsys.readouterr().out.startswith("review page: ")
    for frame in (tmp_path / "frames").rglob("*.png"):
        frame.unlink()
    asked.clear()
    assert command(review.Review, store) == 0  # a frame that is gone is no reason not to serve
    assert sorted(asked) == [200] * 5 + [404]


def test_corrections_go_where_they_are_told(tmp_path: Path, fake_bundle: Path, addresses: list[str]) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    assert command(review.Review, store, "--corrections", tmp_path / "mine.jsonl") == 0
    assert (tmp_path / "mine.jsonl").is_file()
    assert not default_path(store).exists()


def test_what_cannot_be_opened_is_one_message(tmp_path: Path, addresses: list[str], capsys: Capture) -> None:
    (tmp_path / "frames.jsonl").write_text("{}\n")
    for store in (tmp_path / "absent.db", tmp_path, tmp_path / "frames.jsonl"):
        assert command(review.Review, store) == 2
        assert str(store) in capsys.readouterr().err
        assert not default_path(store).exists()
    assert addresses == []


def test_a_place_that_takes_no_corrections_says_where_they_can_go(
    tmp_path: Path, fake_bundle: Path, addresses: list[str], capsys: Capture
) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    beside = default_path(store)
    (tmp_path / f".{beside.name}.lock").mkdir()
    assert command(review.Review, store) == 2
    assert "name a file in another folder with --corrections FILE" in capsys.readouterr().err
    assert command(review.Review, store, "--corrections", beside) == 2
    assert "another folder" not in capsys.readouterr().err
    assert addresses == []


def test_a_data_folder_that_could_not_teach_is_refused_at_the_start(
    tmp_path: Path, fake_bundle: Path, addresses: list[str], capsys: Capture
) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    assert command(review.Review, store, "--bundle", fake_bundle, "--data", tmp_path / "frames") == 2
    assert str(tmp_path / "frames") in capsys.readouterr().err
    assert addresses == []


def test_without_its_packages_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(review, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert command(review.Review, tmp_path / "verdicts.db") == 2
    assert 'needs uvicorn: pip install "sem-clip[review]"' in capsys.readouterr().err


def test_help_needs_none_of_its_packages() -> None:
    code = "import sys\nsys.modules.update(dict.fromkeys(('starlette', 'uvicorn', 'jinja2')))\n"
    code += "from runtime.cli import main\nmain(['review', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert "--token-file" in done.stdout
