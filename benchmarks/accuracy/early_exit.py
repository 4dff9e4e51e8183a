"""Would it pay to look at the whole frame first, and at tiles only where that is not sure?

    python -m benchmarks.accuracy.early_exit bundle frames/ --whole whole.safetensors --tiles tiles.safetensors

The two recipes were taught by the same frames, and judge all frames that taught neither. Frames with the lowest defect
scores of the whole view are then taken for good without a look at their tiles. The table shows what that saves, in runs
of the engine, and what it misses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.evaluate import without_supports
from calibration.dataset import GOOD, Sample, load_dataset
from calibration.errors import DatasetError
from calibration.metrics import auroc
from runtime import FailedFrame, Predictor
from runtime.cli import describe, run
from runtime.options import add_bundle_argument, add_engine_arguments, engine_options

SHARES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)
"""Of frames that are read in tiles."""


def curve(
    whole: NDArray[np.float64], is_defect: NDArray[np.bool_], called: NDArray[np.bool_], tiles: float
) -> list[dict[str, float]]:
    """A row for each of SHARES: the frames with the highest `whole` scores are read in tiles.

    whole: defect scores of whole frames, [n]. is_defect: the truth. called: the verdicts by tiles. tiles: how many a
    frame has. speed: in relation to reading all frames in tiles, without the whole view first.
    """
    order = np.argsort(-whole, kind="stable")
    rows = []
    for share in SHARES:
        read = np.zeros(len(whole), bool)
        read[order[: round(share * len(whole))]] = True
        runs = tiles if share == 1 else 1 + read.mean() * tiles
        found = called & read
        rows.append(
            {
                "share": share,
                "speed": tiles / runs,
                "underkill": float(1 - found[is_defect].mean()),
                "overkill": float(found[~is_defect].mean()),
            }
        )
    return rows


class EarlyExit:
    """Two recipes in, the curve out."""

    help = "Measure what a look at the whole frame first would save, and miss."
    example = (
        "python -m benchmarks.accuracy.early_exit bundle frames/ --whole whole.safetensors --tiles tiles.safetensors"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser)
        parser.add_argument("data", type=Path, metavar="DATA", help="labelled frames: images/<class>/")
        parser.add_argument("--whole", type=Path, required=True, metavar="FILE", help="recipe of whole frames")
        parser.add_argument("--tiles", type=Path, required=True, metavar="FILE", help="recipe of tiles")
        add_engine_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Judge twice, and print the curve."""
        print(_table(args))
        return 0


def _table(args: argparse.Namespace) -> str:
    dataset = load_dataset(args.data)
    with Predictor(args.bundle, **engine_options(args)) as predictor:
        predictor.use(args.whole)
        test, _ = without_supports(dataset, predictor)
        whole = _judge(predictor, test)
        predictor.use(args.tiles)
        kept, _ = without_supports(dataset, predictor)
        if {sample.path for sample in kept} != {sample.path for sample in test}:
            raise DatasetError(args.data, "the two recipes were not taught by the same frames")
        tiled = _judge(predictor, test)
    is_defect = np.array([sample.label != GOOD for sample in test])
    if is_defect.all() or not is_defect.any():
        raise DatasetError(args.data, "good frames and defects are both needed")
    scores = np.array([result.score for result in whole])
    called = np.array([result.is_defect for result in tiled])
    tiles = float(np.mean([result.tiles for result in tiled]))
    lines = [
        f"{len(test)} frames, {is_defect.sum()} of them defects; {tiles:.0f} tiles a frame; iAUROC of the whole view "
        f"{100 * auroc(scores, is_defect):.1f}, of the tiles "
        f"{100 * auroc(np.array([result.score for result in tiled]), is_defect):.1f}",
        "",
        "| read in tiles | speed | underkill | overkill |",
        "|---|---|---|---|",
    ]
    for row in curve(scores, is_defect, called, tiles):
        rates = f"{100 * row['underkill']:.1f} % | {100 * row['overkill']:.1f} %"
        lines.append(f"| {100 * row['share']:.0f} % | {row['speed']:.2f} | {rates} |")
    return "\n".join(lines)


def _judge(predictor: Predictor, samples: Sequence[Sample]) -> list[Any]:
    results = list(predictor.stream([sample.path for sample in samples]))
    failed = [result for result in results if isinstance(result, FailedFrame)]
    if failed:
        raise failed[0].error
    return results


if __name__ == "__main__":
    command = EarlyExit()
    parser = describe(argparse.ArgumentParser(prog="python -m benchmarks.accuracy.early_exit"), command)
    command.add_arguments(parser)
    sys.exit(run(command, parser.parse_args()))
