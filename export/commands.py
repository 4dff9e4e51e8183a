"""`sem-clip build` (as `python export/build_engine.py`), `teach` and `build-engine`. Cheap to import: no torch here."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backends.ort import check_provider
from runtime.files import require_files
from runtime.manifest import Artifact, Manifest, load_bundle
from runtime.options import add_bundle_argument, add_device_argument, add_removed

from .encoders import (
    encoder_of_bundle,
    need_torch,
    new_encoder,
    note_other_smoothing,
    require_no_recipe_of_bundle,
    require_value_path,
    take_encoder_of,
)
from .errors import ExportError
from .options import (
    DEFAULT_ARCH,
    DEMO_SHOTS,
    add_correction_arguments,
    add_graph_arguments,
    add_profile_arguments,
    add_target_arguments,
    add_teaching_arguments,
    frame_options,
    take_teaching_defaults,
    tiling,
)

if TYPE_CHECKING:
    from calibration.dataset import Dataset
    from runtime.recipe import FrameOptions

    from .artifacts.engine_target import Builder, EngineTarget
    from .model.checkpoint import LoadedModel
    from .model.graph import SemClipGraph
    from .progress import Stages
    from .teach import TeachRequest

DEMO_TEACH, DEMO_NEW = "teach", "new"
UNTRAINED = (
    "the encoder is UNTRAINED (random weights): everything runs, but verdicts come from the few taught layers alone "
    "and their quality tells nothing about the method"
)


class Build:
    """The main job: teach a recipe, export the encoder, prove parity, write a bundle."""

    help = "Teach a recipe on a data folder and write a bundle with it."
    example = (
        "sem-clip build --data frames/ --shots 10 --arch vit_b_16_plus_240 --weights vit_b_16_plus_240.pt\n"
        "  sem-clip build           (no arguments: generated frames and the embedded encoder)"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_teaching_arguments(parser)
        add_graph_arguments(parser)
        add_target_arguments(parser.add_argument_group("engine"), required=False)
        output = parser.add_argument_group("output")
        output.add_argument(
            "--out", type=Path, default=Path("bundle"), metavar="DIR", help="bundle folder to write (default: bundle)"
        )
        output.add_argument("--force", action="store_true", help="replace a bundle that is there (default: refuse)")
        output.add_argument(
            "--no-golden",
            action="store_true",
            help="put no frames of the data into the bundle; `sem-clip verify` then uses made-up patterns, which prove "
            "less (default: some frames)",
        )
        for option in ("--batch", "--most-classes", "--accumulate"):
            add_removed(parser, option, f"build, then `sem-clip build-engine BUNDLE --engine NAME {option} ...`")
        add_removed(
            parser,
            "--redundancy",
            "bundles use cls_weight; `python -m benchmarks.accuracy --ablations` measures the other",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Build and print the summary."""
        need_torch()
        check_provider("cpu")  # which compares the graph with torch at the end
        from .bundle import refuse_existing
        from .progress import Stages
        from .teaching.support_cache import open_cache

        refuse_existing(args.out, force=args.force)
        if args.engine and args.no_fp16:
            raise ExportError("--engine is built from the fp16 file; leave out --no-fp16")
        builder = _builder(_target(args)) if args.engine else None
        cache = open_cache(args.support_cache)
        stages = Stages()
        request = _request(args, stages, args.out)
        with stages.stage("load encoder"):
            model, graph = new_encoder(args)
        manifest = self._write(args, model, graph, request, stages, cache)
        if builder is not None:
            _add_engine(args.out, builder, stages)
            manifest, _ = load_bundle(args.out)
        to_judge = args.data or _demo_frames(args.out) / DEMO_NEW
        _summarize(args.out, manifest, request.dataset, to_judge, stages)
        return 0

    def _write(
        self,
        args: argparse.Namespace,
        model: LoadedModel,
        graph: SemClipGraph,
        request: TeachRequest,
        stages: Stages,
        cache: Any,
    ) -> Manifest:
        """Teach, export and prove parity; the bundle without a serialized engine."""
        from .bundle import describe_encoder
        from .teach import METHODS, build_bundle, parity_samples, smoothing_px, teach_recipe

        request = replace(request, smoothing_px=smoothing_px(describe_encoder(model, graph), METHODS[args.method][1]))
        recipe = teach_recipe(model, graph, request, stages, cache)
        return build_bundle(
            model,
            graph,
            recipe,
            parity_samples(request.dataset, recipe),
            args.out,
            stages,
            force=args.force,
            notes=[] if model.trained else [UNTRAINED],
            fp16=not args.no_fp16,
            smoothing=request.smoothing_px,
            golden="patterns" if args.no_golden else "frames",
        )


