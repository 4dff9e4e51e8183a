"""A measurement of accuracy: a cell for every seed and number of shots, each taught, built and judged."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.ablations import Ablations
from benchmarks.accuracy.baselines import Baselines, describe_row
from benchmarks.accuracy.classifiers import ClassifierRows
from benchmarks.accuracy.comparison import Comparison, judge_others, row_of_method
from benchmarks.accuracy.evaluate import AT_THRESHOLDS, OTHER_SCORES, judge, overlays
from benchmarks.accuracy.precisions import frames_not_tested, in_8_bits, label_agreement, open_precisions
from benchmarks.accuracy.results import write_rows
from benchmarks.accuracy.table import METRICS
from benchmarks.machine import describe_machine, peak_memory_mb
from calibration.dataset import Dataset, Sample
from export.model.checkpoint import LoadedModel
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.teach import (
    METHODS,
    EncodedSupports,
    TeachRequest,
    build_bundle,
    encode_request,
    fit_supports,
    parity_samples,
    smoothing_px,
)
from export.teaching.prompts import load_prompts
from export.teaching.supports import draw_supports, split_by_group
from export.teaching.tile_size import Tiling
from runtime import Predictor, Recipe
from runtime.manifest import Encoder
from runtime.recipe import SCALARS, FrameOptions

_KEEP = ("test_frames", "unavailable", "seconds", *METRICS, *OTHER_SCORES, *AT_THRESHOLDS, "confusion")


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a measurement is made of.

    shots: ascending. seeds: in their order. precisions: fp32 first. backend: of all. method: a name of METHODS. out:
    the folder for results, or None. work: a folder for bundles and features.
    """

    model: LoadedModel
    graph: SemClipGraph
    encoder: Encoder
    dataset: Dataset
    shots: list[int]
    seeds: range
    precisions: list[str]
    backend: str
    method: str
    ablations: bool
    comparison: Comparison
    options: FrameOptions
    tiling: Tiling | None
    out: Path | None
    work: Path

    @property
    def smoothing_px(self) -> float:
        """Of the map, in pixels of the encoder's image."""
        return smoothing_px(self.encoder, METHODS[self.method][1])

    def splits(self) -> dict[int, tuple[list[Sample], list[Sample]]]:
        """By seed the pool of supports and the test frames. All seeds are checked before the first is measured.

        Raises DatasetError and ExportError if a seed has too few frames for its supports or for int8.
        """
        found = {}
        for seed in self.seeds:
            found[seed] = pool, test = split_by_group(self.dataset, max(self.shots), seed)
            draw_supports(self.dataset, max(self.shots), seed, allowed=pool)
            if in_8_bits(self.precisions):
                frames_not_tested(self.dataset, test)
        return found

    def about(self) -> dict[str, Any]:
        """The head of accuracy.json."""
        return {
            "data": self.dataset.folder.name,
            "classes": self.dataset.classes,
            "architecture": self.model.architecture,
            "weights": self.model.origin,
            "trained": self.model.trained,
            "method": self.method,
            "smoothing_px": self.smoothing_px,
            "image_size": self.encoder.image_size,
            "tiling": None if self.tiling is None else asdict(self.tiling),
            "machine": describe_machine(),
            "classifiers": [classifier.record() for classifier in self.comparison.classifiers],
        }


