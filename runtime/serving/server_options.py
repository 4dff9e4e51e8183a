"""`--backend triton` and its options, for the commands that run a bundle on one engine."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..backends import Backend
from ..backends.triton import MAX_TIMEOUT_S, TIMEOUT_S, TritonBackend
from ..errors import BackendUnavailable, PredictorError
from .served import NAME

_OPTIONS = {"url": "--url", "model": "--model", "timeout": "--timeout", "ssl_roots": "--ssl-roots"}


def add_server_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the options that --backend triton needs. Their values are None where they are not given."""
    group.add_argument(
        "--url",
        metavar="HOST:PORT",
        help="gRPC service of the inference server, for --backend triton; Triton's port is 8001 (default: none)",
    )
    group.add_argument("--model", metavar="NAME", help=f"model on that server, for --backend triton (default: {NAME})")
    group.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help=f"seconds that one batch may take there, for --backend triton (default: {TIMEOUT_S:g})",
    )
    group.add_argument(
        "--ssl-roots",
        type=Path,
        metavar="FILE",
        help="PEM file of the certificates to trust, for --backend triton (default: no encryption)",
    )


def chosen_backend(args: argparse.Namespace) -> str | Backend:
    """The backend as `Predictor` takes it: a name, or the connection to the server.

    Raises as `require_no_server` and `connect`.
    """
    if args.backend == TritonBackend.name:
        return connect(args)
    require_no_server(args)
    return str(args.backend)


def require_no_server(args: argparse.Namespace) -> None:
    """Raise PredictorError if an option for a server is given; call it where another backend is chosen."""
    given = [option for name, option in _OPTIONS.items() if getattr(args, name, None) is not None]
    if given:
        raise PredictorError(f"{given[0]} belongs to --backend triton: add that, or leave {given[0]} out")


def connect(args: argparse.Namespace) -> TritonBackend:
    """The connection to the server that the options name.

    Raises PredictorError for options that do not go together, BackendUnavailable as TritonBackend, and for a server
    that computes in another precision than the one asked for.
    """
    if args.url is None:
        raise PredictorError("--backend triton needs the address of a server: --url HOST:PORT of its gRPC service")
    if args.threads:
        raise PredictorError(
            "--threads is for engines on this machine: set the server's with sem-clip triton-repository --threads"
        )
    backend = TritonBackend(
        args.url,
        NAME if args.model is None else args.model,
        timeout_s=TIMEOUT_S if args.timeout is None else args.timeout,
        ssl_roots=args.ssl_roots,
    )
    if args.precision not in (None, backend.precision):
        backend.close()
        raise BackendUnavailable(
            f"{backend.where} computes in {backend.precision}, not in {args.precision}: leave --precision out, or "
            f"write the server's repository with --precision {args.precision}"
        )
    return backend


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number') from None
    if not 1e-3 <= value <= MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"must lie in [0.001, {MAX_TIMEOUT_S:g}], not {value:g}")
    return value
