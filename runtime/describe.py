"""What a bundle and a recipe hold, in lines for people: the text of `sem-clip inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .backends import obstacles
from .errors import BundleError
from .fab.drift import read_reference
from .golden import load_golden
from .manifest import Artifact, Encoder, Manifest
from .operating_point import CHANGED_BY_HAND
from .recipe import SCALARS, FrameOptions, Recipe
from .terminal import show

METHODS: dict[str, dict[str, object]] = {
    "default": {"head": "pooled", "start": "auto", "frame_loss": 1.0, "lambda_v": None, "memory_share": None},
    "paper": {"head": "paper", "start": "random", "frame_loss": 0.0, "lambda_v": 1.0, "memory_share": 0.0},
}
"""Teaching settings that tell the methods of `sem-clip teach --method` apart."""


def bundle_lines(folder: Path, manifest: Manifest, recipe: Recipe) -> list[str]:
    """A bundle whose hashes were checked; also which backends this host can run. Opens none."""
    lines = [
        *_encoder_lines(manifest.encoder),
        *(line for artifact in manifest.artifacts for line in _artifact_lines(artifact)),
        *recipe_lines(manifest.recipe_file, recipe),
        f"smoothing   {manifest.smoothing_px:g} px of the encoder's image, by the bundle, for all of its recipes",
        f"golden      {_golden_line(folder, manifest, recipe)}",
        *_target_lines(manifest),
    ]
    for name, obstacle in obstacles(folder, manifest).items():
        lines.append(f"runs here   {name}: {f'no, {obstacle}' if obstacle else 'yes'}")
    return [*lines, *(f"note        {note}" for note in manifest.notes)]


def recipe_lines(file: str, recipe: Recipe) -> list[str]:
    """A recipe of a bundle, or a file of its own: classes, how it was taught, and its operating point."""
    teaching, rows = recipe.teaching, recipe.frame
    scalars = zip(SCALARS, recipe.tensors["scalars"].tolist(), strict=True)
    return [
        f"recipe      {file}: {', '.join(recipe.classes)}; text from {recipe.text}",
        f"            for the encoder with id {recipe.encoder_id[:16]}",
        f"            {method_line(teaching)}",
        f"            shots {show(teaching.get('shots'))}, seed {show(teaching.get('seed'))}",
        f"            map taught by {show(teaching.get('map_taught_by'))}",
        f"            {len(recipe.support_features)} supports",
        f"            rows ignored: {rows.ignore_top} at the top, {rows.ignore_bottom} at the bottom",
        *_frame_lines(rows),
        "            " + ", ".join(f"{name} {value:g}" for name, value in scalars),
        *_operating_point_lines(recipe),
    ]


def _frame_lines(options: FrameOptions) -> list[str]:
    """What is only there if it was asked for."""
    bars = [] if options.bars is None else [f"            {options.bars.summary()}"]
    if options.tile:
        whole = ", and the whole frame" if options.whole else ""
        bars.append(f"            read in tiles of {options.tile} pixels that overlap by {options.overlap}{whole}")
    if options.pixel_size_nm is None:
        return bars
    x, y = options.pixel_size_nm
    return [*bars, f"            a pixel is {x:g} x {y:g} nm where the file does not tell"]


def method_line(teaching: Mapping[str, object]) -> str:
    """The method, the head and the start of the map's layers; "unknown" where a recipe does not record them."""
    settings = teaching.get("settings")
    if not isinstance(settings, Mapping):
        return "method unknown: this recipe does not record its settings"
    named = [name for name, known in METHODS.items() if all(settings.get(k, known) == v for k, v in known.items())]
    start = f"start {show(settings.get('start'))}"
    if "map_starts_at" in teaching:
        start += f" (began at {show(teaching['map_starts_at'])})"
    return f"method {named[0] if named else 'of other settings'}, head {show(settings.get('head'))}, {start}"


