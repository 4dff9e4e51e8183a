"""The `sem-clip` program. Its sub-commands are entry points of the group `sem_clip.commands`, one class each.

So the runtime's commands work without torch, and no layer imports one above it. The program loads only the command
that was asked for.

All commands share their habits. Results go to stdout or to files. Progress, notes and errors go to stderr, without
colours; bars appear only on a terminal. EXIT_STATUS lists what a command returns.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from .errors import PredictorError, SemClipError
from .packages import ROOT, own_packages_first
from .terminal import message, plain_streams, printable

GROUP = "sem_clip.commands"
NO_MEMORY = "there is not enough memory; give the process more, or close other programs"
READER_LEFT = 141
EXIT_STATUS = {
    0: "done",
    1: "done, but some frames were not read, pictures not written, or engines not qualified",
    2: "an error: one message on stderr",
    3: "all engines are qualified, but one is slower than its target (verify)",
    129: "the terminal was closed (SIGHUP)",
    130: "interrupted (Ctrl-C)",
    READER_LEFT: "the reader of the output has left (as `head` does); no message",
    143: "terminated (SIGTERM)",
}
SHELLS = ("bash", "zsh", "tcsh", "fish")


class Command(Protocol):
    """A sub-command; its module must be cheap to import."""

    help: str
    example: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; returns the exit status. May raise SemClipError."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns one of EXIT_STATUS."""
    words = list(sys.argv[1:] if argv is None else argv)
    with _standard_handles(), plain_streams():
        try:
            own_packages_first()
            command, args = _parse(words)
        except SemClipError as exc:
            return _failed(f"error: {message(exc)}")
        except BrokenPipeError:
            return _failed("", READER_LEFT)
        except KeyboardInterrupt:
            return _failed("interrupted", 128 + signal.SIGINT)
        except SystemExit:  # argparse has printed everything
            _failed("")
            raise
        return run(command, args)


def describe(parser: argparse.ArgumentParser, command: Command) -> argparse.ArgumentParser:
    """Give a parser the command's description and example."""
    parser.description = command.help
    parser.epilog = f"example:\n  {command.example}"
    return _plain(parser)


