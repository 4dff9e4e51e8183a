"""export.bundle: what identifies an encoder, and that a bundle is replaced as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, with_scalars, write_bundle
from places import TESTS

from calibration.dataset import load_dataset
from export import bundle, teach
from export.artifacts.parity import artifact_outputs, torch_outputs
from export.bundle import describe_encoder, refuse_existing, writing_bundle
from export.errors import OutputExistsError, ParityError
from export.model.checkpoint import LoadedModel, load_model
from export.model.dual_path import DualPathEncoder
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.teach import build_bundle, keeps_value_path, parity_samples
from runtime import Predictor
from runtime.errors import BundleError, PredictorError, RecipeError
from runtime.files import sha256_of
from runtime.manifest import Encoder, Manifest, load_bundle, replace_recipe


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("toy", random_seed=0)


def described(model: LoadedModel, *, redundancy: str = "cls_weight", size: tuple[int, int] | None = None) -> Encoder:
    return describe_encoder(model, SemClipGraph(model.encoder(), redundancy=redundancy, input_size=size))


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- the encoder's record --------------------------------------------------------------------------------------------


def test_record_of_an_encoder(model: LoadedModel) -> None:
    encoder = described(model)
    assert (encoder.architecture, encoder.weights, encoder.trained) == ("toy", "random, seed 0", False)
    assert (encoder.image_size, encoder.input_size, encoder.grid) == ((64, 64), (64, 64), (4, 4))
    assert (encoder.layers, encoder.heads, encoder.levels) == (4, 2, (1, 2, 3, 4))
    assert (encoder.width, encoder.text_dim, encoder.features) == (32, 24, 385)
    assert encoder.checkpoint_sha256 == model.sha256
    assert described(load_model("toy", random_seed=0)) == encoder


def test_everything_that_changes_features_changes_the_id(model: LoadedModel) -> None:
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


def test_a_resize_in_the_graph_leaves_the_id_so_that_recipes_fit_both(model: LoadedModel) -> None:
    resized = described(model, size=(480, 640))
    assert resized.input_size == (480, 640)
    assert resized.resizes_in_graph
    assert resized.id == described(model).id


def test_the_v_path_is_in_the_record_and_not_in_the_id_so_that_recipes_fit_both(model: LoadedModel) -> None:
    graph = SemClipGraph(model.encoder(), redundancy="class_mean", input_size=(480, 640))
    whole, without = describe_encoder(model, graph), describe_encoder(model, graph.without_value_path())
    assert whole.value_path
    assert without == replace(whole, value_path=False)


# ---- what may be replaced --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_a_new_or_empty_place_is_free(tmp_path: Path, force: bool) -> None:
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
    says = "is not a bundle" if force else "add --force"
    with pytest.raises(OutputExistsError, match=says):
        refuse_existing(tmp_path, force=force)


@pytest.mark.parametrize("force", [False, True])
def test_files_and_links_are_never_replaced(tmp_path: Path, fake_bundle: Path, force: bool) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(fake_bundle)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(OutputExistsError, match="exists and is not a folder"):
            refuse_existing(tmp_path / name, force=force)


# ---- writing a whole bundle ------------------------------------------------------------------------------------------


def write_new(folder: Path) -> None:
    """A bundle that differs from the one of `fake_bundle`."""
    encoder = make_encoder(architecture="new")
    write_bundle(folder, encoder=encoder, recipe=make_recipe(("good", "new"), encoder=encoder))


def test_a_finished_bundle_takes_the_place_of_the_old_one(fake_bundle: Path) -> None:
    (fake_bundle / "engines").mkdir()
    (fake_bundle / "engines/mine.txt").touch()
    with writing_bundle(fake_bundle, force=True) as working:
        assert names_in(working) == []
        write_new(working)
        assert load_bundle(fake_bundle)[1].classes != ("good", "new")
    manifest, recipe = load_bundle(fake_bundle, verify_all=True)
    assert recipe.classes == ("good", "new")
    assert names_in(fake_bundle) == sorted(["manifest.json", *manifest.files(), "engines"])
    assert names_in(fake_bundle / "engines") == ["mine.txt"]
    assert names_in(fake_bundle.parent) == ["bundle"]


@pytest.mark.parametrize("before", ["absent", "empty"])
def test_a_folder_is_made_with_its_parents(tmp_path: Path, before: str) -> None:
    target = tmp_path / "a/b/bundle"
    if before == "empty":
        target.mkdir(parents=True)
    with writing_bundle(target, force=False) as working:
        write_new(working)
    load_bundle(target, verify_all=True)
    assert names_in(target) == ["manifest.json", "model.onnx", "recipe.safetensors"]
    assert names_in(target.parent) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_the_old_bundle_and_nothing_else(fake_bundle: Path, error: type[BaseException]) -> None:
    def write_half(target: Path) -> None:
        with writing_bundle(target, force=True) as working:
            (working / "model.onnx").write_text("half")
            raise error

    before = content_of(fake_bundle)
    with pytest.raises(error):
        write_half(fake_bundle)
    assert content_of(fake_bundle) == before
    assert names_in(fake_bundle.parent) == ["bundle"]


def test_an_error_inside_leaves_no_folder_where_none_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), writing_bundle(tmp_path / "bundle", force=False):
        raise ValueError("stop")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("step", ["rename", "replace"])
def test_when_the_disk_is_full_the_bundle_is_as_it_was(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before, real = content_of(fake_bundle), getattr(Path, step)

    def failing(self: Path, target: Path) -> Path:
        if target.name == "recipe.safetensors" or target.name.startswith("recipe-") or step == "replace":
            raise OSError(28, "No space left on device")
        moved: Path = real(self, target)
        return moved

    monkeypatch.setattr(Path, step, failing)
    with (
        pytest.raises(BundleError, match=r"cannot be written .No space left"),
        writing_bundle(fake_bundle, force=True) as working,
    ):
        write_new(working)
    assert content_of(fake_bundle) == before


def test_what_came_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """`refuse_existing` speaks before the work; another process may have built a bundle there since."""
    write_new(tmp_path / "bundle")
    with pytest.raises(OutputExistsError, match="add --force"), writing_bundle(tmp_path / "bundle", force=False):
        raise AssertionError("nothing is made")


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = [sys.argv[2], str(__import__("pathlib").Path(sys.argv[2]).parent)]
from conftest import make_encoder, make_recipe, with_scalars, write_bundle
from export import bundle
from runtime import changing

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def write(folder):
    encoder = make_encoder(architecture="new")
    write_bundle(folder, encoder=encoder, recipe=make_recipe(("good", "new"), encoder=encoder))

def at_the_manifest(self, target, real=pathlib.Path.replace):
    if moment == "after_the_manifest":
        real(self, target)
    die()

for moment in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        with bundle.writing_bundle(pathlib.Path(sys.argv[1]) / moment / "bundle", force=True) as working:
            if moment == "while_writing":
                (working / "manifest.json").write_text("{")
                die()
            write(working)
            if moment == "before_the_files":
                bundle._sync = die
            elif moment == "among_the_files":
                changing.sync_folder = lambda folder: None if folder == working else die()
            else:
                pathlib.Path.replace = at_the_manifest
    print(moment, os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
@pytest.mark.parametrize("there", [True, False], ids=["over a bundle", "new"])
def test_a_process_killed_at_any_moment_leaves_a_whole_bundle_or_none(tmp_path: Path, there: bool) -> None:
    old = "toy" if there else None
    survivors = {
        "while_writing": old,
        "before_the_files": old,
        "among_the_files": old,
        "before_the_manifest": old,
        "after_the_manifest": "new",
    }
    for moment in survivors:
        if there:
            write_bundle(tmp_path / moment / "bundle")
            (tmp_path / moment / "bundle/notes.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(TESTS), *survivors],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == [word for moment in survivors for word in (moment, str(int(signal.SIGKILL)))]
    for moment, architecture in survivors.items():
        target = tmp_path / moment / "bundle"
        if architecture is None:
            with pytest.raises(BundleError):
                load_bundle(target)
            refuse_existing(target, force=False)  # what is left is a writer's own
        else:
            assert load_bundle(target, verify_all=True)[0].encoder.architecture == architecture, moment
        # What the dead process left does not stand in the way of the next one, which removes it.
        with writing_bundle(target, force=True) as working:
            write_new(working)
        manifest, _ = load_bundle(target, verify_all=True)
        assert manifest.encoder.architecture == "new"
        assert names_in(target) == sorted(["manifest.json", *manifest.files(), *(["notes.txt"] if there else [])])
        assert names_in(target.parent) == ["bundle"]


# ---- a really built bundle -------------------------------------------------------------------------------------------


def test_a_built_bundle_holds_what_its_manifest_says_and_nothing_else(toy_bundle: Path, toy_frames: Path) -> None:
    manifest, recipe = load_bundle(toy_bundle, verify_all=True)
    models = ["model.fp16.onnx", "model.onnx"]
    assert names_in(toy_bundle) == ["golden.safetensors", "manifest.json", *models, "recipe.safetensors"]
    assert names_in(toy_bundle.parent) == ["bundle"]
    assert manifest.recipe_file == "recipe.safetensors"
    assert manifest.smoothing_px == pytest.approx(6 * 64 / 240)
    assert {"python", "torch", "onnx", "numpy"} <= set(manifest.tools)
    assert any("UNTRAINED" in note for note in manifest.notes)
    assert recipe.encoder_id == manifest.encoder.id
    assert len(recipe.teaching["supports"]) == 14
    assert all(path.startswith("images/") for path in recipe.teaching["supports"])
    hashes = [sha256_of(toy_frames / path) for path in recipe.teaching["supports"]]
    assert recipe.teaching["support_sha256"] == hashes
    assert recipe.support_features.shape == (14, manifest.encoder.features)
    assert recipe.operating_point.confidence_thresholds == dict.fromkeys(recipe.classes, 0.0)
    assert recipe.calibration == {}
    assert set(recipe.teaching["prompts"]) == set(recipe.classes)


def test_the_novelty_of_a_support_is_0(toy_bundle: Path, toy_frames: Path) -> None:
    """What teaching stored as a support's features is what the exported graph gives for that frame."""
    recipe = load_bundle(toy_bundle)[1]
    supports = set(recipe.teaching["supports"])
    with Predictor(toy_bundle) as predictor:
        for path in sorted((toy_frames / "images").rglob("*.png")):
            novelty = predictor(path).novelty
            assert (novelty < 1e-5) == (path.relative_to(toy_frames).as_posix() in supports)


