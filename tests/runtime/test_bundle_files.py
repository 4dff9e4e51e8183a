"""Bundles on disk: files that are missing, changed or of another encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_encoder, make_recipe, write_bundle
from manifests import edit_bundle

from runtime import artifacts as artifacts_module
from runtime.errors import BundleError, RecipeError
from runtime.manifest import (
    MAX_BYTES,
    Manifest,
    check_artifact,
    load_bundle,
    read_artifact,
    replace_recipe,
)


def test_a_good_bundle_loads(fake_bundle: Path) -> None:
    manifest, recipe = load_bundle(fake_bundle, verify_all=True)
    assert manifest.encoder == make_encoder()
    assert recipe.classes == ("good", "bridge", "hole")
    assert load_bundle(str(fake_bundle))[0] == manifest
    assert check_artifact(fake_bundle, manifest.artifacts[0]) == fake_bundle / "model.onnx"


@pytest.mark.parametrize("name", ["absent", "file", "x" * 5000, "nul\0byte"], ids=["absent", "file", "long", "nul"])
def test_what_is_not_a_folder_is_not_a_bundle(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        load_bundle(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.faults[0].startswith("is not a bundle folder; build one with: ")


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        load_bundle(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is not a bundle folder: it has no manifest.json"


def test_an_oversized_manifest_is_not_read(fake_bundle: Path) -> None:
    with (fake_bundle / "manifest.json").open("ab") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BundleError, match=r"manifest\.json: is 4,194,305 bytes, more than the 4,194,304 allowed here"):
        load_bundle(fake_bundle)


def test_a_faulty_manifest_is_named_by_its_path(fake_bundle: Path) -> None:
    edit_bundle(fake_bundle, "version", 3)
    with pytest.raises(BundleError) as caught:
        load_bundle(fake_bundle)
    assert caught.value.where == str(fake_bundle / "manifest.json")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("file", "spoil", "fault"),
    [
        ("model.onnx", Path.unlink, "model.onnx is missing"),
        ("model.onnx", replace_by_folder, "model.onnx is missing"),
        (
            "model.onnx",
            lambda path: path.write_bytes(b"short"),
            "model.onnx is 5 bytes, the manifest records 15: copy the bundle again",
        ),
        (
            "model.onnx",
            lambda path: path.write_bytes(b""),
            "model.onnx is 0 bytes, the manifest records 15: copy the bundle again",
        ),
        ("recipe.safetensors", Path.unlink, "recipe.safetensors is missing"),
        ("recipe.safetensors", replace_by_folder, "recipe.safetensors is missing"),
        (
            "recipe.safetensors",
            lambda path: path.write_bytes(b""),
            "recipe.safetensors does not have the SHA-256 that the manifest records: copy the bundle again",
        ),
    ],
)
def test_a_missing_or_changed_file_is_named(
    file: str, spoil: Callable[[Path], object], fault: str, fake_bundle: Path
) -> None:
    spoil(fake_bundle / file)
    with pytest.raises(BundleError) as caught:
        load_bundle(fake_bundle)
    assert str(caught.value) == f"{fake_bundle}: {fault}"


def test_a_changed_artifact_of_the_same_size_is_found_by_its_hash(fake_bundle: Path) -> None:
    (fake_bundle / "model.onnx").write_bytes(b"X" * 15)
    manifest, _ = load_bundle(fake_bundle)  # hashing gigabytes is left to the engine that opens them
    fault = "model.onnx does not have the SHA-256 that the manifest records: copy the bundle again"
    with pytest.raises(BundleError) as caught:
        check_artifact(fake_bundle, manifest.artifacts[0])
    assert caught.value.faults == (fault,)
    with pytest.raises(BundleError) as caught:
        load_bundle(fake_bundle, verify_all=True)
    assert caught.value.faults == (fault,)


def test_faults_of_all_files_are_listed_at_once(fake_bundle: Path) -> None:
    document = json.loads((fake_bundle / "manifest.json").read_text())
    first = document["artifacts"][0]
    document["artifacts"] += [first | {"file": "deep/absent.onnx"}, first | {"file": "changed.onnx"}]
    (fake_bundle / "manifest.json").write_text(json.dumps(document))
    (fake_bundle / "model.onnx").write_bytes(b"short")
    (fake_bundle / "changed.onnx").write_bytes(b"X" * 15)
    (fake_bundle / "recipe.safetensors").unlink()
    with pytest.raises(BundleError) as caught:
        load_bundle(fake_bundle, verify_all=True)
    assert caught.value.faults == (
        "model.onnx is 5 bytes, the manifest records 15: copy the bundle again",
        "deep/absent.onnx is missing",
        "changed.onnx does not have the SHA-256 that the manifest records: copy the bundle again",
        "recipe.safetensors is missing",
    )


@pytest.mark.parametrize("path", ["artifacts.0.file", "recipe.file"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x" * 300, "x cannot be read (File name too long)"),
        ("x" * 5000, "must not be longer than 4,096 characters, not 5,000"),
        ("nul\0byte", 'must be a relative path inside the bundle, not "nul\0byte"'),
        ("lone \ud800 surrogate", "is not readable JSON (a text holds half a surrogate pair)"),
    ],
    ids=["long", "longer", "nul", "surrogate"],
)
def test_a_file_name_that_cannot_exist_is_a_fault(path: str, name: str, says: str, fake_bundle: Path) -> None:
    edit_bundle(fake_bundle, path, name)
    with pytest.raises(BundleError) as caught:
        load_bundle(fake_bundle)
    (fault,) = caught.value.faults
    assert fault.endswith(says)


def test_a_file_that_may_not_be_read_is_a_fault(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(artifacts_module, "sha256_of", deny)
    with pytest.raises(BundleError) as caught:
        load_bundle(fake_bundle, verify_all=True)
    assert caught.value.faults == ("model.onnx cannot be read (Permission denied)",)


def test_a_recipe_of_another_encoder_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", recipe=make_recipe(encoder_id="ef" * 32))
    with pytest.raises(RecipeError) as caught:
        load_bundle(folder)
    assert str(caught.value) == (
        f"{folder / 'recipe.safetensors'}: was taught on encoder efefefefefef, this bundle holds abababababab (toy): "
        "teach it again on this bundle's encoder"
    )


def test_every_tensor_that_does_not_fit_the_encoder_is_named() -> None:
    other = make_encoder(text_dim=16, width=8, levels=(1, 2), features=100)
    with pytest.raises(RecipeError) as caught:
        make_encoder().check(make_recipe(encoder=other), where="metal2.safetensors")
    assert caught.value.where == "metal2.safetensors"
    assert caught.value.faults == (
        "tensor text_seg has shape [2, 16], this encoder needs [2, 24]",
        "tensor transform_weight has shape [2, 8, 16], this encoder needs [4, 32, 24]",
        "tensor memory has shape [2, 128, 8], this encoder needs [4, 128, 32]",
        "tensor head_weight has shape [3, 100], this encoder needs [3, 385]",
    )
    other.check(make_recipe(encoder=other))


def test_a_recipe_that_reads_the_v_path_is_refused_where_the_graph_leaves_it_out(tmp_path: Path) -> None:
    without = make_encoder(value_path=False)
    without.check(make_recipe(encoder=without))
    with pytest.raises(RecipeError) as caught:
        without.check(make_recipe(encoder=make_encoder()), where="metal2.safetensors")
    assert caught.value.where == "metal2.safetensors"
    (fault,) = caught.value.faults
    assert fault.startswith(
        "has lambda_v 1, and this encoder's graph leaves the V path out: teach it again on this bundle's encoder, or "
    )
    bundle = write_bundle(tmp_path / "bundle", encoder=without)
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(RecipeError, match="leaves the V path out"):
        replace_recipe(bundle, make_recipe(encoder=make_encoder()))
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_recipe_without_the_v_path_runs_on_both_graphs() -> None:
    make_encoder().check(make_recipe(encoder=make_encoder(value_path=False)))


def test_a_recipe_that_is_damaged_though_its_hash_is_right_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "recipe.safetensors").write_bytes(b"nonsense")
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    digest = artifacts_module.sha256_of(folder / "recipe.safetensors")
    (folder / "manifest.json").write_text(replace(manifest, recipe_sha256=digest).to_json())
    with pytest.raises(RecipeError, match=r"recipe\.safetensors: is not a readable safetensors file"):
        load_bundle(folder)


def test_a_link_that_leads_out_of_the_bundle_is_refused(fake_bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (fake_bundle / "model.onnx").rename(outside)
    (fake_bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="onnx is a link that leads out of the bundle"):
        load_bundle(fake_bundle)


def test_an_artifact_is_read_once_and_whole_or_not_at_all(fake_bundle: Path) -> None:
    artifact = load_bundle(fake_bundle)[0].artifacts[0]
    assert read_artifact(fake_bundle, artifact) == (fake_bundle / "model.onnx").read_bytes()
    with pytest.raises(BundleError, match="does not have the SHA-256"):
        read_artifact(fake_bundle, replace(artifact, sha256="0" * 64))
    (fake_bundle / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="copy the bundle again"):
        read_artifact(fake_bundle, artifact)
