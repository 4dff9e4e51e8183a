"""benchmarks.accuracy: its table, its switches, and one small cell of a measurement run again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_recipe

from benchmarks.accuracy import protocol as accuracy
from benchmarks.accuracy.baselines import ROWS
from benchmarks.accuracy.comparison import row_of_method
from benchmarks.accuracy.protocol import (
    ABLATIONS,
    ENCODED_ABLATIONS,
    FITTED_ABLATIONS,
    LAST_LEVEL,
    NO_TRANSFORM,
    Accuracy,
    _not_tested,
    _open,
    ablate,
    agreement,
)
from benchmarks.accuracy.table import METRICS, summarize
from calibration.dataset import Dataset, Sample
from calibration.errors import DatasetError
from export.errors import ExportError, ParityError
from export.synthetic import write_dataset
from export.teaching.settings import TeachSettings
from runtime import Predictor, Recipe
from runtime.recipe import SCALARS

FIGURES = {"accuracy": 0.5, "verdict_accuracy": 0.25, "precision": 0.4, "recall": 0.6, "f1": 0.5, "iauroc": 0.75}
TOLD = {"supervision": "class labels and masks", "draws_map": True, "unavailable": None}
ROW = {"method": "fp32", "shots": 1, "test_frames": 9, **TOLD, **FIGURES}
PICTURES = ("shots.png", "confusion.png", "overlays.png")
NO_MASKS = {"pauroc": None, "f1_max": None}


def test_table_says_where_there_are_no_masks() -> None:
    row = {**ROW, **NO_MASKS}
    table = summarize([{**row, "seed": 0}, {**row, "seed": 1, "accuracy": 0.7}], [1])
    assert (
        "| fp32 | class labels and masks | 1 | 2 | 9-9 | 60.0 ± 10.0 | 25.0 ± 0.0 | 40.0 ± 0.0 | 60.0 ± 0.0 "
        "| 50.0 ± 0.0 | 75.0 ± 0.0 | no masks | no masks |" in table
    )


def test_other_frame_scores_stand_below_the_table() -> None:
    row = {**ROW, **NO_MASKS, "iauroc_score": 0.9, "iauroc_peak": 0.7, "iauroc_class": None}
    row |= {"overkill": 0.1, "underkill": 0.2, "pixel_f1": None}
    lines = summarize([{**row, "seed": 0}, {**row, "seed": 1, "iauroc_peak": 0.8}], [1]).splitlines()
    assert lines[-1] == (
        "fp32, K = 1: iAUROC 90.0 ± 0.0 by the defect score, 75.0 ± 5.0 by the map's maximum, - by 1 - P(good); "
        "at the thresholds as taught: overkill 10.0 ± 0.0, underkill 20.0 ± 0.0, pixel F1 no masks"
    )
    assert "by the map" not in summarize([{**ROW, **NO_MASKS, "method": "patch_memory", "seed": 0}], [1])


def test_a_baseline_without_a_map_is_not_a_set_without_masks() -> None:
    told = {"supervision": "class labels", "draws_map": False}
    table = summarize([{**ROW, **NO_MASKS, **told, "method": "class_mean", "iauroc": None, "seed": 0}], [1])
    assert "| class_mean | class labels | 1 | 1 | 9-9 | 50.0 | 25.0 | 40.0 | 60.0 | 50.0 | - | - | - |" in table, (
        "one seed spreads over none"
    )
    table = summarize([{**ROW, **NO_MASKS, "method": "patch_memory", "seed": 0}], [1])
    assert "| 75.0 | no masks | no masks |" in table


def test_a_row_that_cannot_be_had_says_what_it_lacks_in_every_cell() -> None:
    told = {"supervision": "good frames", "unavailable": "needs text", **dict.fromkeys(METRICS)}
    table = summarize([{**ROW, **told, "method": "winclip", "seed": 0}], [1])
    assert table.splitlines()[-1] == "| winclip | good frames | 1 | 1 | 9-9 |" + " needs text |" * len(METRICS)


def test_a_set_without_masks_taught_class_labels_alone() -> None:
    good, bare = Sample(Path("g"), "good", "g", None), Sample(Path("h"), "hole", "h", None)
    masked = replace(bare, mask=Path("m"))
    told = {s: row_of_method(Dataset(Path("d"), ("good", "hole"), (good, s))).supervision for s in (bare, masked)}
    assert told == {bare: "class labels", masked: "class labels and masks"}


def test_too_few_frames_beside_the_test_for_int8() -> None:
    samples = [Sample(Path(f"{n}.png"), "good", str(n), None) for n in range(40)]
    dataset = Dataset(Path("data"), ("good",), tuple(samples))
    assert _not_tested(dataset, samples[20:]) == samples[:20]
    with pytest.raises(DatasetError, match="all frames but 4, and int8 takes 16 at least"):
        _not_tested(dataset, samples[4:])


def test_int8_of_every_seed_has_seen_no_frame_that_it_tests_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data", per_class=20, size=(64, 64))
    parser = argparse.ArgumentParser()
    Accuracy().add_arguments(parser)
    fitted: list[set[Path]] = []
    tested: list[set[Path]] = []
    quantize, judge, fit = accuracy._quantize, accuracy._judge, accuracy.fit_supports
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

    monkeypatch.setattr(accuracy, "_quantize", quantized)
    monkeypatch.setattr(accuracy, "_judge", judged)
    monkeypatch.setattr(accuracy, "fit_supports", fitted_once)
    words = ["--arch", "toy", "--random-weights", "--classes", "good,hole", "--shots", "1,8", "--seeds", "2"]
    Accuracy().run(parser.parse_args(["--data", str(tmp_path / "data"), *words, "--precisions", "fp32,int8"]))
    assert len(tested) == 8, "two seeds, two numbers of shots, two precisions"
    assert len(fitted) == 2, "once a seed"
    assert tested[0] != tested[4]
    for n, frames in enumerate(tested):
        assert frames.isdisjoint(fitted[n // 4])


def test_a_refused_int8_leaves_the_other_precisions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*given: Any) -> None:
        raise ParityError("the 8-bit form is too far off")

    monkeypatch.setattr(accuracy, "_quantize", refused)
    monkeypatch.setattr(accuracy, "Predictor", lambda bundle, precision: f"{precision} of {bundle}")
    samples = tuple(Sample(Path(f"{n}.png"), "good", str(n), None) for n in range(40))
    dataset = Dataset(Path("data"), ("good",), samples)
    opened = _open(Path("bundle"), ["fp32", "fp16", "int8"], dataset, samples[20:], 3)
    assert opened == {"fp32": "fp32 of bundle", "fp16": "fp16 of bundle"}
    assert "seed 3, no int8: the 8-bit form is too far off" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--first-seed", "-1"], ["--generated", "0"]])
def test_numbers_that_make_no_sense_are_explained(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    Accuracy().add_arguments(parser)
    source = [] if "--generated" in words else ["--generated", "8"]
    with pytest.raises(SystemExit):
        parser.parse_args([*source, *words, "--arch", "toy"])
    assert "must be at least" in capsys.readouterr().err


def test_ablations_of_the_paper_s_method_are_refused() -> None:
    parser = argparse.ArgumentParser()
    Accuracy().add_arguments(parser)
    words = ["--generated", "8", "--arch", "toy", "--random-weights", "--method", "paper", "--ablations"]
    with pytest.raises(ExportError, match="leave out --method paper"):
        Accuracy().run(parser.parse_args(words))


def test_agreement_of_all_frames_and_of_the_sure_ones() -> None:
    one = {"labels": ["good"] * 10, "confidences": np.linspace(1, 0.1, 10)}
    other = {"labels": ["good"] * 9 + ["hole"], "confidences": np.ones(10)}
    assert agreement(one, other) == {"labels_equal": 0.9, "labels_equal_kept": 1.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_p_s", (1.0, 1.0, 0.3)),
        ("no_p_c", (0.0, 1.0, 0.3)),
    ],
)
def test_ablations_are_scalars_of_the_recipe(name: str, expected: tuple[float, float, float]) -> None:
    recipe = make_recipe()
    scalars = recipe.tensors["scalars"].copy()
    scalars[:3] = 0.8, 1.0, 0.3
    recipe = type(recipe)(**{**vars_of(recipe), "tensors": {**recipe.tensors, "scalars": scalars}})
    changed = ablate(name, recipe, None, None, None)  # type: ignore[arg-type]
    assert changed.tensors["scalars"][:3].tolist() == pytest.approx(expected)
    assert all(np.array_equal(changed.tensors[n], recipe.tensors[n]) for n in recipe.tensors if n != "scalars")


@pytest.mark.parametrize("name", FITTED_ABLATIONS)
def test_ablations_that_change_the_map_teach_the_head_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "fit_supports", lambda encoded, encoder, stages, settings: settings)
    encoded: Any = None
    assert ablate(name, make_recipe(), encoded, None, None) == FITTED_ABLATIONS[name]  # type: ignore[arg-type]
    assert FITTED_ABLATIONS[name] != TeachSettings()


def vars_of(recipe: object) -> dict[str, object]:
    names = [n for n, f in type(recipe).__dataclass_fields__.items() if f.init]  # type: ignore[attr-defined]
    return {name: getattr(recipe, name) for name in names}


def test_one_cell_with_everything_beside_it(tmp_path: Path) -> None:
    """Two classes' worth of frames, an untrained toy encoder: the protocol runs through, and twice the same."""
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
    assert rows["no_p_s"]["iauroc"] == rows["fp32"]["iauroc"], "the class mix has no say in the map"
    assert rows[NO_TRANSFORM]["unavailable"] == "needs text", "this tower's was not trained"
    assert rows["value_path"]["pauroc"] != rows["fp32"]["pauroc"]
    assert rows[LAST_LEVEL]["pauroc"] != rows["fp32"]["pauroc"]
    assert rows["patch_memory"]["accuracy"] is None
    assert rows["winclip"]["unavailable"] == "needs text", "that of random weights says nothing of frames"
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


def test_what_was_measured_outlives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data", per_class=5, size=(64, 64))
    parser = argparse.ArgumentParser()
    Accuracy().add_arguments(parser)
    base = ["--data", str(tmp_path / "data"), "--arch", "toy", "--random-weights", "--classes", "good,hole"]
    judged, judge = [], accuracy._judge

    def interrupted(*given: Any) -> dict[str, Any]:
        if judged:
            raise KeyboardInterrupt
        judged.append(1)
        return judge(*given)

    monkeypatch.setattr(accuracy, "_judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Accuracy().run(parser.parse_args([*base, "--shots", "1,2", "--seeds", "1", "--out", str(tmp_path / "out")]))
    document = json.loads((tmp_path / "out/accuracy.json").read_text())
    assert not document["complete"]
    assert [(row["shots"], row["method"]) for row in document["rows"]] == [(1, "fp32")]
    assert not (tmp_path / "out/accuracy.md").exists()
