"""`sem-clip review`: serve the review page of a store of verdicts."""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.errors import PredictorError
from runtime.options import add_engine_arguments, at_least, engine_options
from runtime.terminal import require_stdout
from runtime.verdict_store import Query, VerdictStore

from ..corrections import CorrectionLog, default_path
from ..dataset import load_dataset
from ..errors import CorrectionError
from .alike import Alike
from .app import Application, build_app, first_page, guarded, own_files, visit
from .correcting import MOST_BODY, Correcting
from .figures import Figures
from .listing import Listing
from .pictures import Pictures
from .security import Guard, choose_token, is_loopback, listen
from .session import Session
from .web import Place
from .workshop import Workshop

NEEDED = ("starlette", "uvicorn", "jinja2")
_MOST_CONNECTIONS = 100


class Review:
    """A page to look at verdicts, correct them and teach again."""

    help = "Serve a page on this machine to look at verdicts, correct them and teach again."
    example = (
        "sem-clip review verdicts.db --bundle bundle --data frames/\n"
        "  sem-clip review verdicts.jsonl          (without maps: JSON lines hold none)"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "store",
            type=Path,
            metavar="STORE",
            help="verdicts as `sem-clip predict --store FILE` writes them, or the JSON lines of `predict --json FILE`",
        )
        parser.add_argument(
            "--corrections",
            type=Path,
            metavar="FILE",
            help="where corrections are written (default: beside STORE, with the suffix .corrections.jsonl)",
        )
        teaching = parser.add_argument_group("teaching again")
        teaching.add_argument(
            "--bundle",
            type=Path,
            metavar="DIR",
            help="bundle whose recipe is taught again, and judges again (default: none, only look and correct)",
        )
        teaching.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help="labelled frames that taught that recipe; they also show its supports (default: none)",
        )
        teaching.add_argument(
            "--weights",
            type=Path,
            metavar="FILE",
            help="weights of the bundle's encoder, as for `sem-clip teach` (default: those that are included)",
        )
        server = parser.add_argument_group("server")
        server.add_argument(
            "--host",
            default="127.0.0.1",
            metavar="ADDRESS",
            help="address to listen at; another than this machine's own needs the token that is in the address printed "
            "(default: 127.0.0.1, this machine alone)",
        )
        server.add_argument(
            "--port", type=at_least(0, 65535), default=0, metavar="N", help="port, 0 to 65535 (default: 0, a free one)"
        )
        server.add_argument(
            "--token-file",
            type=Path,
            metavar="FILE",
            help="file that holds the token to ask for, also of this machine's users (default: one that is made up "
            "where --host needs it)",
        )
        server.add_argument(
            "--open", action="store_true", help="open the page in this machine's browser (default: print its address)"
        )
        add_engine_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print the address and serve until Ctrl-C."""
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise PredictorError(f'the review page needs {", ".join(missing)}: pip install "sem-clip[review]"')
        require_stdout("it would take the address of the page")
        token = choose_token(args.host, args.token_file)
        if args.data is not None:
            load_dataset(args.data)  # what is no data folder is said now, not once somebody teaches
        with ExitStack() as open_things:
            store = open_things.enter_context(VerdictStore.of_any(args.store))
            log = open_things.enter_context(_log_of(args))
            session = Session(store, log, args.bundle, args.data)
            workshop = Workshop(
                session, None if store.of_lines else args.store, args.weights, lambda: engine_options(args)
            )
            open_things.enter_context(closing(workshop))
            socket = open_things.enter_context(listen(args.host, args.port))
            port = socket.getsockname()[1]
            guard = Guard(port, token)
            app = build_app(places(session, workshop, guard))
            server = server_of(guarded(app, guard))
            asyncio.run(visit(app, first_looks(store)))
            url = address(args.host, port, token)
            print(f"review page: {url}{'' if is_loopback(args.host) else '  (not encrypted)'}", flush=True)
            if args.open:
                import webbrowser

                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
            server.run(sockets=[socket])  # until a signal ends it, which is then raised again
        return 0


def places(session: Session, workshop: Workshop, guard: Guard) -> Sequence[Place]:
    """All addresses of the page's server."""
    pictures = Pictures(session)
    listing = Listing(session, guard.page_token, workshop.facts)
    figures, alike, correcting = Figures(session), Alike(session, pictures), Correcting(session, pictures)
    return [
        first_page(),
        *own_files(),
        Place("/api/facts", listing.facts),
        Place("/api/frames", listing.frames),
        Place("/api/frames/{id}", listing.frame),
        Place("/api/frames/{id}/similar", alike.similar),
        Place("/api/frames/{id}/supports", alike.supports),
        Place("/api/wafer", listing.wafer),
        Place("/api/summary", figures.summary),
        Place("/api/operating-point", figures.moved),
        Place("/picture/{id}", pictures.picture),
        Place("/map/{id}", pictures.map),
        Place("/outline/{id}", pictures.outline),
        Place("/mask/{id}", pictures.mask),
        Place("/support/{number}", alike.support),
        Place("/api/corrections", correcting.correct, "POST", MOST_BODY),
        Place("/api/corrections/undo", correcting.undo, "POST"),
        Place("/api/teach", workshop.state),
        Place("/api/teach", workshop.teach, "POST"),
        Place("/api/teach/accept", workshop.accept, "POST"),
        Place("/api/teach/discard", workshop.discard, "POST"),
        Place("/api/judge", workshop.judge, "POST"),
        Place("/api/recipes", workshop.recipes),
        Place("/api/recipes/back", workshop.back, "POST"),
    ]


def _log_of(args: argparse.Namespace) -> CorrectionLog:
    """The file of corrections, open to write. Raises CorrectionError, with what to do where the place takes no file."""
    try:
        return CorrectionLog(args.corrections or default_path(args.store))
    except CorrectionError as exc:
        causes = [cause := exc.__cause__, None if cause is None else cause.__cause__]
        if args.corrections is None and any(isinstance(one, OSError) for one in causes):
            faults = [f"{fault}: name a file in another folder with --corrections FILE" for fault in exc.faults]
            raise CorrectionError(default_path(args.store), faults) from exc
        raise


def address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    import socket
    from urllib.parse import quote

    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={quote(token, safe='')}" if token is not None else "")


def first_looks(store: VerdictStore) -> list[str]:
    """What a browser asks for first: the list, and all of its first frame."""
    first = [str(entry.id) for entry in store.entries(Query(), 0, 1)]
    of_frame = ("/picture/{}?size=thumb", "/api/frames/{}", "/api/frames/{}/similar")
    return ["/", "/api/facts", "/api/frames", *(path.format(number) for number in first for path in of_frame)]


def server_of(app: Application) -> Any:
    """A server of the application: no log of requests, no names of software, no trust in headers of proxies."""
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type, unused-ignore]
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    config.load()
    return uvicorn.Server(config)
