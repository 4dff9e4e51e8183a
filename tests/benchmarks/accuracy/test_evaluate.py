"""benchmarks.accuracy.evaluate: metrics of a bundle on a labelled folder."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy.evaluate import Evaluate, per_class, per_class_table, without_supports
from benchmarks.accuracy.evaluate import evaluate as metrics_of
from calibration.dataset import load_dataset
from calibration.errors import DatasetError
from runtime import Predictor, PredictorError


@pytest.fixture
def taught(toy_bundle: Path, toy_frames: Path) -> tuple[Path, Path]:
    """A bundle of an untrained toy encoder, and the 28 frames; some of them taught it."""
    return toy_bundle, toy_frames


def evaluate(*words: object) -> int:
    command, parser = Evaluate(), argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_supports_and_their_groups_are_left_out(
    taught: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = taught
    assert evaluate(bundle, data, "--exact", "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    left_out = 28 - document["test_frames"]
    assert left_out >= 14
    assert f"left out  {left_out} frames" in text
    assert len(document["labels"]) == document["test_frames"] == int(np.sum(document["confusion"]))
    for name, shown in (("pauroc", "pAUROC"), ("f1_max", "pixel F1-max")):
        exact = document[f"{name}_exact"]
        assert document[name] == pytest.approx(exact, abs=1e-3)
        assert f"| {shown}, every pixel | {100 * exact:.3f} ({100 * document[name]:.3f} by bins) |" in text
    for name in ("confusion.png", "contact_sheet.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out/metrics.md").read_text().strip() in text


def test_rates_are_those_of_the_current_operating_point(taught: tuple[Path, Path]) -> None:
    bundle, data = taught
    dataset = load_dataset(data)
    with Predictor(bundle) as predictor:
        point = predictor.recipe.operating_point
        results = predictor.predict([sample.path for sample in dataset.samples])
        masks = [sample.read_mask(result.frame_size) for sample, result in zip(dataset.samples, results, strict=True)]
        for threshold in (point.defect_threshold, float(np.median([result.score for result in results]))):
            predictor.use(replace(predictor.recipe, operating_point=replace(point, defect_threshold=threshold)))
            metrics = metrics_of(predictor, dataset, dataset.samples)
            called = np.array([result.score >= threshold for result in results])
            good = np.array([sample.label == "good" for sample in dataset.samples])
            assert metrics["overkill"] == called[good].mean()
            assert metrics["underkill"] == pytest.approx((~called[~good]).mean())
            right = [v == sample.label for v, sample in zip(metrics["verdicts"], dataset.samples, strict=True)]
            assert metrics["verdict_accuracy"] == np.mean(right)
    outlined = np.concatenate([result.mask(point.pixel_threshold).ravel() for result in results])
    truth = np.concatenate([mask.ravel() > 0 for mask in masks if mask is not None])
    assert len(outlined) == len(truth)
    expected = 2 * (outlined & truth).sum() / (outlined.sum() + truth.sum())
    assert metrics["pixel_f1"] == pytest.approx(expected, abs=1e-3)
    assert 0 < metrics["pixel_f1"] <= metrics["f1_max"]


def test_pixel_metrics_without_masks_read_no_masks(
    taught: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = taught
    shutil.copytree(data / "images", tmp_path / "data/images")
    assert evaluate(bundle, tmp_path / "data", "--exact") == 0
    text = capsys.readouterr().out
    assert "| pAUROC | no masks |" in text
    assert "every pixel" not in text


def test_exact_metrics_of_too_many_pixels_are_refused(
    taught: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.accuracy.evaluate.MOST_EXACT_PIXELS", 3 * 64 * 64)
    with pytest.raises(DatasetError, match="12,288 at most, and these frames have more; leave it out"):
        evaluate(*taught, "--exact")


def test_a_class_that_the_recipe_does_not_know_counts_as_wrong(
    taught: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = taught
    shutil.copytree(data / "images", tmp_path / "data/images")
    (tmp_path / "data/images/hole").rename(tmp_path / "data/images/crater")
    assert evaluate(bundle, tmp_path / "data") == 0
    text = capsys.readouterr().out
    assert "the recipe does not know crater" in text
    assert "| crater | " in text
    assert "| hole | 0 | " in text


def test_a_set_of_supports_alone_is_refused(taught: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, data = taught
    shutil.copytree(data / "images", tmp_path / "data/images")
    (tmp_path / "data/groups.csv").write_text(
        "path,class,group\n"
        + "".join(f"images/{p.parent.name}/{p.name},{p.parent.name},one\n" for p in data.glob("images/*/*.png"))
    )
    with pytest.raises(DatasetError, match="every frame is a support"):
        evaluate(bundle, tmp_path / "data")


def test_a_class_absent_from_the_test_is_named() -> None:
    metrics = {
        "iauroc": None,
        "iauroc_score": None,
        "verdict_accuracy": 1.0,
        "iauroc_peak": None,
        "iauroc_class": None,
        "pauroc": 0.5,
        "f1_max": 0.25,
        "overkill": 1 / 3,
        "underkill": None,
        "pixel_f1": 0.2,
        "masked_frames": 0,
        "accuracy": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
        "confusion": [[3, 0], [0, 0]],
        "classes": ["good", "hole"],
    }
    table = per_class_table(metrics)
    assert "| iAUROC | needs good and defect frames |" in table
    assert "| iAUROC by 1 - P(good) | needs good and defect frames |" in table
    assert "| macro precision | 100.0 |" in table
    assert "| overkill at the recipe's threshold | 33.3 |" in table
    assert "| underkill at the recipe's threshold | no defect frames |" in table
    assert "| pixel F1 at the recipe's threshold | 20.0 |" in table
    assert "| hole | 0 | absent from the test | | |" in table
    assert "| good | 3 | 100.0 | 100.0 | 100.0 |" in table


def test_ignored_rows_are_neither_right_nor_wrong(fake_bundle: Path, tmp_path: Path) -> None:
    """The fake backend's map is bright where the frame is. The mask agrees, except in the text bar."""
    rng = np.random.default_rng(0)
    for label in ("good", "bridge"):
        for number in range(3):
            pixels, mask = rng.integers(0, 60, (96, 64), np.uint8), np.zeros((96, 64), np.uint8)
            if label == "bridge":
                pixels[16:32, 16:32] = 250
                mask[16:32, 16:32] = mask[70:90] = 255
                (tmp_path / "masks" / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(tmp_path / "masks" / label / f"{number}.png")
            (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    dataset = load_dataset(tmp_path)
    with Predictor(fake_bundle, backend="fake", ignore_bottom=32) as predictor:
        cut = metrics_of(predictor, dataset, list(dataset.samples))
    with Predictor(fake_bundle, backend="fake") as predictor:
        whole = metrics_of(predictor, dataset, list(dataset.samples), exact=True)
    assert cut["pauroc"] > 0.98 > whole["pauroc"]
    # The map's maximum tells these defects from good; the fake class head has its own mind.
    assert (cut["iauroc"], cut["iauroc_peak"]) == (1.0, 1.0)
    assert cut["masked_frames"] == 3


def test_a_place_below_a_file_is_refused_before_anything_is_measured(
    taught: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = taught
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictorError, match="nothing can be written below it"):
        evaluate(bundle, data, "--out", tmp_path / "file")
    assert capsys.readouterr().out == ""


def test_an_earlier_evaluation_is_replaced_only_with_force(
    taught: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.md").write_text("earlier")
    with pytest.raises(PredictorError, match=r"metrics\.md exists; add --force"):
        evaluate(*taught, "--out", tmp_path)
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.md"]


def test_a_class_name_is_text_in_a_table() -> None:
    row = per_class(np.array([[1, 0], [0, 0]]), ["<b>", "a|b"])
    assert row[2:] == ["| \\<b\\> | 1 | 100.0 | 100.0 | 100.0 |", "| a\\|b | 0 | absent from the test | | |"]


@pytest.mark.parametrize("recorded", [5, None, "ab", {"a": 1}, [["ab"]]])
def test_a_recipe_with_odd_hashes_of_supports_leaves_nothing_out(
    recorded: object, fake_bundle: Path, tmp_path: Path
) -> None:
    for label in ("good", "bridge"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("L", (64, 64), len(label)).save(tmp_path / "images" / label / "0.png")
    dataset = load_dataset(tmp_path)
    with Predictor(fake_bundle, backend="fake") as predictor:
        predictor.use(replace(predictor.recipe, teaching={"support_sha256": recorded}))
        test, left_out = without_supports(dataset, predictor)
    assert (len(test), left_out) == (2, 0)
