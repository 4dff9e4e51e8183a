"""Accuracy of what ships, after the paper's protocol (section 4): recipes taught on K shots, judged through `Predictor`
and the exported bundle, never through torch.

    python -m benchmarks.accuracy --data DIR --arch FILE --weights FILE --shots 1,2,5,10 --seeds 5 --out accuracy/

Supports are drawn from a pool of groups; the test set is every frame of every other group (export/teaching/supports.py,
split_by_group), the same for every number of shots. Pixel metrics compare the up-sampled map with the mask at the
frame's own size. --ablations, --baselines and --classifier judge other recipes, simpler methods and pretrained
classifiers on the same supports and frames; each row of the table says what it was told of the supports.
--precisions judges other artifacts of the same bundle; int8 is quantized for every seed, on frames it does not test on,
and a seed whose 8-bit form `sem-clip quantize` would refuse has no row of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.baselines import NEEDS_TEXT, describe_row
from benchmarks.accuracy.comparison import Comparison, add_comparison_arguments, judge_others, row_of_method
from benchmarks.accuracy.evaluate import AT_THRESHOLDS, OTHER_SCORES, evaluate, overlays, per_class
from benchmarks.accuracy.table import KEPT, METRICS, summarize
from benchmarks.machine import describe_machine, peak_memory_mb
from calibration.dataset import Dataset, Sample, load_dataset, say_left_out
from calibration.errors import DatasetError
from calibration.plots import require_matplotlib
from export.artifacts.quantize import LEAST_FRAMES, MOST_PARITY_FRAMES, add_int8
from export.bundle import describe_encoder
from export.errors import ExportError, ParityError
from export.model.checkpoint import LoadedModel, load_model
from export.model.graph import SemClipGraph
from export.options import METHOD_NAMES, add_frame_arguments, frame_options, pixel_size
from export.pretrain.windows import HELD_OUT_LAYOUTS
from export.progress import Stages
from export.synthetic import write_dataset
from export.teach import (
    METHODS,
    EncodedSupports,
    TeachRequest,
    build_bundle,
    encode_request,
    fit_supports,
    parity_samples,
    smoothing_px,
    teach_recipe,
)
from export.teaching.prompts import GENERIC_FILE, load_prompts
from export.teaching.settings import TeachSettings
from export.teaching.supports import draw_supports, split_by_group
from runtime import Predictor, Recipe
from runtime.files import require_files, write_atomically
from runtime.manifest import Encoder
from runtime.options import at_least
from runtime.recipe import SCALARS

SCALAR_ABLATIONS = {"no_p_s": {"alpha": 1.0}, "no_p_c": {"alpha": 0.0}}
"""Rows of the paper's Table 3 that are scalars of the recipe. The map and the head do not depend on them; the defect
threshold does, and stays, so their "verdicts right" mean little."""
NO_TRANSFORM = "no_transform"
FITTED_ABLATIONS: dict[str, TeachSettings] = {
    "paper": TeachSettings.paper(),
    "value_path": TeachSettings(lambda_v=1.0),
    "no_memory": TeachSettings(memory_share=0.0),
    "no_frame_loss": TeachSettings(frame_loss=0.0),
    NO_TRANSFORM: TeachSettings(start="text", steps=0, lambda_v=1.0, memory_share=0.0),
}
"""Rows that another fit of the same supports gives. paper: all that the paper says (`TeachSettings.paper`), smoothed as
the bundle is; value_path: the V path with the paper's share; no_memory: a map without the memory bank; no_frame_loss: a
map that is taught by its cells alone; no_transform: the paper's "w/o Transformation Layer", where Z_j meets the text by
the tower's own projection, beside the V path, so it needs text."""
GENERIC_PROMPTS = "generic_prompts"
CLASS_MEAN = "class_mean_redundancy"
LAST_LEVEL = "last_level"
ENCODED_ABLATIONS = (GENERIC_PROMPTS, CLASS_MEAN)
"""Rows that need the supports encoded again, and text. generic_prompts: another prompt file.
class_mean_redundancy: eq. 13-15 read literally, where what is redundant cancels, with the paper's share of the V path;
beside it, `value_path` is the same with the reading that acts."""
ABLATIONS = (*FITTED_ABLATIONS, *SCALAR_ABLATIONS)
"""Beside them LAST_LEVEL, which is another graph on the same supports."""
CURVES = ("accuracy", "f1", "iauroc", "pauroc", "f1_max")
"""Those drawn over the number of shots."""
INT8_FRAMES = 32
GENERATED_SEED = 2025
_KEEP = ("test_frames", "unavailable", "seconds", *METRICS, *OTHER_SCORES, *AT_THRESHOLDS, "confusion")


