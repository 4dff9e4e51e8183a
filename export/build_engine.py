#!/usr/bin/env python
"""The main job, from labelled frames to a bundle: `python export/build_engine.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Python puts this file's folder first on the path, where `export` itself cannot be found; the project's root can.
if not sys.flags.safe_path:
    del sys.path[0]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.commands import Build
from runtime.cli import describe, run


def main() -> int:
    """Parse, build, print a summary; 2 on an error."""
    command = Build()
    command.example = command.example.replace("sem-clip build", "python export/build_engine.py")
    parser = describe(argparse.ArgumentParser(), command)
    command.add_arguments(parser)
    return run(command, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