def test_the_record_in_a_built_bundle_is_that_of_its_encoder(toy_bundle: Path, model: LoadedModel) -> None:
    assert load_bundle(toy_bundle)[0].encoder == replace(described(model), value_path=False)


@pytest.mark.parametrize(
    ("has_text", "trained", "lambda_v", "kept"),
    [
        (True, True, 0.0, True),  # another recipe may use it
        (True, True, 0.5, True),
        (True, False, 0.0, False),
        (False, True, 0.0, False),
        (False, True, 1.0, True),  # the paper's method on a tower without text
        (True, False, 0.25, True),
    ],
)
def test_the_v_path_is_kept_where_the_text_is_aligned_or_the_recipe_reads_it(
    model: LoadedModel, toy_bundle: Path, has_text: bool, trained: bool, lambda_v: float, kept: bool
) -> None:
    recipe = with_scalars(load_bundle(toy_bundle)[1], lambda_v=lambda_v)
    assert keeps_value_path(replace(model, has_text=has_text, trained=trained), recipe) is kept


def test_a_bundle_has_the_v_path_that_its_recipe_reads_and_answers_as_torch_with_both_paths(
    model: LoadedModel, either_bundle: Path
) -> None:
    manifest, recipe = load_bundle(either_bundle)
    assert manifest.encoder.value_path is (recipe.lambda_v > 0)
    assert manifest.encoder.id == described(model).id
    assert {a.operators["Attention"] for a in manifest.artifacts} == {8 if recipe.lambda_v else 4}
    fp32 = next(a for a in manifest.artifacts if a.precision == "fp32")
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    found = artifact_outputs(either_bundle, fp32, manifest.encoder, frames, recipe)
    expected = torch_outputs(SemClipGraph(model.encoder()), frames, recipe)
    np.testing.assert_allclose(found.defect_map, expected.defect_map, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_a_recipe_of_the_graph_without_the_v_path_runs_on_the_one_with_it_and_not_the_other_way(
    toy_bundle: Path, dual_bundle: Path
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    vanilla, dual = load_bundle(toy_bundle)[1], load_bundle(dual_bundle)[1]
    with Predictor(toy_bundle, threads=1) as predictor, Predictor(dual_bundle, recipe=vanilla, threads=1) as whole:
        np.testing.assert_allclose(whole(frame).defect_map(), predictor(frame).defect_map(), atol=1e-5)
        with pytest.raises(RecipeError, match="has lambda_v 1, and this encoder's graph leaves the V path out"):
            predictor.use(dual)


def test_a_graph_without_the_v_path_is_not_exported_for_a_recipe_that_reads_it(
    model: LoadedModel, toy_bundle: Path, toy_frames: Path, tmp_path: Path
) -> None:
    recipe = with_scalars(load_bundle(toy_bundle)[1], lambda_v=1.0)
    graph = SemClipGraph(model.encoder()).without_value_path()
    samples = parity_samples(load_dataset(toy_frames))
    with pytest.raises(RecipeError, match=r"has lambda_v 1, and this encoder's graph leaves the V path out"):
        build_bundle(model, graph, recipe, samples, tmp_path / "bundle", Stages())
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_an_artifact_that_disagrees_with_torch_is_never_written(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """The exporter is replaced by one that writes another encoder's file: real parity must find out."""

    def export_another(_graph: SemClipGraph, _recipe: object, path: Path) -> dict[str, int]:
        shutil.copy(toy_bundle / path.name, path)
        return {"Attention": 8}

    monkeypatch.setattr(teach, "onnx_from_graph", export_another)
    out = tmp_path / "bundle"
    if force:
        write_bundle(out)
    before = content_of(tmp_path)
    model = load_model("toy", random_seed=1)
    recipe = replace(load_bundle(toy_bundle)[1], encoder_id=described(model).id)
    samples = parity_samples(load_dataset(toy_frames))
    with pytest.raises(ParityError, match=r"model\.onnx does not agree with torch on 28 frames.*nothing was written"):
        build_bundle(model, SemClipGraph(model.encoder()), recipe, samples, out, Stages(), force=force)
    assert content_of(tmp_path) == before
    assert names_in(tmp_path) == (["bundle"] if force else [])


def test_a_bundle_behind_a_link_is_changed_where_it_is(fake_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(fake_bundle)
    with bundle.changing_bundle(link) as (folder, manifest):
        bundle.write_manifest(folder, replace(manifest, notes=("changed",)))
    assert link.is_symlink()
    assert load_bundle(fake_bundle)[0].notes == ("changed",)
    assert names_in(tmp_path) == ["bundle", "current"]


# ---- adding to a bundle ----------------------------------------------------------------------------------------------


def add_note(folder: Path, manifest: Manifest) -> None:
    bundle.write_manifest(folder, replace(manifest, notes=("mine",)))


def test_a_recipe_that_was_replaced_meanwhile_is_kept(fake_bundle: Path) -> None:
    """Other processes wait for the lock; this one, and a program that knows no lock, must not lose their change."""
    with bundle.changing_bundle(fake_bundle) as (folder, manifest):
        replace_recipe(fake_bundle, make_recipe(defect_threshold=0.7))
        add_note(folder, manifest)
    changed, recipe = load_bundle(fake_bundle, verify_all=True)
    assert (changed.notes, recipe.operating_point.defect_threshold) == (("mine",), 0.7)
    assert names_in(fake_bundle) == sorted(["manifest.json", *changed.files()])


def test_whatever_else_was_changed_meanwhile_is_not_overwritten(fake_bundle: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(BundleError, match="was changed by another process meanwhile; nothing was written"),
        bundle.changing_bundle(fake_bundle) as (folder, manifest),
    ):
        bundle.write_manifest(fake_bundle, replace(manifest, notes=("theirs",)))
        add_note(folder, manifest)
    assert load_bundle(fake_bundle)[0].notes == ("theirs",)
    assert names_in(fake_bundle) == ["manifest.json", "model.onnx", "recipe.safetensors"]


def test_files_that_the_manifest_does_not_name_and_links_stay(fake_bundle: Path) -> None:
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


def test_a_new_file_never_takes_a_name_that_is_there(fake_bundle: Path) -> None:
    """Not that of the artifact it replaces, which readers may be opening, nor that of somebody's file."""
    (fake_bundle / "extra.onnx").write_bytes(b"somebody's")
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
    assert (fake_bundle / "extra.onnx").read_bytes() == b"somebody's"


def test_a_file_that_is_there_already_keeps_its_name_and_a_damaged_one_does_not(fake_bundle: Path) -> None:
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


def test_what_a_reader_would_refuse_is_not_written(fake_bundle: Path) -> None:
    before = content_of(fake_bundle)
    with (
        pytest.raises(BundleError, match="must hold at most 100 entries"),
        bundle.changing_bundle(fake_bundle) as (folder, manifest),
    ):
        bundle.write_manifest(folder, replace(manifest, notes=("note",) * 101))
    assert content_of(fake_bundle) == before


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(BundleError), bundle.changing_bundle(tmp_path):
        raise AssertionError("nothing is made")
    assert names_in(tmp_path) == []


def test_a_bundle_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictorError, match="nothing can be written below it"):
        refuse_existing(tmp_path / "file" / "bundle", force=True)


def test_an_activation_of_another_kind_is_another_encoder() -> None:
    model = load_model("toy", random_seed=0)
    graph = SemClipGraph(model.encoder())
    quick = replace(model, config={**model.config, "quick_gelu": True})
    assert describe_encoder(quick, graph).id != describe_encoder(model, graph).id
    plain = replace(model, config={**model.config, "quick_gelu": False})
    assert describe_encoder(plain, graph).id == describe_encoder(model, graph).id, "ids of bundles that exist stay"