def _encoder_lines(encoder: Encoder) -> list[str]:
    size = " x ".join(map(str, encoder.input_size))
    frames = f"exactly {size} (height x width)" if encoder.resizes_in_graph else f"any size, squashed to {size}"
    return [
        f"encoder     {encoder.architecture}, weights: {encoder.weights}{'' if encoder.trained else ' (UNTRAINED)'}",
        f"            {encoder.layers} layers, width {encoder.width}, levels after {list(encoder.levels)}",
        f"            id {encoder.id[:16]}, checkpoint SHA-256 {encoder.checkpoint_sha256[:16]}",
        f"V path      {'in the graph' if encoder.value_path else 'left out of the graph: recipes need lambda_v 0'}",
        f"frames      {frames}",
    ]


def _artifact_lines(artifact: Artifact) -> list[str]:
    target = {name: show(value) for name, value in artifact.target.items()}
    first = f"artifact    {artifact.file}: {artifact.precision}, {artifact.bytes / 1e6:.1f} MB, SHA-256 correct"
    if artifact.kind == "engine":
        return [
            first,
            f"            {target.get('product')} {target.get('version')}, compute capability "
            f"{target.get('compute_capability')}, {target.get('os')}, batch {target.get('batch')}, up to "
            f"{target.get('most_classes')} classes",
        ]
    parity = artifact.parity
    return [
        first,
        f"            parity on {show(parity.get('frames'))} frames: probabilities "
        f"{_distance(parity.get('max_abs_probability'))}, map {_distance(parity.get('max_abs_defect_map'))}, "
        f"labels equal {show(parity.get('labels_equal'))}",
        f"            {show(sum(artifact.operators.values()))} operators, "
        f"{show(artifact.operators.get('Attention', 0))} Attention",
    ]


def _operating_point_lines(recipe: Recipe) -> list[str]:
    point = recipe.operating_point
    novelty = "never" if point.novelty_threshold is None else f"above novelty {point.novelty_threshold:.4f}"
    review = "also" if point.review_disagreement else "not"
    floors = ", ".join(f"{name} {value:.3f}" for name, value in point.confidence_thresholds.items())
    lines = [
        f"verdicts    defect threshold {point.defect_threshold:.4f}, pixel threshold {point.pixel_threshold:.4f}",
        f"            defect score: {1 - point.class_share:.4g} x map + {point.class_share:.4g} x (1 - P(good))",
        f"            temperature {point.temperature:.4g}; unknown: {novelty}",
        f"            cannot decide: below confidence {floors}; {review} where class and score disagree",
    ]
    by_hand = recipe.calibration.get(CHANGED_BY_HAND)
    edited = by_hand if isinstance(by_hand, list) else []
    lines += [f"            {show(name)} changed by hand: its calibration no longer holds" for name in edited]
    for name, section in recipe.calibration.items():
        if name not in edited and isinstance(section, dict) and "rule" in section:
            lines.append(f"            {name} by {show(section['rule'])}: {show(section.get('promise'))}")
    if not recipe.calibration:
        return [*lines, "            as taught, never calibrated"]
    return [*lines, f"            drift of lots: {_drift_line(recipe)}"]


def _drift_line(recipe: Recipe) -> str:
    reference = read_reference(recipe)
    if isinstance(reference, str):
        return f"not tested: {reference}"
    return f"tested against {sum(group.frames for group in reference.values())} calibration frames"


def _target_lines(manifest: Manifest) -> list[str]:
    figures = {pair: target.figures() for pair, target in manifest.targets.items()}
    return [
        f"target      {backend} {precision}: {', '.join(f'{name} {value:g}' for name, value in asked.items())}"
        for (backend, precision), asked in figures.items()
    ]


def _golden_line(bundle: Path, manifest: Manifest, recipe: Recipe) -> str:
    """Missing or damaged golden frames are a line, not an error: only `verify` needs them."""
    try:
        golden = load_golden(bundle, manifest, recipe)
    except BundleError as exc:
        return f"no frames to verify engines by: {'; '.join(exc.faults)}"
    made_up = " (made-up patterns)" if golden.source == "patterns" else ""
    return f"{show(manifest.golden and manifest.golden.file)}: {len(golden.frames)} frames{made_up}, SHA-256 correct"


def _distance(value: object) -> str:
    try:
        return f"{value:.1e}" if isinstance(value, int | float) else "unknown"
    except OverflowError:  # a whole number, which JSON has of any size
        return show(value)
