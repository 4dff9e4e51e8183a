"""`sem-clip build` (as `python export/build_engine.py`) and `sem-clip teach`. Cheap to import: no torch here."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backends.ort import check_provider
from runtime.files import require_files
from runtime.manifest import Artifact, Manifest, bundle_of_recipe, load_bundle

from .errors import CheckpointError, ExportError, OutputExistsError

if TYPE_CHECKING:
    from calibration.dataset import Dataset
    from runtime.recipe import FrameOptions

    from .artifacts.engine_target import Builder
    from .model.checkpoint import LoadedModel
    from .progress import Stages
    from .teach import TeachRequest

DEFAULT_ARCH = "sem_tiny"
ENGINES = ("tensorrt", "tensorrt-rtx")
DEMO_SHOTS = 10
METHOD_NAMES = ("default", "paper")
"""Those of teach.METHODS, which costs torch to import."""
DEMO_TEACH, DEMO_NEW = "teach", "new"
UNTRAINED = (
    "the encoder is UNTRAINED (random weights): everything runs, but verdicts come from the few taught layers alone "
    "and their quality says nothing about the method"
)


class Build:
    """The main job: teach a recipe, export the encoder, prove parity, write a bundle."""

    help = "Teach a recipe on a data folder and write a bundle with it."
    example = (
        "python export/build_engine.py --data frames/ --shots 10 --arch vit_b_16_plus_240 "
        "--weights vit_b_16_plus_240.pt --out bundle\n"
        "  python export/build_engine.py            (no arguments: generated frames and the embedded encoder)"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        _add_teaching_arguments(parser)
        parser.add_argument("--out", type=Path, default=Path("bundle"), help="bundle folder to write (default: bundle)")
        parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
        parser.add_argument(
            "--frame-size",
            type=pixel_size,
            metavar="HxW",
            help="put the resize into the graph, for frames of exactly this height x width (ignored rows included)",
        )
        parser.add_argument(
            "--image-size",
            type=pixel_size,
            metavar="HxW",
            help="encode at this size rather than the architecture's own: smaller defects, at a cost that grows faster "
            "than the area; learned positions are interpolated",
        )
        parser.add_argument(
            "--redundancy",
            choices=("cls_weight", "class_mean"),
            default="cls_weight",
            help="how the V path removes redundant features, eq. 13-15 (default: cls_weight)",
        )
        parser.add_argument(
            "--no-fp16",
            action="store_true",
            help="leave out model.fp16.onnx, which is for GPUs: quicker, and a way on where fp16 fails parity",
        )
        parser.add_argument(
            "--no-golden",
            action="store_true",
            help="put no pictures into the bundle: `sem-clip verify` then goes by made-up patterns, which say less",
        )
        engine = parser.add_argument_group("with which engine, beside the ONNX files")
        engine.add_argument("--engine", choices=ENGINES, help="also build a serialized engine; none if left out")
        _add_engine_arguments(engine)

    def run(self, args: argparse.Namespace) -> int:
        """Build and print the summary."""
        _need_torch()
        check_provider("cpu")  # which compares the graph with torch at the end
        from .bundle import describe_encoder, refuse_existing
        from .model.graph import SemClipGraph
        from .progress import Stages
        from .teach import METHODS, build_bundle, parity_samples, smoothing_px, teach_recipe
        from .teaching.support_cache import open_cache

        refuse_existing(args.out, force=args.force)
        if args.engine and args.no_fp16:
            raise ExportError("--engine is built from the fp16 file; leave out --no-fp16")
        builder = _builder(args) if args.engine else None
        cache = open_cache(args.support_cache)
        stages = Stages()
        request = _request(args, stages, args.out)
        with stages.stage("load encoder"):
            model = _model(args, args.image_size)
            size = args.frame_size
            if size is not None:
                size = (size[0] - args.ignore_top - args.ignore_bottom, size[1])
                if size[0] < 1:
                    raise ExportError(f"--frame-size has {args.frame_size[0]} rows and all of them would be ignored")
            graph = SemClipGraph(model.encoder(), redundancy=args.redundancy, input_size=size)
        request = replace(request, smoothing_px=smoothing_px(describe_encoder(model, graph), METHODS[args.method][1]))
        recipe = teach_recipe(model, graph, request, stages, cache)
        notes = [] if model.trained else [UNTRAINED]
        samples = parity_samples(request.dataset, recipe)
        manifest = build_bundle(
            model,
            graph,
            recipe,
            samples,
            args.out,
            stages,
            force=args.force,
            notes=notes,
            fp16=not args.no_fp16,
            smoothing=request.smoothing_px,
            golden="patterns" if args.no_golden else "frames",
        )
        if builder is not None:
            _add_engine(args.out, builder, stages)
            manifest, _ = load_bundle(args.out)
        to_judge = args.data or _demo_frames(args.out) / DEMO_NEW
        _summarize(args.out, manifest, request.dataset, to_judge, stages)
        return 0


class Teach:
    """A recipe only, for the encoder of a bundle that exists."""

    help = "Teach a recipe for the encoder of an existing bundle; no engine is touched."
    example = "sem-clip teach bundle --data frames-metal2/ --shots 5 --weights encoder.pt --out metal2.safetensors"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("bundle", type=Path, help="the bundle whose encoder will run the recipe")
        _add_teaching_arguments(parser)
        parser.add_argument(
            "--out", type=Path, required=True, metavar="FILE", help="recipe file to write (.safetensors)"
        )
        parser.add_argument("--force", action="store_true", help="replace FILE if it is there")

    def run(self, args: argparse.Namespace) -> int:
        """Teach and say what to type next."""
        require_files([args.out], force=args.force)
        _need_torch()
        from .bundle import describe_encoder
        from .model.graph import SemClipGraph
        from .progress import Stages
        from .teach import METHODS, smoothing_px, teach_recipe
        from .teaching.support_cache import open_cache

        if bundle_of_recipe(args.out) is not None:
            raise OutputExistsError(f"{args.out} is a bundle's own recipe, which the bundle would miss: choose another")
        manifest, _ = load_bundle(args.bundle)
        if args.arch is None:
            args.arch = manifest.encoder.architecture
        if not manifest.encoder.trained and args.weights is None and args.pretrained is None:
            args.random_weights = True
        cache = open_cache(args.support_cache)
        stages = Stages()
        request = replace(_request(args, stages, args.out), smoothing_px=manifest.smoothing_px)
        asked = request.settings.lambda_v or 0.0
        if asked > 0 and not manifest.encoder.value_path:  # before the supports are encoded
            raise ExportError(
                f"{args.bundle} has no V path, which --method {args.method} reads: build a bundle that has it with "
                f"`sem-clip build --method {args.method}`"
            )
        with stages.stage("load encoder"):
            model = _model(args, manifest.encoder.image_size)
            resized = manifest.encoder.input_size if manifest.encoder.resizes_in_graph else None
            graph = SemClipGraph(model.encoder(), redundancy=manifest.encoder.redundancy, input_size=resized)
        if describe_encoder(model, graph).id != manifest.encoder.id:
            raise CheckpointError(
                f"these weights ({model.origin}, SHA-256 {model.sha256[:16]}) are not those of {args.bundle} "
                f"({manifest.encoder.weights}, {manifest.encoder.checkpoint_sha256[:16]}): give the bundle's own with "
                "--arch and --weights"
            )
        own = smoothing_px(manifest.encoder, METHODS[args.method][1])
        if not math.isclose(own, manifest.smoothing_px):
            print(
                f"note: {args.bundle} smooths its maps by {manifest.smoothing_px:g} px, --method {args.method} by "
                f"{own:g}; a recipe cannot change that: `sem-clip build --method {args.method}` does",
                file=sys.stderr,
            )
        recipe = teach_recipe(model, graph, request, stages, cache)
        manifest.encoder.check(recipe, where=str(args.out))
        recipe.save(args.out)
        print(f"recipe {args.out}: {', '.join(recipe.classes)}")
        print(f"next:  sem-clip predict {args.bundle} PATH --recipe {args.out}")
        return 0


class BuildEngine:
    """A serialized engine for a bundle that exists."""

    help = "Build a TensorRT or TensorRT-RTX engine of a bundle's fp16 or 8-bit graph and add it to the bundle."
    example = "sem-clip build-engine bundle --engine tensorrt-rtx --compute-capability 8.9 --batch 1,32,64"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("bundle", type=Path, help="bundle folder; it must hold model.fp16.onnx")
        parser.add_argument("--engine", choices=ENGINES, required=True, help="the product that builds and will run it")
        _add_engine_arguments(parser)
        parser.add_argument(
            "--precision",
            choices=("fp16", "int8"),
            default="fp16",
            help="int8: of what `sem-clip quantize --for tensorrt` added to the bundle (default: fp16)",
        )
        parser.add_argument("--force", action="store_true", help="build even if an equal engine is there")

    def run(self, args: argparse.Namespace) -> int:
        """Build, add, say what it is."""
        from .progress import Stages

        artifact, built = _add_engine(args.bundle, _builder(args, args.precision), Stages(), force=args.force)
        _describe_engine(artifact)
        if not built:
            print("          it was there already, with the same key; --force builds it again")
        return 0


def _add_engine_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--compute-capability",
        metavar="N.N",
        help="the GPU to build for, such as 8.9 for an RTX 4090; tensorrt-rtx only (default: the GPU of this machine)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        default=(1, 32, 64),
        metavar="MIN,OPT,MAX",
        help="frames a call: least, usual, most; memory on the GPU grows with the most (default: 1,32,64)",
    )
    parser.add_argument(
        "--most-classes", type=int, default=64, metavar="K", help="of any recipe it will run (default: 64)"
    )
    parser.add_argument(
        "--accumulate",
        choices=("fp32", "fp16"),
        default="fp32",
        help="what matrix products are summed in; GeForce cards sum in fp16 at up to twice the rate, with a larger "
        "error (default: fp32)",
    )


def _builder(args: argparse.Namespace, precision: str = "fp16") -> Builder:
    from .artifacts.engine_target import Builder, EngineTarget

    return Builder.find(
        EngineTarget(args.engine, args.compute_capability, args.batch, args.most_classes, args.accumulate, precision)
    )


def _add_engine(bundle: Path, builder: Builder, stages: Stages, *, force: bool = False) -> tuple[Artifact, bool]:
    from .artifacts.to_engine import add_engine

    with stages.stage(f"build {builder.target.product} engine") as progress:
        return add_engine(bundle, builder, force=force, progress=progress)


def _describe_engine(artifact: Artifact) -> None:
    about: Any = artifact.target
    print(f"engine    {artifact.file}, {artifact.bytes / 1e6:.1f} MB")
    print(
        f"          {about['product']} {about['version']}, compute capability {about['compute_capability']}, "
        f"{about['os']}, batch {'/'.join(map(str, about['batch']))},"
    )
    print(f"          up to {about['most_classes']} classes, sums in {about['accumulate']}")
    if about["activation_bytes"] is not None:
        print(f"          {about['activation_bytes'] / 1e9:.2f} GB of activations on the GPU at the largest batch")
    print("          built, not run: no engine ran it here")


def _batch(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f'"{text}" is not MIN,OPT,MAX, such as 1,32,64')
    return int(parts[0]), int(parts[1]), int(parts[2])


def _add_teaching_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("what to teach")
    data.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with images/<class>/ (one class is `good`), optional masks/<class>/ and groups.csv; "
        "generated frames if left out",
    )
    data.add_argument("--shots", type=int, default=DEMO_SHOTS, metavar="K", help="frames per class (default: 10)")
    data.add_argument("--seed", type=int, default=0, help="draws the supports and starts the fit (default: 0)")
    data.add_argument("--prompts", type=Path, metavar="FILE", help="prompt file (TOML); the shipped one if left out")
    data.add_argument("--views", type=int, default=8, help="variations of each support that are encoded (default: 8)")
    data.add_argument(
        "--method",
        choices=METHOD_NAMES,
        default="default",
        help="paper: SEM-CLIP as the paper has it, in everything that the paper says; without what docs/method.md adds "
        "to it (default: default)",
    )
    data.add_argument(
        "--support-cache",
        metavar="DIR|none",
        help="keep encoded supports here, so that teaching again encodes new frames alone; up to 4 GB, then those "
        "used least recently go (default: sem-clip/supports in your cache folder)",
    )
    add_frame_arguments(data)
    encoder = parser.add_argument_group("with which encoder")
    encoder.add_argument(
        "--arch", metavar="NAME|FILE", help=f"architecture or open_clip configuration file (default: {DEFAULT_ARCH})"
    )
    weights = encoder.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="FILE", help="safetensors or a plain state dict")
    weights.add_argument("--pretrained", metavar="TAG", help="open_clip tag to download, e.g. laion400m_e32")
    weights.add_argument("--random-weights", action="store_true", help="untrained, for tests and speed measurements")


def add_frame_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare how frames are read; `frame_options` takes them."""
    parser.add_argument("--ignore-top", type=int, default=0, metavar="ROWS", help="text bar to cut off at the top")
    parser.add_argument(
        "--ignore-bottom", type=int, default=0, metavar="ROWS", help="text bar to cut off at the bottom"
    )
    parser.add_argument(
        "--white-level", type=int, default=65535, help="value of a 16-bit frame that is white (default: 65535)"
    )


