"""The `sem-clip` program. Its sub-commands are entry points of the group `sem_clip.commands`, one class each.

So the runtime's commands work where torch is not installed, and no layer imports one above it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Protocol

from .errors import SemClipError


class Command(Protocol):
    """A sub-command; its module must be cheap to import."""

    help: str
    example: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; returns the exit status. May raise SemClipError."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command. Exit status: 0 done, 1 done but some frames failed, 2 an error, said on one line."""
    parser = argparse.ArgumentParser(
        prog="sem-clip", description="Few-shot classification and segmentation of wafer defects in SEM frames."
    )
    inner = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands: dict[str, Command] = {}
    for point in sorted(entry_points(group="sem_clip.commands"), key=lambda point: point.name):
        command: Command = point.load()()
        commands[point.name] = command
        command.add_arguments(describe(inner.add_parser(point.name, help=command.help), command))
    args = parser.parse_args(argv)
    return run(commands[args.command], args)


def describe(parser: argparse.ArgumentParser, command: Command) -> argparse.ArgumentParser:
    """Give a parser the command's description and example."""
    parser.description = command.help
    parser.epilog = f"example:\n  {command.example}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def run(command: Command, args: argparse.Namespace) -> int:
    """Run a command; errors of this project and of the system become one message and status 2, bugs keep their
    traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return command.run(args)
    except SemClipError as exc:
        print(f"error: {exc}", file=sys.stderr)
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
    except OSError as exc:
        print(f"error: {exc.filename or 'input or output'}: {exc.strerror or exc}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
