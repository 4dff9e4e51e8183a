"""`sem-clip verify`: every engine of a bundle that this host can run proves itself on the bundle's golden frames."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .backends import ENGINES, Backend, open_backend
from .backends.choice import ENGINE_PRECISIONS, engine_artifact, onnx_artifact
from .backends.ort import check_provider
from .backends.trt import MODULES
from .errors import BackendUnavailable, BundleError, PredictorError
from .files import read_bounded, require_files, write_atomically
from .golden import Golden, load_golden
from .host import find_gpu, operating_system, processor, usable_cores
from .lifetime import in_engine
from .manifest import FILE_NAME, MAX_BYTES, Artifact, Manifest, use_bundle
from .options import add_bundle_argument, add_engine_arguments
from .qualification import Check, Subject, qualify
from .recipe import MAX_CLASSES, Recipe
from .terminal import printable

FORMAT = "sem-clip-verification"
VERSION = 1
SECONDS = 40.0
"""For the timed parts of all engines together. The rest takes 15 s for a full-size encoder on two cores, per engine."""
LONGEST_S = 24 * 3600.0
CPU_BATCHES = (1, 2, 8)
CUDA_BATCHES = (1, 2, 8, 32)
SAYS_LESS = (
    "the golden frames are made-up patterns (--no-golden): they show that an engine computes the same, and say less "
    "about frames of your tool"
)
_PACKAGES = (
    "sem-clip",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)
_COLUMNS = (
    "backend",
    "verdict",
    "probabilities",
    "map",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "engine/s",
    "stream/s",
    "memory",
)


@dataclass(frozen=True, slots=True)
class Result:
    """One backend with one precision. checks: empty where it was not run; why_not says why."""

    backend: str
    precision: str
    artifact: str
    artifact_sha256: str
    description: str
    checks: tuple[Check, ...]
    why_not: str = ""

    @property
    def faults(self) -> tuple[str, ...]:
        """Why it is not qualified, a line each."""
        return tuple(f"{check.name}: {check.said}" for check in self.checks if check.passed is False)

    @property
    def qualified(self) -> bool:
        """Whether it ran, and nothing was found against it."""
        return bool(self.checks) and not self.faults


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
        add_engine_arguments(parser, backends=ENGINES, several=("backend",))

    def run(self, args: argparse.Namespace) -> int:
        """Verify, print the table; 1 if an engine is not qualified."""
        if args.json is not None:
            require_files([args.json], force=args.force)
        report = verify(args.bundle, args.backend, args.precision, seconds=args.time, threads=args.threads)
        if args.json is not None:
            write_atomically(args.json, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        for line in lines(report):
            print(printable(line))
        return 0 if report["qualified"] else 1


def verify(
    folder: Path, backends: Sequence[str] = (), precision: str | None = None, *, seconds: float, threads: int = 0
) -> dict[str, Any]:
    """The record, JSON-ready. backends: none stands for all.

    Raises BundleError for a bundle without sound golden frames, BackendUnavailable if no engine runs here, or not one
    that was asked for.
    """

    def load(manifest: Manifest, recipe: Recipe) -> tuple[Manifest, Recipe, Golden]:
        return manifest, recipe, load_golden(folder, manifest, recipe)

    manifest, recipe, golden = use_bundle(folder, load)
    wanted = _wanted(manifest, backends, precision)
    found = {pair: _artifact(folder, manifest, *pair) for pair in wanted}
    runnable = sum(isinstance(artifact, Artifact) for artifact in found.values())
    results = []
    for (name, of), artifact in found.items():
        if isinstance(artifact, str):
            results.append(Result(name, of, "", "", "", (), artifact))
            continue
        _say(f"{name} {of} ...")
        results.append(
            _result(folder, manifest, recipe, golden, name, of, artifact, seconds / max(1, runnable), threads)
        )
    _require_any(folder, results, asked=bool(backends))
    return record(folder, manifest, golden, results)


def record(folder: Path, manifest: Manifest, golden: Golden, results: Iterable[Result]) -> dict[str, Any]:
    """What can be attached to a qualification: what was proved, by what, where and when."""
    results = list(results)
    gpu, why_no_gpu = find_gpu()
    manifest_file = read_bounded(folder / FILE_NAME, MAX_BYTES, BundleError)
    assert manifest.golden is not None
    return {
        "format": FORMAT,
        "version": VERSION,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "qualified": any(r.checks for r in results) and all(r.qualified for r in results if r.checks),
        "bundle": {
            "folder": str(folder),
            "manifest_sha256": hashlib.sha256(manifest_file).hexdigest(),
            "architecture": manifest.encoder.architecture,
            "encoder_id": manifest.encoder.id,
            "recipe_sha256": manifest.recipe_sha256,
            "golden_sha256": manifest.golden.sha256,
        },
        "golden": {
            "frames": len(golden.frames),
            "source": golden.source,
            "about": golden.about,
            "by": golden.reference,
        },
        "tolerance": dict(golden.tolerance),
        "machine": {
            "system": f"{operating_system()}, {platform.platform()}",
            "processor": processor(),
            "cores": usable_cores(),
            "gpu": None if gpu is None else asdict(gpu),
            "why_no_gpu": why_no_gpu,
        },
        "versions": _versions(),
        "backends": [
            {
                "backend": r.backend,
                "precision": r.precision,
                "qualified": r.qualified if r.checks else None,
                "faults": list(r.faults),
                "artifact": r.artifact,
                "artifact_sha256": r.artifact_sha256,
                "description": r.description,
                "why_not_run": r.why_not,
                "checks": [asdict(check) for check in r.checks],
            }
            for r in results
        ],
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """The record for people: a table of what ran, then faults, then what did not run."""
    golden = report["golden"]
    ran = [entry for entry in report["backends"] if entry["checks"]]
    rows = [_COLUMNS, *(_row(entry) for entry in ran)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    said = [
        f"{report['bundle']['architecture']}, {golden['frames']} golden frames by {golden['by']}",
        f"{report['machine']['processor']}, {report['machine']['cores']} cores"
        + (f", {report['machine']['gpu']['name']}" if report["machine"]["gpu"] else ""),
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]
    for entry in ran:
        name = f"{entry['backend']} {entry['precision']}"
        said += [f"NOT QUALIFIED  {name}: {fault}" for fault in entry["faults"]]
        said += [
            f"not checked    {name}: {check['name']}: {check['said']}"
            for check in entry["checks"]
            if check["passed"] is None
        ]
    said += [
        f"not run        {entry['backend']} {entry['precision']}: {entry['why_not_run']}"
        for entry in report["backends"]
        if not entry["checks"]
    ]
    if golden["source"] == "patterns":
        said.append(f"note           {SAYS_LESS}")
    return said


def batches_of(name: str, artifact: Artifact, most: int) -> tuple[int, ...]:
    """The sizes to run: those of the engine's profile by powers of two; of ONNX Runtime a few that it may meet."""
    profile = artifact.target.get("batch")
    if artifact.kind == "engine" and isinstance(profile, list | tuple) and profile:
        most = min(most, max(size for size in profile if isinstance(size, int)))
        sizes = {*(2**power for power in range(most.bit_length())), most}
    else:
        sizes = set(CUDA_BATCHES if name == "cuda" else CPU_BATCHES)
    return tuple(sorted(size for size in sizes if size <= most)) or (most,)


