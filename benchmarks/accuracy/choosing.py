"""Which frames to label next: accuracy against labels given, by three rules that choose.

    python -m benchmarks.accuracy.choosing --generated 30 --arch sem_tiny --start 2 --step 6 --rounds 5 --seeds 5

A few frames of each class teach first. Then each rule chooses frames of the rest of the pool, which get their labels,
and the recipe is taught again, round by round. Pool and test frames share no group (`export.teaching.supports`), and
all rules begin with the same frames. "random" is what the others are compared with, seed by seed.

Every frame is encoded once. Recipes are judged on these features in torch, by the functions that the exported graph
consists of; the protocol's own figures (`benchmarks.accuracy.protocol`) come from the exported bundle.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.accuracy.protocol import add_subject, load_data
from benchmarks.machine import describe_machine
from calibration.dataset import Dataset, Sample
from calibration.metrics import classification
from export.bundle import describe_encoder
from export.errors import ExportError
from export.model import heads
from export.model.checkpoint import LoadedModel, load_model
from export.model.graph import SemClipGraph
from export.options import frame_options
from export.teach import smoothing_px
from export.teaching.fit_head import features_under_maps
from export.teaching.fit_recipe import Lesson, fit_recipe, judge_supports
from export.teaching.prompts import load_prompts
from export.teaching.support_cache import SupportCache
from export.teaching.support_pixels import read_supports
from export.teaching.supports import draw_supports, split_by_group
from export.teaching.text_bank import TextBank, build_text_bank
from export.teaching.views import SupportFeatures, encode_supports
from runtime.cli import describe, run
from runtime.files import require_files, write_atomically
from runtime.manifest import Encoder
from runtime.maps import frame_score, upsample
from runtime.options import at_least
from runtime.recipe import FrameOptions, Recipe
from runtime.verdict import defect_scores, named_class, novelty, temper

RANDOM = "random"
VIEW_SEED = 0
"""Of the views, whatever the seed of the draws: so that no frame is encoded twice."""
MAX_CACHE_BYTES = 16_000_000_000
Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a recipe says of n frames. label: [n], index of the class it names. margin: [n], between the two likeliest
    classes. novelty: [n], as in `Prediction`."""

    label: Indices
    margin: Floats
    novelty: Floats


Rule = Callable[[Answers, np.random.Generator], Indices]
"""The order in which to label frames, first the one that is wanted most."""


def least_sure(answers: Answers, _: np.random.Generator) -> Indices:
    """The smallest margin between the two likeliest classes first."""
    return np.argsort(answers.margin, kind="stable")


def most_unlike(answers: Answers, _: np.random.Generator) -> Indices:
    """The highest novelty first."""
    return np.argsort(-answers.novelty, kind="stable")


def at_random(answers: Answers, rng: np.random.Generator) -> Indices:
    """Any order."""
    return rng.permutation(len(answers.margin))


