"""The command `python -m export.pretrain`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from runtime.files import write_atomically
from runtime.options import at_least

from ..errors import ExportError
from ..model.checkpoint import load_model
from .schedule import SCHEDULE, PretrainSettings, parse_phases
from .training import LOG, WEIGHTS, Pretraining, weights_file

MOST_REPLAY = 0.75
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of torch; without any of these it computes bfloat16 in a slow reference implementation."""


class Pretrain:
    """Train the embedded encoder."""

    help = "Train the embedded encoder on generated frames; the same command resumes an interrupted training."
    example = "python -m export.pretrain --out runs/sem_tiny"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
        parser.add_argument(
            "--schedule",
            default=SCHEDULE,
            help="PATCHES:BATCH:STEPS of every phase; stem:PATCHES:BATCH:STEPS where the stem learns alone "
            f"(default: {SCHEDULE})",
        )
        parser.add_argument(
            "--start",
            type=Path,
            metavar="FILE",
            help="begin with the model of this checkpoint, such as before_fall.pt, or of these weights (.safetensors)",
        )
        parser.add_argument(
            "--keep",
            type=float,
            default=0.0,
            metavar="PART",
            help="write the mean of the weights before and after, with this fraction of those before: often better "
            "than either (Wortsman et al. 2022); needs --start with weights (default: 0)",
        )
        parser.add_argument(
            "--replay",
            type=float,
            default=0.0,
            metavar="PART",
            help="fraction of every batch that are the hardest recent windows, rotated anew (default: 0)",
        )
        parser.add_argument(
            "--leave-stem", action="store_true", help="freeze the stem, which saves a fifth of the time"
        )
        parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
        parser.add_argument(
            "--bf16",
            action="store_true",
            help="MatMuls in bfloat16: for GPUs, and CPUs with AVX512-BF16 or AMX",
        )
        parser.add_argument("--seed", type=at_least(0), default=0, help="of windows and weights (default: 0)")
        parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="above 0, below 1 (default: 1.5e-3)")
        parser.add_argument(
            "--decay", type=float, default=0.3, help="fraction of all steps with falling rate, 0 to 1 (default: 0.3)"
        )
        parser.add_argument("--workers", type=at_least(0), default=1, help="processes that make frames (default: 1)")
        parser.add_argument("--threads", type=at_least(1), help="CPU threads of the trainer (default: all)")
        parser.add_argument("--log-every", type=at_least(1), default=50, metavar="STEPS", help="(default: 50)")
        parser.add_argument("--save-every", type=at_least(1), default=50, metavar="STEPS", help="(default: 50)")

    def run(self, args: argparse.Namespace) -> int:
        """Train, then write the weights."""
        _check(args)
        settings = PretrainSettings(
            parse_phases(args.schedule),
            seed=args.seed,
            learning_rate=args.learning_rate,
            decay=args.decay,
            bf16=args.bf16,
            replay=args.replay,
            stem_learns=not args.leave_stem,
        )
        before = load_model("sem_tiny", weights=args.start).clip.state_dict() if args.keep else None
        training = Pretraining(settings, args.out, start=args.start, device=args.device)
        done = training.run(
            workers=args.workers, log_every=args.log_every, save_every=args.save_every, threads=args.threads
        )
        if not done:
            print(f"stopped at step {training.step} of {settings.steps}; the same command resumes it")
            return 1
        write_atomically(args.out / WEIGHTS, weights_file(training, before=before, keep=args.keep))
        print(f"weights   {args.out / WEIGHTS}, {(args.out / WEIGHTS).stat().st_size / 1e6:.1f} MB")
        print(f"log       {args.out / LOG}")
        return 0


def _check(args: argparse.Namespace) -> None:
    """Raise ExportError for options that are out of range or do not fit together."""
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ExportError(f"--device {args.device}: this torch sees no GPU; leave it out to train on the CPU")
    if args.bf16 and args.device == "cpu" and not any(map(torch.cpu.get_capabilities().get, BF16_INSTRUCTIONS)):
        raise ExportError(
            "--bf16: this CPU has no instructions for bfloat16, and would take many times longer; leave it out"
        )
    if not (0 < args.learning_rate < 1 and 0 <= args.decay <= 1):
        raise ExportError(
            f"--learning-rate {args.learning_rate:g} --decay {args.decay:g} cannot be: the rate lies between 0 and "
            "1, and the decay is a fraction of all steps, 0 to 1"
        )
    if args.device not in ("cpu", "cuda") and not args.device.startswith("cuda:"):
        raise ExportError(f"--device {args.device} is not known; write cpu or cuda")
    if not 0 <= args.replay <= MOST_REPLAY:
        raise ExportError(f"--replay {args.replay:g} cannot be: 0 to {MOST_REPLAY:g}, the rest of a batch is new")
    if args.leave_stem and args.start is None:
        raise ExportError("--leave-stem needs weights whose stem has learned something; name them: --start FILE")
    if not 0 <= args.keep < 1:
        raise ExportError(f"--keep {args.keep:g} cannot be: 0 to below 1")
    if args.keep and (args.start is None or args.start.suffix != ".safetensors"):
        raise ExportError("--keep needs weights to keep a part of; name them: --start FILE.safetensors")
