"""Teaching a recipe and building a bundle, as plain functions that the commands call."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.contents import content_sha256
from calibration.dataset import Dataset, Sample
from calibration.relearning import name_in
from runtime.backends import Outputs
from runtime.files import sha256_of
from runtime.golden import FILE_NAME as GOLDEN_FILE
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
from .artifacts.rows import rows_of
from .artifacts.to_onnx import onnx_from_graph
from .bundle import describe_encoder, record_artifact, refuse_existing, write_manifest, writing_bundle
from .errors import ExportError
from .model.checkpoint import LoadedModel
from .model.graph import SemClipGraph
from .progress import Stages
from .teaching.fit_recipe import Lesson, fit_recipe
from .teaching.prompts import Prompts
from .teaching.settings import TeachSettings
from .teaching.support_cache import SupportCache
from .teaching.support_pixels import DEFECT_TILES, Support, read_supports
from .teaching.supports import draw_supports
from .teaching.text_bank import TextBank, build_text_bank
from .teaching.tile_size import Tiling, with_tiles
from .teaching.unseen_tiles import UnseenTiles
from .teaching.views import SupportFeatures, encode_supports
from .versions import tool_versions

SMOOTHING_PX_AT_240 = 6.0
"""Wider than the 4 of related methods: on both data sets with masks it gives the better map at every K."""
PAPER_SMOOTHING_PX_AT_240 = 4.0
"""As in WinCLIP, CLIP-AD and PromptAD; the paper names none."""
METHODS = {
    "default": (TeachSettings(), SMOOTHING_PX_AT_240),
    "paper": (TeachSettings.paper(), PAPER_SMOOTHING_PX_AT_240),
}
"""By the name that commands take: the settings, and the smoothing of the map in pixels at an image height of 240."""
Frames = NDArray[np.uint8]
RECIPE_FILE = "recipe.safetensors"
ONNX_FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}


@dataclass(frozen=True, slots=True)
class TeachRequest:
    """What to teach: `shots` frames of every class of `dataset`, drawn with `seed` (from `allowed` only, if given).

    shots: K, or one for each class by its name. supports: exactly these frames, without a draw.
    views: how many variations of each support are encoded, the first one unaugmented; with tiles half of it for each.
    smoothing_px: of the map, in pixels of the encoder's image, as the bundle has it. None: as `smoothing_px` gives.
    tiling: how to read frames in tiles; None reads each as a whole. `encode_request` brings it into `options`.
    """

    dataset: Dataset
    prompts: Prompts
    shots: int | Mapping[str, int]
    seed: int = 0
    options: FrameOptions = field(default_factory=FrameOptions)
    settings: TeachSettings = field(default_factory=TeachSettings)
    allowed: tuple[Sample, ...] | None = None
    views: int = 8
    smoothing_px: float | None = None
    tiling: Tiling | None = None
    supports: tuple[Sample, ...] | None = None


def smoothing_px(encoder: Encoder, at_240: float = SMOOTHING_PX_AT_240) -> float:
    """The map's smoothing, in pixels of the encoder's image; it grows with the image's height."""
    return at_240 * encoder.image_size[0] / 240


