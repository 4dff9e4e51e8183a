"""Accuracy of what ships, by the paper's protocol (section 4): recipes taught on K shots, judged through `Predictor` on
the exported bundle, never through torch.

    python -m benchmarks.accuracy --data DIR --arch FILE --weights FILE --shots 1,2,5,10 --seeds 5 --out accuracy/

Supports come from a pool of groups. The test set is every frame of every other group (export/teaching/supports.py,
split_by_group), the same for every number of shots. Pixel metrics compare the up-sampled map with the mask at the
frame's own size.

--ablations, --baselines and --classifier judge other recipes, simpler methods and pretrained classifiers on the same
supports and frames. Each row of the table names the supervision that it had. --precisions judges other artifacts of the
same bundle. int8 is quantized for every seed, on frames that the seed does not test on; a seed whose int8 form
`sem-clip quantize` would refuse has no int8 row.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.accuracy.ablations import ABLATIONS, ENCODED_ABLATIONS, LAST_LEVEL
from benchmarks.accuracy.comparison import Comparison, add_comparison_arguments
from benchmarks.accuracy.measurement import Measurement, Plan
from benchmarks.accuracy.results import JSON_FILE, TABLE_FILE, write_summary
from benchmarks.accuracy.table import summarize
from calibration.dataset import Dataset, load_dataset, say_left_out
from calibration.plots import require_matplotlib
from export.bundle import describe_encoder
from export.errors import ExportError
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.options import METHOD_NAMES, add_frame_arguments, add_tile_arguments, frame_options, pixel_size, tiling
from export.pretrain.windows import HELD_OUT_LAYOUTS
from export.synthetic import write_dataset
from runtime.backends import NAMES
from runtime.files import require_files
from runtime.manifest import PRECISIONS, Encoder
from runtime.options import at_least, name_of

GENERATED_SEED = 2025
GENERATED_FIELD, GENERATED_DEFECTS = 256, (8, 40)
"""With --generated-size: the side in px that patterns scale with, and the range of a defect's longer side in px."""


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Declare the data, and the encoder that is judged on it."""
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="labelled frames: images/<class>/, optional masks/<class>/ and groups.csv; or a folder of Carinthia-S",
    )
    source.add_argument(
        "--generated",
        type=at_least(1),
        metavar="N",
        help="N generated frames per class, of layouts that the embedded encoder was not trained on",
    )
    data.add_argument(
        "--generated-size",
        type=at_least(256, 4096),
        metavar="PIXELS",
        help="generate square frames of so many pixels, 256 to 4096, whose defects are 8 to 40 pixels long (default: "
        "frames of the encoder's size, whose defects scale with them)",
    )
    data.add_argument(
        "--classes", metavar="A,B,...", help="only these classes, good among them (default: all in the folder)"
    )
    add_frame_arguments(data)
    add_tile_arguments(data)
    encoder = parser.add_argument_group("encoder")
    encoder.add_argument(
        "--arch", required=True, metavar="NAME|FILE", help="architecture, or open_clip configuration file"
    )
    encoder.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights of --arch (default: those included, for sem_tiny)"
    )
    encoder.add_argument("--random-weights", action="store_true", help="an untrained encoder, seed 0")
    encoder.add_argument(
        "--image-size",
        type=pixel_size,
        metavar="HxW",
        help="encode at this size in pixels (default: the architecture's own)",
    )


class Accuracy:
    """The command."""

    help = "Measure accuracy over shots and seeds, through the exported bundle."
    example = "python -m benchmarks.accuracy --data frames/ --arch vit_b_16_plus_240 --weights FILE --shots 1,5,10"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_subject(parser)
        what = parser.add_argument_group("what to measure")
        what.add_argument(
            "--shots", default="1,2,5,10", metavar="K,...", help="support frames per class (default: 1,2,5,10)"
        )
        what.add_argument(
            "--seeds", type=at_least(1), default=5, metavar="N", help="draws of supports for each of them (default: 5)"
        )
        what.add_argument(
            "--first-seed",
            type=at_least(0),
            default=0,
            metavar="N",
            help="first seed; others than 0 check a choice on fresh draws (default: 0)",
        )
        what.add_argument(
            "--method",
            choices=METHOD_NAMES,
            default="default",
            help="paper: SEM-CLIP as published (default: default)",
        )
        what.add_argument(
            "--precisions",
            default="fp32",
            metavar="NAME,...",
            help=f"what to compute in, fp32 and some of {', '.join(PRECISIONS[1:])} (default: fp32)",
        )
        what.add_argument(
            "--backend",
            type=name_of("backend", NAMES),
            default="auto",
            metavar="NAME",
            help=f"engine of every precision, one of {', '.join(NAMES)} (default: auto)",
        )
        what.add_argument(
            "--ablations",
            action="store_true",
            help=f"also judge {', '.join((*ABLATIONS, LAST_LEVEL, *ENCODED_ABLATIONS))}; takes several times as long",
        )
        add_comparison_arguments(parser)
        output = parser.add_argument_group("output")
        output.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="write accuracy.json, accuracy.md and pictures into DIR (default: print the table only)",
        )
        output.add_argument(
            "--force", action="store_true", help="replace an earlier measurement in DIR (default: refuse)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Measure, print a table, write."""
        with tempfile.TemporaryDirectory() as work:
            plan = _read_plan(args, Path(work))
            measurement = Measurement(plan)
            measurement.run()
            table = summarize(measurement.rows, plan.shots)
            print(table)
            if plan.out:
                write_summary(plan.out, plan.dataset.classes, measurement.rows, table, measurement.overlays)
        return 0


