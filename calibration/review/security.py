"""Who may ask the review page's server, from where, and what every answer carries.

The page shows frames of a fab and takes corrections, so nobody else may read or write through it:

- Without a token the server listens to this machine alone and answers to its loopback names alone. A site whose name
  leads here (DNS rebinding) sends its own name.
- With a token, the first visit brings it (`?token=`), and a cookie keeps the browser known. The cookie is HttpOnly and
  SameSite=Strict, and is not the token.
- Other sites get nothing: what a browser marks as cross-site is refused, except that a link may open the page.
- A POST needs the page's own token in a header, a matching origin, and a JSON body of bounded size.
- Answers forbid everything that the page does not need: other sources, frames, referrers, guessed types.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from runtime.errors import PredictorError
from runtime.files import read_bounded

from .web import ReviewError

LEAST_TOKEN = 16
_MOST_TOKEN_FILE = 4096
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_SAFE_METHODS = ("GET", "HEAD")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "img-src 'self' data: blob:",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer, also of errors."""
PAGE_TOKEN_NEEDED = (
    "a change needs the page's token (x-review-token; /api/facts names it). If a page sent this, it is of an "
    "earlier run of the server: load it again"
)
TOKEN_NEEDED = "open the address that `sem-clip review` printed: it holds the token"
WELCOME = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><title>SEM-CLIP review</title>'
    b'<meta http-equiv="refresh" content="0;url=/"><p><a href="/">Open the review page</a></p></html>'
)
"""Leads on by itself: a browser withholds a strict cookie from a redirect that another site began."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What one run of the server checks requests by.

    port: where it listens. token: what the first visit must bring; None where none is needed. page_token: what a POST
    must bring. session: the value of the cookie.
    """

    port: int
    token: str | None = field(default=None, repr=False)
    page_token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def cookie(self) -> str:
        """The cookie's name. Browsers share cookies among the ports of a host."""
        return f"sem_clip_review_{self.port}"

    def set_cookie(self) -> str:
        """The header's value that makes the browser known."""
        return f"{self.cookie}={self.session}; Path=/; HttpOnly; SameSite=Strict"

    def check(self, request: Incoming) -> bool:
        """Raise ReviewError unless the request may be answered. True for the first visit, which brings the token."""
        host = request.one("host")
        if self.token is None and host.lower() not in self._own_names():
            raise ReviewError("this server answers to its loopback address alone", 403)
        if request.method not in (*_SAFE_METHODS, "POST"):
            raise ReviewError(f"{request.method[:20]} is not answered here", 405)
        self._check_site(request)
        arrived = self._check_token(request)
        if request.method == "POST":
            self._check_post(request, host)
        return arrived

    def _own_names(self) -> set[str]:
        names = {f"{name}:{self.port}" for name in _LOOPBACK}
        return names | set(_LOOPBACK) if self.port == 80 else names

    def _check_site(self, request: Incoming) -> None:
        """Refuse what a page of another site asks for. Opening the page by a link is no danger: it only shows."""
        if request.one("sec-fetch-site") in ("", "same-origin", "none"):
            return
        opens = request.path == "/" and request.method == "GET" and request.one("sec-fetch-mode") == "navigate"
        if not opens or request.one("sec-fetch-dest") not in ("", "document"):
            raise ReviewError("another site asked for this", 403)

    def _check_token(self, request: Incoming) -> bool:
        if self.token is None or _same(request.cookies().get(self.cookie, ""), self.session):
            return False
        given = parse_qs(request.query).get("token", [])
        if request.path == "/" and request.method == "GET" and len(given) == 1 and _same(given[0], self.token):
            return True
        raise ReviewError(TOKEN_NEEDED, 403)

    def _check_post(self, request: Incoming, host: str) -> None:
        origin = request.one("origin")
        if origin and origin.partition("://")[2].lower() != host.lower():
            raise ReviewError("another site sent this", 403)
        if not _same(request.one("x-review-token"), self.page_token):
            raise ReviewError(PAGE_TOKEN_NEEDED, 403)
        if request.one("content-type").partition(";")[0].strip().lower() != "application/json":
            raise ReviewError("send JSON (content-type: application/json)", 415)


@dataclass(frozen=True, slots=True)
class Incoming:
    """The head of a request. query: as it came. headers: names in lower case, with their values in order."""

    method: str
    path: str
    query: str
    headers: Iterable[tuple[str, str]]

    def one(self, name: str) -> str:
        """The header's value; "" where it is absent. Raises ReviewError where it comes twice: which one counts?"""
        values = [value for key, value in self.headers if key == name]
        if len(values) > 1:
            raise ReviewError(f"the header {name} came twice")
        return values[0] if values else ""

    def cookies(self) -> dict[str, str]:
        """By name; none where they cannot be read."""
        jar: SimpleCookie = SimpleCookie()
        for value in (value for key, value in self.headers if key == "cookie"):
            try:
                jar.load(value)
            except CookieError:
                return {}
        return {name: morsel.value for name, morsel in jar.items()}


def is_loopback(host: str) -> bool:
    """Whether a server at this address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choose_token(host: str, file: Path | None) -> str | None:
    """The token that the first visit must bring; None for a loopback address without a file.

    file: holds the token in its only line. Raises PredictorError for a file that cannot be read, and for a short token.
    """
    if file is None:
        return None if is_loopback(host) else secrets.token_urlsafe(32)
    content = read_bounded(file, _MOST_TOKEN_FILE, lambda path, reason: PredictorError(f"{path}: {reason}"))
    token = content.decode("utf-8", "replace").strip()
    if len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise PredictorError(
            f"{file}: a token is one word of at least {LEAST_TOKEN} printable ASCII characters, such as `python -c "
            "'import secrets; print(secrets.token_urlsafe(32))'` prints"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. Raises PredictorError."""
    host = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise PredictorError(
            f"cannot listen at {host}, port {port} ({why}): give another --port, or leave it out for a free one; "
            "--host must be an address of this machine"
        ) from exc


def _same(given: str, wanted: str) -> bool:
    """Compared in a time that tells nothing about how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())
