"""runtime.manifest: the bundle's manifest, and every way in which a bundle can be wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from places import TESTS

from runtime import changing
from runtime import manifest as manifest_module
from runtime.errors import BundleError, RecipeError
from runtime.files import write_atomically
from runtime.manifest import (
    MAX_BYTES,
    MAX_READINGS,
    Artifact,
    Manifest,
    check_artifact,
    load_bundle,
    read_artifact,
    replace_recipe,
    use_bundle,
)

GOLDEN = """{
  "format": "sem-clip-bundle",
  "version": 2,
  "encoder": {
    "id": "abababababababababababababababababababababababababababababababab",
    "architecture": "toy",
    "weights": "random, seed 0",
    "trained": false,
    "checkpoint_sha256": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
    "image_size": [64, 64],
    "input_size": [64, 64],
    "patch_size": [16, 16],
    "grid": [4, 4],
    "layers": 4,
    "heads": 2,
    "levels": [1, 2, 3, 4],
    "width": 32,
    "text_dim": 24,
    "features": 385,
    "redundancy": "cls_weight",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "value_path": true
  },
  "artifacts": [
    {
      "file": "engines/model.onnx",
      "kind": "onnx",
      "precision": "fp32",
      "sha256": "efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef",
      "bytes": 15,
      "operators": {"Attention": 8},
      "parity": {"frames": 3, "max_abs_probability": 1e-06},
      "target": {}
    }
  ],
  "recipe": {
    "file": "recipe.safetensors",
    "sha256": "efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef"
  },
  "smoothing_px": 4.0,
  "tools": {"python": "3"},
  "notes": ["made for tests", "é"]
}
"""
MISSING = object()


def golden_manifest() -> Manifest:
    """What GOLDEN says."""
    return Manifest(
        encoder=make_encoder(),
        artifacts=(
            Artifact(
                "engines/model.onnx",
                "onnx",
                "fp32",
                "ef" * 32,
                15,
                {"Attention": 8},
                {"frames": 3, "max_abs_probability": 1e-6},
                {},
            ),
        ),
        recipe_file="recipe.safetensors",
        recipe_sha256="ef" * 32,
        smoothing_px=4.0,
        tools={"python": "3"},
        notes=("made for tests", "é"),
    )


def edit(document: Any, path: str, value: object) -> None:
    """Set, or remove where the value is MISSING, one entry of a JSON document; `path` is dotted."""
    *outer, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in outer:
        document = document[part]
    if value is MISSING:
        del document[last]
    else:
        document[last] = value


def faults_after(path: str, value: object) -> tuple[str, ...]:
    """What is said of the golden manifest with one entry changed."""
    document = json.loads(GOLDEN)
    edit(document, path, value)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document), where="here.json")
    assert caught.value.where == "here.json"
    assert not isinstance(caught.value, RecipeError)
    return caught.value.faults


def edit_bundle(folder: Path, path: str, value: object) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    edit(document, path, value)
    (folder / "manifest.json").write_text(json.dumps(document))


def paths_of(document: Any, prefix: str = "") -> list[str]:
    """The dotted path of every entry that the format fixes; what reports hold is free."""
    free = ("operators", "parity", "target", "tools", "notes")
    found: list[str] = []
    for key, value in document.items():
        found.append(prefix + key)
        if isinstance(value, dict) and key not in free:
            found += paths_of(value, f"{prefix}{key}.")
        if key == "artifacts":
            found += paths_of(value[0], f"{prefix}{key}.0.")
    return found


def named(path: str) -> str:
    """How messages call an entry: artifacts.0.kind is manifest.artifacts[0].kind."""
    return "manifest." + path.replace(".0.", "[0].")


ALL_PATHS = paths_of(json.loads(GOLDEN))


def test_a_manifest_survives_writing_and_reading() -> None:
    manifest = golden_manifest()
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(manifest.to_json().encode()) == manifest
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()


def test_the_format_is_pinned() -> None:
    manifest = golden_manifest()
    assert Manifest.from_json(GOLDEN) == manifest
    written = manifest.to_json()
    assert written.startswith('{\n  "format": "sem-clip-bundle",\n  "version": 2,\n  "encoder": {\n    "id": ')
    assert written.endswith("}\n")
    # json.dumps keeps the order of keys, so this compares the order too.
    assert json.dumps(json.loads(written)) == json.dumps(json.loads(GOLDEN))


def test_a_manifest_of_version_1_names_no_v_path_and_its_graphs_have_it() -> None:
    document = json.loads(GOLDEN) | {"version": 1}
    del document["encoder"]["value_path"]
    assert Manifest.from_json(json.dumps(document)) == golden_manifest()
    document["encoder"]["value_path"] = False
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert caught.value.faults == ("manifest.encoder.value_path is not known to this version",)


def test_a_manifest_says_that_the_graph_leaves_the_v_path_out() -> None:
    manifest = replace(golden_manifest(), encoder=make_encoder(value_path=False))
    assert '"value_path": false' in manifest.to_json()
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_order_of_keys_does_not_matter_to_the_reader() -> None:
    document = json.loads(GOLDEN)
    shuffled = dict(reversed(document.items()))
    assert Manifest.from_json(json.dumps(shuffled)) == golden_manifest()


def test_the_resize_is_in_the_graph_where_the_sizes_differ() -> None:
    assert not make_encoder().resizes_in_graph
    assert make_encoder(input_size=(96, 64)).resizes_in_graph


@pytest.mark.parametrize("path", ALL_PATHS)
def test_a_missing_entry_is_one_fault(path: str) -> None:
    assert faults_after(path, MISSING) == (f"{named(path)} is missing",)


@pytest.mark.parametrize("path", ["colour", "encoder.colour", "artifacts.0.colour", "recipe.colour"])
def test_an_unknown_entry_is_one_fault(path: str) -> None:
    assert faults_after(path, 1) == (f"{named(path)} is not known to this version",)


@pytest.mark.parametrize("value", [None, "", [[]], -1, float("nan")], ids=repr)
@pytest.mark.parametrize("path", ALL_PATHS)
def test_no_entry_takes_just_anything(path: str, value: object) -> None:
    faults = faults_after(path, value)
    assert any(fault.startswith(named(path)) or f'"{value}"' in fault for fault in faults)


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("encoder.id", "AB" * 32, "manifest.encoder.id must be a SHA-256 in lower-case hexadecimal"),
        ("encoder.checkpoint_sha256", "ab", "manifest.encoder.checkpoint_sha256 must be a SHA-256 in lower-case"),
        ("encoder.trained", 1, "manifest.encoder.trained must be true or false, not int 1"),
        ("encoder.image_size", [64], "manifest.encoder.image_size must be two whole numbers in [1, 16384]"),
        ("encoder.input_size", [0, 64], "manifest.encoder.input_size must be two whole numbers in [1, 16384]"),
        ("encoder.input_size", [64, 16385], "manifest.encoder.input_size must be two whole numbers in [1, 16384]"),
        ("encoder.grid", [4, 4, 4], "manifest.encoder.grid must be two whole numbers in [1, 1024]"),
        ("encoder.grid", [True, 4], "manifest.encoder.grid must be two whole numbers in [1, 1024]"),
        ("encoder.layers", 4.0, "manifest.encoder.layers must be a whole number, not float 4.0"),
        ("encoder.heads", True, "manifest.encoder.heads must be a whole number, not bool True"),
        ("encoder.levels", [], "manifest.encoder.levels must be whole numbers in [1, 1000]"),
        ("encoder.levels", [1, 0], "manifest.encoder.levels must be whole numbers in [1, 1000]"),
        ("encoder.width", 65537, "manifest.encoder.width must lie in [1, 65536], not 65537"),
        ("encoder.redundancy", "none", "manifest.encoder.redundancy must be one of cls_weight, class_mean"),
        ("encoder.mean", [0.5, 0.5], "manifest.encoder.mean must be 3 finite numbers"),
        ("encoder.mean", [0.5, 0.5, 10**400], "manifest.encoder.mean must be 3 finite numbers"),
        ("encoder.std", [1, 1, "1"], "manifest.encoder.std must be 3 finite numbers"),
        ("encoder.std", [1, 1, float("inf")], "manifest.encoder.std must be 3 finite numbers"),
        ("artifacts", {}, "manifest.artifacts must be a list, not dict {}"),
        ("artifacts.0", "model.onnx", 'manifest.artifacts[0] must be an object, not the string "model.onnx"'),
        ("artifacts.0.kind", "torch", "manifest.artifacts[0].kind must be one of onnx, engine"),
        ("artifacts.0.precision", "bf16", "manifest.artifacts[0].precision must be one of fp32, fp16, int8"),
        ("artifacts.0.bytes", 0, "manifest.artifacts[0].bytes must lie in [1, 1099511627776], not 0"),
        ("artifacts.0.operators", {"Add": "8"}, "manifest.artifacts[0].operators must give a whole number for each"),
        ("smoothing_px", -1, "manifest.smoothing_px must lie in [0, 1000], not -1"),
        ("smoothing_px", 10**400, "manifest.smoothing_px must be a finite number, not int 1000"),
        ("notes", [1], "manifest.notes must be a list of strings"),
        ("version", 0, "manifest.version must lie in [1, 1000000], not 0"),
    ],
)
def test_a_wrong_entry_is_named_with_what_it_should_be(path: str, value: object, fault: str) -> None:
    assert any(found.startswith(fault) for found in faults_after(path, value))


@pytest.mark.parametrize("path", ["artifacts.0.file", "recipe.file"])
@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "a/../../model.onnx",
        "..",
        ".",
        "./model.onnx",
        "/etc/passwd",
        "a//b",
        "a/",
        "..\\model.onnx",
        "C:/model.onnx",
        "C:model.onnx",
    ],
)
def test_a_path_that_could_leave_the_bundle_is_refused(path: str, name: str) -> None:
    assert faults_after(path, name) == (f'{named(path)} must be a relative path inside the bundle, not "{name}"',)


@pytest.mark.parametrize("path", ["artifacts.0.file", "recipe.file"])
@pytest.mark.parametrize("name", ["manifest.json", ".lock", "engines/.lock", ".sem-clip-new-0123abcd/model.onnx"])
def test_a_name_that_goes_with_the_next_writer_is_refused(path: str, name: str) -> None:
    assert faults_after(path, name) == (
        f'{named(path)} must not be "{name}", a name for the manifest and those who write it',
    )


def test_a_newer_bundle_asks_for_a_newer_reader_and_says_nothing_else() -> None:
    document = json.loads(GOLDEN) | {"version": 3, "new": "entry"}
    del document["encoder"]
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert caught.value.faults == ("has format version 3, this reader knows up to 2: update sem-clip",)


def test_another_format_is_refused_and_nothing_else_is_said() -> None:
    assert faults_after("format", "sem-clip-recipe") == ('says format "sem-clip-recipe", expected "sem-clip-bundle"',)


def test_all_faults_are_listed_at_once() -> None:
    document = json.loads(GOLDEN)
    for path, value in (
        ("encoder.layers", "4"),
        ("encoder.std", MISSING),
        ("artifacts.0.file", "../x"),
        ("artifacts.0.extra", 1),
        ("recipe.sha256", "short"),
        ("smoothing_px", True),
        ("colour", 1),
    ):
        edit(document, path, value)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert sorted(caught.value.faults) == [
        "manifest.artifacts[0].extra is not known to this version",
        'manifest.artifacts[0].file must be a relative path inside the bundle, not "../x"',
        "manifest.colour is not known to this version",
        'manifest.encoder.layers must be a whole number, not the string "4"',
        "manifest.encoder.std is missing",
        "manifest.recipe.sha256 must be a SHA-256 in lower-case hexadecimal",
        "manifest.smoothing_px must be a finite number, not bool True",
    ]
    assert str(caught.value).startswith("manifest.json: 7 faults:\n  - ")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0\0\0\0",
        b"{",
        b"not JSON",
        b"\xff\xfe\xfd",
        b'{"format": "\xe9"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"version": ' + b"9" * 5000 + b"}",
        GOLDEN.encode()[:-10],
    ],
    ids=["empty", "zeros", "open", "words", "bytes", "latin-1", "deep list", "deep object", "long number", "cut"],
)
def test_text_that_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: is not readable JSON \("):
        Manifest.from_json(text)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"manifest"', "NaN"])
def test_json_that_is_not_an_object_is_one_fault(text: str) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text)
    (fault,) = caught.value.faults
    assert fault.startswith("manifest must be an object, not ")


def test_no_damaged_byte_raises_anything_but_bundle_errors() -> None:
    content = GOLDEN.encode()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        try:
            Manifest.from_json(bytes(damaged))
        except BundleError:
            refused += 1
    assert refused > 150  # the others hit spaces, notes, or the digit of a number


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
    assert str(caught.value) == f"{tmp_path / 'manifest.json'}: does not exist"


def test_a_manifest_larger_than_any_manifest_is_not_read(fake_bundle: Path) -> None:
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

    monkeypatch.setattr(manifest_module, "sha256_of", deny)
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
    digest = manifest_module.sha256_of(folder / "recipe.safetensors")
    (folder / "manifest.json").write_text(replace(manifest, recipe_sha256=digest).to_json())
    with pytest.raises(RecipeError, match=r"recipe\.safetensors: is not a readable safetensors file"):
        load_bundle(folder)


# Another recipe


def test_a_replaced_recipe_is_the_bundles_own_and_the_rest_stays(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    old, _ = load_bundle(bundle)
    recipe = make_recipe(defect_threshold=0.9)
    replace_recipe(bundle, recipe)
    manifest, found = load_bundle(bundle, verify_all=True)
    assert found.to_bytes() == recipe.to_bytes()
    assert replace(manifest, recipe_file="", recipe_sha256="") == replace(old, recipe_file="", recipe_sha256="")
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", "model.onnx", manifest.recipe_file}
    before = manifest
    replace_recipe(bundle, recipe)
    assert load_bundle(bundle)[0] == before
    replace_recipe(bundle, make_recipe())
    assert len(list(bundle.iterdir())) == 3


@pytest.mark.parametrize("step", [0, 1, 2], ids=["new recipe", "manifest", "old recipe"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("gone", [True, False], ids=["killed", "interrupted"])
def test_a_process_that_dies_at_any_step_leaves_a_whole_bundle(
    step: int, when: str, gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, nothing is tidied up after it; the next writer does that."""

    class Died(BaseException):
        """As if the process were gone."""

    bundle, old, new = write_bundle(tmp_path / "bundle"), make_recipe(), make_recipe(defect_threshold=0.9)
    steps: list[str] = []

    def dying(act: Callable[..., object]) -> Callable[..., object]:
        def run(path: Path, *arguments: object, **options: object) -> object:
            if path.name == ".lock":
                return act(path, *arguments, **options)
            steps.append(act.__name__)
            if len(steps) == step + 1 and when == "before":
                raise Died
            done = act(path, *arguments, **options)
            if len(steps) == step + 1:
                raise Died
            return done

        return run

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        if gone and step < 2:  # the last step is itself the tidying up
            patch.setattr(changing, "_clear", lambda *_: None)
        with pytest.raises(Died):
            replace_recipe(bundle, new)
    assert steps[step] == ("rename", "replace", "unlink")[step]
    expected = old if step == 0 or (step, when) == (1, "before") else new
    _, found = load_bundle(bundle, verify_all=True)
    assert found.to_bytes() == expected.to_bytes()
    replace_recipe(bundle, make_recipe(defect_threshold=0.8))
    manifest, _ = load_bundle(bundle, verify_all=True)
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", *manifest.files()}


