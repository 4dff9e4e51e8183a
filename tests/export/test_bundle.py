"""export.bundle: what identifies an encoder, what may be replaced, and adding to a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_recipe
from contents import content_of, names_in

from export import bundle
from export.bundle import describe_encoder, refuse_existing
from export.errors import OutputExistsError
from export.model.checkpoint import LoadedModel, load_model
from export.model.dual_path import DualPathEncoder
from export.model.graph import SemClipGraph
from runtime.errors import BundleError, PredictorError
from runtime.manifest import Encoder, Manifest, load_bundle, replace_recipe


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("toy", random_seed=0)


def described(model: LoadedModel, *, redundancy: str = "cls_weight", size: tuple[int, int] | None = None) -> Encoder:
    return describe_encoder(model, SemClipGraph(model.encoder(), redundancy=redundancy, input_size=size))


def test_record_describes_the_encoder(model: LoadedModel) -> None:
    encoder = described(model)
    assert (encoder.architecture, encoder.weights, encoder.trained) == ("toy", "random, seed 0", False)
    assert (encoder.image_size, encoder.input_size, encoder.grid) == ((64, 64), (64, 64), (4, 4))
    assert (encoder.layers, encoder.heads, encoder.levels) == (4, 2, (1, 2, 3, 4))
    assert (encoder.width, encoder.text_dim, encoder.features) == (32, 24, 385)
    assert encoder.checkpoint_sha256 == model.sha256
    assert described(load_model("toy", random_seed=0)) == encoder


def test_id_changes_with_everything_that_changes_features(model: LoadedModel) -> None:
    two_levels = SemClipGraph(DualPathEncoder(model.clip.visual, mean=model.mean, std=model.std, levels=2))
    records = [
        described(model),
        described(load_model("toy", random_seed=1)),
        described(model, redundancy="class_mean"),
        described(replace(model, mean=(0.5, 0.5, 0.5))),
        described(replace(model, std=(0.5, 0.5, 0.5))),
        describe_encoder(model, two_levels),
    ]
    assert len({record.id for record in records}) == len(records)


def test_id_is_the_same_with_a_resize_in_the_graph(model: LoadedModel) -> None:
    resized = described(model, size=(480, 640))
    assert resized.input_size == (480, 640)
    assert resized.resizes_in_graph
    assert resized.id == described(model).id


def test_id_is_the_same_without_the_v_path(model: LoadedModel) -> None:
    graph = SemClipGraph(model.encoder(), redundancy="class_mean", input_size=(480, 640))
    whole, without = describe_encoder(model, graph), describe_encoder(model, graph.without_value_path())
    assert whole.value_path
    assert without == replace(whole, value_path=False)


@pytest.mark.parametrize("force", [False, True])
def test_a_new_or_empty_folder_may_be_written(tmp_path: Path, force: bool) -> None:
    refuse_existing(tmp_path / "new", force=force)
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty", force=force)


def test_a_bundle_is_replaced_only_with_force(fake_bundle: Path) -> None:
    with pytest.raises(OutputExistsError, match="add --force to replace it"):
        refuse_existing(fake_bundle, force=False)
    refuse_existing(fake_bundle, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_another_folder_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    message = "is not a bundle" if force else "add --force"
    with pytest.raises(OutputExistsError, match=message):
        refuse_existing(tmp_path, force=force)


@pytest.mark.parametrize("force", [False, True])
def test_files_and_links_are_never_replaced(tmp_path: Path, fake_bundle: Path, force: bool) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(fake_bundle)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(OutputExistsError, match="exists and is not a folder"):
            refuse_existing(tmp_path / name, force=force)


def test_a_bundle_behind_a_link_is_changed_in_place(fake_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(fake_bundle)
    with bundle.changing_bundle(link) as (folder, manifest):
        bundle.write_manifest(folder, replace(manifest, notes=("changed",)))
    assert link.is_symlink()
    assert load_bundle(fake_bundle)[0].notes == ("changed",)
    assert names_in(tmp_path) == ["bundle", "current"]


def add_note(folder: Path, manifest: Manifest) -> None:
    bundle.write_manifest(folder, replace(manifest, notes=("mine",)))


def test_a_recipe_replaced_meanwhile_is_kept(fake_bundle: Path) -> None:
    """The lock stops other processes only; changes of this one and of programs without locks must not be lost."""
    with bundle.changing_bundle(fake_bundle) as (folder, manifest):
        replace_recipe(fake_bundle, make_recipe(defect_threshold=0.7))
        add_note(folder, manifest)
    changed, recipe = load_bundle(fake_bundle, verify_all=True)
    assert (changed.notes, recipe.operating_point.defect_threshold) == (("mine",), 0.7)
    assert names_in(fake_bundle) == sorted(["manifest.json", *changed.files()])


def test_other_changes_made_meanwhile_are_not_overwritten(fake_bundle: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(BundleError, match="was changed by another process meanwhile; nothing was written"),
        bundle.changing_bundle(fake_bundle) as (folder, manifest),
    ):
        bundle.write_manifest(fake_bundle, replace(manifest, notes=("theirs",)))
        add_note(folder, manifest)
    assert load_bundle(fake_bundle)[0].notes == ("theirs",)
    assert names_in(fake_bundle) == ["manifest.json", "model.onnx", "recipe.safetensors"]


def test_links_and_files_outside_the_manifest_stay(fake_bundle: Path) -> None:
    (fake_bundle / "recipes").mkdir()
    (fake_bundle / "recipe.safetensors").rename(fake_bundle / "recipes/v1.safetensors")
    (fake_bundle / "recipe.safetensors").symlink_to("recipes/v1.safetensors")
    (fake_bundle / "metal2.safetensors").write_bytes(make_recipe().to_bytes())
    (fake_bundle / "notes").mkdir()
    (fake_bundle / "notes/lot7.txt").write_text("mine")
    before = {path: path.lstat().st_ino for path in sorted(fake_bundle.rglob("*")) if path.name != "manifest.json"}
    with bundle.changing_bundle(fake_bundle) as (folder, manifest):
        add_note(folder, manifest)
    assert load_bundle(fake_bundle, verify_all=True)[0].notes == ("mine",)
    after = {path: path.lstat().st_ino for path in sorted(fake_bundle.rglob("*")) if path.name != "manifest.json"}
    assert after == before


def test_a_new_file_never_takes_an_existing_name(fake_bundle: Path) -> None:
    """Neither that of the replaced artifact, which readers may be opening, nor that of a user's file."""
    (fake_bundle / "extra.onnx").write_bytes(b"a user's")
    with bundle.changing_bundle(fake_bundle) as (folder, manifest):
        artifacts = []
        for name in ("model.onnx", "extra.onnx"):
            (folder / name).write_bytes(b"new " + name.encode())
            artifacts.append(bundle.record_artifact(folder, name, "fp32", {}))
        bundle.write_manifest(folder, replace(manifest, artifacts=tuple(artifacts)))
    changed, _ = load_bundle(fake_bundle, verify_all=True)
    names = [artifact.file for artifact in changed.artifacts]
    assert names == [f"model-{artifacts[0].sha256[:12]}.onnx", f"extra-{artifacts[1].sha256[:12]}.onnx"]
    assert names_in(fake_bundle) == sorted([*names, "extra.onnx", "manifest.json", "recipe.safetensors"])
    assert (fake_bundle / "extra.onnx").read_bytes() == b"a user's"


