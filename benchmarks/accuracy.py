"""Accuracy of what ships, after the paper's protocol (section 4): recipes taught on K shots, judged through `Predictor`
and the exported bundle, never through torch.

    python -m benchmarks.accuracy --data DIR --arch FILE --weights FILE --shots 1,2,5,10 --seeds 5 --out accuracy/

Supports are drawn from a pool of groups; the test set is every frame of every other group (export/supports.py,
split_by_group), the same for every number of shots. Pixel metrics compare the up-sampled map with the mask at the
frame's own size. --ablations and --baselines judge other recipes and simpler methods on the same supports and frames;
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

from benchmarks.baselines import NAMES as BASELINES
from benchmarks.baselines import NEED_TEXT, NO_MAP, Baselines
from benchmarks.evaluate import AT_THRESHOLDS, OTHER_SCORES, evaluate, overlays, per_class
from benchmarks.machine import describe_machine, peak_memory_mb
from calibration.dataset import Dataset, Sample, load_dataset, say_left_out
from calibration.errors import DatasetError
from calibration.plots import require_matplotlib
from export.bundle import describe_encoder
from export.checkpoint import LoadedModel, load_model
from export.commands import add_frame_arguments, frame_options, pixel_size
from export.errors import ExportError, ParityError
from export.fit_memory import MEMORY_SHARE
from export.graph import SemClipGraph
from export.pretrain_frames import HELD_OUT_LAYOUTS
from export.progress import Stages
from export.prompts import GENERIC_FILE, load_prompts
from export.quantize import LEAST_FRAMES, MOST_PARITY_FRAMES, add_int8
from export.supports import draw_supports, split_by_group
from export.synthetic import write_dataset
from export.teach import (
    EncodedSupports,
    TeachRequest,
    build_bundle,
    encode_request,
    fit_supports,
    parity_samples,
    smoothing_px,
    teach_recipe,
)
from export.teach_settings import TeachSettings
from runtime import Predictor, Recipe
from runtime.arguments import at_least
from runtime.cli import run
from runtime.files import require_files, write_atomically
from runtime.manifest import Encoder
from runtime.recipe import SCALARS

SCALAR_ABLATIONS = {"no_p_s": {"alpha": 1.0}, "no_p_c": {"alpha": 0.0}}
"""Rows of the paper's Table 3 that are scalars of the recipe: nothing else that was taught depends on them."""
FITTED_ABLATIONS: dict[str, dict[str, Any]] = {
    "paper": {"head": "paper"},
    "last_level": {"last_level_only": True},
    "value_path": {"lambda_v": 1.0},
    "no_frame_loss": {"frame_loss": 0.0},
    "own_maps": {"head_maps": "own"},
    "maps_of_others": {"head_maps": "others"},
    "memory": {"memory_share": MEMORY_SHARE},
    "no_value_path": {"lambda_v": 0.0},
    "no_memory": {"memory_share": 0.0},
    "no_transform": {"lambda_v": 1e6, "memory_share": 0.0},
}
"""Rows that another fit of the same supports gives. paper: the head of eq. 20-22, which reads class tokens alone, the V
path with its full share, and a map that is taught by its cells alone; value_path: that share with the head as it is;
no_frame_loss: such a map with the head as it is; own_maps, maps_of_others: a head that learns on the recipe's maps of
its supports, or on those of layers that were taught without the frame; memory: the good supports' patches in the map,
whatever the supports say of it; no_value_path, no_memory: maps without the one or the other, and a head that was taught
on such maps; no_transform: the V path has the map to itself."""
GENERIC_PROMPTS = "generic_prompts"
CLASS_MEAN = "class_mean_redundancy"
ENCODED_ABLATIONS = (GENERIC_PROMPTS, CLASS_MEAN)
"""Rows that need the supports encoded again; only where a text tower is. generic_prompts: another prompt file.
class_mean_redundancy: eq. 13-15 read literally, where what is redundant cancels, with the paper's share of the V path;
beside it, `value_path` is the same with the reading that acts."""
ABLATIONS = (*FITTED_ABLATIONS, *SCALAR_ABLATIONS)
METRICS = {
    "accuracy": "accuracy",
    "verdict_accuracy": "verdicts right",
    "precision": "macro precision",
    "recall": "macro recall",
    "f1": "macro F1",
    "iauroc": "iAUROC",
    "pauroc": "pAUROC",
    "f1_max": "pixel F1-max",
}
CURVES = ("accuracy", "f1", "iauroc", "pauroc", "f1_max")
"""Those drawn over the number of shots."""
INT8_FRAMES = 32
GENERATED_SEED = 2025
KEPT = 0.8
"""Share of the test frames that a reject threshold is taken to keep, where labels of two precisions are compared."""
_KEEP = ("test_frames", "seconds", *METRICS, *OTHER_SCORES, *AT_THRESHOLDS, "confusion")