def test_a_recipe_of_another_encoder_or_a_faulty_bundle_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(RecipeError, match="was taught on encoder"):
        replace_recipe(bundle, make_recipe(encoder_id="ef" * 32))
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        replace_recipe(bundle, make_recipe(defect_threshold=0.9))


def test_a_link_that_leads_out_of_the_bundle_is_refused(fake_bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (fake_bundle / "model.onnx").rename(outside)
    (fake_bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="onnx is a link that leads out of the bundle"):
        load_bundle(fake_bundle)


def test_a_name_that_stands_twice_is_a_fault(fake_bundle: Path) -> None:
    path = fake_bundle / "manifest.json"
    path.write_text(path.read_text().replace('"smoothing_px"', '"smoothing_px": 900, "smoothing_px"'))
    with pytest.raises(BundleError, match='"smoothing_px" appears twice'):
        load_bundle(fake_bundle)


def test_a_report_with_a_number_that_json_has_not_is_a_fault(fake_bundle: Path) -> None:
    """It could be read, and then never be written again."""
    path = fake_bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["artifacts"][0]["parity"] = {"max_abs_probability": float("nan")}
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"artifacts\[0\].parity holds a number that is not finite"):
        load_bundle(fake_bundle)


def test_a_recipe_that_was_replaced_meanwhile_is_not_overwritten(fake_bundle: Path) -> None:
    _, mine = load_bundle(fake_bundle)
    theirs = make_recipe(defect_threshold=0.7)
    replace_recipe(fake_bundle, theirs, instead_of=mine)
    before = {path.name: path.read_bytes() for path in fake_bundle.iterdir()}
    with pytest.raises(BundleError, match="replaced by another process meanwhile; nothing was written"):
        replace_recipe(fake_bundle, make_recipe(defect_threshold=0.8), instead_of=mine)
    assert {path.name: path.read_bytes() for path in fake_bundle.iterdir()} == before


