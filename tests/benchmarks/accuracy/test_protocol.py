"""benchmarks.accuracy: its arguments, and small measurements from end to end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import measurement, precisions
from benchmarks.accuracy.ablations import ABLATIONS, ENCODED_ABLATIONS, LAST_LEVEL, NO_TRANSFORM
from benchmarks.accuracy.baselines import ROWS
from benchmarks.accuracy.comparison import row_of_method
from benchmarks.accuracy.protocol import Accuracy
from calibration.dataset import Dataset, Sample
from export.errors import ExportError
from export.synthetic import write_dataset
from runtime import Predictor, Recipe
from runtime.recipe import SCALARS

PICTURES = ("shots.png", "confusion.png", "overlays.png")


def test_supervision_of_a_set_without_masks_is_class_labels_alone() -> None:
    good, bare = Sample(Path("g"), "good", "g", None), Sample(Path("h"), "hole", "h", None)
    masked = replace(bare, mask=Path("m"))
    told = {s: row_of_method(Dataset(Path("d"), ("good", "hole"), (good, s))).supervision for s in (bare, masked)}
    assert told == {bare: "class labels", masked: "class labels and masks"}


@pytest.mark.slow
def test_int8_is_quantized_on_frames_that_its_seed_does_not_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "data", per_class=20, size=(64, 64))
    parser = argparse.ArgumentParser()
    Accuracy().add_arguments(parser)
    fitted: list[set[Path]] = []
    tested: list[set[Path]] = []
    quantize, judge, fit = precisions.quantize, measurement.judge, measurement.fit_supports
    taught: list[Recipe] = []

    def fitted_once(*given: Any) -> Recipe:
        if not taught:
            taught.append(fit(*given))
        return taught[0]

    def quantized(bundle: Path, frames: Sequence[Sample]) -> None:
        fitted.append({sample.path for sample in frames})
        quantize(bundle, frames)

    def judged(predictor: Predictor, recipe: Recipe, dataset: Dataset, test: list[Sample]) -> dict[str, Any]:
        tested.append({sample.path for sample in test})
        return judge(predictor, recipe, dataset, test)

    monkeypatch.setattr(precisions, "quantize", quantized)
    monkeypatch.setattr(measurement, "judge", judged)
    monkeypatch.setattr(measurement, "fit_supports", fitted_once)
    words = ["--arch", "toy", "--random-weights", "--classes", "good,hole", "--shots", "1,8", "--seeds", "2"]
    Accuracy().run(parser.parse_args(["--data", str(tmp_path / "data"), *words, "--precisions", "fp32,int8"]))
    assert len(tested) == 8, "two seeds, two numbers of shots, two precisions"
    assert len(fitted) == 2, "once a seed"
    assert tested[0] != tested[4]
    for n, frames in enumerate(tested):
        assert frames.isdisjoint(fitted[n // 4])


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--first-seed", "-1"], ["--generated", "0"]])
def test_a_number_below_its_least_value_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    Accuracy().add_arguments(parser)
    source = [] if "--generated" in words else ["--generated", "8"]
    with pytest.raises(SystemExit):
        parser.parse_args([*source, *words, "--arch", "toy"])
    assert "must be at least" in capsys.readouterr().err


def test_ablations_with_method_paper_are_refused() -> None:
    parser = argparse.ArgumentParser()
    Accuracy().add_arguments(parser)
    words = ["--generated", "8", "--arch", "toy", "--random-weights", "--method", "paper", "--ablations"]
    with pytest.raises(ExportError, match="leave out --method paper"):
        Accuracy().run(parser.parse_args(words))


@pytest.mark.slow
def test_a_measurement_has_every_row_and_repeats_itself(tmp_path: Path) -> None:
    """On an untrained toy encoder. The second run, without rows of comparison, gives the method the same figures."""
    write_dataset(tmp_path / "data", per_class=4, size=(64, 64))
    command = Accuracy()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    base = ["--data", str(tmp_path / "data"), "--arch", "toy", "--random-weights", "--shots", "1", "--seeds", "1"]
    full = parser.parse_args([*base, "--ablations", "--baselines", "--out", str(tmp_path / "out")])
    assert command.run(full) == 0
    document = json.loads((tmp_path / "out/accuracy.json").read_text())
    assert document["complete"]
    rows = {row["method"]: row for row in document["rows"]}
    assert list(rows) == [
        "fp32",
        *ABLATIONS,
        LAST_LEVEL,
        *ENCODED_ABLATIONS,
        *ROWS,
    ]
    assert set(rows["fp32"]["scalars"]) == set(SCALARS), "what the supports chose"
    assert rows["no_p_s"]["iauroc"] == rows["fp32"]["iauroc"], "the map does not depend on the class mix"
    assert rows[NO_TRANSFORM]["unavailable"] == "needs text", "the text of this tower is not trained"
    assert rows["value_path"]["pauroc"] != rows["fp32"]["pauroc"]
    assert rows[LAST_LEVEL]["pauroc"] != rows["fp32"]["pauroc"]
    assert rows["patch_memory"]["accuracy"] is None
    assert rows["winclip"]["unavailable"] == "needs text", "text of random weights is unrelated to frames"
    assert {name: rows[name]["supervision"] for name in ("fp32", "linear_probe", "patch_memory", "winclip")} == {
        "fp32": "class labels and masks",
        "linear_probe": "class labels",
        "patch_memory": "good frames",
        "winclip": "good frames",
    }
    assert 0 <= rows["cls_mean_patch_probe"]["iauroc"] <= 1
    assert rows["cls_mean_patch_probe"]["iauroc"] != rows["linear_probe"]["iauroc"]
    assert 0 <= rows["patch_memory"]["pauroc"] <= 1
    assert all((tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG" for name in PICTURES)
    assert "| linear_probe | class labels | 1 | 1 |" in (tmp_path / "out/accuracy.md").read_text()
    assert "| class | frames | precision | recall | F1 |" in (tmp_path / "out/accuracy.md").read_text()

    bar = ["--ignore-top", "4", "--ignore-bottom", "8", "--baselines", "--out", str(tmp_path / "bar")]
    command.run(parser.parse_args([*base, *bar]))
    cut = json.loads((tmp_path / "bar/accuracy.json").read_text())["rows"]
    assert cut[0]["pauroc"] != rows["fp32"]["pauroc"]
    memory = next(row for row in cut if row["method"] == "patch_memory")
    assert 0 <= memory["pauroc"] <= 1, "the map is compared with the rows that were judged"

    command.run(parser.parse_args([*base, "--classes", "hole,good", "--out", str(tmp_path / "two")]))
    two = json.loads((tmp_path / "two/accuracy.json").read_text())
    assert two["classes"] == ["good", "hole"]
    assert np.shape(two["rows"][0]["confusion"]) == (2, 2)

    command.run(parser.parse_args([*base, "--out", str(tmp_path / "again")]))
    again = json.loads((tmp_path / "again/accuracy.json").read_text())["rows"][0]
    for name in ("accuracy", "f1", "iauroc", "pauroc", "f1_max", "confusion"):
        assert again[name] == rows["fp32"][name]


@pytest.mark.slow
def test_cells_measured_before_an_interruption_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data", per_class=5, size=(64, 64))
    parser = argparse.ArgumentParser()
    Accuracy().add_arguments(parser)
    base = ["--data", str(tmp_path / "data"), "--arch", "toy", "--random-weights", "--classes", "good,hole"]
    judged, judge = [], measurement.judge

    def interrupted(*given: Any) -> dict[str, Any]:
        if judged:
            raise KeyboardInterrupt
        judged.append(1)
        return judge(*given)

    monkeypatch.setattr(measurement, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Accuracy().run(parser.parse_args([*base, "--shots", "1,2", "--seeds", "1", "--out", str(tmp_path / "out")]))
    document = json.loads((tmp_path / "out/accuracy.json").read_text())
    assert not document["complete"]
    assert [(row["shots"], row["method"]) for row in document["rows"]] == [(1, "fp32")]
    assert not (tmp_path / "out/accuracy.md").exists()
