"""The record of a verification, for machines and for people: what was proved, by what, where and when."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import BundleError
from .files import read_bounded
from .golden import Golden
from .host import find_gpu, operating_system, processor, usable_cores
from .manifest import FILE_NAME, MAX_BYTES, Manifest
from .peak import Peak
from .qualification import TARGET, Check
from .targets import CPU_BACKENDS, targets_to_json

FORMAT = "sem-clip-verification"
VERSION = 1
QUALIFIED, TOO_SLOW, NOT_QUALIFIED = "qualified", "TOO SLOW", "NOT QUALIFIED"
"""Verdicts on an engine. TOO SLOW: its answers are right, and it misses a target of the manifest."""
PATTERNS_PROVE_LESS = (
    "the golden frames are made-up patterns (--no-golden): they prove equal arithmetic, and less about frames of your "
    "tool"
)
_PACKAGES = (
    "sem-clip",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
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
    "of peak",
    "stream/s",
    "memory",
)


@dataclass(frozen=True, slots=True)
class Result:
    """One backend with one precision. checks: empty where it was not run; why_not gives the reason.

    tolerance: the largest difference of probabilities and map that the checks allowed.
    """

    backend: str
    precision: str
    artifact: str
    artifact_sha256: str
    description: str
    checks: tuple[Check, ...]
    why_not: str = ""
    tolerance: float | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """Why it is not qualified, a line each."""
        return tuple(f"{c.name}: {c.said}" for c in self.checks if c.passed is False and c.name != TARGET)

    @property
    def qualified(self) -> bool:
        """Whether it ran and every answer was right, however fast."""
        return bool(self.checks) and not self.faults

    @property
    def target_met(self) -> bool | None:
        """Whether it reached its target; None where the manifest asks nothing of it, or where it was not run."""
        return next((check.passed for check in self.checks if check.name == TARGET), None)

    @property
    def verdict(self) -> str | None:
        """One of the verdicts above; None where it was not run."""
        if not self.checks:
            return None
        if not self.qualified:
            return NOT_QUALIFIED
        return TOO_SLOW if self.target_met is False else QUALIFIED


def record(
    folder: Path,
    manifest: Manifest,
    golden: Golden,
    results: Iterable[Result],
    peak: Peak,
    device: int | str | None = None,
) -> dict[str, Any]:
    """What can be attached to a qualification, JSON-ready. peak: of this host's CPU. device: the GPU that was used."""
    results = list(results)
    ran = [r for r in results if r.checks]
    met = {(r.backend, r.precision): r.target_met for r in ran if r.target_met is not None}
    manifest_file = read_bounded(folder / FILE_NAME, MAX_BYTES, BundleError)
    assert manifest.golden is not None
    return {
        "format": FORMAT,
        "version": VERSION,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "qualified": bool(ran) and all(r.qualified for r in ran),
        "targets": targets_to_json(manifest.targets),
        "targets_met": all(met.values()) if met else None,
        "targets_not_measured": [" ".join(pair) for pair in manifest.targets if pair not in met],
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
            "gflop_per_frame": golden.gflop_per_frame,
        },
        "tolerance": dict(golden.tolerance),
        "machine": _machine(device),
        "peak": asdict(peak),
        "versions": _versions(),
        "backends": [_entry(r, golden.gflop_per_frame, peak) for r in results],
    }


def _entry(result: Result, gflop_per_frame: float | None, peak: Peak) -> dict[str, Any]:
    speed: Mapping[str, Any] = next((c.figures for c in result.checks if c.name == "speed"), {})
    share = None
    if speed and gflop_per_frame and peak.gflops and result.backend in CPU_BACKENDS:
        share = speed["engine_frames_per_second"] * gflop_per_frame / peak.gflops
    return {
        "backend": result.backend,
        "precision": result.precision,
        "verdict": result.verdict,
        "qualified": result.qualified if result.checks else None,
        "faults": list(result.faults),
        "tolerance": result.tolerance,
        "target_met": result.target_met,
        "share_of_peak": share,
        "artifact": result.artifact,
        "artifact_sha256": result.artifact_sha256,
        "description": result.description,
        "why_not_run": result.why_not,
        "checks": [asdict(check) for check in result.checks],
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """The record for people: a table of what ran, then faults, then what did not run."""
    golden, machine = report["golden"], report["machine"]
    ran = [entry for entry in report["backends"] if entry["checks"]]
    rows = [_COLUMNS, *(_row(entry) for entry in ran)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    said = [
        f"{report['bundle']['architecture']}, {golden['frames']} golden frames by {golden['by']}",
        f"{machine['processor']}, {machine['cores']} cores" + (f", {machine['gpu']['name']}" if machine["gpu"] else ""),
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]
    for entry in ran:
        said += _remarks(entry)
    idle: dict[str, list[str]] = {}
    for entry in report["backends"]:
        if not entry["checks"]:
            idle.setdefault(entry["why_not_run"], []).append(f"{entry['backend']} {entry['precision']}")
    said += [_line("not run", ", ".join(names), why) for why, names in idle.items()]
    said += [_line("not measured", name, "its target") for name in report["targets_not_measured"]]
    if golden["source"] == "patterns":
        said.append(f"{'note':<15}{PATTERNS_PROVE_LESS}")
    return said


def _remarks(entry: Mapping[str, Any]) -> list[str]:
    """Of an engine that ran: what was wrong, a missed target, and what was not checked."""
    name = f"{entry['backend']} {entry['precision']}"
    said = [_line(NOT_QUALIFIED, name, fault) for fault in entry["faults"]]
    for check in entry["checks"]:
        if check["name"] == TARGET and check["passed"] is False:
            said.append(_line(TOO_SLOW, name, check["said"]))
        elif check["passed"] is None:
            said.append(_line("not checked", name, f"{check['name']}: {check['said']}"))
    return said


def _line(what: str, name: str, text: str) -> str:
    return f"{what:<15}{name}: {text}"


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    figures = {check["name"]: check["figures"] for check in entry["checks"]}
    parity = [f for name, f in figures.items() if name.startswith("batch ") and f]
    timed, memory = figures.get("speed") or {}, figures.get("memory") or {}
    latency, share = timed.get("end_to_end_ms", {}), entry["share_of_peak"]
    return (
        f"{entry['backend']} {entry['precision']}",
        entry["verdict"],
        *(_largest(parity, key) for key in ("max_abs_probability", "max_abs_defect_map")),
        *(f"{latency[p]:.2f}" if latency else "-" for p in ("p50", "p95", "p99")),
        f"{timed['engine_frames_per_second']:.1f}" if timed else "-",
        "-" if share is None else f"{share:.0%}",
        f"{timed['end_to_end_frames_per_second']:.1f}" if timed else "-",
        f"{memory['growth_mb']:+.0f} MB" if memory else "-",
    )


def _largest(parity: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [figures[key] for figures in parity]
    if not values:
        return "-"
    return "not finite" if None in values else f"{max(values):.1e}"


def _machine(device: int | str | None) -> dict[str, Any]:
    gpu, why_no_gpu = find_gpu(device)
    return {
        "system": f"{operating_system()}, {platform.platform()}",
        "processor": processor(),
        "cores": usable_cores(),
        "gpu": None if gpu is None else asdict(gpu),
        "why_no_gpu": why_no_gpu,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