@dataclass(frozen=True, slots=True)
class EncodedSupports:
    """All that fitting needs, once the supports are encoded; any number of recipes can be fitted on it."""

    request: TeachRequest
    supports: tuple[Sample, ...]
    bank: TextBank
    features: SupportFeatures
    unseen: UnseenTiles | None = None


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
    """Draw the supports of a request and encode their views, or read them from `cache`.

    Raises DatasetError, FrameError, PromptError.
    """
    dataset, encoder = request.dataset, describe_encoder(model, graph)
    supports = request.supports
    if supports is None:
        supports = draw_supports(dataset, request.shots, request.seed, allowed=request.allowed)
    request = _with_tiling(request, supports, encoder, stages)
    with stages.stage("text bank"):
        bank = build_text_bank(model, request.prompts, dataset.classes)

    groups = sorted({sample.group for sample in supports})

    def encode(pieces: Sequence[Support], what: str) -> SupportFeatures:
        with stages.stage(f"encode {len(pieces)} {what} x {views} views") as stage:
            kept_before = cache.hits if cache else 0
            features = encode_supports(
                graph,
                encoder,
                pieces,
                dataset.classes,
                torch.tensor(bank.text_seg),
                views=views,
                seed=request.seed,
                groups=groups,
                cache=cache,
                progress=stage,
            )
            if cache is not None:
                stage.remark = f"{cache.hits - kept_before} of {len(pieces)} {what} from {cache.folder}"
        return features

    # All are read before the first is encoded: faults come before hours of encoding.
    pieces = read_supports(supports, encoder, request.options, request.seed)
    tiled = len(pieces) > len(supports)
    views = max(1, request.views // DEFECT_TILES) if tiled else request.views  # so that both cost the same
    encoded = EncodedSupports(request, supports, bank, encode(pieces, "tiles" if tiled else "supports"))
    if not tiled:
        return encoded
    unseen = UnseenTiles(graph, encoder, supports, request.options, request.seed, _smoothing(request, encoder))
    first = fit_supports(encoded, encoder, stages, stage="fit a first recipe")
    with stages.stage("search good frames for hard tiles") as progress:
        hard = unseen.hardest(first.tensors, first.operating_point.class_share, progress)
    if hard:  # none where all tiles of the good frames teach already
        encoded = replace(encoded, features=encoded.features.joined(encode(hard, "hard tiles")))
    return replace(encoded, unseen=unseen)


def fit_supports(
    encoded: EncodedSupports,
    encoder: Encoder,
    stages: Stages,
    settings: TeachSettings | None = None,
    *,
    stage: str = "fit recipe",
) -> Recipe:
    """Fit a recipe, with the request's settings or with `settings`. stage: what to call it."""
    request, dataset = encoded.request, encoded.request.dataset
    lesson = Lesson(
        encoded.features,
        encoder,
        dataset.classes,
        encoded.bank,
        _smoothing(request, encoder),
        request.seed,
        settings or request.settings,
        encoded.unseen,
    )
    with stages.stage(stage) as progress:
        return fit_recipe(lesson, request.options, _provenance(encoded), progress)


def _with_tiling(request: TeachRequest, supports: Sequence[Sample], encoder: Encoder, stages: Stages) -> TeachRequest:
    if request.tiling is None:
        return request
    with stages.stage("choose tiles") as stage:
        try:
            options, stage.remark = with_tiles(request.options, request.tiling, supports, encoder)
        except ValueError as exc:
            raise ExportError(f"--tile: {exc}") from None
    encoder.check_tiles(options, "the recipe to teach")
    return replace(request, options=options)


def _smoothing(request: TeachRequest, encoder: Encoder) -> float:
    return smoothing_px(encoder) if request.smoothing_px is None else request.smoothing_px


def _provenance(encoded: EncodedSupports) -> dict[str, Any]:
    """The frames that taught a recipe, and the prompts if any were read."""
    request, dataset = encoded.request, encoded.request.dataset
    read = dataset.classes if encoded.bank.source == "tower" else ()
    return {
        "shots": request.shots if isinstance(request.shots, int) else dict(request.shots),
        "views": request.views,
        "supports": [name_in(dataset.folder, sample) for sample in encoded.supports],
        "support_sha256": [content_sha256(sample.path) for sample in encoded.supports],
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

    fp16: False leaves that artifact out; the CPU does not use it. smoothing: in pixels of the encoder's image, as in
    TeachRequest. value_path: whether the ONNX files have the V path; None: as `keeps_value_path`. Parity is with
    `graph` as given, which also proves that nothing is lost without the V path.
    golden: keep the first of the parity frames as golden "frames", or generated "patterns". Every artifact agrees with
    torch on these, too.
    Raises OutputExistsError, ExportError, ParityError, RecipeError.
    """
    refuse_existing(out, force=force)
    keeps = keeps_value_path(model, recipe) if value_path is None else value_path
    exported = graph if keeps else graph.without_value_path()
    encoder = describe_encoder(model, exported)
    encoder.check(recipe)
    frames, labels = _parity_frames(parity_samples, encoder, recipe.frame)
    smoothing = smoothing_px(encoder) if smoothing is None else smoothing
    with writing_bundle(out, force=force) as folder:
        draft = _Draft(folder, graph, exported, encoder, recipe)
        sources = {"fp32": exported}
        if fp16:
            sources["fp16"] = exported.half_precision(torch.from_numpy(np.stack(spread(list(frames), 8))))
        artifacts = [_export(draft, source, precision, stages) for precision, source in sources.items()]
        with stages.stage("parity with torch"):
            reference = torch_outputs(graph, frames, recipe)
            half = sources["fp16"] if fp16 else None
            artifacts = [_with_parity(draft, artifact, reference, frames, half) for artifact in artifacts]
        with stages.stage("golden frames"):
            golden_file = _write_golden(draft, artifacts, frames, labels, smoothing, golden)
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
    return load_bundle(out)[0]  # read back: a file whose name was taken has got another name


def keeps_value_path(model: LoadedModel, recipe: Recipe) -> bool:
    """Whether a bundle's graph has the V path: if the text is aligned, or if the bundle's own recipe reads it.

    The V path is not taught. Without aligned text, teaching gives it a weight of 0 in the map (lambda_v), except by the
    paper's method.
    """
    return model.text_aligned or recipe.lambda_v > 0


@dataclass(frozen=True, slots=True)
class _Draft:
    """A bundle in the making. folder: where its files go. graph: the reference for parity. encoder: of `exported`."""

    folder: Path
    graph: SemClipGraph
    exported: SemClipGraph
    encoder: Encoder
    recipe: Recipe


def _export(draft: _Draft, source: SemClipGraph, precision: str, stages: Stages) -> Artifact:
    """Write the ONNX file of one precision."""
    file = ONNX_FILES[precision]
    with stages.stage(f"export {file}"):
        operators = onnx_from_graph(source, draft.recipe.tensors, draft.folder / file)
        return record_artifact(draft.folder, file, precision, operators)


def _with_parity(
    draft: _Draft, artifact: Artifact, reference: Outputs, frames: Frames, half: SemClipGraph | None
) -> Artifact:
    """The artifact with its parity report; for fp16 also the layers of `half` that stay fp32. Raises ParityError."""
    outputs = artifact_outputs(draft.folder, artifact, draft.encoder, frames, draft.recipe)
    source = f"{'tiles of ' if draft.recipe.frame.tile else ''}supports and further frames of the set"
    report = measure_parity(reference, outputs, artifact.precision, source)
    require_parity(
        artifact.file,
        report,
        partial(worst_layers, draft.folder / ONNX_FILES["fp32"], draft.folder / artifact.file, frames[:2]),
        remedy="--no-fp16 builds the bundle without it, for CPUs" if artifact.precision == "fp16" else "",
    )
    if artifact.precision == "fp16" and half is not None:
        report["fp32_layers"] = sorted(half.encoder.fp32_layers)
        report["fp32_attention_layers"] = sorted(half.encoder.fp32_attention)
    return replace(artifact, parity=report)


def _write_golden(
    draft: _Draft, artifacts: Sequence[Artifact], frames: Frames, labels: Sequence[str], smoothing: float, source: str
) -> GoldenFile:
    """Write the golden frames once every artifact agrees with torch on them. Raises ParityError.

    labels: classes of `frames`. source: "frames" keeps the first of them; "patterns" keeps generated ones.
    """
    if source == "frames":
        chosen, about = golden_frames(frames, labels, draft.exported)
    else:
        chosen, about = pattern_frames(draft.encoder.input_size)
    golden = make_golden(draft.graph, draft.encoder, draft.recipe, smoothing, chosen, about, source)
    for artifact in artifacts:
        outputs = artifact_outputs(draft.folder, artifact, draft.encoder, golden.frames, draft.recipe)
        require_parity(artifact.file, measure_parity(golden.answers, outputs, artifact.precision, golden.source))
    content = golden.to_bytes()
    (draft.folder / GOLDEN_FILE).write_bytes(content)
    return GoldenFile(GOLDEN_FILE, hashlib.sha256(content).hexdigest())


def parity_samples(dataset: Dataset, recipe: Recipe | None = None) -> list[Sample]:
    """Frames of every class to compare artifacts on; of each class a support of the recipe first."""
    return ordered_samples(dataset, recipe)[:MAX_FRAMES]


def _parity_frames(samples: Sequence[Sample], encoder: Encoder, options: FrameOptions) -> tuple[Frames, list[str]]:
    """The samples as the encoder reads them, uint8 [n, height, width], and the class of the frame that each is of.

    Of frames in tiles, the first tiles of all samples come first.
    """
    found: list[list[tuple[NDArray[np.uint8], str]]] = []
    for sample in samples:
        pixels = sample.read(options)
        mask = sample.read_mask((pixels.shape[0], pixels.shape[1])) if options.tile else None
        rows = rows_of(pixels, encoder, options, str(sample.path), mask)
        found.append([(row, sample.label) for row in rows])
    ordered = [row for turn in zip_longest(*found) for row in turn if row is not None]
    return np.stack([row for row, _ in ordered]), [label for _, label in ordered]
