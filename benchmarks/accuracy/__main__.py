"""`python -m benchmarks.accuracy`."""

import argparse
import sys

from benchmarks.accuracy.protocol import Accuracy
from runtime.cli import describe, run

if __name__ == "__main__":
    command = Accuracy()
    parser = describe(argparse.ArgumentParser(prog="python -m benchmarks.accuracy"), command)
    command.add_arguments(parser)
    sys.exit(run(command, parser.parse_args()))