def _plain(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Keep the lines of description and epilog; no colours, which Python 3.14 would add."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False  # a new option must not change what an abbreviation means
    parser.color = False  # type: ignore[attr-defined, unused-ignore]
    return parser


def run(command: Command, args: argparse.Namespace) -> int:
    """Run a command; returns one of EXIT_STATUS.

    Errors of this project and of the system become one message; bugs keep their traceback.
    """
    with _standard_handles(), plain_streams(), _signals_raise():
        log = logging.StreamHandler()
        log.setFormatter(_Text("%(levelname)s: %(message)s"))
        logging.basicConfig(handlers=[log], level=logging.WARNING)
        try:
            own_packages_first()
            status = command.run(args)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk can still be reported
        except SemClipError as exc:
            return _failed(f"error: {message(exc)}")
        except BrokenPipeError:  # the reader of our output has left, as `head` does
            return _failed("", READER_LEFT)
        except OSError as exc:
            return _failed(f"error: {printable(exc.filename or 'input or output')}: {printable(exc.strerror or exc)}")
        except MemoryError:
            return _failed(f"error: {NO_MEMORY}")
        except RuntimeError as exc:
            if "can't start new thread" not in str(exc):
                raise
            return _failed(f"error: {exc}: {NO_MEMORY}")
        except _Ended as exc:
            return _failed("terminated", 128 + exc.number)
        except KeyboardInterrupt:
            return _failed("interrupted", 128 + signal.SIGINT)
        return status


class _Text(logging.Formatter):
    """Escapes what a record quotes, so that the record stays on its line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return message(super().formatMessage(record))


def _failed(said: str, status: int = 2) -> int:
    """Print a last message after what stdout still holds; returns the status.

    Where stdout cannot be written, the flush at exit must not complain.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if said:
        print(said, file=sys.stderr)
    return status


class _Ended(KeyboardInterrupt):
    """A signal that ends the program; like Ctrl-C, it lets every block clean up behind itself."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, except where they were ignored at the start (nohup)."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _: FrameType | None) -> None:
        raise _Ended(number)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _standard_handles() -> Iterator[None]:
    """Where stdin, stdout or stderr was closed (>&-), the null device takes its number.

    Otherwise the next file would take it, and an engine's own messages would be written into that file. Reading and
    writing fail, as on a closed stream.
    """
    opened = []
    if os.name == "posix":
        for number in (0, 1, 2):
            try:
                os.fstat(number)
            except OSError:
                # The lowest free number, so this one.
                opened.append(os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY))
    try:
        yield
    finally:
        for handle in opened:
            os.close(handle)


def _parse(words: list[str]) -> tuple[Command, argparse.Namespace]:
    """The command that was asked for, and its arguments. Help names all commands, also those that cannot be loaded."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if not points:
        raise PredictorError(
            f"sem-clip is not installed, so it has no commands: python -m pip install {ROOT}  (its source), or "
            "python export/build_engine.py there for the main job alone"
        )
    parser, inner = _program()
    asked = words[0] if words else ""
    if asked in points:
        command: Command = _load(points[asked])
        below = {name: inner.add_parser(name) for name in points}
        command.add_arguments(describe(below[asked], command))
        return command, _arguments(parser, below[asked], words)
    if asked not in ("--version", "--completion"):
        for name, text in sorted(_helps(points).items()):
            inner.add_parser(name, help=text)
    args = parser.parse_args(words)  # which ends here: there is no such command, or an option answered
    return _load(points[args.command]), args


def _arguments(parser: argparse.ArgumentParser, below: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The arguments of the command that the first word names; options may stand among its positional arguments.

    argparse fills an argument of `*` as soon as it could be empty, so `BUNDLE --out X LOT` would leave LOT over.
    """
    args, left = parser.parse_known_args(words)
    if left:
        args, left = below.parse_known_intermixed_args(words[1:])
        args.command = words[0]
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return args


def _program() -> tuple[argparse.ArgumentParser, Any]:
    """The parser of the program, and the place of its commands."""
    parser = _plain(argparse.ArgumentParser(prog="sem-clip"))
    parser.description = "Few-shot classification and segmentation of wafer defects in SEM frames."
    statuses = "\n".join(f"  {status:<5}{meaning}" for status, meaning in EXIT_STATUS.items())
    parser.epilog = f"`sem-clip COMMAND --help` lists the options of a command.\n\nexit status:\n{statuses}"
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions of sem-clip and Python")
    parser.add_argument(
        "--completion",
        action=_Completion,
        choices=SHELLS,
        help='print a completion script for this shell; needs pip install "sem-clip[completion]"',
    )
    return parser, parser.add_subparsers(dest="command", required=True, metavar="COMMAND")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            version = metadata.version("sem-clip")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"sem-clip {version}, Python {platform.python_version()}")
        parser.exit()


class _Completion(argparse.Action):
    """Loads all commands, and shtab; nothing else does."""

    def __call__(self, parser: argparse.ArgumentParser, _: argparse.Namespace, shell: Any, *__: Any) -> None:
        try:
            import shtab
        except ImportError as exc:
            raise PredictorError(f'completion needs shtab ({exc}): pip install "sem-clip[completion]"') from exc
        program, inner = _program()
        for point in entry_points(group=GROUP):
            command = _load(point)
            below = describe(inner.add_parser(point.name, help=command.help), command)
            command.add_arguments(below)
            for action in below._actions:
                if action.type is Path or action.metavar in ("PATH", "FILE", "DIR"):
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(program, shell))
        parser.exit()


def _load(point: EntryPoint) -> Command:
    """Raises PredictorError where the command's module, or one that it needs, is missing or not the project's."""
    try:
        command: Command = point.load()()
    except (ImportError, AttributeError) as exc:
        raise PredictorError(f'the command "{point.name}" cannot be loaded ({point.value}): {exc}') from exc
    return command


def _helps(points: Mapping[str, EntryPoint]) -> dict[str, str]:
    helps = {}
    for name, point in points.items():
        try:
            helps[name] = _load(point).help
        except PredictorError as exc:
            helps[name] = str(exc).replace("%", "%%")
    return helps


if __name__ == "__main__":
    sys.exit(main())