class Teach:
    """A recipe only, for the encoder of a bundle that exists."""

    help = "Teach a recipe for the encoder of an existing bundle; no engine is touched."
    example = "sem-clip teach bundle --data frames-metal2/ --shots 5 --weights encoder.pt --out metal2.safetensors"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser, "its encoder will run the recipe")
        add_teaching_arguments(parser)
        add_correction_arguments(parser)
        output = parser.add_argument_group("output")
        output.add_argument(
            "--out", type=Path, required=True, metavar="FILE", help="recipe file to write (.safetensors)"
        )
        output.add_argument("--force", action="store_true", help="replace FILE if it is there (default: refuse)")

    def run(self, args: argparse.Namespace) -> int:
        """Teach and print what to type next."""
        require_files([args.out, *([args.json] if args.json else [])], force=args.force)
        need_torch()
        if args.corrections is not None:
            from .teach_again import teach_again

            return teach_again(args)
        take_teaching_defaults(args)
        from .progress import Stages
        from .teach import teach_recipe
        from .teaching.support_cache import open_cache

        require_no_recipe_of_bundle(args.out)
        manifest, _ = load_bundle(args.bundle)
        take_encoder_of(manifest.encoder, args)
        cache = open_cache(args.support_cache)
        stages = Stages()
        request = replace(_request(args, stages, args.out), smoothing_px=manifest.smoothing_px)
        require_value_path(args, manifest.encoder, request.settings)  # before the supports are encoded
        with stages.stage("load encoder"):
            model, graph = encoder_of_bundle(args, manifest.encoder)
        note_other_smoothing(args, manifest)
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
        add_bundle_argument(parser, "it must hold model.fp16.onnx")
        add_target_arguments(parser, required=True)
        add_device_argument(parser, "build for")
        add_profile_arguments(parser)
        parser.add_argument(
            "--force", action="store_true", help="build even if an equal engine is there (default: keep that one)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Build, add, print what it is."""
        from .progress import Stages

        target = _target(
            args,
            batch=args.batch,
            most_classes=args.most_classes,
            accumulate=args.accumulate,
            precision=args.precision,
        )
        artifact, built = _add_engine(args.bundle, _builder(target, args.device), Stages(), force=args.force)
        _describe_engine(artifact)
        if not built:
            print("          it was there already, with the same key; --force builds it again")
        return 0


def _target(args: argparse.Namespace, **limits: Any) -> EngineTarget:
    from .artifacts.engine_target import EngineTarget

    return EngineTarget(args.engine, args.compute_capability, **limits)


def _builder(target: EngineTarget, device: int | str | None = None) -> Builder:
    from .artifacts.engine_target import Builder

    return Builder.find(target, device)


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
    if args.ignore == "auto":
        options = _with_bars(args, dataset, options)
    prompts = load_prompts(args.prompts)
    settings, _ = METHODS[args.method]
    return TeachRequest(
        dataset, prompts, args.shots, args.seed, options, settings, views=args.views, tiling=tiling(args)
    )


def _with_bars(args: argparse.Namespace, dataset: Dataset, options: FrameOptions) -> FrameOptions:
    """The options with the rows of text bars that were found, which go to `args`, too: the frame size needs them."""
    from .teaching.text_bars import find_text_bars

    bars = find_text_bars(dataset, options)
    print(bars.summary(), file=sys.stderr)
    args.ignore_top, args.ignore_bottom = bars.top, bars.bottom
    return replace(options, ignore_top=bars.top, ignore_bottom=bars.bottom, bars=bars)


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
    """The folder of generated frames, where none are given: some to teach, others to judge the recipe on."""
    return out.parent / f"{out.name}-frames"


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
