"""export.teaching.text_bank: one vector per class, from prompts or, without a text tower, from anchors."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from export.errors import PromptError
from export.model.checkpoint import LoadedModel, load_model
from export.teaching.prompts import Prompts, load_prompts
from export.teaching.text_bank import anchor_bank, build_text_bank

CLASSES = ["good", "hole", "own_class"]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("toy", random_seed=0)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    """Few prompts, so that the test is quick; `own_class` has no section."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.toml"
    path.write_text(
        'object = "wafer"\ntemplates = ["{}", "a photo of a {}"]\n[generic]\nstates = ["{} with {class}"]\n'
        '[classes.good]\nstates = ["clean {}", "perfect {}"]\n[classes.hole]\nstates = ["{} with a hole"]\n'
    )
    return load_prompts(path)


@pytest.mark.parametrize(("count", "dim"), [(2, 24), (7, 24), (24, 24), (64, 192)])
def test_anchors_are_orthonormal(count: int, dim: int) -> None:
    bank = anchor_bank([f"class{i}" for i in range(count)], dim)
    assert bank.text_cls.shape == (count, dim)
    assert bank.text_cls.dtype == bank.text_seg.dtype == np.float32
    np.testing.assert_allclose(bank.text_cls @ bank.text_cls.T, np.eye(count), atol=1e-6)
    assert (bank.source, bank.aligned) == ("anchors", False)


def test_anchors_stay_when_classes_are_appended() -> None:
    few, many = anchor_bank(CLASSES, 24), anchor_bank([*CLASSES, "a", "b"], 24)
    np.testing.assert_array_equal(many.text_cls[:3], few.text_cls)


def test_more_classes_than_dimensions_are_refused() -> None:
    with pytest.raises(PromptError, match="25 classes do not fit into 24 orthonormal anchors"):
        anchor_bank([str(i) for i in range(25)], 24)


def test_a_model_without_text_tower_gets_anchors(model: LoadedModel, prompts: Prompts) -> None:
    bank = build_text_bank(replace(model, has_text=False, trained=True), prompts, CLASSES)
    np.testing.assert_array_equal(bank.text_cls, anchor_bank(CLASSES, 24).text_cls)
    assert (bank.source, bank.aligned) == ("anchors", False)


def test_tower_bank_is_normalise_mean_normalise(model: LoadedModel, prompts: Prompts) -> None:
    bank = build_text_bank(model, prompts, CLASSES)
    tokenizer = open_clip.get_tokenizer("ViT-B-16-plus-240")
    for row, name in enumerate(CLASSES):
        total = np.zeros(24)
        phrases = prompts.for_class(name)
        for phrase in phrases:
            with torch.inference_mode():
                vector = model.clip.encode_text(tokenizer([phrase]))[0].double().numpy()
            total += vector / np.linalg.norm(vector)
        mean = total / len(phrases)
        np.testing.assert_allclose(bank.text_cls[row], mean / np.linalg.norm(mean), atol=1e-5)
    assert bank.text_cls.dtype == np.float32
    assert bank.source == "tower"


@pytest.mark.parametrize("trained", [True, False])
def test_only_trained_weights_align_text_with_images(model: LoadedModel, prompts: Prompts, trained: bool) -> None:
    assert build_text_bank(replace(model, trained=trained), prompts, CLASSES).aligned is trained


@pytest.mark.parametrize("has_text", [True, False])
def test_defect_vector_is_the_class_balanced_mean_of_the_defect_classes(
    model: LoadedModel, prompts: Prompts, has_text: bool
) -> None:
    """`own_class` and `hole` count alike, however many prompts each has."""
    bank = build_text_bank(replace(model, has_text=has_text), prompts, CLASSES)
    good, *defects = bank.text_cls.astype(np.float64)
    mean = sum(defects) / len(defects)
    np.testing.assert_allclose(bank.text_seg[0], good, atol=1e-6)
    np.testing.assert_allclose(bank.text_seg[1], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(bank.text_seg, axis=1), 1, atol=1e-6)


def test_a_class_without_prompts_is_an_error(model: LoadedModel, prompts: Prompts) -> None:
    with pytest.raises(PromptError, match='no prompts for class "own_class"'):
        build_text_bank(model, replace(prompts, generic=()), CLASSES)


def test_a_prompt_that_the_tokenizer_would_cut_is_named(
    model: LoadedModel, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    fits, long = "{}" + " dark" * 73, "{}" + " dark" * 74  # "wafer" is two tokens, and two more mark both ends
    edited = replace(prompts, templates=("{}",), states={"good": ("{}",), "hole": (fits, long)})
    with caplog.at_level(logging.WARNING, logger="sem_clip"):
        build_text_bank(model, edited, ["good", "hole"])
    (record,) = caplog.records
    assert "prompt of 76 tokens is cut to 75" in record.getMessage()
    assert long.replace("{}", "wafer") in record.getMessage()


def test_words_that_the_text_tower_was_not_trained_on_are_named_in_one_line(
    model: LoadedModel, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=model.clip.context_length)
    edited = replace(prompts, templates=("{}",), states={"good": ("{}",), "hole": ("{} with a hole", "{} with pits")})
    edited = replace(edited, states={**edited.states, "rust": ("{} with rust",)})
    known = replace(model, vocabulary=frozenset(tokenizer.encode("wafer with a hole")))
    with caplog.at_level(logging.WARNING, logger="sem_clip"):
        build_text_bank(known, edited, ["good", "hole", "rust"])
    (record,) = caplog.records
    assert record.getMessage() == (
        'the text tower was never trained on "pits", "rust": prompts with such words mean little'
    )


def test_no_shipped_prompt_is_cut(caplog: pytest.LogCaptureFixture, model: LoadedModel) -> None:
    names = [*load_prompts().states, "some_rather_long_class_name"]
    with caplog.at_level(logging.WARNING, logger="sem_clip"):
        build_text_bank(model, load_prompts(), names)
    assert caplog.records == []