def ablate(name: str, recipe: Recipe, encoded: EncodedSupports, encoder: Encoder, stages: Stages) -> Recipe:
    """The recipe as the ablation `name`, one of ABLATIONS, has it."""
    if name in FITTED_ABLATIONS:
        return fit_supports(encoded, encoder, stages, FITTED_ABLATIONS[name])
    scalars = recipe.tensors["scalars"].copy()
    for scalar, value in SCALAR_ABLATIONS[name].items():
        scalars[SCALARS.index(scalar)] = value
    return replace(recipe, tensors={**recipe.tensors, "scalars": scalars})


def _add_subject(parser: argparse.ArgumentParser) -> None:
    """Declare the data, and the encoder that is judged on it."""
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="labelled frames: images/<class>/, optional masks/<class>/ and groups.csv; or a folder of Carinthia-S",
    )
    source.add_argument(
        "--generated",
        type=at_least(1),
        metavar="N",
        help="N generated frames per class, of layouts that the embedded encoder was not trained on",
    )
    data.add_argument(
        "--classes", metavar="A,B,...", help="only these classes, good among them (default: all in the folder)"
    )
    add_frame_arguments(data)
    encoder = parser.add_argument_group("encoder")
    encoder.add_argument(
        "--arch", required=True, metavar="NAME|FILE", help="architecture, or open_clip configuration file"
    )
    encoder.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights of --arch (default: those included, for sem_tiny)"
    )
    encoder.add_argument("--random-weights", action="store_true", help="an untrained encoder, seed 0")
    encoder.add_argument(
        "--image-size",
        type=pixel_size,
        metavar="HxW",
        help="encode at this size in pixels (default: the architecture's own)",
    )


