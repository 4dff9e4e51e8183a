"""The bundle's manifest: the files in the folder, and what produced them (format: docs/bundle-format.md).

Readers take no lock. They read the manifest once, then each of its files once, by hash. If that fails and the manifest
has been replaced meanwhile, they start again with the new one. So everything that runs is from one bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from .artifacts import Artifact as Artifact
from .artifacts import GoldenFile as GoldenFile
from .artifacts import artifact_field, file_faults, file_field, golden_field, other_hash
from .artifacts import check_artifact as check_artifact
from .artifacts import read_artifact as read_artifact
from .changing import MANIFEST, changing, commit, free_name
from .encoder import Encoder as Encoder
from .encoder import read_encoder, sha256_field
from .errors import BundleError
from .files import read_bounded
from .jsonfields import Fields, listed, parse_json
from .recipe import MAX_BYTES as MAX_RECIPE_BYTES
from .recipe import Recipe
from .targets import PRECISIONS as PRECISIONS
from .targets import Targets, read_targets, targets_to_json

FORMAT = "sem-clip-bundle"
VERSION = 2
"""Version 2 records `encoder.value_path`. Version 1 is read, too."""
FILE_NAME = MANIFEST
MAX_BYTES = 4 * 2**20
MAX_ARTIFACTS = 64
MAX_NOTES = 100
MAX_READINGS = 20
"""So often is a bundle read again that another process replaces meanwhile."""
REPLACED_MEANWHILE = "its recipe was replaced by another process meanwhile; nothing was written: run the command again"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a reader must know before it opens an engine.

    smoothing_px: standard deviation of the map's Gaussian smoothing, in pixels of `encoder.image_size`.
    golden: None in bundles of earlier builds. targets: what each engine must reach, where anything is asked.
    """

    encoder: Encoder
    artifacts: tuple[Artifact, ...]
    recipe_file: str
    recipe_sha256: str
    smoothing_px: float
    tools: Mapping[str, str]
    notes: tuple[str, ...]
    golden: GoldenFile | None = None
    targets: Targets = field(default_factory=dict)

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
            **({} if self.golden is None else {"golden": {"file": self.golden.file, "sha256": self.golden.sha256}}),
            **({"targets": targets_to_json(self.targets)} if self.targets else {}),
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
            raise BundleError(where, f'has the format "{name}", expected "{FORMAT}"')
        if not faults and version > VERSION:
            raise BundleError(
                where, f"has format version {version}, this reader knows up to {VERSION}: update sem-clip"
            )
        # A faulty version is one fault: faults of another version's entries would only bury it.
        encoder = read_encoder(fields.inner("encoder"), VERSION if faults else version)
        artifacts = tuple(
            artifact_field(Fields(item, f"manifest.artifacts[{index}]", faults))
            for index, item in enumerate(fields.items("artifacts", MAX_ARTIFACTS))
        )
        recipe = fields.inner("recipe")
        optional = document.keys() & {"golden", "targets"} if isinstance(document, dict) else set()
        golden = golden_field(fields.inner("golden")) if "golden" in optional else None
        targets = read_targets(fields.mapping("targets"), "manifest.targets", faults) if "targets" in optional else {}
        tools = fields.mapping("tools")
        if not all(isinstance(tool, str) for tool in tools.values()):
            fields.fault("tools", "must give a text for each tool")
        manifest = cls(
            encoder=encoder,
            artifacts=artifacts,
            recipe_file=file_field(recipe, "file"),
            recipe_sha256=sha256_field(recipe, "sha256"),
            smoothing_px=fields.number("smoothing_px", 0, 1000),
            tools=tools,
            notes=fields.texts("notes", MAX_NOTES),
            golden=golden,
            targets=targets,
        )
        recipe.finish()
        fields.finish()
        if not faults:
            manifest._check_whole(fields)
        if faults:
            raise BundleError(where, listed(faults))
        return manifest

    def files(self) -> dict[str, str]:
        """Everything in the folder that belongs to the bundle, the manifest aside, with its SHA-256."""
        golden = {} if self.golden is None else {self.golden.file: self.golden.sha256}
        artifacts = {artifact.file: artifact.sha256 for artifact in self.artifacts}
        return artifacts | {self.recipe_file: self.recipe_sha256} | golden

    def _check_whole(self, fields: Fields) -> None:
        """Record where one entry denies another."""
        golden = [] if self.golden is None else [self.golden.file]
        files = Counter([*(artifact.file for artifact in self.artifacts), self.recipe_file, *golden])
        for file in sorted(file for file, count in files.items() if count > 1):
            fields.fault("artifacts", f"must name every file once, not {file} again")
        most = min(self.encoder.image_size) / 8
        if self.smoothing_px > most:
            fields.fault("smoothing_px", f"must not be more than {most:g}, an eighth of the image's shorter side")