def test_an_equal_file_keeps_its_name_unless_the_old_one_is_damaged(fake_bundle: Path) -> None:
    content = (fake_bundle / "model.onnx").read_bytes()
    for damaged in (False, True):
        if damaged:
            (fake_bundle / "model.onnx").write_bytes(bytes(len(content)))
        with bundle.changing_bundle(fake_bundle) as (folder, manifest):
            (folder / "model.onnx").write_bytes(content)
            add_note(folder, manifest)
        changed, _ = load_bundle(fake_bundle, verify_all=True)
        assert (changed.artifacts[0].file == "model.onnx") == (not damaged)
        assert names_in(fake_bundle) == sorted(["manifest.json", *changed.files()])


def test_a_manifest_that_readers_refuse_is_not_written(fake_bundle: Path) -> None:
    before = content_of(fake_bundle)
    with (
        pytest.raises(BundleError, match="must hold at most 100 entries"),
        bundle.changing_bundle(fake_bundle) as (folder, manifest),
    ):
        bundle.write_manifest(folder, replace(manifest, notes=("note",) * 101))
    assert content_of(fake_bundle) == before


def test_a_folder_that_is_no_bundle_stays_unchanged(tmp_path: Path) -> None:
    with pytest.raises(BundleError), bundle.changing_bundle(tmp_path):
        raise AssertionError("the block must not run")
    assert names_in(tmp_path) == []


def test_a_bundle_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictorError, match="nothing can be written below it"):
        refuse_existing(tmp_path / "file" / "bundle", force=True)


def test_id_depends_on_the_activation() -> None:
    model = load_model("toy", random_seed=0)
    graph = SemClipGraph(model.encoder())
    quick = replace(model, config={**model.config, "quick_gelu": True})
    assert describe_encoder(quick, graph).id != describe_encoder(model, graph).id
    same = replace(model, config={**model.config, "quick_gelu": False})
    assert describe_encoder(same, graph).id == describe_encoder(model, graph).id, "ids of existing bundles stay"
