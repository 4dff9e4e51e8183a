"""The encoder that a command teaches with: of a new bundle, or that of a bundle which is there. Cheap to import."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.manifest import Encoder, Manifest, bundle_of_recipe

from .errors import CheckpointError, ExportError, OutputExistsError
from .options import DEFAULT_ARCH

if TYPE_CHECKING:
    from .model.checkpoint import LoadedModel
    from .model.graph import SemClipGraph
    from .teaching.settings import TeachSettings


def new_encoder(args: argparse.Namespace) -> tuple[LoadedModel, SemClipGraph]:
    """The encoder of a new bundle, and its graph."""
    from .model.graph import SemClipGraph

    model, size = _model(args, args.image_size), args.frame_size
    if size is not None:
        size = (size[0] - args.ignore_top - args.ignore_bottom, size[1])
        if size[0] < 1:
            raise ExportError(f"--frame-size has {args.frame_size[0]} rows and all of them would be ignored")
    return model, SemClipGraph(model.encoder(), input_size=size)


def _model(args: argparse.Namespace, image_size: tuple[int, int] | None) -> LoadedModel:
    from .model.checkpoint import load_model

    return load_model(
        args.arch or DEFAULT_ARCH,
        weights=args.weights,
        pretrained=args.pretrained,
        random_seed=0 if args.random_weights else None,
        image_size=image_size,
    )


def take_encoder_of(encoder: Encoder, args: argparse.Namespace) -> None:
    """Without --arch and weights, those of the bundle: its architecture, and random weights where it has them."""
    if args.arch is None:
        args.arch = encoder.architecture
    if not encoder.trained and args.weights is None and args.pretrained is None:
        args.random_weights = True


def require_value_path(args: argparse.Namespace, encoder: Encoder, settings: TeachSettings) -> None:
    """Raise ExportError where the method reads the V path and the bundle's graphs leave it out."""
    if (settings.lambda_v or 0.0) > 0 and not encoder.value_path:
        raise ExportError(
            f"{args.bundle} has no V path, which --method {args.method} reads: build a bundle that has it with "
            f"`sem-clip build --method {args.method}`"
        )


def encoder_of_bundle(args: argparse.Namespace, encoder: Encoder) -> tuple[LoadedModel, SemClipGraph]:
    """The bundle's encoder in torch. Raises CheckpointError if the weights that were given are not its own."""
    from .bundle import describe_encoder
    from .model.graph import SemClipGraph

    model = _model(args, encoder.image_size)
    resized = encoder.input_size if encoder.resizes_in_graph else None
    graph = SemClipGraph(model.encoder(), redundancy=encoder.redundancy, input_size=resized)
    if describe_encoder(model, graph).id != encoder.id:
        raise CheckpointError(
            f"these weights ({model.origin}, SHA-256 {model.sha256[:16]}) are not those of {args.bundle} "
            f"({encoder.weights}, {encoder.checkpoint_sha256[:16]}): give the bundle's own with --arch and --weights"
        )
    return model, graph


def note_other_smoothing(args: argparse.Namespace, manifest: Manifest) -> None:
    """Say on stderr that the bundle smooths its maps otherwise than --method does."""
    from .teach import METHODS, smoothing_px

    own = smoothing_px(manifest.encoder, METHODS[args.method][1])
    if not math.isclose(own, manifest.smoothing_px):
        print(
            f"note: {args.bundle} smooths its maps by {manifest.smoothing_px:g} px, --method {args.method} by "
            f"{own:g}; a recipe cannot change that: `sem-clip build --method {args.method}` does",
            file=sys.stderr,
        )


def require_no_recipe_of_bundle(out: Path) -> None:
    """Raise OutputExistsError for a file that is some bundle's own recipe."""
    if bundle_of_recipe(out) is not None:
        raise OutputExistsError(f"{out} is a bundle's own recipe, which the bundle would miss: choose another")


def need_torch() -> None:
    """Raise ExportError where PyTorch or open_clip is not installed."""
    try:
        import open_clip  # noqa: F401
        import torch  # noqa: F401
    except ImportError as exc:
        raise ExportError(
            f'teaching and exporting need PyTorch and open_clip ({exc}): pip install "sem-clip[export,cpu]"'
        ) from exc
