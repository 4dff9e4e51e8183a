"""The review page as an ASGI application: Starlette calls the handlers, and a guard stands before all of them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from runtime.errors import FrameError, SemClipError
from runtime.jsonfields import listed, parse_json

from .security import HEADERS, WELCOME, Guard, Incoming
from .web import Answer, Asked, Handler, Place, ReviewError, json_answer

HERE = Path(__file__).parent
_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
"""Files of the page by suffix. The system's own table differs between machines."""
_log = logging.getLogger("sem_clip")
Scope: TypeAlias = "MutableMapping[str, Any]"
Receive: TypeAlias = "Callable[[], Awaitable[MutableMapping[str, Any]]]"
Send: TypeAlias = "Callable[[MutableMapping[str, Any]], Awaitable[None]]"
Application: TypeAlias = "Callable[[Scope, Receive, Send], Awaitable[None]]"


def build_app(places: Sequence[Place]) -> Application:
    """The application of these addresses, without a guard. Handlers run in threads, several at a time."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    def unknown(_: Request, exc: Exception) -> Response:
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        answer = refusal(ReviewError("there is nothing at this address", status))
        return Response(answer.content, answer.status, _headers(answer), answer.kind)

    routes = [Route(place.path, _endpoint(place), methods=[place.method]) for place in places]
    app = Starlette(routes=routes, exception_handlers={HTTPException: unknown})
    app.router.redirect_slashes = False
    return app


async def visit(app: Application, addresses: Sequence[str]) -> None:
    """Ask for each address once and drop the answers: the first browser then waits for no import and no index."""

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: MutableMapping[str, Any]) -> None:
        pass

    for address in addresses:
        path, _, query = address.partition("?")
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "headers": [], "path": path}
        await app({**scope, "raw_path": path.encode(), "query_string": query.encode()}, receive, send)


def guarded(app: Application, guard: Guard) -> Application:
    """`app` behind the guard: what it refuses never reaches a handler, and every answer has the headers."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_safely(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message.get("headers", ()) if name.decode() not in HEADERS]
                safe = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*kept, *safe]}
            await send(message)

        try:
            arrived = guard.check(_incoming(scope))
        except ReviewError as exc:
            await _send(send_safely, refusal(exc))
            return
        if arrived:
            await _send(send_safely, Answer(WELCOME, "text/html; charset=utf-8"), {"set-cookie": guard.set_cookie()})
            return
        await app(scope, receive, send_safely)

    return serve


def _incoming(scope: Scope) -> Incoming:
    headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"])
    return Incoming(scope["method"], scope["path"], scope.get("query_string", b"").decode("latin-1"), headers)


async def _send(send: Send, answer: Answer, more: Mapping[str, str] | None = None) -> None:
    headers = {**_headers(answer), "content-type": answer.kind, "content-length": str(len(answer.content))}
    pairs = [(name.encode(), value.encode()) for name, value in {**headers, **(more or {})}.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": pairs})
    await send({"type": "http.response.body", "body": answer.content})


def _headers(answer: Answer) -> dict[str, str]:
    """Content with a tag may be kept and is asked for again; all else is kept nowhere."""
    return {"cache-control": "private, no-cache", "etag": answer.tag} if answer.tag else {"cache-control": "no-store"}


def _endpoint(place: Place) -> Any:
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response

    async def answer_to(request: Request) -> Response:
        try:
            body: dict[str, Any] = {}
            if place.method == "POST":
                require_size(request.headers.get("content-length", ""), place.most_bytes)
                body = await _body(request.stream(), place.most_bytes)
        except (ReviewError, ClientDisconnect) as exc:
            answer = refusal(exc if isinstance(exc, ReviewError) else ReviewError("the sender left"))
        else:
            query: dict[str, tuple[str, ...]] = {}
            for name, value in request.query_params.multi_items():
                query[name] = (*query.get(name, ()), value)
            asked = Asked(dict(request.path_params), query, body, request.headers.get("if-none-match", ""))
            answer = await run_in_threadpool(answered, place.handler, asked)
        return Response(answer.content, answer.status, _headers(answer), answer.kind)

    return answer_to


def require_size(promised: str, most: int) -> None:
    """Refuse a body by what its head promises, before any of it is awaited. Raises ReviewError."""
    if promised.isdecimal() and (len(promised) > 18 or int(promised) > most):
        raise ReviewError(f"more than {most:,} bytes were sent", 413)


async def _body(chunks: Any, most: int) -> dict[str, Any]:
    """The JSON object of a POST. Raises ReviewError: larger than `most` bytes, no object, or not sound."""
    content = bytearray()
    async for chunk in chunks:
        content += chunk
        if len(content) > most:
            raise ReviewError(f"more than {most:,} bytes were sent", 413)
    faults: list[str] = []
    try:
        document = parse_json(bytes(content), faults)
    except (ValueError, RecursionError) as exc:
        raise ReviewError(f"what was sent is no sound JSON ({exc})") from None
    if not isinstance(document, dict):
        raise ReviewError("what was sent is no JSON object")
    if faults:
        raise ReviewError("; ".join(listed(faults)))
    return document


def answered(handler: Handler, asked: Asked) -> Answer:
    """The handler's answer; a fault of the request, of a frame or of a file as one that says so."""
    try:
        answer = handler(asked)
        if answer.tag and answer.tag in asked.known:
            return Answer(b"", answer.kind, 304, answer.tag)
        return answer
    except SemClipError as exc:
        return refusal(exc)
    except MemoryError:
        return refusal(ReviewError("there is not enough memory for this: close other programs", 503))
    except OSError as exc:
        return refusal(ReviewError(f"{exc.filename or 'a file'}: {exc.strerror or exc}", 409))
    except Exception:
        _log.exception("a request failed")
        return json_answer({"error": "the server failed: its terminal tells how"}, 500)


def refusal(error: SemClipError) -> Answer:
    """An error as JSON: {"error": text}."""
    status = error.status if isinstance(error, ReviewError) else 404 if isinstance(error, FrameError) else 409
    return json_answer({"error": str(error)}, status)


def own_files() -> list[Place]:
    """The page's own scripts and styles, read once: no path of a request ever reaches the disk."""
    found = []
    for file in sorted((HERE / "static").rglob("*")):
        if file.is_file() and file.suffix in _KINDS:
            content = file.read_bytes()
            kept = Answer(content, _KINDS[file.suffix], tag=f'"{sha256(content).hexdigest()[:32]}"')
            found.append(Place(f"/static/{file.relative_to(HERE / 'static').as_posix()}", _always(kept)))
    return found


def _always(answer: Answer) -> Handler:
    return lambda _: answer


def first_page(**values: Any) -> Place:
    """The page at "/", from the template index.html. values: what it is given; all of it stays text."""
    from jinja2 import Environment, FileSystemLoader

    pages = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True)
    modules = sorted(path.name for path in (HERE / "static").glob("*.js"))
    content = pages.get_template("index.html").render(modules=modules, **values).encode("utf-8", "backslashreplace")
    return Place("/", _always(Answer(content, "text/html; charset=utf-8")))
