"""Teaching and building as plain functions: what the scripts and commands call."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.dataset import Dataset, Sample
from runtime.files import sha256_of
from runtime.frames import prepare
from runtime.golden import FILE_NAME as GOLDEN_FILE
from runtime.golden import Golden
from runtime.manifest import Artifact, Encoder, GoldenFile, Manifest, load_bundle
from runtime.recipe import FrameOptions, Recipe

from .artifacts.golden import golden_frames, make_golden, ordered_samples, pattern_frames
from .artifacts.parity import (
    MAX_FRAMES,
    artifact_outputs,
    measure_parity,
    require_parity,
    spread,
    torch_outputs,
    worst_layers,
)
from .artifacts.to_onnx import onnx_from_graph
from .bundle import describe_encoder, record_artifact, refuse_existing, write_manifest, writing_bundle
from .model.checkpoint import LoadedModel
from .model.graph import SemClipGraph
from .progress import Stages
from .teaching.fit_recipe import Lesson, fit_recipe
from .teaching.prompts import Prompts
from .teaching.settings import TeachSettings
from .teaching.support_cache import SupportCache
from .teaching.supports import draw_supports
from .teaching.text_bank import TextBank, build_text_bank
from .teaching.views import SupportFeatures, encode_supports
from .versions import tool_versions

SMOOTHING_PX_AT_240 = 6.0
"""Wider than the 4 of the paper's relatives: on both data sets with masks it draws the better map at every K."""
PAPER_SMOOTHING_PX_AT_240 = 4.0
"""That of the paper's relatives (WinCLIP, CLIP-AD, PromptAD); the paper names none."""
METHODS = {
    "default": (TeachSettings(), SMOOTHING_PX_AT_240),
    "paper": (TeachSettings.paper(), PAPER_SMOOTHING_PX_AT_240),
}
"""How to teach and how many pixels the map is smoothed at 240, by the name that commands take."""
RECIPE_FILE = "recipe.safetensors"
ONNX_FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}


@dataclass(frozen=True, slots=True)
class TeachRequest:
    """What to teach: `shots` frames of every class of `dataset`, drawn with `seed` (from `allowed` only, if given).

    views: variations of each support that are encoded, the first one unaugmented.
    smoothing_px: of the map, in pixels of the encoder's image, as the bundle has it. None: `smoothing_px` decides.
    """

    dataset: Dataset
    prompts: Prompts
    shots: int
    seed: int = 0
    options: FrameOptions = field(default_factory=FrameOptions)
    settings: TeachSettings = field(default_factory=TeachSettings)
    allowed: tuple[Sample, ...] | None = None
    views: int = 8
    smoothing_px: float | None = None


def smoothing_px(encoder: Encoder, at_240: float = SMOOTHING_PX_AT_240) -> float:
    """The map's smoothing, in pixels of the encoder's image; it grows with the image's height."""
    return at_240 * encoder.image_size[0] / 240


@dataclass(frozen=True, slots=True)
class EncodedSupports:
    """What teaching needs once the supports are encoded: they are fitted on as often as one likes."""

    request: TeachRequest
    supports: tuple[Sample, ...]
    bank: TextBank
    features: SupportFeatures


def teach_recipe(
    model: LoadedModel,
    graph: SemClipGraph,
    request: TeachRequest,
    stages: Stages,
    cache: SupportCache | None = None,
) -> Recipe:
    """Draw supports, encode them, fit the recipe. Raises DatasetError, FrameError, PromptError."""
    return fit_supports(encode_request(model, graph, request, stages, cache), describe_encoder(model, graph), stages)


def encode_request(
    model: LoadedModel,
    graph: SemClipGraph,
    request: TeachRequest,
    stages: Stages,
    cache: SupportCache | None = None,
) -> EncodedSupports:
    """Draw the supports of a request and encode their views, or take them from `cache` where they are kept.

    Raises DatasetError, FrameError, PromptError.
    """
    dataset = request.dataset
    supports = draw_supports(dataset, request.shots, request.seed, allowed=request.allowed)
    with stages.stage("text bank"):
        bank = build_text_bank(model, request.prompts, dataset.classes)
    with stages.stage(f"encode {len(supports)} x {request.views} views") as stage:
        kept_before = cache.hits if cache else 0
        features = encode_supports(
            graph,
            describe_encoder(model, graph),
            supports,
            dataset.classes,
            torch.tensor(bank.text_seg),
            request.options,
            views=request.views,
            seed=request.seed,
            cache=cache,
            progress=stage,
        )
        if cache is not None:
            stage.remark = f"{cache.hits - kept_before} of {len(supports)} supports from {cache.folder}"
    return EncodedSupports(request, supports, bank, features)


def fit_supports(
    encoded: EncodedSupports, encoder: Encoder, stages: Stages, settings: TeachSettings | None = None
) -> Recipe:
    """Fit a recipe, with the request's settings or with others."""
    request, dataset = encoded.request, encoded.request.dataset
    smoothing = smoothing_px(encoder) if request.smoothing_px is None else request.smoothing_px
    lesson = Lesson(
        encoded.features,
        encoder,
        dataset.classes,
        encoded.bank,
        smoothing,
        request.seed,
        settings or request.settings,
    )
    with stages.stage("fit recipe") as progress:
        return fit_recipe(lesson, request.options, _provenance(encoded), progress)


