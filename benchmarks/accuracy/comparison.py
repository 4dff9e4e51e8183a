"""The methods that the measurement compares with: baselines, and classifiers with a trunk of their own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.baselines import CLASS_LABELS, LABELS_AND_MASKS, ROWS, Baselines, Row, choose_rows
from benchmarks.accuracy.classifiers import LITE0, TABLE_2, Classifier, ClassifierRows, load_classifiers
from benchmarks.accuracy.table import METRICS
from calibration.dataset import GOOD, Dataset, Sample
from export.bundle import describe_encoder
from export.errors import ExportError
from export.model.checkpoint import LoadedModel
from export.model.graph import SemClipGraph
from export.teach import EncodedSupports
from runtime.recipe import FrameOptions


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --baselines, --classifier and --fine-tune."""
    parser.add_argument(
        "--baselines",
        nargs="?",
        const="all",
        metavar="A,B,...",
        help=f"also judge these simpler methods (without names: {', '.join(ROWS)})",
    )
    parser.add_argument(
        "--classifier",
        action="append",
        default=[],
        metavar="NAME[=FILE]",
        help="also judge timm's network NAME with the weights in FILE, frozen below a linear probe; may be repeated. "
        f"{LITE0} needs no FILE where the extra `classifiers` is installed. Of the paper's Table 2: "
        + ", ".join(f"{name} ({family})" for name, family in TABLE_2.items()),
    )
    parser.add_argument(
        "--fine-tune", action="store_true", help="also judge each --classifier fine-tuned: hours on a CPU"
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The methods to compare with. baselines: names of baselines.ROWS. tune: fine-tune the classifiers too."""

    baselines: tuple[str, ...] = ()
    classifiers: tuple[Classifier, ...] = ()
    tune: bool = False

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Comparison:
        """Check names and read weights, before anything is measured. Raises ExportError, CheckpointError."""
        if args.fine_tune and not args.classifier:
            raise ExportError("--fine-tune tunes classifiers, and none is named: add --classifier NAME=FILE")
        baselines = choose_rows(args.baselines) if args.baselines is not None else ()
        return cls(baselines, tuple(load_classifiers(args.classifier)), args.fine_tune)

    def on_split(
        self,
        model: LoadedModel,
        graph: SemClipGraph,
        dataset: Dataset,
        test: list[Sample],
        options: FrameOptions,
        work: Path,
        smoothing_px: float,
    ) -> list[Baselines | ClassifierRows]:
        """The methods on the test frames of one seed; each method encodes them once.

        work: a folder for features. smoothing_px: of maps, as for the method.
        """
        encoder = describe_encoder(model, graph)
        found: list[Baselines | ClassifierRows] = []
        if self.baselines:
            found.append(Baselines(model, graph, encoder, dataset, test, options, smoothing_px, work, self.baselines))
        return found + [ClassifierRows(c, encoder, dataset, test, options, tune=self.tune) for c in self.classifiers]


def judge_others(others: Sequence[Baselines | ClassifierRows], encoded: EncodedSupports) -> list[dict[str, Any]]:
    """Rows of `others`, each with all of METRICS: None where a method has no such figure. Raises DatasetError."""
    about = {"shots": encoded.request.shots, "seed": encoded.request.seed}
    none = dict.fromkeys(METRICS)
    return [
        {**about, "method": name, "test_frames": len(other.test), **none, **metrics}
        for other in others
        for name, metrics in other.judge(encoded).items()
    ]


def row_of_method(dataset: Dataset) -> Row:
    """The supervision of the method itself: class labels, and masks where the set has them."""
    masked = any(sample.mask is not None and sample.label != GOOD for sample in dataset.samples)
    return Row(LABELS_AND_MASKS if masked else CLASS_LABELS, draws_map=True)
