"""Writing bundles: everything into a folder beside the target, then one rename."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from runtime.errors import BundleError
from runtime.files import require_folder, sha256_of
from runtime.manifest import FILE_NAME, Artifact, Encoder, Manifest, load_bundle

from .checkpoint import LoadedModel
from .errors import OutputExistsError
from .graph import SemClipGraph


def describe_encoder(model: LoadedModel, graph: SemClipGraph) -> Encoder:
    """The manifest's record of the encoder that `graph` holds."""
    encoder = graph.encoder
    features = 3 * len(encoder.level_layers) * encoder.width + 1  # heads.head_features
    identity = {
        "checkpoint": model.sha256,
        "vision": model.config["vision_cfg"],
        "text_dim": encoder.text_dim,
        "levels": encoder.level_layers,
        "redundancy": graph.redundancy,
        "mean": model.mean,
        "std": model.std,
        "features": features,
    }
    return Encoder(
        id=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        architecture=model.architecture,
        weights=model.origin,
        trained=model.trained,
        checkpoint_sha256=model.sha256,
        image_size=encoder.image_size,
        input_size=graph.input_size,
        patch_size=encoder.patch_size,
        grid=encoder.grid,
        layers=len(encoder.blocks),
        heads=encoder.heads,
        levels=encoder.level_layers,
        width=encoder.width,
        text_dim=encoder.text_dim,
        features=features,
        redundancy=graph.redundancy,
        mean=(model.mean[0], model.mean[1], model.mean[2]),
        std=(model.std[0], model.std[1], model.std[2]),
    )


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputExistsError if something is at `path` and may not be replaced, PredictorError if no folder can be."""
    require_folder(path.parent)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputExistsError(f"{path} exists and is not a folder; choose another --out")
    if path.exists() and any(path.iterdir()):
        if not force:
            raise OutputExistsError(f"{path} exists; add --force to replace it, or choose another --out")
        if not (path / FILE_NAME).is_file():
            raise OutputExistsError(
                f"{path} exists and is not a bundle (no {FILE_NAME}); --force replaces bundles only"
            )


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well.

    If the block fails, or the process dies at any point, `target` is as it was or is the new one, whole either way.
    (Where a system cannot swap two names in one step, a process that dies between two renames leaves the old one
    beside `target`, as `.<name>.old-...`.)
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.new-"))
    try:
        yield working
        working.chmod(0o755)
        _sync(working)
        if not target.exists():
            working.replace(target)
        elif not _exchange(working, target):
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
            target.replace(old)
            try:
                working.replace(target)
            except BaseException:
                old.replace(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
    finally:
        # After an exchange this is the old bundle.
        shutil.rmtree(working, ignore_errors=True)


def record_artifact(folder: Path, file: str, precision: str, operators: dict[str, int]) -> Artifact:
    """The manifest's record of an ONNX file in `folder`; parity is added once it was measured."""
    path = folder / file
    return Artifact(file, "onnx", precision, sha256_of(path), path.stat().st_size, operators, {}, {})


@contextmanager
def changing_bundle(bundle: Path) -> Iterator[tuple[Path, Manifest]]:
    """A copy of a bundle to add artifacts to, and its manifest; it takes the bundle's place when the block ends well.

    Unchanged files are linked, not copied, where the file system can. Write new files aside of the old names, or
    unlink a name before writing it, and end with `write_manifest`. Raises BundleError, also where another process
    changed the bundle meanwhile; then it stays as that left it.
    """
    bundle = bundle.resolve()  # where the name is a link, the folder is meant
    manifest, _ = load_bundle(bundle)
    before = (bundle / FILE_NAME).read_bytes()
    with replacing_folder(bundle) as folder:
        for file in (*(artifact.file for artifact in manifest.artifacts), manifest.recipe_file):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(bundle / file, folder / file)
            except OSError:
                shutil.copy2(bundle / file, folder / file)
        yield folder, manifest
        if (bundle / FILE_NAME).read_bytes() != before:
            raise BundleError(bundle, "was changed by another process meanwhile; run the command again")


def with_artifact(manifest: Manifest, artifact: Artifact) -> Manifest:
    """The manifest with an artifact added, in place of the one of the same file name if there is one."""
    others = tuple(other for other in manifest.artifacts if other.file != artifact.file)
    return replace(manifest, artifacts=(*others, artifact))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json into a folder that is still being made."""
    (folder / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot (it is Linux's renameat2)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0)


def _sync(folder: Path) -> None:
    """Bring the content to the disk before the rename promises that it is there."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
