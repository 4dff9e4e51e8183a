"""The manifest as text: what it holds, what it refuses, and that every fault is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import make_encoder
from manifests import ALL_PATHS, GOLDEN, MISSING, edit, faults_after, golden_manifest, named

from runtime.errors import BundleError
from runtime.manifest import (
    Manifest,
)


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


def test_a_newer_bundle_asks_for_a_newer_reader_as_the_only_fault() -> None:
    document = json.loads(GOLDEN) | {"version": 3, "new": "entry"}
    del document["encoder"]
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    assert caught.value.faults == ("has format version 3, this reader knows up to 2: update sem-clip",)


def test_another_format_is_the_only_fault() -> None:
    assert faults_after("format", "sem-clip-recipe") == (
        'has the format "sem-clip-recipe", expected "sem-clip-bundle"',
    )


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