RULES: Mapping[str, Rule] = {RANDOM: at_random, "least sure": least_sure, "most unlike": most_unlike}


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What is measured. start: frames per class that teach first. step: labels of a round. views: of each support.

    pool: frames per class to choose from, of the seed's groups.
    """

    model: LoadedModel
    graph: SemClipGraph
    encoder: Encoder
    dataset: Dataset
    bank: TextBank
    options: FrameOptions
    cache: SupportCache
    start: int
    step: int
    rounds: int
    views: int
    pool: int

    @classmethod
    def open(cls, args: argparse.Namespace, work: Path) -> Study:
        """By the arguments of the command. Raises ExportError, CheckpointError, DatasetError."""
        if args.tile is not None:
            raise ExportError("frames are read as wholes here: leave out --tile")
        options = frame_options(args)
        seed = 0 if args.random_weights else None
        model = load_model(args.arch, weights=args.weights, random_seed=seed, image_size=args.image_size)
        graph = SemClipGraph(model.encoder())
        encoder = describe_encoder(model, graph)
        dataset = load_data(args, encoder, work / "generated")
        bank = build_text_bank(model, load_prompts(), dataset.classes)
        cache = SupportCache(work / "features", MAX_CACHE_BYTES)
        smallest = min(len(dataset.of_class(name)) for name in dataset.classes)
        numbers = args.start, args.step, args.rounds, args.views, args.pool or max(args.start, smallest // 2)
        return cls(model, graph, encoder, dataset, bank, options, cache, *numbers)

    @property
    def labels(self) -> list[int]:
        """Labels given, round by round."""
        first = self.start * len(self.dataset.classes)
        return [first + number * self.step for number in range(self.rounds + 1)]

    def run_seed(self, seed: int) -> list[dict[str, Any]]:
        """A row for each rule and round. Raises DatasetError where the pool is too small."""
        pool, test = split_by_group(self.dataset, self.pool, seed)
        if len(pool) < self.labels[-1]:
            raise ExportError(
                f"seed {seed}: the pool holds {len(pool)} frames, fewer than the {self.labels[-1]} labels asked for: "
                "take a larger --pool, fewer --rounds or a smaller --step"
            )
        first = draw_supports(self.dataset, self.start, seed, allowed=pool)
        taught = self._encode(pool, self.views)
        seen, judged = taught.part(taught.unaugmented), self._encode(test, 1)
        begun = np.array([sample in first for sample in pool])
        rows = []
        for name, rule in RULES.items():
            rng, known = np.random.default_rng([seed, len(name)]), begun.copy()
            for labels in self.labels:
                recipe = self._teach(taught, known, seed)
                rows.append({"seed": seed, "rule": name, "labels": labels, **self._figures(judged, recipe)})
                if labels == self.labels[-1]:
                    break
                rest = np.flatnonzero(~known)
                order = rule(self._answers(seen.part(torch.from_numpy(~known)), recipe), rng)
                known[rest[order[: self.step]]] = True
        return rows

    def _encode(self, samples: Sequence[Sample], views: int) -> SupportFeatures:
        pieces = read_supports(samples, self.encoder, self.options, VIEW_SEED)
        text = torch.tensor(self.bank.text_seg)
        classes = self.dataset.classes
        return encode_supports(
            self.graph, self.encoder, pieces, classes, text, views=views, seed=VIEW_SEED, cache=self.cache
        )

    def _teach(self, features: SupportFeatures, known: NDArray[np.bool_], seed: int) -> Recipe:
        """A recipe of the frames that are known so far."""
        part = features.part(torch.from_numpy(known)[features.frame])
        smoothing = smoothing_px(self.encoder)
        lesson = Lesson(part, self.encoder, self.dataset.classes, self.bank, smoothing, seed)
        return fit_recipe(lesson, self.options)

    def _answers(self, features: SupportFeatures, recipe: Recipe) -> Answers:
        """What the recipe says of unaugmented frames."""
        probabilities, maps, vectors = self._outputs(features, recipe)
        size, smoothing = self.encoder.image_size, smoothing_px(self.encoder)
        grids = maps.reshape(-1, *self.encoder.grid)
        scores = np.array([frame_score(upsample(grid, size, size, smoothing)) for grid in grids], np.float32)
        point = recipe.operating_point
        defect = defect_scores(scores, probabilities, point.class_share) >= point.defect_threshold
        best = np.sort(temper(probabilities, point.temperature), axis=1)
        return Answers(
            named_class(probabilities, defect),
            np.asarray(best[:, -1] - best[:, -2], np.float32),
            novelty(vectors, recipe.unit_supports),
        )

    def _outputs(self, features: SupportFeatures, recipe: Recipe) -> tuple[Floats, Floats, Floats]:
        """As of the graph: probabilities [n, K], maps [n, P], features [n, F]."""
        maps, text = judge_supports(features, recipe.tensors)
        vectors = features_under_maps(features, features.unaugmented, maps)
        weight, bias = (torch.tensor(recipe.tensors[name]) for name in ("head_weight", "head_bias"))
        alpha = float(recipe.tensors["scalars"][0])
        probabilities = alpha * heads.head_probabilities(vectors, weight, bias).numpy() + (1 - alpha) * text
        return np.asarray(probabilities, np.float32), maps.numpy(), vectors.numpy()

    def _figures(self, judged: SupportFeatures, recipe: Recipe) -> dict[str, float]:
        label = self._answers(judged, recipe).label
        found = classification(label, judged.labels.numpy(), len(self.dataset.classes))
        return {"accuracy": found["accuracy"], "recall": found["recall"]}


def table(rows: Sequence[Mapping[str, Any]], name: str = "accuracy") -> str:
    """A Markdown table in per cent: the figure by rule and labels given, mean ± standard deviation over the seeds.

    Below it what each rule gains on random choice, of the same seed and number of labels.
    """
    labels = sorted({row["labels"] for row in rows})
    cells = {(row["rule"], row["labels"], row["seed"]): row[name] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    lines = [f"| {name} | {' | '.join(f'{count} labels' for count in labels)} |", "|---" * (len(labels) + 1) + "|"]
    for rule in RULES:
        found = [[cells[rule, count, seed] for seed in seeds] for count in labels]
        lines.append(f"| {rule} | {' | '.join(map(_spread, found))} |")
    for rule in RULES:
        if rule != RANDOM:
            gains = [[cells[rule, n, s] - cells[RANDOM, n, s] for s in seeds] for n in labels]
            lines.append(f"| {rule} - {RANDOM} | {' | '.join(map(_spread, gains))} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * np.std(values):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


class Choosing:
    """The command."""

    help = "Measure which frames to label next: least sure, most unlike, or any."
    example = (
        "python -m benchmarks.accuracy.choosing --generated 30 --arch sem_tiny --start 2 --step 6 --rounds 5 --seeds 5"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_subject(parser)
        what = parser.add_argument_group("what to measure")
        what.add_argument(
            "--start", type=at_least(1), default=2, metavar="K", help="frames per class that teach first (default: 2)"
        )
        what.add_argument(
            "--step", type=at_least(1), default=6, metavar="N", help="frames to label in each round (default: 6)"
        )
        what.add_argument(
            "--pool",
            type=at_least(1),
            metavar="N",
            help="frames per class to choose from; all others are for the test (default: half of the smallest class)",
        )
        what.add_argument("--rounds", type=at_least(1), default=5, metavar="N", help="rounds (default: 5)")
        what.add_argument(
            "--seeds", type=at_least(1), default=5, metavar="N", help="draws of pool and first frames (default: 5)"
        )
        what.add_argument(
            "--views",
            type=at_least(1),
            default=8,
            metavar="N",
            help="variations of each support; all of the pool are held in memory (default: 8)",
        )
        output = parser.add_argument_group("output")
        output.add_argument(
            "--out", type=Path, metavar="FILE.json", help="write all rows to FILE.json (default: print the table only)"
        )
        output.add_argument("--force", action="store_true", help="replace FILE.json if it is there (default: refuse)")

    def run(self, args: argparse.Namespace) -> int:
        """Measure, print a table, write."""
        if args.out is not None:
            require_files([args.out], force=args.force)
        with tempfile.TemporaryDirectory() as work:
            study = Study.open(args, Path(work))
            rows: list[dict[str, Any]] = []
            for seed in range(args.seeds):
                rows += study.run_seed(seed)
                print(f"seed {seed}: {rows[-1]['labels']} labels each", file=sys.stderr, flush=True)
            about = {
                "data": study.dataset.folder.name,
                "classes": study.dataset.classes,
                "architecture": study.model.architecture,
                "weights": study.model.origin,
                "start": study.start,
                "step": study.step,
                "views": study.views,
                "pool": study.pool,
                "machine": describe_machine(),
            }
        print(f"{table(rows)}\n\n{table(rows, 'recall')}")
        if args.out is not None:
            write_atomically(args.out, (json.dumps({**about, "rows": rows}, indent=1) + "\n").encode())
        return 0


if __name__ == "__main__":
    command = Choosing()
    parser = describe(argparse.ArgumentParser(prog="python -m benchmarks.accuracy.choosing"), command)
    command.add_arguments(parser)
    sys.exit(run(command, parser.parse_args()))