def _read_plan(args: argparse.Namespace, work: Path) -> Plan:
    """Check the arguments, cheapest first, and load the model and the data.

    Raises ExportError, CheckpointError, DatasetError, PredictorError, PlotsUnavailable.
    """
    shots, precisions, options = _numbers(args.shots), _precisions(args.precisions), frame_options(args)
    if args.ablations and args.method == "paper":
        raise ExportError("--ablations changes one part of the default method at a time: leave out --method paper")
    if args.out:  # before hours of measuring, not after
        require_files([args.out / JSON_FILE, args.out / TABLE_FILE], force=args.force)
        require_matplotlib()
    comparison, tiles = Comparison.from_arguments(args), tiling(args)
    if tiles is not None and (args.ablations or comparison.baselines or comparison.classifiers):
        raise ExportError("--ablations, --baselines and --classifier read whole frames: leave out --tile")
    seed = 0 if args.random_weights else None
    model = load_model(args.arch, weights=args.weights, random_seed=seed, image_size=args.image_size)
    graph = SemClipGraph(model.encoder())
    encoder = describe_encoder(model, graph)
    return Plan(
        model,
        graph,
        encoder,
        load_data(args, encoder, work / "generated"),
        shots,
        range(args.first_seed, args.first_seed + args.seeds),
        precisions,
        args.backend,
        args.method,
        args.ablations,
        comparison,
        options,
        tiles,
        args.out,
        work,
    )


def load_data(args: argparse.Namespace, encoder: Encoder, generated: Path) -> Dataset:
    """The requested classes of the data folder or of frames generated in the folder `generated`."""
    if args.generated is not None:
        # At the encoder's input size: the generator ensures that a defect is visible at the size it makes.
        write = partial(write_dataset, per_class=args.generated, seed=GENERATED_SEED, layouts=HELD_OUT_LAYOUTS)
        if args.generated_size is None:
            write(generated, size=encoder.input_size)
        else:
            size = args.generated_size, args.generated_size
            write(generated, size=size, field=GENERATED_FIELD, defect_px=GENERATED_DEFECTS)
    dataset = load_dataset(args.data or generated)
    if args.classes is not None:
        dataset = dataset.only(args.classes.split(","))
    say_left_out(dataset)
    return dataset


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise ExportError(f'--shots is "{text}"; write whole numbers from 1 on, such as 1,2,5,10')
    return numbers


def _precisions(text: str) -> list[str]:
    names = text.split(",")
    if names[0] != "fp32" or not set(names) <= set(PRECISIONS):
        others = ", ".join(PRECISIONS[1:])
        raise ExportError(f'--precisions is "{text}"; write fp32 first, then some of {others}, such as fp32,int8')
    return names
