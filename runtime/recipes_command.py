"""`sem-clip recipes`: the recipes that a bundle has had, another one in their place, and back."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .errors import PredictorError
from .manifest import load_bundle
from .options import add_bundle_argument, at_least
from .recipe_history import MAX_NOTE, UNJUDGED, Kept, accept, go_back, read_history
from .terminal import printable, require_stdout


class Recipes:
    """The history of a bundle's recipes."""

    help = "List the recipes that a bundle has had, accept another one with a note, or go back to an earlier one."
    example = (
        'sem-clip recipes bundle --accept taught-again.safetensors --note "bridges of lot 7"\n'
        "  sem-clip recipes bundle --back 1"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser)
        way = parser.add_mutually_exclusive_group()
        way.add_argument(
            "--accept",
            type=Path,
            metavar="FILE",
            help="make this recipe the bundle's own, as `sem-clip teach` writes it, and keep the one before (default: "
            "list the history)",
        )
        way.add_argument(
            "--back",
            type=at_least(1),
            metavar="N",
            help="make the recipe of line N the bundle's own again, as a further line (default: list the history)",
        )
        parser.add_argument(
            "--note",
            default="",
            metavar="TEXT",
            help=f"why, for the history; {MAX_NOTE} characters at most (default: none; --accept needs one)",
        )
        parser.add_argument(
            "--json", action="store_true", help="print the history as one JSON list (default: lines for people)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Change the bundle if that is asked for, and print its history."""
        if args.note and args.accept is None and args.back is None:
            raise PredictorError("--note is of a change: add --accept or --back")
        if args.accept is not None and not args.note.strip():
            raise PredictorError("--accept needs --note: say in a few words what this recipe is for")
        if args.accept is not None:
            accept(args.bundle, args.accept, args.note)
        elif args.back is not None:
            go_back(args.bundle, args.back, args.note)
        require_stdout("give the program one")
        recipe = load_bundle(args.bundle)[1]
        if args.accept is not None and isinstance(why := recipe.teaching.get(UNJUDGED), str) and why:
            print(f"warning: {printable(why)}", file=sys.stderr)
        present, lines = recipe.sha256(), read_history(args.bundle)
        if args.json:
            print(json.dumps([line.to_dict() for line in lines]))
        else:
            print("\n".join(history_lines(lines, present)))
        return 0


def history_lines(lines: list[Kept], present: str) -> list[str]:
    """The history for people, and where the bundle is in it. present: SHA-256 of the recipe in use."""
    shown = [
        printable(
            f"{line.number:>3}  {line.when}  {line.who:<12} {_action(line):<12} {line.sha256[:12]}  "
            f"{len(line.classes)} classes{f'  {line.note}' if line.note else ''}"
        )
        for line in lines
    ]
    if lines and lines[-1].sha256 == present:
        return [*shown, f"in use: recipe {lines[-1].number}"]
    why = "which came into the bundle in another way" if lines else "and no other one was accepted yet"
    return [*shown, f"in use: recipe {present[:12]}, {why}"]


def _action(line: Kept) -> str:
    return line.action if line.back_to is None else f"{line.action} to {line.back_to}"
