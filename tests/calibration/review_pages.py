"""The review page's application over a small store, asked without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import numpy as np
from PIL import Image

from calibration.corrections import CorrectionLog, default_path
from calibration.review import app as pages
from calibration.review.app import build_app, guarded
from calibration.review.command import places
from calibration.review.security import Guard
from calibration.review.session import Session
from calibration.review.workshop import Workshop
from runtime import FailedFrame, FrameError, Prediction, Predictor
from runtime.verdict_store import Run, Site, VerdictStore, VerdictWriter

PORT = 8123
HOST = f"127.0.0.1:{PORT}"
ODD_NAME = "<img src=x onerror=alert(1)>\"'&\n.png"
Change = Callable[[int, Prediction], Prediction]


def paint(path: Path, number: int, *, defect: bool, size: tuple[int, int] = (64, 64)) -> Path:
    """A frame that the fake backend calls class `number` modulo K; a defect has a bright square at 16 to 48."""
    pixels = np.random.default_rng(number).integers(5, 40, size, dtype=np.uint8)
    pixels[0, 0] = number
    if defect:
        pixels[16:48, 16:48] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def same(_: int, result: Prediction) -> Prediction:
    return result


def make_store(
    folder: Path, bundle: Path, frames: list[Path], *, change: Change = same, sites: tuple[Site, ...] = ()
) -> Path:
    """A store of the fake backend's answers to the frames. change: of the answer with this index."""
    store = folder / "verdicts.db"
    with Predictor(bundle, backend="fake") as predictor:
        run = Run.now(bundle, predictor.manifest.encoder.id, predictor.recipe)
        with VerdictWriter(store, run) as writer:
            for index, path in enumerate(frames):
                site = sites[index] if sites else Site()
                try:
                    writer.add(change(index, predictor(path)), site)
                except FrameError as exc:
                    writer.add(FailedFrame(str(path), exc), site, str(path))
    return store


def six_frames(folder: Path) -> list[Path]:
    """Good, bridge, hole, and again; the last under a name that is markup."""
    names = ["0.png", "1.png", "2.png", "3.png", "4.png", ODD_NAME]
    return [paint(folder / name, number, defect=number % 3 > 0) for number, name in enumerate(names)]


@dataclass(frozen=True)
class Reply:
    """An answer. headers: names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes

    def json(self) -> Any:
        assert self.header("content-type") == "application/json"
        return json.loads(self.content)

    def header(self, name: str) -> str:
        """The one value of a header; "" without one."""
        (value, *more) = [value for key, value in self.headers if key == name] or [""]
        assert not more
        return value


def ask(app: Any, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
    """One request, as a server hands it to the application. target: path and query, percent-encoded."""
    path, _, query = target.partition("?")
    got: list[MutableMapping[str, Any]] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        got.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", PORT),
    }
    asyncio.run(app(scope, receive, send))
    found = [(name.decode().lower(), value.decode()) for name, value in got[0]["headers"]]
    return Reply(got[0]["status"], found, b"".join(part.get("body", b"") for part in got[1:]))


@dataclass
class Desk:
    """A review page that is open."""

    store: VerdictStore
    log: CorrectionLog
    session: Session
    workshop: Workshop
    guard: Guard
    app: Any
    headers: dict[str, str] = field(default_factory=lambda: {"host": HOST})

    def get(self, path: str, query: Mapping[str, Any] | None = None, **headers: str) -> Reply:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        given = f"?{urlencode(query, doseq=True, quote_via=quote)}" if query else ""
        return ask(self.app, "GET", path + given, {**self.headers, **more})

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
        own = {"content-type": "application/json", "x-review-token": self.guard.page_token}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return ask(self.app, "POST", path, {**self.headers, **own, **(headers or {})}, content)

    def ids(self) -> dict[str, int]:
        """The number of each frame, by its name."""
        return {frame["name"]: frame["id"] for frame in self.get("/api/frames").json()["frames"]}

    def correct(self, number: int, new: str, mask: str | None = None) -> Reply:
        return self.post("/api/corrections", {"id": number, "new": new, "mask": mask})


@contextmanager
def opened(
    store: Path, bundle: Path | None = None, data: Path | None = None, *, token: str | None = None, **given: Any
) -> Iterator[Desk]:
    """The page of a store. given: arguments of Workshop."""
    with VerdictStore.of_any(store) as read, CorrectionLog(default_path(store)) as log:
        session = Session(read, log, bundle, data)
        lines = store.suffix == ".jsonl"
        workshop = Workshop(session, None if lines else store, engine=lambda: {"backend": "fake"}, **given)
        guard = Guard(PORT, token)
        app = guarded(build_app(places(session, workshop, guard)), guard)
        try:
            yield Desk(read, log, session, workshop, guard, app)
        finally:
            workshop.close()


def with_features(index: int, result: Prediction) -> Prediction:
    """Features that turn from one frame to the next."""
    features = np.zeros_like(result.features)
    features[0], features[1] = np.cos(0.1 * index), np.sin(0.1 * index)
    return replace(result, features=features)


def has_page() -> bool:
    return (pages.HERE / "templates" / "index.html").is_file()
