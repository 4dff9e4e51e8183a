"""Ablations: other recipes and other graphs, judged on the same supports and test frames as the method."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.baselines import NEEDS_TEXT
from benchmarks.accuracy.evaluate import judge
from benchmarks.accuracy.table import METRICS
from calibration.dataset import Sample
from export.bundle import describe_encoder
from export.model.checkpoint import LoadedModel
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.teach import (
    EncodedSupports,
    TeachRequest,
    build_bundle,
    encode_request,
    fit_supports,
    parity_samples,
    teach_recipe,
)
from export.teaching.prompts import GENERIC_FILE, load_prompts
from export.teaching.settings import TeachSettings
from runtime import Predictor, Recipe
from runtime.manifest import Encoder
from runtime.recipe import SCALARS

SCALAR_ABLATIONS = {"no_p_s": {"alpha": 1.0}, "no_p_c": {"alpha": 0.0}}
"""Rows of the paper's Table 3 that only change scalars of the recipe. The map and the head stay as they are. So does
the defect threshold, although it depends on these scalars: ignore "verdicts right" of these rows."""
NO_TRANSFORM = "no_transform"
FITTED_ABLATIONS: dict[str, TeachSettings] = {
    "paper": TeachSettings.paper(),
    "value_path": TeachSettings(lambda_v=1.0),
    "no_memory": TeachSettings(memory_share=0.0),
    "no_frame_loss": TeachSettings(frame_loss=0.0),
    NO_TRANSFORM: TeachSettings(start="text", steps=0, lambda_v=1.0, memory_share=0.0),
}
"""Rows from another fit to the same supports.

paper: the paper's method throughout (`TeachSettings.paper`), with the bundle's smoothing. value_path: the V path with
the paper's share. no_memory: a map without the memory bank. no_frame_loss: a map fitted to its cells alone.
no_transform: the paper's "w/o Transformation Layer". Z_j meets the text through the tower's own projection, together
with the V path, so this row needs text."""
GENERIC_PROMPTS = "generic_prompts"
CLASS_MEAN = "class_mean_redundancy"
LAST_LEVEL = "last_level"
ENCODED_ABLATIONS = (GENERIC_PROMPTS, CLASS_MEAN)
"""Rows that encode the supports again, and need text.

generic_prompts: another prompt file. class_mean_redundancy: the literal reading of eq. 13-15, in which the redundant
features cancel, with the paper's share of the V path. Compare it with `value_path`, which has the other reading."""
ABLATIONS = (*FITTED_ABLATIONS, *SCALAR_ABLATIONS)
"""Rows on the bundle's own graph. LAST_LEVEL is another graph on the same supports."""


def ablate(name: str, recipe: Recipe, encoded: EncodedSupports, encoder: Encoder, stages: Stages) -> Recipe:
    """The recipe of the ablation `name`, one of ABLATIONS."""
    if name in FITTED_ABLATIONS:
        return fit_supports(encoded, encoder, stages, FITTED_ABLATIONS[name])
    scalars = recipe.tensors["scalars"].copy()
    for scalar, value in SCALAR_ABLATIONS[name].items():
        scalars[SCALARS.index(scalar)] = value
    return replace(recipe, tensors={**recipe.tensors, "scalars": scalars})


@dataclass(frozen=True, slots=True)
class Ablations:
    """Every ablation of one split. test: frames to judge on. work: a folder for the bundles of other graphs."""

    model: LoadedModel
    graph: SemClipGraph
    test: list[Sample]
    work: Path

    def judge(self, predictor: Predictor, encoded: EncodedSupports, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """Metrics by ablation; a row that needs text this tower lacks has none and names the reason.

        predictor: on the method's bundle. recipe: the method's, fitted to `encoded`.
        """
        encoder, dataset = describe_encoder(self.model, self.graph), encoded.request.dataset
        needs_text = {"test_frames": len(self.test), **dict.fromkeys(METRICS), "unavailable": NEEDS_TEXT}
        found = {}
        for name in ABLATIONS:
            if name == NO_TRANSFORM and encoded.bank.projection is None:
                found[name] = needs_text
                continue
            found[name] = judge(predictor, ablate(name, recipe, encoded, encoder, Stages()), dataset, self.test)
        found[LAST_LEVEL] = self._last_level(encoded)
        if not self.model.has_text:
            return {**found, GENERIC_PROMPTS: needs_text, CLASS_MEAN: needs_text}
        generic = replace(encoded.request, prompts=load_prompts(GENERIC_FILE))
        other = fit_supports(encode_request(self.model, self.graph, generic, Stages()), encoder, Stages())
        found[GENERIC_PROMPTS] = judge(predictor, other, dataset, self.test)
        found[CLASS_MEAN] = self._class_mean(encoded.request)
        return found

    def _class_mean(self, request: TeachRequest) -> dict[str, Any]:
        """The literal reading of eq. 13-15 is another graph, and so another bundle."""
        graph = SemClipGraph(self.model.encoder(), redundancy="class_mean")
        request = replace(request, settings=FITTED_ABLATIONS["value_path"])
        recipe = teach_recipe(self.model, graph, request, Stages())
        return self._judge_graph(CLASS_MEAN, graph, recipe, request)

    def _last_level(self, encoded: EncodedSupports) -> dict[str, Any]:
        """The paper's "w/o multi-layer": both paths, P_S and the head read the last level alone."""
        graph = SemClipGraph(self.model.encoder(last_level_only=True))
        alone = replace(encoded, features=encoded.features.last_level())
        recipe = fit_supports(alone, describe_encoder(self.model, graph), Stages())
        return self._judge_graph(LAST_LEVEL, graph, recipe, encoded.request)

    def _judge_graph(self, name: str, graph: SemClipGraph, recipe: Recipe, request: TeachRequest) -> dict[str, Any]:
        bundle, samples = self.work / name, parity_samples(request.dataset)
        build_bundle(self.model, graph, recipe, samples, bundle, Stages(), fp16=False, smoothing=request.smoothing_px)
        with Predictor(bundle) as predictor:
            metrics = judge(predictor, recipe, request.dataset, self.test)
        shutil.rmtree(bundle)  # one bundle per seed and number of shots would fill the disk
        return metrics
