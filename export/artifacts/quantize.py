"""`sem-clip quantize`: add an 8-bit artifact to a bundle, for CPUs or to build an engine from. Cheap to import."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import Outputs
from runtime.backends.ort import check_provider
from runtime.folders import find_frames
from runtime.frames import read_frame
from runtime.manifest import Artifact, Manifest, load_bundle
from runtime.options import add_bundle_argument
from runtime.recipe import Recipe

from ..errors import ExportError, OutputExistsError, ParityError
from .rows import rows_of

if TYPE_CHECKING:
    from ..progress import Progress
    from .to_int8 import Int8Report

FILES = {"cpu": "model.int8.onnx", "tensorrt": "model.int8-tensorrt.onnx"}
"""File name by what runs it. Engines of TensorRT and TensorRT for RTX are built from theirs."""
LEAST_FRAMES = 8
MOST_PARITY_FRAMES = 128
AGREEMENT = 0.97
"""Least share of frames whose label is that of fp32: of those it is fitted on, and of the others. More of the former
would leave MatMuls in fp32 for the sake of single frames between two classes."""
CHANGE = 0.01
"""Largest feature drift. At 0.02 one cell of eight on the two dev sets lost 0.8 points of accuracy."""


class Quantize:
    """Add an 8-bit ONNX artifact to a bundle."""

    help = "Add an 8-bit artifact to a bundle; its ranges are measured on real frames."
    example = "sem-clip quantize bundle frames/ && sem-clip predict bundle frames/ --precision int8"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser, "it must hold model.onnx in fp32")
        parser.add_argument(
            "data", type=Path, metavar="DATA", help="folder to search for real frames of your tool; needs no labels"
        )
        parser.add_argument(
            "--for",
            dest="runs_on",
            choices=tuple(FILES),
            default="cpu",
            help="where the artifact will run: cpu, or tensorrt to build engines of both products from (default: cpu)",
        )
        parser.add_argument(
            "--frames",
            type=int,
            default=48,
            metavar="N",
            help=f"frames to measure ranges and sensitivity on, at least {LEAST_FRAMES} (default: 48)",
        )
        parser.add_argument(
            "--agreement",
            type=float,
            default=AGREEMENT,
            metavar="SHARE",
            help="label agreement with fp32 to reach, 0.5 to 1; MatMuls stay in fp32 until it is reached, and other "
            f"frames must confirm it (default: {AGREEMENT})",
        )
        parser.add_argument(
            "--change",
            type=float,
            default=CHANGE,
            metavar="SHARE",
            help="feature drift to allow, as a share of the features' mean size; more leaves more MatMuls in 8 bits, "
            f"and recipes to come may lose accuracy (default: {CHANGE})",
        )
        parser.add_argument(
            "--force", action="store_true", help="replace an 8-bit artifact that is there (default: refuse)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Quantize, compare with fp32 on other frames, write the bundle anew."""
        if args.frames < LEAST_FRAMES:
            raise ExportError(f"--frames is {args.frames}; ranges need at least {LEAST_FRAMES} frames")
        if not 0.5 <= args.agreement <= 1:
            raise ExportError(f"--agreement is {args.agreement:g}; it is a share in [0.5, 1]")
        if not args.change > 0:
            raise ExportError(f"--change is {args.change:g}; it is a share of the features' mean size, above 0")
        check_provider("cpu")  # which measures, and runs both forms
        manifest, recipe = load_bundle(args.bundle)
        there = _there(manifest, args.runs_on)
        if there is not None and not args.force:
            raise OutputExistsError(f"{args.bundle} holds {there.file}; add --force to replace it")
        paths = _frame_files(args.data, args.frames)
        added = add_int8(
            args.bundle,
            paths,
            calibration_frames=args.frames,
            agreement=args.agreement,
            change=args.change,
            runs_on=args.runs_on,
        )
        artifact = added.artifacts[-1]
        parity: Any = artifact.parity
        print(f"artifact  {artifact.file}, {artifact.bytes / 1e6:.1f} MB")
        others = "tiles of other frames" if recipe.frame.tile else "other frames"
        print(
            f"          against fp32 on {parity['frames']} {others}: labels equal "
            f"{parity['labels_equal']}/{parity['frames']}, mean change of probabilities "
            f"{parity['mean_abs_probability']:.1e} (most: {parity['max_abs_probability']:.1e}), of the map "
            f"{parity['mean_abs_defect_map']:.1e}, of the features {parity['feature_change']:.1%}"
        )
        left = parity["left_out"]
        print(f"          {len(left)} of {len(parity['harm'])} MatMuls left in {parity['others']}")
        for name in left:
            print(f"            {name}")
        if args.runs_on == "cpu":
            print(f"next      sem-clip predict {args.bundle} PATH --precision int8")
        else:
            print(f"next      sem-clip build-engine {args.bundle} --engine tensorrt-rtx --precision int8")
        return 0


