"""The classification head (paper eq. 20-22), fitted on cached support features, and its start from the text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..model import heads
from .priors import fit_prior_scales, peak_prior, text_prior
from .settings import TeachSettings
from .text_bank import TextBank
from .views import SupportFeatures

Layer = tuple[Tensor, Tensor]
"""Weight and bias."""
HEAD_L2 = 1e-3
"""Weight decay of the logistic regression, on features of one scale (`head_scale`)."""
MAX_FOLDS = 5
RANK_TOLERANCE = 1e-12
"""Directions below this fraction of the largest eigenvalue of the views' Gram matrix are rounding errors."""
PRIOR_L2 = 1.0
"""Added to the head's L2 if it starts from the text, divided by the shots per class."""
PRIOR_BIAS_L2 = 1.0
"""L2 on the bias of such a head: few supports would move it mostly by chance."""
BLOCK_WEIGHTS = {"paper": (1.0, 0.0, 0.0, 0.0), "pooled": (1.0, 0.4, 0.5, 0.6)}
"""By kind of head: scale of z_C, of the tokens under the map, of their contrast, and of the map's peak mean. Tokens
under the map count less, since maps fit their supports better than new frames (docs/method.md)."""


@dataclass(frozen=True, slots=True)
class HeadFit:
    """How a head is fitted to standardized features.

    scale: factors [F] of the features; None: 1 / sqrt(F). prior: weight [K, F] and bias [K] to start from; l2 and
    bias_l2 decay the differences of weight and bias from it.
    """

    l2: float = HEAD_L2
    scale: Tensor | None = None
    prior: Layer | None = None
    bias_l2: float = 0.0


@dataclass(frozen=True, slots=True)
class ClassHead:
    """weight [K, F] and bias [K], for the graph's `features`.

    out_of_fold: P_C [supports, K] of the unaugmented supports, by heads fitted without them; None if `good` or every
    defect class has a single support. prior: how far the text is used, for the recipe's record; {} if it is not.
    """

    weight: Tensor
    bias: Tensor
    out_of_fold: Tensor | None
    prior: dict[str, Any]


def fit_class_head(features: SupportFeatures, maps: Tensor, bank: TextBank, settings: TeachSettings) -> ClassHead:
    """Fit the head to the features under maps [V, P]. Aligned text is its prior; more shots make it weaker."""
    classes, labels = len(bank.text_cls), features.labels
    levels, width = features.tokens.shape[1], features.tokens.shape[3]
    x = features_under_maps(features, torch.ones(len(labels), dtype=torch.bool), maps)
    shots = len(set(features.frame.tolist())) / classes
    prior, record = start_of_head(x, labels, bank, settings, shots)
    l2, bias_l2 = (HEAD_L2, 0.0) if prior is None else (HEAD_L2 + PRIOR_L2 / shots, PRIOR_BIAS_L2)
    how = HeadFit(l2, head_scale(levels, width, settings.head), prior, bias_l2)
    weight, bias = fit_head(x, labels, classes, how)
    return ClassHead(weight, bias, out_of_fold_probabilities(x, features, classes, how), record)


def features_under_maps(features: SupportFeatures, views: Tensor, maps: Tensor) -> Tensor:
    """The graph's `features` [n, F] of the chosen views (bool [V], n of them true) under their maps [n, P]."""
    rows = []
    for view, defect_map in zip(views.nonzero()[:, 0].tolist(), maps, strict=True):
        tokens = [z[None] for z in features.tokens[view]]
        rows.append(torch.cat([features.cls[view], heads.map_features(tokens, defect_map[None])[0]]))
    return torch.stack(rows)


def start_of_head(
    x: Tensor, labels: Tensor, bank: TextBank, settings: TeachSettings, shots: float
) -> tuple[Layer | None, dict[str, Any]]:
    """The head's prior from text and map, as weight [K, F] and bias [K], and its record.

    The text names the class; the map's peak mean separates defects from good. record: both scales
    (`fit_prior_scales`), and `explained`, the fraction by which they reduce the log loss of guessing on the supports.
    None and {} if the text is not aligned, and for the paper's head. x: the head's inputs [V, F].
    """
    if bank.projection is None or settings.head != "pooled":
        return None, {}
    levels = (x.shape[1] - 1) // (3 * bank.projection.weight.shape[0])
    of_text = text_prior(bank.projection, torch.tensor(bank.text_cls), x, levels)
    of_peak = peak_prior(len(bank.text_cls), x.shape[1])
    text, peak = fit_prior_scales(F.linear(x, *of_text), F.linear(x, *of_peak), labels, shots)
    weight, bias = (text * a + peak * b for a, b in zip(of_text, of_peak, strict=True))
    loss = F.cross_entropy(F.linear(x, weight, bias), labels, weight=1 / torch.bincount(labels))
    explained = max(0.0, 1 - float(loss) / math.log(len(bank.text_cls)))
    return (weight, bias), {"text": round(text, 3), "peak": round(peak, 3), "explained": round(explained, 4)}


