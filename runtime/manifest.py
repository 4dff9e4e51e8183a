"""The bundle's manifest: what is in the folder, and what produced it (format: README, "Bundle format")."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import BundleError, RecipeError
from .files import read_bounded, sha256_of, write_atomically
from .jsonfields import Fields, parse_json
from .recipe import MAX_BYTES as MAX_RECIPE_BYTES
from .recipe import MEMORY_ROWS, Recipe

FORMAT = "sem-clip-bundle"
VERSION = 1
FILE_NAME = "manifest.json"
MAX_BYTES = 4 * 2**20
MAX_SIDE = 16384
PRECISIONS = ("fp32", "fp16", "int8")
KINDS = ("onnx", "engine")
REDUNDANCY = ("cls_weight", "class_mean")
REPLACED_MEANWHILE = "its recipe was replaced by another process meanwhile; nothing was written: run the command again"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Encoder:
    """The frozen image encoder and the geometry of the graph.

    id: fingerprint of weights, architecture and levels; a recipe carries the id it was taught on.
    weights: where they came from, in words ("random, seed 0" means untrained).
    image_size: [height, width] in pixels that the transformer sees; grid: its patches [rows, columns].
    input_size: [height, width] of the graph's `frames`. Equal to image_size, any frame size is taken and resized on
        the host; different, the resize is in the graph and frames must have this size once ignored rows are cut.
    levels: the layers (1-based) whose outputs are read. width D, text_dim C, features F as in `recipe.TENSORS`.
    mean, std: of the training pixels in [0, 1], already folded into the graph's weights.
    """

    id: str
    architecture: str
    weights: str
    trained: bool
    checkpoint_sha256: str
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    patch_size: tuple[int, int]
    grid: tuple[int, int]
    layers: int
    heads: int
    levels: tuple[int, ...]
    width: int
    text_dim: int
    features: int
    redundancy: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def resizes_in_graph(self) -> bool:
        """Whether frames must have exactly `input_size`."""
        return self.input_size != self.image_size

    def check(self, recipe: Recipe, where: str = "recipe") -> None:
        """Raise RecipeError unless `recipe` was taught on this encoder and has its shapes."""
        if recipe.encoder_id != self.id:
            raise RecipeError(
                where,
                f"was taught on encoder {recipe.encoder_id[:12]}, this bundle holds {self.id[:12]} "
                f"({self.architecture}): teach it again on this bundle's encoder",
            )
        expected = {
            "text_seg": (2, self.text_dim),
            "transform_weight": (len(self.levels), self.width, self.text_dim),
            "memory": (len(self.levels), MEMORY_ROWS, self.width),
            "head_weight": (len(recipe.classes), self.features),
        }
        faults = [
            f"tensor {name} has shape {list(recipe.tensors[name].shape)}, this encoder needs {list(shape)}"
            for name, shape in expected.items()
            if recipe.tensors[name].shape != shape
        ]
        if faults:
            raise RecipeError(where, faults)


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
class Manifest:
    """Everything a reader must know before it opens an engine.

    smoothing_px: standard deviation of the map's Gaussian smoothing, in pixels of `encoder.image_size`.
    """

    encoder: Encoder
    artifacts: tuple[Artifact, ...]
    recipe_file: str
    recipe_sha256: str
    smoothing_px: float
    tools: Mapping[str, str]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The content of manifest.json."""
        encoder = {name: getattr(self.encoder, name) for name in Encoder.__dataclass_fields__}
        artifacts = [{n: getattr(a, n) for n in Artifact.__dataclass_fields__} for a in self.artifacts]
        document = {
            "format": FORMAT,
            "version": VERSION,
            "encoder": encoder,
            "artifacts": artifacts,
            "recipe": {"file": self.recipe_file, "sha256": self.recipe_sha256},
            "smoothing_px": self.smoothing_px,
            "tools": dict(self.tools),
            "notes": list(self.notes),
        }
        return json.dumps(document, indent=2, allow_nan=False, default=dict) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = FILE_NAME) -> Manifest:
        """Parse and check; BundleError lists all faults."""
        faults: list[str] = []
        try:
            document = parse_json(text, faults)
        except (ValueError, RecursionError) as exc:
            raise BundleError(where, f"is not readable JSON ({exc})") from exc
        fields = Fields(document, "manifest", faults)
        name = fields.text("format")
        version = fields.whole("version", 1, 10**6)
        if not faults and name != FORMAT:
            raise BundleError(where, f'says format "{name}", expected "{FORMAT}"')
        if not faults and version > VERSION:
            raise BundleError(
                where, f"has format version {version}, this reader knows up to {VERSION}: update sem-clip"
            )
        encoder = _read_encoder(fields.inner("encoder"))
        artifacts = tuple(
            _read_artifact(Fields(item, f"manifest.artifacts[{index}]", faults))
            for index, item in enumerate(fields.items("artifacts"))
        )
        recipe = fields.inner("recipe")
        manifest = cls(
            encoder=encoder,
            artifacts=artifacts,
            recipe_file=_file_name(recipe, "file"),
            recipe_sha256=_hash(recipe, "sha256"),
            smoothing_px=fields.number("smoothing_px", 0, 1000),
            tools=fields.mapping("tools"),
            notes=fields.texts("notes"),
        )
        recipe.finish()
        fields.finish()
        if faults:
            raise BundleError(where, faults)
        return manifest