def test_a_reader_survives_a_recipe_that_is_replaced_under_it(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, readings = Manifest.from_json, []

    def replaced_just_then(content: bytes, where: str = "") -> Manifest:
        readings.append(content)
        if len(readings) == 1:
            manifest = parse(content)
            monkeypatch.setattr(Manifest, "from_json", parse)
            replace_recipe(fake_bundle, make_recipe(defect_threshold=0.7))
            monkeypatch.setattr(Manifest, "from_json", replaced_just_then)
            return manifest
        return parse(content)

    monkeypatch.setattr(Manifest, "from_json", replaced_just_then)
    assert load_bundle(fake_bundle)[1].operating_point.defect_threshold == 0.7
    assert len(readings) == 2


def test_an_artifact_is_read_once_and_whole_or_not_at_all(fake_bundle: Path) -> None:
    artifact = load_bundle(fake_bundle)[0].artifacts[0]
    assert read_artifact(fake_bundle, artifact) == (fake_bundle / "model.onnx").read_bytes()
    with pytest.raises(BundleError, match="does not have the SHA-256"):
        read_artifact(fake_bundle, replace(artifact, sha256="0" * 64))
    (fake_bundle / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="copy the bundle again"):
        read_artifact(fake_bundle, artifact)


# What entries have to do with each other


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"image_size": [1, 1]}, "image_size must be grid x patch_size, [64, 64], not [1, 1]"),
        ({"patch_size": [8, 16]}, "image_size must be grid x patch_size, [32, 64], not [64, 64]"),
        ({"grid": [4, 5]}, "image_size must be grid x patch_size, [64, 80], not [64, 64]"),
        (
            {"grid": [1024, 1024], "image_size": [16384, 16384]},
            "image_size must not be more than 4,194,304 pixels, not 16384 x 16384",
        ),
        ({"input_size": [16384, 16384]}, "input_size must not be more than 100,000,000 pixels, not 16384 x 16384"),
        ({"levels": [1, 2, 4, 3]}, "levels must rise, not [1, 2, 4, 3]"),
        ({"levels": [1, 2, 2, 4]}, "levels must rise, not [1, 2, 2, 4]"),
        ({"levels": [1, 2, 3, 5]}, "levels must not go beyond layer 4, the last, not [1, 2, 3, 5]"),
        ({"layers": 3}, "levels must not go beyond layer 3, the last, not [1, 2, 3, 4]"),
        ({"heads": 3}, "heads must divide the width of 32, not 3"),
        ({"features": 384}, "features must be 3 x levels x width + 1, 385, not 384"),
        ({"std": [0.25, 0, 0.25]}, "std must be positive, not [0.25, 0.0, 0.25]"),
        ({"std": [0.25, -1, 0.25]}, "std must be positive, not [0.25, -1.0, 0.25]"),
    ],
)
def test_a_geometry_that_contradicts_itself_is_refused(changes: dict[str, Any], fault: str) -> None:
    document = json.loads(GOLDEN)
    document["encoder"] |= changes
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert caught.value.faults == (f"manifest.encoder.{fault}",)


