"""export.bundle: what identifies an encoder, and that a bundle is replaced as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_encoder, make_recipe, write_bundle

from calibration.dataset import load_dataset
from export import bundle, teach
from export.bundle import describe_encoder, refuse_existing, replacing_folder
from export.checkpoint import LoadedModel, load_model
from export.encoder import DualPathEncoder
from export.errors import OutputExistsError, ParityError
from export.graph import SemClipGraph
from export.progress import Stages
from export.teach import build_bundle, parity_samples
from runtime import Predictor
from runtime.errors import BundleError, PredictorError
from runtime.files import sha256_of
from runtime.manifest import Encoder, load_bundle, replace_recipe


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


# ---- replacing -------------------------------------------------------------------------------------------------------


def write_new(folder: Path) -> None:
    """A bundle that differs from the one of `fake_bundle`."""
    encoder = make_encoder(architecture="new")
    write_bundle(folder, encoder=encoder, recipe=make_recipe(("good", "new"), encoder=encoder))


@pytest.mark.parametrize("swaps", [True, False])
def test_a_finished_folder_takes_the_place_of_the_old_one(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:  # a system that cannot exchange two names in one step
        monkeypatch.setattr(bundle, "_exchange", lambda *_: False)
    (fake_bundle / "engines").mkdir()
    (fake_bundle / "engines/old.plan").touch()
    with replacing_folder(fake_bundle) as working:
        assert working.parent == fake_bundle.parent
        assert names_in(working) == []
        write_new(working)
        assert load_bundle(fake_bundle)[1].classes != ("good", "new")
    assert load_bundle(fake_bundle, verify_all=True)[1].classes == ("good", "new")
    assert names_in(fake_bundle) == ["manifest.json", "model.onnx", "recipe.safetensors"]
    assert names_in(fake_bundle.parent) == ["bundle"]


@pytest.mark.parametrize("before", ["absent", "empty"])
def test_a_folder_is_made_with_its_parents(tmp_path: Path, before: str) -> None:
    target = tmp_path / "a/b/bundle"
    if before == "empty":
        target.mkdir(parents=True)
    with replacing_folder(target) as working:
        write_new(working)
    load_bundle(target, verify_all=True)
    assert names_in(target.parent) == ["bundle"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_the_old_bundle_and_nothing_else(fake_bundle: Path, error: type[BaseException]) -> None:
    def write_half(target: Path) -> None:
        with replacing_folder(target) as working:
            (working / "model.onnx").write_text("half")
            raise error

    before = content_of(fake_bundle)
    with pytest.raises(error):
        write_half(fake_bundle)
    assert content_of(fake_bundle) == before
    assert names_in(fake_bundle.parent) == ["bundle"]


def test_an_error_inside_leaves_no_folder_where_none_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), replacing_folder(tmp_path / "bundle"):
        raise ValueError("stop")
    assert names_in(tmp_path) == []


def test_when_the_second_rename_fails_the_old_bundle_is_put_back(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_exchange", lambda *_: False)
    before = content_of(fake_bundle)
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError("no space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no space left"), replacing_folder(fake_bundle) as working:
        write_new(working)
    assert content_of(fake_bundle) == before
    assert names_in(fake_bundle.parent) == ["bundle"]


KILLED = """
import os, pathlib, shutil, signal, sys
sys.path.insert(0, sys.argv[2])
from conftest import make_encoder, make_recipe, write_bundle
from export import bundle

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def write(folder):
    encoder = make_encoder(architecture="new")
    write_bundle(folder, encoder=encoder, recipe=make_recipe(("good", "new"), encoder=encoder))

for moment in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        with bundle.replacing_folder(pathlib.Path(sys.argv[1]) / moment / "bundle") as working:
            if moment == "while_writing":
                (working / "manifest.json").write_text("{")
                die()
            write(working)
            if moment == "before_the_swap":
                bundle._sync = die
            else:
                shutil.rmtree = die
    print(moment, os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
def test_a_process_killed_at_any_moment_leaves_a_whole_bundle(tmp_path: Path) -> None:
    survivors = {"while_writing": "toy", "before_the_swap": "toy", "after_the_swap": "new"}
    for moment in survivors:
        write_bundle(tmp_path / moment / "bundle")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent), *survivors],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == [word for moment in survivors for word in (moment, str(int(signal.SIGKILL)))]
    for moment, architecture in survivors.items():
        target = tmp_path / moment / "bundle"
        manifest, _ = load_bundle(target, verify_all=True)
        assert manifest.encoder.architecture == architecture, moment
        # What the dead process left beside it does not stand in the way of the next one.
        with replacing_folder(target) as working:
            write_new(working)
        assert load_bundle(target, verify_all=True)[0].encoder.architecture == "new"


# ---- a really built bundle -------------------------------------------------------------------------------------------


def test_a_built_bundle_holds_what_its_manifest_says_and_nothing_else(toy_bundle: Path, toy_frames: Path) -> None:
    manifest, recipe = load_bundle(toy_bundle, verify_all=True)
    assert names_in(toy_bundle) == ["manifest.json", "model.fp16.onnx", "model.onnx", "recipe.safetensors"]
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
    assert load_bundle(toy_bundle)[0].encoder == described(model)


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
    recipe = load_bundle(toy_bundle)[1]
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


def test_what_another_process_changed_meanwhile_is_kept(fake_bundle: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(BundleError, match="was changed by another process meanwhile"),
        bundle.changing_bundle(fake_bundle) as (folder, manifest),
    ):
        replace_recipe(fake_bundle, make_recipe(defect_threshold=0.7))
        bundle.write_manifest(folder, replace(manifest, notes=("mine",)))
    changed, recipe = load_bundle(fake_bundle)
    assert (changed.notes, recipe.operating_point.defect_threshold) == (("made for tests",), 0.7)


def test_a_bundle_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictorError, match="nothing can be written below it"):
        refuse_existing(tmp_path / "file" / "bundle", force=True)
