"""`sem-clip verify`: proves every engine of a bundle that this host can run on the bundle's golden frames."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .backends import ENGINES, open_backend, require_gpu, uses_gpu
from .backends.choice import MEANT, engine_artifact, onnx_artifact, precisions_held
from .backends.openvino import check_openvino, stored_precision
from .backends.ort import check_provider
from .backends.triton import TritonBackend
from .backends.trt import MODULES
from .changing import changing
from .errors import BackendUnavailable, PredictorError
from .files import require_files, write_atomically
from .golden import Golden, load_golden
from .host import usable_cores
from .lifetime import in_engine
from .manifest import PRECISIONS, Artifact, Manifest, load_bundle, put_in_place, use_bundle
from .options import add_bundle_argument, add_engine_arguments
from .peak import Peak, measured_peak
from .qualification import Check, Subject, qualify
from .recipe import MAX_CLASSES, Recipe
from .serving.server_options import add_server_arguments, connect, require_no_server
from .serving.verify_server import verify_server
from .targets import BOUNDS, CPU_BACKENDS, NO_TARGET, Target
from .terminal import printable
from .verification import Result, lines, record

SECONDS = 40.0
"""For the timed parts of all engines together; other checks of a full-size encoder take 15 s per engine on 2 cores."""
LONGEST_S = 24 * 3600.0
MISSED = 3
"""Exit status where all engines are qualified and one is slower than the manifest asks."""
CPU_BATCHES = (1, 2, 8)
CUDA_BATCHES = (1, 2, 8, 32)
REMOVE = "none"
Change = tuple[str, str, str, float | None]
"""A target to set: backend, precision, figure, and its value; None removes it."""


@dataclass(frozen=True, slots=True)
class _Bundle:
    """What was read of the bundle."""

    folder: Path
    manifest: Manifest
    recipe: Recipe
    golden: Golden


class Verify:
    """Prove a bundle's engines on this host."""

    help = "Prove on this host that a bundle's engines give the answers of the export, and measure them."
    example = "sem-clip verify bundle --json qualification.json"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser)
        parser.add_argument(
            "--json", type=Path, metavar="FILE", help="write a qualification record, to keep with the tool's papers"
        )
        parser.add_argument("--force", action="store_true", help="replace FILE if it is there (default: refuse)")
        parser.add_argument(
            "--time",
            type=_seconds,
            default=SECONDS,
            metavar="S",
            help="seconds for the timed parts of all engines together; more gives steadier figures "
            f"(default: {SECONDS:g})",
        )
        parser.add_argument(
            "--set-target",
            type=_target,
            action="append",
            default=[],
            metavar="BACKEND:PRECISION:FIGURE=VALUE",
            help="first write a target into the bundle, such as cpu:fp32:p99_ms=50 or cpu:fp32:frames_per_s=20 "
            f"(image file to verdict; =none removes it; may be repeated); exit status {MISSED} if an engine misses one "
            "(default: no change)",
        )
        add_server_arguments(
            add_engine_arguments(parser, backends=(*ENGINES, TritonBackend.name), several=("backend",))
        )

    def run(self, args: argparse.Namespace) -> int:
        """Verify, print the table; returns 1 if an engine is not qualified, MISSED if one misses its target."""
        if args.json is not None:
            require_files([args.json], force=args.force)
        if args.set_target:
            set_targets(args.bundle, args.set_target)
        report = _report(args)
        try:  # the record first, for a reader of the table may leave; but a record that fails must not cost the table
            if args.json is not None:
                write_atomically(args.json, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        finally:
            for line in lines(report):
                print(printable(line))
        if not report["qualified"]:
            return 1
        return MISSED if report["targets_met"] is False else 0


def _report(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the server that is asked for, or else of this host's engines."""
    if TritonBackend.name not in args.backend:
        require_no_server(args)
        return verify(
            args.bundle, args.backend, args.precision, seconds=args.time, threads=args.threads, device=args.device
        )
    if len(args.backend) > 1:
        raise PredictorError("--backend triton stands alone: verify the engines of this host in another run")
    if args.device is not None:
        require_gpu(args.backend, args.device)
    return verify_server(args.bundle, connect(args), seconds=args.time)


def verify(
    folder: Path,
    backends: Sequence[str] = (),
    precision: str | None = None,
    *,
    seconds: float,
    threads: int = 0,
    device: int | str | None = None,
) -> dict[str, Any]:
    """The record, JSON-ready. backends: none stands for all. device: the GPU of those that use one.

    Raises BundleError for a bundle without sound golden frames, BackendUnavailable if no engine runs here, or not one
    that was asked for.
    """

    def load(manifest: Manifest, recipe: Recipe) -> _Bundle:
        return _Bundle(folder, manifest, recipe, load_golden(folder, manifest, recipe))

    if device is not None:
        require_gpu(backends or ENGINES, device)
    bundle = use_bundle(folder, load)
    found = {pair: _artifact(bundle, *pair, device) for pair in _wanted(bundle.manifest, backends, precision)}
    _require_any(folder, {pair: a if isinstance(a, str) else "" for pair, a in found.items()}, asked=bool(backends))
    runnable = sum(isinstance(artifact, Artifact) for artifact in found.values())
    peak = _peak(found, threads)
    results = []
    for (name, of), artifact in found.items():
        if isinstance(artifact, str):
            results.append(Result(name, of, "", "", "", (), artifact))
            continue
        _say(f"{name} {of} ...")
        results.append(_result(bundle, name, of, artifact, seconds / runnable, threads, device))
    _require_any(folder, {(r.backend, r.precision): r.why_not for r in results}, asked=bool(backends))
    return record(folder, bundle.manifest, bundle.golden, results, peak, device)


def set_targets(folder: Path, changes: Sequence[Change]) -> None:
    """Change targets in the bundle's manifest; nothing else of it changes. Raises BundleError."""
    folder = folder.resolve()
    with changing(folder) as staging:
        manifest, _ = load_bundle(folder)
        targets = dict(manifest.targets)
        for backend, precision, figure, value in changes:
            target = targets.pop((backend, precision), NO_TARGET)
            changed = {name: value if name == figure else getattr(target, name) for name in BOUNDS}
            if any(asked is not None for asked in changed.values()):
                targets[backend, precision] = Target(**changed)
        if targets != manifest.targets:
            put_in_place(folder, staging, replace(manifest, targets=targets), instead_of=manifest)


def batches_of(name: str, artifact: Artifact, most: int) -> tuple[int, ...]:
    """Batch sizes to run: powers of two within an engine's profile; a few usual sizes for ONNX Runtime."""
    profile = artifact.target.get("batch")
    if artifact.kind == "engine" and isinstance(profile, list | tuple) and profile:
        most = min(most, max(size for size in profile if isinstance(size, int)))
        sizes = {*(2**power for power in range(most.bit_length())), most}
    else:
        sizes = set(CUDA_BATCHES if name == "cuda" else CPU_BATCHES)
    return tuple(sorted(size for size in sizes if size <= most)) or (most,)


def _wanted(manifest: Manifest, backends: Sequence[str], precision: str | None) -> list[tuple[str, str]]:
    """Backends and precisions to try: those that the bundle holds and that are meant to run on each backend."""
    return [
        (name, one)
        for name in backends or ENGINES
        for one in ([precision] if precision else precisions_held(name, manifest) or MEANT[name][:1])
    ]


def _artifact(bundle: _Bundle, name: str, precision: str, device: int | str | None) -> Artifact | str:
    """The artifact that the backend would run, or why the backend does not run here."""
    try:
        if name in MODULES:
            return engine_artifact(name, bundle.folder, bundle.manifest, precision, device=device)
        if name == "openvino":
            check_openvino()
            return onnx_artifact(bundle.folder, bundle.manifest, stored_precision(precision))
        check_provider(name)
        return onnx_artifact(bundle.folder, bundle.manifest, precision)
    except BackendUnavailable as exc:
        return str(exc)


def _peak(found: Mapping[tuple[str, str], Artifact | str], threads: int) -> Peak:
    """The peak of this host's CPU, where an engine runs on it."""
    if any(name in CPU_BACKENDS and isinstance(artifact, Artifact) for (name, _), artifact in found.items()):
        _say("peak of matrix products ...")
        return measured_peak(threads or usable_cores())
    return Peak(None, 0, "", "measured for CPUs alone; on a GPU `python -m benchmarks.gpu` measures it")


def _result(
    bundle: _Bundle,
    name: str,
    precision: str,
    artifact: Artifact,
    seconds: float,
    threads: int,
    device: int | str | None,
) -> Result:
    """Open the engine and qualify it. seconds: for the timed parts. threads: of an engine on a CPU."""
    options: dict[str, Any] = {"precision": precision, "threads": threads, "device": device if uses_gpu(name) else None}
    about = (name, precision, artifact.file, artifact.sha256)
    try:
        with in_engine():
            backend = open_backend(name, bundle.folder, bundle.manifest, **options)
    except BackendUnavailable as exc:
        return Result(*about, "", (), str(exc))
    except PredictorError as exc:  # it should run here, but it is damaged or its GPU fails
        return Result(*about, "", (Check("open", False, str(exc)),))
    with backend:
        bound = artifact.target.get("most_classes", MAX_CLASSES)
        subject = Subject.of(
            bundle.manifest,
            bundle.recipe,
            bundle.golden,
            backend,
            batches_of(name, artifact, backend.max_batch),
            bound if isinstance(bound, int) else MAX_CLASSES,
        )
        return Result(*about, backend.description, tuple(_checks(subject, seconds)), tolerance=subject.tolerance)


def _checks(subject: Subject, seconds: float) -> list[Check]:
    try:
        with in_engine():
            subject.backend.warm_up(subject.recipe)
    except PredictorError as exc:
        return [Check("warm-up", False, str(exc))]
    return qualify(subject, seconds)


def _require_any(folder: Path, why_not: Mapping[tuple[str, str], str], *, asked: bool) -> None:
    """Raise BackendUnavailable where nothing runs, or nothing of a backend that was asked for.

    why_not: by backend and precision; "" where it runs.
    """
    of_backend: dict[str, list[str]] = {}
    for (name, _), why in why_not.items():
        of_backend.setdefault(name, []).append(why)
    idle = [reasons for reasons in of_backend.values() if all(reasons)]
    if asked and idle:
        raise BackendUnavailable(idle[0][0])
    if len(idle) == len(of_backend):
        why = "; ".join(dict.fromkeys(reason for reasons in idle for reason in reasons))
        raise BackendUnavailable(f"{folder}: no engine of this bundle runs on this host: {why}")


def _say(text: str) -> None:
    print(f"verify  {text}", file=sys.stderr)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"must lie in (0, {LONGEST_S:g}], not {text}")
    return value


def _target(text: str) -> Change:
    """BACKEND:PRECISION:FIGURE=VALUE."""
    where, _, value = text.partition("=")
    backend, precision, figure = (*where.split(":"), "", "", "")[:3]
    if where.count(":") != 2 or backend not in ENGINES or precision not in PRECISIONS or figure not in BOUNDS:
        raise argparse.ArgumentTypeError(
            f'"{text}" is no target; give {"|".join(ENGINES)}, then :{"|".join(PRECISIONS)}, then '
            f":{'|'.join(BOUNDS)}, then =VALUE, such as cpu:fp32:p99_ms=50"
        )
    if value == REMOVE:
        return backend, precision, figure, None
    low, high = BOUNDS[figure]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f'{figure} must lie in [{low:g}, {high:g}] or be {REMOVE}, not "{value}"')
    return backend, precision, figure, number