def add_int8(
    bundle: Path,
    paths: Sequence[Path],
    *,
    calibration_frames: int,
    agreement: float = AGREEMENT,
    change: float = CHANGE,
    runs_on: str = "cpu",
) -> Manifest:
    """Quantize the bundle's fp32 artifact on some of `paths` and prove it on the others; returns the new manifest.

    agreement: least share of frames, of either kind, whose label is that of fp32. change: largest feature drift.
    runs_on: one of FILES; for "tensorrt" the fp16 graph is quantized the way that was found on the fp32 one.
    The bundle is changed as a whole, or stays as it was. Raises BundleError, FrameError, ExportError, ParityError.
    """
    from ..bundle import changing_bundle, record_artifact, with_artifact, write_manifest
    from ..progress import Stages
    from ..versions import tool_versions
    from .parity import artifact_outputs

    stages = Stages()
    with changing_bundle(bundle) as (folder, manifest):
        sources = _sources(bundle, manifest, runs_on)
        source, file = sources["fp32"], FILES[runs_on]
        _, recipe = load_bundle(bundle)
        with stages.stage("read frames"):
            fitted, proof = (_read(some, manifest, recipe) for some in _split(paths, calibration_frames))
        files = {precision: bundle / artifact.file for precision, artifact in sources.items()}
        with stages.stage("quantize") as progress:
            report = _quantize(files, fitted, recipe, folder / file, agreement, change, progress)
        artifact = replace(record_artifact(folder, file, "int8", dict(report.operators)), target=_target(runs_on))
        with stages.stage("compare with fp32"):
            reference = artifact_outputs(bundle, source, manifest.encoder, proof, recipe)
            outputs = artifact_outputs(folder, artifact, manifest.encoder, proof, recipe)
        parity = _parity(reference, outputs, report, source.file, len(fitted), list(sources)[-1])
        if recipe.frame.tile:
            parity["frame_source"] = f"tiles of {parity['frame_source']}"
        _require_agreement(parity, agreement)
        changed = with_artifact(manifest, replace(artifact, parity=parity), instead_of=_there(manifest, runs_on))
        write_manifest(folder, replace(changed, tools={**manifest.tools, **tool_versions()}))
    return load_bundle(bundle)[0]


def _quantize(
    files: Mapping[str, Path],
    frames: NDArray[np.uint8],
    recipe: Recipe,
    out: Path,
    agreement: float,
    change: float,
    progress: Progress,
) -> Int8Report:
    """Write `out`: for CPUs from the fp32 file, for TensorRT from the fp16 one if `files`, by precision, has it."""
    from .to_int8 import CPU, TENSORRT, int8_from_onnx

    return int8_from_onnx(
        files["fp32"],
        frames,
        recipe,
        out,
        agreement=agreement,
        max_drift=change,
        scheme=TENSORRT if "fp16" in files else CPU,
        half=files.get("fp16"),
        progress=progress,
    )