def load_bundle(folder: str | Path, *, verify_all: bool = False) -> tuple[Manifest, Recipe]:
    """Read and check a bundle: its manifest, that each file is there with its size, and the recipe with its hash.

    The hash of an artifact is checked by `check_artifact` just before an engine opens it, or of all of them here with
    `verify_all`. Another process may replace the recipe meanwhile. Raises BundleError with all faults.
    """
    folder = Path(folder)
    try:
        there = folder.is_dir()
    except OSError:  # a name too long, or a parent that may not be entered
        there = False
    if not there:
        raise BundleError(folder, "is not a bundle folder; build one with: python export/build_engine.py --out FOLDER")
    while True:
        content = read_bounded(folder / FILE_NAME, MAX_BYTES, BundleError)
        try:
            return _load(folder, content, verify_all=verify_all)
        except BundleError:  # the recipe that the manifest named a moment ago may have been replaced since
            if read_bounded(folder / FILE_NAME, MAX_BYTES, BundleError) == content:
                raise


def _load(folder: Path, content: bytes, *, verify_all: bool) -> tuple[Manifest, Recipe]:
    manifest = Manifest.from_json(content, where=str(folder / FILE_NAME))
    faults: list[str] = []
    for artifact in manifest.artifacts:
        faults.extend(_artifact_faults(folder, artifact, hashed=verify_all))
    recipe_path, taught = folder / manifest.recipe_file, b""
    missing = _file_faults(folder, manifest.recipe_file, None, None)
    if not missing:
        # Read once: what is parsed is what was hashed.
        taught = read_bounded(recipe_path, MAX_RECIPE_BYTES, BundleError)
        if hashlib.sha256(taught).hexdigest() != manifest.recipe_sha256:
            missing = [_other_hash(manifest.recipe_file)]
    faults += missing
    if faults:
        raise BundleError(folder, faults)
    recipe = Recipe.from_bytes(taught, where=str(recipe_path))
    manifest.encoder.check(recipe, where=str(recipe_path))
    return manifest, recipe


def replace_recipe(folder: str | Path, recipe: Recipe, *, instead_of: Recipe | None = None) -> None:
    """Make `recipe` the bundle's own. Artifacts and engines are not touched.

    The new file gets a name of its own, then manifest.json is replaced in one step, then the old file goes: a process
    that dies at any point leaves a whole bundle, with the old recipe or with the new one. instead_of: the recipe that
    the bundle must still hold. Raises BundleError if it holds another, if it is faulty, or if the recipe is not of its
    encoder.
    """
    folder = Path(folder)
    manifest, present = load_bundle(folder)
    manifest.encoder.check(recipe)
    if instead_of is not None and present.to_bytes() != instead_of.to_bytes():
        raise BundleError(folder, REPLACED_MEANWHILE)
    content = recipe.to_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest == manifest.recipe_sha256:
        return
    old = folder / manifest.recipe_file
    new = old.with_name(f"recipe-{digest[:12]}.safetensors")
    file = new.relative_to(folder).as_posix()
    changed = replace(manifest, recipe_file=file, recipe_sha256=digest).to_json()
    try:
        write_atomically(new, content)
        write_atomically(folder / FILE_NAME, changed.encode())
    except OSError as exc:
        raise BundleError(folder, f"the recipe cannot be written ({exc.strerror})") from exc
    with suppress(OSError):  # one file too many does no harm
        old.unlink()


