"""The `sem-clip` program. Its sub-commands are entry points of the group `sem_clip.commands`, one class each.

So the runtime's commands work where torch is not installed, and no layer imports one above it. Only the command that
was asked for is loaded.

Exit status: 0 done; 1 done, but some frames were not read or some pictures not written; 2 an error, said in one
message; 130 interrupted (Ctrl-C), 143 terminated (SIGTERM), 129 the terminal was closed (SIGHUP).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points
from types import FrameType
from typing import Protocol

from .errors import PredictorError, SemClipError
from .packages import ROOT, own_packages_first
from .terminal import message, plain_streams, printable

GROUP = "sem_clip.commands"
NO_MEMORY = "there is not enough memory; give the process more, or close what else runs"


class Command(Protocol):
    """A sub-command; its module must be cheap to import."""

    help: str
    example: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; returns the exit status. May raise SemClipError."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status, as this module says."""
    words = list(sys.argv[1:] if argv is None else argv)
    with _standard_handles(), plain_streams():
        try:
            own_packages_first()
            command, args = _parse(words)
        except SemClipError as exc:
            return _failed(f"error: {message(exc)}")
        except KeyboardInterrupt:
            return _failed("interrupted", 128 + signal.SIGINT)
        except SystemExit:  # argparse has said everything
            _failed("")
            raise
        return run(command, args)


def describe(parser: argparse.ArgumentParser, command: Command) -> argparse.ArgumentParser:
    """Give a parser the command's description and example."""
    parser.description = command.help
    parser.epilog = f"example:\n  {command.example}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def run(command: Command, args: argparse.Namespace) -> int:
    """Run a command; errors of this project and of the system become one message and a status, bugs keep their
    traceback."""
    with _standard_handles(), plain_streams(), _signals_raise():
        log = logging.StreamHandler()
        log.setFormatter(_Text("%(levelname)s: %(message)s"))
        logging.basicConfig(handlers=[log], level=logging.WARNING)
        try:
            own_packages_first()
            status = command.run(args)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk can still be said
        except SemClipError as exc:
            return _failed(f"error: {message(exc)}")
        except BrokenPipeError:  # whoever read our output has left, as `head` does
            return _failed("")
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
    """What a record quotes is text, and stays on its line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return message(super().formatMessage(record))


def _failed(said: str, status: int = 2) -> int:
    """Say it, after what stdout still holds; where that cannot be written, the flush at exit must not complain."""
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
    """SIGTERM and SIGHUP end a command as Ctrl-C does, but where whoever started it had them ignored (nohup)."""
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
    """Where stdin, stdout or stderr was closed (>&-), the null device takes its number: else the next file would, and
    an engine's own messages would be written into it. What is asked of it fails, as of a closed one."""
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
    """The command that was asked for, and its arguments. Help needs all of them, and says which cannot be loaded."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if not points:
        raise PredictorError(
            f"sem-clip is not installed, so it has no commands: python -m pip install {ROOT}  (its source), or "
            "python export/build_engine.py there for the main job alone"
        )
    parser = argparse.ArgumentParser(
        prog="sem-clip", description="Few-shot classification and segmentation of wafer defects in SEM frames."
    )
    inner = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = words[0] if words else ""
    if asked in points:
        command: Command = _load(points[asked])
        for name in points:
            below = inner.add_parser(name)
            if name == asked:
                command.add_arguments(describe(below, command))
        return command, parser.parse_args(words)
    for name, text in sorted(_helps(points).items()):
        inner.add_parser(name, help=text)
    args = parser.parse_args(words)  # which ends here: there is no such command, or only help was asked for
    return _load(points[args.command]), args


def _load(point: EntryPoint) -> Command:
    """Raises PredictorError where the command's module, or one that it needs, is not the project's or not there."""
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
