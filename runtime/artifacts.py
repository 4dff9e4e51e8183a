"""The files of a bundle that engines run: what the manifest records of each, and whether the file is that one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .changing import MANIFEST, is_relative, is_writers
from .encoder import sha256_field
from .errors import BundleError
from .files import read_bounded, sha256_of
from .jsonfields import Fields
from .targets import STORED_PRECISIONS

MAX_ARTIFACT_BYTES = 2**40
KINDS = ("onnx", "engine")


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file that an engine can run.

    kind: "onnx" or "engine"; precision: "fp32", "fp16" or "int8".
    operators: how many nodes of each operator it holds. parity: how far it is from torch, measured at export.
    target: for an engine, the product, version, device and options it was built for; for an ONNX file that only an
        engine can be built from, {"engine": "tensorrt"}; else empty.
    """

    file: str
    kind: str
    precision: str
    sha256: str
    bytes: int
    operators: Mapping[str, int]
    parity: Mapping[str, Any]
    target: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GoldenFile:
    """Frames with the answers of the export (`runtime.golden`). Only `verify` and `check=True` read the file."""

    file: str
    sha256: str


def check_artifact(folder: Path, artifact: Artifact) -> Path:
    """The artifact's path, once its size and SHA-256 agree with the manifest; BundleError otherwise."""
    faults = file_faults(folder, artifact.file, artifact.bytes, artifact.sha256)
    if faults:
        raise BundleError(folder, faults)
    return folder / artifact.file


def read_artifact(folder: Path, artifact: Artifact, *, most_bytes: int = MAX_ARTIFACT_BYTES) -> bytes:
    """The artifact's content, read once, of the size and SHA-256 that the manifest records; BundleError otherwise."""
    if artifact.bytes > most_bytes:
        raise BundleError(folder, f"{artifact.file} is {artifact.bytes:,} bytes, more than {most_bytes:,}")
    faults = file_faults(folder, artifact.file, artifact.bytes, None)
    if faults:
        raise BundleError(folder, faults)
    content = read_bounded(folder / artifact.file, artifact.bytes, BundleError)
    if hashlib.sha256(content).hexdigest() != artifact.sha256:
        raise BundleError(folder, other_hash(artifact.file))
    return content


def file_faults(folder: Path, file: str, size: int | None, sha256: str | None) -> list[str]:
    """What is wrong with one file of the bundle; None stands for what is not to be checked."""
    path = folder / file
    try:
        if not path.is_file():
            return [f"{file} is missing"]
        if not path.resolve().is_relative_to(folder.resolve()):
            return [f"{file} is a link that leads out of the bundle: put the file itself there"]
        found = path.stat().st_size
        if size is not None and found != size:
            return [f"{file} is {found:,} bytes, the manifest records {size:,}: copy the bundle again"]
        if sha256 is not None and sha256_of(path) != sha256:
            return [other_hash(file)]
    except OSError as exc:
        return [f"{file} cannot be read ({exc.strerror})"]
    return []


def other_hash(file: str) -> str:
    return f"{file} does not have the SHA-256 that the manifest records: copy the bundle again"


def artifact_field(fields: Fields) -> Artifact:
    artifact = Artifact(
        file=file_field(fields, "file"),
        kind=fields.text("kind"),
        precision=fields.text("precision"),
        sha256=sha256_field(fields, "sha256"),
        bytes=fields.whole("bytes", 1, MAX_ARTIFACT_BYTES),
        operators=fields.mapping("operators"),
        parity=fields.mapping("parity"),
        target=fields.mapping("target"),
    )
    if artifact.kind and artifact.kind not in KINDS:
        fields.fault("kind", f"must be one of {', '.join(KINDS)}")
    if artifact.precision and artifact.precision not in STORED_PRECISIONS:
        fields.fault("precision", f"must be one of {', '.join(STORED_PRECISIONS)}")
    if not all(type(count) is int for count in artifact.operators.values()):
        fields.fault("operators", "must give a whole number for each operator")
    fields.finish()
    return artifact


def golden_field(fields: Fields) -> GoldenFile:
    golden = GoldenFile(file_field(fields, "file"), sha256_field(fields, "sha256"))
    fields.finish()
    return golden


def file_field(fields: Fields, key: str) -> str:
    """A relative path that stays inside the bundle."""
    name = fields.text(key)
    if name and not is_relative(name):
        fields.fault(key, f'must be a relative path inside the bundle, not "{name}"')
    elif name == MANIFEST or any(is_writers(part) for part in name.split("/")):
        fields.fault(key, f'must not be "{name}", a name for the manifest and those who write it')
    return name
