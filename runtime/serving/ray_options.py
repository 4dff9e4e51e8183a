"""Options of `sem-clip predict` for its engine `ray`. Imports nothing of Ray."""

from __future__ import annotations

import argparse

from ..errors import PredictorError
from ..options import at_least, name_of

ENGINES = ("stream", "ray")


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --engine, --workers and --address."""
    group = parser.add_argument_group(
        "scale",
        "With --engine ray many workers judge an archive. PATH may also be a URI (s3://bucket/lot)\n"
        "or a Parquet file of frames, and the FILE of --parquet is a folder: a run that is repeated\n"
        "adds the answers that are missing there.",
    )
    group.add_argument(
        "--engine",
        type=name_of("engine", ENGINES),
        default=ENGINES[0],
        metavar="NAME",
        help="stream: in this process; ray: in workers of Ray, on this machine or a cluster (default: stream)",
    )
    group.add_argument(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="workers of --engine ray, each with its own engine of --threads threads, 1 there unless you choose; on a "
        "GPU backend one GPU each (default: as many as there is room for)",
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster that runs already; auto: the one that this machine belongs to (default: none, this machine)",
    )


def uses_ray(args: argparse.Namespace) -> bool:
    """Whether --engine ray was chosen. Raises PredictorError for options that only it has."""
    if args.engine == "ray":
        return True
    for option, value in (("--workers", args.workers), ("--address", args.address)):
        if value is not None:
            raise PredictorError(f"{option} is an option of --engine ray alone: add that, or leave it out")
    return False
