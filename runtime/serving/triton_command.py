"""`sem-clip triton-repository`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import MAX_THREADS
from ..options import add_bundle_argument, at_least, name_of
from ..targets import STORED_PRECISIONS
from ..terminal import printable
from .served import NAME
from .triton_repository import Wishes, write_repository


class TritonRepository:
    """A bundle as the models of an inference server."""

    help = "Write a bundle as a model repository for NVIDIA's Triton Inference Server."
    example = (
        "sem-clip triton-repository bundle models/\n"
        "  sem-clip triton-repository bundle models/ --recipe metal1.safetensors --recipe metal2.safetensors --gpu"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser)
        parser.add_argument("out", type=Path, metavar="OUT", help="new folder, for tritonserver --model-repository=OUT")
        models = parser.add_argument_group("models")
        models.add_argument(
            "--recipe",
            type=Path,
            action="append",
            default=[],
            metavar="FILE",
            help="recipe of version 1; given again, of version 2 and so on; each is a model that the server loads "
            "(default: the bundle's own)",
        )
        models.add_argument(
            "--name", default=NAME, metavar="NAME", help=f"name of the models on the server (default: {NAME})"
        )
        models.add_argument(
            "--precision",
            type=name_of("precision", STORED_PRECISIONS),
            metavar="NAME",
            help=f"one of {', '.join(STORED_PRECISIONS)}, held by the bundle (default: fp16 with --gpu, else fp32)",
        )
        server = parser.add_argument_group("server")
        server.add_argument(
            "--gpu",
            action="store_true",
            help="run on the server's GPUs, also by the bundle's TensorRT engines (default: on its CPU)",
        )
        server.add_argument(
            "--engine",
            action="append",
            default=[],
            metavar="FILE",
            help="TensorRT engine of the bundle, where it holds several for one GPU (default: the only one for each)",
        )
        server.add_argument(
            "--instances",
            type=at_least(1, 64),
            default=1,
            metavar="N",
            help="copies of each model that run at the same time, on each GPU (default: 1)",
        )
        server.add_argument(
            "--threads",
            type=at_least(0, MAX_THREADS),
            default=0,
            metavar="N",
            help=f"CPU threads of each copy, 0 to {MAX_THREADS} (default: 0, all cores)",
        )
        parser.add_argument(
            "--force", action="store_true", help="replace an earlier repository in OUT (default: refuse)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Write, and print what the server will hold."""
        wishes = Wishes(
            name=args.name,
            recipes=args.recipe,
            precision=args.precision,
            gpu=args.gpu,
            instances=args.instances,
            threads=args.threads,
            engines=args.engine,
        )
        for line in write_repository(args.bundle, args.out, wishes, force=args.force):
            print(printable(line))
        print(f"written {args.out}; start the server with: tritonserver --model-repository={args.out}")
        return 0