def load_bundle(folder: str | Path, *, verify_all: bool = False) -> tuple[Manifest, Recipe]:
    """Read and check a bundle: its manifest, that each file is there with its size, and the recipe with its hash.

    The hash of an artifact is checked by `read_artifact` as an engine opens it, or of all of them here with
    `verify_all`. Golden frames are left to `runtime.golden`: without them a bundle runs all the same. Another process
    may replace the bundle meanwhile. Raises BundleError with all faults.
    """
    return use_bundle(folder, lambda manifest, recipe: (manifest, recipe), verify_all=verify_all)


def use_bundle(folder: str | Path, use: Callable[[Manifest, Recipe], T], *, verify_all: bool = False) -> T:
    """What `use` makes of a bundle, as `load_bundle` reads it. It may read artifacts of it, too: where another process
    replaces the bundle meanwhile, `use` is called again with what is there by then. Raises BundleError.
    """
    folder = Path(folder)
    try:
        there = folder.is_dir()
    except OSError:  # a name too long, or a parent that may not be entered
        there = False
    if not there:
        raise BundleError(folder, "is not a bundle folder; build one with: sem-clip build --out FOLDER")
    for reading in range(MAX_READINGS):
        if not (folder / FILE_NAME).exists():
            raise BundleError(folder, f"is not a bundle folder: it has no {FILE_NAME}")
        content = read_bounded(folder / FILE_NAME, MAX_BYTES, BundleError)
        try:
            return use(*_load(folder, content, verify_all=verify_all))
        except BundleError:  # what the manifest named a moment ago may have been replaced since
            unchanged = read_bounded(folder / FILE_NAME, MAX_BYTES, BundleError) == content
            if unchanged or reading == MAX_READINGS - 1:
                raise
    raise AssertionError("the last reading returns or raises")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; other files are not checked. Raises BundleError."""
    return Manifest.from_json(read_bounded(folder / FILE_NAME, MAX_BYTES, BundleError), where=str(folder / FILE_NAME))


def _load(folder: Path, content: bytes, *, verify_all: bool) -> tuple[Manifest, Recipe]:
    manifest = Manifest.from_json(content, where=str(folder / FILE_NAME))
    faults: list[str] = []
    for artifact in manifest.artifacts:
        faults += file_faults(folder, artifact.file, artifact.bytes, artifact.sha256 if verify_all else None)
    recipe_path, taught = folder / manifest.recipe_file, b""
    missing = file_faults(folder, manifest.recipe_file, None, None)
    if not missing:
        # Read once: what is parsed is what was hashed.
        taught = read_bounded(recipe_path, MAX_RECIPE_BYTES, BundleError)
        if hashlib.sha256(taught).hexdigest() != manifest.recipe_sha256:
            missing = [other_hash(manifest.recipe_file)]
    faults += missing
    if faults:
        raise BundleError(folder, faults)
    recipe = Recipe.from_bytes(taught, where=str(recipe_path))
    manifest.encoder.check(recipe, where=str(recipe_path))
    return manifest, recipe


def replace_recipe(
    folder: str | Path, recipe: Recipe, *, instead_of: Recipe | None = None, golden: bytes | None = None
) -> None:
    """Make `recipe` the bundle's own. Artifacts and engines are not touched.

    instead_of: the recipe that the bundle must still hold. golden: the content of a golden file with its answers; None
    leaves the file that is there. Raises BundleError if the bundle holds another recipe, if it is faulty, if another
    process is changing it, or if the recipe is not of its encoder; then nothing is written.
    """
    folder = Path(folder).resolve()
    load_bundle(folder)[0].encoder.check(recipe)
    with changing(folder) as staging:
        manifest, present = load_bundle(folder)
        manifest.encoder.check(recipe)
        if instead_of is not None and present.to_bytes() != instead_of.to_bytes():
            raise BundleError(folder, REPLACED_MEANWHILE)
        content = recipe.to_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest == manifest.recipe_sha256:
            return
        file = PurePosixPath(manifest.recipe_file).with_name(f"recipe-{digest[:12]}.safetensors").as_posix()
        files, changed = {file: content}, replace(manifest, recipe_file=file, recipe_sha256=digest)
        if golden is not None and manifest.golden is not None:
            changed = replace(changed, golden=_named_golden(manifest.golden, golden))
            files[_named_golden(manifest.golden, golden).file] = golden
        try:
            for name, data in files.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).write_bytes(data)
        except OSError as exc:
            raise BundleError(folder, f"the recipe cannot be written ({exc.strerror})") from exc
        put_in_place(folder, staging, changed, instead_of=manifest)


def _named_golden(there: GoldenFile, content: bytes) -> GoldenFile:
    """Another golden file beside the one that is there."""
    digest = hashlib.sha256(content).hexdigest()
    return GoldenFile(PurePosixPath(there.file).with_name(f"golden-{digest[:12]}.safetensors").as_posix(), digest)


def bundle_of_recipe(file: Path) -> Path | None:
    """The bundle whose own recipe the file is: written in its place, it would no longer be what the manifest names."""
    file = file.resolve()
    for folder in file.parents:
        manifest = manifest_of(folder)
        if manifest is not None and (folder / manifest.recipe_file).resolve() == file:
            return folder
    return None


def put_in_place(folder: Path, staging: Path, new: Manifest, *, instead_of: Manifest | None) -> Manifest:
    """Make `new` the manifest of the bundle that `changing` holds; the files of it that lie in `staging` come with it.

    instead_of: the manifest that `new` was made from. A recipe that was put in its place since is kept. Returns what
    was written: a file whose name was taken, but for the same content, has got another. Raises BundleError; then the
    bundle is as it was.
    """
    there = manifest_of(folder)
    if there != instead_of:
        new = _with_recipe_of(folder, new, instead_of, there)
    moves = {
        file: free_name(folder, file, digest)
        for file, digest in new.files().items()
        if (staging / file).is_file() and not _is_there(folder, there, file, digest)
    }
    new = replace(
        new,
        artifacts=tuple(replace(a, file=moves.get(a.file, a.file)) for a in new.artifacts),
        recipe_file=moves.get(new.recipe_file, new.recipe_file),
        golden=new.golden and replace(new.golden, file=moves.get(new.golden.file, new.golden.file)),
    )
    out_of_use = [] if there is None else sorted(there.files().keys() - new.files().keys())
    text = new.to_json()
    Manifest.from_json(text, where=str(folder / FILE_NAME))  # what readers refuse is not written
    try:
        (staging / FILE_NAME).write_text(text, encoding="utf-8")
    except OSError as exc:
        raise BundleError(folder, f"the change cannot be written ({exc.strerror})") from exc
    commit(folder, staging, moves, out_of_use)
    return new


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest that lies in the folder; None where none does, or none that this version can read: it names nothing,
    and so nothing of it goes when it is replaced."""
    try:
        return read_manifest(folder)
    except BundleError:
        return None


def _with_recipe_of(folder: Path, new: Manifest, before: Manifest | None, there: Manifest | None) -> Manifest:
    """`new`, with the recipe that took the place of that of `before`; BundleError if more than that has changed."""
    if before is not None and there is not None:
        same_but_recipe = replace(there, recipe_file=before.recipe_file, recipe_sha256=before.recipe_sha256) == before
        if same_but_recipe and new.recipe_sha256 == before.recipe_sha256:
            return replace(new, recipe_file=there.recipe_file, recipe_sha256=there.recipe_sha256)
    raise BundleError(folder, "was changed by another process meanwhile; nothing was written: run the command again")


def _is_there(folder: Path, there: Manifest | None, file: str, digest: str) -> bool:
    """Whether the old bundle's manifest names the file and the file itself is intact."""
    return there is not None and there.files().get(file) == digest and not file_faults(folder, file, None, digest)