def _wanted(manifest: Manifest, backends: Sequence[str], precision: str | None) -> list[tuple[str, str]]:
    """Backends and precisions to try: of those that the bundle holds, what is meant to run on each."""
    meant = {"cpu": ("fp32", "int8"), "cuda": ("fp16", "fp32"), **dict.fromkeys(MODULES, ENGINE_PRECISIONS)}
    held = {
        "onnx": {a.precision for a in manifest.artifacts if a.kind == "onnx" and not a.target},
        "engine": {a.precision for a in manifest.artifacts if a.kind == "engine"},
    }
    found = []
    for name in backends or ENGINES:
        kind = "engine" if name in MODULES else "onnx"
        taken = [precision] if precision else [p for p in meant[name] if p in held[kind]] or [meant[name][0]]
        found += [(name, one) for one in taken]
    return found


def _artifact(folder: Path, manifest: Manifest, name: str, precision: str) -> Artifact | str:
    """What the backend would run; or why it does not run here."""
    try:
        if name in MODULES:
            return engine_artifact(name, folder, manifest, precision)
        check_provider(name)
        return onnx_artifact(folder, manifest, precision)
    except BackendUnavailable as exc:
        return str(exc)


def _result(
    folder: Path,
    manifest: Manifest,
    recipe: Recipe,
    golden: Golden,
    name: str,
    precision: str,
    artifact: Artifact,
    seconds: float,
    threads: int,
) -> Result:
    about = (name, precision, artifact.file, artifact.sha256)
    try:
        with in_engine():
            backend = open_backend(name, folder, manifest, precision=precision, threads=threads)
    except BackendUnavailable as exc:
        return Result(*about, "", (), str(exc))
    except PredictorError as exc:  # it should run here, and is damaged, or its GPU fails
        return Result(*about, "", (Check("open", False, str(exc)),))
    with backend:
        return Result(*about, backend.description, tuple(_checks(manifest, recipe, golden, backend, artifact, seconds)))


def _checks(
    manifest: Manifest, recipe: Recipe, golden: Golden, backend: Backend, artifact: Artifact, seconds: float
) -> list[Check]:
    bound = artifact.target.get("most_classes", MAX_CLASSES)
    batches = batches_of(backend.name, artifact, backend.max_batch)
    most_classes = bound if isinstance(bound, int) else MAX_CLASSES
    subject = Subject.of(manifest, recipe, golden, backend, batches, most_classes)
    try:
        with in_engine():
            backend.warm_up(recipe)
    except PredictorError as exc:
        return [Check("warm-up", False, str(exc))]
    return qualify(subject, seconds)


def _require_any(folder: Path, results: Sequence[Result], *, asked: bool) -> None:
    idle = [r for r in results if not r.checks]
    if asked and idle:
        raise BackendUnavailable(idle[0].why_not)
    if len(idle) == len(results):
        raise BackendUnavailable(
            f"{folder}: no engine of this bundle runs on this host: " + "; ".join(r.why_not for r in idle)
        )


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    figures = {check["name"]: check["figures"] for check in entry["checks"]}
    parity = [f for name, f in figures.items() if name.startswith("batch ") and f]
    timed, memory = figures.get("speed") or {}, figures.get("memory") or {}
    latency = timed.get("end_to_end_ms", {})
    return (
        f"{entry['backend']} {entry['precision']}",
        "qualified" if entry["qualified"] else "NOT QUALIFIED",
        *(_largest(parity, key) for key in ("max_abs_probability", "max_abs_defect_map")),
        *(f"{latency[p]:.2f}" if latency else "-" for p in ("p50", "p95", "p99")),
        *(
            f"{timed[key]:.1f}" if timed else "-"
            for key in ("engine_frames_per_second", "end_to_end_frames_per_second")
        ),
        f"{memory['growth_mb']:+.0f} MB" if memory else "-",
    )


def _largest(parity: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [figures[key] for figures in parity]
    if not values:
        return "-"
    return "not finite" if None in values else f"{max(values):.1e}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _say(text: str) -> None:
    print(f"verify  {text}", file=sys.stderr)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"must lie in (0, {LONGEST_S:g}], not {text}")
    return value
