"""The manifest's record of the encoder, and how its numbers must agree."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import RecipeError
from .jsonfields import Fields
from .pixels import MAX_PIXELS
from .recipe import MEMORY_ROWS, FrameOptions, Recipe

MAX_SIDE = 16384
MAX_IMAGE_PIXELS = 2**22
"""For `image_size`, 2048 x 2048: 16,384 patches of 16 px, whose attention takes a gigabyte per head in fp32."""
REDUNDANCY = ("cls_weight", "class_mean")
VALUE_PATH_SINCE = 2
"""Manifest version that introduced `value_path`; graphs of older bundles all have the V path."""
NO_VALUE_PATH = (
    "has lambda_v {:g}, and this encoder's graph leaves the V path out: teach it again on this bundle's encoder, or "
    "build a bundle with it (its text is not aligned, so `sem-clip build` keeps the V path for --method paper alone)"
)
"""Advice for a recipe that needs the V path of a graph without it; takes its lambda_v."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Encoder:
    """The frozen image encoder and the geometry of the graph.

    id: fingerprint of weights, architecture and levels; a recipe carries the id it was taught on.
    weights: where they came from, in words ("random, seed 0" means untrained).
    image_size: [height, width] in pixels that the transformer sees; grid: its patches [rows, columns].
    input_size: [height, width] of the graph's `frames`. Equal to image_size, any frame size is taken and resized on
        the host; different, the resize is in the graph and frames must have this size once ignored rows are cut.
    levels: the layers (1-based) whose outputs are read. width D, text_dim C, features F as in `recipe.TENSORS`.
    mean, std: of the training pixels in [0, 1], already folded into the graph's weights.
    value_path: whether the graph computes the V path (paper eq. 2, 4, 7, 13-16). Without it, a recipe's lambda_v must
        be 0. It is no part of `id`: a recipe with lambda_v 0 gives the same answers on both graphs.
    """

    id: str
    architecture: str
    weights: str
    trained: bool
    checkpoint_sha256: str
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    patch_size: tuple[int, int]
    grid: tuple[int, int]
    layers: int
    heads: int
    levels: tuple[int, ...]
    width: int
    text_dim: int
    features: int
    redundancy: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    value_path: bool

    @property
    def resizes_in_graph(self) -> bool:
        """Whether frames must have exactly `input_size`."""
        return self.input_size != self.image_size

    def check(self, recipe: Recipe, where: str = "recipe") -> None:
        """Raise RecipeError unless `recipe` was taught on this encoder, has its shapes and needs nothing it lacks."""
        if recipe.encoder_id != self.id:
            raise RecipeError(
                where,
                f"was taught on encoder {recipe.encoder_id[:12]}, this bundle holds {self.id[:12]} "
                f"({self.architecture}): teach it again on this bundle's encoder",
            )
        expected = {
            "text_seg": (2, self.text_dim),
            "transform_weight": (len(self.levels), self.width, self.text_dim),
            "memory": (len(self.levels), MEMORY_ROWS, self.width),
            "head_weight": (len(recipe.classes), self.features),
        }
        faults = [
            f"tensor {name} has shape {list(recipe.tensors[name].shape)}, this encoder needs {list(shape)}"
            for name, shape in expected.items()
            if recipe.tensors[name].shape != shape
        ]
        if recipe.lambda_v > 0 and not self.value_path:
            faults.append(NO_VALUE_PATH.format(recipe.lambda_v))
        if faults:
            raise RecipeError(where, faults)
        self.check_tiles(recipe.frame, where)

    def check_tiles(self, options: FrameOptions, where: str) -> None:
        """Raise RecipeError for tiles, where frames are read as a whole only."""
        if options.tile and self.resizes_in_graph:
            height, width = self.input_size
            raise RecipeError(
                where,
                f"reads frames in tiles of {options.tile} pixels, and this bundle takes frames of {height}x{width} as "
                "a whole: use a bundle that was exported without --frame-size, or teach with --tile none",
            )


def read_encoder(fields: Fields, version: int) -> Encoder:
    """From a JSON object of a manifest of `version`; faults go to `fields`."""
    known = len(fields.faults)
    trained = fields.flag("trained")
    mean, std = fields.numbers("mean", 3), fields.numbers("std", 3)
    levels = tuple(fields.wholes("levels", 1, 1000))
    encoder = Encoder(
        id=sha256_field(fields, "id"),
        architecture=fields.text("architecture"),
        weights=fields.text("weights"),
        trained=trained,
        checkpoint_sha256=sha256_field(fields, "checkpoint_sha256"),
        image_size=fields.pair("image_size", 1, MAX_SIDE),
        input_size=fields.pair("input_size", 1, MAX_SIDE),
        patch_size=fields.pair("patch_size", 1, MAX_SIDE),
        grid=fields.pair("grid", 1, 1024),
        layers=fields.whole("layers", 1, 1000),
        heads=fields.whole("heads", 1, 1000),
        levels=levels,
        width=fields.whole("width", 1, 65536),
        text_dim=fields.whole("text_dim", 1, 65536),
        features=fields.whole("features", 1, 10**6),
        redundancy=fields.text("redundancy"),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        value_path=version < VALUE_PATH_SINCE or fields.flag("value_path"),
    )
    if encoder.redundancy and encoder.redundancy not in REDUNDANCY:
        fields.fault("redundancy", f"must be one of {', '.join(REDUNDANCY)}")
    fields.finish()
    if len(fields.faults) == known:  # placeholders of wrong entries would disagree, too
        _check_geometry(encoder, fields)
    return encoder


def _check_geometry(encoder: Encoder, fields: Fields) -> None:
    """Record numbers that contradict each other. An engine compares them with the graph when it opens."""
    sees = [patches * side for patches, side in zip(encoder.grid, encoder.patch_size, strict=True)]
    if list(encoder.image_size) != sees:
        fields.fault("image_size", f"must be grid x patch_size, {sees}, not {list(encoder.image_size)}")
    for key, most in (("image_size", MAX_IMAGE_PIXELS), ("input_size", MAX_PIXELS)):
        height, width = getattr(encoder, key)
        if height * width > most:
            fields.fault(key, f"must not be more than {most:,} pixels, not {height} x {width}")
    if any(later <= earlier for earlier, later in zip(encoder.levels, encoder.levels[1:], strict=False)):
        fields.fault("levels", f"must rise, not {_shown(encoder.levels)}")
    elif encoder.levels[-1] > encoder.layers:
        fields.fault("levels", f"must not go beyond layer {encoder.layers}, the last, not {_shown(encoder.levels)}")
    if encoder.width % encoder.heads:
        fields.fault("heads", f"must divide the width of {encoder.width}, not {encoder.heads}")
    features = feature_count(len(encoder.levels), encoder.width)
    if encoder.features != features:
        fields.fault("features", f"must be 3 x levels x width + 1, {features}, not {encoder.features}")
    if min(encoder.std) <= 0:
        fields.fault("std", f"must be positive, not {list(encoder.std)}")


def feature_count(levels: int, width: int) -> int:
    """How many features the class head reads: for every level, its class token and two means of its patches weighted
    by the map; and the mean of the map's top patches."""
    return 3 * levels * width + 1


def _shown(levels: tuple[int, ...]) -> str:
    return f"{list(levels[:8])}{' and more' if len(levels) > 8 else ''}"


def sha256_field(fields: Fields, key: str) -> str:
    """A SHA-256 in lower-case hexadecimal; a fault goes to `fields`."""
    value = fields.text(key)
    if value and not _SHA256.fullmatch(value):
        fields.fault(key, "must be a SHA-256 in lower-case hexadecimal")
    return value