def head_scale(levels: int, width: int, kind: str) -> Tensor:
    """Factors [F] of standardized features before the head is fitted; F = 3 * levels * width + 1.

    Class tokens, pooled tokens and their contrast are blocks, each with its weight, whatever its width; 0 is not read.
    "paper" reads the class tokens of all levels, "pooled" those of the upper half: lower ones hold little but the
    frame's brightness.
    """
    *blocks, peak = BLOCK_WEIGHTS[kind]
    reads = (levels if kind == "paper" else -(-levels // 2), levels, levels)
    parts = []
    for weight, upper in zip(blocks, reads, strict=True):
        part = torch.zeros((levels, width))
        part[levels - upper :] = weight / math.sqrt(upper * width)
        parts.append(part.flatten())
    return torch.cat([*parts, torch.tensor([peak])])


def fit_head(
    features: Tensor, labels: Tensor, classes: int, how: HeadFit | None = None, max_iterations: int = 300
) -> Layer:
    """Multinomial logistic regression with L2, full batch: weight [K, F] and bias [K] for raw features [V, F].

    Classes weigh the same, whatever their number of views. A feature of scale 0 gets weight 0. The result includes
    standardization and scale.
    """
    how = how or HeadFit()
    x = features.double()
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    factor = (torch.full_like(std, x.shape[1] ** -0.5) if how.scale is None else how.scale.double()) / std
    # With L2 the best weights lie in the span of the views, which are far fewer than F. Their Gram matrix gives it.
    scaled = (x - mean) * factor
    values, vectors = torch.linalg.eigh(scaled @ scaled.T)
    kept = values > RANK_TOLERANCE * values[-1]
    size, vectors = values[kept].sqrt(), vectors[:, kept]
    prior_logits = 0.0 if how.prior is None else F.linear(features, *how.prior).double()
    weight, bias = _regress(vectors * size, labels, classes, prior_logits, how, max_iterations)
    folded = (weight / size) @ vectors.T @ scaled * factor
    bias = bias - folded @ mean
    if how.prior is not None:
        folded, bias = folded + how.prior[0], bias + how.prior[1]
    return folded.float(), bias.float()


def _regress(
    z: Tensor, labels: Tensor, classes: int, prior_logits: Tensor | float, how: HeadFit, max_iterations: int
) -> Layer:
    """Weight [K, R] and bias [K], float64, of the lowest loss for z [V, R], added to prior_logits [V, K]; by L-BFGS."""
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    sample_weight = (1.0 / counts.double())[labels] / classes
    weight = torch.zeros((classes, z.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            F.cross_entropy(F.linear(z, weight, bias) + prior_logits, labels, reduction="none") * sample_weight
        ).sum()
        loss = loss + 0.5 * how.l2 * weight.square().sum() + 0.5 * how.bias_l2 * bias.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def out_of_fold_probabilities(x: Tensor, features: SupportFeatures, classes: int, how: HeadFit) -> Tensor | None:
    """P_C (eq. 22) of every unaugmented support by heads fitted without its frame: [supports, K].

    x: the head's inputs [V, F]. All views of a frame are left out together. None if `good` or every defect class has a
    single frame: nothing would be left to fit to. A defect class with a single frame beside larger ones is judged by a
    head that has never seen it, as a new defect would be.
    """
    frames, first = np.unique(features.frame.numpy(), return_index=True)
    labels, unaugmented = features.labels[first], x[features.unaugmented]
    counts = torch.bincount(labels, minlength=classes)
    folds = min(MAX_FOLDS, int(counts[0]), int(counts[1:].max()))
    if folds < 2:
        return None
    fold = torch.zeros(int(frames[-1]) + 1, dtype=torch.int64)  # of every frame
    for label in range(classes):
        mine = torch.from_numpy(frames)[labels == label]
        fold[mine] = torch.arange(len(mine)) % folds
    fold = fold[features.frame]
    found = torch.zeros((len(unaugmented), classes))
    for left_out in range(folds):
        taught, mine = fold != left_out, fold[features.unaugmented] == left_out
        fitted = fit_head(x[taught], features.labels[taught], classes, how, max_iterations=40)
        found[mine] = heads.head_probabilities(unaugmented[mine], *fitted)
    return found