def test_smoothing_wider_than_the_picture_is_refused() -> None:
    says = "manifest.smoothing_px must not be more than 8, an eighth of the image's shorter side"
    assert faults_after("smoothing_px", 8.1) == (says,)


@pytest.mark.parametrize("twin", ["engines/model.onnx", "recipe.safetensors"])
def test_a_file_that_is_named_twice_is_refused(twin: str) -> None:
    document = json.loads(GOLDEN)
    document["artifacts"].append(document["artifacts"][0] | {"file": twin})
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert caught.value.faults == (f"manifest.artifacts must name every file once, not {twin} again",)


# Bounds


def many(count: int) -> dict[str, int]:
    return {f"key {number}": number for number in range(count)}


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("artifacts", [1] * 65, "manifest.artifacts must hold at most 64 entries, not 65"),
        ("notes", ["x"] * 101, "manifest.notes must hold at most 100 entries, not 101"),
        ("notes", ["x" * 5000], "manifest.notes must not hold texts of more than 4,096 characters"),
        ("encoder.weights", "x" * 5000, "manifest.encoder.weights must not be longer than 4,096 characters, not 5,000"),
        ("artifacts.0.operators", {"Add": 2**63}, "manifest.artifacts[0].operators holds a number that is larger than"),
        ("artifacts.0.parity", {"a": [{"b": 10**400}]}, "manifest.artifacts[0].parity holds a number that is larger"),
        ("tools", {"python": 3}, "manifest.tools must give a text for each tool"),
        ("artifacts.0.target", {"a": [1] * 600_000}, "is not readable JSON (it holds more than 500,000 values)"),
        ("tools", many(200_000), "manifest.tools must give a text for each tool"),
        ("artifacts.0.parity", {"a": nested(40)}, "is not readable JSON (it is nested deeper than 32)"),
        ("notes", ["\ud800"], "is not readable JSON (a text holds half a surrogate pair)"),
        ("tools", {"\udfff": "1"}, "is not readable JSON (a text holds half a surrogate pair)"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_no_manifest_needs_is_refused(path: str, value: object, fault: str) -> None:
    assert any(found.startswith(fault) for found in faults_after(path, value))


@pytest.mark.parametrize(
    "text",
    [
        '{"artifacts": [' + "1," * 1_900_000 + "1]}",
        "{" + ",".join(f'"a{number}": 1' for number in range(300_000)) + "}",
        "{" + '"a": 1,' * 500_000 + '"a": 1}',
        "{" + ",".join(f'"a{number % 100_000}": 1' for number in range(300_000)) + "}",
        '{"a": ' + "9" * 4_000_000 + "}",
        '{"a": "' + "\\ud83d" * 600_000 + '"}',
        "[" + "{}," * 1_300_000 + "{}]",
        '{"' + "x" * 4_000_000 + '": 1}',
    ],
    ids=["artifacts", "keys", "equal keys", "pairs of keys", "digits", "surrogates", "objects", "a long key"],
)
def test_four_megabytes_of_anything_are_refused_in_time_and_in_few_words(text: str) -> None:
    begun = time.monotonic()
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text)
    assert time.monotonic() - begun < 20
    assert len(str(caught.value)) < 20_000


