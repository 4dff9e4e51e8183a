"""export.teach.build_bundle: the files, the V path and the parity of a built bundle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import with_scalars, write_bundle
from contents import content_of, names_in

from calibration.dataset import load_dataset
from export import teach
from export.artifacts.parity import artifact_outputs, torch_outputs
from export.bundle import describe_encoder
from export.errors import ParityError
from export.model.checkpoint import LoadedModel, load_model
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.teach import build_bundle, keeps_value_path, parity_samples
from runtime import Predictor
from runtime.errors import RecipeError
from runtime.files import sha256_of
from runtime.manifest import Encoder, load_bundle


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("toy", random_seed=0)


def described(model: LoadedModel, *, redundancy: str = "cls_weight", size: tuple[int, int] | None = None) -> Encoder:
    return describe_encoder(model, SemClipGraph(model.encoder(), redundancy=redundancy, input_size=size))


def test_a_built_bundle_holds_exactly_the_files_of_its_manifest(toy_bundle: Path, toy_frames: Path) -> None:
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


def test_supports_have_novelty_0(toy_bundle: Path, toy_frames: Path) -> None:
    """The features that teaching stored for a support are those of the exported graph."""
    recipe = load_bundle(toy_bundle)[1]
    supports = set(recipe.teaching["supports"])
    with Predictor(toy_bundle) as predictor:
        for path in sorted((toy_frames / "images").rglob("*.png")):
            novelty = predictor(path).novelty
            assert (novelty < 1e-5) == (path.relative_to(toy_frames).as_posix() in supports)


def test_manifest_of_a_built_bundle_describes_its_encoder(toy_bundle: Path, model: LoadedModel) -> None:
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
def test_v_path_is_kept_if_text_is_aligned_or_the_recipe_reads_it(
    model: LoadedModel, toy_bundle: Path, has_text: bool, trained: bool, lambda_v: float, kept: bool
) -> None:
    recipe = with_scalars(load_bundle(toy_bundle)[1], lambda_v=lambda_v)
    assert keeps_value_path(replace(model, has_text=has_text, trained=trained), recipe) is kept


def test_bundles_with_and_without_v_path_agree_with_torch(model: LoadedModel, either_bundle: Path) -> None:
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


def test_recipes_run_without_v_path_only_if_lambda_v_is_0(toy_bundle: Path, dual_bundle: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    vanilla, dual = load_bundle(toy_bundle)[1], load_bundle(dual_bundle)[1]
    with Predictor(toy_bundle, threads=1) as predictor, Predictor(dual_bundle, recipe=vanilla, threads=1) as whole:
        np.testing.assert_allclose(whole(frame).defect_map(), predictor(frame).defect_map(), atol=1e-5)
        with pytest.raises(RecipeError, match="has lambda_v 1, and this encoder's graph leaves the V path out"):
            predictor.use(dual)


def test_export_without_v_path_is_refused_for_a_recipe_that_reads_it(
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
    """The exporter writes the file of another encoder; the parity check must find it."""

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
