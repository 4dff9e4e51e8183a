"""`sem-clip evaluate`: metrics of a bundle on labelled frames. Cheap to import."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from calibration.dataset import Dataset, Sample, load_dataset, say_left_out
from calibration.errors import DatasetError
from calibration.histogram import ScoreHistogram
from calibration.metrics import ExactScores, auroc, classification, per_class_rates
from calibration.plots import require_matplotlib
from runtime import FailedFrame, Prediction, Predictor, Recipe
from runtime.files import require_files, sha256_of, write_atomically
from runtime.operating_point import VERDICTS
from runtime.options import add_bundle_argument, add_engine_arguments, engine_options
from runtime.terminal import markdown_text, require_stdout

OVERLAYS_A_CLASS = 4
FILES = ("metrics.json", "metrics.md", "confusion.png", "contact_sheet.png")
OTHER_SCORES = {
    "iauroc_score": "the defect score",
    "iauroc_peak": "the map's maximum",
    "iauroc_class": "1 - P(good)",
}
"""iAUROC by other scores of a frame; `iauroc` is by the map's score, as in the paper. The operating point reads the
defect score."""
AT_THRESHOLDS = {"overkill": "overkill", "underkill": "underkill", "pixel_f1": "pixel F1"}
"""Rates at the recipe's own thresholds, which do not depend on the test set. F1-max uses the test set's best one."""
EXACT = ("pauroc_exact", "f1_max_exact")
MOST_EXACT_PIXELS = 2**29
"""2 GiB of scores, the most that exact pixel metrics keep."""


def evaluate(predictor: Predictor, dataset: Dataset, test: list[Sample], *, exact: bool = False) -> dict[str, Any]:
    """All metrics of the recipe in use on `test`.

    iAUROC: by the map's score and by OTHER_SCORES; None where `test` has only good frames, or none.
    Pixel metrics: None where no defect has a mask. Rows that the recipe ignores do not count. masked_frames: defects
    with a mask. exact: also pauroc_exact and f1_max_exact, from every pixel's score instead of bins
    (calibration.histogram).
    Accuracy, confusion and macro figures: of the most probable class (the paper's arg max). verdict_accuracy: share of
    frames with the right verdict; an undecided frame counts as wrong. A class that the recipe does not know is wrong.
    AT_THRESHOLDS: share of good frames with a defect verdict, share of defect frames with the verdict good, and F1 of
    the pixels at the pixel threshold.
    labels (most probable classes), confidences (their probabilities), verdicts: in the order of `test`.

    Raises FrameError and DatasetError, also for more than MOST_EXACT_PIXELS pixels with `exact`.
    """
    classes = tuple(dict.fromkeys([*dataset.classes, *predictor.recipe.classes]))
    pixels = _Pixels(dataset.folder, exact=exact)
    good = predictor.recipe.classes[0]
    scores: dict[str, list[float]] = {"iauroc": [], **{name: [] for name in OTHER_SCORES}}
    predicted, actual, confidences, verdicts = [], [], [], []
    began = time.perf_counter()
    with tqdm(total=len(test), unit="frame", leave=False, file=sys.stderr, disable=None) as bar:
        for sample, result in zip(test, predictor.stream(sample.path for sample in test), strict=True):
            if isinstance(result, FailedFrame):
                raise result.error
            scores["iauroc"].append(result.map_score)
            scores["iauroc_score"].append(result.score)
            scores["iauroc_peak"].append(result.peak)
            scores["iauroc_class"].append(1 - result.probabilities[good])
            predicted.append(classes.index(result.head_class))
            actual.append(classes.index(sample.label))
            confidences.append(result.probabilities[result.head_class])
            verdicts.append(result.verdict)
            pixels.add(sample, result)
            bar.update()
    seconds = time.perf_counter() - began
    defect = np.asarray(actual) > 0
    image_level = {name: auroc(values, defect) for name, values in scores.items()}
    return {
        "test_frames": len(test),
        "seconds": seconds,
        **{name: None if np.isnan(value) else value for name, value in image_level.items()},
        **pixels.metrics(predictor.recipe.operating_point.pixel_threshold),
        **_verdict_rates(verdicts, defect, good),
        "verdict_accuracy": float(np.mean([v == sample.label for v, sample in zip(verdicts, test, strict=True)])),
        **classification(predicted, actual, len(classes)),
        "classes": list(classes),
        "labels": [classes[k] for k in predicted],
        "confidences": confidences,
        "verdicts": verdicts,
    }


def _verdict_rates(verdicts: Sequence[str], defect: NDArray[np.bool_], good: str) -> dict[str, float | None]:
    """Share of good frames with a defect verdict, and of defect frames with the verdict `good`; None without frames.

    An undecided frame is neither.
    """
    called_defect = np.array([verdict not in (*VERDICTS, good) for verdict in verdicts])
    passed = np.array([verdict == good for verdict in verdicts])
    return {
        "overkill": None if defect.all() else float(called_defect[~defect].mean()),
        "underkill": float(passed[defect].mean()) if defect.any() else None,
    }


def judge(predictor: Predictor, recipe: Recipe, dataset: Dataset, test: list[Sample]) -> dict[str, Any]:
    """`evaluate` of another recipe, which stays in use."""
    predictor.use(recipe)
    return evaluate(predictor, dataset, test)


class _Pixels:
    """Scores and truth of the pixels of all frames with a known mask. exact: also keep every score."""

    def __init__(self, folder: Path, *, exact: bool) -> None:
        self._folder = folder
        self._masked = 0
        self._binned = ScoreHistogram()
        self._kept = ExactScores() if exact else None

    def add(self, sample: Sample, result: Prediction) -> None:
        """Count a frame's pixels. Raises DatasetError for an unusable mask, and beyond MOST_EXACT_PIXELS."""
        mask = sample.read_mask(result.frame_size)
        if mask is None:
            return
        defect = mask[result.judged_rows] > 0  # rows that are not judged are neither right nor wrong
        scores = result.defect_map()[result.judged_rows]
        self._masked += bool(defect.any())
        self._binned.add(scores, defect)
        if self._kept is not None:
            if self._kept.count + scores.size > MOST_EXACT_PIXELS:
                raise DatasetError(
                    self._folder,
                    f"--exact keeps every pixel, {MOST_EXACT_PIXELS:,} at most, and these frames have more; "
                    "leave it out, or evaluate fewer frames",
                )
            self._kept.add(scores, defect)

    def metrics(self, threshold: float) -> dict[str, float | None]:
        """The pixel metrics of `evaluate`; None where no defect has a mask."""
        any_masked, binned = self._masked > 0, self._binned
        exact = () if self._kept is None else self._kept.metrics() if any_masked else (None, None)
        return {
            "masked_frames": self._masked,
            "pauroc": binned.auroc() if any_masked else None,
            "f1_max": binned.f1_max() if any_masked else None,
            "pixel_f1": binned.f1_at(threshold) if any_masked else None,
            **dict(zip(EXACT, exact, strict=False)),
        }


def without_supports(dataset: Dataset, predictor: Predictor) -> tuple[list[Sample], int]:
    """Frames that share no group with a support of the recipe in use, and the number of the others.

    Supports are recognized by content, not by name. Raises DatasetError if no frame is left.
    """
    recorded = predictor.recipe.teaching.get("support_sha256")
    supports = {str(digest) for digest in recorded} if isinstance(recorded, list) else set()
    known = {sample.group for sample in dataset.samples if supports and sha256_of(sample.path) in supports}
    test = [sample for sample in dataset.samples if sample.group not in known]
    if not test:
        raise DatasetError(dataset.folder, "every frame is a support of the recipe or shares a group with one")
    return test, len(dataset.samples) - len(test)


def overlays(predictor: Predictor, classes: Sequence[str], test: Sequence[Sample]) -> bytes:
    """A PNG of the first frames of every class with map, outlines and verdict of the recipe in use."""
    from benchmarks.accuracy.plots import draw_overlays

    shown = [sample for name in classes for sample in [s for s in test if s.label == name][:OVERLAYS_A_CLASS]]
    results = predictor.predict([sample.path for sample in shown])
    return draw_overlays(list(zip(shown, results, strict=True)), OVERLAYS_A_CLASS)


class Evaluate:
    """Metrics of a bundle on a labelled folder."""

    help = "Judge a bundle's recipe on labelled frames that did not teach it."
    example = "sem-clip evaluate bundle frames/ --out evaluation/"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser)
        parser.add_argument(
            "data",
            type=Path,
            metavar="DATA",
            help="labelled frames: images/<class>/, optional masks/<class>/ and groups.csv; or a folder of Carinthia-S",
        )
        parser.add_argument(
            "--recipe",
            type=Path,
            metavar="FILE",
            help="judge this recipe, as `sem-clip teach` writes it (default: the bundle's own)",
        )
        parser.add_argument(
            "--exact",
            action="store_true",
            help="also give pixel metrics from every pixel's score, next to those from bins; slow, to check the bins",
        )
        output = parser.add_argument_group("output")
        output.add_argument(
            "--out", type=Path, metavar="DIR", help=f"write {', '.join(FILES)} into DIR (default: print only)"
        )
        output.add_argument(
            "--force", action="store_true", help="replace an earlier evaluation in DIR (default: refuse)"
        )
        add_engine_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Measure, print, write."""
        if args.out:
            require_files([args.out / name for name in FILES], force=args.force)
            require_matplotlib()
        else:
            require_stdout("name a folder with --out")
        dataset = load_dataset(args.data)
        say_left_out(dataset)
        with Predictor(args.bundle, **engine_options(args)) as predictor:
            if args.recipe:
                predictor.use(args.recipe)
            unknown = [name for name in dataset.classes if name not in predictor.recipe.classes]
            test, left_out = without_supports(dataset, predictor)
            metrics = evaluate(predictor, dataset, test, exact=args.exact)
            table = per_class_table(metrics)
            if args.out:  # before the output names the files
                self._write(args.out, predictor, test, metrics, table)
            print(verdict_line(metrics))
            print(f"\n{table}\n")
            if left_out:
                print(f"left out  {left_out} frames: supports of the recipe, or of a group with one")
            if not isinstance(predictor.recipe.teaching.get("support_sha256"), list):
                print("note      the recipe does not record its supports: none could be left out")
            elif not left_out:
                print("note      none of these frames taught the recipe")
            if unknown:
                print(f"note      the recipe does not know {', '.join(unknown)}: those frames count as wrong")
            if args.out:
                print(f"written   {args.out}/{', '.join(FILES)}")
        return 0

    def _write(
        self, folder: Path, predictor: Predictor, test: list[Sample], metrics: dict[str, Any], table: str
    ) -> None:
        from benchmarks.accuracy.plots import draw_confusion
        from benchmarks.machine import describe_machine

        document = {**metrics, "backend": predictor.backend.description, "machine": describe_machine()}
        # In this order: the figures are kept if a picture cannot be drawn.
        write_atomically(folder / FILES[0], json.dumps(document, indent=1).encode())
        write_atomically(folder / FILES[1], (table + "\n").encode())
        write_atomically(folder / FILES[2], draw_confusion(metrics["confusion"], metrics["classes"]))
        write_atomically(folder / FILES[3], overlays(predictor, metrics["classes"], test))


def verdict_line(metrics: dict[str, Any]) -> str:
    """How many verdicts are right, in one line."""
    verdicts, count = metrics["verdicts"], metrics["test_frames"]
    right, open_ones = round(metrics["verdict_accuracy"] * count), sum(v in VERDICTS for v in verdicts)
    left = f", {open_ones} left undecided" if open_ones else ""
    return f"verdicts  {right} of {count} are right{left} (the table's classes are the likeliest ones, as in the paper)"


def per_class_table(metrics: dict[str, Any]) -> str:
    """A Markdown table: the figures over all classes, then precision, recall and F1 of each."""
    confusion = np.asarray(metrics["confusion"])
    present = confusion.sum(1)
    names = {"iauroc": "iAUROC", **{name: f"iAUROC by {what}" for name, what in OTHER_SCORES.items()}}
    names |= {"pauroc": "pAUROC", "f1_max": "pixel F1-max", "verdict_accuracy": "verdicts right"}
    names |= {"accuracy": "accuracy of the likeliest class"}
    names |= {"precision": "macro precision", "recall": "macro recall", "f1": "macro F1"}
    names |= {name: f"{what} at the recipe's threshold" for name, what in AT_THRESHOLDS.items()}
    missing = dict.fromkeys(names, "needs good and defect frames")
    missing |= dict.fromkeys(("pauroc", "f1_max", "pixel_f1"), "no masks")
    missing |= {"overkill": "no good frames", "underkill": "no defect frames"}
    lines = ["| per cent | |", "|---|---|"]
    for key, name in names.items():
        value = metrics[key]
        lines.append(f"| {name} | {missing[key] if value is None else f'{100 * value:.1f}'} |")
    for key in EXACT:
        if metrics.get(key) is not None:
            bins = key.removesuffix("_exact")
            by_bins = f"{100 * metrics[bins]:.3f} by bins"
            lines.append(f"| {names[bins]}, every pixel | {100 * metrics[key]:.3f} ({by_bins}) |")
    if metrics["pauroc"] is not None:
        defects = int(present.sum() - present[0])
        lines.append(f"| defects with a mask, of {defects} | {metrics['masked_frames']} frames |")
    return "\n".join([*lines, "", *per_class(confusion, metrics["classes"])])


def per_class(confusion: NDArray[np.int_], classes: Sequence[str]) -> list[str]:
    """Precision, recall and F1 of each class in per cent: lines of Markdown. confusion: [true, predicted]."""
    called, present = confusion.sum(0), confusion.sum(1)
    rates = 100 * np.stack(per_class_rates(confusion))
    lines = ["| class | frames | precision | recall | F1 |", "|---|---|---|---|---|"]
    for k, name in enumerate(classes):
        cell = markdown_text(name)
        if not present[k]:
            lines.append(f"| {cell} | 0 | absent from the test | | |" if not called[k] else f"| {cell} | 0 | 0.0 | | |")
            continue
        precision, recall, f1 = rates[:, k]
        lines.append(f"| {cell} | {present[k]} | {precision:.1f} | {recall:.1f} | {f1:.1f} |")
    return lines