def test_so_many_faults_are_told_and_the_others_counted() -> None:
    document = json.loads(GOLDEN) | many(250)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert len(caught.value.faults) == 101
    assert caught.value.faults[-1] == "and 150 more"


# Readers and writers at once


def swap_artifact(bundle: Path, content: bytes) -> None:
    """Another process replaces the artifact, and the manifest with it."""
    document = json.loads((bundle / "manifest.json").read_text())
    (artifact,) = document["artifacts"]
    old = bundle / artifact["file"]
    artifact |= {"file": f"{hashlib.sha256(content).hexdigest()[:8]}.onnx", "bytes": len(content)}
    artifact["sha256"] = hashlib.sha256(content).hexdigest()
    (bundle / artifact["file"]).write_bytes(content)
    write_atomically(bundle / "manifest.json", json.dumps(document).encode())
    old.unlink()


def test_a_bundle_that_is_replaced_while_it_is_opened_is_opened_as_it_is_then(fake_bundle: Path) -> None:
    """From the manifest to the last artifact: all of the old one or all of the new one, and no error."""
    calls: list[Manifest] = []

    def open_artifact(manifest: Manifest, _: object) -> bytes:
        calls.append(manifest)
        if len(calls) < 4:
            swap_artifact(fake_bundle, b"content %d" % len(calls))
        return read_artifact(fake_bundle, manifest.artifacts[0])

    assert use_bundle(fake_bundle, open_artifact) == b"content 3"
    assert len(calls) == 4