def frame_options(args: argparse.Namespace) -> FrameOptions:
    """What `add_frame_arguments` was given. Raises ExportError for what cannot be."""
    from runtime.recipe import FrameOptions

    try:
        return FrameOptions(args.ignore_top, args.ignore_bottom, args.white_level)
    except ValueError as exc:
        name, _, rest = str(exc).partition(" ")
        raise ExportError(f"--{name.replace('_', '-')} {rest}") from None


def _request(args: argparse.Namespace, stages: Stages, out: Path) -> TeachRequest:
    from calibration.dataset import say_left_out

    from .model.checkpoint import require_one_source
    from .teach import METHODS, TeachRequest
    from .teaching.prompts import load_prompts

    if args.seed < 0:
        raise ExportError("--seed must not be negative")
    if args.views < 1:
        raise ExportError("--views must be at least 1")
    options = frame_options(args)
    require_one_source(args.arch or DEFAULT_ARCH, args.weights, args.pretrained, args.random_weights or None)
    dataset = _dataset(args.data, stages, out)
    say_left_out(dataset)
    prompts = load_prompts(args.prompts)
    settings, _ = METHODS[args.method]
    return TeachRequest(dataset, prompts, args.shots, args.seed, options, settings, views=args.views)


def _dataset(folder: Path | None, stages: Stages, out: Path) -> Dataset:
    from calibration.dataset import load_dataset

    if folder is not None:
        return load_dataset(folder)
    for name, seed in ((DEMO_TEACH, 0), (DEMO_NEW, 1)):
        frames = _demo_frames(out) / name
        if not frames.exists():
            from .synthetic import write_dataset

            with stages.stage(f"generate frames/{name}") as progress:
                write_dataset(frames, per_class=DEMO_SHOTS, seed=seed, progress=progress)
    return load_dataset(_demo_frames(out) / DEMO_TEACH)