def ablate(name: str, recipe: Recipe, encoded: EncodedSupports, encoder: Encoder, stages: Stages) -> Recipe:
    """The recipe as the ablation `name`, one of ABLATIONS, has it."""
    if name in FITTED_ABLATIONS:
        settings = replace(encoded.request.settings, **FITTED_ABLATIONS[name])
        return fit_supports(encoded, encoder, stages, settings)
    scalars = recipe.tensors["scalars"].copy()
    for scalar, value in SCALAR_ABLATIONS[name].items():
        scalars[SCALARS.index(scalar)] = value
    return replace(recipe, tensors={**recipe.tensors, "scalars": scalars})


class Accuracy:
    """The command."""

    help = "Measure accuracy over shots and seeds, through the exported bundle."
    example = "python -m benchmarks.accuracy --data frames/ --arch vit_b_16_plus_240 --weights FILE --shots 1,5,10"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        source = parser.add_mutually_exclusive_group(required=True)
        source.add_argument("--data", type=Path, help="folder with images/, masks/ and groups.csv, or Carinthia-S")
        source.add_argument(
            "--generated",
            type=at_least(1),
            metavar="N",
            help="N generated frames a class, of layouts that the embedded encoder was not trained on",
        )
        parser.add_argument(
            "--classes", metavar="A,B,...", help="these classes alone, good among them (default: all in the folder)"
        )
        parser.add_argument("--arch", required=True, help="architecture or open_clip configuration file")
        parser.add_argument("--weights", type=Path, help="weights file; those that come with sem_tiny if left out")
        parser.add_argument("--random-weights", action="store_true", help="an untrained encoder, seed 0")
        parser.add_argument(
            "--image-size", type=pixel_size, metavar="HxW", help="encode at this size, not at the architecture's own"
        )
        parser.add_argument("--shots", default="1,2,5,10", help="comma-separated (default: 1,2,5,10)")
        parser.add_argument("--seeds", type=at_least(1), default=5, help="how many (default: 5)")
        parser.add_argument("--first-seed", type=at_least(0), default=0, help="the first of them (default: 0)")
        parser.add_argument("--head", choices=("pooled", "paper"), default="pooled", help="what the class head reads")
        add_frame_arguments(parser)
        parser.add_argument("--precisions", default="fp32", help="fp32,fp16,int8 or some of them (default: fp32)")
        parser.add_argument(
            "--ablations", action="store_true", help=f"also judge {', '.join((*ABLATIONS, *ENCODED_ABLATIONS))}"
        )
        parser.add_argument(
            "--baselines", action="store_true", help=f"also judge {', '.join((*BASELINES, *NEED_TEXT))}"
        )
        parser.add_argument(
            "--out", type=Path, metavar="DIR", help="write accuracy.json, accuracy.md and pictures here"
        )
        parser.add_argument("--force", action="store_true", help="replace an earlier measurement in DIR")

    def run(self, args: argparse.Namespace) -> int:
        """Measure, print a table, write."""
        with tempfile.TemporaryDirectory() as work:
            return self._measure(args, Path(work))

    def _measure(self, args: argparse.Namespace, work: Path) -> int:
        shots, precisions, options = _numbers(args.shots), _precisions(args.precisions), frame_options(args)
        if args.out:  # before hours of measuring, not after
            require_files([args.out / "accuracy.json", args.out / "accuracy.md"], force=args.force)
            require_matplotlib()
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
        settings = TeachSettings(head=args.head)
        about = {
            "data": dataset.folder.name,
            "classes": dataset.classes,
            "architecture": model.architecture,
            "weights": model.origin,
            "trained": model.trained,
            "head": args.head,
            "image_size": encoder.image_size,
            "machine": describe_machine(),
        }
        rows: list[dict[str, Any]] = []
        predictors: dict[str, Predictor] = {}
        pictures = b""
        for seed, (pool, test) in splits.items():
            baselines = None
            for k in shots:
                stages = Stages()
                request = TeachRequest(dataset, prompts, k, seed, options, settings, tuple(pool))
                encoded = encode_request(model, graph, request, stages)
                recipe = fit_supports(encoded, encoder, stages)
                # With int8 each seed has its own: ranges and rounding must owe nothing to a frame under test.
                if not predictors or ("int8" in precisions and k == shots[0]):
                    _close(predictors)
                    shutil.rmtree(work / "bundle", ignore_errors=True)
                    fp16 = "fp16" in precisions
                    build_bundle(model, graph, recipe, parity_samples(dataset), work / "bundle", stages, fp16=fp16)
                    predictors = _open(work / "bundle", precisions, dataset, test, seed)
                found = {name: _judge(predictor, recipe, dataset, test) for name, predictor in predictors.items()}
                if args.ablations:
                    for name in ABLATIONS:
                        other = ablate(name, recipe, encoded, encoder, Stages())
                        found[name] = _judge(predictors["fp32"], other, dataset, test)
                    if model.has_text:
                        generic = replace(request, prompts=load_prompts(GENERIC_FILE))
                        other = fit_supports(encode_request(model, graph, generic, Stages()), encoder, Stages())
                        found[GENERIC_PROMPTS] = _judge(predictors["fp32"], other, dataset, test)
                        found[CLASS_MEAN] = _judge_class_mean(model, request, test, work / f"class_mean-{k}-{seed}")
                for name, metrics in found.items():
                    same = agreement(found["fp32"], metrics) if name in precisions[1:] else {}
                    figures = {key: metrics[key] for key in _KEEP}
                    rows.append({"shots": k, "seed": seed, "method": name, **figures, **same})
                    print({n: rows[-1][n] for n in ("shots", "seed", "method", *METRICS)}, flush=True)
                chosen = dict(zip(SCALARS, recipe.tensors["scalars"].tolist(), strict=True))
                rows[-len(found)].update(stages=stages.seconds, scalars=chosen)
                if args.baselines:
                    if baselines is None:
                        pixels = smoothing_px(encoder)
                        baselines = Baselines(model, graph, encoder, dataset, test, options, pixels, work)
                    for name, metrics in baselines.judge(encoded).items():
                        none = dict.fromkeys(METRICS)
                        rows.append(
                            {"shots": k, "seed": seed, "method": name, "test_frames": len(test), **none, **metrics}
                        )
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