def check_artifact(folder: Path, artifact: Artifact) -> Path:
    """The artifact's path, once its size and SHA-256 agree with the manifest; BundleError otherwise."""
    faults = _artifact_faults(folder, artifact, hashed=True)
    if faults:
        raise BundleError(folder, faults)
    return folder / artifact.file


def read_artifact(folder: Path, artifact: Artifact) -> bytes:
    """The artifact's content, read once, of the size and SHA-256 that the manifest records; BundleError otherwise."""
    faults = _artifact_faults(folder, artifact, hashed=False)
    if faults:
        raise BundleError(folder, faults)
    content = read_bounded(folder / artifact.file, artifact.bytes, BundleError)
    if hashlib.sha256(content).hexdigest() != artifact.sha256:
        raise BundleError(folder, _other_hash(artifact.file))
    return content


def _artifact_faults(folder: Path, artifact: Artifact, *, hashed: bool) -> list[str]:
    return _file_faults(folder, artifact.file, artifact.bytes, artifact.sha256 if hashed else None)


def _file_faults(folder: Path, file: str, size: int | None, sha256: str | None) -> list[str]:
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
            return [_other_hash(file)]
    except OSError as exc:
        return [f"{file} cannot be read ({exc.strerror})"]
    return []


def _other_hash(file: str) -> str:
    return f"{file} does not have the SHA-256 that the manifest records: copy the bundle again"


def _read_encoder(fields: Fields) -> Encoder:
    trained = fields.flag("trained")
    mean, std = fields.numbers("mean", 3), fields.numbers("std", 3)
    levels = tuple(fields.wholes("levels", 1, 1000))
    encoder = Encoder(
        id=_hash(fields, "id"),
        architecture=fields.text("architecture"),
        weights=fields.text("weights"),
        trained=trained,
        checkpoint_sha256=_hash(fields, "checkpoint_sha256"),
        image_size=fields.pair("image_size", 1, MAX_SIDE),
        input_size=fields.pair("input_size", 1, MAX_SIDE),
        patch_size=fields.pair("patch_size", 1, MAX_SIDE),
        grid=fields.pair("grid", 1, 1024),
        layers=fields.whole("layers", 1, 1000),
        heads=fields.whole("heads", 1, 1000),
        levels=levels,
        width=fields.whole("width", 1, 65536),
        text_dim=fields.whole("text_dim", 1, 65536),
        features=fields.whole("features", 1, 10**6),
        redundancy=fields.text("redundancy"),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )
    if encoder.redundancy and encoder.redundancy not in REDUNDANCY:
        fields.fault("redundancy", f"must be one of {', '.join(REDUNDANCY)}")
    fields.finish()
    return encoder


def _read_artifact(fields: Fields) -> Artifact:
    artifact = Artifact(
        file=_file_name(fields, "file"),
        kind=fields.text("kind"),
        precision=fields.text("precision"),
        sha256=_hash(fields, "sha256"),
        bytes=fields.whole("bytes", 1, 2**40),
        operators=fields.mapping("operators"),
        parity=fields.mapping("parity"),
        target=fields.mapping("target"),
    )
    if artifact.kind and artifact.kind not in KINDS:
        fields.fault("kind", f"must be one of {', '.join(KINDS)}")
    if artifact.precision and artifact.precision not in PRECISIONS:
        fields.fault("precision", f"must be one of {', '.join(PRECISIONS)}")
    if not all(type(count) is int for count in artifact.operators.values()):
        fields.fault("operators", "must give a whole number for each operator")
    fields.finish()
    return artifact


def _file_name(fields: Fields, key: str) -> str:
    """A relative path that stays inside the bundle."""
    name = fields.text(key)
    parts = name.split("/")
    if name and (name.startswith("/") or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts)):
        fields.fault(key, f'must be a relative path inside the bundle, not "{name}"')
    return name


def _hash(fields: Fields, key: str) -> str:
    value = fields.text(key)
    if value and not _SHA256.fullmatch(value):
        fields.fault(key, "must be a SHA-256 in lower-case hexadecimal")
    return value