class Measurement:
    """The cells of a plan. rows: one for each cell and method. overlays: a PNG, once the most shots are measured."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rows: list[dict[str, Any]] = []
        self.overlays = b""
        self._splits = plan.splits()
        self._about = plan.about()
        self._prompts = load_prompts()
        self._predictors: dict[str, Predictor] = {}

    def run(self) -> None:
        """Measure every cell; after each of them accuracy.json is complete so far."""
        try:
            for seed in self._splits:
                self._measure_seed(seed)
        finally:
            self._close()

    def _measure_seed(self, seed: int) -> None:
        plan, (_, test) = self.plan, self._splits[seed]
        others: list[Baselines | ClassifierRows] | None = None
        for shots in plan.shots:
            stages = Stages()
            encoded = encode_request(plan.model, plan.graph, self._request(seed, shots), stages)
            recipe = fit_supports(encoded, plan.encoder, stages)
            # With int8 each seed has a bundle of its own: its ranges must not depend on a frame under test.
            if not self._predictors or (in_8_bits(plan.precisions) and shots == plan.shots[0]):
                self._build(recipe, seed, stages)
            self._judge(encoded, recipe, stages)
            if others is None:  # encoded once per seed
                others = plan.comparison.on_split(
                    plan.model, plan.graph, plan.dataset, test, plan.options, plan.work, plan.smoothing_px
                )
            self.rows += judge_others(others, encoded)
            if plan.out:
                self._record(plan.out, seed, shots, recipe)

    def _request(self, seed: int, shots: int) -> TeachRequest:
        plan, (pool, _) = self.plan, self._splits[seed]
        settings = METHODS[plan.method][0]
        return TeachRequest(
            plan.dataset,
            self._prompts,
            shots,
            seed,
            plan.options,
            settings,
            tuple(pool),
            smoothing_px=plan.smoothing_px,
            tiling=plan.tiling,
        )

    def _build(self, recipe: Recipe, seed: int, stages: Stages) -> None:
        """Build the bundle and open it in every precision; later cells only change its recipe."""
        plan, bundle = self.plan, self.plan.work / "bundle"
        self._close()
        shutil.rmtree(bundle, ignore_errors=True)
        build_bundle(
            plan.model,
            plan.graph,
            recipe,
            parity_samples(plan.dataset),
            bundle,
            stages,
            fp16="fp16" in plan.precisions,
            smoothing=plan.smoothing_px,
            # Some ablations read the V path, which a bundle whose own recipe does not read it may lack.
            value_path=True if plan.ablations else None,
        )
        test = self._splits[seed][1]
        self._predictors = open_precisions(bundle, plan.precisions, plan.dataset, test, seed, backend=plan.backend)

    def _judge(self, encoded: EncodedSupports, recipe: Recipe, stages: Stages) -> None:
        """Add the rows of the method: one for each precision, and one for each ablation."""
        plan, request = self.plan, encoded.request
        test = self._splits[request.seed][1]
        found = {name: judge(opened, recipe, plan.dataset, test) for name, opened in self._predictors.items()}
        if plan.ablations:
            ablations = Ablations(plan.model, plan.graph, test, plan.work)
            found |= ablations.judge(self._predictors["fp32"], encoded, recipe)
        told = describe_row(row_of_method(plan.dataset))
        first = len(self.rows)
        for name, metrics in found.items():
            same = label_agreement(found["fp32"], metrics) if name in plan.precisions[1:] else {}
            kept = {key: metrics[key] for key in _KEEP if key in metrics}
            self.rows.append({"shots": request.shots, "seed": request.seed, "method": name, **told, **kept, **same})
            print({n: self.rows[-1].get(n) for n in ("shots", "seed", "method", *METRICS)}, flush=True)
        scalars = dict(zip(SCALARS, recipe.tensors["scalars"].tolist(), strict=True))
        self.rows[first].update(stages=stages.seconds, scalars=scalars)

    def _record(self, out: Path, seed: int, shots: int, recipe: Recipe) -> None:
        """Draw the overlays once, and write what is measured so far."""
        plan = self.plan
        if not self.overlays and shots == plan.shots[-1]:
            self._predictors["fp32"].use(recipe)
            self.overlays = overlays(self._predictors["fp32"], plan.dataset.classes, self._splits[seed][1])
        complete = (seed, shots) == (plan.seeds[-1], plan.shots[-1])
        self._about |= {"complete": complete, "peak_memory_mb": peak_memory_mb()}
        write_rows(out, self._about, self.rows)

    def _close(self) -> None:
        for predictor in self._predictors.values():
            predictor.close()
        self._predictors = {}
