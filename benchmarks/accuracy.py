"""Accuracy of what ships: recipes taught on K shots, judged through the exported bundle and `Predictor`.

    python -m benchmarks.accuracy --data DIR --arch FILE --weights FILE --shots 1,5,10 --seeds 3 --out accuracy.json

Supports are drawn from a pool of groups; the test set is every frame of every other group (export/supports.py,
split_by_group). Pixel metrics compare the up-sampled map with the mask at the frame's own size.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.machine import describe_machine, peak_memory_mb
from benchmarks.metrics import auroc, classification
from calibration.dataset import Dataset, Sample, load_dataset
from calibration.histogram import ScoreHistogram
from export.checkpoint import load_model
from export.graph import SemClipGraph
from export.progress import Stages
from export.prompts import load_prompts
from export.supports import split_by_group
from export.teach import TeachRequest, build_bundle, parity_samples, teach_recipe
from runtime import FailedFrame, Predictor
from runtime.cli import run


def evaluate(predictor: Predictor, dataset: Dataset, test: list[Sample]) -> dict[str, Any]:
    """All metrics of the recipe in use on `test`; pixel metrics are null where no defect has a mask."""
    pixels = ScoreHistogram()
    scores, predicted, actual, masked = [], [], [], False
    began = time.perf_counter()
    with tqdm(total=len(test), unit="frame", leave=False, file=sys.stderr, disable=None) as bar:
        for sample, result in zip(test, predictor.stream(sample.path for sample in test), strict=True):
            if isinstance(result, FailedFrame):
                raise result.error
            scores.append(result.score)
            predicted.append(dataset.classes.index(result.label))
            actual.append(dataset.classes.index(sample.label))
            mask = sample.read_mask(result.frame_size)
            if mask is not None:
                masked |= bool(mask.any())
                pixels.add(result.defect_map(), mask > 0)
            bar.update()
    seconds = time.perf_counter() - began
    return {
        "test_frames": len(test),
        "seconds": seconds,
        "iauroc": auroc(scores, np.asarray(actual) > 0),
        "pauroc": pixels.auroc() if masked else None,
        "f1_max": pixels.f1_max() if masked else None,
        **classification(predicted, actual, len(dataset.classes)),
    }


class Accuracy:
    """The command."""

    help = "Measure accuracy over shots and seeds, through the exported bundle."
    example = "python -m benchmarks.accuracy --data frames/ --arch vit_b_16_plus_240 --weights FILE --shots 1,5,10"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--data", type=Path, required=True, help="folder with images/, masks/ and groups.csv")
        parser.add_argument("--arch", required=True, help="architecture or open_clip configuration file")
        parser.add_argument("--weights", type=Path, help="weights file; random weights (seed 0) if left out")
        parser.add_argument("--shots", default="1,2,5,10", help="comma-separated (default: 1,2,5,10)")
        parser.add_argument("--seeds", type=int, default=5, help="seeds 0 ... N-1 (default: 5)")
        parser.add_argument("--out", type=Path, help="write all figures here as JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Measure and print a table."""
        dataset, prompts = load_dataset(args.data), load_prompts()
        shots = [int(k) for k in args.shots.split(",")]
        model = load_model(args.arch, weights=args.weights, random_seed=None if args.weights else 0)
        graph = SemClipGraph(model.encoder())
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as work:
            bundle, predictor = Path(work) / "bundle", None
            for seed in range(args.seeds):
                pool, test = split_by_group(dataset, max(shots), seed)
                for k in shots:
                    stages = Stages()
                    request = TeachRequest(dataset, prompts, k, seed, allowed=tuple(pool))
                    recipe = teach_recipe(model, graph, request, stages)
                    if predictor is None:
                        build_bundle(model, graph, recipe, parity_samples(dataset), bundle, stages)
                        predictor = Predictor(bundle)
                    predictor.use(recipe)
                    rows.append(
                        {"shots": k, "seed": seed, **evaluate(predictor, dataset, test), "stages": stages.seconds}
                    )
                    print(
                        {name: rows[-1][name] for name in ("shots", "seed", "accuracy", "iauroc", "pauroc", "f1_max")}
                    )
        table = summarize(rows, shots)
        print(table)
        if args.out:
            document = {
                "data": args.data.name,
                "classes": dataset.classes,
                "architecture": model.architecture,
                "weights": model.origin,
                "trained": model.trained,
                "machine": describe_machine(),
                "peak_memory_mb": peak_memory_mb(),
                "rows": rows,
            }
            args.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
        return 0


def summarize(rows: list[dict[str, Any]], shots: list[int]) -> str:
    """Mean ± standard deviation over seeds, as a Markdown table in per cent."""
    names = ("accuracy", "f1", "iauroc", "pauroc", "f1_max")
    lines = ["| K | seeds | test frames | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 3)]
    for k in shots:
        cell = [row for row in rows if row["shots"] == k]
        sizes = [row["test_frames"] for row in cell]
        texts = []
        for name in names:
            values = [row[name] for row in cell if row[name] is not None]
            texts.append(f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}" if values else "no masks")
        lines.append(f"| {k} | {len(cell)} | {min(sizes)}-{max(sizes)} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    from runtime.cli import describe

    command = Accuracy()
    parser = describe(argparse.ArgumentParser(), command)
    command.add_arguments(parser)
    sys.exit(run(command, parser.parse_args()))
