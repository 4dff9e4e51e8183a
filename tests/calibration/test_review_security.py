"""The guard of the review page: hosts, sites, tokens, bodies, headers; and that nothing but the store is served."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from conftest import write_bundle
from review_pages import HOST, ODD_NAME, PORT, Desk, ask, make_store, opened, paint, six_frames

from calibration.review.app import guarded
from calibration.review.security import HEADERS, choose_token, is_loopback, listen
from runtime.errors import PredictorError

TOKEN = "a-token-of-enough-letters"
SAME_SITE = {"sec-fetch-site": "same-origin", "origin": f"http://{HOST}"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A page that no test of this file changes."""
    folder = tmp_path_factory.mktemp("review")
    bundle = write_bundle(folder / "bundle")
    with opened(make_store(folder, bundle, six_frames(folder / "frames"))) as page:
        yield page


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A page that asks for a token."""
    folder = tmp_path_factory.mktemp("locked")
    bundle = write_bundle(folder / "bundle")
    with opened(make_store(folder, bundle, six_frames(folder / "frames")), token=TOKEN) as page:
        yield page


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/facts"),
        ("GET", "/picture/1"),
        ("GET", "/nowhere"),
        ("PUT", "/"),
        ("GET", "/api/teach/accept"),
    ],
)
def test_every_answer_carries_the_headers_once(desk: Desk, method: str, path: str) -> None:
    reply = ask(desk.app, method, path, {"host": HOST})
    assert {name: reply.header(name) for name in HEADERS} == HEADERS
    assert "unsafe" not in reply.header("content-security-policy")
    assert "server" not in dict(reply.headers)
    assert "access-control-allow-origin" not in dict(reply.headers)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        f"127.0.0.1:{PORT + 1}",
        "",
        f"127.0.0.1:{PORT}.evil.example",
    ],
)
def test_another_host_name_that_leads_here_gets_nothing(desk: Desk, host: str) -> None:
    for path in ("/", "/api/facts", "/picture/1", "/static/app.js"):
        assert ask(desk.app, "GET", path, {"host": host}).status == 403


@pytest.mark.parametrize("host", [HOST, f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"])
def test_the_names_of_the_loopback_are_answered(desk: Desk, host: str) -> None:
    assert ask(desk.app, "GET", "/api/facts", {"host": host}).status == 200


def test_a_header_that_comes_twice_is_refused(desk: Desk) -> None:
    class Twice(dict[str, str]):
        def items(self):  # type: ignore[no-untyped-def]
            return [("host", HOST), ("host", "evil.example")]

    assert ask(desk.app, "GET", "/api/facts", Twice()).status == 400


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_may_open_the_page_and_nothing_else(desk: Desk, site: str) -> None:
    link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert desk.get("/", **link).status == 200
    assert desk.get("/", **{**link, "sec_fetch_dest": "iframe"}).status == 403
    assert desk.get("/", **{**link, "sec_fetch_mode": "no-cors"}).status == 403
    for path in ("/api/facts", "/picture/1", "/map/1"):
        assert desk.get(path, **link).status == 403


def change(desk: Desk, **headers: str) -> int:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return desk.post("/api/corrections", {"id": 1, "new": "hole", "mask": None}, more).status


def test_a_change_by_another_site_changes_nothing(desk: Desk) -> None:
    before = desk.log.path.read_bytes()
    assert change(desk, sec_fetch_site="cross-site") == 403
    assert change(desk, sec_fetch_site="same-site") == 403
    assert change(desk, origin="https://evil.example") == 403
    assert change(desk, origin="null") == 403
    assert change(desk, origin="http://[") == 403
    assert change(desk, origin=f"http://127.0.0.1:{PORT + 1}") == 403
    assert change(desk, x_review_token="") == 403
    assert change(desk, x_review_token="x" * 43) == 403
    assert change(desk, content_type="text/plain") == 415  # what a form of another site can send
    assert change(desk, content_type="application/x-www-form-urlencoded") == 415
    assert desk.log.path.read_bytes() == before
    assert len(desk.log) == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"id": 1', 400),
        (b'{"id": 1, "id": 2, "new": "hole"}', 400),
        (b"[" * 100_000, 413),
        (b"[" * 60_000, 400),
        (b'{"note": "' + b"x" * 70_000 + b'"}', 413),
        (b'{"note": "\xff"}', 400),
    ],
)
def test_a_body_that_is_no_small_object_is_refused(desk: Desk, body: bytes, status: int) -> None:
    reply = desk.post("/api/corrections/undo", body, SAME_SITE)
    assert reply.status == status
    assert reply.json()["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_other_methods_are_refused(desk: Desk, method: str) -> None:
    assert ask(desk.app, method, "/api/facts", {"host": HOST}).status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/%00",
        "/picture/0",
        "/picture/7",
        "/picture/-1",
        "/picture/1.5",
        "/picture/%2e%2e%2fetc%2fpasswd",
        "/picture/1%00",
        "/picture/999999999999999999",
        "/picture/9999999999999999999999",
        "/mask/..%2f..%2fetc",
        "/api/frames/1%20or%201",
        "/etc/passwd",
        "/app.py",
    ],
)
def test_nothing_but_the_frames_of_the_store_and_the_page_is_served(desk: Desk, path: str) -> None:
    reply = desk.get(path)
    assert reply.status == 404
    assert reply.json()["error"]
    assert b"root:" not in reply.content


def test_names_with_markup_are_text_in_json_and_in_no_page(desk: Desk) -> None:
    listed = desk.get("/api/frames").json()["frames"]
    assert ODD_NAME in [frame["name"] for frame in listed]
    assert b"onerror" not in desk.get("/").content
    assert desk.get("/api/frames").header("content-type") == "application/json"


def test_a_frame_that_changed_since_is_not_served(tmp_path: Path, fake_bundle: Path) -> None:
    (frame,) = frames = [paint(tmp_path / "a.png", 1, defect=True)]
    with opened(make_store(tmp_path, fake_bundle, frames)) as page:
        paint(frame, 2, defect=False)
        assert page.get("/picture/1").status == 410
        frame.unlink()
        frame.symlink_to("/etc/passwd")
        reply = page.get("/picture/1")
        assert reply.status == 404
        assert b"root:" not in reply.content


def test_without_the_token_nothing_is_answered(locked: Desk) -> None:
    for path in (
        "/",
        "/api/facts",
        "/picture/1",
        "/static/app.js",
        f"/api/facts?token={TOKEN}",
        "/?token=wrong",
        "/?token=",
    ):
        reply = locked.get(path)
        assert reply.status == 403, path
        assert "set-cookie" not in dict(reply.headers)
    assert locked.get(f"/?token={TOKEN}&token={TOKEN}").status == 403
    assert locked.post("/api/corrections", {"id": 1, "new": "hole", "mask": None}).status == 403


def test_the_token_is_sent_once_and_a_cookie_keeps_the_browser_known(locked: Desk) -> None:
    first = locked.get("/", {"token": TOKEN})
    assert first.status == 200
    cookie = first.header("set-cookie")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert TOKEN.encode() not in first.content  # it leads on to "/", without the token
    known = cookie.partition(";")[0]
    assert locked.get("/api/facts", cookie=known).status == 200
    assert locked.get("/api/facts", cookie=f"other=1; {known}").status == 200
    assert locked.get("/api/facts", cookie=known[:-1]).status == 403
    assert locked.get("/api/facts", cookie=f"sem_clip_review_{PORT}={TOKEN}").status == 403


def test_with_a_token_any_name_of_the_host_is_answered(locked: Desk) -> None:
    assert ask(locked.app, "GET", f"/?token={TOKEN}", {"host": "review.fab.example:8123"}).status == 200


def test_with_a_token_a_change_still_needs_its_own_origin(locked: Desk) -> None:
    known = {"cookie": locked.get("/", {"token": TOKEN}).header("set-cookie").partition(";")[0]}
    body = {"id": 1, "new": "hole", "mask": None}
    assert locked.post("/api/corrections", body, {**known, "origin": "https://evil.example"}).status == 403
    assert locked.post("/api/corrections", body, {**known, "x-review-token": ""}).status == 403
    assert len(locked.log) == 0


def test_the_guard_does_not_run_what_it_refuses(desk: Desk) -> None:
    called = []

    async def app(*_: object) -> None:
        called.append(1)

    assert ask(guarded(app, desk.guard), "GET", "/", {"host": "evil.example"}).status == 403
    assert called == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_only_loopback_addresses_need_no_token(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    token = choose_token(host, None)
    assert (token is None) is loopback
    assert token is None or len(token) >= 32


def test_a_token_file_counts_on_the_loopback_too(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert choose_token("127.0.0.1", file) == TOKEN
    for bad in ("short", "two words of enough letters", "", "ümlaut-of-enough-letters"):
        file.write_text(bad)
        with pytest.raises(PredictorError, match="a token is one word of at least 16"):
            choose_token("127.0.0.1", file)
    file.unlink()
    with pytest.raises(PredictorError, match="does not exist"):
        choose_token("127.0.0.1", file)


def test_a_port_that_is_taken_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PredictorError, match=f"port {port}.*give another --port"):
            listen("127.0.0.1", port)
    with pytest.raises(PredictorError, match="--host must be an address of this machine"):
        listen("203.0.113.5", 0)


def test_a_failure_tells_the_browser_nothing_of_the_server(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(desk.store, "verdicts", fail)
    reply = desk.get("/api/facts")
    assert reply.status == 500
    assert b"secret" not in reply.content
    assert "a secret" in caplog.text
    assert json.loads(reply.content)["error"]


@pytest.mark.parametrize("promised", ["1000000000000", "9" * 5000])
def test_a_body_is_refused_by_the_size_that_it_promises(promised: str, desk: Desk) -> None:
    reply = desk.post("/api/judge", b"", {"content-length": promised})
    assert reply.status == 413


def test_a_change_without_the_pages_token_says_what_it_needs(desk: Desk) -> None:
    reply = desk.post("/api/judge", {}, {"x-review-token": ""})
    assert reply.status == 403
    assert "a change needs the page's token" in reply.json()["error"]
