"""Writing new bundles, and adding artifacts to existing ones (by `runtime.changing`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from runtime.changing import changing, unfinished
from runtime.changing import sync as _sync
from runtime.encoder import feature_count
from runtime.files import require_folder, sha256_of
from runtime.manifest import (
    FILE_NAME,
    Artifact,
    Encoder,
    Manifest,
    load_bundle,
    manifest_of,
    put_in_place,
    read_manifest,
)

from .errors import OutputExistsError
from .model.checkpoint import LoadedModel
from .model.graph import SemClipGraph


def describe_encoder(model: LoadedModel, graph: SemClipGraph) -> Encoder:
    """The manifest's record of the encoder that `graph` holds. `id` is the same with the V path and without it."""
    encoder = graph.encoder
    features = feature_count(len(encoder.level_layers), encoder.width)
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
    if model.config.get("quick_gelu"):  # added later: ids of all other encoders stay the same
        identity["quick_gelu"] = True
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
        value_path=graph.value_path,
    )


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputExistsError if `path` exists and may not be replaced, PredictorError if its parent is no folder."""
    require_folder(path.parent)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputExistsError(f"{path} exists and is not a folder; choose another --out")
    if path.exists() and {entry.name for entry in path.iterdir()} - unfinished(path):
        if not force:
            raise OutputExistsError(f"{path} exists; add --force to replace it, or choose another --out")
        if not (path / FILE_NAME).is_file():
            raise OutputExistsError(
                f"{path} exists and is not a bundle (no {FILE_NAME}); --force replaces bundles only"
            )


@contextmanager
def writing_bundle(target: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write a whole bundle into; its files move to `target` when the block ends without an error.

    End with `write_manifest`. Until then `target` is unchanged; files that its old manifest does not name stay. Raises
    OutputExistsError, BundleError.
    """
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    target = target.resolve()
    try:
        with changing(target) as folder:
            refuse_existing(target, force=force)  # again: another process may have been here first
            before = manifest_of(target)
            yield folder
            _sync(folder)
            put_in_place(target, folder, read_manifest(folder), instead_of=before)
    except BaseException:
        if made:
            with suppress(OSError):  # not empty by now
                target.rmdir()
        raise


def record_artifact(folder: Path, file: str, precision: str, operators: dict[str, int]) -> Artifact:
    """The manifest's record of an ONNX file in `folder`; parity is added once it is measured."""
    path = folder / file
    return Artifact(file, "onnx", precision, sha256_of(path), path.stat().st_size, operators, {}, {})


@contextmanager
def changing_bundle(bundle: Path) -> Iterator[tuple[Path, Manifest]]:
    """A folder for new artifacts of a bundle, and its manifest; both are added when the block ends without an error.

    The bundle is locked meanwhile. Write new files into the folder, under the names that the new manifest gives them,
    and end with `write_manifest`. Existing files are never overwritten: a new file whose name is taken gets another
    name, which the manifest then holds. Raises BundleError; the bundle is then unchanged.
    """
    bundle = bundle.resolve()  # follow a link
    load_bundle(bundle)  # so that no lock is left in a folder that is no bundle
    with changing(bundle) as folder:
        manifest, _ = load_bundle(bundle)
        yield folder, manifest
        _sync(folder)
        put_in_place(bundle, folder, read_manifest(folder), instead_of=manifest)


def with_artifact(manifest: Manifest, artifact: Artifact, *, instead_of: Artifact | None = None) -> Manifest:
    """The manifest with an artifact added at its end, and without `instead_of`."""
    others = tuple(other for other in manifest.artifacts if other != instead_of)
    return replace(manifest, artifacts=(*others, artifact))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json into the folder of a bundle in the making."""
    (folder / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