class Accuracy:
    """The command."""

    help = "Measure accuracy over shots and seeds, through the exported bundle."
    example = "python -m benchmarks.accuracy --data frames/ --arch vit_b_16_plus_240 --weights FILE --shots 1,5,10"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        _add_subject(parser)
        what = parser.add_argument_group("what to measure")
        what.add_argument(
            "--shots", default="1,2,5,10", metavar="K,...", help="support frames per class (default: 1,2,5,10)"
        )
        what.add_argument(
            "--seeds", type=at_least(1), default=5, metavar="N", help="draws of supports for each of them (default: 5)"
        )
        what.add_argument(
            "--first-seed",
            type=at_least(0),
            default=0,
            metavar="N",
            help="first seed; others than 0 check a choice on fresh draws (default: 0)",
        )
        what.add_argument(
            "--method",
            choices=METHOD_NAMES,
            default="default",
            help="paper: SEM-CLIP as published (default: default)",
        )
        what.add_argument(
            "--precisions",
            default="fp32",
            metavar="NAME,...",
            help="artifacts to judge, some of fp32, fp16, int8 (default: fp32)",
        )
        what.add_argument(
            "--ablations",
            action="store_true",
            help=f"also judge {', '.join((*ABLATIONS, LAST_LEVEL, *ENCODED_ABLATIONS))}; takes several times as long",
        )
        add_comparison_arguments(parser)
        output = parser.add_argument_group("output")
        output.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="write accuracy.json, accuracy.md and pictures into DIR (default: print the table only)",
        )
        output.add_argument(
            "--force", action="store_true", help="replace an earlier measurement in DIR (default: refuse)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Measure, print a table, write."""
        with tempfile.TemporaryDirectory() as work:
            return self._measure(args, Path(work))

    def _measure(self, args: argparse.Namespace, work: Path) -> int:
        shots, precisions, options = _numbers(args.shots), _precisions(args.precisions), frame_options(args)
        if args.ablations and args.method == "paper":
            raise ExportError("--ablations changes one part of the default method at a time: leave out --method paper")
        if args.out:  # before hours of measuring, not after
            require_files([args.out / "accuracy.json", args.out / "accuracy.md"], force=args.force)
            require_matplotlib()
        comparison = Comparison.from_arguments(args)
        seed = 0 if args.random_weights else None
        model = load_model(args.arch, weights=args.weights, random_seed=seed, image_size=args.image_size)
        graph = SemClipGraph(model.encoder())
        encoder = describe_encoder(model, graph)
        if args.generated is not None:
            # Of the size that is read: the generator sees to it that a defect shows at the size it makes.
            folder, size = work / "generated", encoder.input_size
            write_dataset(folder, per_class=args.generated, size=size, seed=GENERATED_SEED, layouts=HELD_OUT_LAYOUTS)
        dataset = load_dataset(args.data or work / "generated")
        if args.classes is not None:
            dataset = dataset.only(args.classes.split(","))
        say_left_out(dataset)
        splits = {}
        for seed in range(args.first_seed, args.first_seed + args.seeds):  # all of them before the first is measured
            splits[seed] = pool, _ = split_by_group(dataset, max(shots), seed)
            draw_supports(dataset, max(shots), seed, allowed=pool)
            if "int8" in precisions:
                _not_tested(dataset, splits[seed][1])
        prompts = load_prompts()
        settings, at_240 = METHODS[args.method]
        smoothing = smoothing_px(encoder, at_240)
        about = {
            "data": dataset.folder.name,
            "classes": dataset.classes,
            "architecture": model.architecture,
            "weights": model.origin,
            "trained": model.trained,
            "method": args.method,
            "smoothing_px": smoothing,
            "image_size": encoder.image_size,
            "machine": describe_machine(),
            "classifiers": [classifier.record() for classifier in comparison.classifiers],
        }
        ours = describe_row(row_of_method(dataset))
        rows: list[dict[str, Any]] = []
        predictors: dict[str, Predictor] = {}
        pictures = b""
        for seed, (pool, test) in splits.items():
            others = None
            for k in shots:
                stages = Stages()
                request = TeachRequest(
                    dataset, prompts, k, seed, options, settings, tuple(pool), smoothing_px=smoothing
                )
                encoded = encode_request(model, graph, request, stages)
                recipe = fit_supports(encoded, encoder, stages)
                # With int8 each seed has its own: ranges and rounding must owe nothing to a frame under test.
                if not predictors or ("int8" in precisions and k == shots[0]):
                    _close(predictors)
                    shutil.rmtree(work / "bundle", ignore_errors=True)
                    fp16 = "fp16" in precisions
                    # Rows beside ours may read the V path, which a bundle whose own recipe does not may lack.
                    path = True if args.ablations else None
                    samples = parity_samples(dataset)
                    build_bundle(
                        model,
                        graph,
                        recipe,
                        samples,
                        work / "bundle",
                        stages,
                        fp16=fp16,
                        smoothing=smoothing,
                        value_path=path,
                    )
                    predictors = _open(work / "bundle", precisions, dataset, test, seed)
                found = {name: _judge(predictor, recipe, dataset, test) for name, predictor in predictors.items()}
                if args.ablations:
                    found |= _judge_ablations(predictors["fp32"], model, graph, encoded, recipe, test, work)
                for name, metrics in found.items():
                    same = agreement(found["fp32"], metrics) if name in precisions[1:] else {}
                    kept = {key: metrics[key] for key in _KEEP if key in metrics}
                    rows.append({"shots": k, "seed": seed, "method": name, **ours, **kept, **same})
                    print({n: rows[-1].get(n) for n in ("shots", "seed", "method", *METRICS)}, flush=True)
                chosen = dict(zip(SCALARS, recipe.tensors["scalars"].tolist(), strict=True))
                rows[-len(found)].update(stages=stages.seconds, scalars=chosen)
                if others is None:
                    others = comparison.on_split(model, graph, dataset, test, options, work, smoothing)
                rows += judge_others(others, encoded)
                if not pictures and k == max(shots) and args.out:
                    predictors["fp32"].use(recipe)
                    pictures = overlays(predictors["fp32"], dataset.classes, test)
                if args.out:
                    about |= {"complete": (seed, k) == (max(splits), max(shots)), "peak_memory_mb": peak_memory_mb()}
                    _write_rows(args.out, about, rows)
        _close(predictors)
        table = summarize(rows, shots)
        print(table)
        if args.out:
            _write(args.out, about, rows, table, pictures)
        return 0


def _open(
    bundle: Path, precisions: list[str], dataset: Dataset, test: Sequence[Sample], seed: int
) -> dict[str, Predictor]:
    """A predictor for each precision. An int8 that `sem-clip quantize` would refuse nobody ships: it is left out."""
    if "int8" in precisions:
        try:
            _quantize(bundle, _not_tested(dataset, test))
        except ParityError as error:
            print(f"seed {seed}, no int8: {error}", file=sys.stderr)
            precisions = [precision for precision in precisions if precision != "int8"]
    return {precision: Predictor(bundle, precision=precision) for precision in precisions}


def _close(predictors: dict[str, Predictor]) -> None:
    for predictor in predictors.values():
        predictor.close()


def _judge(predictor: Predictor, recipe: Recipe, dataset: Dataset, test: list[Sample]) -> dict[str, Any]:
    predictor.use(recipe)
    return evaluate(predictor, dataset, test)


def _judge_ablations(
    predictor: Predictor,
    model: LoadedModel,
    graph: SemClipGraph,
    encoded: EncodedSupports,
    recipe: Recipe,
    test: list[Sample],
    work: Path,
) -> dict[str, dict[str, Any]]:
    """Metrics by ablation; one that this tower cannot have says what it needs."""
    request, encoder = encoded.request, describe_encoder(model, graph)
    needs_text = {"test_frames": len(test), **dict.fromkeys(METRICS), "unavailable": NEEDS_TEXT}
    found = {}
    for name in ABLATIONS:
        if name == NO_TRANSFORM and encoded.bank.projection is None:
            found[name] = needs_text
            continue
        found[name] = _judge(predictor, ablate(name, recipe, encoded, encoder, Stages()), request.dataset, test)
    found[LAST_LEVEL] = _judge_last_level(model, encoded, test, work / LAST_LEVEL)
    if not model.has_text:
        return {**found, GENERIC_PROMPTS: needs_text, CLASS_MEAN: needs_text}
    generic = replace(request, prompts=load_prompts(GENERIC_FILE))
    other = fit_supports(encode_request(model, graph, generic, Stages()), encoder, Stages())
    found[GENERIC_PROMPTS] = _judge(predictor, other, request.dataset, test)
    found[CLASS_MEAN] = _judge_class_mean(model, request, test, work / CLASS_MEAN)
    return found


def _judge_class_mean(model: LoadedModel, request: TeachRequest, test: list[Sample], bundle: Path) -> dict[str, Any]:
    """The other reading of eq. 13-15 is another graph, so another bundle."""
    graph = SemClipGraph(model.encoder(), redundancy="class_mean")
    request = replace(request, settings=FITTED_ABLATIONS["value_path"])
    recipe = teach_recipe(model, graph, request, Stages())
    return _judge_other_graph(model, graph, recipe, request, test, bundle)


def _judge_last_level(model: LoadedModel, encoded: EncodedSupports, test: list[Sample], bundle: Path) -> dict[str, Any]:
    """The paper's "w/o multi-layer": a graph that has the last level alone, of both paths, and of P_S and the head."""
    graph = SemClipGraph(model.encoder(last_level_only=True))
    alone = replace(encoded, features=encoded.features.last_level())
    recipe = fit_supports(alone, describe_encoder(model, graph), Stages())
    return _judge_other_graph(model, graph, recipe, encoded.request, test, bundle)


def _judge_other_graph(
    model: LoadedModel, graph: SemClipGraph, recipe: Recipe, request: TeachRequest, test: list[Sample], bundle: Path
) -> dict[str, Any]:
    samples = parity_samples(request.dataset)
    build_bundle(model, graph, recipe, samples, bundle, Stages(), fp16=False, smoothing=request.smoothing_px)
    with Predictor(bundle) as predictor:
        metrics = _judge(predictor, recipe, request.dataset, test)
    shutil.rmtree(bundle)  # one a cell would fill the disk
    return metrics


def agreement(reference: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Share of frames with the label of `reference`: of all, and of the KEPT share that `reference` is surest of."""
    same = np.array([a == b for a, b in zip(reference["labels"], other["labels"], strict=True)])
    surest = np.argsort(-np.asarray(reference["confidences"]), kind="stable")[: round(KEPT * len(same))]
    return {"labels_equal": float(same.mean()), "labels_equal_kept": float(same[surest].mean())}


def _not_tested(dataset: Dataset, test: Sequence[Sample]) -> list[Sample]:
    """Frames that are not in `test`. Raises DatasetError if there are too few to quantize by."""
    tested = {sample.path for sample in test}
    left = [sample for sample in dataset.samples if sample.path not in tested]
    if len(left) < 2 * LEAST_FRAMES:
        raise DatasetError(
            dataset.folder,
            f"a seed tests on all frames but {len(left)}, and int8 takes {2 * LEAST_FRAMES} at least: add frames, or "
            "leave int8 out of --precisions",
        )
    return left


def _quantize(bundle: Path, pool: Sequence[Sample]) -> None:
    """Add int8 to a bundle: ranges and harm from frames of `pool`, of which none is tested on."""
    count = min(len(pool), INT8_FRAMES + MOST_PARITY_FRAMES)
    paths = [pool[i].path for i in np.linspace(0, len(pool) - 1, count).round().astype(int)]
    add_int8(bundle, paths, calibration_frames=INT8_FRAMES)


def _write_rows(folder: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """After each seed and number of shots: what was measured is kept, whatever happens to the rest."""
    write_atomically(folder / "accuracy.json", json.dumps({**about, "rows": rows}, indent=1).encode())


def _write(folder: Path, about: dict[str, Any], rows: list[dict[str, Any]], table: str, pictures: bytes) -> None:
    from benchmarks.accuracy.plots import draw_confusion, draw_shots

    ours = [row for row in rows if row["method"] == "fp32"]
    most = max(row["shots"] for row in ours)
    confusion = np.asarray(sum(np.asarray(row["confusion"]) for row in ours if row["shots"] == most))
    by_class = per_class(confusion, about["classes"])
    table += f"\n\nPer cent by class, K = {most}, all seeds together:\n\n" + "\n".join(by_class)
    files = {
        "accuracy.md": (table + "\n").encode(),
        "shots.png": draw_shots(ours, {name: METRICS[name] for name in CURVES}),
        "overlays.png": pictures,
        "confusion.png": draw_confusion(confusion.tolist(), about["classes"]),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise ExportError(f'--shots is "{text}"; write whole numbers from 1 on, such as 1,2,5,10')
    return numbers


def _precisions(text: str) -> list[str]:
    names = text.split(",")
    if names[0] != "fp32" or not set(names) <= {"fp32", "fp16", "int8"}:
        raise ExportError(f'--precisions is "{text}"; write fp32 first, then fp16 or int8 beside it')
    return names
