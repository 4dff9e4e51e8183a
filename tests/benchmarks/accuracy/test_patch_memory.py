"""The patch memory and the fitted rows of baselines.py: their scores, and when they have metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.accuracy import dra, promptad
from benchmarks.accuracy.baselines import NEEDS_TEXT, ROWS, Baselines, patch_distance
from calibration.dataset import Dataset, load_dataset
from calibration.errors import DatasetError
from calibration.metrics import auroc
from export.bundle import describe_encoder
from export.model.checkpoint import LoadedModel, load_model
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.synthetic import write_dataset
from export.teach import EncodedSupports, TeachRequest, encode_request
from export.teaching.prompts import load_prompts
from runtime.recipe import FrameOptions

LEVELS, PATCHES, WIDTH = 4, 36, 12


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_patch_memory_ranks_pixels_as_the_mean_highest_cosine_does() -> None:
    """AnomalyGPT's few-shot scorer is 1 - the mean over levels of the highest cosine with any good patch."""
    memory = unit(3, LEVELS, PATCHES, WIDTH, seed=0)
    mine, theirs = [], []
    for seed in range(1, 9):
        tokens = unit(LEVELS, PATCHES, WIDTH, seed=seed)
        mine.append(patch_distance(tokens, memory))
        highest = torch.stack([(tokens[j] @ memory[:, j].reshape(-1, WIDTH).T).max(1).values for j in range(LEVELS)])
        theirs.append(1 - highest.mean(0))
    truth = np.random.default_rng(0).random(8 * PATCHES) < 0.2
    assert auroc(torch.cat(mine), truth) == pytest.approx(auroc(torch.cat(theirs), truth), abs=1e-6)
    assert torch.allclose(torch.cat(mine), torch.cat(theirs) / 2, atol=1e-6)


def test_more_good_frames_raise_no_distance_and_a_stored_frame_has_none() -> None:
    memory, tokens = unit(4, LEVELS, PATCHES, WIDTH, seed=0), unit(LEVELS, PATCHES, WIDTH, seed=1)
    before = patch_distance(tokens, memory[:1])
    for count in (2, 3, 4):
        after = patch_distance(tokens, memory[:count])
        assert bool((after <= before + 1e-7).all())
        before = after
    assert float(patch_distance(memory[3], memory).max()) < 1e-6


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("toy", random_seed=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "frames"
    write_dataset(folder, per_class=3, size=(64, 64), seed=2)
    return load_dataset(folder).only(["good", "hole"])


@pytest.fixture(scope="module")
def encoded(model: LoadedModel, dataset: Dataset) -> EncodedSupports:
    request = TeachRequest(dataset, load_prompts(), 1, views=2)
    return encode_request(model, SemClipGraph(model.encoder()), request, Stages())


def baselines(model: LoadedModel, dataset: Dataset, work: Path) -> Baselines:
    graph = SemClipGraph(model.encoder())
    encoder = describe_encoder(model, graph)
    return Baselines(model, graph, encoder, dataset, list(dataset.samples), FrameOptions(), 2.0, work)


def test_rows_that_need_text_have_metrics_where_the_text_was_trained(
    model: LoadedModel, dataset: Dataset, encoded: EncodedSupports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promptad, "STEPS", 3)
    monkeypatch.setattr(dra, "EPOCHS", 1)
    without = baselines(model, dataset, tmp_path).judge(encoded)
    need_text = {name for name, row in ROWS.items() if row.needs_text}
    assert need_text == {"winclip", "promptad"}
    assert {name for name, row in without.items() if row["unavailable"] == NEEDS_TEXT} == need_text
    trained = baselines(replace(model, trained=True), dataset, tmp_path)
    with_text = trained.judge(encoded)
    assert not any(row["unavailable"] for row in with_text.values())
    for name in ("dra_heads", "promptad"):
        assert all(0 <= with_text[name][key] <= 1 for key in ("iauroc", "pauroc", "f1_max"))
    assert with_text["dra_heads"] == without["dra_heads"], "it reads no text"
    assert trained.judge(encoded)["promptad"] == with_text["promptad"], "the same seed, the same prompts"


def test_supports_of_one_kind_alone_are_refused(
    model: LoadedModel, dataset: Dataset, encoded: EncodedSupports, tmp_path: Path
) -> None:
    judged = baselines(model, dataset, tmp_path)
    for kind in ("good", "defect"):
        left = tuple(sample for sample in encoded.supports if (sample.label == "good") != (kind == "good"))
        with pytest.raises(DatasetError, match=f"no support is a {kind} frame"):
            judged.judge(replace(encoded, supports=left))