def _judge_class_mean(model: LoadedModel, request: TeachRequest, test: list[Sample], bundle: Path) -> dict[str, Any]:
    """The other reading of eq. 13-15 is another graph, so another bundle."""
    graph = SemClipGraph(model.encoder(), redundancy="class_mean")
    request = replace(request, settings=replace(request.settings, **FITTED_ABLATIONS["value_path"]))
    recipe = teach_recipe(model, graph, request, Stages())
    build_bundle(model, graph, recipe, parity_samples(request.dataset), bundle, Stages(), fp16=False)
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


def summarize(rows: list[dict[str, Any]], shots: list[int]) -> str:
    """Mean ± standard deviation over the seeds that ran (of these, not of all there could be), as a Markdown table in
    per cent; methods in the order of their rows."""
    lines = [
        "| method | K | seeds | test frames | " + " | ".join(METRICS.values()) + " |",
        "|" + "---|" * (len(METRICS) + 4),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        for k in shots:
            cell = [row for row in rows if (row["shots"], row["method"]) == (k, method)]
            sizes = [row["test_frames"] for row in cell]
            texts = [_mean([row[name] for row in cell], method, name) for name in METRICS]
            lines.append(f"| {method} | {k} | {len(cell)} | {min(sizes)}-{max(sizes)} | " + " | ".join(texts) + " |")
    for method in dict.fromkeys(row["method"] for row in rows if "iauroc_class" in row):
        for k in shots:
            cell = [row for row in rows if (row["shots"], row["method"]) == (k, method)]
            means = {name: _mean([row[name] for row in cell], method, name) for name in (*OTHER_SCORES, *AT_THRESHOLDS)}
            others = ", ".join(f"{means[name]} by {what}" for name, what in OTHER_SCORES.items())
            taught = ", ".join(f"{what} {means[name]}" for name, what in AT_THRESHOLDS.items())
            lines.append(f"\n{method}, K = {k}: iAUROC {others}; at the thresholds as taught: {taught}")
    for key, what in (("labels_equal", "all frames"), ("labels_equal_kept", f"the {KEPT:.0%} that fp32 is surest of")):
        for method in dict.fromkeys(row["method"] for row in rows if key in row):
            values = [row[key] for row in rows if row["method"] == method]
            mean, worst = 100 * np.mean(values), 100 * min(values)
            lines.append(f"\n{method}: labels of fp32 on {mean:.1f} % of {what} (worst cell {worst:.1f} %)")
    return "\n".join(lines)


def _mean(values: Sequence[float | None], method: str, name: str) -> str:
    found = [value for value in values if value is not None]
    if found:
        spread = f" ± {100 * np.std(found):.1f}" if len(found) > 1 else ""
        return f"{100 * np.mean(found):.1f}{spread}"
    # A baseline that names no class or draws no map has no figure; a set without masks has none for anybody.
    return "no masks" if name in ("pauroc", "f1_max", "pixel_f1") and method not in NO_MAP else "-"


def _write_rows(folder: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """After each seed and number of shots: what was measured is kept, whatever happens to the rest."""
    write_atomically(folder / "accuracy.json", json.dumps({**about, "rows": rows}, indent=1).encode())


def _write(folder: Path, about: dict[str, Any], rows: list[dict[str, Any]], table: str, pictures: bytes) -> None:
    from benchmarks.accuracy_plots import draw_confusion, draw_shots

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


if __name__ == "__main__":
    from runtime.cli import describe

    command = Accuracy()
    parser = describe(argparse.ArgumentParser(), command)
    command.add_arguments(parser)
    sys.exit(run(command, parser.parse_args()))
