"""Support features of planted truth: what the tests of teaching are taught on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from conftest import make_encoder
from torch import Tensor

from export.model import heads
from export.teaching.fit_recipe import Lesson, fit_recipe
from export.teaching.priors import Projection
from export.teaching.settings import TeachSettings
from export.teaching.text_bank import TextBank, anchor_bank
from export.teaching.views import SupportFeatures
from runtime.recipe import FrameOptions, Recipe

CLASSES = ("good", "hole", "scratch")
ENCODER = make_encoder()
LEVELS, PATCHES, WIDTH = 4, 16, 32
QUICK = replace(TeachSettings(), steps=150)
BANK = anchor_bank(CLASSES, ENCODER.text_dim)
TEXT = torch.tensor(BANK.text_seg)
LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
DEFECTS = tuple(range(4, 10))


def plant(
    labels: list[int], *, seed: int = 0, unmasked: tuple[int, ...] = (), strength: float = 4.0
) -> SupportFeatures:
    """Features of one view per label; a defect moves two by two patches along one direction per level.

    The class tokens separate the classes as well. unmasked: the views whose truth is unknown.
    """
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)  # the same directions for every draw
    directions = fixed.standard_normal((LEVELS, WIDTH))
    directions *= strength / np.linalg.norm(directions, axis=1, keepdims=True)
    centres = fixed.standard_normal((len(CLASSES), LEVELS * WIDTH))
    tokens = fixed.standard_normal((LEVELS, 1, WIDTH)) + 0.7 * rng.standard_normal(
        (len(labels), LEVELS, PATCHES, WIDTH)
    )
    targets = np.zeros((len(labels), 16, 16), np.float32)
    for view, label in enumerate(labels):
        if label:
            row, column = rng.integers(0, 3, 2)
            for r, c in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
                tokens[view, :, 4 * r + c] += directions
            targets[view, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8] = 1
    cls = 0.05 * (centres[labels] + 0.5 * rng.standard_normal((len(labels), LEVELS * WIDTH)))
    targets[list(unmasked)] = np.nan
    return SupportFeatures(
        tokens=torch.tensor(tokens, dtype=torch.float16),
        cls=torch.tensor(cls, dtype=torch.float32),
        value=torch.zeros(len(labels), LEVELS, PATCHES),
        targets=torch.tensor(targets),
        labels=torch.tensor(labels),
        unaugmented=torch.ones(len(labels), dtype=torch.bool),
        group=torch.arange(len(labels)),
        frame=torch.arange(len(labels)),
    )


def lesson(
    features: SupportFeatures, *, seed: int = 0, settings: TeachSettings = QUICK, bank: TextBank = BANK
) -> Lesson:
    return Lesson(features, ENCODER, CLASSES, bank, 1.0, seed, settings)


def teach(
    features: SupportFeatures, *, seed: int = 0, settings: TeachSettings = QUICK, bank: TextBank = BANK
) -> Recipe:
    return fit_recipe(lesson(features, seed=seed, settings=settings, bank=bank), FrameOptions())


def map_logits(features: SupportFeatures, weight: Tensor, bias: Tensor) -> Tensor:
    """Defect minus normal cosine of every patch, averaged over levels: [V, P]."""
    transformed = heads.transform(features.tokens.float(), weight, bias[:, None])
    similarity = heads.cosines(transformed, TEXT)
    return (similarity[..., 1] - similarity[..., 0]).mean(1)


def patch_truth(labels: list[int], seed: int) -> Tensor:
    """Bool [V, P], also of unmasked views."""
    return plant(labels, seed=seed).targets[:, ::4, ::4].flatten(1) > 0


def towards_defects() -> Projection:
    """A projection to the text space that separates the defects of `plant` at the first level."""
    directions = np.random.default_rng(99).standard_normal((LEVELS, WIDTH))
    defect = torch.tensor(directions[0] / np.linalg.norm(directions[0]), dtype=torch.float32)
    weight = defect[:, None] * (TEXT[1] - TEXT[0])
    return Projection(weight - weight.mean(0), torch.zeros(ENCODER.text_dim))


def towards_classes() -> Projection:
    """A projection that takes the last level's class tokens of `plant` to the texts of their classes."""
    fixed = np.random.default_rng(99)
    fixed.standard_normal((LEVELS, WIDTH))
    centres = torch.tensor(fixed.standard_normal((len(CLASSES), LEVELS * WIDTH))[:, -WIDTH:], dtype=torch.float32)
    weight = torch.linalg.pinv(centres) @ torch.tensor(BANK.text_cls)
    return Projection(weight, torch.zeros(ENCODER.text_dim))