def _demo_frames(out: Path) -> Path:
    """Where frames are generated if none are given: those that teach, and others to judge the recipe on."""
    return out.parent / f"{out.name}-frames"


def _model(args: argparse.Namespace, image_size: tuple[int, int] | None) -> LoadedModel:
    from .model.checkpoint import load_model

    seed = 0 if args.random_weights else None
    return load_model(
        args.arch or DEFAULT_ARCH,
        weights=args.weights,
        pretrained=args.pretrained,
        random_seed=seed,
        image_size=image_size,
    )


def _summarize(out: Path, manifest: Manifest, dataset: Dataset, to_judge: Path, stages: Stages) -> None:
    encoder = manifest.encoder
    print(f"\nbundle    {out}")
    print(f"encoder   {encoder.architecture}, weights: {encoder.weights}{'' if encoder.value_path else '; no V path'}")
    print(f"classes   {', '.join(dataset.classes)}")
    for artifact in manifest.artifacts:
        if artifact.kind == "engine":
            _describe_engine(artifact)
            continue
        parity: Any = artifact.parity
        attention = artifact.operators.get("Attention", 0)
        print(f"artifact  {artifact.file}, {artifact.bytes / 1e6:.1f} MB, {attention} Attention nodes")
        print(
            f"          against torch on {parity['frames']} frames: probabilities {parity['max_abs_probability']:.1e}, "
            f"map {parity['max_abs_defect_map']:.1e}, labels equal {parity['labels_equal']}/{parity['frames']}"
        )
    slowest = max(stages.seconds, key=stages.seconds.__getitem__)
    print(f"time      {sum(stages.seconds.values()):.0f} s in all, slowest: {slowest}")
    for note in manifest.notes:
        print(f"note      {note}")
    print(f"next      sem-clip predict {out} {to_judge} --json verdicts.jsonl --overlays overlays")


def pixel_size(text: str) -> tuple[int, int]:
    """Read "480x640" as (height, width), 16 ... 16384 px each."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and 16 <= int(height) <= 16384 and 16 <= int(width) <= 16384):
        raise argparse.ArgumentTypeError(f'"{text}" is not HEIGHTxWIDTH in pixels, such as 480x640')
    return int(height), int(width)


def _need_torch() -> None:
    try:
        import open_clip  # noqa: F401
        import torch  # noqa: F401
    except ImportError as exc:
        raise ExportError(
            f'teaching and exporting need PyTorch and open_clip ({exc}): pip install "sem-clip[export,cpu]"'
        ) from exc
