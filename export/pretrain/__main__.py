"""`python -m export.pretrain`."""

import argparse
import sys

from export.pretrain.command import Pretrain
from runtime.cli import describe, run

if __name__ == "__main__":
    command = Pretrain()
    parser = describe(argparse.ArgumentParser(prog="python -m export.pretrain"), command)
    command.add_arguments(parser)
    sys.exit(run(command, parser.parse_args()))
