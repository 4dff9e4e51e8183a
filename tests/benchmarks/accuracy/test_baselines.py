"""benchmarks.accuracy.baselines: probes, iAUROC by 1 - P(good), and the requirements of a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.accuracy.baselines import GOOD_FRAMES, NEEDS_TEXT, ROWS, Baselines, choose_rows, judge_logits
from calibration.dataset import load_dataset
from calibration.errors import DatasetError
from export.bundle import describe_encoder
from export.errors import ExportError
from export.model.checkpoint import LoadedModel, load_model
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.synthetic import write_dataset
from export.teach import EncodedSupports, TeachRequest, encode_request
from export.teaching.prompts import load_prompts
from runtime.recipe import FrameOptions

FEW = ("linear_probe", "cls_mean_patch_probe", "patch_memory", "winclip")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("toy", random_seed=0)


@pytest.fixture(scope="module")
def encoded(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> EncodedSupports:
    folder = tmp_path_factory.mktemp("data") / "frames"
    write_dataset(folder, per_class=4, size=(64, 64))
    dataset = load_dataset(folder).only(["good", "hole"])
    return encode_request(model, SemClipGraph(model.encoder()), TeachRequest(dataset, load_prompts(), 2, 0), Stages())


def judged_on_its_supports(model: LoadedModel, encoded: EncodedSupports, work: Path) -> Baselines:
    graph = SemClipGraph(model.encoder())
    encoder, dataset = describe_encoder(model, graph), encoded.request.dataset
    return Baselines(model, graph, encoder, dataset, list(encoded.supports), FrameOptions(), 1.0, work, FEW)


def test_a_probe_classifies_the_frames_that_it_was_fitted_on(
    model: LoadedModel, encoded: EncodedSupports, tmp_path: Path
) -> None:
    rows = judged_on_its_supports(model, encoded, tmp_path).judge(encoded)
    assert list(rows) == list(FEW)
    for name in ("linear_probe", "cls_mean_patch_probe"):
        assert rows[name]["accuracy"] == rows[name]["iauroc"] == 1
    assert (rows["winclip"]["unavailable"], rows["winclip"]["supervision"]) == (NEEDS_TEXT, GOOD_FRAMES)
    assert "iauroc" not in rows["winclip"]


def test_supports_and_test_frames_give_the_second_probe_the_same_features(
    model: LoadedModel, encoded: EncodedSupports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    baselines = judged_on_its_supports(model, encoded, tmp_path)
    monkeypatch.setattr(baselines, "_probe", lambda views, test, _: seen.append((views, test)))
    baselines._cls_mean_patch_probe(encoded)
    views, test = seen[0]
    assert test.shape == (4, 2 * 32)
    torch.testing.assert_close(views[encoded.features.unaugmented], test, atol=1e-3, rtol=0)
    torch.testing.assert_close(test[:, 32:].norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.supervision == GOOD_FRAMES])
def test_a_row_of_good_frames_refuses_supports_without_one(
    name: str, model: LoadedModel, encoded: EncodedSupports, tmp_path: Path
) -> None:
    baselines = judged_on_its_supports(model, encoded, tmp_path)
    baselines.rows = (name,)
    defects = replace(encoded, supports=tuple(s for s in encoded.supports if s.label != "good"))
    with pytest.raises(DatasetError, match=f"no support is a good frame, but the row {name} learns from such frames"):
        baselines.judge(defects)


def test_iauroc_of_a_classifier_is_by_1_minus_p_good_without_ties_where_it_rounds() -> None:
    logits = torch.tensor([[90.0, 0.0, 0.0], [80.0, 0.0, 0.0], [0.0, 80.0, 0.0], [0.0, 0.0, 90.0]])
    found = judge_logits(logits, np.array([0, 1, 2, 1]), 3)
    assert found["iauroc"] == 1, "1 - P(good) is 0 or 1 in float32 for all four"
    assert found["accuracy"] == 0.25
    assert judge_logits(logits, np.array([1, 0, 2, 1]), 3)["iauroc"] == pytest.approx(2 / 3)


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    assert choose_rows("winclip, class_mean") == ("class_mean", "winclip")
    assert choose_rows("all") == tuple(ROWS)
    for text in ("", "class_mean,", "probe"):
        with pytest.raises(ExportError, match="there are: class_mean, linear_probe, cls_mean_patch_probe"):
            choose_rows(text)