def _provenance(encoded: EncodedSupports) -> dict[str, Any]:
    """Which frames taught a recipe, and the prompts if there were any."""
    request, dataset = encoded.request, encoded.request.dataset
    read = dataset.classes if encoded.bank.source == "tower" else ()
    return {
        "shots": request.shots,
        "supports": [str(sample.path.relative_to(dataset.folder).as_posix()) for sample in encoded.supports],
        "support_sha256": [sha256_of(sample.path) for sample in encoded.supports],
        "prompts": {name: request.prompts.for_class(name) for name in read},
    }


def build_bundle(
    model: LoadedModel,
    graph: SemClipGraph,
    recipe: Recipe,
    parity_samples: Sequence[Sample],
    out: Path,
    stages: Stages,
    *,
    force: bool = False,
    notes: Sequence[str] = (),
    fp16: bool = True,
    smoothing: float | None = None,
    value_path: bool | None = None,
    golden: str = "frames",
) -> Manifest:
    """Export fp32 and fp16 ONNX, prove parity on real frames, and write the bundle as a whole or not at all.

    The files have the V path where `value_path` says so, else where `keeps_value_path` does. Parity is with `graph` as
    it was given, so it also proves that nothing is lost with that path. fp16: False leaves that artifact out; the CPU
    does not take it. smoothing: in pixels of the encoder's image, as in TeachRequest. golden: the first of the parity
    frames are kept as golden "frames", or made-up "patterns" instead; every artifact agrees with torch on these, too.
    Raises OutputExistsError, ExportError, ParityError, RecipeError.
    """
    refuse_existing(out, force=force)
    keeps = keeps_value_path(model, recipe) if value_path is None else value_path
    exported = graph if keeps else graph.without_value_path()
    encoder = describe_encoder(model, exported)
    encoder.check(recipe)
    frames = _parity_frames(parity_samples, encoder, recipe.frame)
    smoothing = smoothing_px(encoder) if smoothing is None else smoothing
    with writing_bundle(out, force=force) as folder:
        artifacts = []
        sources = {"fp32": exported}
        if fp16:
            sources["fp16"] = exported.half_precision(torch.from_numpy(np.stack(spread(list(frames), 8))))
        for precision, source in sources.items():
            file = ONNX_FILES[precision]
            with stages.stage(f"export {file}"):
                operators = onnx_from_graph(source, recipe.tensors, folder / file)
                artifacts.append(record_artifact(folder, file, precision, operators))
        with stages.stage("parity with torch"):
            reference = torch_outputs(graph, frames, recipe)
            for index, artifact in enumerate(artifacts):
                outputs = artifact_outputs(folder, artifact, encoder, frames, recipe)
                report = measure_parity(
                    reference, outputs, artifact.precision, "supports and further frames of the set"
                )
                require_parity(
                    artifact.file,
                    report,
                    partial(worst_layers, folder / ONNX_FILES["fp32"], folder / artifact.file, frames[:2]),
                    remedy="--no-fp16 builds the bundle without it, for CPUs" if artifact.precision == "fp16" else "",
                )
                if artifact.precision == "fp16":
                    half = sources["fp16"].encoder
                    report["fp32_layers"] = sorted(half.fp32_layers)
                    report["fp32_attention_layers"] = sorted(half.fp32_attention)
                artifacts[index] = replace(artifact, parity=report)
        with stages.stage("golden frames"):
            labels = [sample.label for sample in parity_samples]
            chosen = (
                golden_frames(frames, labels, exported) if golden == "frames" else pattern_frames(encoder.input_size)
            )
            kept = make_golden(graph, encoder, recipe, smoothing, *chosen, golden)
            golden_file = _write_golden(folder, kept, artifacts, encoder, recipe)
        recipe.save(folder / RECIPE_FILE)
        manifest = Manifest(
            encoder=encoder,
            artifacts=tuple(artifacts),
            recipe_file=RECIPE_FILE,
            recipe_sha256=sha256_of(folder / RECIPE_FILE),
            smoothing_px=smoothing,
            tools=tool_versions(),
            notes=tuple(notes),
            golden=golden_file,
        )
        write_manifest(folder, manifest)
    return load_bundle(out)[0]  # where a name was taken, another was given


def keeps_value_path(model: LoadedModel, recipe: Recipe) -> bool:
    """Whether a bundle's graph has the V path: where the text is aligned, or where the bundle's own recipe reads it.

    The V path is not taught. Where nothing ever aligned it with the text, teaching gives it no share of the map
    (lambda_v 0), unless the paper's method is asked for.
    """
    return model.text_aligned or recipe.lambda_v > 0


def _write_golden(
    folder: Path, golden: Golden, artifacts: Sequence[Artifact], encoder: Encoder, recipe: Recipe
) -> GoldenFile:
    """Write the golden frames, once every artifact agrees with them. Raises ParityError: nobody could verify it."""
    for artifact in artifacts:
        outputs = artifact_outputs(folder, artifact, encoder, golden.frames, recipe)
        require_parity(artifact.file, measure_parity(golden.answers, outputs, artifact.precision, golden.source))
    content = golden.to_bytes()
    (folder / GOLDEN_FILE).write_bytes(content)
    return GoldenFile(GOLDEN_FILE, hashlib.sha256(content).hexdigest())


def parity_samples(dataset: Dataset, recipe: Recipe | None = None) -> list[Sample]:
    """Frames of every class to compare artifacts on; of each a support of the recipe first."""
    return ordered_samples(dataset, recipe)[:MAX_FRAMES]


def _parity_frames(
    samples: Sequence[Sample], encoder: Encoder, options: FrameOptions
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.stack([prepare(sample.read(options), encoder, options, str(sample.path)) for sample in samples])