def _require_agreement(parity: Mapping[str, Any], agreement: float) -> None:
    """Raise ParityError if too few labels on the frames of the proof are those of fp32."""
    if parity["labels_equal"] < agreement * parity["frames"]:
        raise ParityError(
            f"the 8-bit form gives the label of fp32 on {parity['labels_equal']} of {parity['frames']} frames it was "
            f"not fitted on, less than --agreement {agreement:g}: lower --change, or give more --frames; nothing was "
            "written"
        )


def _sources(bundle: Path, manifest: Manifest, runs_on: str) -> dict[str, Artifact]:
    """The ONNX artifacts to quantize, by precision; the last one gives what is not 8-bit. Raises ExportError."""
    held = {a.precision: a for a in manifest.artifacts if a.kind == "onnx" and not a.target}
    needed = {"cpu": ("fp32",), "tensorrt": ("fp32", "fp16")}[runs_on]
    missing = [precision for precision in needed if precision not in held]
    if missing:
        raise ExportError(f"{bundle} holds no {' and no '.join(missing)} ONNX artifact to quantize; build it again")
    return {precision: held[precision] for precision in needed}


def _target(runs_on: str) -> dict[str, str]:
    return {} if runs_on == "cpu" else {"engine": runs_on}


def _there(manifest: Manifest, runs_on: str) -> Artifact | None:
    """The 8-bit artifact that a new one replaces."""
    wanted = ("onnx", "int8", _target(runs_on))
    return next((a for a in manifest.artifacts if (a.kind, a.precision, dict(a.target)) == wanted), None)


def _frame_files(data: Path, wanted: int) -> list[Path]:
    """Frames of a folder, as `predict` takes them, evenly spread if there are more than needed."""
    if not data.is_dir():
        raise ExportError(f"{data} is not a folder of frames")
    found = find_frames([str(data)])
    least = 2 * LEAST_FRAMES
    if len(found) < least:
        raise ExportError(f"{data} holds {len(found)} frames; at least {least} are needed, half of them for the proof")
    count = min(len(found), wanted + MOST_PARITY_FRAMES)
    return [Path(found[i]) for i in np.linspace(0, len(found) - 1, count).round().astype(int)]


def _read(paths: Sequence[Path], manifest: Manifest, recipe: Recipe) -> NDArray[np.uint8]:
    """What the encoder reads of the frames: several rows of each, if the recipe reads frames in tiles."""
    rows = [
        row
        for path in paths
        for row in rows_of(read_frame(path, recipe.frame, str(path)), manifest.encoder, recipe.frame, str(path))
    ]
    return np.stack(rows)


def _split(paths: Sequence[Path], wanted: int) -> tuple[list[Path], list[Path]]:
    """Frames to measure on, evenly spread, and the others, which are at least half."""
    count = min(wanted, len(paths) // 2)
    chosen = set(np.linspace(0, len(paths) - 1, count).round().astype(int).tolist())
    return [path for n, path in enumerate(paths) if n in chosen], [p for n, p in enumerate(paths) if n not in chosen]


def _parity(
    reference: Outputs, outputs: Outputs, report: Int8Report, source: str, fitted: int, others: str
) -> dict[str, Any]:
    """The manifest's record of how near the 8-bit artifact is to fp32. others: precision of what is not 8-bit."""
    from .to_int8 import feature_drift

    probabilities = np.abs(outputs.probabilities - reference.probabilities)
    maps = np.abs(outputs.defect_map - reference.defect_map)
    equal = outputs.probabilities.argmax(1) == reference.probabilities.argmax(1)
    return {
        "frames": len(equal),
        "frame_source": f"frames that took no part in quantizing; ranges are from {fitted} others",
        "reference": f"{source} on the same engine",
        "labels_equal": int(equal.sum()),
        "max_abs_probability": float(probabilities.max()),
        "mean_abs_probability": float(probabilities.max(1).mean()),
        "max_abs_defect_map": float(maps.max()),
        "mean_abs_defect_map": float(maps.mean()),
        "left_out": list(report.left_out),
        "harm": {name: round(value, 6) for name, value in report.sensitivity.items()},
        "feature_change": feature_drift(reference.features, outputs.features),
        "others": others,
    }