def test_an_artifact_that_is_wrong_and_stays_so_is_an_error_at_once(fake_bundle: Path) -> None:
    calls: list[Manifest] = []

    def open_artifact(manifest: Manifest, _: object) -> bytes:
        calls.append(manifest)
        return read_artifact(fake_bundle, replace(manifest.artifacts[0], sha256="0" * 64))

    with pytest.raises(BundleError, match="does not have the SHA-256"):
        use_bundle(fake_bundle, open_artifact)
    assert len(calls) == 1


def test_a_bundle_that_never_rests_is_an_error_after_some_time(fake_bundle: Path) -> None:
    calls: list[Manifest] = []

    def open_artifact(manifest: Manifest, _: object) -> bytes:
        calls.append(manifest)
        swap_artifact(fake_bundle, b"content %d" % len(calls))
        return read_artifact(fake_bundle, manifest.artifacts[0])

    with pytest.raises(BundleError, match="is missing"):
        use_bundle(fake_bundle, open_artifact)
    assert len(calls) == MAX_READINGS


WRITE = """
import sys, time
sys.path[:0] = [sys.argv[2], str(__import__("pathlib").Path(sys.argv[2]).parent)]
from pathlib import Path
from conftest import make_recipe
from runtime.manifest import replace_recipe
end = time.monotonic() + 5
while time.monotonic() < end:
    for threshold in (0.25, 0.75):
        replace_recipe(Path(sys.argv[1]), make_recipe(defect_threshold=threshold, novelty_threshold=threshold))
"""


def test_a_reader_sees_old_or_new_and_no_error_while_others_write(fake_bundle: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(fake_bundle), str(TESTS)]
    writers = [subprocess.Popen(command) for _ in range(2)]
    read = set()
    while any(writer.poll() is None for writer in writers):
        _, recipe = load_bundle(fake_bundle, verify_all=True)
        point = recipe.operating_point
        read.add((point.defect_threshold, point.novelty_threshold))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read <= {(0.5, None), (0.25, 0.25), (0.75, 0.75)}
    assert {path.name for path in fake_bundle.iterdir()} == {"manifest.json", *load_bundle(fake_bundle)[0].files()}
